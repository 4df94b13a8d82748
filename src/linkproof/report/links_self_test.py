"""What the self-test put in and what the probe said of it, as a table with one sentence at its end.

In:      results as `linkproof.self_test` gives them, a Teller, a width.
Out:     Rows.
Unknown: nothing put in is nothing proven.
Raises:  nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from linkproof.report.layout import Piece, Row, width_of, wrapped
from linkproof.report.links_grid import pad
from linkproof.report.say import Teller, say


class Proven(Protocol):
    """fault: what was put in. caught: something was seen. named: called what it is, and nothing seen elsewhere. why: what was expected.

    Not caught and yet named: nothing was put in, and nothing was seen. possible: the machine offers the way that was to be spoilt.
    """

    @property
    def fault(self) -> str: ...
    @property
    def caught(self) -> bool: ...
    @property
    def named(self) -> bool: ...
    @property
    def said(self) -> str: ...
    @property
    def took_s(self) -> float: ...
    @property
    def why(self) -> str: ...
    @property
    def possible(self) -> bool: ...


def self_test_rows(results: Sequence[Proven], t: Teller, width: int) -> list[Row]:
    rows: list[Row] = wrapped([Piece(t("Put in on purpose, and what the probe said of it"), "head")], width)
    faults = []
    for r in results:
        template = r.fault
        faults.append(say(template, {}, t.lang))
    first = max((width_of(f) for f in faults), default=0) + 2
    marks = [_mark(r, t) for r in results]
    second = max((width_of(m.text) for m in marks), default=0) + 2
    hang = min(2 + first + second, width // 2)
    for r, fault, mark in zip(results, faults, marks, strict=True):
        words = r.said if r.named or not r.why else t("{said}; expected: {wanted}", said=r.said, wanted=r.why)
        took = t("{n} s", n=f"{r.took_s:,.1f}")
        pieces = [Piece(pad(fault, first)), mark, Piece(" " * (second - width_of(mark.text))), Piece(words), Piece(f"  {took}", "quiet")]
        rows += wrapped(pieces, width, 2, hang)
    rows += [[], *wrapped([_sentence(results, t)], width)]
    return rows


def _mark(r: Proven, t: Teller) -> Piece:
    if not r.possible:
        return Piece(t("could not be put in"), "open")
    if r.named:
        return Piece(t("named") if r.caught else t("clean"), "good")
    return Piece(t("caught, misnamed"), "open") if r.caught else Piece(t("MISSED"), "bad")


def _sentence(results: Sequence[Proven], t: Teller) -> Piece:
    tried = [r for r in results if r.possible]
    total, named = len(tried), sum(r.named for r in tried)
    missed = sum(not r.caught and not r.named for r in tried)
    if not any(r.caught for r in tried):
        return Piece(t("Nothing was put in, so nothing is proven"), "bad")
    if missed:
        return Piece(t("{n} of {total} were missed: do not trust a clean result of this probe here", n=missed, total=total), "bad")
    if named < total:
        return Piece(t("All {total} were seen, {n} of them were called something else", n=total - named, total=total), "open")
    if total < len(results):
        words = t("{n} were seen and named; {k} could not be put in: this machine does not offer the way", n=total, k=len(results) - total)
        return Piece(words, "open")
    return Piece(t("All {n} were seen and named: this probe would have caught such faults here", n=total), "good")
