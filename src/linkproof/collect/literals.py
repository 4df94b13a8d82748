"""Where in a block of text does any of many literals end? The engine under the long-log scan.

In:      a block of whole lines, as bytes.
Out:     one int for each place, `end << 16 | number of the literal`, ascending; `split` takes it apart.
Unknown: nothing; both engines find the same places.
Raises:  ValueError for a literal that is empty or holds a line end or NUL (the C interface ends at NUL).
Source:  Hyperscan (Vectorscan on ARM): promises every end offset, in no order; a literal flagged SINGLEMATCH is told once per block.
         `ahocorasick_rs` stands in where there is no build of it or the processor lacks what it needs: same answers, slower.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

MOST_LITERALS = 1 << 16


class Literals(Protocol):
    def ends(self, block: memoryview) -> list[int]:
        """All places, ascending."""

    def tell_once(self, numbers: Collection[int]) -> None:
        """From now on only the first place in each block is told of these: a flood costs nothing then."""


def split(place: int) -> tuple[int, int]:
    """(end offset, number of the literal)"""
    return place >> 16, place & 0xFFFF


class _Hyperscan:
    def __init__(self, literals: Sequence[bytes]) -> None:
        self._literals = list(literals)
        self.tell_once(())

    def tell_once(self, numbers: Collection[int]) -> None:
        import hyperscan

        flags = [hyperscan.HS_FLAG_SINGLEMATCH if i in numbers else 0 for i in range(len(self._literals))]
        self._db = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
        self._db.compile(expressions=self._literals, ids=list(range(len(flags))), flags=flags, literal=True)

    def ends(self, block: memoryview) -> list[int]:
        found: list[int] = []
        add = found.append

        def on_match(number: int, _start: int, end: int, _flags: int, _context: object) -> None:
            add(end << 16 | number)

        self._db.scan(block, on_match)  # type: ignore[type-var]  # any buffer will do
        found.sort()
        return found


class _AhoCorasick:
    def __init__(self, literals: Sequence[bytes]) -> None:
        from ahocorasick_rs import BytesAhoCorasick, MatchKind

        self._automaton = BytesAhoCorasick(literals, matchkind=MatchKind.Standard)
        self._once: frozenset[int] = frozenset()

    def tell_once(self, numbers: Collection[int]) -> None:
        self._once = frozenset(numbers)

    def ends(self, block: memoryview) -> list[int]:
        matches = self._automaton.find_matches_as_indexes(block, overlapping=True)
        if not self._once:
            return sorted(end << 16 | number for number, _start, end in matches)
        told: set[int] = set()
        found = []
        for number, _start, end in matches:  # by end offset
            if number in self._once:
                if number in told:
                    continue
                told.add(number)
            found.append(end << 16 | number)
        found.sort()
        return found


class _None:
    def ends(self, block: memoryview) -> list[int]:
        return []

    def tell_once(self, numbers: Collection[int]) -> None:
        pass


def literals(words: Sequence[bytes], engine: str = "") -> Literals:
    """engine: hyperscan, ahocorasick, or "" for the best that this machine has."""
    if len(words) > MOST_LITERALS:
        raise ValueError(f"{len(words)} literals, {MOST_LITERALS} at most")
    for word in words:
        if not word or b"\n" in word or b"\0" in word:
            raise ValueError(f"not a literal of one line: {word!r}")
    if not words:
        return _None()
    if engine != "ahocorasick":
        try:
            from hyperscan import HyperscanError
        except ImportError:
            if engine:
                raise
        else:
            try:
                return _Hyperscan(words)
            except HyperscanError:  # e.g. ArchitectureError: a processor without SSE4.2
                if engine:
                    raise
    return _AhoCorasick(words)
