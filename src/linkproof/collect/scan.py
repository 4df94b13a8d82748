"""A log of any size -> the lines that matter to the parsers, in one pass and in bounded memory.

In:      the log as chunks of bytes of any size (file or pipe), and the parsers' anchors: literal -> (lines before, lines after).
Out:     Scanned. Kept are: of each anchor the first and the last lines that hold it, each with its context; the first and the
         last lines of the log. Lines ascend, each once, numbered from 1 as in the log, without their line end (LF or CRLF).
Bounds:  of one line the first `block_B` are searched and `line_B` are kept (the part around its first anchor if that lies further
         on). Above `max_lines` or `max_B` fewer lines of each anchor are kept.
Unknown: `hits` and `dropped` are exact for an anchor that is rare, and "at least" for one that floods the log.
Raises:  ValueError for an anchor that is no literal of one line; whatever reading a chunk raises.
Source:  measured, `bench/log_scan.py`.

How an anchor in every second line stays cheap: once it has its first lines, only its last ones matter, and those can be looked for
backwards. Such an anchor is told once per block (`Literals.tell_once`), the blocks it was seen in are noted, and a block is searched
for it from its end only if it leaves the window of recent blocks, or the log ends, while it is still among the last ones noted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from linkproof.collect.blocks import Block, Blocks, Span
from linkproof.collect.literals import literals, split

CHUNK_B = 1 << 20
WINDOW = 64  # recent blocks held; more than Limits.last, so that a flood is searched at the end only
RETUNE_HITS = 20_000  # cost about what it costs to compile the literals anew
RETUNE_BLOCKS = 256
SHARE = 0.2  # of all lines, that one anchor (with a wide context) may fill


class RawLine(NamedTuple):
    no: int
    data: bytes


class Limits(NamedTuple):
    first: int = 200  # lines of each anchor
    last: int = 50
    head: int = 50  # lines of the log
    tail: int = 200
    line_B: int = 4096
    max_lines: int = 200_000  # half for the first lines of the anchors, half for the last
    max_B: int = 64 << 20
    block_B: int = 256 << 10


DEFAULT = Limits()


class Scanned(NamedTuple):
    lines: list[RawLine]
    total_lines: int
    total_B: int
    hits: dict[str, int]  # lines that hold this anchor
    dropped: dict[str, int]  # of these, those beyond its first and last; only anchors that have such


def scan(
    chunks: Iterable[bytes],
    anchors: Mapping[str, tuple[int, int]],
    *,
    limits: Limits = DEFAULT,
    progress: Callable[[int], None] | None = None,
    engine: str = "",
) -> Scanned:
    """progress: called after each MiB or so with the bytes read. engine: as in `literals`."""
    log, told_B = _Log(anchors, limits, engine), 0
    for chunk in chunks:
        for at in range(0, len(chunk), CHUNK_B):  # a slice of a huge chunk must not keep all of it
            log.take(log.blocks.feed(chunk if len(chunk) <= CHUNK_B else chunk[at : at + CHUNK_B]))
            if progress is not None and log.blocks.total_B - told_B >= CHUNK_B:
                told_B = log.blocks.total_B
                progress(told_B)
    return log.finish()


class _Region:
    """Neighbouring lines, held while any of the anchors that want some of them still counts them among its last."""

    __slots__ = ("lines", "no", "size_B", "users")

    def __init__(self, no: int, lines: list[bytes], users: int) -> None:
        self.no, self.lines, self.users = no, lines, users
        self.size_B = sum(map(len, lines))


class _Last(NamedTuple):
    region: _Region
    no: int  # the first and the last line wanted of it
    to: int


class _Want(NamedTuple):
    """A hit with its context: lines `no` to `to` around line `line_no`, which starts at `start` in its block."""

    no: int
    to: int
    line_no: int
    start: int
    number: int


class _Anchor:
    """What is known of one anchor. Its first `early` hits are kept for good; of all others `old` and `late` hold the last."""

    __slots__ = ("after", "before", "early", "eol", "kept", "kept_lines", "late", "old", "once", "places", "seen", "total", "word")

    def __init__(self, name: str, before: int, after: int) -> None:
        self.word, self.before, self.after = name.encode(), max(0, before), max(0, after)
        self.total = self.early = self.kept = self.kept_lines = 0
        self.eol = -1  # end of the line of the latest hit: a second hit in one line does not count
        self.late: deque[tuple[Block, int]] = deque()  # in the window: (block, end of the hit; -1: somewhere in it)
        self.old: deque[_Last] = deque()  # before the window
        self.once = False
        self.places = self.seen = 0  # since the latest retune: hits, blocks with a hit


class _Log:
    def __init__(self, anchors: Mapping[str, tuple[int, int]], limits: Limits, engine: str) -> None:
        self.limits = limits
        self.names = list(anchors)
        self.anchors = [_Anchor(name, *anchors[name]) for name in anchors]
        self.literals = literals([anchor.word for anchor in self.anchors], engine)
        self.blocks = Blocks(limits.block_B)
        self.window: deque[Block] = deque()
        self.settled = 0  # blocks at the left of the window that are only there as context
        self.most_before = max((anchor.before for anchor in self.anchors), default=0)
        self.margin = max([limits.tail, *(anchor.after for anchor in self.anchors)])  # lines that must follow a settled block
        self.first_now = limits.first
        self.kept: dict[int, bytes] = {}
        self.kept_B = self.old_B = self.old_lines = 0
        self.long: dict[tuple[int, int], bytes] = {}  # over-long lines as cut, while one block is settled
        self.work = self.since = 0  # since the latest retune: hits, blocks

    def take(self, blocks: Iterable[Block]) -> None:
        window = self.window
        for block in blocks:
            window.append(block)
            self._search(block)
            while len(window) - self.settled > WINDOW and self.blocks.lines - window[self.settled + 1].no >= self.margin:
                self._settle(window[self.settled])
                self.settled += 1
            while self.settled and window[self.settled].no - window[1].no >= self.most_before:
                window.popleft()
                window[0].previous = None
                self.settled -= 1

    def finish(self) -> Scanned:
        self.take(self.blocks.finish())
        for anchor in self.anchors:
            self._resolve(anchor)
        while self.settled < len(self.window):
            self._settle(self.window[self.settled])
            self.settled += 1
        if self.window:
            latest = self.window[-1]
            lines = self._lines(latest.back(latest.b, self.limits.tail))[::-1]
            self._keep(self.blocks.lines + 1 - len(lines), lines)
        for anchor in self.anchors:
            for old in anchor.old:
                self._keep(old.no, old.region.lines[old.no - old.region.no : old.to + 1 - old.region.no])
        named = list(zip(self.names, self.anchors, strict=True))
        return Scanned(
            lines=[RawLine(no, self.kept[no]) for no in sorted(self.kept)],
            total_lines=self.blocks.lines,
            total_B=self.blocks.total_B,
            hits={name: anchor.total for name, anchor in named if anchor.total},
            dropped={name: lost for name, anchor in named if (lost := anchor.total - anchor.kept - len(anchor.old)) > 0},
        )

    # ------------------------------------------------------------ hits

    def _search(self, block: Block) -> None:
        buf, a, b, anchors = block.buf, block.a, block.b, self.anchors
        shift = block.at - a
        found = self.literals.ends(memoryview(buf)[a:b])
        for place in found:
            end, number = split(place)
            end += a
            anchor = anchors[number]
            anchor.places += 1
            if shift + end <= anchor.eol:
                continue
            eol = buf.find(b"\n", end, b)
            anchor.eol = shift + (eol if eol >= 0 else b)
            anchor.total += 1
            if anchor.early < self.first_now:
                anchor.early += 1
                block.first.append((end, number))
                continue
            block.late.add(number)
            anchor.late.append((block, -1 if anchor.once else end))
            self._trim(anchor)
        for number in block.late:
            anchors[number].seen += 1
        self.work += len(found)
        self.since += 1
        if self.work >= RETUNE_HITS or self.since >= RETUNE_BLOCKS:
            self._retune()

    def _trim(self, anchor: _Anchor) -> None:
        while len(anchor.old) + len(anchor.late) > self.limits.last:
            if anchor.old:
                self._forget_oldest(anchor)
            else:
                anchor.late.popleft()

    def _forget_oldest(self, anchor: _Anchor) -> None:
        region = anchor.old.popleft().region
        region.users -= 1
        if region.users == 0:
            self.old_B -= region.size_B
            self.old_lines -= len(region.lines)

    def _retune(self) -> None:
        """Which anchors flood now? Four places and more a block, in nearly every block, and their first lines are had."""
        blocks, changed = self.since, False
        for anchor in self.anchors:
            if anchor.once:
                once = blocks < WINDOW or anchor.seen * 2 >= blocks
            else:
                many = anchor.places >= 4 * blocks and anchor.seen * 10 >= blocks * 8
                once = many and anchor.early >= self.first_now
            changed |= once != anchor.once
            anchor.once, anchor.places, anchor.seen = once, 0, 0
        if changed:
            self.literals.tell_once({number for number, anchor in enumerate(self.anchors) if anchor.once})
        self.work = self.since = 0

    # ------------------------------------------------------------ blocks -> kept lines

    def _settle(self, block: Block) -> None:
        """Take out of a block what is to be kept, before it leaves the window."""
        if block.no <= self.limits.head:
            self._keep(block.no, self._lines(block.forward(block.a, min(self.limits.head + 1 - block.no, block.lines))))
        self._keep_first(block)
        self._hold_last(block)
        self.long.clear()

    def _keep_first(self, block: Block) -> None:
        for region, wanted in self._regions(block, [hit for hit in block.first if self._has_room(self.anchors[hit[1]])]):
            widest = max((self.anchors[want.number] for want in wanted), key=lambda anchor: anchor.before + anchor.after)
            widest.kept_lines += self._keep(region.no, region.lines)
            for want in wanted:
                self.anchors[want.number].kept += 1

    def _has_room(self, anchor: _Anchor) -> bool:
        """The fuller the room, the fewer lines are kept of each anchor: the rare ones, which say more, still find a place."""
        first, most_lines, most_B = self.limits.first, self.limits.max_lines / 2, self.limits.max_B / 2
        full = max(len(self.kept) / most_lines, self.kept_B / most_B)
        self.first_now = min(self.first_now, first if full < 0.5 else first // 8 if full < 0.75 else first // 40 if full < 0.95 else 0)
        if anchor.kept_lines > most_lines * SHARE:
            anchor.early = first  # no more of them
            return False
        return self.first_now > 0

    def _hold_last(self, block: Block) -> None:
        hits = []
        for number in block.late:
            anchor = self.anchors[number]
            while anchor.late and anchor.late[0][0] is block:
                _, end = anchor.late.popleft()
                ends = [end] if end >= 0 else _from_the_end(block, anchor, self.limits.last - len(anchor.late))
                hits += [(end, number) for end in ends]
        for region, wanted in self._regions(block, hits):
            self.old_B += region.size_B
            self.old_lines += len(region.lines)
            for want in wanted:
                self.anchors[want.number].old.append(_Last(region, want.no, want.to))
            while self.old_B > self.limits.max_B / 2 or self.old_lines > self.limits.max_lines / 2:
                widest = max(self.anchors, key=lambda anchor: len(anchor.old) * (1 + anchor.before + anchor.after))
                for _ in range((len(widest.old) + 1) // 2):
                    self._forget_oldest(widest)
        for number in block.late:
            self._trim(self.anchors[number])

    def _regions(self, block: Block, hits: list[tuple[int, int]]) -> Iterator[tuple[_Region, list[_Want]]]:
        """Hits of one block with their context, as far as the log goes; what overlaps is one region."""
        wanted = []
        for end, number in hits:
            anchor, start = self.anchors[number], block.line_start(end)
            line_no = block.line_no(start)
            no, to = max(line_no - anchor.before, self.window[0].no), min(line_no + anchor.after, self.blocks.lines)
            wanted.append(_Want(no, to, line_no, start, number))
        wanted.sort()
        group: list[_Want] = []
        for want in wanted:
            if group and want.no > to + 1:
                yield self._region(block, group, to), group
                group = []
            to = max(to, want.to) if group else want.to
            group.append(want)
        if group:
            yield self._region(block, group, to), group

    def _region(self, block: Block, group: list[_Want], to: int) -> _Region:
        want = group[0]
        earlier = self._lines(block.back(want.start, want.line_no - want.no))[::-1]
        return _Region(want.no, earlier + self._lines(block.forward(want.start, to + 1 - want.line_no)), len(group))

    def _resolve(self, anchor: _Anchor) -> None:
        """At the end of the log: every place that is only known by its block, newest first, until there are enough."""
        newest: deque[tuple[Block, int]] = deque()
        while anchor.late and len(newest) < self.limits.last:
            block, end = anchor.late.pop()
            ends = [end] if end >= 0 else _from_the_end(block, anchor, self.limits.last - len(newest))
            newest.extendleft((block, end) for end in ends)
        anchor.late = newest

    def _keep(self, no: int, lines: list[bytes]) -> int:
        """How many of them were not there yet."""
        before = len(self.kept)
        for line in lines:
            if no not in self.kept:
                self.kept[no] = line
                self.kept_B += len(line)
            no += 1
        return len(self.kept) - before

    def _lines(self, spans: Iterator[Span]) -> list[bytes]:
        lines, most_B = [], self.limits.line_B
        for buf, start, stop in spans:
            if stop > start and buf[stop - 1] == 13:
                stop -= 1
            lines.append(buf[start:stop] if stop - start <= most_B else self._long_line(buf, start, stop))
        return lines

    def _long_line(self, buf: bytes, start: int, stop: int) -> bytes:
        key, most_B = (id(buf), start), self.limits.line_B
        if key not in self.long:
            found = self.literals.ends(memoryview(buf)[start:stop])
            end = split(found[0])[0] if found else 0
            if end > most_B:  # a progress bar redrawn a hundred times, or a whole traceback as one JSON string
                end += start
                start = min(end - most_B // 4, stop - most_B)
                start = buf.rfind(b"\r", start, end) + 1 or start
            self.long[key] = buf[start : min(start + most_B, stop)]
        return self.long[key]


def _from_the_end(block: Block, anchor: _Anchor, most: int) -> list[int]:
    """The end of a hit in each of the last lines of a block that hold this anchor, newest first."""
    ends: list[int] = []
    stop = block.b
    while (at := block.buf.rfind(anchor.word, block.a, stop)) >= 0:
        anchor.total += bool(ends)  # the block itself was counted as one
        if len(ends) == most:
            break
        ends.append(at + len(anchor.word))
        stop = block.line_start(at)
    return ends
