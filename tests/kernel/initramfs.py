"""The guest's files, as one cpio archive that the kernel unpacks.

In:      the interpreter that runs this (any CPython >= 3.10 on x86-64 Linux), its stdlib, the packages that linkproof needs, busybox, lspci.
Out:     path of `base-<key>.cpio` in the cache; the key is made of every file's place, size and time, so a change makes a new one.
Raises:  Missing, with what to install.
Source:  Linux `Documentation/driver-api/early-userspace/buffer-format.rst` (newc).
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import marshal
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.machinery import SourceFileLoader
from pathlib import Path

INSTALL = "apt-get install -y --no-install-recommends qemu-system-x86 seabios busybox-static pciutils e2fsprogs"
QEMU = "qemu-system-x86_64"
PROGRAMS = ("busybox", "lspci", "setpci")
APPLETS = ("sh", "mount", "umount", "insmod", "sync", "poweroff", "dmesg", "df", "cat", "ls")
PACKAGES = ("msgspec", "re2", "_re2", "ahocorasick_rs")
# what no small program imports, and what would bring in libraries of its own
LEFT_OUT = re.compile(
    r"(^|/)(site-packages|dist-packages|test|tests|idlelib|lib2to3|tkinter|turtledemo|turtle\.py|ensurepip|distutils|pydoc_data|pydoc\.py|config-.*"
    r"|unittest|xmlrpc|dbm|curses|sqlite3|wsgiref|venv|asyncio|multiprocessing|__phello__|__pycache__|encodings/(cp|mac_|iso|big5|euc|gb|jo|shift|koi).*)(/|$)"
)
MODULES_LEFT_OUT = re.compile(
    r"^(_test|_ctypes_test|xx|_tkinter|_sqlite3|_curses|_ssl|_g?dbm|readline|_codecs_(?!..?$)|nis|ossaudiodev|_asyncio|_remote|_xx|_hashlib)"
)
VENDORS = ("8086", "1b36", "104c", "1234", "10de")  # of the machine's devices; the guest's lspci need not read the other 40,000 lines
KEPT = 4  # archives in the cache: one per interpreter in use

# a file on this machine, bytes, the target of a symbolic link (str), or an empty folder (None)
Content = Path | bytes | str | None


class Missing(Exception):
    """Something that these tests need is not here; the words say how to get it."""


def cpio(files: dict[str, Content]) -> bytes:
    """An archive in newc form; folders are made as they are needed, every file is readable by all, programs are executable."""
    out = bytearray()
    number = 0

    def member(name: str, mode: int, data: bytes) -> None:
        nonlocal number
        number += 1
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out.extend(b"070701" + "".join(f"{field:08x}" for field in fields).encode() + name.encode() + b"\0")
        out.extend(b"\0" * (-len(out) % 4))
        out.extend(data)
        out.extend(b"\0" * (-len(out) % 4))

    made: set[str] = set()
    for name, content in sorted(files.items()):
        for folder in reversed(Path(name).parents[:-1]):
            if str(folder) not in made:
                made.add(str(folder))
                member(str(folder), 0o40755, b"")
        if content is None:
            member(name, 0o41777 if name == "tmp" else 0o40755, b"")
        elif isinstance(content, str):
            member(name, 0o120777, content.encode())
        else:
            member(name, 0o100755, content if isinstance(content, bytes) else _bytes_of(content))
    member("TRAILER!!!", 0, b"")
    return bytes(out)


def _bytes_of(path: Path) -> bytes:
    """A file as it is, but Python source as code: a guest without file times would compile it again at every start."""
    if path.suffix != ".py":
        return path.read_bytes()
    code = SourceFileLoader(path.stem, str(path)).get_code(path.stem)
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


def python_files(folder: Path, at: str) -> dict[str, Content]:
    """The modules below a folder as they will lie in the guest: `x.py` as `x.pyc`, extension modules as they are."""
    out: dict[str, Content] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.suffix in (".py", ".so") and path.is_file() and not LEFT_OUT.search(str(inside)) and not MODULES_LEFT_OUT.match(path.name):
            out[str(Path(at) / (inside.with_suffix(".pyc") if path.suffix == ".py" else inside))] = path
    return out


def site(customized: Path) -> dict[str, Content]:
    """What a Python finds that is started with no environment at all, as by systemd: the same packages, and a `sitecustomize`."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    return {
        f"py/{sys.platlibdir}/{stdlib.name}/site-packages": "/site",
        "site/sitecustomize.pyc": customized,
        "usr/bin/env": "/bin/busybox",
    }


