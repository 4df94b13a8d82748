"""Chunks of any size -> blocks of whole lines, numbered, each knowing its neighbours.

In:      the bytes of a log, chunked anyhow.
Out:     Blocks of at most `most_B`, each ending at the last line end within reach: the same ones however the log was chunked.
         Of a line longer than `most_B` the first `most_B` are a block of their own and the rest is skipped, so that a file
         without line ends needs no memory.
Unknown: nothing.
Raises:  nothing.
Source:  a line ends at LF; the last one may lack it. CRLF is the reader's business.
"""

from __future__ import annotations

from collections.abc import Iterator

LF = 10
MARK_B = 16 << 10

Span = tuple[bytes, int, int]  # buf[start:stop], one line without its LF


class Block:
    """buf[a:b] holds `lines` whole lines, the first is line `no` of the log. `at` is the place among the bytes of all blocks."""

    __slots__ = ("a", "at", "b", "buf", "first", "late", "lines", "marks", "next", "no", "previous")

    def __init__(self, buf: bytes, a: int, b: int, at: int, no: int, previous: Block | None) -> None:
        self.buf, self.a, self.b, self.at, self.no = buf, a, b, at, no
        self.marks, lines = [], 0
        for start in range(a, b, MARK_B):
            self.marks.append(lines)  # line ends before each MARK_B of the block
            lines += buf.count(b"\n", start, min(start + MARK_B, b))
        self.lines = lines + (buf[b - 1] != LF)
        self.previous, self.next = previous, None
        if previous is not None:
            previous.next = self
        self.first: list[tuple[int, int]] = []  # for the scan: (end of a hit, anchor) to be kept for good
        self.late: set[int] = set()  # for the scan: anchors that noted this block as one of their last

    next: Block | None

    def line_start(self, at: int) -> int:
        return max(self.buf.rfind(b"\n", self.a, at) + 1, self.a)

    def line_no(self, start: int) -> int:
        mark = (start - self.a) // MARK_B
        return self.no + self.marks[mark] + self.buf.count(b"\n", self.a + mark * MARK_B, start)

    def forward(self, at: int, count: int) -> Iterator[Span]:
        """The line that starts at `at` and those after it, `count` in all, on into the next blocks."""
        here: Block | None = self
        while here is not None and count:
            if at >= here.b:
                here = here.next
                at = here.a if here is not None else 0
                continue
            stop = here.buf.find(b"\n", at, here.b)
            stop = stop if stop >= 0 else here.b
            yield here.buf, at, stop
            at = stop + 1
            count -= 1

    def back(self, at: int, count: int) -> Iterator[Span]:
        """The `count` lines before the one that starts at `at`, nearest first, on into the blocks before."""
        here: Block | None = self
        while here is not None and count:
            if at <= here.a:
                here = here.previous
                at = here.b if here is not None else 0
                continue
            stop = at - 1 if here.buf[at - 1] == LF else at
            at = here.line_start(stop)
            yield here.buf, at, stop
            count -= 1


class Blocks:
    def __init__(self, most_B: int) -> None:
        self.most_B = most_B
        self.total_B = self.lines = 0
        self._at = 0
        self._rest = bytearray()  # less than a block
        self._skipping = False  # in the rest of a line that is too long
        self._latest: Block | None = None

    def feed(self, chunk: bytes) -> Iterator[Block]:
        self.total_B += len(chunk)
        at, rest = 0, self._rest
        while True:
            if self._skipping:
                at = chunk.find(b"\n", at) + 1
                if at == 0:
                    return
                self._skipping = False
            want_B = self.most_B - len(rest)
            if len(chunk) - at < want_B:
                rest += chunk[at:]
                return
            buf, a, b = (b"".join((rest, chunk[at : at + want_B])), 0, self.most_B) if rest else (chunk, at, at + want_B)
            cut = buf.rfind(b"\n", a, b) + 1
            self._skipping = cut == 0
            used_B = (cut or b) - a
            yield self._block(buf, a, a + used_B)
            at += max(0, used_B - len(rest))
            del rest[:used_B]

    def finish(self) -> Iterator[Block]:
        if self._rest:
            yield self._block(bytes(self._rest), 0, len(self._rest))
            self._rest.clear()

    def _block(self, buf: bytes, a: int, b: int) -> Block:
        block = Block(buf, a, b, self._at, self.lines + 1, self._latest)
        self._latest = block
        self._at += b - a
        self.lines += block.lines
        return block
