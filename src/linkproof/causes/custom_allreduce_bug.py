"""An engine's own all-reduce is wrong or hangs while NCCL on the same link is right."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import Collective, ModelRun, NotChecked, Sign, Versions

CLASS = "comm_software"
PRIOR = -4.3


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    off = f.setting("custom_ar_off", "cured", "changed")
    if off and off.effect == "cured":
        alone = f.setting_only("custom_ar_off", "cured")
        yield pro(4.5 if alone else 1.5, "switching the engine's own all-reduce off ended it", off)
    elif off:
        yield pro(1.0, "switching the engine's own all-reduce off changed it", off)
    if same := f.setting("custom_ar_off", "no_effect"):
        yield con(4.5, "it fails with the engine's own all-reduce switched off as well", same)
    own = f.collective_bad(engine="custom_allreduce")
    if own and own.result == "error":
        yield pro(1.5, "the engine's own all-reduce fails ({result})", own, result=own.result)
    elif own:
        yield pro(3.5, "the engine's own all-reduce fails ({result})", own, result=own.result)
        if right := f.first(Collective, engine="nccl", result="ok"):
            yield pro(1.5, "NCCL over the same GPUs is right", right)
    engine = next((v for v in f.all(Versions) if any(w in v.engine.lower() for w in ("vllm", "sglang", "trt", "tensorrt"))), None)
    run = f.first(ModelRun, split="tensor", result=("garbage", "wrong", "hang", "nan"))
    if run and f.single_ok and not f.one_model_only:
        yield pro(1.2, "right on one GPU, wrong or stuck with tensor parallelism", run)
        if f.pattern("under_load"):
            yield pro(0.8, "it comes under load", run)
    if run and engine and not run.scope:
        yield pro(0.7, "the engine has an all-reduce of its own", engine)
    if used := f.event("custom_ar_used"):
        yield pro(1.0, "the engine's own all-reduce is in use", used)
    if (changed := f.first_changed_library) and off:
        yield pro(1.5, "it began with another version of the engine", changed)
    if f.event("custom_ar_disabled") or f.setting("custom_ar_off", "present"):
        gone = f.event("custom_ar_disabled") or f.setting("custom_ar_off", "present")
        if gone:
            yield con(5.0, "the engine's own all-reduce is off in this run", gone)
    if f.changed_driver:
        yield con(1.5, "the driver changed, not the engine", f.changed_driver)
    if (e := f.event("custom_ar_cuda_error")) is not None:
        yield con(1.5, "it stops with an error instead of wrong data: its needs are not met", e)
    copy = f.peer_copy_bad
    if copy and copy.result in ("zeros", "wrong", "stale"):
        yield con(3.0, "plain copies between the GPUs are wrong too", copy)
    if not off and (p2p := f.setting("p2p_off", "cured")):
        yield con(1.5, "switching NCCL's peer traffic off ended it, which never reaches the engine's own all-reduce", p2p)
    if own and f.first_patched:
        yield con(2.0, "the patched driver explains it", f.first_patched)
    if f.single_bad:
        yield con(4.0, "it fails on one GPU too: no link is in use there", f.single_bad)
    if f.one_model_only:
        yield con(2.0, "one model fails, others are right over the same links", f.one_model_only)
