"""Takes changes back, the last one first, from what the journal says was there before.

In:      the journal, the machine as it is now; names of steps, () for all.
Out:     ChangeUndone per change. A former value is never put over what another hand wrote, nor into another device.
Unknown: what cannot be read is not written: `failed`, and the journal keeps it for the next time.
Raises:  UsageError of the journal, fix-step-unknown.
Source:  the journal alone: an undo that was cut off is begun again, and one that is done finds the former value and does nothing.

A change whose write was cut off (no `done`) in this boot is ours as far as its bits reach; in a later boot only a whole
word that reads as we left it.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import groupby

from linkproof.act.doors import Machine, temp_of
from linkproof.act.images import Images, differing, images, put_back
from linkproof.act.journal import Entry, Journal, Record, image_of
from linkproof.act.text import edits
from linkproof.act.writing import Failed, OtherDevice, refused, text_now, word_now
from linkproof.errors import UsageError
from linkproof.mending import Change, ChangeUndone, Command, ConfigWord, Sentence, Symlink, SysfsText, TextFile

_CLOCK_S = 5.0  # what a clock may jump; FAT counts in 2 s

_OTHERS = "others"  # of an `undoing`: others had written too, so what the program makes is not ours to put former bytes over

Left = tuple[str, Sentence | None]  # one of UNDO_STATES, and why


def rollback(machine: Machine, journal: Journal, steps: tuple[str, ...] = ()) -> tuple[ChangeUndone, ...]:
    if not machine.kind(journal.folder):
        _known(steps, ())
        return ()
    with journal.locked("rollback") as entries:
        _known(steps, entries)
        machine.end_programs()
        return take_back(machine, journal, [e for e in entries if not e.final and (not steps or e.about.step in steps)])


def _known(steps: tuple[str, ...], entries: tuple[Entry, ...]) -> None:
    unknown = ", ".join(s for s in steps if s not in {e.about.step for e in entries})
    if unknown:
        raise UsageError(
            "fix-step-unknown",
            (f"the journal knows no step {unknown}", f"日志中没有步骤 {unknown}"),
            ("nothing was done", "未做任何改动"),
            ("`linkproof fix status` shows what was applied", "`linkproof fix status` 会列出已应用的步骤"),
        )


def take_back(machine: Machine, journal: Journal, entries: list[Entry]) -> tuple[ChangeUndone, ...]:
    """Inside the lock. A program that must run again does so when the other changes of its step are taken back."""
    going = {e.about.n for e in entries}
    standing = [e for e in journal.entries() if not e.final and e.about.n not in going]
    out: list[ChangeUndone] = []
    for _, of_step in groupby(reversed(entries), lambda e: e.about.step):
        later: list[Entry] = []
        for entry in of_step:
            above = next((e.about.step for e in standing if e.about.n > entry.about.n and _same_bits(e.change, entry.change)), "")
            if above:
                why = Sentence("{step} wrote it later, and stands: take that back too", {"step": above})
                out.append(ChangeUndone(entry.about.step, entry.change, "changed_since", why))
            elif isinstance(entry.change, Command) and not entry.change.undo and _others_wrote(machine, entry):
                later.append(entry)
            else:
                out.append(_one(machine, journal, entry))
        out += [_one(machine, journal, entry) for entry in later]
    return tuple(out)


def _same_bits(one: Change, other: Change) -> bool:
    """Of the kernel: the later one's former value is the earlier one's doing, so only the later one can be taken back first."""
    if isinstance(one, ConfigWord) and isinstance(other, ConfigWord):
        same = (one.bdf, one.offset, one.identity) == (other.bdf, other.offset, other.identity)
        return same and one.mask & other.mask != 0
    return isinstance(one, SysfsText) and isinstance(other, SysfsText) and one.path == other.path


def _one(machine: Machine, journal: Journal, entry: Entry) -> ChangeUndone:
    others = isinstance(entry.change, Command) and _others_wrote(machine, entry)
    silent = _keep(journal, Record(0, "undoing", 0.0, of=entry.about.n, state=_OTHERS if others else ""))
    try:
        state, why = _undo(machine, journal, entry)
    except OtherDevice as e:
        state, why = "other_device", e.why[0]
    except Failed as e:
        state, why = "failed", e.why[-1]
    except OSError as e:
        state, why = "failed", refused(entry.change, e, machine)
    silent = _keep(journal, Record(0, "undone", 0.0, of=entry.about.n, state=state)) or silent
    return ChangeUndone(entry.about.step, entry.change, state, why or silent)


def _keep(journal: Journal, record: Record) -> Sentence | None:
    """A disk that is full must not keep a former value from coming back: the next rollback then finds it and does nothing."""
    try:
        journal.write(record)
    except OSError as e:
        return Sentence("the journal cannot be written: {path}: {why}", {"path": journal.path, "why": e.strerror or str(e)})
    return None


def _undo(machine: Machine, journal: Journal, entry: Entry) -> Left:
    change = entry.change
    if isinstance(change, ConfigWord):
        return _word(machine, entry, change)
    if isinstance(change, SysfsText):
        return _sysfs(machine, entry, change)
    if isinstance(change, TextFile):
        left = _text(machine, journal, entry, change)
    elif isinstance(change, Symlink):
        left = _link(machine, entry, change)
    else:
        return _program(machine, journal, entry, change)
    for folder in reversed(entry.about.made):
        if machine.kind(folder) == "folder" and not machine.names(folder):
            machine.remove_folder(folder)
    return left


def _same_boot(machine: Machine, entry: Entry) -> bool:
    return machine.boot_id() == entry.about.boot


# ---------------------------------------------------------------- registers and files of the kernel


def _word(machine: Machine, entry: Entry, change: ConfigWord) -> Left:
    now, before, after = word_now(machine, change), int(entry.about.before, 16), int((entry.done or entry.about).after, 16)
    mask = change.mask
    if now == before or (now != after and now & mask == before & mask):
        return "as_before", None
    if not _same_boot(machine, entry) and now != after:  # whoever set these bits since then, it was not us; a kexec leaves them as they are
        return "as_before", Sentence("the boot in which it was written is over")
    if now & mask != after & mask and entry.done is not None:
        return "changed_since", None
    wanted = before if now == after else now & ~mask | before & mask
    machine.write_word(change.bdf, change.offset, wanted)
    read = word_now(machine, change)
    if read != wanted:
        text = "{bdf}: wrote {word}, and it reads {now}"
        return "failed", Sentence(text, {"bdf": change.bdf, "word": f"{wanted:#06x}", "now": f"{read:#06x}"})
    return "restored", None


def _sysfs(machine: Machine, entry: Entry, change: SysfsText) -> Left:
    now, before, after = text_now(machine, change), entry.about.before, (entry.done or entry.about).after
    if now == before:
        return "as_before", None
    if not _same_boot(machine, entry):  # the kernel forgot it; the same name can be another device's now, as IOMMU groups are counted anew
        return "as_before", Sentence("the boot in which it was written is over")
    if now != after and entry.done is not None:
        return "changed_since", None
    machine.write_sysfs(change.path, before)
    read = text_now(machine, change)
    if read != before:
        text = "{path}: wrote {word}, and it reads {now}"
        return "failed", Sentence(text, {"path": change.path, "word": before, "now": read})
    return "restored", None


# ---------------------------------------------------------------- files and links


def _text(machine: Machine, journal: Journal, entry: Entry, change: TextFile) -> Left:
    [file] = entry.about.files
    if machine.kind(temp_of(file.path)):
        machine.unlink(temp_of(file.path))
    now = machine.file(file.path)
    before = None if file.before is None else journal.blob(file.before.blob)
    if (None if now is None else now.data) == before:
        return "as_before", None
    if now is None or file.after is None:
        return "changed_since", Sentence("the file is gone: it was left so")
    after, why = journal.blob(file.after.blob), None
    data: bytes | None = before
    if now.data != after:
        data = edits.unedited(change, now.data, before, after)
        if data is None:
            return "changed_since", None
        if data == now.data:
            return "as_before", Sentence("others changed the file since, and our words are not in it")
        why = Sentence("others changed the file since: our words were taken out of it, the rest stays")
    if data is None or (not data and before is None):
        machine.unlink(file.path)
    else:
        machine.replace_file(file.path, data, now)
    back = machine.file(file.path)
    if (b"" if back is None else back.data) != (data or b""):
        return "failed", Sentence("{path}: it does not read back as it was written", {"path": file.path})
    return "restored", why


def _link(machine: Machine, entry: Entry, change: Symlink) -> Left:
    if not machine.kind(change.path):
        return "as_before", None
    if machine.link(change.path) != change.target:
        return "changed_since", None
    machine.unlink(change.path)
    return "restored", None


# ---------------------------------------------------------------- programs


def _program(machine: Machine, journal: Journal, entry: Entry, change: Command) -> Left:
    if not change.watched:
        return _unwatched(machine, entry, change)
    before = {k.path: k.before for k in entry.about.files if k.before is not None}
    now = images(machine, change.watched, image_of)
    if not differing(before, now):
        return "as_before", None
    ours, others = _whose(machine, entry, before, now)
    again: tuple[str, ...] = ()
    if others:
        again = change.undo or change.argv
        done = machine.run(again, change.deadline_s)
        now = images(machine, change.watched, image_of)
        if done.out is None or done.code or done.why:
            again = ()
    put_back(machine, journal, before, now, (path for path in differing(before, now) if path in ours))
    left = differing(before, images(machine, change.watched, image_of))
    if not left:
        return "restored", None
    paths = ", ".join(left[:5])
    if again:
        text = "others wrote {paths} since, so `{program}` made them again: as they should be now, not the former bytes"
        return "restored", Sentence(text, {"paths": paths, "program": " ".join(again)})
    if others:
        text = "others wrote {paths} since, and `{program}` could not make them again"
        return "failed", Sentence(text, {"paths": paths, "program": " ".join(change.undo or change.argv)})
    return "failed", Sentence("{path}: it does not read back as it was written", {"path": paths})


def _unwatched(machine: Machine, entry: Entry, change: Command) -> Left:
    """It changed the running machine only, and a reboot took that back."""
    if not _same_boot(machine, entry):
        return "as_before", Sentence("the boot in which it was run is over")
    if not change.undo:
        return "failed", Sentence("`{program}` cannot be taken back", {"program": " ".join(change.argv)})
    done = machine.run(change.undo, change.deadline_s)
    if done.out is None or done.code or done.why:
        text = "`{program}` did not end well: {why}"
        return "failed", Sentence(text, {"program": " ".join(change.undo), "why": done.why or str(done.code)})
    return "restored", None


def _others_wrote(machine: Machine, entry: Entry) -> bool:
    change = entry.change
    assert isinstance(change, Command)
    before = {k.path: k.before for k in entry.about.files if k.before is not None}
    with suppress(OSError):
        return bool(_whose(machine, entry, before, images(machine, change.watched, image_of))[1])
    return True


def _whose(machine: Machine, entry: Entry, before: Images, now: Images) -> tuple[set[str], set[str]]:
    """Paths that are not as before: those that only the program wrote, and those that another hand wrote since.

    Of a program that came to its end we know what it left. Of one that was cut off, or whose undo was, the time of a file tells:
    only what was written while it, or the undo, was at work is ours.
    """
    assert isinstance(entry.change, Command)
    after = {k.path: k.after for k in entry.done.files if k.after is not None} if entry.done else {}
    starts = [] if entry.done else [entry.about.at]
    starts += [undo.at for undo in entry.undoing if undo.state != _OTHERS]
    spans = [(start - _CLOCK_S, start + entry.change.deadline_s + _CLOCK_S) for start in starts]
    ours: set[str] = set()
    others: set[str] = set()
    for path in differing(before, now):
        seen = path if path in now else path.rpartition("/")[0] or "/"  # of what is gone the folder tells
        known = entry.done is not None and now.get(path) == after.get(path)
        when = machine.about(seen).st_mtime if not known and machine.kind(seen) else None
        (ours if known or (when is not None and any(a <= when <= b for a, b in spans)) else others).add(path)
    return ours, others
