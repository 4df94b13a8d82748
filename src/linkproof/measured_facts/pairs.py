"""Which pairs fail, and what stands on their way: the pattern that tells one cause from another. Pure.

In:      RouteTable and Probed, the PCI tree, the IOMMU mode of each GPU.
Out:     `Pairs` facts, counted over ordered pairs; one for each thing that at least one failing pair has or has not.
Unknown: a pair of which a thing cannot be known (ACS without root, no tree) is counted as such, and a conclusion needs that count to be 0.
Raises:  nothing.

A pair fails if a direct mode is corrupt, hung or died while its control through host memory does not. Where no pair fails, the slow ones
are the failing ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from msgspec import Struct

from linkproof.measured import Counter, Probed, few_crc
from linkproof.model import Fact, Pairs, Pattern, Source
from linkproof.parse.pci_tree import NVIDIA, PciFunction, PciTree
from linkproof.parse.topology import path
from linkproof.routes import DIRECT, Cell, RouteTable, link_GBps, speeds, worst

Pair = tuple[int, int]
Has = Callable[[Pair], "bool | None"]
OVER_PCIE = 1.1  # of what the PCIe link carries before headers
SLOWER_NVLINK = 0.9  # one link of 18 lost is 0.94 and lies within the spread, one of 4 is 0.75
_COPIES, _KERNELS = ("push", "pull"), ("store", "store16", "load", "load16")


class _View(Struct):
    """One table, asked by pair."""

    routes: RouteTable
    tree: PciTree
    modes: Mapping[str, str]
    counters: tuple[Counter, ...]

    def function(self, gpu: int) -> PciFunction | None:
        bdf = next((c.bdf for c in self.routes.cards if c.index == gpu), "")
        return self.tree.functions.get(bdf)

    def ends(self, pair: Pair) -> tuple[PciFunction, PciFunction] | None:
        a, b = self.function(pair[0]), self.function(pair[1])
        return (a, b) if a is not None and b is not None else None

    def bad(self, pair: Pair, modes: tuple[str, ...] = DIRECT) -> Cell | None:
        """The worst direct mode of a pair, if it failed."""
        cells = [c for m in modes if (c := self.routes.cell(*pair, m)).bad]
        return cells[0] if cells else None

    def right(self, pair: Pair, modes: tuple[str, ...]) -> bool:
        states = [self.routes.state(*pair, m) for m in modes]
        return all(s in ("verified", "slow", "not_tested") for s in states) and any(s in ("verified", "slow") for s in states)

    def slow(self, pair: Pair) -> Cell | None:
        return next((c for m in _COPIES if (c := self.routes.cell(*pair, m)).state == "slow"), None)

    def passes(self, pair: Pair) -> bool:
        return worst(s for m in DIRECT if (s := self.routes.state(*pair, m)) != "not_tested") in ("verified", "slow", "refused") and any(
            self.routes.state(*pair, m) in ("verified", "slow") for m in DIRECT
        )


# ---------------------------------------------------------------- what a pair has on its way


def _redirects(view: _View, pair: Pair) -> bool | None:
    """The ports where the way turns decide. Where it leads through the CPU every packet goes up anyway: there the bits of the root ports
    decide whether the IOMMU sees it, and matter only if that translates."""
    ends = view.ends(pair)
    if ends is None:
        return None
    way = path(*ends)
    ports = [view.tree.functions[b] for b in way.turning or way.ports]
    ports = ports if way.turning else [p for p in ports if p.kind == "root_port"]
    said = [False if p.acs_why == "no ACS capability" else p.redirects for p in ports]
    if any(said):
        return True if way.turning else _translating(view, pair)
    return None if None in said or not said else False


def _translating(view: _View, pair: Pair) -> bool | None:
    ends = view.ends(pair)
    modes = [view.modes.get(f.bdf, "unknown") for f in ends] if ends is not None else ["unknown"]
    return True if "translating" in modes else None if "unknown" in modes else False


def _crosses_cpu(view: _View, pair: Pair) -> bool | None:
    ends = view.ends(pair)
    return None if ends is None else path(*ends).smi in ("PHB", "NODE", "SYS")


def _on_way(view: _View, pair: Pair) -> list[PciFunction] | None:
    ends = view.ends(pair)
    return None if ends is None else [*ends, *(view.tree.functions[b] for b in path(*ends).ports)]


def _narrow(view: _View, pair: Pair) -> bool | None:
    found = _on_way(view, pair)
    return None if found is None else any(view.tree.narrowed(f) is not None for f in found)


def _counted(view: _View, pair: Pair) -> bool | None:
    """A counter of a device on the way rose, or its link lost lanes."""
    names = {f"GPU {pair[0]}", f"GPU {pair[1]}"} | {f.bdf for f in _on_way(view, pair) or ()}
    return any(_worse(c) and (c.where in names or c.where.partition(" link ")[0] in names) for c in view.counters)


def _worse(c: Counter) -> bool:
    """Counts that rose, lanes that were lost. A kernel log names its devices itself."""
    before, after = (c.before or "").lstrip("x"), (c.after or "").lstrip("x")
    if not (before.isdecimal() and after.isdecimal() and len(before) < 20 and len(after) < 20):
        return False
    return int(after) < int(before) if c.name == "link width" else int(after) > int(before)


# ---------------------------------------------------------------- how a pair fails


def _only_under_load(view: _View, pair: Pair) -> bool:
    tries = [load for m in DIRECT for load in view.routes.cell(*pair, m).loads]
    bad = [load for load, state in tries if state in ("corrupt", "hung", "died")]
    return bool(bad) and "alone" not in bad


def _mirror(view: _View, pair: Pair) -> bool:
    cell = view.routes.cell(*pair, "views")
    return cell.state == "corrupt" and "mirror" in cell.args


def _bits(view: _View, pair: Pair) -> bool:
    kinds = {w.kind for m in DIRECT if (o := view.routes.cell(*pair, m).told) is not None for w in o.wrong}
    return kinds == {"bits"}


def bar1_B(gpu: PciFunction | None) -> int:
    """NVIDIA's second window, through which others reach the memory; 0 not known."""
    return gpu.bars_B[1] if gpu is not None and gpu.vendor == NVIDIA and len(gpu.bars_B) > 1 else 0


