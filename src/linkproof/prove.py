"""The probe of one machine, from the plan to what was found. Touches no GPU itself: workers do (probe/workers/worker.py).

In:      how the devices are reached ("cuda" or "sim:FOLDER"), what the person wants.
Out:     Probed: every case that was planned has an outcome, also those that could not be tried.
Unknown: a case of all GPUs at once that hangs or dies is tried again pair by pair, to learn where.
Raises:  UsageError for a pair that is not there. Whatever a GPU does is an outcome.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import combinations
from time import perf_counter

from msgspec import structs

from linkproof.errors import UsageError
from linkproof.measured import Card, Case, Outcome, Probed
from linkproof.probe import counters, multicast
from linkproof.probe.collectives.nccl_said import arms
from linkproof.probe.nvml_counters import Row
from linkproof.probe.plan import Plan, Planned, Wish, effort, plan
from linkproof.probe.setup import OWN_PROCESSES, Effort, Setup
from linkproof.probe.workers.worker import Job, Runner

Told = Callable[[int, int, Case], None]  # done, of how many, what is tried now
DIAGNOSTICS_FROM = (2, 31)
SIMULATED_NCCL = (2, 27, 5)
ENGINES = {"vllm_allreduce": "vllm", "sglang_allreduce": "sglang"}
UNCLEAR = ("hung", "died", "refused")


def nccl_version() -> tuple[int, ...] | None:
    """Of the package that torch loads; None if NCCL came in another way."""
    for name in ("nvidia-nccl-cu13", "nvidia-nccl-cu12", "nvidia-nccl-cu11"):
        try:
            return tuple(int(part) for part in version(name).split(".")[:3])
        except (PackageNotFoundError, ValueError):
            continue
    return None


def planned(cards: Sequence[Card], backend: str, wish: Wish, nccl: tuple[int, ...] | None = None) -> Plan:
    """nccl: its version, where it is not the one of this Python."""
    present = {c.index for c in cards}
    for pair in wish.pairs:
        if not set(pair) <= present or (pair[0] == pair[1] and len(present) > 1):
            known = ", ".join(str(i) for i in sorted(present)) or "-"
            raise UsageError(
                "no-such-pair",
                (f"--pair {pair[0]}:{pair[1]}: the GPUs are {known}", f"--pair {pair[0]}:{pair[1]}：GPU 编号为 {known}"),
                ("nothing was tested", "没有进行任何测试"),
                ("name two of them, source first", "请写出其中两个，源在前"),
            )
    nccl = nccl or (SIMULATED_NCCL if backend == "virtual" else nccl_version())
    absent = [mode for mode, package in ENGINES.items() if find_spec(package) is None]
    absent += [] if nccl is None or nccl >= DIAGNOSTICS_FROM else ["nccl_diag"]
    return plan(cards, backend, arms(len(cards), nccl, wish.deep), wish, absent, multicast.switched_off(os.environ))


def prove(devices: str, wish: Wish, tell: Told = lambda done, of, case: None) -> Probed:
    """Plan and run. tell: what is tried now."""
    begun, seed = perf_counter(), secrets.randbits(64)
    virtual = devices.startswith("sim:")
    cards, backend, work = _asked(devices, seed, effort(wish.deep, virtual, 2))
    if not cards:
        work.close()
        why = work.no_cards
        return Probed((), (), took_s=perf_counter() - begun, notes=((why.why, why.args),) if why else ())
    if effort(wish.deep, virtual, len(cards)) != effort(wish.deep, virtual, 2):
        work.close()
        work = Runner(Setup(devices, seed, effort(wish.deep, virtual, len(cards))))
    with work as runner:
        todo = planned(cards, backend, wish)
        bdfs = [c.bdf for c in cards if c.bdf]
        before = _counted(devices, bdfs)
        outcomes = list(todo.left_out) + _run(runner, todo.jobs, tell)
        rose = counters.compare(before, _counted(devices, bdfs))
    speeds = tuple(o.speed for o in outcomes if o.speed)
    return Probed(tuple(cards), tuple(outcomes), speeds, rose, backend, perf_counter() - begun, todo.cost_s)


def _asked(devices: str, seed: int, work: Effort) -> tuple[list[Card], str, Runner]:
    runner = Runner(Setup(devices, seed, work))
    try:
        return *runner.cards(), runner
    except BaseException:
        runner.close()
        raise


def _counted(devices: str, bdfs: Sequence[str]) -> list[Row]:
    if devices.startswith("sim:"):
        from linkproof.sim.virtual import Virtual

        return [(name, where, str(value)) for name, where, value in Virtual(devices.removeprefix("sim:")).counters()]
    return counters.read(bdfs)


def _run(runner: Runner, jobs: Sequence[Planned], tell: Told) -> list[Outcome]:
    done: list[Outcome] = []
    waiting = list(jobs)
    of = len(waiting)
    ended = 0
    while waiting:
        again: list[Planned] = []
        for job in waiting:
            tell(ended, of, job.case)
            for outcome in runner.run([Job(job.case, job.deadline_s)]):
                if job.case.mode in OWN_PROCESSES and len(job.case.gpus) > 2 and outcome.state in UNCLEAR:
                    again += [structs.replace(job, case=Case(job.case.mode, two)) for two in combinations(job.case.gpus, 2)]
                else:
                    done.append(outcome)
            ended += 1
        waiting = again
        of += len(again)
    return done
