"""The only door through which the machine is changed: registers, files of the kernel, files on disk, programs.

In:      paths as the machine sees them (`/etc/default/grub`), read and written below `root`: "/" live, a folder in tests.
         sys: the folder that stands for /sys, `root`/sys by itself; /proc is beside it.
Out:     what is there now, as bytes or words; a file of the disk is the old one or the new one at any moment, never a half.
Unknown: a file that is absent is None; one that cannot be read is an OSError, never None.
Raises:  OSError with the kernel's own reason; also for a path that is not absolute or holds "..", and a file larger than FILE_MAX_B.
Source:  rename(2), fsync(2); Linux Documentation/PCI/sysfs-pci.rst.

Everything that changes something goes through `_do`, one primitive at a time: a test cuts the power before, inside and after each.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import Protocol

from msgspec import Struct

from linkproof import proc

FILE_MAX_B = 64 << 20
CONFIG_B = 4096
_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_LINKS_MAX = 40
_MARK = {proc.MARK: "fix"}  # only one fix is at work at a time
_OF_CONTENT = ("security.ima", "security.evm")  # sums over the bytes: wrong for other bytes


class FileNow(Struct, frozen=True):
    """A regular file as it is. mode: permission bits. xattrs: SELinux context, access lists ..., where the file system has them."""

    data: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()
    mtime: float = 0.0  # seconds since 1970


class Run(Protocol):
    def __call__(self, argv: tuple[str, ...], *, deadline_s: float) -> proc.Done: ...


def temp_of(path: str) -> str:
    """Where the new bytes of a file stand until they take its place: known from the name, so a leftover is found after a crash."""
    at = PurePosixPath(path)
    return str(at.with_name(f".{at.name}.linkproof-new"))


class Machine:
    def __init__(self, root: str = "/", run: Run = proc.run, sys: str = "") -> None:
        self.root = root.rstrip("/")
        self._sys = sys.rstrip("/") or self.root + "/sys"
        self._program = run

    def _do(self, name: str, path: str, act: Callable[[], None], torn: Callable[[], None] | None = None) -> None:
        """Every change of the machine. torn: what a power cut in the middle of it can leave, None if it is all or nothing."""
        act()

    # ------------------------------------------------------------ where things are

    def _at(self, path: str) -> str:
        if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise OSError(errno.EINVAL, "not an absolute path", path)
        if path == "/sys" or path.startswith("/sys/"):
            return self._sys + path[4:]
        if path == "/proc" or path.startswith("/proc/"):
            return os.path.dirname(self._sys) + path  # noqa: PTH120
        return self.root + path

    def real(self, path: str) -> str:
        """The path that links lead to; an absolute link stays below the root."""
        self._at(path)
        rest, done, links = path.split("/")[::-1], "", 0
        while rest:
            part = rest.pop()
            if part in ("", "."):
                continue
            if part == "..":
                done = done.rpartition("/")[0]
                continue
            target = self.link(f"{done}/{part}")
            if target is None:
                done += f"/{part}"
                continue
            links += 1
            if links > _LINKS_MAX:
                raise OSError(errno.ELOOP, "too many links", path)
            done = "" if target.startswith("/") else done
            rest += target.split("/")[::-1]
        return done or "/"

    def _here(self, path: str) -> str:
        """Links on the way are followed, one at its end is not."""
        folder, _, name = path.rpartition("/")
        return self._at(f"{self.real(folder or '/').rstrip('/')}/{name}")

    # ------------------------------------------------------------ reading

    def link(self, path: str) -> str | None:
        """Where a link points, None if it is none."""
        try:
            return os.readlink(self._at(path))  # noqa: PTH115
        except OSError as e:
            if e.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                return None
            raise

    def kind(self, path: str) -> str:
        """file folder link other, "" if there is nothing. Follows no link."""
        try:
            mode = os.lstat(self._here(path)).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return ""
        return {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}.get(stat.S_IFMT(mode), "other")

    def about(self, path: str) -> os.stat_result:
        """Of the path itself, not of what a link leads to."""
        return os.lstat(self._here(path))

    def names(self, path: str) -> tuple[str, ...]:
        """What a folder holds, () if it is absent."""
        try:
            return tuple(sorted(os.listdir(self._at(self.real(path)))))  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError):
            return ()

    def file(self, path: str) -> FileNow | None:
        """A file, through links; None if there is none."""
        at = self._at(self.real(path))
        try:
            fd = os.open(at, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with os.fdopen(fd, "rb") as file:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            data = file.read(FILE_MAX_B + 1)
            if len(data) > FILE_MAX_B:
                raise OSError(errno.EFBIG, "file too large", path)
            xattrs = tuple((name, os.getxattr(fd, name)) for name in _xattr_names(fd))
        return FileNow(data, stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid, xattrs, about.st_mtime)

    def sysfs(self, path: str) -> str:
        """A file of the kernel under /sys or /proc, without the blanks around it."""
        if not path.startswith(("/sys/", "/proc/")):
            raise OSError(errno.EINVAL, "not a file of the kernel", path)
        with open(self._at(path), "rb") as file:  # noqa: PTH123
            return file.read(1 << 20).decode("utf-8", "replace").strip()

    def boot_id(self) -> str:
        """Of the boot that runs now, "" if it cannot be read."""
        try:
            return self.sysfs("/proc/sys/kernel/random/boot_id")
        except OSError:
            return ""

    def _function(self, bdf: str) -> str:
        if not _BDF.fullmatch(bdf):
            raise OSError(errno.EINVAL, "not a PCI address", bdf)
        return self._at(f"/sys/bus/pci/devices/{bdf}")

    def config(self, bdf: str) -> bytes:
        """Configuration space: 4096 bytes, 256 without extended space, 64 without CAP_SYS_ADMIN."""
        with open(self._function(bdf) + "/config", "rb", buffering=0) as file:  # noqa: PTH123
            data = b""
            while len(data) < CONFIG_B and (more := file.read(CONFIG_B - len(data))):
                data += more
            return data

    def identity(self, bdf: str) -> str:
        """`8086:3420 pci0000:00/0000:00:1c.0`: what answers at the address, and its place."""
        config = self.config(bdf)
        vendor, device = (int.from_bytes(config[at : at + 2], "little") for at in (0, 2))
        devices = os.path.realpath(self._sys) + "/devices/"
        place = os.path.realpath(self._function(bdf))
        return f"{vendor:04x}:{device:04x} {place[len(devices) :] if place.startswith(devices) else ''}"

    # ------------------------------------------------------------ changing

    def write_word(self, bdf: str, offset: int, word: int) -> None:
        """16 bits of configuration space, in one access."""
        path = self._function(bdf) + "/config"

        def put() -> None:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if os.pwrite(fd, word.to_bytes(2, "little"), offset) != 2:
                    raise OSError(errno.EIO, "the kernel did not take the word", path)
            finally:
                os.close(fd)

        self._do("config", f"{bdf} {offset:#x}", put)

    def write_sysfs(self, path: str, text: str) -> None:
        if not path.startswith("/sys/"):
            raise OSError(errno.EINVAL, "not a file below /sys", path)

        def put() -> None:
            fd = os.open(self._at(path), os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode() + b"\n")
            finally:
                os.close(fd)

        self._do("sysfs", path, put)

    def run(self, argv: tuple[str, ...], deadline_s: float) -> proc.Done:
        """A program, and what it wrote is on the disk when this returns. In another root there is none, unless one was given to us."""
        if self.root and self._program is proc.run:
            return proc.Done(None, "absent")
        done: list[proc.Done] = []
        live = self._program is proc.run

        def act() -> None:
            done.append(proc.run(argv, deadline_s=deadline_s, env=_MARK) if live else self._program(argv, deadline_s=deadline_s))

        self._do("run", " ".join(argv), act)
        if done[0].out is not None:
            self._do("sync", "/", os.sync)
        return done[0]

    def end_programs(self) -> None:
        """Programs that outlived a process of ours that was killed: they would write on while we put things back."""
        if self._program is proc.run and not self.root:
            proc.sweep(_MARK[proc.MARK])

    def replace_file(self, path: str, data: bytes, like: FileNow | None = None) -> None:
        """New bytes for the file that `path` leads to, or a new file. Mode, owner and xattrs are those of `like`."""
        path = self.real(path)
        temp = temp_of(path)
        if self.kind(temp):
            self._unlink(temp)
        try:
            self._create(temp, data)
            self._do("attributes", temp, lambda: _attributes(self._at(temp), like))
            self.fsync(temp)
            self._do("rename", path, lambda: os.replace(self._at(temp), self._at(path)))  # noqa: PTH105
        except OSError:
            with suppress(OSError):
                self._unlink(temp)
            raise
        self.fsync_folder(path)

    def _create(self, path: str, data: bytes) -> None:
        def put(size: int) -> None:
            fd = os.open(self._here(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data[:size])

        self._do("create", path, lambda: put(len(data)), lambda: put(len(data) // 2))

    def append(self, path: str, data: bytes) -> None:
        """To a file of our own; on disk only after `fsync`."""

        def put(size: int) -> None:
            fd = os.open(self._here(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data[:size])

        self._do("append", path, lambda: put(len(data)), lambda: put(len(data) // 2))

    def truncate(self, path: str, size_B: int) -> None:
        self._do("truncate", path, lambda: os.truncate(self._here(path), size_B))

    def fsync(self, path: str) -> None:
        def put() -> None:
            with _opened(self._at(self.real(path))) as fd:
                os.fsync(fd)

        self._do("fsync", path, put)

    def fsync_folder(self, path: str) -> None:
        """The folder that `path` stands in: its names are on disk then."""
        self.fsync(str(PurePosixPath(path).parent))

    def _unlink(self, path: str) -> None:
        self._do("unlink", path, lambda: os.unlink(self._here(path)))  # noqa: PTH108

    def unlink(self, path: str) -> None:
        """A file or a link itself, gone from the disk when this returns."""
        self._unlink(path)
        self.fsync_folder(path)

    def symlink(self, path: str, target: str) -> None:
        """A new link; FileExistsError if there is something."""
        self._do("symlink", path, lambda: os.symlink(target, self._here(path)))  # noqa: PTH211
        self.fsync_folder(path)

    def replace_link(self, path: str, target: str) -> None:
        """A link where there is one already, or nothing; at no moment is there none."""
        temp = temp_of(path)
        if self.kind(temp):
            self._unlink(temp)
        self._do("symlink", temp, lambda: os.symlink(target, self._here(temp)))  # noqa: PTH211
        self.rename(temp, path)

    def rename(self, path: str, new: str) -> None:
        """Within one folder; what stands at `new` is gone."""
        self._do("rename", new, lambda: os.replace(self._here(path), self._here(new)))  # noqa: PTH105
        self.fsync_folder(new)

    def open_lock(self, path: str) -> int:
        """A descriptor of our lock file, made if it is not there."""
        fds: list[int] = []
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._do("lock file", path, lambda: fds.append(os.open(self._here(path), flags, 0o600)))
        return fds[0]

    def hard_link(self, path: str, new: str) -> None:
        self._do("hard link", new, lambda: os.link(self._here(path), self._here(new), follow_symlinks=False))
        self.fsync_folder(new)

    def make_folder(self, path: str, mode: int = 0o755) -> None:
        def put() -> None:
            os.mkdir(self._here(path), mode)  # noqa: PTH102
            os.chmod(self._here(path), mode)  # noqa: PTH101  whatever the umask

        self._do("mkdir", path, put)
        self.fsync_folder(path)

    def folder_attributes(self, path: str, like: FileNow) -> None:
        """Mode and owner of a folder that stands."""
        self._do("attributes", path, lambda: _attributes(self._here(path), like))
        self.fsync(path)

    def remove_folder(self, path: str) -> None:
        """OSError if it holds anything."""
        self._do("rmdir", path, lambda: os.rmdir(self._here(path)))  # noqa: PTH106
        self.fsync_folder(path)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _xattr_names(fd: int) -> list[str]:
    try:
        return sorted(set(os.listxattr(fd)) - set(_OF_CONTENT))
    except OSError as e:
        if e.errno in (errno.ENOTSUP, errno.ENOSYS):
            return []
        raise


def _attributes(path: str, like: FileNow | None) -> None:
    """Only what is not so by itself is set: a FAT file system can set none of it, and needs none of it."""
    with _opened(path) as fd:
        about = os.fstat(fd)
        if like is not None:
            if (about.st_uid, about.st_gid) != (like.uid, like.gid):
                os.fchown(fd, like.uid, like.gid)
            has = {name: os.getxattr(fd, name) for name in _xattr_names(fd)}
            for name, value in like.xattrs:
                if has.get(name) != value:
                    os.setxattr(fd, name, value)
        mode = 0o644 if like is None else like.mode
        if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
            try:
                os.fchmod(fd, mode)
            except PermissionError:  # a new file on FAT: the mode of the mount stands
                if like is not None:
                    raise
