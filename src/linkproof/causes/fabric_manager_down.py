"""An NVSwitch machine whose Fabric Manager is missing, stopped, of another version, or on the wrong side of a VM."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import FabricManager, NotChecked, Sign, Stage

CLASS = "fabric"
PRIOR = -4.8


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    state = f.first(FabricManager)
    e802 = f.cuda_error(802) or f.first(Stage, at="cuda_init", code="802")
    if e802:
        yield pro(6.0, "CUDA cannot start: system not yet initialized (802)", e802, decisive=True, stands=True)
    if ready := f.event("fabric_not_ready"):
        yield pro(4.5, "the fabric is not initialised", ready, stands=True)
    if state and state.state in ("stopped", "version_mismatch"):
        yield pro(5.5, "Fabric Manager: {state}", state, decisive=True, state=state.state, stands=True)
    elif state and state.state == "running":
        yield con(3.5, "Fabric Manager runs", state)
    elif state:
        yield con(0.5, "Fabric Manager runs again; the GPUs were not reset", state)
    if (bind := f.event("nvls_bind_failed")) and bind.value in ("401", ""):
        yield pro(2.6, "NVLink multicast is refused in the present state: fabric or Fabric Manager", bind)
    elif call := f.event("nvls_call_failed"):
        yield pro(1.5, "a call of NCCL's NVLS transport failed", call)
    if f.nvswitch and f.guest and f.first(Stage, at=("nccl_init", "cuda_init"), result="error"):
        yield pro(
            3.5, "GPUs of an NVSwitch machine inside a guest fail at start: the fabric's manager must run where the switches are", f.guest
        )
        if partial := f.setting("p2p_off", "no_effect"):
            yield pro(0.7, "peer traffic is not the trouble", partial)
    elif f.nvswitch and f.first(Stage, at="cuda_init", result="error"):
        yield pro(2.5, "CUDA does not start on an NVSwitch machine", f.nvswitch)
    if f.nvswitch is None and f.geforce:
        yield con(4.0, "these cards have no NVSwitch", f.geforce)
    if not state and (e802 or bind):
        yield NotChecked(
            "fabric_manager_down",
            "the state of Fabric Manager is not known",
            do="systemctl status nvidia-fabricmanager; nvidia-smi -q | grep -A3 Fabric",
        )
