"""The page of a cause -> its short name, what it is in one sentence, how to mend it and how to route around it.

In:      `causes/<id>.md` (English) and `causes/<id>.zh.md` (Chinese); only the pages of causes that are shown are read.
Out:     Page. A bullet may go on over several lines; it becomes one.
Unknown: a page that is missing gives its id as title and no advice; a Chinese page that is missing is read in English.
Raises:  nothing.
"""

from __future__ import annotations

import os
from functools import cache

from msgspec import Struct

HEADINGS = (
    ("What it is", "是什么"),
    ("How it shows", "怎么表现"),
    ("What speaks for and against", "支持与反对"),
    ("Told apart from", "与谁区分"),
    ("Mend", "修复"),
    ("Route around", "绕开"),
    ("Safety", "安全"),
    ("When this page is wrong", "本页何时不对"),
    ("Sources", "来源"),
)


class Page(Struct, frozen=True):
    id: str
    title: str
    what: str = ""
    fix: tuple[str, ...] = ()
    workaround: tuple[str, ...] = ()
    text: str = ""


def _folder() -> str:
    from linkproof import causes

    return causes.__path__[0]


def _read(name: str) -> str:
    try:
        with open(os.path.join(_folder(), name), encoding="utf-8") as file:  # noqa: PTH118, PTH123  start-up: no pathlib
            return file.read()
    except OSError:
        return ""


def sections(text: str) -> dict[str, list[str]]:
    """Heading -> its lines; what stands above the first `## ` is under ""."""
    out: dict[str, list[str]] = {"": []}
    lines = out[""]
    for line in text.splitlines():
        if line.startswith("## "):
            lines = out.setdefault(line[3:].strip(), [])
        else:
            lines.append(line)
    return out


def _joined(a: str, b: str) -> str:
    """Two lines of one paragraph. Between Chinese characters there is no blank."""
    wide = bool(a and b) and a[-1] > "\u2e7f" and b[0] > "\u2e7f"
    return a + b if wide or not a else f"{a} {b}"


def bullets(lines: list[str]) -> tuple[str, ...]:
    out: list[str] = []
    for line in lines:
        if line.startswith(("- ", "* ")):
            out.append(line[2:].strip())
        elif line.startswith(" ") and line.strip() and out:
            out[-1] = _joined(out[-1], line.strip())
    return tuple(out)


def first_paragraph(lines: list[str]) -> str:
    out = ""
    for line in lines:
        if line.strip():
            out = _joined(out, line.strip())
        elif out:
            break
    return out


@cache
def page(cause: str, lang: str) -> Page:
    text = (_read(f"{cause}.zh.md") if lang == "zh" else "") or _read(f"{cause}.md")
    parts = sections(text)
    heading = next((line[2:] for line in parts[""] if line.startswith("# ")), "")
    title = heading.split(":", 1)[-1].split("：", 1)[-1].strip() or cause

    def part(number: int) -> list[str]:
        en, zh = HEADINGS[number]
        return parts.get(zh) or parts.get(en) or []

    return Page(cause, title, first_paragraph(part(0)), bullets(part(4)), bullets(part(5)), text)
