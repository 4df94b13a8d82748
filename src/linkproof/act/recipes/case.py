"""What a recipe is given: the findings, the machine, the pairs that it is for; and the words that all recipes share. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from msgspec import Struct

from linkproof.act.refusals import listed
from linkproof.collect.mend import MendEvidence
from linkproof.mending import Pair, Sentence
from linkproof.model import Diagnosis, Weighed
from linkproof.parse.pci_tree import PciTree
from linkproof.routes import RouteTable

BY_PERSON = Sentence("linkproof changes nothing here: whoever does it notes what was there before")
SIGNS_MAX = 3
PAIRS_MAX = 4
_HOW = {
    "corrupt": "{gpus} ({addresses}): wrong data by {modes}; through host memory they are right",
    "hung": "{gpus} ({addresses}): no end of {modes}; through host memory the data arrive",
    "died": "{gpus} ({addresses}): {modes} ended in an error; through host memory the data arrive",
    "slow": "{gpus} ({addresses}): slow by {modes}",
}


class Findings(Protocol):
    """What `check` found; `checking.Checked` is one."""

    @property
    def diagnosis(self) -> Diagnosis: ...
    @property
    def tree(self) -> PciTree: ...
    @property
    def risks(self) -> tuple[Weighed, ...]: ...
    @property
    def modes(self) -> Mapping[str, str]: ...
    @property
    def cpu_vendor(self) -> str: ...
    @property
    def routes(self) -> RouteTable | None: ...


class Failing(Struct, frozen=True):
    """A pair that the plan is for. modes: `push corrupt`, ... as measured; () if it was only named, or nothing was measured."""

    pair: Pair
    gpus: str  # `GPU0 -> GPU1`, or the addresses
    modes: tuple[str, ...] = ()

    @property
    def measured(self) -> bool:
        return bool(self.modes)


class Case(Struct, frozen=True):
    """cause: the finding that is mended. failing: the pairs that measured bad or slow, or were named. iommu_off: the person asks for it."""

    found: Findings
    mend: MendEvidence
    cause: Weighed
    failing: tuple[Failing, ...] = ()
    iommu_off: bool = False


def seen(cause: Weighed, told_already: str = "") -> tuple[Sentence, ...]:
    """The strongest signs for a cause, each followed by where it was seen; without those from files of this name."""
    out: list[Sentence] = []
    wanted = [s for s in cause.signs if s.speaks_for and not (told_already and s.source.file.endswith(told_already))]
    for sign in wanted[:SIGNS_MAX]:
        out.append(Sentence(sign.text, sign.args))
        where, line = sign.source.file, sign.source.text
        if where and line:
            out.append(
                Sentence("seen in {where}: {line}", {"where": f"{where}:{sign.source.line}" if sign.source.line else where, "line": line})
            )
    return tuple(out)


def measured(failing: tuple[Failing, ...]) -> tuple[Sentence, ...]:
    """Of each pair how it fails, once for both of its directions if they fail alike; the first few pairs."""
    told: list[tuple[Failing, str]] = []
    for f in failing:
        back = next((i for i, (g, _) in enumerate(told) if g.pair == f.pair[::-1] and g.modes == f.modes), None)
        if f.measured and back is not None:
            told[back] = told[back][0], "<->"
        elif f.measured:
            told.append((f, "->"))
    out = [sentence for f, way in told[:PAIRS_MAX] for sentence in _how(f, way)]
    if len(told) > PAIRS_MAX:
        out.append(Sentence("and {n} more pairs", {"n": str(len(told) - PAIRS_MAX)}))
    return tuple(out)


def _how(f: Failing, way: str) -> Iterator[Sentence]:
    where = {"gpus": f.gpus.replace("->", way), "addresses": f"{f.pair[0]} {way} {f.pair[1]}"}
    for state, text in _HOW.items():
        if modes := [name for name, _, found in (mode.partition(" ") for mode in f.modes) if found == state]:
            yield Sentence(text, {**where, "modes": listed(modes)})


def undo_line(command: str) -> Sentence:
    return Sentence("{command}  # undo", {"command": command})


def pairs_of(failing: tuple[Failing, ...]) -> tuple[Pair, ...]:
    return tuple(f.pair for f in failing)
