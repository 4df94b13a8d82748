"""A text as pasted, piped or copied -> its lines as the program printed them. Not a parser itself.

In:      str, or numbered lines of a log of which others were left out.  Wrapped by terminals (ANSI, progress bars, backspaces), by web
         pages and forums (entities, tags, quote marks, fences, curly quotes), by JSON (docker, journalctl, loggers, a whole log as one
         string), by launchers and containers (`prefixes.py`); also several times over.
Out:     Text. `Line.no` counts in the original: one line that held several (a progress bar, JSON with `\\n`) gives several of one
         number; of blank lines in a row one is left; fences are gone.  Indentation, tabs and diff marks stay.
Unknown: what is no known wrapping stays as it is.
Raises:  nothing, whatever the text.  Linear in it; of one line LINE_MAX characters are kept.
Source:  ECMA-48 (escapes), docker json-file and journal-json formats, CommonMark (fences, quotes).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from msgspec import DecodeError, json

from linkproof.model import Line, Text
from linkproof.parse.prefixes import MONTHS, without_column, without_prefixes
from linkproof.parse.rules import Match, rx

LINE_MAX = 16384
UNFOLDED = 2  # JSON in JSON
FEW = 5  # lines; a text this short with `\n` spelled out was folded as a whole

_TAGS = (
    "br|pre|code|p|div|span|details|summary|strong|em|li|ul|ol|td|tr|th|table|tbody|blockquote|font|samp|kbd|tt|h[1-6]|a(?: +href[^<>]*)"
)
_TAG = rf"(?i)</?(?:{_TAGS})(?: [^<>]*)? */?>|</a>"
_SGR = r"(?:\\x1[bB]|\\033|\\u001[bB]|\\e|\^\[|␛|#033|\x{FFFD})\[[0-9;?]{0,20}[A-Za-z]|\[[0-9]{1,3}(?:;[0-9]{1,3}){0,5}m"
_BAR = r"[0-9]{1,3}%\|[^|]*\| *[0-9.]+[kMG]?/[0-9.?]+[kMG]? \[[^\[\]]*\]"
# keys that a record of a log has beside its message
_RECORD = frozenset(
    ("time", "ts", "timestamp", "@timestamp", "asctime", "level", "levelname", "severity", "stream", "__REALTIME_TIMESTAMP")
)
_ENTITIES = {
    "gt": ">",
    "lt": "<",
    "amp": "&",
    "quot": '"',
    "apos": "'",
    "nbsp": " ",
    "lsquo": "'",
    "rsquo": "'",
    "ldquo": '"',
    "rdquo": '"',
}
_QUOTES = {0x2018: "'", 0x2019: "'", 0x201A: "'", 0xB4: "'", 0x2032: "'", 0x201C: '"', 0x201D: '"', 0x201E: '"'}
_BLANKS = dict.fromkeys((0x0A, 0x0B, 0x0C, 0x85, 0xA0, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000), " ")
_GONE = dict.fromkeys((*range(9), *range(0x0E, 0x20), 0x0D, *range(0x7F, 0x85), *range(0x86, 0xA0), 0xAD))
_GONE |= dict.fromkeys((*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF))
_DIRT: dict[int, str | None] = {**_GONE, **_BLANKS}
_TROUBLE = ("rror", "arning", "WARN", "ssert", "Traceback", "xception", "ail", "FAIL", "Xid", "bort", "ill", "imeout", "imed out", "denied")


def clean(name: str, lines: Iterable[tuple[int, str]] | str, *, total_lines: int = 0) -> Text:
    if isinstance(lines, str):
        lines = lines.replace("\r", "\n") if "\r" in lines and "\n" not in lines else lines
        parts = lines.split("\n")
        if not parts[-1]:
            parts.pop()
        numbered = list(enumerate(parts, 1))
    else:
        numbered = list(lines)
    marks = tuple(mark for mark in _MARKS if any(mark in text for _, text in numbered))  # in most texts none
    few = sum(1 for _, text in numbered if text and not text.isspace()) <= FEW
    page = _Page(few, tuple(mark for mark in _SPELLED if mark in marks))
    out: list[Line] = []
    for no, text in numbered:
        if len(text) <= LINE_MAX and text.isascii() and not _odd(text, marks):
            _put(out, no, text, None)
        else:
            _peel(out, no, text, None, page, UNFOLDED)
    return Text(name, without_column(out), max(total_lines, numbered[-1][0] if numbered else 0))


# ---------------------------------------------------------------- which lines need work

_SPELLED = ("[0m", "[0;0m", "[39m", "\\x1b[", "\\033[", "\\u001b[", "\\e[", "^[[", "#033[", "␛[", "\ufffd[")
_MARKS = ("&", "%|", "\\n", "</", "<br", "```", " [repeated ", *_SPELLED)


class _Page(NamedTuple):
    """What one line must know of the whole text."""

    few: bool
    spelled: tuple[str, ...]  # marks of spelled-out escapes that occur


def _odd(text: str, marks: tuple[str, ...]) -> bool:
    first = text[:1]
    if first in " \t":
        first = text.lstrip()[:1]
    if first in '[(>|`~{"<' and first:
        return True
    if (first.isdigit() and text[4:5] == "-") or text[:3] in MONTHS:
        return True
    if not text.isprintable() and not text.replace("\t", "").isprintable():
        return True
    return any(mark in text for mark in marks)


def _put(out: list[Line], no: int, text: str, rank: int | None) -> None:
    if text and not text.isspace():
        out.append(Line(no, text, rank))
    elif out and out[-1].text:
        out.append(Line(no, "", rank))


# ---------------------------------------------------------------- one line


def _peel(out: list[Line], no: int, text: str, rank: int | None, page: _Page, unfold: int) -> None:
    """One line of the original -> none, one or several lines of `out`."""
    for piece in _printed(text, page.spelled):
        for row in _without_html(piece):
            row, said = without_prefixes(_after_bar(row))
            rank = said if said is not None else rank
            inner = _unfolded(row, page.few) if unfold else None
            if inner is not None:
                for part in inner.removesuffix("\n").split("\n"):
                    _peel(out, no, part, rank, page, unfold - 1)
                continue
            row = row[:LINE_MAX]
            if not _is_fence(row.strip()):
                _put(out, no, _typed(row), rank)


def _is_fence(bare: str) -> bool:
    """A line of Markdown that opens or closes code: the marks, and a language at most."""
    return bare[:3] in ("```", "~~~") and (not bare.strip("`~") or bare.strip("`~").replace("-", "").isalnum())


def _after_bar(row: str) -> str:
    """A progress bar that never ended its line, and what was printed right behind it."""
    bar = rx(_BAR).search(row[:LINE_MAX]) if "%|" in row else None
    return row[bar.end() :] if bar is not None and row[bar.end() :].strip() else row


def _typed(row: str) -> str:
    """Last: what is left of marks that a text picks up on its way."""
    row = row.removeprefix("```").removesuffix("```")
    if row.startswith("`") and row.endswith("`") and row.count("`") == 2:
        row = row[1:-1]
    if " [repeated " in row:  # Ray tells of lines like this from other workers
        row = row[: row.index(" [repeated ")] if " across cluster]" in row else row
    if not row.isascii():
        row = row.translate(_QUOTES)
        if "—" in row or "–" in row:  # an editor's idea of `--shm-size`
            row = " ".join("--" + w[1:] if w[:1] in "—–" and w[1:2].isalpha() and "-" in w else w for w in row.split(" "))
    return row


def _printed(text: str, spelled: tuple[str, ...]) -> list[str]:
    """What a terminal would show at the end, and what went by and speaks of trouble."""
    if text.isprintable():
        return [_without_spelled(text, spelled)]
    if "\x1b" in text or "\x9b" in text:
        text = _without_escapes(text.replace("\x9b", "\x1b["))
    text = text.rstrip("\r")
    pieces = [text]
    if "\r" in text:
        shown = [piece for piece in text.split("\r") if piece.strip()]
        pieces = [p for p in shown[:-1] if any(word in p for word in _TROUBLE)][:64] + shown[-1:]
    out = []
    for piece in pieces:
        if "\b" in piece:
            piece = _typed_over(piece)
        if not piece.isprintable() and not piece.replace("\t", "").isprintable():
            piece = piece.encode("utf-8", "replace").decode().translate(_DIRT)  # half characters come out of JSON
        out.append(_without_spelled(piece, spelled))
    return out


def _without_escapes(text: str) -> str:
    """CSI (colours, cursor), OSC (titles, links) and two-character escapes."""
    first, *rest = text.split("\x1b")
    out = [first]
    for i, part in enumerate(rest):
        kind = part[:1]
        if kind == "[":
            end = part[1:].lstrip("0123456789:;<=>?").lstrip(" !\"#$%&'()*+,-./")
            out.append(end[1:] if end and "@" <= end[0] <= "~" else part[1:])
        elif kind and kind in "]PX^_":  # up to BEL or ESC \
            ended = i + 1 < len(rest) and rest[i + 1].startswith("\\")
            out.append(part[part.index("\a") + 1 :] if "\a" in part else "" if ended else part[1:])
        elif kind and kind in "()*+#%":
            out.append(part[2:])
        else:
            out.append(part[1:] if kind and kind in "\\=>78cDEHMNOZ" else part)
    return "".join(out)


def _without_spelled(text: str, spelled: tuple[str, ...]) -> str:
    """Escapes whose ESC was lost or spelled out on the way: `[36m(Worker pid=1)[0m`, `\\x1b[31m`, `#033[0m`."""
    if not spelled or not any(mark in text for mark in spelled):
        return text
    return _cut_out(rx(_SGR).finditer(text), text, "")


def _typed_over(text: str) -> str:
    shown: list[str] = []
    for c in text:
        if c != "\b":
            shown.append(c)
        elif shown:
            shown.pop()
    return "".join(shown)


def _cut_out(found: Iterator[Match], text: str, instead: str) -> str:
    parts: list[str] = []
    at = 0
    for m in found:
        parts += (text[at : m.start()], instead)
        at = m.end()
    return "".join((*parts, text[at:]))


# ---------------------------------------------------------------- web pages


def _without_html(text: str) -> list[str]:
    rows = [text]
    like_html = "<" in text and ("</" in text or "<br" in text or text.lstrip()[:2] in ("<p", "<c", "<d", "<s", "<l", "<t"))
    if like_html and rx(_TAG).search(text[:LINE_MAX]) is not None:
        for br in ("<br>", "<br/>", "<br />"):
            text = text.replace(br, "\n")
        rows = _cut_out(rx(_TAG).finditer(text[:LINE_MAX]), text[:LINE_MAX], "").split("\n")
    return [_without_entities(_without_entities(row)) if "&" in row else row for row in rows]  # twice: `&amp;gt;`


def _without_entities(text: str) -> str:
    first, *rest = text.split("&")
    out = [first]
    for part in rest:
        word, semicolon, after = part[:10].partition(";")
        char = _ENTITIES.get(word, "")
        if semicolon and word[:1] == "#":
            digits, base = (word[2:], 16) if word[1:2] in "xX" else (word[1:], 10)
            if digits.isascii() and digits.isalnum():
                try:
                    char = chr(int(digits, base))
                    char = char if char.isprintable() else " "
                except (ValueError, OverflowError):
                    char = ""
        out.append(char + after + part[10:] if semicolon and char else "&" + part)
    return "".join(out)


# ---------------------------------------------------------------- lines in a line


def _unfolded(row: str, few: bool) -> str | None:
    """Several lines that are written in one: a JSON record of a log, a string with `\\n` spelled out. None: it is no such line."""
    bare = row.strip()
    if bare.startswith('{"') and bare.endswith("}"):
        return _record(bare)
    if bare.count("\\n") <= 3 or not (few or bare.startswith('"')):
        return None
    if bare.startswith('"') and bare.endswith('"'):
        try:
            told = json.decode(bare)
        except (DecodeError, RecursionError, ValueError):
            told = None
        if isinstance(told, str):
            return told
    row = row.replace("\\\\n", "\\n").replace("\\r\\n", "\n").replace("\\n", "\n").replace("\\t", "\t").replace("\\u001b", "\x1b")
    return row.replace('\\"', '"').replace("\\'", "'").replace("\\\\", "\\")


def _record(bare: str) -> str | None:
    """The message of one record of docker json-file, journalctl -o json, python-json-logger and the like; None for other JSON."""
    try:
        record = json.decode(bare)
    except (DecodeError, RecursionError, ValueError):
        return None
    if not isinstance(record, dict) or _RECORD.isdisjoint(record):
        return None
    for key in ("log", "message", "msg", "MESSAGE", "textPayload"):
        told = record.get(key)
        if isinstance(told, list) and all(isinstance(b, int) and 0 <= b < 256 for b in told):
            told = bytes(told).decode("utf-8", "replace")  # journald's way with what is not printable
        if isinstance(told, str):
            more = [record[k] for k in ("exc_info", "exception", "stack_trace", "stacktrace") if isinstance(record.get(k), str)]
            speaker = "kernel: " if "kernel" in (record.get("_TRANSPORT"), record.get("SYSLOG_IDENTIFIER")) else ""
            return "\n".join((speaker + told, *more))
    return None
