"""A Linux kernel to boot: one that was named, one from the cache, one from the distribution's archive, or this machine's own.

In:      LINKPROOF_TEST_KERNEL (path of a vmlinuz), the cache folder, the sources that apt already knows.
Out:     Kernel, and those of MODULES that it does not have built in: from its package, or from /lib/modules. Packages are downloaded and
         unpacked into the cache; nothing is installed, apt's own lists stay as they are.
Raises:  Missing, with what to do.
Source:  apt-get(8), deb(5).
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from kernel.initramfs import Missing

# an own kernel for virtual machines comes first: small, and what the guest needs is built in
PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual", "linux-image-generic", "linux-image-amd64")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ENOUGH = (6, 12, 23)  # `pci=config_acs=` for more than one device works from here on
# what the guest needs beyond a bare kernel, each after those that it needs itself: a disk with ext4, and vfio-pci
MODULES = (
    "crc16",
    "libcrc32c",
    "mbcache",
    "jbd2",
    "ext4",
    "virtio_blk",
    "irqbypass",
    "vfio",
    "vfio_iommu_type1",
    "vfio-pci-core",
    "vfio-pci",
)


class Kernel(NamedTuple):
    path: Path
    version: tuple[int, ...]

    @property
    def release(self) -> str:
        return self.path.name.removeprefix("vmlinuz-")

    def modules(self) -> dict[str, bytes]:
        """Those of MODULES that are not built in, by name, unpacked."""
        out: dict[str, bytes] = {}
        for folder in (self.path.parent / f"modules-{self.release}", Path("/lib/modules") / self.release):
            for path in sorted(folder.rglob("*.ko*")):
                name = path.name.partition(".ko")[0]
                if name in MODULES and name not in out:
                    out[name] = _plain(path)
        return {name: out[name] for name in MODULES if name in out}


def _plain(path: Path) -> bytes:
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dcq", str(path)], capture_output=True, check=True).stdout
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else gzip.decompress(data) if path.suffix == ".gz" else data


def _kernel(path: Path) -> Kernel:
    found = re.search(r"vmlinuz-(\d+)\.(\d+)\.(\d+)", path.name)
    return Kernel(path, tuple(int(part) for part in found.groups()) if found else (0, 0, 0))


def _cached(cache: Path) -> list[Kernel]:
    return [_kernel(path) for path in cache.glob("vmlinuz-*")]


def kernel(cache: Path) -> Kernel:
    """The kernel to boot. Raises Missing."""
    if named := os.environ.get("LINKPROOF_TEST_KERNEL"):
        if not os.access(named, os.R_OK):
            raise Missing(f"LINKPROOF_TEST_KERNEL={named} cannot be read")
        return _kernel(Path(named).resolve())
    have = _cached(cache)
    if not any((cache / f"modules-{k.release}").exists() for k in have):  # none, or one from before its modules were kept
        why = _download(cache)
        own = [path for path in Path("/boot").glob("vmlinuz-[0-9]*") if os.access(path, os.R_OK)]
        have = _cached(cache) or [_kernel(path) for path in own]
        if not have:
            remedy = f"`apt-get update && apt-get download {PACKAGES[0]}` must work, or set LINKPROOF_TEST_KERNEL=/path/to/vmlinuz"
            raise Missing(f"no kernel to boot ({why}): {remedy}")
    return max(have, key=lambda k: k.version)


class _Apt:
    """apt with lists of its own. sources: None for those of this machine."""

    def __init__(self, state: Path, sources: str | None = None) -> None:
        (state / "lists/partial").mkdir(parents=True)
        (state / "cache/archives/partial").mkdir(parents=True)
        (state / "parts").mkdir()
        options = {
            "Dir::State::Lists": state / "lists", "Dir::Cache": state / "cache", "APT::Sandbox::User": "", "Acquire::Languages": "none",
            "Acquire::http::Timeout": 15, "Acquire::https::Timeout": 15, "Acquire::Retries": 1, "Debug::NoLocking": "true",
        }  # fmt: skip
        if sources is not None:
            (state / "parts/own.list").write_text(sources)
            options |= {"Dir::Etc::SourceList": "/dev/null", "Dir::Etc::SourceParts": state / "parts"}
        self._options = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]

        self("apt-get", "-qq", "update", check=False)  # one source that fails need not be the one with the kernel

    def __call__(self, command: str, *args: str, cwd: Path | None = None, check: bool = True) -> str:
        argv, environment = [command, *self._options, *args], {**os.environ, "LC_ALL": "C"}
        return subprocess.run(argv, capture_output=True, text=True, cwd=cwd, timeout=240, check=check, env=environment).stdout


def _newest(apt: _Apt) -> tuple[str, tuple[int, ...]]:
    """Name of the package that holds the kernel itself, and its version."""
    for package in PACKAGES:
        try:
            depends = apt("apt-cache", "depends", package)
        except subprocess.CalledProcessError:
            continue
        if found := re.search(r"Depends: (linux-image-(?:unsigned-)?(\d+)\.(\d+)\.(\d+)\S*)", depends):
            return found[1], tuple(int(part) for part in found.groups()[1:])
    return "", (0, 0, 0)


def _download(cache: Path) -> str:
    """Puts a vmlinuz and its modules into the cache, or says why not."""
    with tempfile.TemporaryDirectory(dir=cache) as name:
        try:
            apt = _Apt(Path(name) / "own")
            package, version = _newest(apt)
            if version < ENOUGH and KEYRING.exists() and (line := _backports(apt)):
                newer = _Apt(Path(name) / "backports", line)
                if _newest(newer)[1] > version:
                    apt, package = newer, _newest(newer)[0]
            if not package:
                return f"apt finds none of {', '.join(PACKAGES)}; no network?"
            apt("apt-get", "-q", "download", package, cwd=Path(name))
            return _unpack(next(Path(name).glob("*.deb")), cache)
        except FileNotFoundError as e:
            return f"{e.filename} is not here"
        except subprocess.TimeoutExpired:
            return "apt took too long"
        except subprocess.CalledProcessError as e:
            return " ".join(str(e.stderr).split())[:300] or "apt failed"


def _backports(apt: _Apt) -> str:
    """The line for a Debian release's backports, at the place where the release itself comes from."""
    listed = apt("apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)", "Created-By: Packages")
    main = re.search(r"^Debian ([a-z]+) main (\S+)$", listed, re.M)
    return f"deb [signed-by={KEYRING}] {main[2]} {main[1]}-backports main\n" if main else ""


def _unpack(package: Path, cache: Path) -> str:
    """The kernel comes last: where it is, its modules are."""
    image: tuple[str, bytes] | None = None
    modules: dict[str, bytes] = {}
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as unpacking:
        assert unpacking.stdout is not None
        with tarfile.open(fileobj=unpacking.stdout, mode="r|") as tar:
            for member in tar:
                name = Path(member.name).name
                wanted = name.startswith("vmlinuz-") or (".ko" in name and name.partition(".ko")[0] in MODULES)
                if wanted and (data := tar.extractfile(member)):
                    if name.startswith("vmlinuz-"):
                        image = (name, data.read())
                    else:
                        modules[name] = data.read()
    if image is None:
        return "the package holds no kernel"
    folder = cache / f"modules-{_kernel(Path(image[0])).release}"
    folder.mkdir(exist_ok=True)
    for name, content in {**modules, f"../{image[0]}": image[1]}.items():
        new = cache / f"new-{os.getpid()}"
        new.write_bytes(content)
        new.replace(folder / name)
    return ""
