"""Text files: what each would say with our words in it, and again without them. Pure; bytes in, bytes out. Part of CHANGES.

In:      a TextFile, what the file holds now (None: there is none); to take words out again, what it held before and after ours.
Out:     the new bytes. What is not ours stays as it was: comments, order, other parameters, line ends, a missing last newline, odd bytes.
         `edited` of its own result changes nothing. `unedited` of an untouched file gives the former bytes back; of a file that others
         changed since, our words go and what we had taken out comes back; None if that cannot be said.
Unknown: a file that only its own program could read is not changed.
Raises:  NotUnderstood (`why` is a sentence for a person); ValueError for an edit that does not exist.
Source:  GNU GRUB manual "Simple configuration"; Boot Loader Specification; kernel-install(8).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from linkproof.act.text import shell_file, words
from linkproof.act.text.shell_file import NotUnderstood
from linkproof.mending import TextFile

__all__ = ["EDITS", "NotUnderstood", "edited", "line_of", "unedited"]

DEFAULT, ALWAYS = "GRUB_CMDLINE_LINUX_DEFAULT", "GRUB_CMDLINE_LINUX"

Add = Iterable[str]
# what stands in the file as one command line, and the file with a splice of that line done
Read = Callable[[str], tuple[str, int]]
Write = Callable[[str, list[words.Splice]], str]


# ---------------------------------------------------------------- GRUB's defaults (shell)


def _grub_values(text: str, names: tuple[str, ...]) -> list[shell_file.Value]:
    """The pieces of the command line in the order in which the kernel gets them."""
    found = shell_file.assignments(text, names)
    return [value for name in names for value in shell_file.in_force(found, name)]


def _grub(*names: str) -> tuple[Read, Write]:
    def read(text: str) -> tuple[str, int]:
        line, starts = _joined(_grub_values(text, names))
        return line, starts[-1][0] if starts else 0

    def write(text: str, found: list[words.Splice]) -> str:
        values = _grub_values(text, names)
        if not values:
            return _with_line(text, f"{names[-1]}={shell_file.quoted(found[0].text, '')}")
        return _grub_write(text, found, values)

    return read, write


def _grub_write(text: str, found: list[words.Splice], values: list[shell_file.Value]) -> str:
    line, starts = _joined(values)
    places = [(-1, -1, "")] * len(line)  # of each character of the line: where in the file, and in which quotes
    for start, value in starts:
        places[start : start + len(value.chars)] = [(c.start, c.end, c.quote) for c in value.chars]
    done: list[words.Splice] = []
    for splice in found:
        if shell_file.UNREAD in line[splice.start : splice.end]:
            raise NotUnderstood("{file} is left alone: a word that would have to change is made by shell code")
        done += [words.Splice(start, end, "") for start, end, _ in places[splice.start : splice.end] if start >= 0]
        if splice.text:
            at, quote = _insert_at(splice.start, places, starts)
            done.append(words.Splice(at, at, shell_file.quoted(splice.text, quote)))
    return words.applied(text, done)


def _joined(values: list[shell_file.Value]) -> tuple[str, list[tuple[int, shell_file.Value]]]:
    """All pieces as one line, and where each begins in it. `+=` joins without a space, as the shell does."""
    line = ""
    starts: list[tuple[int, shell_file.Value]] = []
    for value in values:
        line += "\n" if starts and not value.plus else ""
        starts.append((len(line), value))
        line += value.text
    return line, starts


def _insert_at(index: int, places: list[tuple[int, int, str]], starts: list[tuple[int, shell_file.Value]]) -> tuple[int, str]:
    first, value = next((start, value) for start, value in reversed(starts) if start <= index)
    if index > first:
        return places[index - 1][1], places[index - 1][2]
    if value.chars:
        return places[index][0], places[index][2]
    return value.at, value.quote


# ---------------------------------------------------------------- lines of words


def _pieces(text: str, pattern: re.Pattern[str]) -> list[tuple[int, int]]:
    return [match.span("words") for match in pattern.finditer(text)]


_OPTIONS = re.compile(r"^options[ \t]+(?P<words>[^\r\n]*)", re.M)
_PLAIN = re.compile(r"^(?!#)(?P<words>[^\r\n]*[^\s#][^\r\n]*)", re.M | re.A)


def _pieces_read(pattern: re.Pattern[str]) -> Read:
    def read(text: str) -> tuple[str, int]:
        pieces = [text[a:b] for a, b in _pieces(text, pattern)]
        return "\n".join(pieces), sum(len(piece) + 1 for piece in pieces[:-1])

    return read


def _pieces_write(pattern: re.Pattern[str], start: str) -> Write:
    def write(text: str, found: list[words.Splice]) -> str:
        spans = _pieces(text, pattern)
        if not spans:
            return _with_line(text, start + found[0].text)
        places: list[int] = []
        for a, b in spans:
            places += [*range(a, b), b]
        done = [words.Splice(places[s.start], places[s.start] + (s.end - s.start), s.text) for s in found]
        return words.applied(text, done)

    return write


def _with_line(text: str, line: str) -> str:
    """With a line more at the end, ended as the others are."""
    end = "\r\n" if "\r\n" in text else "\n"
    return (text if not text or text.endswith("\n") else text + end) + line + end


EDITS: dict[str, tuple[Read, Write]] = {
    "grub_default": _grub(ALWAYS, DEFAULT),
    "grub_always_only": _grub(ALWAYS),  # where another file sets the other variable anew
    "grub_default_only": _grub(DEFAULT),
    "options_lines": (_pieces_read(_OPTIONS), _pieces_write(_OPTIONS, "options ")),
    "cmdline_file": (_pieces_read(_PLAIN), _pieces_write(_PLAIN, "")),
}


def _of(name: str) -> tuple[Read, Write]:
    if name not in EDITS:
        raise ValueError(f"no such edit: {name}")
    return EDITS[name]


def _edit(name: str, text: str, add: Add, remove: Add) -> str:
    if len(text) > shell_file.FILE_MAX:
        raise NotUnderstood("{file} is left alone: it is too long for such a file")
    read, write = _of(name)
    line, last_from = read(text)
    found = words.splices(line, add, remove, last_from)
    if not found:
        return text
    fresh = write(text, found)
    again, last_from = read(fresh)
    if words.atoms(again) != words.atoms(words.applied(line, found)) or words.splices(again, add, remove, last_from):
        raise NotUnderstood("{file} is left alone: it does not read back as it was written")
    return fresh


def line_of(edit: str, now: bytes) -> str:
    """The command line that a file gives. Raises NotUnderstood."""
    return _of(edit)[0](now.decode("latin-1"))[0]


def edited(change: TextFile, now: bytes | None) -> bytes:
    if change.edit == "whole":
        content = change.content.encode()
        if now is not None and now != content:
            raise NotUnderstood("{file} is left alone: it is there already, with other content", file=change.path)
        return content
    try:
        return _edited(change, now)
    except NotUnderstood as e:
        raise e.of(change.path) from None


def _edited(change: TextFile, now: bytes | None) -> bytes:
    return _edit(change.edit, (now or b"").decode("latin-1"), change.add, change.remove).encode("latin-1")


def unedited(change: TextFile, now: bytes, before: bytes | None, after: bytes) -> bytes | None:
    if now == after:
        return before
    if change.edit == "whole":
        return None
    old, new, text = ((part or b"").decode("latin-1") for part in (before, after, now))
    swapped = _swapped(old, new, text)
    if swapped is not None:
        return swapped.encode("latin-1")
    try:
        had, has = (words.atoms(_of(change.edit)[0](part)[0]) for part in (old, new))
        return _edit(change.edit, text, tuple((had - has).elements()), tuple((has - had).elements())).encode("latin-1")
    except NotUnderstood:
        return None


def _swapped(before: str, after: str, now: str) -> str | None:
    """`now` with the lines that we changed as they were, if these still stand there once and unchanged."""
    old, new, lines = (text.split("\n") for text in (before, after, now))
    shorter = min(len(old), len(new))
    head = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    tail = next((i for i in range(shorter - head) if old[-1 - i] != new[-1 - i]), shorter - head)
    ours, former = new[head : len(new) - tail], old[head : len(old) - tail]
    places = [i for i in range(len(lines)) if lines[i : i + 1] == ours[:1] and lines[i : i + len(ours)] == ours]
    if len(places) != 1:
        return None
    lines[places[0] : places[0] + len(ours)] = former
    return "\n".join(lines)
