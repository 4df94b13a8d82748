"""An engine's own all-reduce is switched on where its needs are not met."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import Collective, Copy, ModelRun, NotChecked, Sign

CLASS = "comm_software"
PRIOR = -4.8


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    error = f.event("custom_ar_cuda_error")
    refused = f.cuda_error(217) or f.hw_denies_peer
    if error and f.cuda_error(217):
        yield pro(6.5, "the engine's own all-reduce asked for peer access that does not exist", error, decisive=True)
    elif error:
        yield pro(3.0, "a CUDA error inside the engine's own all-reduce ({value})", error, value=error.value)
    stopped = f.first(Collective, engine="custom_allreduce", result="error")
    if stopped and not error:
        yield pro(3.5, "the engine's own all-reduce stops with an error where the ranks share their buffers", stopped)
    if ipc := f.first(Copy, via="ipc", result="error"):
        yield pro(1.5, "memory cannot be shared between the processes", ipc)
    off = f.setting("custom_ar_off", "cured")
    if off and f.hw_denies_peer:
        yield pro(4.5, "without peer access the engine's own all-reduce cannot work, and off it runs", off)
    elif off:
        yield pro(1.5, "switching the engine's own all-reduce off ended it", off)
    used = f.event("custom_ar_used")
    if used and f.hang and not f.topo_path("NV"):
        yield pro(2.2, "the engine's own all-reduce runs over PCIe, and it hangs", used)
    run = f.first(ModelRun, split="tensor", result=("garbage", "wrong", "hang", "crash"))
    if run and f.hw_denies_peer and not error:
        yield pro(1.0, "tensor parallelism fails where there is no peer access", run)
    if same := f.setting("custom_ar_off", "no_effect"):
        yield con(4.5, "it fails with the engine's own all-reduce switched off as well", same)
    if gone := f.event("custom_ar_disabled"):
        yield con(5.0, "the engine's own all-reduce is off in this run", gone)
    if (s := f.setting("expandable", "present")) and error:
        yield con(2.5, "the allocator setting explains the error: see ipc_expandable_segments", s)
    if refused is None and error is None and not stopped and f.hw_claims_peer:
        yield con(1.5, "peer access is claimed, so the gate was right to open", f.hw_claims_peer)
    if f.single_bad:
        yield con(4.0, "it fails on one GPU too: no link is in use there", f.single_bad)
