"""The payload made and compared by torch's own operations: where Triton is missing. Slower, equally right, on any device of torch.

In:      a one-dimensional int64 tensor: the words first .. first + its length.
Out:     filled in place; (wrong words, number of the first or -1).
Unknown: nothing.
Raises:  whatever torch raises.
Source:  payload.py; int64 arithmetic of torch wraps, and only the shift must be made a logical one.
"""

from __future__ import annotations

import torch

from linkproof.probe.payload import MULTIPLIER

CHUNK_WORDS = 8 << 20
_LOW = (1 << 32) - 1


def _signed(word: int) -> int:
    return word - (word >> 63 << 64)


def words(key_word: int, first: int, count: int, invert: bool, device: torch.device) -> torch.Tensor:
    x = (torch.arange(first, first + count, dtype=torch.int64, device=device) ^ _signed(key_word)) * _signed(MULTIPLIER)
    x ^= (x >> 32) & _LOW
    return ~x if invert else x


def fill(memory: torch.Tensor, key_word: int, first: int, invert: bool) -> None:
    for at in range(0, len(memory), CHUNK_WORDS):
        part = memory[at : at + CHUNK_WORDS]
        part.copy_(words(key_word, first + at, len(part), invert, memory.device))


def compare(memory: torch.Tensor, key_word: int, first: int, invert: bool) -> tuple[int, int]:
    bad, lowest = 0, -1
    for at in range(0, len(memory), CHUNK_WORDS):
        part = memory[at : at + CHUNK_WORDS]
        wrong = (part != words(key_word, first + at, len(part), invert, memory.device)).nonzero()
        if len(wrong):
            bad += len(wrong)
            lowest = lowest if lowest >= 0 else first + at + int(wrong[0])
    return bad, lowest
