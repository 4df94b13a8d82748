"""RoCE uses a GID that is not routed, or the table has moved."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import Gid, IbError, Network, NotChecked, Sign

CLASS = "network"
PRIOR = -5.0


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    qp = next((e for e in f.all(IbError) if e.call.startswith("modify_qp")), None)
    told = next((n for n in f.all(Network, fact="rdma_error") if "modify_qp" in n.value), None)
    if qp:
        yield pro(4.0, "connecting a queue pair failed ({errno}): the peer's address is not reached", qp, errno=qp.errno or "?")
    elif told:
        yield pro(2.5, "connecting a queue pair failed ({errno}): the peer's address is not reached", told, errno=told.value)
    if moved := f.network("gid_table_changed"):
        yield pro(4.5, "the GID table has moved", moved)
    if pinned := f.setting("gid", "present"):
        yield pro(2.0 if qp or told or moved else 0.5, "{name} pins an entry of a table that may move", pinned, name=pinned.name)
    if cured := f.setting("gid", "cured"):
        yield pro(6.5, "another GID index ended it", cured)
    elif same := f.setting("gid", "no_effect"):
        yield con(3.0, "another GID index changed nothing", same)
    gids = f.all(Gid)
    if gids and len({g.kind for g in gids}) > 1:
        yield pro(1.5, "the table has RoCE v1 and v2, link-local and routed entries", gids[0])
    retry = next((e for e in f.all(IbError) if e.call == "completion" and e.errno.startswith(("12", "RETRY", "IBV_WC_RETRY"))), None)
    if retry:
        yield pro(2.0, "the other side never acknowledged (retry exceeded)", retry)
    memory = next((e for e in f.all(IbError) if e.call.startswith("reg_")), None) or next(
        (n for n in f.all(Network, fact="rdma_error") if "reg_mr" in n.value), None
    )
    if memory:
        yield con(2.0, "registering memory fails too: more than an address is wrong", memory)
    if f.host("cma_kib"):
        cma = f.host("cma_kib")
        if cma:
            yield con(1.0, "the kernel has no contiguous memory area ({value} kB)", cma, value=cma.value)
