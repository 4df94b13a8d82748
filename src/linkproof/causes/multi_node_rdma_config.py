"""Cabling, rails, NIC pairing or kernel memory for RDMA."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import Collective, IbError, Network, NotChecked, Sign

CLASS = "network"
PRIOR = -5.0


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    errors = f.all(IbError)
    told = f.all(Network, fact="rdma_error")
    kinds = {e.call.split("_")[0] for e in errors} | {n.value.split(" ")[0].replace("ibv_", "").split("_")[0] for n in told}
    first: IbError | Network | None = errors[0] if errors else told[0] if told else None
    if first is not None and len(kinds) > 1:
        yield pro(4.5, "several kinds of RDMA calls fail: {kinds}", first, kinds=", ".join(sorted(kinds)))
    elif first is not None:
        yield pro(2.0, "an RDMA call fails", first)
    retry = next((e for e in errors if e.call == "completion"), None)
    if retry:
        yield pro(2.0, "a transfer between hosts was never acknowledged ({errno})", retry, errno=retry.errno)
    if (cma := f.host("cma_kib")) and cma.value in ("0", ""):
        yield pro(3.0, "the kernel has no contiguous memory area ({value} kB)", cma, value=cma.value)
    if dmabuf := f.event("peer_memory_dmabuf"):
        yield pro(2.0, "GPUDirect RDMA is missing or fails", dmabuf)
    if off := f.setting("ib_off", "cured") or f.setting("gdr_off", "cured"):
        yield pro(4.0, "without RDMA it runs", off)
    if nics := f.network("several_nics"):
        yield pro(0.8, "the hosts have several interfaces", nics)
    if net := f.first(Collective, transport="net", result=("hang", "error", "slow")):
        yield pro(1.2, "the failing transport is the network", net)
    if moved := f.network("gid_table_changed") or f.setting("gid", "cured"):
        yield con(2.5, "the GID table has moved", moved)
    if (limit := next((e for e in errors if e.call.startswith("reg_") and "emory" in e.errno), None)) and len(kinds) == 1:
        yield con(2.0, "only registering memory fails: a limit", limit)
    if (qp := next((e for e in errors if e.call.startswith("modify_qp")), None)) and len(kinds) == 1:
        yield con(1.0, "only connecting fails: an address", qp)
