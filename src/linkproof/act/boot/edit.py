"""What mending the kernel command line comes to on one machine, and the words that all loaders share. Pure."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable

from msgspec import Struct

from linkproof.act.text import words
from linkproof.act.text.edits import NotUnderstood, edited, line_of
from linkproof.collect.host import NOT_RECORDED
from linkproof.mending import Change, Command, Line, Refusal, Sentence, TextFile

REBOOT = "sudo reboot"


class BootEdit(Struct, frozen=True):
    """loader: what loads the kernel (`grub`, `grubby`, `systemd-boot` ...; "" if none was recognised). changes: () if the words are there
    already, or if it is refused. by_hand: commands and lines, as a person would type them. notes: why this file, what stays, what goes."""

    loader: str
    changes: tuple[Change, ...]
    by_hand: tuple[Line, ...]
    notes: tuple[Sentence, ...] = ()
    refusal: Refusal | None = None


class Wish(Struct, frozen=True):
    add: tuple[str, ...]
    remove: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.add)


class Swap(Struct, frozen=True):
    """For a program that adds and removes whole words: what to take away and what to put in its place."""

    away: tuple[str, ...]
    new: tuple[str, ...]


def swap_of(line: str, wish: Wish) -> Swap | None:
    """None: the line is right already. All words of a key that is touched become one, since such programs replace by key."""
    found = words.splices(line, wish.add, wish.remove)
    if not found:
        return None
    after = words.applied(line, found)
    touched = {w.key for w in (*words.words(line), *words.words(after)) if _times(line, w) != _times(after, w)}
    away = tuple(line[w.start : w.end] for w in words.words(line) if w.key in touched)
    new: dict[str, str | None] = {}
    for w in words.words(after):
        if w.key in touched:
            joined = w.key in words.LISTS and new.get(w.key) is not None
            new[w.key] = f"{new[w.key]},{w.value}" if joined else w.value
    return Swap(away, tuple(words.written(key, value) for key, value in new.items()))


def _times(line: str, word: words.Word) -> int:
    return sum((w.key, w.value) == (word.key, word.value) for w in words.words(line))


def text_change(path: str, edit: str, wish: Wish, now: bytes) -> TextFile | None:
    """None: the file is right already. Of what is to go only what stands there is named. Raises NotUnderstood."""
    there = words.atoms(line_of(edit, now))
    change = TextFile(path, edit, wish.add, tuple(w for w in wish.remove if w in there))
    return None if edited(change, now) == now else change


def lines_by_hand(change: TextFile, now: bytes) -> tuple[str, ...]:
    """The lines of a file that differ, as they are to read."""
    old, new = (data.decode("utf-8", "replace").splitlines() for data in (now, edited(change, now)))
    lines = [line[2:] for line in difflib.ndiff(old, new) if line.startswith("+ ")]
    return tuple(f"{change.path}: {line.strip()}" for line in lines)


def line_by_hand(running: str, wish: Wish) -> Sentence:
    """The whole command line as it should be; where the running one is not known, what to put on it."""
    words_now = [word for word in running.split() if not word.startswith(("BOOT_IMAGE=", "initrd="))]
    line = words.with_words(" ".join(words_now), wish.add, wish.remove) if words_now else f"... {wish.text}"
    return Sentence("kernel command line: {line}", {"line": line})


def as_typed(argv: Iterable[str]) -> str:
    return "sudo " + shlex.join(argv)


def not_readable(loader: str, path: str, why: str, by_hand: tuple[Line, ...] = ()) -> BootEdit:
    text = (
        "{path} is not in the capture: collect again, as root, with this version of linkproof" if why == NOT_RECORDED
        else "{path} could not be read ({reason}): plan again as root"
    )  # fmt: skip
    refusal = Refusal("not_readable", Sentence(text, {"path": path, "reason": why or "?"}))
    return BootEdit(loader, (), by_hand or ("sudo linkproof fix",), (), refusal)


def not_understood(loader: str, error: NotUnderstood, by_hand: tuple[Line, ...]) -> BootEdit:
    return BootEdit(loader, (), by_hand, (), Refusal("not_understood", error.why))


def there_already(loader: str) -> BootEdit:
    return BootEdit(loader, (), (REBOOT,), (Sentence("the boot loader's files ask for it already: it counts from the next boot"),))


def removed_notes(lines: Iterable[str], wish: Wish) -> tuple[Sentence, ...]:
    """Names what goes: words that say the contrary."""
    gone: dict[str, None] = {}
    for line in lines:
        after = words.with_words(line, wish.add, wish.remove)
        gone.update(dict.fromkeys((words.atoms(line) - words.atoms(after)).elements()))
    if not gone:
        return ()
    return (Sentence("{words} says the contrary and is taken out; rollback puts it back", {"words": ", ".join(gone)}),)


def program(argv: tuple[str, ...], watched: tuple[str, ...], undo: tuple[str, ...] = (), deadline_s: float = 300.0) -> Command:
    return Command(argv, undo, watched, deadline_s)