def _beyond_bar1(view: _View, pair: Pair) -> bool | None:
    """BAR1 of the target is smaller than its memory, and only large transfers are wrong: what lies beyond it is not reached."""
    size_B = bar1_B(view.function(pair[1]))
    memory_B = next((c.memory_B for c in view.routes.cards if c.index == pair[1]), 0)
    if not size_B or not memory_B:
        return None
    bad = [o for m in DIRECT if (o := view.routes.cell(*pair, m).told) is not None and o.state == "corrupt" and o.smallest_bad_B]
    return size_B < memory_B and bool(bad) and all(o.largest_ok_B and o.smallest_bad_B > o.largest_ok_B for o in bad)


# ---------------------------------------------------------------- counting


def pair_facts(
    probed: Probed, routes: RouteTable, tree: PciTree, iommu_modes: Mapping[str, str], told: Callable[[Cell], Source]
) -> Iterator[Fact]:
    counters = tuple(c for c in probed.counters if not few_crc(c, probed.took_s))
    view = _View(routes, tree, iommu_modes, counters)
    yield from _control(view, told)
    yield from _uneven(view, probed)
    on_trial = [p for p in routes.pairs if not routes.cell(*p, "staged").bad]
    failing = {p: c for p in on_trial if (c := view.bad(p)) is not None}
    ill = "wrong"
    passing = [p for p in on_trial if p not in failing and view.passes(p)]
    if not failing:
        ill, failing = "slow", {p: c for p in on_trial if (c := view.slow(p)) is not None}
        passing = [p for p in passing if p not in failing]
    if not failing:
        return
    source = told(next(iter(failing.values())))
    first = source.text

    def count(what: str, has: Has, where: str = "") -> Pairs:
        f, p = [has(x) for x in failing], [has(x) for x in passing]
        shares = f"failing={f.count(True)}/{len(f)} passing={p.count(True)}/{len(p)}"
        cite = Source(source.file, 0, f"{where or what}: {shares}; {first}"[:300])
        return Pairs(source=cite, what=what, ill=ill, failing_with=f.count(True), failing_without=f.count(False),
                     passing_with=p.count(True), passing_without=p.count(False), unknown=f.count(None) + p.count(None), where=where)  # fmt: skip

    yield count("redirects", lambda p: _redirects(view, p))
    yield count("translating", lambda p: _translating(view, p))
    yield count("crosses_cpu", lambda p: _crosses_cpu(view, p))
    for what, has in (("narrow", _narrow), ("counted", _counted)):
        if (fact := count(what, lambda p, has=has: has(view, p))).failing_with:  # type: ignore[misc]
            yield fact
    yield from _places(list(failing), passing, count)
    if passing and ill == "wrong":
        yield Pattern(source=source, fact="only_some_pairs", value=", ".join(f"{a}->{b}" for a, b in list(failing)[:8]))
    if ill == "wrong":
        yield from _manners(view, failing, count, source)


