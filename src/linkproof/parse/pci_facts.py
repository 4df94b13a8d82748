"""PCI tree and IOMMU group types -> facts, for the ports and devices that lie on a path between two GPUs (or GPU and NIC), and for no other.

Out:     Acs per port on a path, Iommu per GPU, Events link_downgraded, vfio_bound, aer_seen; all with the sysfs path as source.
Unknown: a port whose control word could not be read gives Acs(redirect="unknown") with the reason in its text.
Source:  PCI Express Base Specification; Linux `Documentation/ABI/testing/sysfs-kernel-iommu_groups`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from linkproof.model import Acs, Event, Fact, Iommu, KernelLog, Source
from linkproof.parse.pci_tree import PciFunction, PciTree
from linkproof.parse.topology import Path, pairs, path

# a group's type -> what the IOMMU does with peer addresses; Linux 5.11 and later print it
IOMMU_TYPES = {"DMA": "translating", "DMA-FQ": "translating", "identity": "passthrough"}


def _at(function: PciFunction, file: str, text: str) -> Source:
    return Source(f"/sys/bus/pci/devices/{function.bdf}/{file}", 0, text)


def paths_of_interest(tree: PciTree) -> list[Path]:
    """GPU to GPU, and GPU to the network cards that it reaches without the CPU."""
    nics, gpus = tree.nics, tree.gpus
    near = [path(g, n) for g in gpus for n in nics]
    return pairs(tree) + [p for p in near if p.smi in ("PIX", "PXB")]


def _above(tree: PciTree) -> dict[str, str]:
    """Port -> what hangs below it, in the words of `model.Acs.above`."""
    gpus, nics = tree.gpus, tree.nics
    below_gpus = Counter(bdf for g in gpus for bdf in g.chain)
    below_nics = Counter(bdf for n in nics for bdf in n.chain)
    out = {}
    for bdf in {**below_gpus, **below_nics}:
        every = below_gpus[bdf] == len(gpus) > 1
        words = ("every gpu" if every else "gpu" if below_gpus[bdf] else "", "nic" if below_nics[bdf] else "")
        out[bdf] = " ".join(w for w in words if w)
    return out


def _acs(tree: PciTree, found: list[Path]) -> Iterator[Fact]:
    decisive = dict.fromkeys(bdf for p in found for bdf in p.turning)
    # through the CPU every packet goes up anyway; the root ports' bits decide whether the IOMMU sees it
    through_cpu = dict.fromkeys(bdf for p in found if not p.turning for bdf in p.ports if tree.functions[bdf].kind == "root_port")
    above = _above(tree)
    for bdf in [*decisive, *(b for b in through_cpu if b not in decisive)]:
        port, below = tree.functions[bdf], above[bdf]
        if port.acs_why == "no ACS capability":
            where = _at(port, "config", f"{bdf}: {port.acs_why}")
            yield Acs(source=where, redirect="off", port=bdf, kind=port.kind, bits="no capability", above=below)
        elif port.redirects is None:
            where = _at(port, "config", f"{bdf}: {port.acs_why}")
            yield Acs(source=where, redirect="unknown", port=bdf, kind=port.kind, above=below)
        else:
            where = _at(port, "config", f"{bdf} ACSCtl: {port.acs_bits} (0x{port.acs:04x})")
            redirect = "on" if port.redirects else "off"
            yield Acs(source=where, redirect=redirect, port=bdf, kind=port.kind, bits=port.acs_bits, above=below)


def _links(tree: PciTree, found: list[Path]) -> Iterator[Fact]:
    """A width below what both ends can do. A low speed alone is what an idle GPU does to save power: no fact."""
    on_the_way = dict.fromkeys([b for p in found for b in (p.a, p.b, *p.ports)] + [g.bdf for g in tree.gpus])
    for bdf in on_the_way:
        f = tree.functions[bdf]
        if narrowed := tree.narrowed(f):
            words = f"x{narrowed[0]} of x{narrowed[1]}"
            yield Event(source=_at(f, "current_link_width", f"{bdf} {words}"), kind="link_downgraded", value=f"{bdf} {words}")
        if f.aer.get("fatal"):
            total = str(f.aer["fatal"])
            yield KernelLog(source=_at(f, "aer_dev_fatal", f"{bdf}: {total} since boot"), fact="aer_fatal", device=bdf, value=total)


def _payloads(tree: PciTree, found: list[Path]) -> Iterator[Fact]:
    """A packet larger than one port on its way takes is malformed there: all on a path must be set alike."""
    for p in found:
        set_B = {b: f.max_payload_B for b in (p.a, *p.ports, p.b) if (f := tree.functions.get(b)) is not None and f.max_payload_B}
        if len(set(set_B.values())) > 1:
            words = ", ".join(f"{b} {size} B" for b, size in set_B.items())
            yield Event(source=_at(tree.functions[p.a], "config", f"{p.a} -> {p.b}: {words}"), kind="payload_mismatch", value=words)
            return


def facts_of(tree: PciTree, group_types: Mapping[str, str]) -> list[Fact]:
    """All facts. group_types: IOMMU group -> its type as printed; an absent group has no type."""
    found = paths_of_interest(tree)
    facts = [*_acs(tree, found), *_links(tree, found), *_payloads(tree, found)]
    for gpu in tree.gpus:
        kind = group_types.get(gpu.iommu_group, "")
        if gpu.iommu_group and kind:
            mode = IOMMU_TYPES.get(kind, "unknown")
            where = Source(f"/sys/kernel/iommu_groups/{gpu.iommu_group}/type", 0, f"{gpu.bdf}: {kind}")
            facts.append(Iommu(source=where, mode=mode, device=gpu.bdf))
        if gpu.driver == "vfio-pci":
            facts.append(Event(source=_at(gpu, "driver", f"{gpu.bdf}: vfio-pci"), kind="vfio_bound", value=gpu.bdf))
    return facts
