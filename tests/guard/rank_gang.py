"""Ranks of a tiny Qwen3, tensor parallel over gloo: processes that stay up for a whole test module and do what they are told.

They are forked from one server that has torch and transformers in memory already, so a rank costs no import.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import multiprocessing as mp
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.tensor
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

import linkproof.guard.ranks.watch  # noqa: F401  in the server's memory, so that no rank has to import it

ANSWER_S = 60.0
LAYERS = 2
MODEL: Any = None
PROMPT = torch.arange(1, 9)[None]
_context: Any = mp.get_context("forkserver")


def save_model(folder: Path, **more: Any) -> str:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "vocab_size": 256,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "initializer_range": 0.2,  # or every token would be the same one
    }
    Qwen3ForCausalLM(Qwen3Config(**{**shape, **more})).eval().save_pretrained(folder)
    return str(folder)


class Gang:
    def __init__(self, ranks: int, store: Path, model: str, timeout_s: float = 60) -> None:
        """timeout_s: how long gloo waits for a rank that is there and does not join."""
        _context.set_forkserver_preload(["rank_gang"])
        here = str(Path(__file__).parent)
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([here, *filter(None, [os.environ.get("PYTHONPATH")])]))  # for the server
        self.ranks = ranks
        self._pipes, self._processes = [], []
        for rank in range(ranks):
            ours, theirs = _context.Pipe()
            process = _context.Process(target=_rank, args=(rank, ranks, str(store), model, timeout_s, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def do(self, what: Callable[..., Any], *args: Any, but: int | None = None) -> list[Any]:
        """On every rank. What a rank raised comes back as (name of its class, ref or "", text). but: a rank that is expected to die."""
        for pipe in self._pipes:
            pipe.send((what, args))
        return [self._answer(rank) for rank in range(self.ranks) if rank != but]

    def _answer(self, rank: int) -> Any:
        assert self._pipes[rank].poll(ANSWER_S), f"rank {rank} does not answer"
        good, answer = self._pipes[rank].recv()
        assert good, answer
        return answer

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()


def _rank(rank: int, ranks: int, store: str, model: str, timeout_s: float, pipe: Any) -> None:
    global MODEL
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}  # transformers splits by these
    meet = dist.FileStore(store, ranks)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=meet, rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout_s))
    MODEL = AutoModelForCausalLM.from_pretrained(model, tp_plan="auto").eval()
    assert MODEL._tp_size == ranks
    while True:
        try:
            what, args = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        try:
            pipe.send((True, what(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


def tokens(new: int = 6, seed: int | None = None, **more: Any) -> list[int]:
    if seed is not None:
        torch.manual_seed(seed)
    out: torch.Tensor = MODEL.generate(PROMPT, max_new_tokens=new, do_sample=seed is not None, **more)
    return out[0, PROMPT.shape[1] :].tolist()


@contextmanager
def link(damage: Callable[[int, torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    """all_reduce over a link that does `damage(number of the call, what went in, the result)` to its result."""
    plain, count = dist.all_reduce, 0

    def all_reduce(tensor: torch.Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False) -> Any:
        nonlocal count
        sent = tensor.clone()
        out = plain(tensor, op, group, async_op)
        damage(count, sent, tensor)
        count += 1
        return out

    setattr(dist, "all_reduce", all_reduce)  # noqa: B010  mypy: the signature is that of torch
    try:
        yield
    finally:
        setattr(dist, "all_reduce", plain)  # noqa: B010
