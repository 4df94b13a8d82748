"""A plan from a few words: one finding, the machine that it is of, and what was read for mending. Used by the tests of recipes and refusals."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from evidence.build import DEVICES, Machine
from linkproof.act.plan import plan
from linkproof.checking import Checked, check
from linkproof.collect.host import Answer
from linkproof.collect.mend import read_mend
from linkproof.measured import Probed
from linkproof.mending import Line, Pair, Plan, Step
from linkproof.model import Diagnosis, Fact, Sign, Source, Weighed
from measured_machine import machine as measured
from measured_machine import wrong

GPUS = ("0000:04:00.0", "0000:05:00.0")
PORTS = ("0000:03:00.0", "0000:03:01.0")  # where the way between the two turns
ROOT_PORT, NIC = "0000:00:01.0", "0000:06:00.0"
BOTH: tuple[Pair, ...] = (GPUS, GPUS[::-1])
SEEN = Source("dmesg", 7, "a line that says it")
BARE: dict[str, str] = {
    "/proc/cmdline": "BOOT_IMAGE=/boot/vmlinuz-6.8.0 root=/dev/sda1 ro quiet",
    "/proc/sys/kernel/osrelease": "6.8.0-60-generic",
    "/proc/mounts": "sysfs /sys sysfs rw,nosuid,nodev,noexec,relatime 0 0",
    "/sys/kernel/security/lockdown": "[none] integrity confidentiality",
    "/sys/devices/system/cpu/possible": "0-63",
    "/etc/default/grub": 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"',
    "/boot/grub/grub.cfg": "### BEGIN /etc/grub.d/10_linux ###\n\tlinux /boot/vmlinuz-6.8.0 root=/dev/sda1 ro quiet",
}


LSCPU = "Architecture:          x86_64\nVendor ID:             AuthenticAMD\nFlags:                 fpu sse2 svm\n"


def put(m: Machine, texts: dict[str, str]) -> Machine:
    m.files.update({path: f"{text}\n".encode() for path, text in texts.items()})
    return m


def two_below_a_switch(acs: int | None = 0x1D, root: int | None = 0x1D, iommu: str = "", root_reads: bool = True) -> Machine:
    """Two GPUs and a network card below the three ports of one switch, on bare metal whose kernel GRUB loads."""
    m = Machine(root=root_reads, iommu=iommu)
    _, downs = m.switch(m.port("pci0000:00", ROOT_PORT, acs=root), 0x02, 3, acs)
    for port, gpu in zip(downs, GPUS, strict=False):
        m.gpu(port, gpu)
    m.nic(downs[2], NIC)
    m.commands |= {("systemd-detect-virt",): Answer(b"none\n"), ("lscpu",): Answer(LSCPU.encode())}
    m.folders |= {"/usr/sbin": ["update-grub"], "/boot": ["grub"], "/boot/grub": ["grub.cfg"]}
    for group in {place.rpartition("/")[2] for path, place in m.links.items() if path.endswith("/iommu_group")}:
        at = f"/sys/kernel/iommu_groups/{group}"
        m.folders[f"{at}/devices"] = [path.split("/")[-2] for path, place in m.links.items() if place == at]
    return put(m, BARE)


def driver(m: Machine, bdf: str, name: str) -> Machine:
    m.links[f"{DEVICES}/{bdf}/driver"] = f"/sys/bus/pci/drivers/{name}"
    return m


def bad_between(*pairs: tuple[int, int], cards: tuple[str, ...] = GPUS) -> Probed:
    """Measured: copies of these ordered pairs arrive wrong, and all else is right."""
    found = measured(len(cards), change=wrong(*pairs))
    named = tuple(structs.replace(card, bdf=cards[card.index]) for card in found.cards)
    return structs.replace(found, cards=named, speeds=())


def finding(cause: str, state: str = "likely") -> Weighed:
    return Weighed(cause, "fabric", 5.0, 0.9, state, (Sign(True, 5.0, "it was seen", SEEN, stands=state != "possible"),))


def checked(m: Machine, cause: str, *facts: Fact, state: str = "likely", probed: Probed | None = None) -> Checked:
    """As `check` reads the machine, with one finding and these facts in place of what it found itself."""
    read = check(m, probed if probed is not None else bad_between((0, 1), (1, 0)))
    verdict = "faulty" if state in ("confirmed", "likely") else "cannot_tell"
    return structs.replace(read, diagnosis=Diagnosis(verdict, (finding(cause, state),), facts=facts), risks=())


def plan_for(cause: str, *facts: Fact, machine: Machine | None = None, state: str = "likely", probed: Probed | None = None,
             iommu_off: bool = False, **read: Any) -> Plan:  # fmt: skip
    """read: what was read for mending, in place of what is read of the machine."""
    m = two_below_a_switch() if machine is None else machine
    return plan(checked(m, cause, *facts, state=state, probed=probed), structs.replace(read_mend(m), **read), (), True, iommu_off)


def steps(*asked: Any, **more: Any) -> dict[str, Step]:
    return {step.id: step for step in plan_for(*asked, **more).steps}


def typed(step: Step) -> list[str]:
    """What a person is to type, in English."""
    return [words(line) for line in step.by_hand]


def words(line: Line) -> str:
    return line if isinstance(line, str) else line.text.format(**line.args)


def refs(step: Step) -> set[str]:
    return {refusal.ref for refusal in step.refusals}
