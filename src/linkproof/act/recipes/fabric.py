"""NVSwitch machines: Fabric Manager started, or what to do where starting it is not enough; the order in which GPUs are reset. Pure.

In:      a Case.
Out:     fabric-manager  started by systemctl where the unit is there and does not run; words for another version or a guest
         gpu-reset       words: drain, stop, reset all GPUs of the NVLink domain together, start
Unknown: a unit of which systemctl said nothing is not started.
Raises:  nothing.
Source:  NVIDIA Fabric Manager User Guide; nvidia-smi(1), --gpu-reset.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.act.recipes.case import Case, seen, undo_line
from linkproof.mending import Command, Line, Sentence, Step
from linkproof.model import CudaError, Event, FabricManager

UNIT = "nvidia-fabricmanager"
STOPPED = ("inactive", "failed")
_RESET: tuple[Line, ...] = (
    Sentence("nvidia-smi --query-compute-apps=pid,name --format=csv  # must list nothing"),
    Sentence("sudo systemctl stop nvidia-persistenced nvidia-dcgm  # whatever else holds the GPUs, too"),
    "sudo systemctl stop nvidia-fabricmanager",
    Sentence("sudo nvidia-smi --gpu-reset  # all GPUs at once: those that NVLink joins cannot be reset one by one"),
    "sudo systemctl start nvidia-fabricmanager",
    "sudo systemctl start nvidia-persistenced nvidia-dcgm",
    "linkproof check",
)


def fabric_manager(case: Case) -> Iterator[Step]:
    states = {f.state for f in case.found.diagnosis.facts if isinstance(f, FabricManager)}
    if "version_mismatch" in states:
        yield _words(
            case,
            Sentence("install Fabric Manager of exactly the driver's version, then start it"),
            ("cat /proc/driver/nvidia/version", Sentence("sudo apt install nvidia-fabricmanager-BRANCH  # or the package of your system"),
             "sudo systemctl enable --now nvidia-fabricmanager"),
        )  # fmt: skip
    elif case.mend.virt not in ("none", ""):
        yield _words(
            case,
            Sentence("in a guest without the switches Fabric Manager runs on the host: its administrator must activate the partition"),
            (),
        )
    elif case.mend.units.get(UNIT) in STOPPED:
        yield Step(
            id="fabric-manager",
            what=Sentence("start Fabric Manager"),
            finding=case.cause.id,
            why=seen(case.cause),
            lasts="until_reboot",
            effect="now",
            undo=Sentence("`linkproof fix rollback` stops the service again"),
            by_hand=("sudo systemctl start nvidia-fabricmanager", Sentence("sudo systemctl enable nvidia-fabricmanager  # at each boot, too"),
                     undo_line("sudo systemctl stop nvidia-fabricmanager")),
            changes=(Command(("systemctl", "start", UNIT), undo=("systemctl", "stop", UNIT)),),
            risk=(Sentence("programs that hold the GPUs already do not see the fabric: start them again"),),
        )  # fmt: skip
    elif UNIT in case.mend.units:
        facts = case.found.diagnosis.facts
        unseen = any(isinstance(f, CudaError) and f.code == 802 for f in facts)
        if unseen or any(isinstance(f, Event) and f.kind == "fabric_not_ready" for f in facts):
            yield from gpu_reset(case)
    else:
        yield _words(
            case,
            Sentence("systemctl knows nothing of Fabric Manager here: install it in the driver's version, and start it"),
            ("cat /proc/driver/nvidia/version", "systemctl list-unit-files 'nvidia-fabricmanager*'"),
        )


def _words(case: Case, what: Sentence, by_hand: tuple[Line, ...]) -> Step:
    undo = Sentence("nothing was changed by linkproof")
    return Step("fabric-manager", what, case.cause.id, seen(case.cause), "", "by_hand", undo, by_hand)


def gpu_reset(case: Case) -> Iterator[Step]:
    yield Step(
        id="gpu-reset",
        what=Sentence("reset all GPUs of the machine together, with everything that uses them stopped"),
        finding=case.cause.id,
        why=seen(case.cause),
        lasts="",
        effect="by_hand",
        undo=Sentence("a reset cannot be taken back; nothing that lasts is changed by it"),
        by_hand=_RESET,
        risk=(Sentence("everything that runs on the GPUs ends, and what is in their memory is lost"),),
        unsafe_when=(Sentence("a job runs, or a guest holds one of the GPUs"),),
    )
