"""The machine of the tests, and how it is booted.

In:      arguments for the kernel's command line; a Machine: its devices, its disks, whether it has an IOMMU.
Out:     Booted: what the guest reported, its console, how long it took. Or a guest whose power was cut at a mark that it printed.
Raises:  Missing (something is not installed; the words are the line to type), BootFailed.
Source:  QEMU `docs/pcie.txt`, `docs/pcie_expander_bridge.txt`.

Two host bridges. Ports that have ACS are QEMU's `pcie-root-port`, also below the switch, because its switch ports have none:

    pci0000:00  00:1c.0 port ─ 01:00.0 switch ┬ 02:00.0 switch port, no ACS ─ 03:00.0 GPU
                                              ├ 02:01.0 port, ACS ─ 04:00.0 GPU
                                              ├ 02:02.0 port, ACS ─ 05:00.0 GPU
                                              ├ 02:03.0 port, ACS ─ 06:00.0 NIC
                                              └ 02:04.0 switch port ─ 07:00.0 switch ─ 08:00.0 port, ACS ─ 09:00.0 GPU
                00:1c.1 port ─ 0a:00.0 GPU
                00:1c.2 port ─ 0b:00.0 NIC
    pci0000:80  80:00.0 port ─ 81:00.0 GPU, in NUMA node 1

WITH_ENGINES is the same, but the GPUs 04:00, 05:00 and 0a:00 have a second function, `edu`, QEMU's teaching device: an engine that copies
from one address to another. It stands in for the GPU's copy engine; as functions of one card the two share an IOMMU group.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import zlib
from base64 import decodebytes
from pathlib import Path
from shlex import quote
from typing import Any

import msgspec
from msgspec import Struct

import linkproof
from kernel.debian import Kernel, kernel
from kernel.guest import BEGIN, END, Report
from kernel.initramfs import QEMU, base, cpio, python_files, site

# QEMU 7.2 without KVM gets cmpxchg16b wrong, and Linux then dies at random; the others are slow to start and of no use here
CPU = "Haswell-noTSX,-cx16,-pcid,-x2apic,-tsc-deadline,-invpcid"
LIMIT_S = 90
DONE = "GUEST-DONE"
READY, CUT, END_OF_WORK = "READY", "CUT", "END"  # lines that a guest prints before its power goes
WORD_B = 4096
SLOT = 3  # of the disks

ACS_PORTS = ("0000:00:1c.0", "0000:00:1c.1", "0000:00:1c.2", "0000:02:01.0", "0000:02:02.0", "0000:02:03.0", "0000:08:00.0", "0000:80:00.0")
PLAIN_PORTS = ("0000:02:00.0", "0000:02:04.0")
GPUS = ("0000:03:00.0", "0000:04:00.0", "0000:05:00.0", "0000:09:00.0", "0000:0a:00.0", "0000:81:00.0")
NICS = ("0000:06:00.0", "0000:0b:00.0")

DEVICES = (
    "pxb-pcie,id=far,bus=pcie.0,bus_nr=128,numa_node=1",
    "pcie-root-port,id=r0,chassis=1,slot=1,bus=pcie.0,addr=1c.0,multifunction=on",
    "pcie-root-port,id=r1,chassis=1,slot=2,bus=pcie.0,addr=1c.1",
    "pcie-root-port,id=r2,chassis=1,slot=3,bus=pcie.0,addr=1c.2",
    "pcie-root-port,id=r3,chassis=1,slot=4,bus=far,addr=0.0",
    "x3130-upstream,id=up,bus=r0",
    "xio3130-downstream,id=d0,bus=up,chassis=2,slot=1,addr=0.0",
    "pcie-root-port,id=d1,bus=up,chassis=2,slot=2,addr=1.0",
    "pcie-root-port,id=d2,bus=up,chassis=2,slot=3,addr=2.0",
    "pcie-root-port,id=d3,bus=up,chassis=2,slot=4,addr=3.0",
    "xio3130-downstream,id=d4,bus=up,chassis=2,slot=5,addr=4.0",
    "x3130-upstream,id=up2,bus=d4",
    "pcie-root-port,id=d5,bus=up2,chassis=3,slot=1,addr=0.0",
    *(f"bochs-display,romfile=,bus={port}" for port in ("d0", "d1", "d2", "d5", "r1", "r3")),
    *(f"e1000e,romfile=,bus={port}" for port in ("d3", "r2")),
)

ENGINES = {"d1": "0000:04:00.0", "d2": "0000:05:00.0", "r1": "0000:0a:00.0"}  # bus -> the GPU with a copy engine
WITH_ENGINES = (
    *(f"{d},multifunction=on" if d.startswith("bochs") and d.rpartition("=")[2] in ENGINES else d for d in DEVICES),
    *(f"edu,bus={port},addr=0.1,dma_mask=0xffffffffffffffff" for port in ENGINES),
)

INIT = f"""#!/bin/sh
export PATH=/bin LD_LIBRARY_PATH=/lib HOME=/tmp PYTHONHOME=/py PYTHONPATH=/site PYTHONUTF8=1 PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t securityfs securityfs /sys/kernel/security
/py/bin/python3 -S /site/kernel/${{TEST_PROGRAM:-guest}}.pyc > /dev/ttyS1
echo "{DONE} $?"
poweroff -f
"""


class BootFailed(Exception):
    """The guest did not say what it was booted for; the words end with the last lines of its console."""


def _tail(console: str) -> str:
    return "\n".join(console.splitlines()[-40:])


def _text(path: Path) -> str:
    return path.read_text("utf-8", "replace").replace("\r", "") if path.exists() else ""


def _why(console: Path) -> str:
    """The last that QEMU and the guest said."""
    return f"{_tail(_text(console.with_suffix('.qemu')))}\n{_tail(_text(console))}"


def _wait(qemu: subprocess.Popen[Any], said: Path, *marks: str) -> bool:
    """Until the guest has printed a line that begins with a mark; False if QEMU ended, or it took too long."""
    end = time.monotonic() + LIMIT_S
    while qemu.poll() is None and time.monotonic() < end:
        if any(re.search(rf"^{mark}\b.*\n", _text(said), re.M) for mark in marks):
            return True
        time.sleep(0.02)
    return False


def _migrate(qemu: subprocess.Popen[str], to: str) -> None:
    """QMP: write the whole state out. Raises BootFailed."""
    assert qemu.stdin is not None and qemu.stdout is not None

    def ask(command: str, **arguments: object) -> dict[str, Any]:
        assert qemu.stdin is not None and qemu.stdout is not None
        qemu.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        qemu.stdin.flush()
        while line := qemu.stdout.readline():
            answer: dict[str, Any] = json.loads(line)
            if "return" in answer or "error" in answer:
                return answer
        raise BootFailed("QEMU ended while its state was written")

    ask("qmp_capabilities")
    ask("migrate-set-parameters", **{"max-bandwidth": 10**10})
    ask("migrate", uri=to)
    while (status := ask("query-migrate")["return"].get("status")) != "completed":
        if status in ("failed", "cancelled"):
            raise BootFailed(f"QEMU could not write its state: {status}")
        time.sleep(0.02)


class Drive(Struct):
    """A disk of the machine. log: where QEMU notes what was written and flushed."""

    image: Path
    log: Path | None = None


class Machine(Struct):
    """bare: it does not say that it is virtual, neither by the processor's flags nor by the board's maker.

    many: its disks are namespaces of one NVMe controller, so that any number of them adds one function to the machine and one IOMMU group,
    as two disks of virtio do: Linux counts the groups, and another count would move the numbers of all.
    """

    devices: tuple[str, ...] = DEVICES
    iommu: bool = True
    drives: tuple[Drive, ...] = ()
    bare: bool = True
    many: bool = False


class Frozen(Struct):
    """A guest that stands still. disk: as it was at that moment."""

    name: str
    args: str
    devices: tuple[str, ...]
    iommu: bool
    state: Path
    disk: Path


class Cut(Struct):
    """What is left of a guest that was killed. before, log: for `disk.after_power_cut`."""

    image: Path
    log: Path
    before: Path
    said: str


class Booted(Struct):
    report: Report
    console: str
    took_s: float
    tries: int


class Said(Struct):
    """What a program in the guest reported, as JSON."""

    body: bytes
    console: str
    took_s: float
    tries: int


class Lab:
    """What every boot shares: the kernel and the guest's files. Raises Missing."""

    def __init__(self, work: Path) -> None:
        self.work = work
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "linkproof-tests"
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError:
            cache = work
        files = base(cache)
        self.kernel: Kernel = kernel(cache)
        self.initrd = work / "initrd.cpio"  # archives one behind the other are unpacked one over the other
        product = Path(linkproof.__file__).parent
        own = python_files(product, "site/linkproof") | python_files(Path(__file__).parent, "site/kernel")
        own |= {f"site/linkproof/{path.relative_to(product)}": path for kind in ("md", "json") for path in product.rglob(f"*.{kind}")}
        own |= {f"modules/{number:02}-{name}.ko": data for number, (name, data) in enumerate(self.kernel.modules().items())}
        own |= dict.fromkeys(("disk", "etc", "boot", "var"))
        own |= site(Path(__file__).parent / "stand_in_site.py")
        with self.initrd.open("wb") as out, files.open("rb") as common:
            shutil.copyfileobj(common, out)
            out.write(cpio({**own, "init": INIT.encode()}))

    def boot(self, name: str, args: str, *, iommu: bool = True) -> Booted:
        """Boot, wait for the end, read what the guest said. Raises BootFailed."""
        said = self.run(name, args, Machine(iommu=iommu, bare=False))
        return Booted(msgspec.json.decode(said.body, type=Report), said.console, said.took_s, said.tries)

    def run(self, name: str, args: str, machine: Machine) -> Said:
        """Once more, with the disks as they were, if the kernel died or hung. Raises BootFailed."""
        kept = [drive.image.read_bytes() for drive in machine.drives]
        console = ""
        for tries in (1, 2):
            t0 = time.monotonic()
            console, said = self._once(f"{name}-{tries}", args, machine)
            if DONE not in console or "Kernel panic" in console:
                for drive, content in zip(machine.drives, kept, strict=True):
                    drive.image.write_bytes(content)
                continue
            body, end = said.partition(BEGIN)[2].partition(END)[:2]
            if not end:
                raise BootFailed(f"{name}: the program in the guest failed\n{_tail(console)}")
            return Said(zlib.decompress(decodebytes(body.encode())), console, time.monotonic() - t0, tries)
        raise BootFailed(f"{name}: the kernel died, or did not end within {LIMIT_S} s, twice\n{_tail(console)}")

    def freeze(self, name: str, args: str, machine: Machine) -> Frozen:
        """Boot until the guest says READY, and keep it as it stands then: memory, devices, disk. Raises BootFailed.

        The machine gets a second disk, on which `thaw` gives the guest a word. QEMU keeps no state of `edu`: such a machine must have none.
        """
        frozen = Frozen(name, args, machine.devices, machine.iommu, self.work / f"{name}.state", self.work / f"{name}.frozen")
        disk, word = machine.drives[0].image, self.work / f"{name}.word"
        kept = disk.read_bytes()
        for tries in (1, 2):
            disk.write_bytes(kept)
            word.write_bytes(bytes(WORD_B))
            console, said = self.work / f"{name}-{tries}.console", self.work / f"{name}-{tries}.said"
            whole = Machine(machine.devices, machine.iommu, (Drive(disk), Drive(word)))
            argv = [*self._argv(console, said, args, whole), "-qmp", "stdio"]
            with (
                console.with_suffix(".qemu").open("wb") as errors,
                subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as qemu,
            ):
                try:
                    if _wait(qemu, said, READY):
                        _migrate(qemu, f"exec:cat > {quote(str(frozen.state))}")
                        shutil.copyfile(disk, frozen.disk)
                        return frozen
                finally:
                    qemu.kill()
        raise BootFailed(f"{name}: it did not come to {READY} within {LIMIT_S} s, twice\n{_why(console)}")

    def thaw(self, frozen: Frozen, word: str) -> Cut:
        """Let the guest go on with this word, and kill QEMU when it has printed CUT or END. Raises BootFailed if it prints neither."""
        name = f"{frozen.name}-{word.replace(' ', '-')}"
        image, log, given = (self.work / f"{name}.{kind}" for kind in ("disk", "log", "word"))
        console, said = self.work / f"{name}.console", self.work / f"{name}.said"
        for _ in range(2):
            shutil.copyfile(frozen.disk, image)
            given.write_bytes(f"{word}\n".encode().ljust(WORD_B, b"\0"))
            machine = Machine(frozen.devices, frozen.iommu, (Drive(image, log), Drive(given)))
            argv = [*self._argv(console, said, frozen.args, machine), "-incoming", f"exec:cat {quote(str(frozen.state))}"]
            said.unlink(missing_ok=True)
            with (
                console.with_suffix(".qemu").open("wb") as errors,
                subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=errors) as qemu,
            ):
                try:
                    if _wait(qemu, said, CUT, END_OF_WORK):
                        return Cut(image, log, frozen.disk, _text(said))
                finally:
                    qemu.kill()
        raise BootFailed(f"{name}: neither {CUT} nor {END_OF_WORK} within {LIMIT_S} s, twice\n{_text(said)}\n{_why(console)}")

    def _argv(self, console: Path, said: Path, args: str, machine: Machine) -> list[str]:
        cpu = f"{CPU},-hypervisor" if machine.bare else CPU
        argv = f"{QEMU} -machine q35,accel=tcg -cpu {cpu} -smp 1 -m 512 -nodefaults -no-user-config -no-reboot -display none -monitor none".split()
        for node in (0, 1):
            argv += ["-object", f"memory-backend-ram,id=m{node},size=256M", "-numa", f"node,nodeid={node},memdev=m{node}"]
        argv += ["-numa", "cpu,node-id=0,socket-id=0"]
        if machine.bare:
            argv += ["-smbios", "type=1,manufacturer=Test,product=Board", "-smbios", "type=2,manufacturer=Test,product=Board"]
        for device in (*(["intel-iommu,intremap=off"] if machine.iommu else []), *machine.devices):
            argv += ["-device", device]
        argv += ["-device", f"nvme,id=many,serial=many,bus=pcie.0,addr={SLOT}"] if machine.many else []
        for number, drive in enumerate(machine.drives):
            argv += ["-blockdev", f"driver=file,node-name=f{number},filename={drive.image},cache.no-flush=on"]
            if drive.log is not None:
                drive.log.write_bytes(b"")
                argv += ["-blockdev", f"driver=file,node-name=l{number},filename={drive.log},cache.no-flush=on"]
                argv += ["-blockdev", f"driver=blklogwrites,node-name=w{number},file=f{number},log=l{number},log-super-update-interval=1"]
            node_name = f"{'f' if drive.log is None else 'w'}{number}"
            virtio = f"virtio-blk-pci,drive={node_name},bus=pcie.0,addr={SLOT}.{number},multifunction=on"
            argv += ["-device", f"nvme-ns,drive={node_name},bus=many,nsid={number + 1}" if machine.many else virtio]
        # without `nokaslr` and the rest a boot takes a second longer
        append = f"console=ttyS0 quiet panic=-1 nokaslr mitigations=off audit=0 apparmor=0 random.trust_cpu=on {args}"
        argv += ["-kernel", str(self.kernel.path), "-initrd", str(self.initrd), "-append", append]
        return [*argv, "-serial", f"file:{console}", "-serial", f"file:{said}"]

    def _once(self, name: str, args: str, machine: Machine) -> tuple[str, str]:
        console, said = self.work / f"{name}.console", self.work / f"{name}.said"
        said.unlink(missing_ok=True)
        try:
            argv = self._argv(console, said, args, machine)
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, check=False)
            if done.returncode:
                raise BootFailed(f"QEMU: {done.stderr.strip()[:500]}")
        except subprocess.TimeoutExpired:
            pass
        return console.read_text("utf-8", "replace"), said.read_text("utf-8", "replace")
