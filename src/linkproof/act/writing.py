"""One change, written: what is there is kept in the journal, then the write, then it is read back.

In:      a Change. Nothing of it is believed: identity, capability and former value are read again here.
Out:     two lines in the journal, `about` before the write and `done` after it was read back.
Unknown: what cannot be read is not written.
Raises:  Failed with a sentence for a person; DidNotStick if it was written and reads back otherwise; OtherDevice.
Source:  PCI Express Base Specification 6, 7.6.3 (the list of extended capabilities); kernel_lockdown(7).
"""

from __future__ import annotations

import errno

from msgspec.structs import replace

from linkproof.act.doors import FileNow, Machine
from linkproof.act.images import differing, images, kept
from linkproof.act.journal import Entry, Journal, Kept, NotKept, Record, image_of
from linkproof.act.text import edits
from linkproof.mending import Change, Command, ConfigWord, Sentence, Symlink, SysfsText, TextFile
from linkproof.parse.pci_config import ACS, dwords_acs, extended

_EXTENDED = range(0x100, 0xFFF, 2)


class Failed(Exception):
    """why: sentences for a person."""

    def __init__(self, text: str, *more: Sentence, **args: str) -> None:
        super().__init__(text.format(**args))
        self.why = (Sentence(text, args), *more)


class DidNotStick(Failed):
    pass


class OtherDevice(Failed):
    pass


def refused(change: Change, error: OSError, machine: Machine) -> Sentence:
    """The kernel's reason, as a person can use it."""
    where = error.filename if isinstance(error.filename, str) else _where(change)
    if isinstance(error, NotKept):
        return Sentence("the journal cannot be written: {path}: {why}", {"path": where, "why": error.strerror or str(error)})
    if error.errno == errno.EROFS and isinstance(change, ConfigWord | SysfsText):
        return Sentence("/sys is mounted read-only here, as in a container: run it on the host")
    if error.errno == errno.EROFS:
        return Sentence("{path}: its file system is mounted read-only", {"path": where})
    if error.errno == errno.EPERM and isinstance(change, ConfigWord):
        mode = _lockdown(machine)
        if mode:
            text = (
                "the kernel is locked down ({mode}) and refuses writes to configuration space: the kernel command line or the BIOS remain"
            )
            return Sentence(text, {"mode": mode})
        return Sentence("the kernel refuses writes to configuration space: it is locked down, or this process has no CAP_SYS_ADMIN")
    if error.errno in (errno.EPERM, errno.EBUSY) and isinstance(change, SysfsText) and "/iommu_groups/" in change.path:
        return Sentence("{path}: the kernel changes it only while no driver is bound to a device of the group", {"path": change.path})
    if error.errno == errno.EACCES:
        return Sentence("{path}: only root may do that", {"path": where})
    return Sentence("{path}: {why}", {"path": where, "why": error.strerror or str(error)})


def _where(change: Change) -> str:
    return change.bdf if isinstance(change, ConfigWord) else " ".join(change.argv) if isinstance(change, Command) else change.path


def _lockdown(machine: Machine) -> str:
    try:
        return _chosen(machine.sysfs("/sys/kernel/security/lockdown")).replace("none", "")
    except OSError:
        return ""


# ---------------------------------------------------------------- what is there


def word_now(machine: Machine, change: ConfigWord) -> int:
    """The register, if the device is the one that is meant and the register is where it is meant to be."""
    if not 0 < change.mask <= 0xFFFF or change.want & ~change.mask or change.offset not in _EXTENDED:
        raise Failed("{bdf}: the change is not one of a 16-bit register of extended configuration space", bdf=change.bdf)
    try:
        config, identity = machine.config(change.bdf), machine.identity(change.bdf)
    except OSError as e:
        raise Failed("{bdf}: configuration space cannot be read: {why}", bdf=change.bdf, why=e.strerror or str(e)) from e
    if config[:2] in (b"\xff\xff", b"\0\0", b""):
        raise Failed("{bdf}: no device answers", bdf=change.bdf)
    if identity != change.identity:
        raise OtherDevice("{bdf}: another device stands there: {now}, not {planned}", bdf=change.bdf, now=identity, planned=change.identity)
    if len(config) < 4096:
        text = "{bdf}: only {n} bytes of configuration space can be read: it takes root with CAP_SYS_ADMIN, and a port of PCI Express"
        raise Failed(text, bdf=change.bdf, n=str(len(config)))
    vendor, device = (int(part, 16) for part in identity.split(" ")[0].split(":"))
    if change.capability == ACS and dwords_acs(vendor, device):
        raise Failed("{bdf}: the ACS registers of this chipset are of another form", bdf=change.bdf)
    if change.offset - change.inside not in extended(config, change.capability):
        text = "{bdf}: capability {number} is not where it was: offset {offset}"
        raise Failed(text, bdf=change.bdf, number=f"{change.capability:#06x}", offset=f"{change.offset - change.inside:#x}")
    return int.from_bytes(config[change.offset : change.offset + 2], "little")


def text_now(machine: Machine, change: SysfsText) -> str:
    """What the kernel says; of a list of choices (`always [madvise] never`) the one in brackets."""
    return _chosen(machine.sysfs(change.path))


def _chosen(text: str) -> str:
    _, opened, rest = text.partition("[")
    return rest.partition("]")[0] if opened and "]" in rest and "\n" not in text else text


def wanted(machine: Machine, change: TextFile) -> tuple[str, FileNow | None, bytes]:
    """The file that links lead to, what it is now, and the bytes that it should hold."""
    real = machine.real(change.path)
    now = machine.file(real)
    try:
        return real, now, edits.edited(change, None if now is None else now.data)
    except edits.NotUnderstood as e:
        raise Failed("{path} was left alone", e.why, path=change.path) from e


