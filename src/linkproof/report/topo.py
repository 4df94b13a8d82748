"""PCI tree and paths -> what `linkproof topo` prints: a tree, a matrix, what NCCL chooses per pair, or XML that NCCL reads.

In:      a PciTree, names of the GPUs by address, the IOMMU mode per GPU.
Out:     str. Marks stand where the thing is: [redirect], [x8 of x16], [IOMMU translating], [ACS unknown].
Unknown: what could not be read is said as such, in the place where it would stand.
Source:  legend of `nvidia-smi topo -m`; NCCL `src/graph/xml.cc` for the XML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import quoteattr

from linkproof.parse.nccl_plan import PairPlan
from linkproof.parse.pci_tree import NVIDIA, PciFunction, PciTree
from linkproof.parse.topology import Joined, path, switch_ports
from linkproof.report.say import Teller, say

_PAIRS_SHOWN = 8


def _short(function: PciFunction, names: Mapping[str, str], t: Teller) -> str:
    if function.is_gpu:
        kind = "GPU"
    elif function.is_nic:
        kind = "NIC"
    else:
        kinds = {"root_port": t("root port"), "upstream_port": t("switch, up"), "downstream_port": t("switch, down")}
        kind = kinds.get(function.kind, t("bridge"))
    return " ".join(w for w in (function.bdf, kind, names.get(function.bdf, "")) if w)


def _marks(function: PciFunction, tree: PciTree, modes: Mapping[str, str], t: Teller) -> list[str]:
    out = []
    if function.is_bridge and function.kind in ("root_port", "downstream_port"):
        if function.redirects:
            out.append(t("[ACS redirects: {bits}]", bits=function.acs_bits))
        elif function.redirects is None and function.acs_why != "no ACS capability":
            out.append(t("[ACS unknown: {why}]", why=function.acs_why))
    if narrowed := tree.narrowed(function):
        out.append(t("[x{now} of x{best}]", now=narrowed[0], best=narrowed[1]))
    if function.is_gpu and (mode := modes.get(function.bdf)):
        out.append({"translating": t("[IOMMU translates]"), "passthrough": t("[IOMMU passthrough]")}.get(mode, ""))
    if function.driver == "vfio-pci":
        out.append("[vfio-pci]")
    return [m for m in out if m]


def draw_tree(tree: PciTree, names: Mapping[str, str], modes: Mapping[str, str], t: Teller) -> list[str]:
    """Host bridges, the bridges that lead to a GPU or a network card, and these."""
    wanted = {f.bdf for f in (*tree.gpus, *tree.nics)}
    wanted |= {bdf for f in (*tree.gpus, *tree.nics) for bdf in f.chain}
    children: dict[str, list[PciFunction]] = {}
    for bdf in sorted(wanted):
        f = tree.functions.get(bdf)
        if f is not None:
            children.setdefault(f.chain[-1] if f.chain else f.host_bridge, []).append(f)
    lines = []

    def below(key: str, indent: str) -> None:
        found = children.get(key, [])
        for i, f in enumerate(found):
            last = i == len(found) - 1
            lines.append(" ".join([indent + ("└─ " if last else "├─ ") + _short(f, names, t), *_marks(f, tree, modes, t)]))
            below(f.bdf, indent + ("   " if last else "│  "))

    for bridge in sorted({f.host_bridge for f in tree.functions.values() if f.bdf in wanted}):
        numa = {f.numa for f in tree.functions.values() if f.host_bridge == bridge and f.bdf in wanted and f.numa is not None}
        node = t("NUMA node {n}", n=next(iter(numa))) if len(numa) == 1 else t("NUMA node not told")
        lines.append(f"{bridge}  ({node})")
        below(bridge, "")
    return lines


def draw_matrix(tree: PciTree, nvlinks: Mapping[tuple[str, str], Joined] | None = None) -> list[str]:
    """As `nvidia-smi topo -m`: the PCIe path is computed from the tree, and `*` marks a pair whose direct way is redirected by ACS.

    Where NVLink joins two GPUs, nvidia-smi names that alone (NV18); here the PCIe path stands behind it (NV18/PHB), since what goes by no
    NVLink takes it: NCCL with NCCL_P2P_DISABLE=1, say.
    """
    gpus, nics = tree.gpus, tree.nics
    heads = [f"GPU{i}" for i in range(len(gpus))] + [f"NIC{i}" for i in range(len(nics))]
    rows = [["", *heads]]
    everyone = [*gpus, *nics]
    for i, a in enumerate(gpus):
        cells = [heads[i]]
        for b in everyone:
            if a is b:
                cells.append("X")
                continue
            way = path(a, b)
            redirected = any(tree.functions[p].redirects for p in way.turning)
            nvlink = (nvlinks or {}).get((a.bdf, b.bdf), Joined()).smi
            cells.append(f"{nvlink}/" * bool(nvlink) + way.smi + "*" * redirected)
        rows.append(cells)
    # GPUs and network cards each in columns as wide as their widest word: NV18/PHB makes those of the GPUs wide, and of them alone
    kinds = [range(1), range(1, 1 + len(gpus)), range(1 + len(gpus), 1 + len(everyone))]
    widths = [max(4, *(len(row[i]) for row in rows for i in kind)) + 2 for kind in kinds for _ in kind]
    return ["".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def matrix_legend(tree: PciTree, nvlinks: Mapping[tuple[str, str], Joined], t: Teller) -> list[str]:
    """What the words of the matrix mean, as far as they stand in it; and what could not be read for it."""
    out = [t("paths as nvidia-smi names them; * the ports where the way turns redirect peer traffic up (ACS)")]
    if any(known.nvlink for known in nvlinks.values()):
        out.append(t("NV#/...: # NVLinks join the two (nvidia-smi names these alone); behind the slash the PCIe path of the pair"))
    if any(known.nvlink and not known.links for known in nvlinks.values()):
        out.append(t("NV/...: NVLink joins the two, by how many links was not read"))
    nvidia = {g.bdf for g in tree.gpus if g.vendor == NVIDIA}
    if any(known.nvlink is None and {*pair} <= nvidia for pair, known in nvlinks.items()):
        out.append(t("whether NVLink joins GPUs was not read: these are the PCIe paths"))
    return out


def why_words(chosen: PairPlan, t: Teller) -> str:
    """Why NCCL chooses so for all GPUs together, and what two of them alone get where that differs."""
    why = say(chosen.plan.why.text, chosen.plan.why.args, t.lang)
    if chosen.two is None:
        return why
    alone = say(chosen.two.why.text, chosen.two.why.args, t.lang)
    return t("together: {why}; two ranks alone: {transport}, {alone}", why=why, transport=chosen.two.transport, alone=alone)


def draw_nccl(tree: PciTree, plans: Sequence[PairPlan], t: Teller) -> list[str]:
    """What NCCL chooses and why: one line per group of pairs that get the same for the same reason."""
    number = {gpu.bdf: i for i, gpu in enumerate(tree.gpus)}
    groups: dict[tuple[str, str], list[str]] = {}
    for chosen in plans:
        same = (chosen.plan.transport, why_words(chosen, t))
        groups.setdefault(same, []).append(f"{number[chosen.a]}-{number[chosen.b]}")
    if not groups:
        return []
    lines = [t("What NCCL chooses on its own, before anything was measured:")]
    for (transport, why), found in groups.items():
        shown = "GPU " + ", ".join(found[:_PAIRS_SHOWN])
        if len(groups) == 1 and len(found) > 1:
            shown = t("all {n} pairs", n=len(found))
        elif len(found) > _PAIRS_SHOWN:
            shown = t("{pairs} and {n} more", pairs=shown, n=len(found) - _PAIRS_SHOWN)
        way = t("cannot tell") if transport == "unknown" else transport
        lines.append("  " + t("{pairs}: {transport}: {why}", pairs=shown, transport=way, why=why))
    return lines


def to_xml(tree: PciTree, cpu_vendor: str = "", arch: str = "x86_64") -> str:
    """A file for NCCL_TOPO_FILE: CPU nodes by NUMA node as the firmware tells it (-1: not told), switches, GPUs and network cards.

    A link is as good as the weaker of its two ends can be, as NCCL computes it; one that neither end tells has width 0 and no speed.
    """
    cpus: dict[int, list[PciFunction]] = {}
    for f in (*tree.gpus, *tree.nics):
        cpus.setdefault(-1 if f.numa is None else f.numa, []).append(f)
    out = ['<system version="1">']
    for numa, leaves in sorted(cpus.items()):
        vendor = f" vendor={quoteattr(cpu_vendor)}" if cpu_vendor else ""
        out.append(f'  <cpu numaid="{numa}" arch={quoteattr(arch)}{vendor}>')
        nest: dict[tuple[str, ...], list[PciFunction]] = {}
        for leaf in sorted(leaves, key=lambda f: f.bdf):
            nest.setdefault(switch_ports(leaf), []).append(leaf)
        _nested(nest, (), tree, out)
        out.append("  </cpu>")
    out.append("</system>")
    return "\n".join(out) + "\n"


def _attributes(f: PciFunction, tree: PciTree) -> str:
    above = tree.functions.get(f.chain[-1]) if f.chain else None
    ends = [f, above] if above is not None else [f]
    speed = min((e.speed_best_GTps for e in ends if e.speed_best_GTps), default=None)
    width = min((e.width_best for e in ends if e.width_best), default=0)
    pairs = [("busid", f.bdf), ("class", f"0x{f.cls:06x}"), ("vendor", f"0x{f.vendor:04x}"), ("device", f"0x{f.device:04x}")]
    pairs += [("link_speed", f"{speed:.1f} GT/s PCIe" if speed else ""), ("link_width", str(width))]
    return " ".join(f"{k}={quoteattr(v)}" for k, v in pairs)


def _nested(nest: Mapping[tuple[str, ...], list[PciFunction]], at: tuple[str, ...], tree: PciTree, out: list[str]) -> None:
    """at: the switches that we stand in; nest: switches above a function -> the functions."""
    indent = "    " + "  " * len(at)
    out.extend(f"{indent}<pci {_attributes(leaf, tree)}/>" for leaf in nest.get(at, []))
    inside = {above[len(at)] for above in nest if len(above) > len(at) and above[: len(at)] == at}
    for switch in sorted(inside):
        out.append(f"{indent}<pci {_attributes(tree.functions[switch], tree)}>")
        _nested(nest, (*at, switch), tree, out)
        out.append(f"{indent}</pci>")
