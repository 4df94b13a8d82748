"""What became of the changes that the journal knows and that are not taken back: read from the machine, nothing is written.

In:      the journal; registers and files as they are now; /proc/cmdline and the boot's id.
Out:     ChangeStands per change, in the order of the journal; of one that was made again (after a reboot) the last one.
Unknown: what cannot be read is `not_readable`, never `in_force`; nor is a program that leaves no file to look at.
Raises:  UsageError of the journal.
Source:  Linux Documentation/admin-guide/kernel-parameters.rst: /proc/cmdline is what the running kernel was started with.
"""

from __future__ import annotations

from linkproof.act.doors import Machine
from linkproof.act.images import differing, images
from linkproof.act.journal import Entry, Journal, image_of
from linkproof.act.text import edits
from linkproof.act.text.words import words_in
from linkproof.act.writing import Failed, OtherDevice, refused, text_now, word_now
from linkproof.mending import ChangeStands, Command, ConfigWord, Sentence, Symlink, SysfsText, TextFile

Now = tuple[str, str, Sentence | None]  # one of STANDS, what is there in words, and why
ABSENT = "absent"


def status(machine: Machine, journal: Journal) -> tuple[ChangeStands, ...]:
    entries = [e for e in journal.read() if not e.final]
    last = {e.about.n for e in {e.about.change: e for e in entries}.values()}
    busy = journal.busy() if entries else ""
    return tuple(_stands(machine, entry, entries, busy) for entry in entries if entry.about.n in last or entry.interrupted)


def _stands(machine: Machine, entry: Entry, entries: list[Entry], busy: str) -> ChangeStands:
    change, about = entry.change, entry.about
    try:
        state, now, why = _now(machine, entry, entries)
    except OtherDevice as e:
        state, now, why = "drifted", "", e.why[0]
    except Failed as e:
        state, now, why = "not_readable", "", e.why[-1]
    except OSError as e:
        state, now, why = "not_readable", "", refused(change, e, machine)
    if entry.interrupted:
        state = "interrupted"
        text = "another fix is at work on it: {who}"
        why = Sentence(text, {"who": busy}) if busy else Sentence("an apply or a rollback ended in the middle of it: roll it back")
    return ChangeStands(about.step, change, state, about.at, former(entry), now, why)


def former(entry: Entry) -> str:
    """What was there before, in words."""
    change, about = entry.change, entry.about
    if isinstance(change, ConfigWord | SysfsText):
        return about.before
    if isinstance(change, TextFile):
        return _size(None if about.files[0].before is None else about.files[0].before.size_B)
    if isinstance(change, Symlink):
        return ABSENT
    return _files(sum(k.before is not None and k.before.kind == "file" for k in about.files)) if change.watched else ""


def _size(size_B: int | None) -> str:
    return ABSENT if size_B is None else f"{size_B} bytes"


def _files(number: int) -> str:
    return f"{number} files" if number != 1 else "1 file"


def _now(machine: Machine, entry: Entry, entries: list[Entry]) -> Now:
    change = entry.change
    if isinstance(change, ConfigWord):
        word = word_now(machine, change)
        mine, before = word & change.mask, int(entry.about.before, 16) & change.mask
        return _reads(mine == change.want, mine == before, f"{word:#06x}")
    if isinstance(change, SysfsText):
        text = text_now(machine, change)
        return _reads(text == change.want, text == entry.about.before, text)
    if isinstance(change, TextFile):
        return _text(machine, entry, entries, change)
    if isinstance(change, Symlink):
        target = machine.link(change.path)
        holds = target == change.target
        return _started(machine, entry, entries) if holds else _reads(False, not machine.kind(change.path), target or ABSENT)
    return _program(machine, entry, entries, change)


def _reads(holds: bool, as_before: bool, now: str) -> Now:
    return ("in_force" if holds else "lost" if as_before else "drifted"), now, None


def _text(machine: Machine, entry: Entry, entries: list[Entry], change: TextFile) -> Now:
    [file] = entry.about.files
    now = machine.file(file.path)
    if now is None:
        return _reads(False, file.before is None, ABSENT)
    size, blob = _size(len(now.data)), image_of(now).blob
    if (file.after is not None and blob == file.after.blob) or _holds(change, now.data):
        state, _, why = _started(machine, entry, entries)
        return state, size, why
    return _reads(False, file.before is not None and blob == file.before.blob, size)


def _holds(change: TextFile, data: bytes) -> bool:
    """Others changed the file, and our words are in it still."""
    try:
        return edits.edited(change, data) == data
    except edits.NotUnderstood:
        return False


def _program(machine: Machine, entry: Entry, entries: list[Entry], change: Command) -> Now:
    if not change.watched:
        if machine.boot_id() != entry.about.boot:
            return "lost", "", Sentence("the boot in which it was run is over")
        return "not_readable", "", Sentence("it was run, and it leaves no file that would tell whether it still holds")
    now = images(machine, change.watched, image_of)
    said = _files(sum(image.kind == "file" for image in now.values()))
    before = {k.path: k.before for k in entry.about.files if k.before is not None}
    after = {k.path: k.after for k in entry.done.files if k.after is not None} if entry.done else {}
    if before != after and not differing(before, now):
        return "lost", said, None
    state, _, why = _started(machine, entry, entries)
    if others := ", ".join(differing(after, now)[:5]):
        if state != "in_force" or _words(entry, entries) == ((), ()):
            return "drifted", said, Sentence("others wrote {paths} since", {"paths": others})
        why = Sentence("others wrote {paths} since, and the running kernel was started with what it was for", {"paths": others})
    return state, said, why


# ---------------------------------------------------------------- the kernel that runs


def _started(machine: Machine, entry: Entry, entries: list[Entry]) -> Now:
    """Of what is in place: does the running kernel know of it?"""
    if entry.about.effect != "reboot":
        return "in_force", "", None
    if machine.boot_id() == entry.about.boot:
        return "waits_for_reboot", "", None
    add, remove = _words(entry, entries)
    if (add or remove) and not words_in(machine.sysfs("/proc/cmdline"), add, remove):
        return "drifted", "", Sentence("the running kernel was started without it: /proc/cmdline is not as it should be")
    return "in_force", "", None


def _words(entry: Entry, entries: list[Entry]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the step of this change puts into the kernel command line, and takes out."""
    of_step = [e.change for e in entries if e.about.step == entry.about.step]
    texts = [c for c in of_step if isinstance(c, TextFile) and c.edit in edits.EDITS]
    options = [word for c in of_step if isinstance(c, Command) for word in c.argv]
    add = [w for c in texts for w in c.add] + _after("--args=", options)
    remove = [w for c in texts for w in c.remove] + _after("--remove-args=", options)
    return tuple(dict.fromkeys(add)), tuple(dict.fromkeys(remove))


def _after(option: str, argv: list[str]) -> list[str]:
    return [w for word in argv if word.startswith(option) for w in word.removeprefix(option).split()]
