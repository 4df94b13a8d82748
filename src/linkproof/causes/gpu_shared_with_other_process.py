"""An unrelated process on one of the GPUs starves spinning kernels."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import WRONG_DATA, Reading
from linkproof.model import Collective, Gpu, ModelRun, NotChecked, Sign

CLASS = "host_config"
PRIOR = -5.2


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    other = f.first(Gpu, fact="other_process")
    if not other:
        return
    slow = f.first(Collective, result="slow") or f.first(ModelRun, result="slow")
    if f.hang or slow or f.split_bad:
        yield pro(5.0, "another process runs on one of the GPUs ({value})", other, value=other.value or "?")
    else:
        yield pro(1.5, "another process runs on one of the GPUs ({value})", other, value=other.value or "?")
    if f.pattern("intermittent", "under_load"):
        yield pro(0.7, "it comes and goes, as the other process does", other)
    if f.peer_copy_bad and f.peer_copy_bad.result in WRONG_DATA:
        yield con(4.0, "another process does not change data", f.peer_copy_bad)
    if oom := f.event("cuda_oom"):
        yield con(2.0, "memory ran out, time did not", oom)
