"""Padded rows of a batch are wrong."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import ModelRun, NotChecked, Sign

CLASS = "not_comm"
PRIOR = -4.8


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    batched = f.pattern("only_batched")
    wrong = next((r for r in f.all(ModelRun) if r.result in ("garbage", "wrong", "nan")), None) or f.event(
        "garbage_text", "nan_seen", "prob_tensor"
    )
    crash = f.first(ModelRun, result=("crash", "assert"))
    if batched and wrong:
        yield pro(6.0, "batches are wrong and each prompt alone is right", batched)
    elif batched and crash:
        yield pro(2.3, "batches fail and each prompt alone is right", batched)
    elif batched:
        yield pro(3.0, "batches fail and each prompt alone is right", batched)
    if pad := f.setting("pad", "cured"):
        yield pro(4.0 if wrong else 2.0, "another padding ended it", pad)
    if one := f.setting("batch", "cured"):
        yield pro(3.5, "one prompt at a time is right", one)
    if f.asserted("embedding") and not wrong:
        embed = f.asserted("embedding")
        if embed:
            yield con(2.0, "an embedding lookup asserts: a token id rather than the mask", embed)
