"""One rank of a case of all GPUs at once: the environment that it needs, the check that it runs, and an error as an outcome.

In:      Case of a group mode, Setup, rank, folder that the ranks share.
Out:     this rank's Outcome.
Raises:  nothing of NCCL's or CUDA's.
"""

from __future__ import annotations

import os
from time import perf_counter

import msgspec
import torch

from linkproof.measured import Case, Outcome
from linkproof.probe.collectives import engines, nccl_check, nccl_said
from linkproof.probe.collectives.nccl_check import OFF
from linkproof.probe.collectives.ranks import Unusable
from linkproof.probe.setup import Setup


def member_env(case: Case, setup: Setup, member: int, members: int) -> dict[str, str]:
    """What the child's environment needs before NCCL, gloo or an engine is first used. (Where NCCL's log goes, `member` adds itself.)"""
    env = {"GLOO_SOCKET_IFNAME": "lo"}  # all ranks are on this host; a host name need not resolve
    return env | (nccl_check.arm_env(case, member) if case.mode == "nccl" else engines.engine_env(case))


def member(case: Case, setup: Setup, member: int, members: int, folder: str) -> Outcome:
    """What this rank saw. Every member of the gang calls this, in its own process, with the same folder (empty before)."""
    begun = perf_counter()
    os.environ["NCCL_DEBUG_FILE"] = str(nccl_said.log_file(folder, member))
    try:
        outcome = (
            engines.ENGINES[case.mode](case, setup, member, members, folder)
            if case.mode != "nccl"
            else nccl_check.run(case, setup, member, members, folder)
        )
    except Unusable as error:
        outcome = Outcome(case, error.state, error.why, error.values)
    except (RuntimeError, MemoryError) as error:
        outcome = failed(case, error, nccl_said.said(folder, member))
    return msgspec.structs.replace(outcome, took_s=perf_counter() - begun)


def failed(case: Case, error: BaseException, log: str = "") -> Outcome:
    """An error of NCCL or the GPU, as an Outcome. What only says that the arm cannot be had here is no fault."""
    words = nccl_said.warning(log) or (str(error).strip().splitlines() or [type(error).__name__])[0][: nccl_said.SAID_MAX]
    everything = f"{error}\n{log}"
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return Outcome(case, "not_tested", "too little free memory for {mode}", {"mode": case.mode})
    if "Duplicate GPU detected" in everything or "Ranks are using the same GPU" in everything:
        return Outcome(case, "not_tested", "NCCL refuses two ranks on one GPU")
    if case.arm.partition("/")[0] in OFF and ("No transport found" in everything or "no socket interface found" in everything):
        return Outcome(case, "refused", "NCCL cannot use this transport here: {said}", {"said": words})
    return Outcome(case, "died", "stopped with an error: {said}", {"said": words})