def _places(failing: list[Pair], passing: list[Pair], count: Callable[[str, Has, str], Pairs]) -> Iterator[Fact]:
    """One GPU, one pair, one direction: said only where it is so."""
    if len({g for p in failing + passing for g in p}) > 2:
        one = next((fact for g in sorted({g for p in failing for g in p}) for fact in _of_gpu(g, count) if fact.follows), None)
        if one is not None:
            yield one
        elif len({frozenset(p) for p in failing}) == 1:
            a, b = sorted(failing[0])
            yield count("one_pair", lambda p: set(p) == {a, b}, f"GPU {a} - GPU {b}")
    back = count("one_direction", lambda p: (p[1], p[0]) in passing, "")
    if back.all_failing:
        yield back


def _of_gpu(g: int, count: Callable[[str, Has, str], Pairs]) -> Iterator[Pairs]:
    yield count("one_gpu", lambda p: g in p, f"GPU {g}")
    yield count("one_gpu", lambda p: p[1] == g, f"-> GPU {g}")
    yield count("one_gpu", lambda p: p[0] == g, f"GPU {g} ->")


def _manners(view: _View, failing: Mapping[Pair, Cell], count: Callable[[str, Has], Pairs], source: Source) -> Iterator[Fact]:
    """How they fail: said where at least one pair fails so."""
    manners: dict[str, Has] = {
        "under_load": lambda p: p in failing and _only_under_load(view, p),
        "stores_only": lambda p: p in failing and view.right(p, _COPIES) and view.bad(p, _KERNELS) is not None,
        "flags_only": lambda p: p in failing and view.right(p, _COPIES) and view.right(p, _KERNELS) and view.bad(p, ("flags",)) is not None,
        "mirror": lambda p: p in failing and _mirror(view, p),
        "beyond_bar1": lambda p: p in failing and _beyond_bar1(view, p),
        "bits": lambda p: p in failing and _bits(view, p),
    }
    for what, has in manners.items():
        if (fact := count(what, has)).failing_with:
            yield fact
            if what == "under_load" and fact.all_failing:
                yield Pattern(source=source, fact="under_load")


def _uneven(view: _View, probed: Probed) -> Iterator[Fact]:
    """Pairs faster than their PCIe links could be are joined otherwise. Among these, are some slower? Alone that accuses nobody: there are
    machines with one and with two links between pairs."""
    found = {}
    for (a, b, mode), s in speeds(probed).items():
        ends = view.ends((a, b)) if mode == "push" and a != b else None
        link = link_GBps(view.tree, *ends) if ends is not None else None
        if link is not None and s.bw_GBps > OVER_PCIE * link[0]:
            found[a, b] = s.bw_GBps
    best = max(found.values(), default=0.0)
    slow = {p: bw for p, bw in found.items() if bw < SLOWER_NVLINK * best}
    if slow:
        (a, b), bw = min(slow.items(), key=lambda item: item[1])
        where = f"GPU{a} -> GPU{b} {bw:.1f} GB/s < {best:.1f} GB/s"
        yield Pairs(source=Source("probe", 0, where), what="slower_nvlink", ill="slow", failing_with=len(slow),
                    passing_without=len(found) - len(slow), where=where)  # fmt: skip


def _control(view: _View, told: Callable[[Cell], Source]) -> Iterator[Fact]:
    """The way through host memory fails: whose card is it?"""
    tried = [p for p in view.routes.pairs if view.routes.state(*p, "staged") not in ("not_tested", "refused")]
    failing = [p for p in tried if view.routes.cell(*p, "staged").bad]
    gpus = sorted({g for p in failing for g in p}, key=lambda g: -sum(g in p for p in failing))
    if not failing or len({g for p in tried for g in p}) < 3:
        return
    one = gpus[0]
    with_, without = [p for p in failing if one in p], [p for p in failing if one not in p]
    right = [p for p in tried if p not in failing]
    yield Pairs(
        source=told(view.routes.cell(*failing[0], "staged")), what="control_one_gpu", failing_with=len(with_), failing_without=len(without),
        passing_with=sum(one in p for p in right), passing_without=sum(one not in p for p in right), where=f"GPU {one}",
    )  # fmt: skip
