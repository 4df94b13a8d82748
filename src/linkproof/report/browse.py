"""The catalogue of causes and one page of it, for a terminal.

In:      ids with their class; a Page.
Out:     Rows: all causes by class, one line each; or the page with paragraphs wrapped and commands left whole.
Unknown: Markdown beyond headings, bullets, paragraphs, fences, tables, links and bold is shown as it is written.
Raises:  nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from linkproof.report.layout import Piece, Row, cut, width_of, wrapped
from linkproof.report.pages import Page, page
from linkproof.report.say import Teller
from linkproof.report.words import class_words

_LINK = r"\[([^\]]+)\]\(([^)\s]+)\)"
_BULLET = r"(\s*)([-*]|\d{1,3}\.) +(.*)"


def listing(causes: Iterable[tuple[str, str]], classes: Iterable[str], lang: str, width: int) -> list[Row]:
    """causes: (id, class)"""
    t = Teller(lang)
    causes = list(causes)
    column = max((len(cause) for cause, _ in causes), default=0) + 2
    rows: list[Row] = []
    for cls in classes:
        rows.append([Piece(class_words(cls, t), "head")])
        for cause in sorted(cause for cause, its in causes if its == cls):
            title = cut(page(cause, lang).title, max(16, width - column - 2))
            rows.append([Piece("  "), Piece(f"{cause:<{column}}", "code"), Piece(title)])
        rows.append([])
    rows += wrapped([Piece(t("`linkproof causes ID` prints the page of one."), "quiet")], width)
    return rows


def reading(about: Page, width: int) -> list[Row]:
    rows: list[Row] = []
    under_head = False
    for kind, words, indent in _blocks(about.text.splitlines()):
        if kind in ("title", "head"):
            rows += wrapped([Piece(words, kind)], width)
        elif kind == "code":
            rows.append([Piece(" " * (indent + 2)), Piece(words, "code")])
        elif kind == "blank" and rows and rows[-1] and not under_head:
            rows.append([])
        elif kind != "blank":
            lead = f"{kind} " if kind else ""
            rows += wrapped([Piece(lead), Piece(_plain(words))], width, indent, indent + width_of(lead))
        under_head = kind == "head" or (under_head and kind == "blank")
    return rows


def _plain(words: str) -> str:
    return re.sub(_LINK, r"\1 (\2)", words).replace("**", "")


def _blocks(lines: list[str]) -> Iterator[tuple[str, str, int]]:
    """(kind, words, indent); a kind that is a mark begins a bullet, "" is a paragraph. Lines of one block are joined."""
    held: tuple[str, str, int] | None = None
    fenced = False
    for line in lines:
        bare = line.strip()
        bullet = re.match(_BULLET, line)
        plain = not (fenced or bare.startswith(("```", "#", "|")) or bullet or not bare)
        if plain and held is not None:
            held = (held[0], f"{held[1]} {bare}" if held[1][-1:].isascii() or bare[:1].isascii() else held[1] + bare, held[2])
            continue
        if held is not None:
            yield held
            held = None
        if bare.startswith("```"):
            fenced = not fenced
        elif fenced or bare.startswith("|"):
            yield "code", line.rstrip(), 0
        elif bare.startswith("#"):
            yield "title" if bare.startswith("# ") else "head", bare.lstrip("# "), 0
        elif bullet:
            held = (bullet[2], bullet[3], len(bullet[1]))
        elif bare:
            held = ("", bare, 0)
        else:
            yield "blank", "", 0
    if held is not None:
        yield held
