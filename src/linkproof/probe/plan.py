"""Which cases, in which order, at what cost. Pure: the plan can be printed without a GPU, for a machine of any size.

In:      cards, which pairs and modes are wanted, whether NCCL and engines are there, how hard to look.
Out:     Jobs in order with the seconds each should take and may take at most; what is left out, and why, as outcomes `not_tested`.
Unknown: costs are those of one H200 and of copies inside it (bench/results/check_cost.txt): links and processors that are slower take longer.
         Deadlines are far above the costs.
Raises:  nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations

from msgspec import Struct

from linkproof.measured import MODES, Card, Case, Mode, Outcome
from linkproof.probe import multicast
from linkproof.probe.setup import OWN_PROCESSES, SIZES_B, Effort, MiB

DEADLINE_LEAST_S, DEADLINE_TIMES = 30.0, 20.0
UNDER_LOAD = ("push", "store16", "staged")  # the control too, where there are few pairs
MANY_PAIRS = 12
START_S = 3.5  # torch imported once, the first contexts
# seconds of one pair with the effort for 2, for 3 or 4, and for more GPUs; of three GPUs in a row; of a group (fixed, and per process)
COST_S = {
    "staged": (0.14, 0.08, 0.06), "push": (0.10, 0.04, 0.03), "pull": (0.08, 0.03, 0.02), "store": (0.09, 0.03, 0.02), "store16": (0.10, 0.04, 0.03),
    "load": (0.09, 0.03, 0.02), "load16": (0.10, 0.04, 0.03), "views": (0.02, 0.02, 0.02), "pool": (0.08, 0.03, 0.02), "vmm": (0.15, 0.06, 0.03),
    "flags": (0.09, 0.09, 0.05), "atomics": (0.01, 0.01, 0.01), "chain": (0.06, 0.05, 0.04),
}  # fmt: skip
LOAD_COST_S = {"both_ways": 0.03, "all": 0.02}  # of each ordered pair that runs
GROUP_COST_S = {
    "ipc": (0.6, 0.18), "ipc_vmm": (0.6, 0.18), "flags_ipc": (0.9, 0.2), "nccl": (2.8, 0.2), "nccl_diag": (2.8, 0.2), "symm_mem": (4.0, 0.2),
    "nvls": (4.0, 0.2), "vllm_allreduce": (10.0, 0.5), "sglang_allreduce": (10.0, 0.5),
}  # fmt: skip
ABSENT_COST_S = 0.1  # of what is not installed
VIRTUAL_COST_S, VIRTUAL_DEADLINE_TIMES = 0.2, 15.0  # of any case of a simulated machine
DEEP_TIMES = 6.0
CHAINS_MOST = 8


class Planned(Struct, frozen=True):
    case: Case
    cost_s: float
    deadline_s: float


class Plan(Struct, frozen=True):
    jobs: tuple[Planned, ...]
    left_out: tuple[Outcome, ...]

    @property
    def cost_s(self) -> float:
        return START_S + sum(job.cost_s for job in self.jobs)


class Wish(Struct, frozen=True):
    """What the person asked for. pairs and modes: () for all. force: busy GPUs too."""

    pairs: tuple[tuple[int, int], ...] = ()
    modes: tuple[str, ...] = ()
    deep: bool = False
    force: bool = False


def effort(deep: bool, virtual: bool, cards: int) -> Effort:
    """Many GPUs have many pairs: fewer rounds of each keep a check within a minute. A simulated link is the same each time."""
    if virtual:
        most_B = 256 * MiB if deep else 16 * MiB if cards <= 2 else 2 * MiB + 16
        sizes_B = tuple(size_B for size_B in SIZES_B if size_B <= most_B)
        messages = 1_000 if cards <= 2 or deep else 200
        return Effort(sizes_B, rounds_small=2, rounds_big=1, message_rounds=messages, message_deadline_s=1.0, sweep=deep)
    if deep:
        return Effort(rounds_small=50, rounds_big=6, message_rounds=100_000, sweep=True)
    if cards <= 2:
        return Effort(rounds_small=12, rounds_big=3)
    return Effort(rounds_small=4, rounds_big=2) if cards <= 4 else Effort(rounds_small=2, rounds_big=1, message_rounds=5_000)


def plan(
    cards: Sequence[Card], backend: str, nccl_arms: Sequence[str], wish: Wish, absent: Sequence[str] = (), multicast_off: str = ""
) -> Plan:
    """One card alone is tried with itself: that tests the card, no link. absent: modes that are sure to be missing here; their own case says
    why. multicast_off: the setting of the environment that switches NVLink multicast off."""
    free = [c.index for c in cards if wish.force or not c.busy]
    left: list[Outcome] = [
        Outcome(Case("push", (card.index, card.index)), "not_tested", "GPU {gpu} is in use ({by}); --force tests it all the same",
                {"gpu": str(card.index), "by": card.busy})
        for card in cards if card.index not in free
    ]  # fmt: skip
    ordered = list(permutations(free, 2)) or [(i, i) for i in free[:1]]
    pairs = [p for p in ordered if not wish.pairs or p in wish.pairs]
    jobs: list[Planned] = []
    for case in _cases(pairs, free, nccl_arms, wish):
        mode = MODES[case.mode]
        if mode.nvidia and backend == "hip":
            left.append(Outcome(case, "not_tested", "only written for NVIDIA GPUs"))
        elif mode.scope == "group" and case.mode != "nccl" and backend == "virtual":
            continue  # a simulated machine has no engines: there is nothing that could be missing
        elif case.mode == multicast.MODE and (missing := multicast.absent(case, cards, multicast_off)):
            left.append(missing)
        elif case.mode == multicast.MODE and not _wanted(mode, wish):
            left.append(multicast.unasked(case))
        else:
            virtual = backend == "virtual"
            # simulated GPUs share the cores of this computer: more of them take longer
            simulated_s = VIRTUAL_COST_S * max(1.0, len(case.gpus) / 2) * (DEEP_TIMES if wish.deep else 1)
            cost_s = simulated_s if virtual else ABSENT_COST_S if case.mode in absent else _cost_s(case, len(cards), wish.deep)
            deadline_s = VIRTUAL_DEADLINE_TIMES * simulated_s if virtual else max(DEADLINE_LEAST_S, DEADLINE_TIMES * cost_s)
            jobs.append(Planned(case, cost_s, deadline_s))
    return Plan(tuple(jobs), tuple(left))


def _wanted(mode: Mode, wish: Wish) -> bool:
    return mode.name in wish.modes if wish.modes else wish.deep or mode.level == "check"


def _cases(pairs: Sequence[tuple[int, int]], free: Sequence[int], nccl_arms: Sequence[str], wish: Wish) -> Iterator[Case]:
    """The control first, cheap and telling modes before dear ones, single pairs before all at once."""
    wanted = [
        m for m in MODES.values() if _wanted(m, wish) or (m.name == multicast.MODE and not wish.modes)
    ]  # `plan` says why it is left out
    if not pairs:
        return
    for mode in (m for m in wanted if m.scope == "pair" and m.name not in OWN_PROCESSES):
        for pair in pairs:
            yield Case(mode.name, pair)
    for mode in (m for m in wanted if m.scope == "chain"):
        for three in list(_chains(free))[: None if wish.deep else CHAINS_MOST]:
            yield Case(mode.name, three)
    several = tuple(sorted({i for p in pairs for i in p}))
    for how in UNDER_LOAD[: 2 if len(pairs) > MANY_PAIRS and not wish.deep else 3]:
        if any(m.name == how for m in wanted) and len(several) > 1:
            for a, b in sorted({(min(p), max(p)) for p in pairs}):
                yield Case(how, (a, b), "both_ways")
            if len(several) > 2 and not wish.pairs:
                yield Case(how, several, "all")
    ranks = several if len(several) > 1 else several * 2
    for mode in (m for m in wanted if m.name in OWN_PROCESSES):
        yield Case(mode.name, ranks)
    for mode in (m for m in wanted if m.scope == "group"):
        for arm in nccl_arms if mode.name == "nccl" else ("",):
            yield Case(mode.name, ranks, arm=arm)


def _chains(free: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Each GPU once at every place: neighbours in the order of their numbers; two GPUs go there and back."""
    n = len(free)
    for i in range(n) if n > 1 else ():
        yield free[i], free[(i + 1) % n], free[(i + 2) % n]


def _cost_s(case: Case, cards: int, deep: bool) -> float:
    if case.load != "alone":
        return LOAD_COST_S[case.load] * len(case.gpus) * max(1, len(case.gpus) - 1)
    if case.mode in GROUP_COST_S:
        fixed_s, each_s = GROUP_COST_S[case.mode]
        return fixed_s + each_s * len(case.gpus)
    return COST_S[case.mode][2 if cards > 4 else 1 if cards > 2 else 0] * (DEEP_TIMES if deep else 1)
