"""Two ranks on one GPU."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import Gpu, NotChecked, Sign

CLASS = "host_config"
PRIOR = -5.0


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if twice := f.event("nccl_duplicate_gpu"):
        yield pro(8.0, "two ranks use one GPU", twice, decisive=True)
    usage = f.event("nccl_error", value="usage")
    if usage:
        yield pro(3.0, "NCCL reports invalid usage", usage)
    if ordinal := f.cuda_error(101):
        yield pro(2.0, "a rank asks for a GPU that is not there (invalid device ordinal)", ordinal)
    if mig := f.first(Gpu, fact="mig") or f.event("mig_present"):
        yield con(2.5, "MIG slices of one card look like one GPU: see mig_unsupported", mig)
