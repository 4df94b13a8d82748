"""Runs inside the guest: what the programs there share. A disk in place of /etc, /boot and /var, modules, registers, a report to the host."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
import traceback
import zlib
from base64 import encodebytes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from kernel.guest import BEGIN, END
from kernel.peer import DEVICES

FOLDERS = ("etc", "boot", "var")
MODULES = Path("/modules")


def load(*names: str) -> None:
    """Modules with what they need; those that are built in are not there."""
    for path in sorted(MODULES.iterdir() if MODULES.exists() else ()):
        name = path.stem.partition("-")[2]
        if (name in names or not names) and not (Path("/sys/module") / name.replace("-", "_")).exists():
            subprocess.run(["insmod", str(path)], check=True, stdout=sys.stderr)


def mount(disk: str) -> None:
    """The disk's folders take the place of the guest's own."""
    subprocess.run(["mount", "-t", "ext4", disk, "/disk"], check=True)
    for folder in FOLDERS:
        subprocess.run(["mount", "--bind", f"/disk/{folder}", f"/{folder}"], check=True)


def unmount() -> None:
    for folder in (*FOLDERS, "disk"):
        subprocess.run(["umount", f"/{folder}"], check=True)


def registers() -> dict[str, bytes]:
    """The whole configuration space of every function, read by the kernel's own file and none of linkproof's code."""
    return {path.name: (path / "config").read_bytes() for path in sorted(DEVICES.iterdir())}


def registers_of(bdf: str) -> bytes:
    return (DEVICES / bdf / "config").read_bytes()


def differences(before: dict[str, bytes], after: dict[str, bytes]) -> dict[str, list[str]]:
    """Function -> its 16-bit words that are not as they were, `0x14e 001d -> 0011`."""
    out: dict[str, list[str]] = {}
    for bdf in {**before, **after}:
        a, b = before.get(bdf, b""), after.get(bdf, b"")
        words = [
            (at, int.from_bytes(a[at : at + 2], "little"), int.from_bytes(b[at : at + 2], "little"))
            for at in range(0, max(len(a), len(b)), 2)
        ]
        if changed := [f"{at:#x} {old:04x} -> {new:04x}" for at, old, new in words if old != new]:
            out[bdf] = changed
        if len(a) != len(b):
            out.setdefault(bdf, []).append(f"{len(a)} bytes -> {len(b)}")
    return out


def lspci() -> str:
    argv = ["lspci", "-D", "-nn", "-vvv"]
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout


def group_type(bdf: str) -> str:
    path = DEVICES / bdf / "iommu_group/type"
    return path.read_text().strip() if path.exists() else ""


def dmesg() -> str:
    return subprocess.run(["dmesg"], stdout=subprocess.PIPE, text=True, check=True).stdout


def files() -> dict[str, tuple[bytes, int, int, int, float]]:
    """Every file and link of the disk's folders: bytes, mode, owner, group, time of change. Links: where they lead."""
    out = {}
    for folder in FOLDERS:
        for path in sorted(Path("/", folder).rglob("*")):
            stat = path.lstat()
            content = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
            out[str(path)] = (content, stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime)
    return out


def disks() -> list[str]:
    """Those of the one NVMe controller, in the host's order."""
    found = sorted(
        (int((path / "nsid").read_text()), f"/dev/{path.name}") for path in Path("/sys/block").glob("nvme*n*") if (path / "nsid").exists()
    )
    return [device for _, device in found]


def word_from_host() -> str:
    """Say that all is ready, and wait until the second disk holds a word. Nothing is on its way to a disk meanwhile."""
    os.sync()
    print("READY", flush=True)
    page = mmap.mmap(-1, 4096)
    while not page[0]:
        time.sleep(0.01)
        fd = os.open("/dev/vdb", os.O_RDONLY | os.O_DIRECT)
        try:
            os.readv(fd, [page])
        finally:
            os.close(fd)
    return page[:].partition(b"\n")[0].decode()


def report(jobs: Mapping[str, Callable[[], Any]]) -> None:
    """Does what TEST_JOB names, and prints what came of it."""
    try:
        said = jobs[os.environ["TEST_JOB"]]()
    except BaseException:
        Path("/dev/console").write_text(traceback.format_exc())
        raise
    finally:
        os.sync()
    packed = encodebytes(zlib.compress(msgspec.json.encode(said))).decode()
    print(f"{BEGIN}\n{packed}{END}", flush=True)
