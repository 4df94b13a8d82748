"""The ways of the engines past NCCL: torch's symmetric memory, NVLink multicast, the all-reduce of vLLM and of SGLang; and NCCL's own test.

    nccl_diag           NCCL_RUN_DIAGNOSTICS=1 while a communicator is made (from 2.31): every pair, single words, written and read
    symm_mem            each rank reads from and writes to every other rank's memory by kernels, then one-shot and two-shot all-reduce; no multicast
    nvls                all-reduce by multicast in the NVSwitch; makes a multicast object on every GPU: only if asked for (multicast.py)
    vllm_allreduce      CustomAllreduce of the engine as it calls it outside CUDA graphs: input copied to a shared buffer, then kernels that
    sglang_allreduce    read the others' memory and poll flags in it. (Inside graphs the input itself is shared: not tried. SGLang's second
                        version, for full NVLink only: not tried.)

In:      Case, Setup, rank, folder, as groups.member. The ranks meet through gloo and a file: NCCL has no part in any of these but the first.
Out:     this rank's Outcome; sums exact in bf16, every element compared on every rank.
Unknown: an engine that is not installed, switches itself off or has another interface is `not_tested`, with the reason.
Raises:  RuntimeError of CUDA; groups.member makes an Outcome of it.
Source:  PyTorch `torch/distributed/_symmetric_memory`; vLLM `distributed/device_communicators/custom_all_reduce.py` (0.6 to 0.33: `finalize_p2p`
         is newer); SGLang `srt/distributed/device_communicators/custom_all_reduce.py` (0.3 to 0.5).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from linkproof.measured import Case, Outcome
from linkproof.probe import multicast
from linkproof.probe.collectives import nccl_said
from linkproof.probe.collectives.ranks import Ranks, Unusable, nccl_version, one_card
from linkproof.probe.payload import WORD_B
from linkproof.probe.setup import KiB, MiB, Setup

ENGINE_OF = {
    "vllm_allreduce": ("vLLM", "vllm", "vllm.distributed.device_communicators.custom_all_reduce"),
    "sglang_allreduce": ("SGLang", "sglang", "sglang.srt.distributed.device_communicators.custom_all_reduce"),
}
SHARED_SIZES_B = (8, 256, 4 * KiB - 16, 8 * KiB, 64 * KiB, 1 * MiB, 4 * MiB)
SUM_SIZES_B = (8 * KiB, 64 * KiB, 1 * MiB, 4 * MiB)
ENGINE_SIZES_B = (16, 256, 8 * KiB, 64 * KiB, 512 * KiB, 1 * MiB, 4 * MiB, 8 * MiB - 16)
DIAGNOSTICS_FROM = (2, 31)
Reduce = Callable[[torch.Tensor], torch.Tensor | None]


def engine_env(case: Case) -> dict[str, str]:
    """The engines' own P2P check is left out: it needs their whole start, and these transfers are the better check."""
    if case.mode == "nccl_diag":
        return {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "ALL", "NCCL_RUN_DIAGNOSTICS": "1"}
    if case.mode == "symm_mem":
        overlapping = {"TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES": "1"} if one_card(case) else {}
        return {"TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"} | overlapping
    if case.mode in ENGINE_OF:
        return {"VLLM_SKIP_P2P_CHECK": "1", "SGLANG_SKIP_P2P_CHECK": "1"}
    return {}


# ---------------------------------------------------------------- NCCL's own


def _nccl_diag(case: Case, setup: Setup, member: int, members: int, folder: str) -> Outcome:
    version = nccl_version()
    if version is None:
        return Outcome(case, "not_tested", "this torch has no NCCL")
    if version < DIAGNOSTICS_FROM:
        return Outcome(
            case, "not_tested", "NCCL {version} has no diagnostics of its own (from 2.31)", {"version": ".".join(map(str, version))}
        )
    gang = Ranks(case, setup, member, members, folder, "nccl")
    gang.next("all_reduce", WORD_B)
    dist.all_reduce(torch.ones(1, dtype=torch.int64, device=gang.device))
    gang.sync()
    logs = gang.agree("diag", "\n".join(line for line in nccl_said.said(folder, member).splitlines() if "NCCL DIAG" in line))
    state, why, args = nccl_said.diagnostics("\n".join(logs))
    gang.leave(state == "verified")
    return Outcome(case, state, why, args)


# ---------------------------------------------------------------- symmetric memory


class Shared:
    """Memory of every rank, as this rank sees it: peers[me] is its own. barrier: all ranks are here and what they wrote can be seen."""

    def __init__(self, peers: list[torch.Tensor], barrier: Callable[[], None]) -> None:
        self.peers, self.barrier = peers, barrier


