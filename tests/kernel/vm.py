"""The machine of the tests, and how it is booted.

In:      arguments for the kernel's command line; whether the machine has an IOMMU.
Out:     Booted: what the guest reported, its console, how long it took.
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
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import zlib
from base64 import decodebytes
from pathlib import Path

import msgspec
from msgspec import Struct

import linkproof
from kernel.debian import Kernel, kernel
from kernel.guest import BEGIN, END, Report
from kernel.initramfs import QEMU, base, cpio, python_files

# QEMU 7.2 without KVM gets cmpxchg16b wrong, and Linux then dies at random; the others are slow to start and of no use here
CPU = "Haswell-noTSX,-cx16,-pcid,-x2apic,-tsc-deadline,-invpcid"
LIMIT_S = 90
DONE = "GUEST-DONE"

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

INIT = f"""#!/bin/sh
export PATH=/bin LD_LIBRARY_PATH=/lib HOME=/tmp PYTHONHOME=/py PYTHONPATH=/site PYTHONUTF8=1 PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t securityfs securityfs /sys/kernel/security
/py/bin/python3 -S /site/kernel/guest.pyc > /dev/ttyS1
echo "{DONE} $?"
poweroff -f
"""


class BootFailed(Exception):
    """The guest did not say what it was booted for; the words end with the last lines of its console."""


def _tail(console: str) -> str:
    return "\n".join(console.splitlines()[-40:])


class Booted(Struct):
    report: Report
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
        with self.initrd.open("wb") as out, files.open("rb") as common:
            shutil.copyfileobj(common, out)
            own = python_files(Path(linkproof.__file__).parent, "site/linkproof") | python_files(Path(__file__).parent, "site/kernel")
            out.write(cpio({**own, "init": INIT.encode()}))

    def boot(self, name: str, args: str, *, iommu: bool = True) -> Booted:
        """Boot, wait for the end, read what the guest said. Once more if the kernel died or hung. Raises BootFailed."""
        console = ""
        for tries in (1, 2):
            t0 = time.monotonic()
            console, said = self._once(f"{name}-{tries}", args, iommu)
            if DONE not in console or "Kernel panic" in console:
                continue
            body, end = said.partition(BEGIN)[2].partition(END)[:2]
            if not end:
                raise BootFailed(f"{name}: the program in the guest failed\n{_tail(console)}")
            report = msgspec.json.decode(zlib.decompress(decodebytes(body.encode())), type=Report)
            return Booted(report, console, time.monotonic() - t0, tries)
        raise BootFailed(f"{name}: the kernel died, or did not end within {LIMIT_S} s, twice\n{_tail(console)}")

    def _once(self, name: str, args: str, iommu: bool) -> tuple[str, str]:
        console, said = self.work / f"{name}.console", self.work / f"{name}.said"
        argv = f"{QEMU} -machine q35,accel=tcg -cpu {CPU} -smp 1 -m 512 -nodefaults -no-user-config -no-reboot -display none -monitor none".split()
        for node in (0, 1):
            argv += ["-object", f"memory-backend-ram,id=m{node},size=256M", "-numa", f"node,nodeid={node},memdev=m{node}"]
        argv += ["-numa", "cpu,node-id=0,socket-id=0"]
        for device in (*(["intel-iommu,intremap=off"] if iommu else []), *DEVICES):
            argv += ["-device", device]
        # without `nokaslr` and the rest a boot takes a second longer
        append = f"console=ttyS0 quiet panic=-1 nokaslr mitigations=off audit=0 apparmor=0 random.trust_cpu=on {args}"
        argv += ["-kernel", str(self.kernel.path), "-initrd", str(self.initrd), "-append", append]
        argv += ["-serial", f"file:{console}", "-serial", f"file:{said}"]
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S, check=False)
            if done.returncode:
                raise BootFailed(f"QEMU: {done.stderr.strip()[:500]}")
        except subprocess.TimeoutExpired:
            pass
        return console.read_text("utf-8", "replace"), said.read_text("utf-8", "replace")
