"""What a worker does: from a case to the check that tries it. Runs inside the child processes; the parent never imports what touches a GPU.

In:      a Case and the Setup; the launcher (probe/workers/launcher.py) calls the four functions below by name.
Out:     Outcomes; a case of all pairs at once gives one for each pair.
Raises:  what devices.py names; the worker turns that into states.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

from msgspec import structs

from linkproof.measured import Case, Outcome
from linkproof.probe import copy_check, copy_speed, ipc_check, kernel_checks, load_check
from linkproof.probe.devices import HOWS, Devices
from linkproof.probe.faults import parse
from linkproof.probe.faulty import Faulty
from linkproof.probe.setup import OWN_PROCESSES, Setup

# mode -> (allocator, ways of moving)
COPIES = {**{how: ("plain", (how,)) for how in HOWS}, "pool": ("pool", ("push",)), "vmm": ("vmm", ("push", "store16"))}
KERNELS: dict[str, Callable[[Devices, Case, Setup], Outcome]] = {
    "views": kernel_checks.views,
    "flags": kernel_checks.flags,
    "atomics": kernel_checks.atomics,
    "chain": kernel_checks.chain,
}


def make_devices(setup: Setup) -> Devices:
    if setup.virtual:
        from linkproof.sim.virtual import Virtual

        return Virtual(setup.devices.removeprefix("sim:"))
    from linkproof.probe.gpu.cuda import Cuda

    return Cuda()


def run_case(devices: Devices, case: Case, setup: Setup) -> list[Outcome]:
    """One process, one case. For `both_ways` and `all` the case names the GPUs whose pairs run at once."""
    if case.fault:
        devices = Faulty(devices, parse(case.fault), setup.seed)
    if case.load != "alone":
        return _loaded(devices, case, setup)
    if case.mode == "flags_ipc":  # of a simulated machine, which plays both sides; a real one has a process for each
        pairs = list(permutations(case.gpus, 2))
        return [kernel_checks.flags(devices, structs.replace(case, gpus=pair), setup) for pair in pairs]
    if case.mode in KERNELS:
        if case.mode != "chain":
            kernel_checks.possible(devices, *case.gpus)
        return [KERNELS[case.mode](devices, case, setup)]
    if case.mode in COPIES:
        kind, ways = COPIES[case.mode]
        if ways != ("staged",):
            kernel_checks.possible(devices, *case.gpus)
        outcome = copy_check.run(devices, case, setup, kind, ways)
        if outcome.state == "verified" and case.mode in copy_speed.MODES:
            outcome = structs.replace(outcome, speed=copy_speed.measure(devices, [(case.gpus[0], case.gpus[1])], case.mode)[0])
        return [outcome]
    from linkproof.sim.nccl import run as nccl  # a real machine runs collectives in a gang

    return [nccl(devices, case, setup)]


def _loaded(devices: Devices, case: Case, setup: Setup) -> list[Outcome]:
    gpus = case.gpus
    pairs = list(permutations(gpus, 2)) or [(gpus[0], gpus[0])]
    for src, dst in pairs if case.mode != "staged" else ():
        kernel_checks.possible(devices, src, dst)
    devices.loaded = True
    try:
        outcomes = load_check.run(devices, pairs, case.mode, case.load, setup)
        speeds = {(s.src, s.dst): s for s in copy_speed.measure(devices, pairs, case.mode, case.load)}
    finally:
        devices.loaded = False
    return [
        structs.replace(o, case=structs.replace(o.case, fault=case.fault), speed=speeds[o.case.gpus[0], o.case.gpus[1]]) for o in outcomes
    ]


def run_member(case: Case, setup: Setup, member: int, members: int, folder: str) -> list[Outcome]:
    """One of several processes of a case."""
    if case.mode in OWN_PROCESSES:
        return ipc_check.member(make_devices(setup), case, setup, member, folder)
    from linkproof.probe.collectives import groups

    return [groups.member(case, setup, member, members, folder)]


def member_env(case: Case, setup: Setup, member: int, members: int) -> dict[str, str]:
    """The environment that a member needs before it loads anything."""
    if case.mode in OWN_PROCESSES:
        return {}
    from linkproof.probe.collectives import groups

    return groups.member_env(case, setup, member, members)
