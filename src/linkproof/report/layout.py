"""Words -> lines no wider than asked, where a Chinese character takes two columns.

In:      styled pieces of text, an indent, a hanging indent, a width.
Out:     Rows: lists of (text, style). A style is a name ("bold", "dim", ...) that `colour.py` knows; without colour it is dropped.
Unknown: a character without a width of its own (combining marks) counts as 0.
Raises:  nothing.
Source:  Unicode East Asian Width (UAX #11): W and F are two columns wide. What may not begin or end a line: GB/T 15834.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple
from unicodedata import combining, east_asian_width

_NOT_FIRST = frozenset("，。、；：？！）》」』】〉”’…—,.;:?!)]}%")
_NOT_LAST = frozenset("（《「『【〈“‘([{")


class Piece(NamedTuple):
    text: str
    style: str = ""


Row = list[Piece]


def width_of(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(2 if east_asian_width(c) in "WF" else 0 if combining(c) else 1 for c in text)


def cut(text: str, width: int) -> str:
    """At most `width` columns; `…` says that something is missing."""
    if width_of(text) <= width:
        return text
    return text[: _fitting(text, max(1, width - 1))].rstrip() + "…"


def _code_spans(piece: Piece) -> Iterator[Piece]:
    """`code` becomes a piece of its own; in a cited line a backtick is a backtick."""
    if piece.style == "cite" or "`" not in piece.text:
        yield piece
        return
    parts = piece.text.split("`")
    for i, part in enumerate(parts):
        if i % 2 and i < len(parts) - 1:
            yield Piece(f"`{part}`", "code")
        else:
            yield Piece("`" + part if i % 2 else part, piece.style)


class _Unit(NamedTuple):
    """What is not torn: a Latin word, a Chinese character with its punctuation, a command that fits on one line; and the blank after it."""

    pieces: list[Piece]
    width: int  # without the blank


def _wide(c: str) -> bool:
    return not c.isascii() and east_asian_width(c) in "WF"


def _may_break(a: str, b: str) -> bool:
    if b.isspace():
        return False
    return a.isspace() or ((_wide(a) or _wide(b)) and b not in _NOT_FIRST and a not in _NOT_LAST)


def _units(pieces: Iterable[Piece], room: int) -> Iterator[_Unit]:
    unit: list[Piece] = []
    last, kept = "", False  # kept: inside a command that stays whole

    def made() -> _Unit:
        return _Unit(unit, width_of("".join(piece.text for piece in unit).rstrip()))

    for piece in (span for p in pieces for span in _code_spans(p)):
        kept = piece.style == "code" and width_of(piece.text) <= room - 4  # room for punctuation
        begin = 0
        for i, c in enumerate(piece.text):
            if last and (i == 0 or not kept) and _may_break(last, c):
                if i > begin:
                    unit.append(Piece(piece.text[begin:i], piece.style))
                yield made()
                unit, begin = [], i
            last = c
        if piece.text[begin:]:
            unit.append(Piece(piece.text[begin:], piece.style))
    if unit:
        yield made()


def wrapped(pieces: Iterable[Piece], width: int, indent: int = 0, hang: int | None = None) -> list[Row]:
    """indent: of the first row; hang: of the others (default: the same)."""
    hang = indent if hang is None else hang
    rows: list[Row] = []
    row: Row = [Piece(" " * indent)]
    used, empty = indent, True
    for unit in _units(pieces, max(8, width - hang)):
        if not empty and used + unit.width > width:
            rows.append(row)
            row, used = [Piece(" " * hang)], hang
        for piece in unit.pieces:
            text = piece.text
            while used + width_of(text.rstrip()) > width and len(text) > 1:  # a word wider than a line: a path, a URL
                fits = _fitting(text, max(2, width - used))
                row.append(Piece(text[:fits], piece.style))
                rows.append(row)
                row, used, text = [Piece(" " * hang)], hang, text[fits:]
            row.append(Piece(text, piece.style))
            used += width_of(text)
        empty = False
    rows.append(row)
    return [_tidy(row) for row in rows]


def _tidy(row: Row) -> Row:
    """Neighbours of one style as one piece, and no blanks at the end."""
    out: Row = []
    for text, style in row:
        if out and out[-1].style == style:
            out[-1] = Piece(out[-1].text + text, style)
        elif text:
            out.append(Piece(text, style))
    while out and not out[-1].text.rstrip():
        out.pop()
    if out:
        out[-1] = Piece(out[-1].text.rstrip(), out[-1].style)
    return out


def _fitting(text: str, room: int) -> int:
    """How many characters of it fit; at least one."""
    used = 0
    for i, c in enumerate(text):
        used += width_of(c)
        if used > room:
            return max(1, i)
    return len(text)


def plain(rows: Iterable[Row]) -> str:
    return "".join("".join(piece.text for piece in row).rstrip() + "\n" for row in rows)
