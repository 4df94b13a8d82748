"""What was measured -> facts, in the words that logs and people use too. Pure: the same Probed gives the same facts on any machine.

In:      Probed, its RouteTable, the PCI tree, the IOMMU mode of each GPU (by address).
Out:     Copy and PeerAccess per mode, Collective and Setting per NCCL arm, Gpu, link counters that rose, Event p2p_slower; and Pairs: which
         pairs fail, and what stands on their way (pairs.py).
Unknown: a pair whose control through host memory fails says nothing about its link: it gives the control's fact and no other.
Raises:  nothing.
"""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterator, Mapping

from linkproof.measured import MODES, Counter, Outcome, Probed, few_crc, risen
from linkproof.measured_facts.pairs import pair_facts
from linkproof.model import Collective, Copy, Event, Fact, Gpu, KernelLog, Line, PeerAccess, Setting, Source, Text, Unknown
from linkproof.parse import read
from linkproof.parse.pci_tree import PciTree
from linkproof.routes import DIRECT, Cell, RouteTable, worst

PROBE = "probe"
_NO_PEER = ("push", "pull", "store", "store16", "load", "load16")  # refused: the driver offers no peer access
_RESULTS = {"hung": "hang", "died": "error", "slow": "slow", "refused": "error"}  # refused: of collectives only


def told(cell: Cell) -> Source:
    """One measurement as a line that a sign can cite: the words of measured.py and numbers, which read the same in every language."""
    way = " -> ".join(f"GPU{g}" for g in cell.gpus) if len(cell.gpus) < 4 else f"{len(cell.gpus)} GPUs"
    name = f"{cell.mode} {cell.arm}" if cell.arm else cell.mode
    return Source(PROBE, 0, f"{way} {name}: {' '.join(_words(cell, cell.told))}"[:300])


def _words(cell: Cell, o: Outcome | None) -> Iterator[str]:
    yield cell.state
    if o is not None and o.case.load != "alone":
        yield f"load={o.case.load}"
    if o is not None and o.wrong:
        w = o.wrong[0]
        yield f"{w.kind}{f'({w.detail})' if w.detail else ''} bad_B={w.bad_B:,} size_B={o.size_B:,} first_B={w.first_B:,} round={o.round_ + 1}"
    elif cell.state == "verified" and o is not None and o.verified_B:
        yield f"verified_B={o.verified_B:,} rounds={o.rounds}"
    else:
        yield from (f"{name}={value}" for name, value in cell.args.items() if value)


def result_of(cell: Cell) -> str:
    """The word of a Copy or Collective fact."""
    if cell.state != "corrupt":
        return _RESULTS.get(cell.state, "ok")
    kinds = {w.kind for w in cell.told.wrong} if cell.told is not None else set()
    return "zeros" if kinds == {"zero"} else "stale" if "stale" in kinds and kinds <= {"stale", "untouched"} else "wrong"


def facts_of_probe(probed: Probed, routes: RouteTable, tree: PciTree, iommu_modes: Mapping[str, str]) -> list[Fact]:
    facts: list[Fact] = list(_cards(probed))
    on_trial = [p for p in routes.pairs if not routes.cell(*p, "staged").bad]
    for mode in ("staged", *DIRECT):
        facts.extend(_copies(routes, mode, routes.pairs if mode == "staged" else on_trial))
    facts.extend(_peer_access(routes))
    facts.extend(_alone(routes))
    facts.extend(_chains(routes))
    facts.extend(_slower(routes, on_trial))
    facts.extend(_collectives(routes))
    for counter in probed.counters:
        facts.extend(_risen(counter, probed.took_s))
    facts.extend(pair_facts(probed, routes, tree, iommu_modes, told))
    return facts


def _cards(probed: Probed) -> Iterator[Fact]:
    for name, count in Count(c.name for c in probed.cards).items():
        yield Gpu(source=Source(PROBE, 0, f"{count} x {name}"), name=name, count=count)


def _which(some: list[tuple[int, int]], every: list[tuple[int, int]]) -> str:
    """The word for `pairs`: all, the only one as "0-1", or some."""
    if set(some) == set(every):
        return "all"
    both = {(min(p), max(p)) for p in some}
    return "{}-{}".format(*both.pop()) if len(both) == 1 else "some"


# ---------------------------------------------------------------- copies


