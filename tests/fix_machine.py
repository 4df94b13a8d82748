"""A machine in a folder, made of a simulated host: registers are plain files, so a step can be applied, read back and taken back. Used by the
tests of the command `fix`."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path

from msgspec import structs

from linkproof.act.doors import Machine
from linkproof.cli import _parser
from linkproof.collect.host import Live
from linkproof.fixing import command as fixing
from linkproof.fixing.command import StandIn
from linkproof.measured import Probed
from linkproof.mending import Pair, Proved
from linkproof.model import PCI_DEVICES
from linkproof.report.layout import Row, plain
from linkproof.sim.host import ACS_AT, SimHost
from linkproof.sim.scenario import Scenario, load
from measured_machine import machine as measured
from measured_machine import wrong

JOURNAL = "/var/lib/linkproof/fix"
REDIRECTS = 0x2C
SWITCH_PORTS = ("0000:42:00.0", "0000:42:01.0", "0000:82:00.0", "0000:82:01.0")


def laid_out(folder: Path, scenario: Scenario, files: dict[str, str] | None = None) -> None:
    """/sys and /proc as a kernel shows them, below `folder`."""
    host = SimHost(scenario)
    for path, leads in host.links.items():
        (folder / leads.lstrip("/")).mkdir(parents=True, exist_ok=True)
        if path.startswith(PCI_DEVICES) and path.count("/") == PCI_DEVICES.count("/") + 1:
            _link(folder, path, leads)
    for path, leads in host.links.items():
        if not os.path.lexists(folder / path.lstrip("/")):
            _link(folder, path, leads)
    more = {
        "/proc/sys/kernel/random/boot_id": "11111111-2222-3333-4444-555555555555\n",
        "/proc/sys/kernel/osrelease": "6.8.0-60-generic\n",
        "/sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
        "/proc/cpuinfo": "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu vme sse2 svm\n",
        "/sys/devices/system/cpu/possible": "0-63\n",
        "/proc/mounts": "sysfs /sys sysfs rw,nosuid,nodev,noexec,relatime 0 0\n",
        **(files or {}),
    }
    for path, data in {**host.files, **{path: text.encode() for path, text in more.items()}}.items():
        if path.startswith("/"):
            at = folder / path.lstrip("/")
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_bytes(data)
    (folder / "sys/bus/pci/drivers").mkdir(exist_ok=True)


def _link(folder: Path, path: str, leads: str) -> None:
    at = folder / path.lstrip("/")
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(os.path.relpath(folder / leads.lstrip("/"), at.parent))


class Box:
    """4 cards below two switches whose downstream ports redirect. A probe of a pair asks the registers: redirecting ports make its push slow.

    cured: whether clearing the bits helps at all; stuck: addresses whose register takes no write; corrupt: wrong data, not slow ones.
    """

    def __init__(
        self,
        folder: Path,
        cured: bool = True,
        stuck: Sequence[str] = (),
        bad: bool = True,
        corrupt: bool = False,
        files: dict[str, str] | None = None,
    ) -> None:
        self.folder, self.cured, self.bad, self.corrupt = folder, cured, bad, corrupt
        scenario = load("acs-redirect-4x4090")
        self.scenario = structs.replace(
            scenario, host=structs.replace(scenario.host, driver="580.95.05")
        )  # a patched one has steps of its own
        laid_out(folder, self.scenario, files)
        self.machine: Machine = Stuck(str(folder), stuck) if stuck else Machine(str(folder))
        self.probed_pairs: list[tuple[Pair, ...]] = []
        self.gpus = tuple(g.bdf for g in self.scenario.gpus)

    def config(self, bdf: str) -> Path:
        return Path(os.path.realpath(self.folder / f"{PCI_DEVICES.lstrip('/')}/{bdf}")) / "config"

    def acs(self, bdf: str) -> int:
        return int.from_bytes(self.config(bdf).read_bytes()[ACS_AT + 6 : ACS_AT + 8], "little")

    def set_acs(self, bdf: str, word: int) -> None:
        data = bytearray(self.config(bdf).read_bytes())
        data[ACS_AT + 6 : ACS_AT + 8] = word.to_bytes(2, "little")
        self.config(bdf).write_bytes(data)

    def registers(self) -> dict[str, bytes]:
        return {bdf: self.config(bdf).read_bytes() for bdf in os.listdir(self.folder / PCI_DEVICES.lstrip("/"))}  # noqa: PTH208

    def reboot(self) -> None:
        for bdf, word in self.scenario.host.acs.items():
            self.set_acs(bdf, word)
        (self.folder / "proc/sys/kernel/random/boot_id").write_text("99999999-2222-3333-4444-555555555555\n")

    def _slow(self, src: int, dst: int) -> bool:
        if src // 2 != dst // 2 or not self.bad:
            return False
        ports = SWITCH_PORTS[src // 2 * 2 : src // 2 * 2 + 2]
        return not self.cured or any(self.acs(p) & REDIRECTS for p in ports)

    def measured(self) -> Probed:
        pairs = [pair for pair in permutations(range(4), 2) if self._slow(*pair)]
        found = measured(4, change=wrong(*pairs)) if self.corrupt else measured(4, bw={(a, b, "push"): 6.0 for a, b in pairs})
        return structs.replace(found, cards=tuple(structs.replace(c, bdf=self.gpus[c.index]) for c in found.cards))

    def probe(self, pairs: tuple[Pair, ...]) -> Proved:
        self.probed_pairs.append(pairs)
        slow = {pair for pair in pairs if self._slow(self.gpus.index(pair[0]), self.gpus.index(pair[1]))}
        right = {(*pair, mode) for pair in pairs for mode in ("staged", "push", "store") if mode != "push" or pair not in slow}
        return Proved(frozenset((*pair, "push") for pair in slow), frozenset(right))

    def stand_in(self, measured: bool = True, probe: Callable[[tuple[Pair, ...]], Proved | None] | None = None) -> StandIn:
        return StandIn(Live(str(self.folder)), self.machine, JOURNAL, self.measured() if measured else None, probe or self.probe)

    def run(self, *argv: str, lang: str = "en", measured: bool = True, width: int = 100) -> tuple[int, str]:
        """The command as one types it, on this machine. -> exit code, what it shows."""
        options: Namespace = _parser(lang).parse_args(["fix", *argv])
        shown: list[str] = []

        def show(what: str | list[Row]) -> None:
            shown.append(what if isinstance(what, str) else plain(what))

        code = fixing.run(options, lang, show, width, self.stand_in(measured))  # type: ignore[arg-type]
        return code, "".join(shown)


class Stuck(Machine):
    """Some registers take no write, as hardware may."""

    def __init__(self, root: str, stuck: Sequence[str]) -> None:
        super().__init__(root)
        self.stuck = stuck

    def write_word(self, bdf: str, offset: int, word: int) -> None:
        if bdf not in self.stuck:
            super().write_word(bdf, offset, word)