def share(gang: Ranks, words: int) -> Shared:
    """words of int64 on each rank, each open to all, by torch's symmetric memory."""
    memory, handle = _symmetric(gang, words, torch.int64)
    peers = [memory if rank == gang.me else handle.get_buffer(rank, (words,), torch.int64) for rank in range(gang.ranks)]

    def barrier() -> None:
        handle.barrier(channel=0)
        gang.sync()

    return Shared(peers, barrier)


def _symmetric(gang: Ranks, count: int, dtype: torch.dtype) -> tuple[torch.Tensor, Any]:
    try:
        import torch.distributed._symmetric_memory as symmetric

        memory = symmetric.empty(count, dtype=dtype, device=gang.device)
        enable = getattr(symmetric, "enable_symm_mem_for_group", None)
        if enable is not None:
            with warnings.catch_warnings():  # newer ones do it by themselves, and say so
                warnings.simplefilter("ignore")
                enable(dist.group.WORLD.group_name)  # type: ignore[union-attr]
        return memory, symmetric.rendezvous(memory, dist.group.WORLD)  # type: ignore[arg-type]
    except (ImportError, AttributeError, TypeError) as error:
        raise _none(str(error)) from error
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        said = (str(error).splitlines() or [""])[0][: nccl_said.SAID_MAX]
        raise Unusable("refused", "torch's symmetric memory cannot be set up here: {said}", said=said) from error


def _none(said: str) -> Unusable:
    why = "torch {version} has no symmetric memory that can be used here: {said}"
    return Unusable("not_tested", why, version=torch.__version__, said=said[: nccl_said.SAID_MAX])


def exchange(gang: Ranks, shared: Shared, sizes_B: tuple[int, ...]) -> None:
    """Kernel loads from each rank's memory and kernel stores into it. Each rank's memory: what it gives, then an inbox per rank."""
    room = max(sizes_B) // WORD_B
    own = shared.peers[gang.me]
    others = [rank for rank in range(gang.ranks) if rank != gang.me]
    for size_B in sizes_B:
        n = size_B // WORD_B
        for _ in range(gang.effort.rounds_small if size_B <= MiB else gang.effort.rounds_big):
            gang.next("symmetric memory", size_B)
            gang.fill(own[:n], 0, n, gang.key(gang.me, gang.me))
            inbox = {rank: own[room * (1 + rank) : room * (1 + rank) + n] for rank in others}
            want = {rank: gang.window(n, [(0, n, gang.key(rank, gang.me))]) for rank in others}
            for rank in others:
                inbox[rank].copy_(gang.poisoned(want[rank], [(0, n, gang.key(rank, gang.me))]))
            gang.sync()
            shared.barrier()
            seen = {}
            for rank in others:
                given = gang.window(n, [(0, n, gang.key(rank, rank))])
                got = gang.poisoned(given, [(0, n, gang.key(rank, rank))])
                torch.bitwise_xor(shared.peers[rank][:n], 0, out=got)  # a kernel of ours that loads there
                seen[rank] = got, given
                data = gang.window(n, [(0, n, gang.key(gang.me, rank))])
                at = room * (1 + gang.me)
                torch.bitwise_xor(data, 0, out=shared.peers[rank][at : at + n])  # and one that stores there
            gang.sync()
            shared.barrier()
            for rank in others:
                got, given = seen[rank]
                gang.check(got, given, gang.payload_told(got, [(0, n, gang.key(rank, rank))]), f"load {rank}->{gang.me}", size_B)
                got = inbox[rank].clone()
                gang.check(got, want[rank], gang.payload_told(got, [(0, n, gang.key(rank, gang.me))]), f"store {rank}->{gang.me}", size_B)
            shared.barrier()


def reductions(gang: Ranks, op: str, reduce: Reduce, sizes_B: tuple[int, ...], room: torch.Tensor | None = None) -> int:
    """Sums in bf16 by `reduce`, which may say None (not for this size). room: memory that the inputs must lie in. Gives how many were made."""
    made = 0
    for size_B in sizes_B:
        for _ in range(gang.effort.rounds_small if size_B <= MiB else gang.effort.rounds_big):
            gang.next(f"{op} bfloat16", size_B)
            count = size_B // torch.bfloat16.itemsize
            data = torch.empty(count, dtype=torch.bfloat16, device=gang.device) if room is None else room[:count]
            want = torch.empty(count, dtype=torch.bfloat16, device=gang.device)
            gang.numbers(data, [gang.me])
            gang.numbers(want, range(gang.ranks))
            # an output of the same size is likely to be given this block: what is never written is then seen as such
            poison = torch.full_like(want, -1.0)
            del poison
            got = reduce(data)
            gang.sync()
            if got is None:
                break
            made += 1
            got, want = got.contiguous().view(torch.int64), want.view(torch.int64)
            gang.check(got, want, gang.sum_told(got, want, torch.bfloat16, 0), gang.op, size_B)
    return made


