"""The route table: for every ordered pair of GPUs and every mode, is it proven? Pure.

In:      Probed; the PCI tree, where there is one, for what a path should carry.
Out:     RouteTable: a Cell per (pair, mode), per chain and per collective arm. A state is the worst of all loads under which it was tried.
Unknown: what was never tried is `not_tested`, which is no pass. A collective arm that NCCL served over another transport is `not_tested`.
Raises:  nothing.
Source:  PCI Express: 2.5 and 5 GT/s carry 8 bits in 10, 8 to 32 GT/s 128 in 130, 64 GT/s 242 bytes in 256.

Right data can be slow: against the same pair's way through host memory, the narrowest link of its path, its own other direction, or the
other pairs of its kind (a minority of odd ones out, so that NVLink meshes with longer and shorter ways accuse nobody).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import permutations
from statistics import median

import msgspec
from msgspec import Struct, field

from linkproof.measured import BAD, MODES, Card, Outcome, Probed, Speed
from linkproof.parse.pci_tree import PciFunction, PciTree
from linkproof.parse.topology import pairs as tree_pairs
from linkproof.parse.topology import path

SEVERITY = ("corrupt", "hung", "died", "refused", "not_tested", "slow", "verified")  # worst first
DIRECT = tuple(m.name for m in MODES.values() if m.scope == "pair" and m.judged and m.name != "staged")
DEFAULT_ARM = "default/default"
SLOWER_THAN_STAGED = 0.9  # of the control's bandwidth, and the spreads must not touch
SLOWER_THAN_LINK = 0.5  # packet headers cost 10 to 20 %, the way across a CPU up to 40 %
SLOWER_THAN_OTHERS = 0.5
MINORITY = 0.25
_TIMED = ("push", "pull")
_BETWEEN_PROCESSES = ("ipc", "ipc_vmm", "flags_ipc")  # both directions in one gang


class Cell(Struct, frozen=True):
    """One route. told: the outcome that decides, None if nothing was tried. loads: (load, state) of each try.

    why/args: for states other than verified, a template and its values.
    """

    gpus: tuple[int, ...]
    mode: str
    state: str
    arm: str = ""
    why: str = ""
    args: dict[str, str] = field(default_factory=dict)
    told: Outcome | None = None
    loads: tuple[tuple[str, str], ...] = ()

    @property
    def bad(self) -> bool:
        return self.state in BAD


class RouteTable(Struct, frozen=True):
    """cells: (src, dst, mode); also (n, n, mode) of a card with itself, which is no pair. groups: (mode, arm)."""

    cards: tuple[Card, ...]
    backend: str
    cells: dict[tuple[int, int, str], Cell]
    chains: tuple[Cell, ...] = ()
    groups: dict[tuple[str, str], Cell] = field(default_factory=dict)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Every ordered pair of the cards, tried or not."""
        return list(permutations(sorted(c.index for c in self.cards), 2))

    def cell(self, src: int, dst: int, mode: str) -> Cell:
        return self.cells.get((src, dst, mode)) or Cell((src, dst), mode, "not_tested", why="it was not tried")

    def state(self, src: int, dst: int, mode: str) -> str:
        return self.cell(src, dst, mode).state

    def over_pairs(self, mode: str) -> str:
        """The worst state of a mode over all pairs."""
        return worst(self.state(a, b, mode) for a, b in self.pairs)

    def group(self, mode: str, arm: str = DEFAULT_ARM) -> Cell:
        return self.groups.get((mode, arm)) or Cell((), mode, "not_tested", arm, "it was not tried")

    def transport(self, name: str) -> str:
        """Of NCCL: the default protocol's state where it was tried, else the worst of those that were."""
        arms = {arm: cell.state for (mode, arm), cell in self.groups.items() if mode == "nccl" and arm.startswith(f"{name}/")}
        return arms.get(f"{name}/default") or worst(arms.values())

    @property
    def judged(self) -> Iterator[Cell]:
        """Every cell on which a verdict hangs. LL128 forced by hand needs 128-byte stores that PCIe may split: it counts only where NCCL
        would choose it itself, that is if the default fails too."""
        yield from (c for c in self.cells.values() if MODES[c.mode].judged)
        yield from self.chains
        default_right = self.group("nccl").state in ("verified", "slow")
        yield from (c for c in self.groups.values() if MODES[c.mode].judged and not (default_right and c.arm.endswith("/LL128")))

    @property
    def bad(self) -> list[Cell]:
        return [c for c in self.judged if c.bad]

    @property
    def broken(self) -> bool:
        """Data are wrong or do not come, where the control through host memory is right: a fault, whoever may be its cause."""
        return any(all(self.state(a, b, "staged") in ("verified", "slow") for a, b in permutations(set(c.gpus), 2)) for c in self.bad)

    @property
    def slow(self) -> list[Cell]:
        return [c for c in self.judged if c.state == "slow"]


