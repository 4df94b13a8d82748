"""One compute kernel is wrong for some shape or split."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import WRONG_DATA, Reading
from linkproof.model import ModelRun, NotChecked, Sign

CLASS = "not_comm"
PRIOR = -4.8


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if other := f.setting("attention_backend", "cured"):
        yield pro(5.5, "another kernel for the same work is right ({name})", other, name=other.name)
    wrong = next((r for r in f.all(ModelRun) if r.result in ("garbage", "wrong", "nan")), None)
    if wrong and f.split_ok and f.first_changed_library:
        yield pro(1.8, "it began with another version of the program, and split in another way it is right", f.first_changed_library)
    if eager := f.setting("eager", "cured"):
        yield pro(2.5, "without graphs or compilation it is right", eager)
    if wrong and wrong.scope == "one_model":
        yield pro(2.0, "one model is wrong", wrong)
    if wrong and (sizes := f.pattern("some_sizes", "only_long_inputs", "from_bytes")):
        yield pro(1.8, "only some shapes are wrong", sizes)
    if wrong and (kernel := f.event("quant_kernel")):
        yield pro(1.2, "a custom kernel is in use: {value}", kernel, value=kernel.value)
    if f.single_bad and f.single_bad.result in ("garbage", "wrong", "nan"):
        yield pro(1.5, "it is wrong on one GPU too", f.single_bad)
    if back := f.setting("library", "cured"):
        yield pro(1.0, "another version of the program ended it", back)
    if (dtype := f.input("dtype")) and "fp16" in dtype.value.lower():
        yield con(1.0, "half precision explains it as well", dtype)
    if f.every_model:
        yield con(1.5, "every model fails, not one", f.every_model)
    copy = f.peer_copy_bad
    if copy and copy.result in WRONG_DATA:
        yield con(4.0, "plain copies between the GPUs are wrong", copy)
    if off := f.setting("custom_ar_off", "cured") or f.setting("p2p_off", "cured"):
        yield con(3.0, "a change of transport ended it, and the kernels stayed", off)
