"""Tensors of one operation on two devices."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import WRONG_DATA, Reading
from linkproof.model import ModelRun, NotChecked, Sign

CLASS = "not_comm"
PRIOR = -4.2


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if two := f.event("two_devices"):
        yield pro(7.5, "torch says that tensors of one operation lie on {devices}", two, decisive=True, devices=two.value or "?")
    run = f.first(ModelRun, split="pipeline", result="crash")
    if run and f.one_model_only and not two:
        yield pro(2.3, "one model crashes when its layers lie on several GPUs", run)
        if f.pattern("only_batched"):
            yield pro(1.5, "and only in batches: something is left on the first device", run)
    if back := f.setting("library", "cured"):
        yield pro(1.0, "another version of the program ended it", back)
    copy = f.peer_copy_bad
    if copy and copy.result in WRONG_DATA:
        yield con(4.0, "plain copies between the GPUs are wrong", copy)
