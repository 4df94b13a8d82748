"""A kernel is launched for the wrong current device."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import BAD_MODEL, WRONG_DATA, Reading
from linkproof.model import ModelRun, NotChecked, Sign

CLASS = "not_comm"
PRIOR = -4.8


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if triton := f.event("triton_wrong_device"):
        yield pro(7.0, "Triton met a tensor of another device than the current one", triton, decisive=True)
    if other := f.event("wrong_current_device"):
        yield pro(5.5, "pointer or stream belong to another device than the current one", other)
    elsewhere = next((r for r in f.all(ModelRun, split="none", result=BAD_MODEL) if r.gpus and r.gpus.strip() not in ("0", "")), None)
    first_ok = next((r for r in f.all(ModelRun, split="none", result="ok") if r.gpus.strip() in ("0", "")), None)
    if elsewhere:
        yield pro(4.0 if first_ok else 2.5, "on one GPU that is not the first it fails ({gpus})", elsewhere, gpus=elsewhere.gpus)
    if (chosen := f.setting("device_select", "cured")) and (elsewhere or triton or other):
        yield pro(3.0, "making that card the first ended it", chosen)
    run = f.split_bad
    kernel = f.event("quant_kernel")
    illegal = f.cuda_error(700)
    if run and run.split == "pipeline" and illegal and f.single_ok:
        yield pro(2.0, "an invalid address when layers lie on several GPUs, none on one", illegal)
        if kernel:
            yield pro(1.0, "a custom kernel is in use: {value}", kernel, value=kernel.value)
    if run and run.split == "pipeline" and f.peer_copy_ok:
        yield pro(1.5, "copies between the GPUs are right and layers over several GPUs are not", run)
    copy = f.peer_copy_bad
    if copy and copy.result in WRONG_DATA:
        yield con(3.5, "plain copies between the GPUs are wrong", copy)
    if f.one_model_only and run and run.split == "tensor":
        yield con(1.0, "with tensor parallelism each process has one device", run)