def there(machine: Machine, change: Change, entries: tuple[Entry, ...]) -> bool:
    """Is what it wants there already? Of a program only our own journal can say so."""
    try:
        if isinstance(change, ConfigWord):
            return word_now(machine, change) & change.mask == change.want
        if isinstance(change, SysfsText):
            return text_now(machine, change) == change.want
        if isinstance(change, TextFile):
            _, now, data = wanted(machine, change)
            return now is not None and now.data == data
        if isinstance(change, Symlink):
            return machine.link(change.path) == change.target
        last = next((e for e in reversed(entries) if e.about.change == change and not e.undone and not e.interrupted), None)
        if last is None or last.done is None or not change.watched:
            return False
        after = {k.path: k.after for k in last.done.files if k.after is not None}
        return not differing(after, images(machine, change.watched, image_of))
    except OSError as e:
        raise _failed(change, e, machine) from e


def _failed(change: Change, error: OSError, machine: Machine) -> Failed:
    why = refused(change, error, machine)
    return Failed(why.text, **why.args)


# ---------------------------------------------------------------- writing


def write(machine: Machine, journal: Journal, step: str, effect: str, change: Change) -> None:
    about = Record(0, "about", 0.0, step=step, effect=effect, change=change)
    try:
        if isinstance(change, ConfigWord):
            _word(machine, journal, about, change)
        elif isinstance(change, SysfsText):
            _sysfs(machine, journal, about, change)
        elif isinstance(change, TextFile):
            _text(machine, journal, about, change)
        elif isinstance(change, Symlink):
            _link(machine, journal, about, change)
        else:
            _program(machine, journal, about, change)
    except OSError as e:
        raise _failed(change, e, machine) from e


def _done(about: Record, **fields: object) -> Record:
    return replace(Record(0, "done", 0.0, of=about.n), **fields)


def _word(machine: Machine, journal: Journal, about: Record, change: ConfigWord) -> None:
    before = word_now(machine, change)
    word = before & ~change.mask | change.want
    about = journal.write(replace(about, before=f"{before:#06x}", after=f"{word:#06x}"))
    machine.write_word(change.bdf, change.offset, word)
    now = word_now(machine, change)
    journal.write(_done(about, after=f"{now:#06x}"))
    if now != word:
        raise DidNotStick("{bdf}: wrote {word}, and it reads {now}", bdf=change.bdf, word=f"{word:#06x}", now=f"{now:#06x}")


def _sysfs(machine: Machine, journal: Journal, about: Record, change: SysfsText) -> None:
    before = text_now(machine, change)
    about = journal.write(replace(about, before=before, after=change.want))
    machine.write_sysfs(change.path, change.want)
    now = text_now(machine, change)
    journal.write(_done(about, after=now))
    if now != change.want:
        raise DidNotStick("{path}: wrote {word}, and it reads {now}", path=change.path, word=change.want, now=now)


def _text(machine: Machine, journal: Journal, about: Record, change: TextFile) -> None:
    real, now, data = wanted(machine, change)
    before = None if now is None else journal.keep(now)
    after = journal.keep(FileNow(data) if now is None else _with_data(now, data))
    made = missing_folders(machine, real)
    about = journal.write(replace(about, real=real, files=(Kept(real, before, after),), made=made))
    for folder in made:
        machine.make_folder(folder)
    machine.replace_file(real, data, now)
    back = machine.file(real)
    journal.write(_done(about, files=(Kept(real, before, None if back is None else image_of(back)),)))
    if back is None or back.data != data:
        raise DidNotStick("{path}: it does not read back as it was written", path=change.path)


def _with_data(now: FileNow, data: bytes) -> FileNow:
    return FileNow(data, now.mode, now.uid, now.gid, now.xattrs)


def missing_folders(machine: Machine, path: str) -> tuple[str, ...]:
    """Those above a path that are not there, from the top down."""
    parts = path.split("/")
    above = ["/".join(parts[:n]) for n in range(2, len(parts))]
    return tuple(folder for folder in above if not machine.kind(folder))


def _link(machine: Machine, journal: Journal, about: Record, change: Symlink) -> None:
    if machine.kind(change.path):
        raise Failed("{path}: something else stands there", path=change.path)
    made = missing_folders(machine, change.path)
    about = journal.write(replace(about, made=made))
    for folder in made:
        machine.make_folder(folder)
    machine.symlink(change.path, change.target)
    now = machine.link(change.path) or ""
    journal.write(_done(about, after=now))
    if now != change.target:
        raise DidNotStick("{path}: it does not read back as it was written", path=change.path)


def _program(machine: Machine, journal: Journal, about: Record, change: Command) -> None:
    before = images(machine, change.watched, journal.keep)
    about = journal.write(replace(about, files=kept(before, {})))
    done = machine.run(change.argv, change.deadline_s)
    journal.write(_done(about, files=kept(before, images(machine, change.watched, image_of)), state=done.why))
    words, line = " ".join(change.argv), _last_line(done.out)
    if done.why == "absent":
        raise Failed("`{program}` is not there", program=change.argv[0])
    if done.why == "timeout":
        raise Failed("`{program}` did not end within {n} s", program=words, n=f"{change.deadline_s:g}")
    if done.out is None:
        raise Failed("`{program}` could not be run: {why}", program=words, why=done.why)
    if done.code:
        raise Failed("`{program}` ended with {code}: {line}", program=words, code=str(done.code), line=line)


def _last_line(out: bytes | None) -> str:
    lines = (out or b"").decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else "no output"