def worst(states: Iterable[str]) -> str:
    """Of no state at all: not tested."""
    return min(states, key=SEVERITY.index, default="not_tested")


def arm_of(arm: str) -> str:
    """`transport/protocol`, with `default` for what is not said."""
    transport, _, protocol = arm.partition("/")
    return f"{transport or 'default'}/{protocol or 'default'}"


# ---------------------------------------------------------------- from outcomes to cells


def _carried_by_another(outcome: Outcome) -> bool:
    """NCCL was asked for one transport and says that it used another: the arm proves nothing about what was asked."""
    asked = arm_of(outcome.case.arm).partition("/")[0]
    used = {word.partition("/")[0].lower() for word in outcome.transport.replace(",", " ").split()}
    return asked != "default" and bool(used) and (asked not in used or (asked != "p2p" and "p2p" in used))


def _targets(outcome: Outcome) -> list[tuple[int, int]]:
    """The ordered pairs of which an outcome of a pair mode speaks. Several at once that ended together cannot be told apart."""
    gpus = outcome.case.gpus
    together = outcome.case.load != "alone" or len(gpus) > 2 or outcome.case.mode in _BETWEEN_PROCESSES
    if together and outcome.state in ("hung", "died", "refused", "not_tested") and len(set(gpus)) > 1:
        return list(permutations(sorted(set(gpus)), 2))
    return [(gpus[0], gpus[-1])]


def _cell(gpus: tuple[int, ...], mode: str, arm: str, tried: list[Outcome]) -> Cell:
    told = min(tried, key=lambda o: SEVERITY.index(o.state))
    return Cell(gpus, mode, told.state, arm, told.why, told.args, told, tuple((o.case.load, o.state) for o in tried))


def table(probed: Probed, tree: PciTree | None = None) -> RouteTable:
    by_pair: dict[tuple[int, int, str], list[Outcome]] = {}
    by_chain: dict[tuple[int, ...], list[Outcome]] = {}
    by_group: dict[tuple[str, str], list[Outcome]] = {}
    for o in probed.outcomes:
        scope = MODES[o.case.mode].scope
        if scope == "group":
            if o.state == "verified" and _carried_by_another(o):
                o = msgspec.structs.replace(o, state="not_tested", why="NCCL used {used} instead", args={"used": o.transport})
            by_group.setdefault((o.case.mode, arm_of(o.case.arm)), []).append(o)
        elif scope == "chain":
            by_chain.setdefault(o.case.gpus, []).append(o)
        else:
            for src, dst in _targets(o):
                by_pair.setdefault((src, dst, o.case.mode), []).append(o)
    cells = {key: _cell(key[:2], key[2], "", tried) for key, tried in by_pair.items()}
    cells |= _slow(cells, speeds(probed), probed.cards, tree)
    chains = tuple(_cell(gpus, "chain", "", tried) for gpus, tried in by_chain.items())
    groups = {(mode, arm): _cell(tried[0].case.gpus, mode, arm, tried) for (mode, arm), tried in by_group.items()}
    return RouteTable(probed.cards, probed.backend, cells, chains, groups)


# ---------------------------------------------------------------- fast enough?


