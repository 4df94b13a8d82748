"""NCCL's operations by transport and protocol, and symmetric memory: right on every rank, and how long each arm takes.

    python bench/gpu_nccl.py [--gpus 0,0] [--deep] [--seconds 120]

With one GPU: two ranks on it, through sockets (before NCCL 2.30, P2P and shared memory answer "not tested"). With several: all of them.
Each rank is a fresh process that does what a probe's gang member does. NVLink multicast is not touched.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from linkproof.measured import Case, Outcome
from linkproof.probe.collectives import groups, nccl_said
from linkproof.probe.collectives.ranks import nccl_version
from linkproof.probe.setup import Effort, Setup
from linkproof.probe.workers.endings import combined


def _child(case: Case, setup: Setup, member: int, folder: str, mail: Any) -> None:
    os.environ.update(groups.member_env(case, setup, member, len(case.gpus)))
    mail.put((member, groups.member(case, setup, member, len(case.gpus), folder)))
    mail.close()
    mail.join_thread()
    os._exit(0)


def run(case: Case, setup: Setup, deadline_s: float) -> tuple[Outcome, float]:
    fork = multiprocessing.get_context("fork")
    mail = fork.Queue()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        children = [fork.Process(target=_child, args=(case, setup, m, folder, mail)) for m in range(len(case.gpus))]
        for child in children:
            child.start()
        told: list[tuple[int, Outcome]] = []
        while len(told) < len(children) and time.monotonic() - begun < deadline_s:
            try:
                told.append(mail.get(timeout=0.2))
            except Exception:
                if not any(child.is_alive() for child in children) and mail.empty():
                    break
        if len(told) < len(children):
            told.append((-1, nccl_said.hung(case, len(children), folder)))
            for log in sorted(Path(folder).glob("nccl.*.log")):
                print(log.name, *log.read_text(errors="replace").splitlines()[-5:], sep="\n  ", file=sys.stderr)
        for child in children:
            child.join(5)
            child.kill()
            child.join()
    return combined(told)[0], time.monotonic() - begun


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--gpus", default="")
    ask.add_argument("--deep", action="store_true")
    ask.add_argument("--seconds", type=float, default=120.0, help="deadline of one arm")
    wish = ask.parse_args()
    there = torch.cuda.device_count()
    gpus = tuple(map(int, wish.gpus.split(","))) if wish.gpus else tuple(range(there)) if there > 1 else (0, 0)
    setup = Setup("cuda" if there else "gloo", secrets.randbits(64), Effort(sweep=wish.deep))
    version = nccl_version()
    print(f"torch {torch.__version__}, NCCL {version}, GPUs {gpus}")
    cases = [Case("nccl", gpus, arm=arm) for arm in nccl_said.arms(len(set(gpus)), version, wish.deep)]
    cases += [Case(mode, gpus) for mode in ("symm_mem", "nccl_diag", "vllm_allreduce", "sglang_allreduce")]
    for case in cases:
        outcome, took_s = run(case, setup, wish.seconds)
        speed = (
            f"{outcome.bw_GBps:.2f} GB/s bus ({outcome.args.get('bw_spread_GBps')}), 8 B in {outcome.args.get('lat_us')} us"
            if outcome.bw_GBps
            else ""
        )
        why = outcome.why.format_map(outcome.args) if outcome.why else ""
        print(
            f"{case.mode:16} {case.arm:16} {outcome.state:10} {took_s:6.1f} s (member {outcome.took_s:.1f})  {outcome.rounds:5} transfers"
            f" {outcome.verified_B / 1e9:7.3f} GB  {outcome.transport:24} {speed} {why} {outcome.wrong or ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
