"""Training label outside the classes."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import pro
from linkproof.causes.reading import Reading
from linkproof.model import NotChecked, Sign, Stage

CLASS = "not_comm"
PRIOR = -4.6


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if loss := f.asserted("nll_loss"):
        yield pro(7.0, "the assertion is that of a classification loss: a target outside its classes", loss, decisive=True)
    if bce := f.asserted("bce_loss"):
        yield pro(4.0, "the assertion is that of a binary loss: a target outside 0..1", bce)
    if cpu := f.event("label_error"):
        yield pro(7.0, "the loss says that a target is out of bounds", cpu, decisive=True)
    if told := f.input("label_out_of_range"):
        yield pro(6.5, "a label lies outside the classes ({value})", told, value=told.value or "?")
    if f.single_bad and f.first(Stage, at="training"):
        yield pro(1.0, "it fails in training on one GPU too", f.single_bad)
