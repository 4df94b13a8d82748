"""Boots the machines that the selected tests ask for, two at a time, and says at the end of the run if none could be booted."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kernel import disk
from kernel.debian import ENOUGH
from kernel.initramfs import Missing
from kernel.vm import WITH_ENGINES, Booted, Drive, Lab, Machine

Boots = dict[str, Future[Booted]]
Told = dict[str, Any]

# one port, one word, written by setpci in the machine whose ports are all off
WRITES = {
    "0000:00:1c.0": 0x0001, "0000:00:1c.1": 0x0002, "0000:00:1c.2": 0x0040, "0000:02:01.0": 0x0004, "0000:02:02.0": 0x0008,
    "0000:02:03.0": 0x0010, "0000:08:00.0": 0x005F, "0000:80:00.0": 0x0053,
}  # fmt: skip
_WRITES = ",".join(f"{bdf}={word:04x}" for bdf, word in WRITES.items())
_CHOSEN = "0000000@0000:00:1c.0;xx000xx@0000:02:02.0;1111011@0000:00:1c.1;0101100@0000:80:00.0"
# name of the fixture -> kernel arguments (those that Linux does not know reach the guest's environment), has it an IOMMU?
BOOTS = {
    "translating": ("intel_iommu=on", True),
    "iommu_off": (f"intel_iommu=off TEST_WRITES={_WRITES}", True),
    "no_iommu": ("", False),
    "chosen_acs": (f"intel_iommu=on pci=config_acs={_CHOSEN}", True),
    "passthrough": ("intel_iommu=on iommu=pt", True),
    "strict": ("intel_iommu=on iommu.strict=1 lockdown=integrity", True),
}


def _asked(item: pytest.Item) -> set[str]:
    """Names of fixtures and of parameters of a test."""
    call = getattr(item, "callspec", None)
    return {*getattr(item, "fixturenames", ()), *(v for v in (call.params.values() if call else ()) if isinstance(v, str))}


def _required() -> bool:
    return os.environ.get("LINKPROOF_KERNEL_TESTS") == "required"


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    try:
        disk.tools()
        return Lab(tmp_path_factory.mktemp("kernel"))
    except Missing as e:
        if _required():
            pytest.fail(f"LINKPROOF_KERNEL_TESTS=required, but: {e}")
        pytest.skip(f"kernel tests not run: {e}")


@pytest.fixture(scope="session")
def boots(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Boots]:
    wanted = [name for name in BOOTS if any(name in _asked(item) for item in request.session.items)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        started = {name: pool.submit(lab.boot, name, BOOTS[name][0], iommu=BOOTS[name][1]) for name in wanted}
        yield started
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def translating(boots: Boots) -> Booted:
    return boots["translating"].result()


@pytest.fixture(scope="session")
def iommu_off(boots: Boots) -> Booted:
    return boots["iommu_off"].result()


@pytest.fixture(scope="session")
def no_iommu(boots: Boots) -> Booted:
    return boots["no_iommu"].result()


@pytest.fixture(scope="session")
def chosen_acs(boots: Boots, lab: Lab) -> Booted:
    if lab.kernel.version < ENOUGH:
        least, ours = (".".join(map(str, version)) for version in (ENOUGH, lab.kernel.version))
        pytest.skip(f"kernel tests not run: config_acs for several devices needs Linux {least}, this is {ours}")
    return boots["chosen_acs"].result()


@pytest.fixture(scope="session")
def passthrough(boots: Boots) -> Booted:
    return boots["passthrough"].result()


@pytest.fixture(scope="session")
def strict(boots: Boots) -> Booted:
    return boots["strict"].result()


# ---------------------------------------------------------------- `fix`: boots that follow each other on one disk

ENTRY = "boot/loader/entries/linux.conf"
DISK = {
    ENTRY: b"# written at installation\ntitle   Linux\nlinux   /vmlinuz\noptions root=/dev/vda1 ro quiet intel_iommu=on\ninitrd  /initrd.img\n",
    "etc/hostname": b"box\n",
    "var/lib/other": b"7\n",
}
# the card at the end of the longest way is not there
OTHER_CARDS = tuple(d for d in WITH_ENGINES if not (d.startswith("bochs-display") and d.endswith("bus=d5")))


def _job(lab: Lab, job: str, image: Path, args: str = "intel_iommu=on", devices: tuple[str, ...] = WITH_ENGINES) -> Told:
    said = lab.run(f"fix-{job}", f"TEST_PROGRAM=fix_guest TEST_JOB={job} {args}", Machine(devices, drives=(Drive(image),)))
    told: Told = msgspec.json.decode(said.body)
    return told


def _acs_boots(lab: Lab) -> dict[str, Told]:
    image = disk.make(lab.work / "fix-acs.img", DISK)
    out = {"acs": _job(lab, "acs", image)}
    other = Path(shutil.copyfile(image, lab.work / "fix-moved.img"))
    return out | {"persisted": _job(lab, "persisted", image), "moved": _job(lab, "moved", other, devices=OTHER_CARDS)}


def loaded(image: Path) -> str:
    """What a boot loader gives the kernel: the options of the entry on the disk."""
    entry = disk.read(image, f"/{ENTRY}")
    assert entry is not None
    found = re.search(r"^options\s+(.*)$", entry.decode(), re.M)
    assert found is not None, entry
    return found[1]


def _iommu_boots(lab: Lab) -> dict[str, Told]:
    """The host plays boot loader: each boot gets the options that the disk's entry has at that moment."""
    image = disk.make(lab.work / "fix-iommu.img", DISK)
    out: dict[str, Told] = {}
    for job in ("iommu", "passthrough", "back"):
        options = loaded(image)
        out[job] = _job(lab, job, image, options) | {"options": options}
        out[job]["entry"] = disk.read(image, f"/{ENTRY}")
    return out


def _lockdown_boots(lab: Lab) -> dict[str, Told]:
    return {"lockdown": _job(lab, "lockdown", disk.make(lab.work / "fix-lockdown.img", DISK), "intel_iommu=on lockdown=integrity")}


CHAINS: dict[str, Callable[[Lab], dict[str, Told]]] = {
    "acs_boots": _acs_boots,
    "iommu_boots": _iommu_boots,
    "lockdown_boots": _lockdown_boots,
}


@pytest.fixture(scope="session")
def chains(lab: Lab, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[dict[str, Told]]]]:
    wanted = [name for name in CHAINS if any(name in _asked(item) for item in request.session.items)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {name: pool.submit(CHAINS[name], lab) for name in wanted}
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def acs_boots(chains: dict[str, Future[dict[str, Told]]]) -> dict[str, Told]:
    return chains["acs_boots"].result()


@pytest.fixture(scope="session")
def iommu_boots(chains: dict[str, Future[dict[str, Told]]]) -> dict[str, Told]:
    return chains["iommu_boots"].result()


@pytest.fixture(scope="session")
def lockdown_boots(chains: dict[str, Future[dict[str, Told]]]) -> dict[str, Told]:
    return chains["lockdown_boots"].result()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A skip inside hundreds of dots is not seen; this is."""
    skipped = [
        r for r in terminalreporter.stats.get("skipped", ()) if isinstance(r.longrepr, tuple) and "kernel tests not run" in r.longrepr[2]
    ]
    if skipped:
        terminalreporter.section("kernel tests skipped", yellow=True, bold=True)
        terminalreporter.write_line(f"{len(skipped)} of these tests. {skipped[0].longrepr[2].removeprefix('Skipped: ')}", yellow=True)
