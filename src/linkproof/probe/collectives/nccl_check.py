"""Is the sum right on every rank, and does it end? NCCL's send/recv, all-reduce, all-gather and broadcast, per transport and protocol.

One process per rank (a member of the gang), freshly forked, `arm_env` set before; they meet through a file, not a port.

    arm          what it asks                                            how it is proved, from NCCL's own log
    default/..   what the user's own settings give: an engine's verdict  (nothing to prove; the transport is told)
    p2p/..       P2P on every path (NCCL_P2P_LEVEL=SYS), NVLS off        each `via` line says P2P, else "not tested"
    shm/..       P2P off                                                 SHM
    net/..       P2P and SHM off                                         NET (sockets of this host)
    ../LL ..     NCCL_PROTO                                              TUNING lines from 2.22 on; before, only that NCCL took the setting

A forced arm sets every variable that chooses transport, algorithm or protocol by itself; /etc/nccl.conf, ~/.nccl.conf and NCCL_CONF_FILE
set only what the environment does not, so they need not be hidden, and what they say of interfaces and topology stays.
A protocol binds the collectives only: send and receive choose between LL and Simple by size.
In:      Case (mode nccl, arm), Setup, rank, folder that the ranks share. Setup.devices "gloo": the same on CPU, without transports.
Out:     this rank's Outcome: every element of every transfer compared on the device, guards around it too; the first wrong transfer named.
Unknown: a transport or protocol that the log does not prove is `not_tested`; wrong data are `corrupt` whichever road they took.
Raises:  nothing of NCCL's: an error is an Outcome. A hang is the runner's business; `nccl_said.hung` tells from the ranks' notes where it is.
Source:  NCCL `src/misc/param.cc` (setenv without overwrite), `src/graph/paths.cc`, `src/enqueue.cc`; PyTorch's c10d.
"""

from __future__ import annotations

import json
import statistics
from time import perf_counter

import msgspec
import torch
import torch.distributed as dist

from linkproof.measured import Case, Outcome
from linkproof.probe.collectives import nccl_said
from linkproof.probe.collectives.ranks import GUARD_W, Ranks, dtype_name, nccl_version, one_card
from linkproof.probe.payload import WORD_B
from linkproof.probe.setup import KiB, MiB, Setup

SIZES_B = (8, 256, 4 * KiB - 16, 8 * KiB, 64 * KiB, 297 * KiB, 1 * MiB, 16 * MiB)
DEEP_SIZES_B = (1 * KiB, 4 * KiB + 16, 64 * KiB - 16, 64 * KiB + 16, 2 * MiB - 16, 2 * MiB + 16, 256 * MiB)
DTYPES = (torch.bfloat16, torch.int64, torch.float16, torch.float32, torch.int32)
SPEED_MAX_B = 64 * MiB
HOLD_TURNS = 4_000_000  # of the GPU's clock, some 2 ms: longer than it takes to ask for all that is timed at once
LL_MAX_B = 16 * MiB  # half of what LL carries are flags: NCCL takes it for small messages; through sockets, large ones take minutes
SUBSYSTEMS = "INIT,ENV,P2P,SHM,NET,TUNING"
FORCED = {
    "NCCL_P2P_LEVEL": "SYS", "NCCL_P2P_DIRECT_DISABLE": "0", "NCCL_P2P_READ_ENABLE": "-2", "NCCL_P2P_USE_CUDA_MEMCPY": "0",
    "NCCL_SHM_USE_CUDA_MEMCPY": "0", "NCCL_NVLS_ENABLE": "0", "NCCL_COLLNET_ENABLE": "0", "NCCL_ALGO": "Ring,Tree", "NCCL_NET_DISABLE_INTRA": "0",
}  # fmt: skip
OFF = {"p2p": ("0", "0"), "shm": ("1", "0"), "net": ("1", "1")}  # NCCL_P2P_DISABLE, NCCL_SHM_DISABLE


def arm_env(case: Case, member: int) -> dict[str, str]:
    """What NCCL must find in the environment of this rank before it is loaded."""
    env = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": SUBSYSTEMS}
    transport, _, protocol = case.arm.partition("/")
    if transport in OFF:
        env |= FORCED | dict(zip(("NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE"), OFF[transport], strict=True))
    if protocol in nccl_said.PROTOCOLS:
        env["NCCL_PROTO"] = protocol
    if one_card(case):
        version = nccl_version()
        if version is not None and version >= nccl_said.ONE_CARD_FROM:
            env["NCCL_MULTI_RANK_GPU_ENABLE"] = "1"
        else:
            env["NCCL_HOSTID"] = f"linkproof-{member}"  # as if on two hosts: only NET is left
    return env


# ---------------------------------------------------------------- the operations


