"""NVLink multicast objects are refused."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import FabricManager, NotChecked, Sign, Stage

CLASS = "fabric"
PRIOR = -4.4


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    bind, call, other = f.event("nvls_bind_failed"), f.event("nvls_call_failed"), f.event("multicast_failed")
    if bind:
        weight = 4.0 if bind.value == "2" else 5.0
        yield pro(weight, "binding NVLink multicast memory failed (CUDA error {code})", bind, code=bind.value or "?")
    elif call:
        yield pro(4.5, "a call of NCCL's NVLS transport failed", call)
    if other:
        yield pro(4.0, "a CUDA multicast call failed", other)
    if restarted := f.first(FabricManager, state="restarted_without_reset"):
        yield pro(4.0, "Fabric Manager was restarted without a GPU reset: the old multicast state is gone", restarted, stands=True)
    if caps := f.host("nvidia_caps_missing"):
        yield pro(2.5, "the device nodes that multicast needs are missing in the container", caps, stands=True)
    if off := f.setting("nvls_off", "cured"):
        yield pro(4.5, "switching NVLS off ended the failure", off)
    elif same := f.setting("nvls_off", "no_effect"):
        yield con(4.0, "it fails with NVLS switched off as well", same)
    if used := f.event("nvls_used"):
        stuck = f.first(Stage, at=("nccl_init", "first_collective"))
        yield pro(2.0 if stuck else 0.7, "NCCL sets up NVLS in the run that fails", used)
    if bind and bind.value == "2" and (running := f.first(FabricManager, state="running")):
        yield con(1.5, "Fabric Manager runs and the objects ran out: NCCL should have fallen back", running)
    if f.cuda_error(802) or f.first(Stage, at="cuda_init"):
        stage = f.cuda_error(802) or f.first(Stage, at="cuda_init")
        if stage:
            yield con(4.0, "CUDA itself does not start", stage)
    if gone := f.event("nvls_unavailable"):
        yield con(3.0, "NVLS is not available here, so NCCL does not use it", gone)
    if f.geforce and not f.nvswitch:
        yield con(4.0, "these cards have no NVSwitch", f.geforce)
