"""Rows -> text with colour for a terminal. The only import of rich in this room, and only when a terminal is attached.

Colour never carries meaning alone: without it (a pipe, NO_COLOR, a dumb terminal) `layout.plain` shows the same words and marks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import StringIO

from linkproof.report.layout import Row

STYLES = {
    "title": "bold",
    "head": "bold cyan",
    "bad": "bold red",
    "open": "bold yellow",
    "good": "bold green",
    "for": "green",
    "against": "magenta",
    "cite": "dim",
    "quiet": "dim",
    "code": "cyan",
}


def wanted(is_terminal: bool, environ: Mapping[str, str]) -> bool:
    return is_terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def painted(rows: Iterable[Row]) -> str:
    from rich.console import Console
    from rich.text import Text

    out = StringIO()
    console = Console(file=out, force_terminal=True, width=10_000, highlight=False, markup=False, emoji=False, legacy_windows=False)
    for row in rows:
        console.print(Text.assemble(*((piece.text, STYLES.get(piece.style, "")) for piece in row)), soft_wrap=True)
    return out.getvalue()
