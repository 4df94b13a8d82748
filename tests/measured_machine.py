"""Measurements as a probe would give them, from a few words; and the PCI trees they belong to. Used by the tests of routes and facts."""

from __future__ import annotations

from itertools import permutations
from typing import Any

from linkproof.causes.reading import Reading
from linkproof.diagnose.weigh import concluded, weigh_all
from linkproof.measured import MODES, Card, Case, Outcome, Probed, Speed, Wrong
from linkproof.measured_facts import facts_of_probe
from linkproof.model import Diagnosis, Fact, Iommu, Source
from linkproof.parse.pci_facts import facts_of
from linkproof.parse.pci_tree import NVIDIA, PciFunction, PciTree
from linkproof.routes import table

GiB = 1 << 30
ARMS = ("default/default", "p2p/LL", "p2p/LL128", "p2p/Simple", "shm/Simple", "net/Simple")
UNTOUCHED = (Wrong("untouched", 4096, 2_097_152),)
PAIR_MODES = tuple(m.name for m in MODES.values() if m.scope == "pair" and m.level == "check")
Changes = dict[tuple[str, tuple[int, ...]], dict[str, Any]]


def machine(
    gpus: int,
    *,
    backend: str = "cuda",
    change: Changes | None = None,
    arms: dict[str, str] | None = None,
    bw: dict[tuple[int, int, str], float] | None = None,
    **more: Any,
) -> Probed:
    """All right, but for `change` ((mode, gpus) -> fields of the Outcome) and `arms` (arm -> state); "" leaves one out."""
    change, states = change or {}, {**dict.fromkeys(ARMS, "verified"), **(arms or {})}
    cards = tuple(Card(i, "NVIDIA L40S", f"GPU-{i}", f"0000:{0x10 + i:02x}:00.0", 48 * GiB, "8.9") for i in range(gpus))
    outcomes = []
    for mode in PAIR_MODES:
        for pair in permutations(range(gpus), 2):
            fields = {"state": "verified", "size_B": 67_108_864, "rounds": 8, "verified_B": 1 << 29, **change.get((mode, pair), {})}
            if fields["state"]:
                outcomes.append(Outcome(Case(mode, pair, fields.pop("load", "alone")), **fields))
    for i in range(gpus if gpus > 1 else 0):
        chain = (i, (i + 1) % gpus, (i + 2) % gpus)
        outcomes.append(Outcome(Case("chain", chain), **{"state": "verified", **change.get(("chain", chain), {})}))
    used = {"p2p": "P2P/CUMEM", "default": "P2P/CUMEM", "shm": "SHM/direct", "net": "NET/Socket"}
    for arm, state in states.items() if gpus > 1 else ():
        if state:
            fields = change.get((f"nccl {arm}", ()), {"transport": used[arm.partition("/")[0]]})
            outcomes.append(Outcome(Case("nccl", tuple(range(gpus)), arm=arm), state, op="all_reduce", **fields))
    usual = {"staged": 12.0, "push": 24.0, "pull": 23.0}
    speeds = tuple(
        Speed(a, b, mode, value, (value * 0.98, value * 1.02))
        for a, b in permutations(range(gpus), 2) for mode in usual for value in [(bw or {}).get((a, b, mode), usual[mode])]
    )  # fmt: skip
    return Probed(cards, tuple(outcomes), speeds, backend=backend, **more)


def wrong(
    *pairs: tuple[int, int], modes: tuple[str, ...] = ("push", "pull", "store", "store16", "load", "load16", "ipc", "views"), **fields: Any
) -> Changes:
    told = {"state": "corrupt", "why": "wrong", "wrong": UNTOUCHED, "round_": 5, **fields}
    return {(mode, pair): told for pair in pairs for mode in modes}


def both(*pairs: tuple[int, int]) -> list[tuple[int, int]]:
    return [p for a, b in pairs for p in ((a, b), (b, a))]


def switches(gpus: int, redirecting: tuple[int, ...] = (), best: int = 16, why: str = "") -> PciTree:
    """Two GPUs below each switch, each switch below its own root port. redirecting: GPUs whose downstream port has ReqRedir and CmpltRedir."""
    functions: dict[str, PciFunction] = {}

    def add(bdf: str, bridge: str, chain: tuple[str, ...], kind: str, cls: int = 0x060400, **more: Any) -> None:
        functions[bdf] = PciFunction(bdf, bridge, chain, cls, NVIDIA if kind == "endpoint" else 0x1000, 1, kind, speed_GTps=16.0,
                                     width=best, speed_best_GTps=16.0, width_best=best, **more)  # fmt: skip

    for i in range(gpus):
        bridge, root, up, down = (
            f"pci0000:{0x40 + i // 2 * 16:02x}",
            f"0000:{0x40 + i // 2:02x}:01.0",
            f"0000:{0x50 + i // 2:02x}:00.0",
            f"0000:60:{i:02x}.0",
        )
        add(root, bridge, (), "root_port", acs=0)
        add(up, bridge, (root,), "upstream_port", acs_why="no ACS capability")
        add(down, bridge, (root, up), "downstream_port", acs=None if why else 0x1D if i in redirecting else 0, acs_why=why)
        add(f"0000:{0x10 + i:02x}:00.0", bridge, (root, up, down), "endpoint", 0x030000, bars_B=(1 << 24, 1 << 36, 0, 0, 0, 0), numa=0,
            driver="nvidia", iommu_group=str(i))  # fmt: skip
    return PciTree(functions)


NO_TREE = PciTree({}, "not read")


def iommu(gpus: int, *translating: int) -> dict[str, str]:
    return {f"0000:{0x10 + i:02x}:00.0": "translating" if i in translating else "passthrough" for i in range(gpus)}


def facts(probed: Probed, tree: PciTree = NO_TREE, modes: dict[str, str] | None = None) -> list[Fact]:
    return facts_of_probe(probed, table(probed, tree), tree, modes or {})


def diagnosed(probed: Probed, tree: PciTree = NO_TREE, modes: dict[str, str] | None = None, more: tuple[Fact, ...] = ()) -> Diagnosis:
    """As `check` does it: what the machine shows, and what was measured on it."""
    seen = [*facts_of(tree, {}), *(Iommu(source=Source("group", 0, d), mode=m, device=d) for d, m in (modes or {}).items()), *more]
    reading = Reading([*seen, *facts(probed, tree, modes)])
    weighed, unknown = weigh_all(reading)
    return concluded(reading, weighed, unknown, (), ask=False, routes=table(probed, tree))


def leads(diagnosis: Diagnosis) -> str:
    """The cause that is called likely, or the verdict."""
    return diagnosis.causes[0].id if diagnosis.verdict == "faulty" else diagnosis.verdict


def confidence(diagnosis: Diagnosis, cause: str) -> float:
    return next((w.confidence for w in diagnosis.causes if w.id == cause and w.state != "ruled_out"), 0.0)
