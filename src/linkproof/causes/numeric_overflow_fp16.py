"""Values overflow in half precision."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import WRONG_DATA, Reading
from linkproof.model import ModelRun, NotChecked, Sign

CLASS = "not_comm"
PRIOR = -4.2


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    dtype = f.input("dtype")
    half = dtype if dtype and dtype.value.lower() in ("fp16", "float16", "half", "16", "torch.float16") else None
    symptom = (
        f.event("prob_tensor", "nan_seen", "garbage_text")
        or f.asserted("multinomial_prob", "multinomial_isnan")
        or next((r for r in f.all(ModelRun) if r.result in ("nan", "garbage")), None)
    )
    prob = f.event("prob_tensor") or f.asserted("multinomial_prob", "multinomial_isnan")
    if half and symptom:
        yield pro(4.5, "half precision (fp16) is in use, and the output is nan or nonsense", half)
    elif half:
        yield pro(1.0, "half precision (fp16) is in use", half)
    if prob:
        yield pro(1.8, "sampling met inf or nan", prob)
    if cured := f.setting("dtype", "cured"):
        yield pro(5.5, "another dtype ended it", cured)
    elif same := f.setting("dtype", "no_effect"):
        yield con(3.5, "another dtype changed nothing", same)
    if f.single_bad and f.single_bad.result in ("nan", "garbage"):
        yield pro(1.8, "it happens on one GPU too", f.single_bad)
    if f.split_bad and f.split_bad.scope == "one_model" and half:
        yield pro(0.7, "one model only", f.split_bad)
    if dtype and not half:
        yield con(3.0, "the dtype is {value}, not half precision", dtype, value=dtype.value)
    if f.single_ok and f.split_bad:
        yield con(2.5, "the same model is right on one GPU", f.single_ok)
    copy = f.peer_copy_bad
    if copy and copy.result in WRONG_DATA:
        yield con(4.0, "plain copies between the GPUs are wrong", copy)
    if off := f.setting("custom_ar_off", "cured") or f.setting("p2p_off", "cured"):
        yield con(3.0, "a change of transport ended it, and the dtype stayed", off)
