"""The locked-memory limit stops RDMA registration."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import IbError, Network, NotChecked, Sign

CLASS = "host_config"
PRIOR = -5.0


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    reg = next(
        (e for e in f.all(IbError) if e.call.startswith(("reg_", "create_cq", "create_qp")) and ("emory" in e.errno or e.errno == "12")),
        None,
    )
    if reg:
        yield pro(5.0 if reg.call != "reg_dmabuf_mr" else 3.5, "registering memory for RDMA was refused for lack of memory", reg)
    told = f.network("rdma_error")
    if told and any(w in told.value.lower() for w in ("enomem", "cannot allocate", "reg_mr")):
        yield pro(2.2, "registering memory for RDMA was refused for lack of memory", told)
    limit = f.host_number("memlock_kib")
    if limit and limit[0] < 1024 * 1024:
        yield pro(
            4.0 if reg or told else 0.7, "the locked-memory limit is {value} KiB", limit[1], value=limit[1].value, stands=bool(reg or told)
        )
    elif (host := f.host("memlock_kib")) and "unlimited" in host.value:
        yield con(5.0, "the locked-memory limit is unlimited", host)
    if raised := f.setting("memlock", "cured"):
        yield pro(6.0, "raising the limit ended it", raised)
    if cma := f.host("cma_kib"):
        yield con(1.5, "the kernel has no contiguous memory area ({value} kB)", cma, value=cma.value)
    if several := next((n for n in f.all(Network, fact="rdma_error") if "modify_qp" in n.value), None):
        yield con(2.0, "queue pairs fail too, not only registration", several)
    if reg and not limit and not f.host("memlock_kib"):
        yield NotChecked("rdma_memlock_limit", "the limit inside the launched process is not known", do="ulimit -l")
