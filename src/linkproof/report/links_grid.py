"""Marks and tables for links. Marks are words, so that nothing hangs on colour.

In:      cells (text, style), a width.
Out:     Rows, none wider than asked as long as the first column and one other fit.
Unknown: -
Raises:  nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from linkproof.report.layout import Piece, Row, width_of

MARKS = {
    "verified": "ok",
    "corrupt": "BAD",
    "hung": "HUNG",
    "died": "died",
    "slow": "slow",
    "refused": "no",
    "not_tested": "-",
    "part": "part",
}
STYLES = {
    "verified": "good",
    "corrupt": "bad",
    "hung": "bad",
    "died": "bad",
    "slow": "open",
    "refused": "open",
    "not_tested": "quiet",
    "part": "open",
}


def pad(words: str, width: int) -> str:
    return words + " " * (width - width_of(words))


def row_width(row: Row) -> int:
    return sum(width_of(piece.text) for piece in row)


def grid(head: Sequence[Piece], rows: Sequence[Sequence[Piece]], width: int, indent: int = 2) -> list[Row]:
    """As many blocks of columns below each other as the width asks for; each block begins with the first column."""
    table = [head, *rows]
    widths = [max(width_of(row[i].text) for row in table) for i in range(len(head))]
    blocks: list[list[int]] = [[]]
    used = indent + widths[0]
    for i in range(1, len(head)):
        if blocks[-1] and used + 2 + widths[i] > width:
            blocks.append([])
            used = indent + widths[0]
        blocks[-1].append(i)
        used += 2 + widths[i]
    out: list[Row] = []
    for number, block in enumerate(blocks):
        out += [[]] if number else []
        for row in table:
            line: Row = [Piece(" " * indent + pad(row[0].text, widths[0]), row[0].style)]
            for i in block:
                line += [Piece("  "), row[i], Piece(" " * (widths[i] - width_of(row[i].text)))]
            while line and not line[-1].text.strip():
                line.pop()
            out.append(line)
    return out