def _package(name: str) -> dict[str, Content]:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return {}
    origin = Path(spec.origin)
    if not spec.submodule_search_locations:
        return {f"site/{origin.name}c" if origin.suffix == ".py" else f"site/{origin.name}": origin}
    beside = origin.parent.parent
    out = python_files(origin.parent, f"site/{name}")
    for libraries in beside.glob(f"{name}*.libs"):  # where a wheel keeps shared libraries of its own
        out |= {f"lib/{path.name}": path for path in libraries.iterdir()}
    return out


def _libraries(binaries: list[Path]) -> dict[str, Content]:
    """The shared libraries of some binaries, all in /lib, and the loader where the binaries look for it."""
    listed = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False).stdout
    out: dict[str, Content] = {f"lib/{name}": Path(path) for name, path in re.findall(r"^\s+(\S+) => (/\S+) \(", listed, re.M)}
    return out | {path.lstrip("/"): Path(path) for path in re.findall(r"^\s+(/\S+) \(", listed, re.M)}


def _pci_ids() -> bytes:
    """The names that lspci prints, of this machine's vendors, and of all classes."""
    for path in map(Path, ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids", "/usr/share/misc/pci.ids.gz")):
        if path.exists():
            text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8", "replace")
            vendors, _, classes = text.partition("\nC ")
            blocks = re.findall(r"^[0-9a-f]{4} .*\n(?:[\t#].*\n)*", vendors, re.M)
            return ("".join(block for block in blocks if block.startswith(VENDORS)) + "C " + classes).encode()
    return b""


def base_files() -> dict[str, Content]:
    """Everything but linkproof itself. Raises Missing."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or platform.python_implementation() != "CPython":
        raise Missing("the guest is x86-64 Linux and runs the tests' own interpreter: this needs CPython on x86-64 Linux")
    found = {name: shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin") for name in (QEMU, *PROGRAMS)}
    absent = [name for name, path in found.items() if path is None]
    if absent:
        raise Missing(f"{', '.join(absent)} not found: {INSTALL}")
    programs = {name: Path(path) for name, path in found.items() if path is not None and name in PROGRAMS}
    if _libraries([programs["busybox"]]):
        raise Missing(f"busybox is not the static one: {INSTALL}")
    interpreter = Path(os.path.realpath(sys.executable))
    stdlib = Path(sysconfig.get_path("stdlib"))
    folder = f"py/{sys.platlibdir}/{stdlib.name}"
    files: dict[str, Content] = {"py/bin/python3": interpreter, **{f"bin/{name}": path for name, path in programs.items()}}
    files |= {f"bin/{applet}": "busybox" for applet in APPLETS}
    files |= python_files(stdlib, folder)
    for module in (path for path in map(Path, sys.path) if path.name == "lib-dynload"):
        files |= python_files(module, f"{folder}/lib-dynload")
    for name in PACKAGES:
        files |= _package(name)
    own = (interpreter, *programs.values())
    binaries = [path for path in files.values() if isinstance(path, Path) and (path.suffix == ".so" or path in own)]
    return files | _libraries(binaries) | {"usr/share/misc/pci.ids": _pci_ids(), **dict.fromkeys(("proc", "sys", "dev", "tmp"))}


def _key(files: dict[str, Content]) -> str:
    key = hashlib.sha256(Path(__file__).read_bytes())
    for name, content in sorted(files.items()):
        if isinstance(content, Path):
            stat = content.stat()
            key.update(f"{name} {content} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        else:
            key.update(f"{name} {content!r}\n".encode())
    return key.hexdigest()[:16]


def base(cache: Path) -> Path:
    """The archive of everything but linkproof, from the cache or new. Raises Missing."""
    files = base_files()
    path = cache / f"base-{_key(files)}.cpio"
    if not path.exists():
        new = path.with_suffix(f".{os.getpid()}")
        new.write_bytes(cpio(files))
        new.replace(path)
        for old in sorted(cache.glob("base-*.cpio"), key=lambda p: -p.stat().st_mtime)[KEPT:]:
            old.unlink(missing_ok=True)
    return path
