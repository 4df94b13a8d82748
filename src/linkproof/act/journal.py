"""What was done to this machine and what was there before: the undo, on disk before the do.

In:      records of changes, one before each write (`about`) and one after it (`done`), and the same for each undo (`undoing`, `undone`).
Out:     Entry per change that is not yet taken back, oldest first.
Unknown: a last line that is torn or whose sum is wrong was never relied on (the write that it announced had not begun): left out, and said.
Raises:  UsageError fix-busy, fix-journal-damaged, fix-journal-unreadable, fix-folder-unsafe; OSError if the disk takes no more.
Source:  flock(2): the kernel opens the lock of a process that dies.

By hand: `/var/lib/linkproof/fix/journal`, one change a line: a check sum, a blank, and JSON. `about` holds the whole change and `before`: the
former word of a register, or of a kernel's file; of a file on disk `files` names the sum under which its former bytes stand in `blobs/`
(`cp blobs/SUM /etc/default/grub` is the undo), with mode and owner. `of` of a later line is the `n` of the `about` that it belongs to.
`journal.1` is what was there before this one was begun, `journal.2` before that.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from time import strftime, time

import msgspec
from msgspec import Struct

from linkproof.act.doors import FileNow, Machine
from linkproof.act.text.edits import EDITS
from linkproof.errors import UsageError
from linkproof.mending import Change, ConfigWord, TextFile

FOLDER = "/var/lib/linkproof/fix"
LARGEST_B = 16 << 20
TIDY_B = 1 << 20  # from this size on only what still stands is carried over
OLD_KEPT = 5
_SUM = 16  # characters of the check sum
_WORD = re.compile(r"0x[0-9a-f]{4}")
FINAL = ("restored", "as_before")  # of UNDO_STATES: nothing is left to do


_OURS = FileNow(b"", 0o600, os.geteuid(), os.getegid())


class NotKept(OSError):
    """The disk takes no more of the journal."""


class Image(Struct, frozen=True, omit_defaults=True):
    """A file, link or folder as it was. blob: the sum of its bytes. xattrs: values in hex."""

    kind: str = "file"
    blob: str = ""
    size_B: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    xattrs: tuple[tuple[str, str], ...] = ()
    target: str = ""


class Kept(Struct, frozen=True, omit_defaults=True):
    """A path before and after; None: it was not there. Without `after` yet, both are the same."""

    path: str
    before: Image | None = None
    after: Image | None = None


class Record(Struct, frozen=True, omit_defaults=True):
    """One line. what: about, done, undoing, undone. of: `n` of the `about` that the others belong to."""

    n: int
    what: str
    at: float  # seconds since 1970
    boot: str = ""
    of: int = 0
    step: str = ""
    effect: str = ""
    change: Change | None = None
    before: str = ""
    after: str = ""
    real: str = ""  # where the links of a path led to
    files: tuple[Kept, ...] = ()
    made: tuple[str, ...] = ()  # folders that were not there
    state: str = ""


class Entry(Struct, frozen=True):
    """One change of the journal, with what is known of it. done: read back. undoing: an undo was begun, `undone` says how it ended."""

    about: Record
    done: Record | None = None
    undoing: tuple[Record, ...] = ()
    undone: str = ""

    @property
    def change(self) -> Change:
        assert self.about.change is not None  # `_entries` lets none in without
        return self.about.change

    @property
    def final(self) -> bool:
        return self.undone in FINAL

    @property
    def interrupted(self) -> bool:
        return not self.undone and (self.done is None or bool(self.undoing))


def _line(record: Record) -> bytes:
    text = msgspec.json.encode(record)
    return sha256(text).hexdigest()[:_SUM].encode() + b" " + text + b"\n"


def _record(line: bytes, no: int) -> Record | None:
    """None: not a whole line of ours."""
    total, _, text = line.partition(b" ")
    if sha256(text).hexdigest()[:_SUM].encode() != total:
        return None
    try:
        record = msgspec.json.decode(text, type=Record)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return record if record.n == no else None


class Journal:
    """`read` needs no lock; everything else happens inside `locked`."""

    def __init__(self, folder: str = FOLDER, machine: Machine | None = None) -> None:
        self.machine = machine or Machine()
        self.folder = folder.rstrip("/")
        self.path = f"{self.folder}/journal"
        self.torn_B = 0  # of the tail that was left out at the last read
        self._records: list[Record] = []
        self._good_B = 0
        self._named = False  # is the name of each file and folder of ours known to be on disk?

    # ------------------------------------------------------------ reading

    def read(self) -> tuple[Entry, ...]:
        """Every change that the journal holds, oldest first. () if there is no journal."""
        try:
            self._safe()
            now = self.machine.file(self.path) if self.machine.kind(self.path) else None
        except OSError as e:
            raise _unreadable(self.path, e) from e
        data = b"" if now is None else now.data
        if len(data) > LARGEST_B:
            raise _unreadable(self.path, OSError(errno.EFBIG, "file too large"))
        self._records, self._good_B = [], 0
        lines = data.split(b"\n")
        for no, line in enumerate(lines[:-1], 1):
            record = _record(line, no)
            if record is None:
                if no < len(lines) - 1 or lines[-1] or b"\0" not in line:  # a lost block is zeros; anything else is another hand
                    raise _damaged(self.path, no)
                break
            self._records.append(record)
            self._good_B += len(line) + 1
        self.torn_B = len(data) - self._good_B
        return self.entries()

    def entries(self) -> tuple[Entry, ...]:
        """As of the last read, and of what was written since."""
        return _entries(self._records, self.path)

    def _safe(self) -> None:
        """A folder that others can write to could hold an undo that is theirs."""
        kind = self.machine.kind(self.folder)
        if not kind:
            return
        about = self.machine.about(self.folder)
        if kind != "folder" or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or about.st_uid not in (0, os.geteuid()):
            raise _unsafe(self.folder)
        if about.st_uid != os.geteuid():
            raise OSError(errno.EACCES, "only root can read it", self.folder)
        if self.machine.kind(self.path) not in ("", "file"):
            raise _unsafe(self.path)

    def blob(self, name: str) -> bytes:
        """Bytes that were kept. OSError if they are not what they were."""
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise OSError(errno.EINVAL, "not the name of a blob", name[:80])
        now = self.machine.file(f"{self.folder}/blobs/{name}")
        if now is None or sha256(now.data).hexdigest() != name:
            raise OSError(errno.EIO, "the kept bytes are gone or damaged", name)
        return now.data

    def busy(self) -> str:
        """What is at work right now, `apply, pid 812, since 14:02:11`; "" if nothing is."""
        if not self.machine.kind(f"{self.folder}/lock"):
            return ""
        fd = self.machine.open_lock(f"{self.folder}/lock")
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _said(fd)
        else:
            return ""
        finally:
            os.close(fd)

    # ------------------------------------------------------------ writing

    @contextmanager
    def locked(self, what: str) -> Iterator[tuple[Entry, ...]]:
        """Only one process at a time; what: apply, rollback or reapply. Gives the entries."""
        try:
            self._folders()
            fd = self.machine.open_lock(f"{self.folder}/lock")
        except OSError as e:
            raise _unreadable(self.folder, e) from e
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _busy(_said(fd)) from None
            with suppress(OSError):  # it is for a person to read; on a full disk a rollback begins without
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{what}, pid {os.getpid()}, since {strftime('%Y-%m-%d %H:%M:%S')}".encode(), 0)
            self._named = False
            yield self.read()
        finally:
            os.close(fd)

    def _folders(self) -> None:
        """Ours and those above it, made if they are not there; only root looks into ours."""
        parts = self.folder.split("/")
        for n in range(2, len(parts) + 1):
            if not self.machine.kind(path := "/".join(parts[:n])):
                self.machine.make_folder(path, 0o700 if n == len(parts) else 0o755)
        self._safe()
        if not self.machine.kind(f"{self.folder}/blobs"):
            self.machine.make_folder(f"{self.folder}/blobs", 0o700)

    def keep(self, now: FileNow) -> Image:
        """The bytes of a file, on disk when this returns."""
        image = image_of(now)
        name = f"{self.folder}/blobs/{image.blob}"
        with _kept(name):
            there = self.machine.file(name)
            if there is None or there.data != now.data:
                self.machine.replace_file(name, now.data, _OURS)
            else:  # perhaps of a process that was killed before its name was on disk
                self.machine.fsync_folder(name)
        return image

    def write(self, record: Record) -> Record:
        """One line, on disk when this returns. Its number, time and boot are ours to say."""
        record = msgspec.structs.replace(record, n=len(self._records) + 1, at=time(), boot=self.machine.boot_id())
        line = _line(record)
        with _kept(self.path):
            kind = self.machine.kind(self.path)
            if kind and self.machine.about(self.path).st_size != self._good_B:
                self.machine.truncate(self.path, self._good_B)  # a torn tail, or what an append left that failed
            if self._good_B + len(line) > LARGEST_B:
                raise OSError(errno.EFBIG, "the journal is full")
            self.machine.append(self.path, line)
            self.machine.fsync(self.path)
            if not self._named:  # whoever made them may have been killed before that
                for path in (self.path, self.folder, self.folder.rpartition("/")[0] or "/"):
                    self.machine.fsync_folder(path)
                self._named = True
        self._records.append(record)
        self._good_B += len(line)
        return record

    def tidy(self) -> None:
        """Begin a new file if everything is taken back, or if most of a long one is. The old one is `journal.1` then, and its blobs stay.

        The new file takes the place of the old one in one step, so at no moment is there none. On a full disk the old one goes on.
        """
        standing = {e.about.n for e in self.entries() if not e.final}
        kept: list[Record] = []
        moved: dict[int, int] = {}
        for old in self._records:
            if (old.of or old.n) in standing:
                moved[old.n] = len(kept) + 1
                kept.append(msgspec.structs.replace(old, n=len(kept) + 1, of=moved[old.of] if old.of else 0))
        if not self._records or (kept and (self._good_B < TIDY_B or 2 * len(kept) > len(self._records))):
            return
        with suppress(OSError):
            if not self._is_old():
                for n in range(OLD_KEPT - 1, 0, -1):
                    if self.machine.kind(f"{self.path}.{n}"):
                        self.machine.rename(f"{self.path}.{n}", f"{self.path}.{n + 1}")
                self.machine.hard_link(self.path, f"{self.path}.1")
            self.machine.replace_file(self.path, b"".join(map(_line, kept)), _OURS)
            self._sweep()
        self.read()

    def _is_old(self) -> bool:
        """A tidy that was cut off came so far that `journal.1` is this very file."""
        if not self.machine.kind(f"{self.path}.1"):
            return False
        old, now = self.machine.about(f"{self.path}.1"), self.machine.about(self.path)
        return (old.st_dev, old.st_ino) == (now.st_dev, now.st_ino)

    def _sweep(self) -> None:
        """Blobs that no journal names any more."""
        named: set[str] = set()
        for name in self.machine.names(self.folder):
            if name.startswith("journal") and (now := self.machine.file(f"{self.folder}/{name}")) is not None:
                named |= {found.decode() for found in re.findall(rb"\b[0-9a-f]{64}\b", now.data)}
        for name in self.machine.names(f"{self.folder}/blobs"):
            if name not in named:
                self.machine.unlink(f"{self.folder}/blobs/{name}")


@contextmanager
def _kept(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise NotKept(e.errno, e.strerror, path) from e


def image_of(now: FileNow) -> Image:
    xattrs = tuple((name, value.hex()) for name, value in now.xattrs)
    return Image("file", sha256(now.data).hexdigest(), len(now.data), now.mode, now.uid, now.gid, xattrs)


def _entries(records: list[Record], path: str) -> tuple[Entry, ...]:
    found: dict[int, Entry] = {}
    for record in records:
        if not _whole(record, found.get(record.of)):
            raise _damaged(path, record.n)
        if record.what == "about":
            found[record.n] = Entry(record)
            continue
        entry = found[record.of]
        if record.what == "done":
            entry = msgspec.structs.replace(entry, done=record)
        elif record.what == "undoing":
            entry = msgspec.structs.replace(entry, undoing=(*entry.undoing, record), undone="")
        elif record.what == "undone":
            entry = msgspec.structs.replace(entry, undone=record.state)
        found[record.of] = entry
    return tuple(found.values())


def _whole(record: Record, entry: Entry | None) -> bool:
    """Is there what an undo needs? A line that another hand made can have a right sum."""
    change = record.change if record.what == "about" else entry.change if entry is not None else None
    if isinstance(change, ConfigWord) and record.what in ("about", "done"):
        return bool(_WORD.fullmatch(record.after)) and (record.what == "done" or bool(_WORD.fullmatch(record.before)))
    if isinstance(change, TextFile) and record.what == "about":
        names = [kept.path.rpartition("/")[2] for kept in record.files]
        return len(names) == 1 and names[0] not in ("", ".") and change.edit in (*EDITS, "whole")
    return change is not None


def _said(fd: int) -> str:
    return os.pread(fd, 200, 0).decode("utf-8", "replace").strip() or "?"


def _busy(who: str) -> UsageError:
    return UsageError(
        "fix-busy",
        (f"another fix is at work on this machine: {who}", f"本机上另一个 fix 正在运行：{who}"),
        ("nothing was done", "未做任何改动"),
        ("wait until it has ended, then try again", "请等它结束后重试"),
    )


def _damaged(path: str, no: int) -> UsageError:
    return UsageError(
        "fix-journal-damaged",
        (f"line {no} of {path} is not as it was written", f"{path} 的第 {no} 行与写入时不一致"),
        (
            "what stands in it about former values cannot be relied on; nothing was done",
            "其中记录的原值不可信；未做任何改动",
        ),
        (
            "read it (each line is one change, `before` is the former value), put back by hand what you trust, then move the file away",
            "请人工查看（每行一个改动，`before` 为原值），把可信的值手工恢复，然后移走该文件",
        ),
    )


def _unreadable(path: str, error: OSError) -> UsageError:
    why = error.strerror or str(error)
    return UsageError(
        "fix-journal-unreadable",
        (f"{path}: {why}", f"{path}：{why}"),
        ("what was changed on this machine cannot be known; nothing was done", "无法得知本机做过哪些改动；未做任何改动"),
        ("run it as root", "请以 root 身份运行"),
    )


def _unsafe(path: str) -> UsageError:
    return UsageError(
        "fix-folder-unsafe",
        (f"{path} is not ours alone: others can write to it", f"{path} 并非仅由 root 写入：其他用户可以修改"),
        ("former values in it could be another's; nothing was done", "其中的原值可能被他人改过；未做任何改动"),
        (f"look at who owns {path} and what is in it, then move it away", f"请检查 {path} 的属主和内容，然后移走"),
    )
