"""The small engine under most parsers: a table of (anchor, pattern, what it makes). Not a parser itself.

Linear in the input whatever the input: an anchor is found before a pattern is tried, patterns are RE2 (no backtracking),
and of one line no more than `LINE_MAX` characters are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple, Protocol

import re2
from msgspec.structs import astuple

from linkproof.model import Event, Fact, Line, Source, Text

LINE_MAX = 4096


class Match(Protocol):
    """What re2 gives back; the subset that parsers use."""

    def group(self, *which: int | str) -> Any: ...
    def groups(self) -> tuple[Any, ...]: ...
    def start(self, group: int | str = 0) -> int: ...
    def end(self, group: int | str = 0) -> int: ...
    def __getitem__(self, which: int | str) -> Any: ...


class Pattern(Protocol):
    def search(self, text: str) -> Match | None: ...
    def match(self, text: str) -> Match | None: ...
    def finditer(self, text: str) -> Iterator[Match]: ...
    def findall(self, text: str) -> list[Any]: ...


@cache
def rx(pattern: str) -> Pattern:
    """Compile when first needed (start-up stays short). RE2 syntax: no look-around, no back references."""
    compiled: Pattern = re2.compile(pattern)
    return compiled


Make = Callable[[Match | None, Source, int | None], Fact | None]


def source(text: Text, line: Line) -> Source:
    return Source(text.name, line.no, line.text[:300])


class Rule(NamedTuple):
    """anchor: literal that must be in the line. pattern: RE2 searched in it, or "" for none.

    make: an EVENT_KINDS key (value = group 1 if the pattern has one), or a function (match or None, source, rank) -> Fact | None.
    """

    anchor: str
    pattern: str
    make: str | Make


class _Entry:
    __slots__ = ("made", "rule")

    def __init__(self, rule: Rule) -> None:
        self.rule, self.made = rule, 0


def run(rules: Iterable[Rule], text: Text, hits: list[int], *, most: int = 200) -> Iterator[Fact]:
    """Every fact that the rules make of the lines at `hits`; of one rule the first `most` only."""
    table = [_Entry(rule) for rule in rules]
    for index in hits:
        line = text.lines[index]
        words = line.text[:LINE_MAX]
        for entry in table:
            rule = entry.rule
            if entry.made >= most or rule.anchor not in words:
                continue
            found = rx(rule.pattern).search(words) if rule.pattern else None
            if rule.pattern and found is None:
                continue
            where = source(text, line)
            fact: Fact | None
            if isinstance(rule.make, str):
                value = (found.group(1) or "") if found is not None and found.groups() else ""
                fact = Event(source=where, rank=line.rank, kind=rule.make, value=value)
            else:
                fact = rule.make(found, where, line.rank)
            if fact is not None:
                entry.made += 1
                yield fact


def anchors_of(rules: Iterable[Rule]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(rule.anchor for rule in rules))


def event(kind: str, value: str) -> Make:
    """An Event whose value is known beforehand."""
    return lambda _found, where, rank: Event(source=where, rank=rank, kind=kind, value=value)


def joined(kind: str, *groups: int, join: str = "-") -> Make:
    """An Event whose value are these groups; "" if one of them is missing."""

    def make(found: Match | None, where: Source, rank: int | None) -> Fact | None:
        parts = [found.group(g) or "" for g in groups] if found is not None else []
        return Event(source=where, rank=rank, kind=kind, value=join.join(parts) if all(parts) else "")

    return make


def distinct(facts: Iterable[Fact], *, most: int | None = 500) -> Iterator[Fact]:
    """Each fact once, whatever the line that says it: 8 ranks x 24 channels print the same thing. Of one kind at most so many (None: all)."""
    seen: set[object] = set()
    made: dict[tuple[type[Fact], str], int] = {}
    for fact in facts:
        key = (type(fact), *astuple(fact)[1:])
        kind = (type(fact), fact.kind if isinstance(fact, Event) else "")
        if key not in seen and (most is None or made.get(kind, 0) < most):
            seen.add(key)
            made[kind] = made.get(kind, 0) + 1
            yield fact
