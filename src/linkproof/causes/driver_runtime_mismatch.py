"""Driver, its user library, kernel module and CUDA or ROCm runtime do not fit, or one is too old."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading, version
from linkproof.model import Changed, NotChecked, Sign, Stage, Versions

CLASS = "host_config"
PRIOR = -4.2


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    error = f.cuda_error(803, 804, 35, 36)
    if error:
        yield pro(6.5, "CUDA says that driver and runtime do not fit (error {code})", error, decisive=True, code=str(error.code))
    elif stage := f.first(Stage, code=("803", "804", "35", "36")):
        yield pro(6.0, "CUDA says that driver and runtime do not fit (error {code})", stage, decisive=True, code=stage.code)
    if words := f.event("nvrm_mismatch", "driver_mismatch"):
        yield pro(5.5, "driver parts of different versions: {value}", words, value=words.value or "?", stands=True)
    if init := f.event("nvrm_init_failed"):
        yield pro(2.3, "the driver could not start a card", init)
    if none := f.event("no_cuda_device") or f.cuda_error(100):
        yield pro(2.0, "no CUDA device is available", none)
    if image := f.cuda_error(209):
        yield pro(2.3, "the build has no kernel for this GPU", image)
    if (start := f.first(Stage, at="cuda_init", result="error")) and not start.code:
        yield pro(2.0, "CUDA does not start", start)
    rocm = next((v for v in f.all(Versions) if v.rocm), None)
    number = version(rocm.rocm) if rocm else ()
    if rocm and number and number < (5, 7) and (bad := f.collective_bad(engine="rccl")):
        yield pro(3.0, "ROCm {version} is old for what RCCL asks of it", bad, version=rocm.rocm)
    if f.single_bad and f.changed_driver:
        yield pro(1.5, "the driver changed and one GPU fails too", f.changed_driver)
    if (changed := f.first(Changed, what="kernel")) and f.first(Stage, at="cuda_init"):
        yield pro(1.5, "the kernel changed: its driver module must be built again", changed)
    if f.nvswitch and (e802 := f.cuda_error(802)):
        yield con(3.0, "802 is the fabric, not the driver", e802)
    if f.split_ok:
        yield con(1.5, "it runs over several GPUs with another model: the driver works", f.split_ok)
