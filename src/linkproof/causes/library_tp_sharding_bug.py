"""One model is split wrongly."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import BAD_MODEL, Reading
from linkproof.model import Collective, ModelRun, NotChecked, Sign

CLASS = "not_comm"
PRIOR = -4.6


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    run = f.first(ModelRun, split="tensor", result=BAD_MODEL)
    one = run if run and (run.scope == "one_model") else None
    if one and one.result in ("garbage", "wrong", "nan", "assert", "crash"):
        weight = 4.5 if f.single_ok else 2.2
        yield pro(weight, "one model is wrong when it is split by tensors", one)
    elif run and f.setting("other_model", "cured"):
        yield pro(3.5, "another model is right with the same split", run)
    if one and (f.split_ok or f.first(Collective, result="ok")):
        yield pro(1.0, "others are right with the same split", one)
    if shape := f.event("shape_not_divisible"):
        yield pro(4.0, "a dimension cannot be divided by the number of ranks", shape)
    if (dtype := f.input("dtype")) and "16" in dtype.value and "b" not in dtype.value.lower():
        yield con(1.5, "half precision explains it as well", dtype)
    if back := f.setting("library", "cured"):
        yield pro(1.0, "another version of the program ended it", back)
    if f.single_bad:
        yield con(4.0, "it fails on one GPU too", f.single_bad)
    if f.every_model:
        yield con(3.0, "every model fails, not one", f.every_model)
    if off := f.setting("custom_ar_off", "cured") or f.setting("p2p_off", "cured"):
        yield con(3.0, "a change of transport ended it, and the split stayed", off)
