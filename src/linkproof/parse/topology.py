"""The path between two PCI functions: its bridges, its class as nvidia-smi and as NCCL say it. Pure.

nvidia-smi counts host bridges: PHB is one, NODE several of one NUMA node, SYS several of two NUMA nodes. NCCL knows no host bridges: it
follows every second step of the place below /sys/devices, so a switch is one node (its upstream port) and a root port is part of the CPU,
and it has one CPU per NUMA number. That is why the two differ: two host bridges of one NUMA node are NODE and PHB; two functions below
one root port without a switch between are PIX and PHB; where the firmware tells no NUMA nodes, all is one CPU.
Source:  legend of `nvidia-smi topo -m`; NCCL `src/graph/xml.cc`, `src/graph/topo.cc` and `src/graph/paths.cc` (2.30.7). NCCL also joins the
         levels of some Broadcom switches into one (`ncclTopoFlattenBcmSwitches`); that is not done here, such a pair reads PXB.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from linkproof.model import Fact, Topo
from linkproof.parse.pci_tree import PciFunction, PciTree


class Path(Struct, frozen=True):
    """Between a and b. smi: PIX PXB PHB NODE SYS. nccl: PIX PXB PHB SYS. ports: every bridge on the way, from a up and down to b.

    turning: the ports whose ACS bits decide about direct traffic (the two below the common switch; none if the way leads through the CPU).
    """

    a: str
    b: str
    smi: str
    nccl: str
    ports: tuple[str, ...]
    turning: tuple[str, ...]
    common: str  # the bridge or host bridge where the two ways meet; "" if they meet only between CPUs


def switch_ports(function: PciFunction) -> tuple[str, ...]:
    """NCCL's PCI nodes above a function, outermost first: every second bridge from the function upwards, which is the upstream port of
    each switch; a root port is one only where an odd bridge (to conventional PCI) stands in between."""
    return function.chain[-2::-2][::-1]


def _nccl(a: PciFunction, b: PciFunction) -> str:
    above_a, above_b = switch_ports(a), switch_ports(b)
    if above_a and above_b and above_a[0] == above_b[0]:
        return "PIX" if above_a == above_b else "PXB"
    return "PHB" if a.numa == b.numa else "SYS"


def path(a: PciFunction, b: PciFunction) -> Path:
    """Path from a to b, two functions of one tree."""
    nccl, shared = _nccl(a, b), 0
    same_bridge = a.host_bridge == b.host_bridge and a.host_bridge != ""
    while same_bridge and shared < min(len(a.chain), len(b.chain)) and a.chain[shared] == b.chain[shared]:
        shared += 1
    if shared:
        up, down = a.chain[shared:][::-1], b.chain[shared:]
        smi = "PIX" if max(len(up), len(down)) <= 1 else "PXB"  # a second switch below the common one adds two
        return Path(a.bdf, b.bdf, smi, nccl, up + down, (*up[-1:], *down[:1]), a.chain[shared - 1])
    ports = a.chain[::-1] + b.chain
    if same_bridge:
        return Path(a.bdf, b.bdf, "PHB", nccl, ports, (), a.host_bridge)
    return Path(a.bdf, b.bdf, "NODE" if a.numa == b.numa else "SYS", nccl, ports, (), "")


def pairs(tree: PciTree) -> list[Path]:
    """One path per unordered pair of GPUs, in the order of their addresses."""
    gpus = tree.gpus
    return [path(a, b) for i, a in enumerate(gpus) for b in gpus[i + 1 :]]


# ---------------------------------------------------------------- NVLink


class Joined(Struct, frozen=True):
    """nvlink: does it join the two? None: not read. links: how many; 0 if none, or if the number is not known."""

    nvlink: bool | None = None
    links: int = 0

    @property
    def smi(self) -> str:
        """As nvidia-smi names it: NV18; NV if the number is not known; "" without NVLink."""
        return f"NV{self.links or ''}" if self.nvlink else ""


def numbers(tree: PciTree) -> dict[str, int]:
    """Address -> number of a GPU. The driver numbers by address, and only the cards that it has."""
    return {g.bdf: i for i, g in enumerate([g for g in tree.gpus if g.driver in ("", "nvidia")])}


def joined(tree: PciTree, facts: Iterable[Fact]) -> dict[tuple[str, str], Joined]:
    """By the addresses of each pair, in both orders. What `nvidia-smi topo -m` says goes before what NVML says."""
    said: dict[str, Topo] = {}
    for fact in sorted((f for f in facts if isinstance(f, Topo)), key=lambda f: f.source.file == "NVML"):
        said.setdefault(fact.pairs, fact)
    number, out = numbers(tree), {}
    for p in pairs(tree):
        topo = said.get(f"{number[p.a]}-{number[p.b]}") if p.a in number and p.b in number else None
        known = Joined() if topo is None else Joined(topo.path == "NV", topo.links)
        out[p.a, p.b] = out[p.b, p.a] = known
    return out