def _copies(routes: RouteTable, mode: str, pairs: list[tuple[int, int]]) -> Iterator[Fact]:
    """One fact per result of a mode, told by its first pair."""
    by_result: dict[str, list[Cell]] = {}
    for src, dst in pairs:
        cell = routes.cell(src, dst, mode)
        if cell.state not in ("refused", "not_tested"):
            by_result.setdefault(result_of(cell), []).append(cell)
    for result, found in by_result.items():
        which = _which([(c.gpus[0], c.gpus[1]) for c in found], routes.pairs)
        yield Copy(source=told(found[0]), via=MODES[mode].via, result=result, pairs=which)
    if mode == "ipc" and routes.over_pairs("push") in ("verified", "slow"):
        refused = [routes.cell(a, b, mode) for a, b in pairs if routes.state(a, b, mode) == "refused"]
        if refused:  # the memory can be reached, and not handed to another process
            yield Copy(source=told(refused[0]), via="ipc", result="error", pairs=_which([c.gpus[:2] for c in refused], routes.pairs))  # type: ignore[misc]


def _peer_access(routes: RouteTable) -> Iterator[Fact]:
    states = {p: worst(s for m in _NO_PEER if (s := routes.state(*p, m)) != "not_tested") for p in routes.pairs}
    refused = [p for p in routes.pairs if any(routes.state(*p, m) == "refused" for m in _NO_PEER)]
    if refused:
        cell = next(c for m in _NO_PEER if (c := routes.cell(*refused[0], m)).state == "refused")
        claimed = "none" if len(refused) == len(routes.pairs) else "some"
        yield PeerAccess(source=told(cell), claimed=claimed, pairs=_which(refused, routes.pairs))
    elif routes.pairs and all(s != "not_tested" for s in states.values()):  # what was tried was allowed
        a, b = routes.pairs[0]
        yield PeerAccess(source=Source(PROBE, 0, f"GPU{a} -> GPU{b} ... ({len(routes.pairs)}): can_access_peer=1"), claimed="all")


def _alone(routes: RouteTable) -> Iterator[Fact]:
    """A card with itself: no link is in use."""
    cells = [c for (a, b, mode), c in routes.cells.items() if a == b and MODES[mode].judged]
    bad = next((c for c in cells if c.bad), None)
    right = next((c for c in cells if c.state == "verified"), None)
    if bad is not None or right is not None:
        cell = bad or right
        assert cell is not None
        yield Copy(source=told(cell), via="self", result=result_of(cell), pairs=str(cell.gpus[0]))


def _chains(routes: RouteTable) -> Iterator[Fact]:
    """A chain says something of its own only where every hop alone is right. A bad one goes before all right ones."""
    for cell in sorted(routes.chains, key=lambda c: not c.bad):
        hops = [(a, b) for a, b in zip(cell.gpus, cell.gpus[1:], strict=False) if a != b]
        right = all(routes.state(*hop, mode) in ("verified", "slow") for hop in hops for mode in ("staged", "push"))
        if right and (cell.bad or cell.state == "verified"):
            yield Copy(source=told(cell), via="chain", result=result_of(cell), pairs="some")
            return


def _slower(routes: RouteTable, pairs: list[tuple[int, int]]) -> Iterator[Fact]:
    """The direct way is slower than the way through the host."""
    for mode in ("push", "pull"):
        found = [c for p in pairs if (c := routes.cell(*p, mode)).state == "slow" and "host memory" in c.why]
        if found:
            first = found[0]
            value = f"GPU{first.gpus[0]} -> GPU{first.gpus[1]} {mode} {first.args['bw']} GB/s, staged {first.args['against']} GB/s"
            yield Event(source=told(first), kind="p2p_slower", value=value)
            return


# ---------------------------------------------------------------- collectives

_ENGINES = {"vllm_allreduce": "custom_allreduce", "sglang_allreduce": "custom_allreduce", "symm_mem": "symm_mem"}
_DIAG = {"verified": "nccl_diag_ok", "corrupt": "nccl_diag_mismatch", "died": "nccl_diag_failed", "hung": "nccl_diag_failed"}


def _collectives(routes: RouteTable) -> Iterator[Fact]:
    library = "rccl" if routes.backend == "hip" else "nccl"
    for (mode, _arm), cell in routes.groups.items():
        if mode == "nccl_diag" and cell.state in _DIAG:
            yield Event(source=told(cell), kind=_DIAG[cell.state])
        if mode in ("nccl", "nccl_diag") or cell.state in ("refused", "not_tested"):
            continue
        transport = "nvls" if mode == "nvls" else "default"
        yield _collective(cell, _ENGINES.get(mode, library), transport)
    yield from _nccl(routes, library)


