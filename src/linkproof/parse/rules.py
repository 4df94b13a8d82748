"""The small engine under most parsers: a table of (anchor, pattern, what it makes). Not a parser itself.

Linear in the input whatever the input: an anchor is found before a pattern is tried, patterns are RE2 (no backtracking),
and of one line no more than `LINE_MAX` characters are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple, Protocol

import re2

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


def source(text: Text, line: Line) -> Source:
    return Source(text.name, line.no, line.text[:300])


class Rule(NamedTuple):
    """anchor: literal that must be in the line. pattern: RE2 searched in it, or "" for none.

    make: an EVENT_KINDS key (value = group 1 if the pattern has one), or a function (match or None, source, rank) -> Fact | None.
    """

    anchor: str
    pattern: str
    make: str | Callable[[Match | None, Source, int | None], Fact | None]


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
