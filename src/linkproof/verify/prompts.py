"""What both sides are asked: texts if there is a tokenizer, random token ids if there is none; some side by side with padding, one long.

In:      a Task, the host's copy.
Out:     Batches; `case_of` puts an answer behind them.
Unknown: without a tokenizer a text of the person is taken byte by byte.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from linkproof.verify.models import Host
from linkproof.verify.task import Task
from linkproof.verify.trace import Case

TEXTS = (
    "The capital of France is",
    "为什么天空是蓝色的？请用一句话回答。",
    "A bus that carries tensors from one device to the next must deliver every byte as it was sent, because",
)
LENGTHS = (5, 9, 17)  # of random prompts
LONG, LONG_VIRTUAL = 512, 96
FIRST_ID = 3  # below it lie padding and the like in most vocabularies


class Batch(NamedTuple):
    name: str
    rows: list[list[int]]

    def padded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """ids, mask: [rows, tokens], padded on the left."""
        longest = max(map(len, self.rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in self.rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in self.rows])
        return ids, mask


def batches(task: Task, host: Host) -> list[Batch]:
    tokenizer = _tokenizer(host.folder)
    vocab = int(host.model.config.get_text_config().vocab_size)
    texts = task.prompts or TEXTS
    generator = torch.Generator().manual_seed(task.seed)

    def random(count: int) -> list[int]:
        ids: list[int] = torch.randint(min(FIRST_ID, vocab - 1), vocab, (count,), generator=generator).tolist()
        return ids

    if tokenizer is not None:
        rows = [[int(i) % vocab for i in tokenizer(text).input_ids] or random(1) for text in texts]
    elif task.prompts:
        rows = [[byte % vocab for byte in text.encode()] or random(1) for text in texts]
    else:
        rows = [random(n) for n in LENGTHS]
    room = int(getattr(host.model.config.get_text_config(), "max_position_embeddings", 1 << 20)) - task.new
    length = min(LONG_VIRTUAL if task.virtual else LONG, room)
    words = [i for row in rows for i in row]
    long = random(length) if tokenizer is None else (words * (length // len(words) + 1))[:length]
    return [Batch("batch", [row[:room] for row in rows]), Batch("long prompt", [long])]


def _tokenizer(folder: str) -> Any:
    if not folder:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception:  # many ways to have none, and none of them is the links' doing
        return None


def case_of(batch: Batch, answer: list[list[int]]) -> Case:
    ids, mask = batch.padded()
    more = torch.tensor(answer)
    return Case(batch.name, torch.cat([ids, more], 1), torch.cat([mask, torch.ones_like(more)], 1), more.shape[1])
