"""Options of the NVIDIA kernel modules, as a file of our own below /etc/modprobe.d. Pure.

In:      a Case.
Out:     nvidia-static-bar1  registry keys with which a patched driver maps all of BAR1 for its peers
         uvm-hmm             nvidia_uvm without heterogeneous memory management
Unknown: where another file sets the same option, nobody can say which of the two the module takes: then the step is words, not a file.
Raises:  nothing.
Source:  modprobe.d(5): options of one module add up, and of one parameter the last counts; notes of the patched open modules;
         CUDA toolkit release notes on HMM and KASLR.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.act.recipes.case import Case, measured, pairs_of, seen
from linkproof.mending import Sentence, Step, TextFile
from linkproof.model import CudaError, Event, Gpu, Stage

FOLDER = "/etc/modprobe.d"
KEYS = ("RMForceStaticBar1", "PeerMappingOverride")
_INITRAMFS = (
    "sudo update-initramfs -u  # Debian, Ubuntu, openKylin",
    "sudo dracut -f  # Fedora, RHEL, openEuler, Anolis, SUSE",
    "sudo reboot",
)


def _elsewhere(case: Case, module: str, parameter: str, own: str) -> str:
    """Another file of modprobe.d that sets this parameter, "" if there is none."""
    for path, text in sorted(case.mend.modprobe.items()):
        for line in text.splitlines():
            parts = line.split()
            if (
                path != own
                and parts[:1] == ["options"]
                and len(parts) > 2
                and parts[1].replace("-", "_") == module
                and f"{parameter}=" in line
            ):
                return path
    return ""


def _option(case: Case, name: str, path: str, line: str, what: Sentence, elsewhere: str, risk: tuple[Sentence, ...]) -> Step:
    if elsewhere:
        text = "{file} sets the same option: change the line there to hold what is below, one line of two would win"
        what = Sentence(text, {"file": elsewhere})
    by_hand = (f"sudoedit {elsewhere}  # {line}",) if elsewhere else (f"echo '{line}' | sudo tee {path}",)
    note = Sentence("if the initramfs holds the NVIDIA modules it must be made anew, or the option is not seen at boot")
    return Step(
        id=name,
        what=what,
        finding=case.cause.id,
        why=(*measured(case.failing), *seen(case.cause)),
        lasts="" if elsewhere else "for_good",
        effect="by_hand" if elsewhere else "reboot",
        undo=Sentence("`linkproof fix rollback` removes the file; the former options are back after a reboot"),
        by_hand=(*by_hand, *_INITRAMFS),
        changes=() if elsewhere else (TextFile(path, "whole", content=f"{line}\n"),),
        risk=(*risk, note),
        pairs=() if elsewhere else pairs_of(case.failing),
    )


def static_bar1(case: Case) -> Iterator[Step]:
    """Of a patched driver whose BAR1 covers the memory; with a small BAR1 these keys map what is not there."""
    facts = case.found.diagnosis.facts
    patched = any(
        (isinstance(f, Gpu) and f.fact == "patched_driver") or (isinstance(f, Event) and f.kind == "patched_driver") for f in facts
    )
    small = any(isinstance(f, Gpu) and f.fact == "bar1_smaller_than_vram" for f in facts)
    loaded = {f.value.partition("=")[0].lower() for f in facts if isinstance(f, Event) and f.kind == "registry_key"}
    if not patched or small or all(key.lower() in loaded for key in KEYS):
        return
    kept = [f.value for f in facts if isinstance(f, Event) and f.kind == "registry_key" and f.value.partition("=")[0] not in KEYS]
    dwords = [value for value in kept if not value.startswith(("EnableGpuFirmware", "EnableResizableBar", "GrdmaPciTopoCheckOverride"))]
    path = f"{FOLDER}/linkproof-nvidia.conf"
    line = f'options nvidia NVreg_RegistryDwords="{";".join((*dwords, *(f"{key}=1" for key in KEYS)))}"'
    what = Sentence("let the patched driver map the whole of BAR1 for its peers ({keys})", {"keys": " ".join(f"{key}=1" for key in KEYS)})
    risk = (Sentence("the keys are the patched driver's own: the driver as its maker ships it ignores or refuses them"),)
    yield _option(case, "nvidia-static-bar1", path, line, what, _elsewhere(case, "nvidia", "NVreg_RegistryDwords", path), risk)


def hmm(case: Case) -> Iterator[Step]:
    """Only where it is known to be on, and something that it is known to break does not work."""
    facts = case.found.diagnosis.facts
    on = any(isinstance(f, Event) and f.kind == "uvm_hmm" and f.value == "on" for f in facts)
    start = any(isinstance(f, CudaError) and f.code == 999 for f in facts) or any(
        isinstance(f, Stage) and f.at == "cuda_init" and f.code == "999" for f in facts
    )
    patched = case.cause.id == "p2p_patched_driver_config" and any(f.measured for f in case.failing)
    if not on or not (start or patched):
        return
    path = f"{FOLDER}/linkproof-uvm.conf"
    line = "options nvidia_uvm uvm_disable_hmm=1"
    what = Sentence("load nvidia_uvm without heterogeneous memory management")
    risk = (
        Sentence("programs that hand ordinary host memory to kernels (system allocators, unified memory without cudaMalloc) stop working"),
    )
    yield _option(case, "uvm-hmm", path, line, what, _elsewhere(case, "nvidia_uvm", "uvm_disable_hmm", path), risk)