def _sizes(case: Case, setup: Setup) -> list[int]:
    sizes = SIZES_B + (DEEP_SIZES_B if setup.effort.sweep else ())
    most_B = min(max(setup.effort.sizes_B), LL_MAX_B if case.arm.endswith("/LL") else DEEP_SIZES_B[-1])
    if one_card(case) and not setup.effort.sweep:
        most_B = MiB  # two ranks that share a card go through sockets: large sizes take seconds and tell nothing more
    return sorted(size for size in sizes if size <= most_B)


def _send_recv(gang: Ranks, size_B: int, step: int) -> None:
    """Every rank sends to the one `step` further on: over all steps, every ordered pair."""
    to, source, n = (gang.me + step) % gang.ranks, (gang.me - step) % gang.ranks, size_B // WORD_B
    gang.next(f"send/recv {source}->{gang.me}", size_B)
    regions = [(GUARD_W, GUARD_W + n, gang.key(source, gang.me))]
    want = gang.window(n + 2 * GUARD_W, regions)
    got = gang.poisoned(want, regions)
    data = torch.empty(n + GUARD_W, dtype=torch.int64, device=gang.device)
    gang.fill(data, GUARD_W, GUARD_W + n, gang.key(gang.me, to))
    ops = [dist.P2POp(dist.isend, data[GUARD_W:], to), dist.P2POp(dist.irecv, got[GUARD_W : GUARD_W + n], source)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    gang.check(got, want, gang.payload_told(got, regions), gang.op, size_B)


def _all_reduce(gang: Ranks, size_B: int, dtype: torch.dtype) -> None:
    """In place, as tensor parallel does."""
    n = size_B // WORD_B
    gang.next(f"all_reduce {dtype_name(dtype)}", size_B)
    guards = [(GUARD_W, GUARD_W, gang.key(gang.me, gang.me))]
    want = gang.window(n + 2 * GUARD_W, guards)
    got = want.clone()
    inner = slice(GUARD_W, GUARD_W + n)
    gang.numbers(want[inner].view(dtype), range(gang.ranks))
    gang.numbers(got[inner].view(dtype), [gang.me])
    dist.all_reduce(got[inner].view(dtype))
    gang.check(got, want, gang.sum_told(got, want, dtype, GUARD_W), gang.op, size_B)


def _all_gather(gang: Ranks, size_B: int, in_place: bool) -> None:
    n = max(1, size_B // WORD_B // gang.ranks)
    gang.next("all_gather", n * WORD_B * gang.ranks)
    at = [GUARD_W + n * rank for rank in range(gang.ranks)]
    regions = [(at[rank], at[rank] + n, gang.key(rank, rank)) for rank in range(gang.ranks)]
    want = gang.window(n * gang.ranks + 2 * GUARD_W, regions)
    got = gang.poisoned(want, regions)
    mine = slice(at[gang.me], at[gang.me] + n)
    data = got[mine] if in_place else want[mine].clone()
    if in_place:
        data.copy_(want[mine])
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the second is deprecated from 2.13
    gather(got[GUARD_W : GUARD_W + n * gang.ranks], data)
    gang.check(got, want, gang.payload_told(got, regions), gang.op, n * WORD_B * gang.ranks)


def _broadcast(gang: Ranks, size_B: int, root: int) -> None:
    n = size_B // WORD_B
    gang.next(f"broadcast from {root}", size_B)
    regions = [(GUARD_W, GUARD_W + n, gang.key(root, root))]
    want = gang.window(n + 2 * GUARD_W, regions)
    got = want.clone() if gang.me == root else gang.poisoned(want, regions)
    dist.broadcast(got[GUARD_W : GUARD_W + n], root)
    gang.check(got, want, gang.payload_told(got, regions), gang.op, size_B)


def collectives(gang: Ranks) -> None:
    effort = gang.effort
    for size_B in _sizes(gang.case, gang.setup):
        rounds = max(8, effort.rounds_small) if size_B <= MiB else effort.rounds_big
        for i in range(rounds):
            for step in range(1, gang.ranks):
                _send_recv(gang, size_B, step)
            _all_reduce(gang, size_B, DTYPES[i * len(DTYPES) // rounds])  # one type some rounds in a row: old data show as such
            _all_gather(gang, size_B, in_place=i % 2 == 1)
            for root in range(gang.ranks):
                _broadcast(gang, size_B, root)


# ---------------------------------------------------------------- speed


def _seconds(gang: Ranks, data: torch.Tensor, times: int) -> float:
    """Of one of several all-reduces in a row. The stream is held until all are asked for, and one goes before that is not timed: when it
    ends, every rank has come, and the next are queued behind it. So neither the time to ask for them nor the wait for a rank is in it."""
    gang.sync()
    if gang.device.type != "cuda":
        dist.all_reduce(data)
        begun = perf_counter()
        for _ in range(times):
            dist.all_reduce(data)
        return (perf_counter() - begun) / times
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    if (hold := getattr(torch.cuda, "_sleep", None)) is not None:
        hold(HOLD_TURNS)
    dist.all_reduce(data)
    first.record()
    for _ in range(times):
        dist.all_reduce(data)
    last.record()
    gang.sync()
    return float(first.elapsed_time(last)) / 1e3 / times


def speed(gang: Ranks) -> tuple[float, int, dict[str, str]]:
    """Bus bandwidth (2 (n-1)/n of the bytes over the time) of the largest all-reduce, its size, and latency of 8 B; medians of five, warm."""
    size_B = min(SPEED_MAX_B, max(_sizes(gang.case, gang.setup)))
    gang.note("timed all_reduce", size_B)
    big, small = (torch.zeros(b // 2, dtype=torch.bfloat16, device=gang.device) for b in (size_B, 8))
    for data in (big, small):
        _seconds(gang, data, 2)
    bus_B = 2 * (gang.ranks - 1) / gang.ranks * size_B
    bw = sorted(bus_B / _seconds(gang, big, 4) / 1e9 for _ in range(5))
    lat = sorted(_seconds(gang, small, 20) * 1e6 for _ in range(5))
    return statistics.median(bw), size_B, {
        "bw_spread_GBps": f"{bw[0]:.3g}-{bw[-1]:.3g}", "lat_us": f"{statistics.median(lat):.1f}", "lat_spread_us": f"{lat[0]:.1f}-{lat[-1]:.1f}",
    }  # fmt: skip


# ---------------------------------------------------------------- one rank


def run(case: Case, setup: Setup, member: int, members: int, folder: str) -> Outcome:
    """What this rank saw. Every rank calls this, in its own process, with the same folder. Raises what NCCL and CUDA raise."""
    gloo = setup.devices == "gloo"
    transport, _, protocol = case.arm.partition("/")
    version = nccl_version()
    if not gloo:
        if version is None:
            return Outcome(case, "not_tested", "this torch has no NCCL")
        if one_card(case) and transport in ("p2p", "shm") and version < nccl_said.ONE_CARD_FROM:
            why = "two ranks on one GPU can use P2P or shared memory only from NCCL 2.30 on (here {version})"
            return Outcome(case, "not_tested", why, {"version": ".".join(map(str, version))})
    gang = Ranks(case, setup, member, members, folder, "gloo" if gloo else "nccl")
    collectives(gang)
    bw_GBps, bw_size_B, told = speed(gang)
    log = "" if gloo else nccl_said.said(folder, member)
    mine = {"routes": [[t, *pair] for t, pairs in nccl_said.routes(log).items() for pair in sorted(pairs)],
            "protocols": sorted(nccl_said.protocols(log)), "nvls": any("NVLS" in a for a in nccl_said.algorithms(log)),
            "taken": nccl_said.protocol_taken(log), "bad": gang.bad}  # fmt: skip
    everyone = [json.loads(text) for text in gang.agree("end", json.dumps(mine))]
    routes: nccl_said.Routes = {}
    for one in everyone:
        for used, a, b in one["routes"]:
            routes.setdefault(used, set()).add((a, b))
    names = [*sorted(routes), *(["NVLS"] if any(one["nvls"] for one in everyone) else [])]
    outcome = msgspec.structs.replace(gang.outcome("gloo" if gloo else ", ".join(names), told, bw_GBps), bw_size_B=bw_size_B)
    gang.leave(not any(one["bad"] for one in everyone))
    if gloo or outcome.state != "verified":
        return outcome
    protocols = {p for one in everyone for p in one["protocols"]} or {one["taken"] for one in everyone if one["taken"]}
    why, args = proved(transport, protocol, routes, protocols)
    return msgspec.structs.replace(outcome, state="not_tested", why=why, args=outcome.args | args) if why else outcome


def proved(transport: str, protocol: str, routes: nccl_said.Routes, protocols: set[str]) -> tuple[str, dict[str, str]]:
    """("", {}) if NCCL did what the arm asked for, else why that is not known."""
    if transport in OFF:
        wanted = transport.upper()
        other = sorted(used for used in routes if used.split("/")[0] != wanted)
        if not routes:
            return "NCCL's log does not say which transport it used", {}
        if other:
            return "NCCL used {transport} instead of {wanted}", {"transport": ", ".join(other), "wanted": wanted}
    if protocol in nccl_said.PROTOCOLS and protocols != {protocol}:
        if not protocols:
            return "NCCL's log does not say which protocol it used", {}
        return "NCCL used the protocol {protocol} instead of {wanted}", {"protocol": ", ".join(sorted(protocols)), "wanted": protocol}
    return "", {}
