"""A disk that outlives the guest: an ext4 image made from files, read again without being mounted, and its contents after a power cut.

QEMU keeps a log of what the guest wrote and flushed (block driver `blklogwrites`). A killed QEMU loses nothing that it had been given: the
host's page cache holds it. A disk with a cache of its own, whose power goes, loses what was not flushed. `after_power_cut` makes that
disk: what it held before, and the writes up to the last flush, none of those after. Both images are possible outcomes of one cut, the two
ends of what can happen; a disk that kept some of the later writes, or half of one, lies between them and is not shown.

In:      files by name; a log as `blklogwrites` writes it.
Out:     an image; bytes of a file on it, None if it is not there.
Raises:  Missing if mke2fs or debugfs is not here.
Source:  mke2fs(8), debugfs(8); Linux `Documentation/admin-guide/device-mapper/log-writes.rst` and QEMU `block/blklogwrites.c` for the log.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

from kernel.initramfs import INSTALL, Missing

SIZE = "16M"
SECTOR_B = 512
_MAGIC = 0x6A736677736872
_FLUSH, _DISCARD = 1, 4


def _tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise Missing(f"{name} not found: {INSTALL}")
    return found


def tools() -> None:
    """Raises Missing."""
    for name in ("mke2fs", "debugfs"):
        _tool(name)


def make(image: Path, files: dict[str, bytes]) -> Path:
    """An ext4 image with these files, in folders etc, boot and var at least."""
    with tempfile.TemporaryDirectory() as name:
        for folder in ("etc", "boot", "var"):
            (Path(name) / folder).mkdir()
        for inside, content in files.items():
            path = Path(name) / inside
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o644)
        image.unlink(missing_ok=True)
        argv = [
            _tool("mke2fs"),
            "-q",
            "-t",
            "ext4",
            "-b",
            "1024",
            "-J",
            "size=1",
            "-E",
            "root_owner=0:0",
            "-d",
            name,
            "-F",
            str(image),
            SIZE,
        ]
        subprocess.run(argv, capture_output=True, check=True)
    return image


def read(image: Path, path: str) -> bytes | None:
    """A file of an image whose guest has ended in order (the journal is not replayed here)."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        subprocess.run([_tool("debugfs"), "-R", f"dump {path} {out}", str(image)], capture_output=True, check=True)
        return out.read_bytes() if out.exists() else None


def after_power_cut(before: Path, log: Path, image: Path) -> int:
    """Writes `image`: what the disk surely holds if it loses what was not flushed. Returns how many writes were lost.

    before: the disk as it was when the guest began to write. The log's last entry may be half written: QEMU was killed.
    """
    shutil.copyfile(before, image)
    data = log.read_bytes()
    if not data:
        return 0
    magic, version, entries, sector_B = struct.unpack_from("<QQQI", data)
    assert (magic, version) == (_MAGIC, 1), "not a log of blklogwrites"
    waiting: list[tuple[int, bytes]] = []
    at = sector_B
    with image.open("r+b") as out:
        for _ in range(entries):
            if at + sector_B > len(data):
                break
            sector, count, flags, _ = struct.unpack_from("<QQQQ", data, at)
            at += sector_B
            size_B = 0 if flags & _DISCARD else count * SECTOR_B
            body = data[at : at + size_B]
            at += size_B + -size_B % sector_B
            if flags & _FLUSH:  # it is for those before it
                for place, content in waiting:
                    out.seek(place)
                    out.write(content)
                waiting = []
            if flags & _DISCARD:
                body = bytes(count * SECTOR_B)
            if body:
                waiting.append((sector * SECTOR_B, body))
    return len(waiting)
