"""One rank of a tensor-parallel run: `python -m linkproof.verify_ranks.rank FOLDER RANK FD`.

In:      task.json in the folder. FD is a socket: its end tells that whoever wants the answer is gone, and this process with it.
Out:     said.RANK.json in the folder. The ranks meet through a file there, no port is opened for that.
Unknown: greedy decoding takes the first of equal logits; two correct runs may differ there.
Raises:  nothing: an error is said.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import gc
import math
import os
import sys
import threading
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from linkproof.errors import LinkproofError
from linkproof.guard.ranks.words import said as in_words
from linkproof.guard.watch import guard
from linkproof.verify_ranks import Lied, RankSaid, RankTask
from linkproof.verify_ranks.shards import compare

ERROR_CHARS = 400


class Generated:
    """tokens: per prompt; logits: per prompt [steps, vocabulary] float32 on the host."""

    def __init__(self, model: Any, task: RankTask, device: torch.device) -> None:
        self.tokens: list[list[int]] = []
        self.logits: list[torch.Tensor] = []
        for prompt in task.prompts:
            torch.manual_seed(task.seed)
            ids = torch.tensor([prompt], device=device)
            more = {"max_new_tokens": task.new, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **more)
            self.tokens.append(out.sequences[0, len(prompt) :].tolist())
            self.logits.append(torch.stack([step[0].float().cpu() for step in out.logits]))


def distance(a: Generated, b: Generated) -> float:
    """Up to and with the step that chose the first other token: until there, both have seen the same text."""
    largest = 0.0
    for ours, theirs, x, y in zip(a.tokens, b.tokens, a.logits, b.logits, strict=True):
        same = next((i for i, (p, q) in enumerate(zip(ours, theirs, strict=False)) if p != q), min(len(ours), len(theirs)) - 1)
        off = float((x[: same + 1] - y[: same + 1]).abs().max()) if same >= 0 else 0.0
        largest = max(largest, math.inf if math.isnan(off) else off)
    return largest


def alone(task: RankTask, device: torch.device) -> Generated | None:
    """None if it does not fit."""
    model = None
    try:
        model = AutoModelForCausalLM.from_pretrained(task.model, dtype=getattr(torch, task.dtype)).eval().to(device)
        return Generated(model, task, device)
    except torch.OutOfMemoryError:
        return None
    finally:
        del model
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def split(task: RankTask) -> Any:
    how: dict[str, Any] = {"tp_plan": "auto"}
    try:
        from transformers.distributed import DistributedConfig  # type: ignore[attr-defined]

        how = {"distributed_config": DistributedConfig(tp_plan="auto")}
    except (ImportError, TypeError):  # transformers before 5
        pass
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=getattr(torch, task.dtype), **how).eval()
    if getattr(model, "_tp_size", None) != task.ranks:
        raise RuntimeError(f"transformers has split {type(model).__name__} over {getattr(model, '_tp_size', None)} ranks")
    return model


def join(task: RankTask, rank: int, folder: str) -> torch.device:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(task.ranks)}  # transformers splits by these
    store = dist.FileStore(  # type: ignore[attr-defined]
        str(Path(folder) / "store"), task.ranks
    )
    more: dict[str, Any] = {"store": store, "rank": rank, "world_size": task.ranks, "timeout": timedelta(seconds=task.deadline_s)}
    if task.device != "cuda":
        dist.init_process_group("gloo", **more)
        return torch.device("cpu")
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device, **more)
    return device


def run(task: RankTask, rank: int, folder: str) -> RankSaid:
    said = RankSaid(rank)
    try:
        if task.device == "cuda" and torch.cuda.device_count() < task.ranks:
            raise RuntimeError(f"{torch.cuda.device_count()} GPUs for {task.ranks} ranks")
        reference = alone(task, torch.device(task.device, 0) if task.device == "cuda" else torch.device("cpu")) if rank == 0 else None
        device = join(task, rank, folder)
        model = split(task)
        said = msgspec.structs.replace(said, loaded=True)
        shards = compare(model, task.model)
        said = msgspec.structs.replace(said, weights_bad=shards.bad, weights_compared=shards.compared, weights_unknown=shards.unknown)
        with guard(model, "observe", "warn") as watch:
            try:
                ours = Generated(model, task, device)
            finally:  # what the guard saw before an error may be its cause
                seen = [Lied(list(e.ranks), *in_words(e)) for e in list(watch.events)[:16]]  # type: ignore[attr-defined, arg-type]
                said = msgspec.structs.replace(said, lied=seen)
        said = msgspec.structs.replace(
            said,
            tokens=ours.tokens,
            alone=reference.tokens if reference else None,
            logit_distance=distance(ours, reference) if reference else None,
        )
    except LinkproofError as e:
        return msgspec.structs.replace(said, error=str(e)[:ERROR_CHARS], gone=e.ref == "rank-gone")
    except Exception as e:
        traceback.print_exc()
        text = " ".join(f"{type(e).__name__}: {e}".split())[:ERROR_CHARS]
        return msgspec.structs.replace(said, error=text, gone=isinstance(e, dist.DistError))
    return said


def leave_when_unwanted(fd: int) -> None:
    def watch() -> None:
        os.read(fd, 1)  # nobody writes: it ends with its other end
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def main(folder: str, rank: int, fd: int) -> None:
    leave_when_unwanted(fd)
    task = msgspec.json.decode((Path(folder) / "task.json").read_bytes(), type=RankTask)
    said = run(task, rank, folder)
    path = Path(folder) / f"said.{rank}.json"
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(said))
    new.replace(path)
    sys.stdout.flush()
    os._exit(0)  # a communicator that has lost a rank may never let go


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
