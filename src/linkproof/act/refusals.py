"""Why a step is not applied: asked when it is planned, and again right before it is written.

In:      a Step, MendEvidence (or the host itself, to read again).
Out:     Refusals; () if nothing forbids the step. A name of RISKS may be accepted by a person, another name may not.
Unknown: what could not be read is not "fine": the refusal says that it is not known. Only of lockdown not: there the kernel itself refuses
         the write, and nothing is lost by trying.
Raises:  nothing.
Source:  kernel_lockdown(7): writes to configuration space are refused, files are not; PCI Express Base Specification 6, 6.12 (ACS isolates
         what stands below a port); Linux Documentation/driver-api/vfio.rst.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from linkproof.act.ways import ports_on_way
from linkproof.collect.host import Host
from linkproof.collect.mend import Function, MendEvidence, read_mend
from linkproof.mending import ConfigWord, Refusal, Sentence, Step, SysfsText

CPUS_WITHOUT_REMAPPING = 254  # interrupts name their target in 8 bits; x2APIC without remapping does not widen that
ACS, IOMMU, IOMMU_OFF = "acs-", "iommu-", "iommu-off"  # how the ids of such steps begin


def refusals_now(step: Step, host: Host) -> tuple[Refusal, ...]:
    """As the machine is at this moment."""
    return refusals(step, read_mend(host))


def refusals(step: Step, mend: MendEvidence) -> tuple[Refusal, ...]:
    """Each name once. A step that writes nothing cannot be refused."""
    if not step.changes:
        return ()
    found: dict[str, Refusal] = {}
    for refusal in _all(step, mend):
        found.setdefault(refusal.ref, refusal)
    return tuple(found.values())


def _all(step: Step, mend: MendEvidence) -> Iterator[Refusal]:
    words = [c for c in step.changes if isinstance(c, ConfigWord)]
    isolation = step.id.startswith((ACS, IOMMU))
    if mend.container:
        yield Refusal("container", Sentence("this is a container ({sign}): run it on the host", {"sign": mend.container}))
    elif mend.sys_read_only and any(isinstance(c, ConfigWord | SysfsText) for c in step.changes):
        yield Refusal("container", Sentence("/sys is mounted read-only here: run it on the host"))
    if isolation and mend.virt not in ("none", ""):
        yield Refusal("guest", Sentence("this is a virtual machine ({virt}): the host's administrator must do it", {"virt": mend.virt}))
    elif isolation and not mend.virt:
        yield Refusal(
            "not_readable", Sentence("whether this is a virtual machine could not be known: `lscpu` and /proc/cpuinfo gave nothing")
        )
    if words:
        yield from _off_path(step, words, mend)
    if words and mend.lockdown not in ("none", ""):
        text = "the kernel is locked down ({mode}) and refuses writes to configuration space: the kernel command line or the BIOS remain"
        yield Refusal("lockdown", Sentence(text, {"mode": mend.lockdown}))
    if isolation and (touched := _touched(step, words, mend)) is not None:
        yield from _users(touched)
    elif isolation:
        yield Refusal("not_readable", Sentence("which devices it concerns could not be read"))
    if step.id == IOMMU_OFF:
        yield from _many_cpus(mend)


def _touched(step: Step, words: list[ConfigWord], mend: MendEvidence) -> list[Function] | None:
    """Whose isolation the step takes: what hangs below the ports; the members of a group; all, where the whole IOMMU is meant. None: not known."""
    groups = [c.path.split("/")[4] for c in step.changes if isinstance(c, SysfsText) and c.path.startswith("/sys/kernel/iommu_groups/")]
    if words:
        return list({f.bdf: f for w in words for f in mend.below(w.bdf)}.values())
    if groups:
        members = [mend.groups[g].members if g in mend.groups else None for g in groups]
        if None in members:
            return None
        return [mend.functions[bdf] for of_one in members for bdf, _ in of_one or () if bdf in mend.functions]
    return list(mend.functions.values()) or None


def _users(touched: list[Function]) -> Iterator[Refusal]:
    if held := [f"{f.bdf} ({f.driver})" for f in touched if f.for_guest]:
        yield Refusal("vfio", Sentence("held for a guest: {devices}", {"devices": listed(held)}))
    elif unknown := [f.bdf for f in touched if f.for_guest is None]:
        text = "which driver holds these devices could not be read: {devices}"
        yield Refusal("vfio", Sentence(text, {"devices": listed(unknown)}))
    if lent := [f"{f.bdf} ({f.vfs})" for f in touched if f.vfs]:
        yield Refusal("sriov", Sentence("virtual functions are in use: {devices}", {"devices": listed(lent)}))
    elif unknown := [f.bdf for f in touched if f.vfs is None]:
        text = "whether virtual functions are in use could not be read: {devices}"
        yield Refusal("sriov", Sentence(text, {"devices": listed(unknown)}))
    if outside := [f.bdf for f in touched if f.removable == "removable"]:
        yield Refusal("external", Sentence("it stands outside of the case: {devices}", {"devices": listed(outside)}))
    elif unknown := [f.bdf for f in touched if f.removable is None]:
        text = "whether these devices stand outside of the case could not be read: {devices}"
        yield Refusal("external", Sentence(text, {"devices": listed(unknown)}))


def _off_path(step: Step, words: list[ConfigWord], mend: MendEvidence) -> Iterator[Refusal]:
    """The planner does not make such a step; one that was edited, or a machine that changed since, ends here."""
    allowed = {port for pair in step.pairs for port in ports_on_way(mend, pair)}
    if strange := [w.bdf for w in words if w.bdf not in allowed]:
        text = "not on the way between the GPUs that the step is for: {ports}"
        yield Refusal("off_path", Sentence(text, {"ports": listed(strange)}))


def _many_cpus(mend: MendEvidence) -> Iterator[Refusal]:
    if mend.cpus is None:
        yield Refusal("many_cpus", Sentence("how many CPUs the machine has could not be read"))
    elif mend.cpus > CPUS_WITHOUT_REMAPPING:
        text = "the machine has {cpus} CPUs, and interrupts reach more than 254 only through the IOMMU's remapping"
        yield Refusal("many_cpus", Sentence(text, {"cpus": str(mend.cpus)}))


def listed(things: Iterable[str], most: int = 6) -> str:
    """`a, b, c ... +4`."""
    every = list(things)
    return ", ".join(every[:most]) + (f" ... +{len(every) - most}" if len(every) > most else "")