def _symm_mem(case: Case, setup: Setup, member: int, members: int, folder: str) -> Outcome:
    gang = Ranks(case, setup, member, members, folder, "gloo")
    exchange(gang, share(gang, max(SHARED_SIZES_B) // WORD_B * (1 + members)), SHARED_SIZES_B)
    _symmetric_sums(gang, ("one_shot_all_reduce", "two_shot_all_reduce_"))
    return _end(gang)


def _symmetric_sums(gang: Ranks, names: tuple[str, ...]) -> int:
    room, _ = _symmetric(gang, max(SUM_SIZES_B) // 2, torch.bfloat16)
    group = dist.group.WORLD.group_name  # type: ignore[union-attr]
    made = 0
    for name in names:
        if (op := getattr(torch.ops.symm_mem, name, None)) is not None:

            def reduce(data: torch.Tensor, op: Any = op) -> torch.Tensor | None:
                dist.barrier()  # nobody overwrites its part while another still reads it
                out: torch.Tensor = op(data, "sum", group)
                gang.sync()
                dist.barrier()
                return out

            made += reductions(gang, name.rstrip("_"), reduce, SUM_SIZES_B, room)
    return made


def _nvls(case: Case, setup: Setup, member: int, members: int, folder: str) -> Outcome:
    if missing := multicast.absent(case, (), multicast.switched_off(os.environ)):
        return missing
    try:
        from torch._C._autograd import DeviceType
        from torch._C._distributed_c10d import _SymmetricMemory

        there = _SymmetricMemory.has_multicast_support(DeviceType.CUDA, case.gpus[member])
    except (ImportError, AttributeError, TypeError) as error:
        raise _none(str(error)) from error
    if not there:
        return Outcome(case, "not_tested", "GPU and driver offer no NVLink multicast")
    gang = Ranks(case, setup, member, members, folder, "gloo")
    if not _symmetric_sums(gang, ("multimem_all_reduce_", "multimem_one_shot_all_reduce")):
        raise _none("multimem_all_reduce_")
    return _end(gang)


# ---------------------------------------------------------------- the engines' own


def _engine(case: Case, setup: Setup, member: int, members: int, folder: str) -> Outcome:
    engine, package, module = ENGINE_OF[case.mode]
    if importlib.util.find_spec(package) is None:
        return Outcome(case, "not_tested", "{engine} is not installed here", {"engine": engine})
    gang = Ranks(case, setup, member, members, folder, "gloo")
    gang.note(f"start of {engine}", 0)
    said, reducer = "", None
    try:
        reducer = importlib.import_module(module).CustomAllreduce(group=dist.group.WORLD, device=gang.device)
        if hasattr(reducer, "finalize_p2p"):
            reducer.finalize_p2p()
    except (ImportError, AttributeError, TypeError, ValueError, AssertionError) as error:
        said = f"{type(error).__name__}: {error}"[: nccl_said.SAID_MAX]
    found = gang.agree("engine", said or ("off" if getattr(reducer, "disabled", True) else ""))
    if any(found):
        why = next(word for word in found if word)
        if why == "off":
            return Outcome(case, "not_tested", "{engine} switches its own all-reduce off on this machine", {"engine": engine})
        return Outcome(case, "not_tested", "the all-reduce of this {engine} cannot be used: {said}", {"engine": engine, "said": why})
    made = reductions(gang, f"{engine} all_reduce", lambda data: reducer.custom_all_reduce(data), ENGINE_SIZES_B)  # type: ignore[union-attr]
    if not made:
        return Outcome(case, "not_tested", "{engine} switches its own all-reduce off on this machine", {"engine": engine})
    return _end(gang)


def _end(gang: Ranks) -> Outcome:
    outcome = gang.outcome()
    gang.leave(not any(word != "0" for word in gang.agree("end", str(gang.bad))))
    return outcome


ENGINES: dict[str, Callable[[Case, Setup, int, int, str], Outcome]] = {
    "nccl_diag": _nccl_diag, "symm_mem": _symm_mem, "nvls": _nvls, "vllm_allreduce": _engine, "sglang_allreduce": _engine,
}  # fmt: skip
