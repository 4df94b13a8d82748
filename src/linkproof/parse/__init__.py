"""FACTS. One file per text, named as one types it; str in, facts out. No files, no commands.

A parser is a module of this folder with

    ANCHORS: tuple[str, ...]   literal strings, case as printed; a line that holds one is this parser's business
    KEEP:    tuple[int, int]   lines before and after an anchor that matter to it (used when a long log is reduced); default (0, 2)
    parse(text: Text, hits: list[int]) -> Iterator[Fact]     hits: indexes into text.lines, ascending, never empty

`read` finds all anchors of all parsers in one pass over the text and calls only the parsers that have a hit, so a text of any
kind, or many kinds mixed in one paste, needs no declaration. Nothing is listed by hand: a new parser is a new file.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import NamedTuple

from ahocorasick_rs import AhoCorasick, Implementation, MatchKind

from linkproof.errors import ParseError
from linkproof.model import Fact, Source, Text, Unknown


class Parser(NamedTuple):
    name: str
    anchors: tuple[str, ...]
    keep: tuple[int, int]
    parse: Callable[[Text, list[int]], Iterator[Fact]]


@cache
def parsers() -> tuple[Parser, ...]:
    """All parsers of this folder, by name."""
    found = []
    for module_info in iter_modules(__path__):
        module = import_module(f"{__name__}.{module_info.name}")
        anchors = getattr(module, "ANCHORS", None)
        if anchors is not None:
            found.append(Parser(module_info.name, tuple(anchors), getattr(module, "KEEP", (0, 2)), module.parse))
    return tuple(found)


@cache
def anchors() -> dict[str, tuple[int, int]]:
    """Every anchor of every parser with the widest context that any of them wants: for reducing a long log."""
    out: dict[str, tuple[int, int]] = {}
    for p in parsers():
        for a in p.anchors:
            before, after = out.get(a, (0, 0))
            out[a] = (max(before, p.keep[0]), max(after, p.keep[1]))
    return out


@cache
def _automaton() -> tuple[AhoCorasick, list[tuple[int, ...]]]:
    owners: dict[str, list[int]] = {}
    for i, p in enumerate(parsers()):
        for a in p.anchors:
            owners.setdefault(a, []).append(i)
    kind, matchkind = Implementation.NoncontiguousNFA, MatchKind.Standard
    return AhoCorasick(list(owners), matchkind=matchkind, implementation=kind), [tuple(v) for v in owners.values()]


def _hits(text: Text) -> dict[int, list[int]]:
    """Parser number -> indexes of the lines that hold one of its anchors, ascending, each once."""
    automaton, owners = _automaton()
    starts, at = [], 0
    for line in text.lines:
        starts.append(at)
        at += len(line.text) + 1
    out: dict[int, list[int]] = {}
    whole = "\n".join(line.text for line in text.lines)
    for anchor, start, _end in automaton.find_matches_as_indexes(whole, overlapping=True):
        index = bisect_right(starts, start) - 1
        for owner in owners[anchor]:
            mine = out.setdefault(owner, [])
            if not mine or mine[-1] != index:
                mine.append(index)
    for mine in out.values():
        mine[:] = sorted(set(mine))
    return out


def read(text: Text) -> list[Fact]:
    """All facts of one text, in the order of its lines; one `Unknown` if no parser found anything in it."""
    facts: list[Fact] = []
    everyone = parsers()
    for number, mine in sorted(_hits(text).items()):
        try:
            facts.extend(everyone[number].parse(text, mine))
        except ParseError:
            continue
    facts.sort(key=lambda fact: fact.source.line)
    if not facts and text.lines:
        first = text.lines[0]
        facts.append(Unknown(source=Source(text.name, first.no, first.text[:300])))
    return facts
