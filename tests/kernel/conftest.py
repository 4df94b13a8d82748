"""Boots the machines that the selected tests ask for, two at a time, and says at the end of the run if none could be booted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from kernel.debian import ENOUGH
from kernel.initramfs import Missing
from kernel.vm import Booted, Lab

Boots = dict[str, Future[Booted]]

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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A skip inside hundreds of dots is not seen; this is."""
    skipped = [
        r for r in terminalreporter.stats.get("skipped", ()) if isinstance(r.longrepr, tuple) and "kernel tests not run" in r.longrepr[2]
    ]
    if skipped:
        terminalreporter.section("kernel tests skipped", yellow=True, bold=True)
        terminalreporter.write_line(f"{len(skipped)} of these tests. {skipped[0].longrepr[2].removeprefix('Skipped: ')}", yellow=True)
