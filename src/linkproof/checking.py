"""From a host, and what a probe measured on it, to a diagnosis: wires collect, parse, causes and diagnose together. Prints nothing.

Without a probe (`check --quick`) it can find a fault that shows (a stopped Fabric Manager, a page fault in the kernel log) or a risk: a
cause whose mechanism stands although nothing has failed yet. It then never says healthy: nothing was measured.
"""

from __future__ import annotations

from msgspec import Struct

from linkproof.causes.reading import Reading
from linkproof.collect.evidence import read_evidence
from linkproof.collect.host import Host
from linkproof.diagnose.weigh import concluded, weigh_all
from linkproof.facts import facts_from
from linkproof.measured import Probed
from linkproof.measured_facts import facts_of_probe
from linkproof.model import PCI_DEVICES, Acs, Diagnosis, Fact, Iommu, Versions, Weighed
from linkproof.model import Host as HostFact
from linkproof.parse.pci_tree import PciTree
from linkproof.routes import RouteTable, key_parts, table


class Unread(Struct, frozen=True):
    """A source that gave nothing, and why: absent, denied, timeout, failed ..."""

    name: str
    why: str
    needs_root: bool = False


class Checked(Struct, frozen=True):
    """diagnosis: verdict faulty or cannot_tell. risks: causes whose mechanism stands, strongest first."""

    diagnosis: Diagnosis
    tree: PciTree
    risks: tuple[Weighed, ...]
    unread: tuple[Unread, ...]
    modes: dict[str, str]  # GPU address -> IOMMU mode
    cpu_vendor: str = ""
    probed: Probed | None = None
    routes: RouteTable | None = None
    key_parts: dict[str, str] = {}


def risks(diagnosis: Diagnosis, weighed: list[Weighed]) -> tuple[Weighed, ...]:
    """Causes with a sign whose mechanism stands, and that nothing rules out; those named as the cause already are no risks."""
    named = {w.id for w in diagnosis.causes if diagnosis.verdict == "faulty" and w.confidence >= 0.5}
    return tuple(w for w in weighed if w.id not in named and w.state != "ruled_out" and any(s.stands and s.speaks_for for s in w.signs))


def _hidden_ports(facts: list[Fact]) -> str:
    """The ports on a path between GPUs whose ACS control could not be read, in a few words; "" if there are none."""
    ports = [f.port for f in facts if isinstance(f, Acs) and f.redirect == "unknown" and f.source.file.startswith("/sys/")]
    shown = ", ".join(ports[:3]) + (" ..." if len(ports) > 3 else "")
    return f"ACS ({shown})" if ports else ""


def check(host: Host, probed: Probed | None = None) -> Checked:
    """Read one host and judge it, with what a probe measured there if there was one."""
    evidence = read_evidence(host)
    facts, pci = facts_from(evidence)
    modes = {f.device: f.mode for f in facts if isinstance(f, Iommu) and f.device}
    routes = table(probed, pci) if probed is not None and probed.cards else None
    if probed is not None and routes is not None:
        facts += facts_of_probe(probed, routes, pci, modes)
    reading = Reading(facts)
    weighed, unknown = weigh_all(reading)
    texts = [(g.source.name, g.answer.text.count("\n")) for g in evidence.texts if g.answer.data]
    diagnosis = concluded(reading, weighed, unknown, texts, ask=False, routes=routes)
    unread = tuple(
        Unread(g.source.name, g.answer.why, g.source.needs_root) for g in evidence.texts if g.answer.data is None or g.answer.why
    )
    if evidence.pci.why:
        unread += (Unread(PCI_DEVICES, evidence.pci.why),)
    if hidden := _hidden_ports(facts):
        unread += (Unread(hidden, "denied", True),)
    vendor = next((f.value for f in facts if isinstance(f, HostFact) and f.fact == "cpu_vendor"), "")
    parts = _key_parts(host, facts, pci, modes, probed) if probed is not None else {}
    return Checked(diagnosis, pci, risks(diagnosis, weighed), unread, modes, vendor, probed, routes, parts)


def _key_parts(host: Host, facts: list[Fact], pci: PciTree, modes: dict[str, str], probed: Probed) -> dict[str, str]:
    """What a route table of this host hangs on; see `routes.key_parts`."""
    versions = [f for f in facts if isinstance(f, Versions)]
    driver = next((v.driver for v in versions if v.driver), "")
    libraries = {name: next((getattr(v, name) for v in versions if getattr(v, name)), "") for name in ("torch", "nccl")}
    kernel = host.file("/proc/sys/kernel/osrelease").text.strip()
    boot = host.file("/proc/sys/kernel/random/boot_id").text.strip()
    firmware = host.file("/sys/class/dmi/id/bios_version").text.strip()
    return key_parts(probed.cards, pci, modes, driver, kernel, boot, firmware, libraries)