def speeds(probed: Probed) -> dict[tuple[int, int, str], Speed]:
    """Of each pair alone."""
    found = [*probed.speeds, *(o.speed for o in probed.outcomes if o.speed is not None)]
    return {(s.src, s.dst, s.mode): s for s in found if s.load == "alone"}


def lane_GBps(speed_GTps: float) -> float:
    """What one lane carries, before packet headers."""
    share = 0.8 if speed_GTps < 8 else 242 / 256 if speed_GTps >= 64 else 128 / 130
    return speed_GTps * share / 8


def link_GBps(tree: PciTree, a: PciFunction, b: PciFunction) -> tuple[float, str] | None:
    """What the narrowest PCIe link between two GPUs can carry, and where it is; None if no link is known.

    A link is judged by what both of its ends can do: an idle GPU lowers its speed, and a lost lane must count as a loss.
    """
    on_way = path(a, b)
    found = []
    for f in (a, b, *(tree.functions[bdf] for bdf in on_way.ports)):
        if f.kind in ("root_port", "downstream_port") or (f.is_bridge and not f.kind) or not f.chain:
            continue
        above = tree.functions[f.chain[-1]]
        widths = [w for w in (f.width_best, above.width_best) if w]
        rates = [r for r in (f.speed_best_GTps, above.speed_best_GTps) if r]
        if widths and rates:
            found.append((lane_GBps(min(rates)) * min(widths), f"{f.bdf} x{min(widths)} {min(rates):g} GT/s"))
    return min(found) if found else None


def kind_of_path(tree: PciTree | None, cards: Mapping[int, Card], src: int, dst: int) -> str:
    """PIX PXB PHB NODE SYS, "" if the tree does not hold both."""
    if tree is None:
        return ""
    a, b = (tree.functions.get(cards[i].bdf) for i in (src, dst))
    return path(a, b).smi if a is not None and b is not None else ""


def _slow(
    cells: Mapping[tuple[int, int, str], Cell], timed: Mapping[tuple[int, int, str], Speed], cards: tuple[Card, ...], tree: PciTree | None
) -> dict[tuple[int, int, str], Cell]:
    by_index = {c.index: c for c in cards}
    right = {k: s for k, s in timed.items() if k[2] in _TIMED and k[0] != k[1] and k in cells and cells[k].state == "verified"}
    alike: dict[tuple[str, str], list[float]] = {}
    for (src, dst, mode), s in right.items():
        alike.setdefault((mode, kind_of_path(tree, by_index, src, dst)), []).append(s.bw_GBps)
    out = {}
    for (src, dst, mode), s in right.items():
        others = alike[mode, kind_of_path(tree, by_index, src, dst)]
        found = _against(s, timed.get((src, dst, "staged")), right.get((dst, src, mode)), others, _link(tree, by_index, src, dst, mode))
        if found is not None:
            why, args, against = found
            old = cells[src, dst, mode]
            told = msgspec.structs.replace(old.told, state="slow", bw_GBps=s.bw_GBps, against_GBps=against) if old.told else None
            args = {"bw": f"{s.bw_GBps:.1f}", **args}
            out[src, dst, mode] = msgspec.structs.replace(old, state="slow", why=why, args=args, told=told)
    return out


def _link(tree: PciTree | None, cards: Mapping[int, Card], src: int, dst: int, mode: str) -> tuple[float, str] | None:
    if tree is None or mode != "push":  # a pull waits for each answer: no yardstick
        return None
    a, b = (tree.functions.get(cards[i].bdf) for i in (src, dst))
    return link_GBps(tree, a, b) if a is not None and b is not None else None


