"""The tensor parallel guard over NCCL: two ranks, on two GPUs or sharing one card. `python bench/gpu_ranks.py`.

72 layers of one matrix product and one all-reduce of 4096 bf16 numbers, as a token of Qwen3-8B has: clean, the cost in turns with the unguarded
layers, and a rank whose sums become zeros half way. Two ranks on one card meet through NCCL's sockets, so the times say nothing of a real link.
Exit 1 if there was a false alarm, if the lie was not named, or if the result was not mended.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import faulthandler
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

WIDTH, SUMS, TOKENS, TURNS = 4096, 72, 6, 3
STUCK_S = 120


def main() -> int:
    import torch

    one_card = torch.cuda.device_count() < 2
    env = {"GLOO_SOCKET_IFNAME": "lo"}  # a host name need not resolve
    env |= {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1", "NCCL_SOCKET_IFNAME": "lo"} if one_card else {}
    with tempfile.TemporaryDirectory() as folder:
        hosts = [{"NCCL_HOSTID": f"host{rank}"} if one_card else {} for rank in range(2)]
        ranks = [
            subprocess.Popen([sys.executable, __file__, str(rank), folder], env={**os.environ, **env, **host})
            for rank, host in enumerate(hosts)
        ]
        return max(abs(rank.wait(2 * STUCK_S)) for rank in ranks)


def rank_main(rank: int, folder: str) -> int:
    import torch
    import torch.distributed as dist

    from linkproof.guard.ranks.watch import guard_ranks

    faulthandler.dump_traceback_later(STUCK_S, exit=True)
    torch.cuda.set_device(rank % torch.cuda.device_count())
    store = dist.FileStore(str(Path(folder) / "store"), 2)  # type: ignore[attr-defined]
    dist.init_process_group("nccl", store=store, rank=rank, world_size=2)

    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(rank)
            made = (torch.randn(WIDTH, WIDTH, device="cuda", dtype=torch.bfloat16) / 90 for _ in range(SUMS))
            self.weights = torch.nn.ParameterList(made)

        @torch.no_grad()
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            x = (input_ids.float().view(-1, 1) % 7 + torch.arange(WIDTH, device="cuda") % 5 - 2).to(torch.bfloat16)
            for weight in self.weights:
                y = x @ weight
                dist.all_reduce(y)
                x = x + y / y.float().norm().clamp_min(1).to(y.dtype)
            return x

    model, ids = Layers(), torch.ones(1, 1, dtype=torch.long, device="cuda")

    def token_ms(tokens: int = TOKENS) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(tokens):
            model(ids)
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / tokens * 1e3

    print(f"rank {rank}: {token_ms(3):.2f} ms a token before anything else", flush=True)
    bare, guarded, alarms, line = [], [], 0, ""
    for _ in range(TURNS):
        bare.append(token_ms())
        with guard_ranks(model) as watch:
            token_ms(2)
            guarded.append(token_ms())
            alarms, line = alarms + len(watch.events), watch.metrics.line()
    with guard_ranks(model) as watch:
        model(torch.ones(1, 2048, dtype=torch.long, device="cuda"))
        alarms += len(watch.events)
    want, honest, seen = model(ids), dist.all_reduce, 0

    def lies(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        done = honest(x, *args, **kwargs)
        seen += 1
        if rank == 1 and seen > SUMS // 2:
            x.zero_()
        return done

    dist.all_reduce = lies  # type: ignore[assignment]
    with guard_ranks(model) as watch:
        got = model(ids)
        named = [(e.kind, getattr(e, "ranks", ()), e.hop) for e in watch.events]
    ratio = median(g / b for g, b in zip(guarded, bare, strict=True))
    mended = torch.equal(got, want) or float((got - want).abs().max()) <= 2**-7 * float(want.abs().max())
    print(
        f"rank {rank}: {SUMS} sums a token, bare {median(bare):.2f} ms, guarded {median(guarded):.2f} ms, ratio {ratio:.2f}; false alarms: {alarms}"
    )
    print(f"rank {rank}: {line}")
    print(f"rank {rank}: sums of rank 1 become zeros: {named[:1]}; {'mended' if mended else 'NOT MENDED'}", flush=True)
    os._exit(0 if not alarms and named and named[0][1] == (1,) and mended else 1)


if __name__ == "__main__":
    sys.exit(rank_main(int(sys.argv[1]), sys.argv[2]) if len(sys.argv) > 2 else main())