def _collective(cell: Cell, engine: str, transport: str) -> Collective:
    op = cell.told.op if cell.told is not None else ""
    ranks = str(len(cell.gpus)) if cell.gpus else ""
    return Collective(source=told(cell), engine=engine, result=result_of(cell).replace("zeros", "wrong").replace("stale", "wrong"),
                      op=op, transport=transport, ranks=ranks)  # fmt: skip


def _nccl(routes: RouteTable, library: str) -> Iterator[Fact]:
    """Each arm is a setting that was tried. A transport of which only one protocol fails is not itself at fault."""
    arms: dict[str, dict[str, Cell]] = {}
    for cell in routes.groups.values():
        impossible = cell.state == "refused" and cell.arm.startswith("p2p/")  # no peer access: said by PeerAccess
        if cell.mode == "nccl" and cell.state != "not_tested" and not impossible:
            transport, _, protocol = cell.arm.partition("/")
            arms.setdefault(transport, {})[protocol] = cell
    default = arms.get("default", {}).get("default")
    at_fault: dict[str, bool] = {}
    for transport, by_protocol in arms.items():
        bad = {p: c for p, c in by_protocol.items() if c.bad or c.state == "refused"}
        right = {p: c for p, c in by_protocol.items() if p not in bad and p != "default"}
        only = {p: c for p, c in bad.items() if p != "default"}
        if only and right:  # a matter of the protocol
            for protocol, cell in only.items():
                yield Setting(source=told(cell), name=f"NCCL_PROTO={protocol}", effect="worse", key="NCCL_PROTO", value=protocol)
            if default is not None and default.bad:
                protocol = next(iter(right))
                name = f"NCCL_PROTO={protocol}"
                yield Setting(source=told(right[protocol]), name=name, effect="cured", key="NCCL_PROTO", value=protocol)
                yield _collective(next(iter(only.values())), library, "default")
            continue
        at_fault[transport] = bool(bad)
        yield _collective(next(iter((bad or by_protocol).values())), library, transport)
    shm = arms.get("shm", {}).get("default")
    if at_fault.get("default") and at_fault.get("shm") and shm is not None and default is not None:
        name = "NCCL_P2P_DISABLE=1"
        yield Setting(source=told(shm), name=name, effect="no_effect", key="NCCL_P2P_DISABLE", value="1")


# ---------------------------------------------------------------- counters


def _risen(counter: Counter, took_s: float) -> Iterator[Fact]:
    """What rose, or was lost, under the traffic, which took took_s (0: not known)."""
    if counter.after is None or counter.before is None or counter.after == counter.before:
        return
    name, where = counter.name, counter.where
    words = f"{where} {name}: before={counter.before} after={counter.after}"
    source = Source(PROBE, 0, words[:300])
    if name == "kernel log":
        yield from _new_lines(counter)
    elif name == "link width":
        yield Event(source=source, kind="link_downgraded", value=f"{where} {counter.before} -> {counter.after}")
    elif not risen(counter):
        return
    elif name.startswith("AER"):
        rose = int(counter.after) - int(counter.before)
        if "nonfatal" in name.replace("-", "").lower():
            yield Event(source=source, kind="aer_seen", value=f"{where} non-fatal")
        else:
            fact = "aer_fatal" if "fatal" in name.lower() else "aer_corrected"
            yield KernelLog(source=source, fact=fact, device=where, value=str(rose), count=rose)
    elif name.startswith("PCIe replay"):
        yield Event(source=source, kind="pcie_replays", value=f"{where}: +{int(counter.after) - int(counter.before)}")
    elif name.startswith("NVLink"):
        fact = "nvlink_crc" if few_crc(counter, took_s) else "nvlink_errors"
        yield Gpu(source=source, fact=fact, value=f"{where} {name}: +{int(counter.after) - int(counter.before)}")


def _new_lines(counter: Counter) -> Iterator[Fact]:
    old = set((counter.before or "").splitlines())
    new = [line for line in (counter.after or "").splitlines() if line not in old][-500:]
    lines = [Line(number, line) for number, line in enumerate(new, 1)]
    yield from (f for f in read(Text("kernel log during the traffic", lines)) if not isinstance(f, Unknown))