def _against(
    s: Speed, staged: Speed | None, back: Speed | None, others: list[float], link: tuple[float, str] | None
) -> tuple[str, dict[str, str], float] | None:
    """Why it is slow (template, values, GB/s it is held against), the most telling reason first; None if it is fast enough."""
    bw = s.bw_GBps
    if staged is not None and bw < SLOWER_THAN_STAGED * staged.bw_GBps and s.bw_spread_GBps[1] < staged.bw_GBps:
        return "{bw} GB/s, slower than the way through host memory ({against} GB/s)", {"against": f"{staged.bw_GBps:.1f}"}, staged.bw_GBps
    if link is not None and bw < SLOWER_THAN_LINK * link[0]:
        text = "{bw} GB/s where the narrowest link of the way carries {against} GB/s ({link})"
        return text, {"against": f"{link[0]:.1f}", "link": link[1]}, link[0]
    if back is not None and bw < SLOWER_THAN_OTHERS * back.bw_GBps:
        return "{bw} GB/s, its other direction {against} GB/s", {"against": f"{back.bw_GBps:.1f}"}, back.bw_GBps
    usual = median(others)
    if bw < SLOWER_THAN_OTHERS * usual and sum(o < SLOWER_THAN_OTHERS * usual for o in others) <= MINORITY * len(others):
        return "{bw} GB/s, other pairs of its kind {against} GB/s", {"against": f"{usual:.1f}"}, usual
    return None


# ---------------------------------------------------------------- what is proven in all


class Proof(Struct, frozen=True):
    """word: one_gpu bad slow part no_p2p all. missing: what was not proven, for `part`: `mode` or `mode GPU0 -> GPU1`."""

    word: str
    missing: tuple[str, ...] = ()


def proof(routes: RouteTable) -> Proof:
    """What may be said of the machine as a whole. A mode that the driver refuses cannot be used by anybody: then the way through host
    memory must be proven for that pair. A mode that nobody tried is no pass; engines and libraries that are not there are not missed, nor
    on AMD the modes that only NVIDIA has (a remark says so)."""
    if len(routes.cards) < 2:
        return Proof("one_gpu")
    if routes.bad:
        return Proof("bad")
    missing: list[str] = []
    amd = routes.backend == "hip" or all(c.capability.startswith("gfx") for c in routes.cards)
    for mode in (m for m in MODES.values() if m.scope == "pair" and m.judged and m.level == "check" and not (amd and m.nvidia)):
        for src, dst in routes.pairs:
            state = routes.state(src, dst, mode.name)
            if state == "not_tested" or (state == "refused" and routes.state(src, dst, "staged") not in ("verified", "slow")):
                missing.append(f"{mode.name} GPU{src} -> GPU{dst}")
    if worst(c.state for c in routes.chains) in ("not_tested", "refused") and not _no_p2p(routes):
        missing.append("chain")
    if routes.group("nccl").state not in ("verified", "slow"):
        missing.append("nccl")
    if missing:
        return Proof("part", tuple(missing))
    if routes.slow:
        return Proof("slow")
    return Proof("no_p2p" if _no_p2p(routes) else "all")


def _no_p2p(routes: RouteTable) -> bool:
    return all(routes.state(a, b, mode) == "refused" for a, b in routes.pairs for mode in ("push", "store"))


# ---------------------------------------------------------------- the key


def key_parts(
    cards: Iterable[Card],
    tree: PciTree,
    iommu_modes: Mapping[str, str],
    driver: str = "",
    kernel: str = "",
    boot_id: str = "",
    firmware: str = "",
    versions: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """What a route table hangs on, by name, so that one can say which part changed. "" could not be known."""
    turning = dict.fromkeys(b for p in tree_pairs(tree) for b in p.ports)
    words = [(b, tree.functions[b].acs) for b in turning]
    return {
        "GPUs": " ".join(f"{c.index}:{c.uuid or c.name}@{c.bdf}" for c in sorted(cards, key=lambda c: c.index)),
        "driver": driver,
        "kernel": kernel,
        "boot": boot_id,
        "firmware": firmware,
        "ACS": " ".join(f"{b}={'?' if word is None else f'{word:04x}'}" for b, word in words),
        "IOMMU": " ".join(f"{bdf}={mode}" for bdf, mode in sorted(iommu_modes.items())),
        "libraries": " ".join(f"{name} {number}" for name, number in sorted((versions or {}).items())),
    }


def key(parts: Mapping[str, str]) -> str:
    """Stable over processes and Python versions."""
    return sha256(msgspec.json.encode(sorted(parts.items()))).hexdigest()[:16]
