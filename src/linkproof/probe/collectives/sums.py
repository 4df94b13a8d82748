"""Numbers whose sum is exact, and what a wrong sum is: whose part is missing, whose is old.

    part(rank, i) = a hash of seed, rank, transfer and position    int64: all 64 bits; int32: so small that no sum overflows;
                                                                   floats: whole numbers from 1, so small that every partial sum is exact in bf16
    sum           = all parts, in any order the same bits

In:      Keys of payload.py with src = dst = the rank whose part it is; wrong elements (position and value) as numpy arrays.
Out:     numpy int64 parts; `name` gives (kind, detail) in the words of `measured.Wrong`.
Unknown: what no guess explains for nine wrong elements of ten is "garbage"; what two ranks explain equally well names neither.
Raises:  nothing.
Source:  this file. nccl_check makes the same numbers with torch; a test holds both equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from linkproof.probe.payload import MULTIPLIER, Key

I64 = NDArray[np.int64]
EXACT = 256  # the largest whole number up to which bf16 has them all
ENOUGH = 0.9
ROUNDS_BACK = 4
FEW = 3
INT32_BITS, INT32_SHIFT, FLOAT_SHIFT = (1 << 31) - 1, 16, 17


def part(dtype: str, key: Key, ranks: int, index: I64) -> I64:
    """dtype: "int64", "int32", else a float."""
    with np.errstate(over="ignore"):
        x = (index.view(np.uint64) ^ np.uint64(key.word)) * np.uint64(MULTIPLIER)
    h: I64 = (x ^ (x >> np.uint64(32))).view(np.int64)
    if dtype == "int64":
        return h
    if dtype == "int32":
        return ((h >> INT32_SHIFT) & INT32_BITS) // ranks
    return 1 + ((h >> FLOAT_SHIFT) & INT32_BITS) % max(1, EXACT // ranks)


def name(got: NDArray[Any], index: I64, dtype: str, key_of: Callable[[int, int], Key], me: int, ranks: int, now: int) -> tuple[str, str]:
    """What these wrong elements are. key_of(rank, transfer); now: number of this transfer; me: the rank that looks."""
    best, kind, detail, tie = 0.0, "garbage", "", False
    few = len(got) < FEW and got.dtype != np.int64  # the numbers of floats are small: one alone can be anybody's by chance
    for guess_kind, guess_detail, value in _guesses(index, dtype, key_of, me, ranks, now):
        if few and value.any():
            continue
        fits = float(np.mean(got == value))
        if fits > best:
            best, kind, detail, tie = fits, guess_kind, guess_detail, False
        elif fits and fits == best:
            tie = tie or (kind, detail) != (guess_kind, guess_detail)
    if best < ENOUGH:
        return _bits(got, index, dtype, key_of, ranks, now)
    return (kind, detail) if not tie else (kind, "")


def _guesses(index: I64, dtype: str, key_of: Callable[[int, int], Key], me: int, ranks: int, now: int) -> Iterator[tuple[str, str, I64]]:
    parts = [part(dtype, key_of(rank, now), ranks, index) for rank in range(ranks)]
    with np.errstate(over="ignore"):
        total = np.sum(parts, axis=0, dtype=np.int64)
        yield "zero", "", np.zeros_like(total)
        others = [rank for rank in range(ranks) if rank != me]
        yield "untouched", f"rank {others[0]} missing" if len(others) == 1 else "own part only", parts[me]
        for rank in others if ranks > 2 else [me]:
            yield "zero", f"rank {rank} missing", total - parts[rank]
        for back in range(1, min(ROUNDS_BACK, now) + 1):
            old = [part(dtype, key_of(rank, now - back), ranks, index) for rank in range(ranks)]
            yield "stale", f"round {now - back}", np.sum(old, axis=0, dtype=np.int64)
            for rank in range(ranks):
                yield "stale", f"rank {rank}, round {now - back}", total - parts[rank] + old[rank]
        for rank in range(ranks):
            yield "garbage", f"rank {rank} counted twice", total + parts[rank]


def _bits(got: NDArray[Any], index: I64, dtype: str, key_of: Callable[[int, int], Key], ranks: int, now: int) -> tuple[str, str]:
    """A few flipped bits of whole numbers. (A flip in a float moves its exponent: that is told as garbage.)"""
    if got.dtype != np.int64:
        return "garbage", ""
    with np.errstate(over="ignore"):
        total = np.sum([part(dtype, key_of(rank, now), ranks, index) for rank in range(ranks)], axis=0, dtype=np.int64)
    flipped = (got ^ total).view(np.uint8)
    if np.unpackbits(flipped).reshape(-1, 64).sum(axis=1).max(initial=0) > 4:
        return "garbage", ""
    every = int(np.bitwise_or.reduce((got ^ total).view(np.uint64)))
    return "bits", ",".join(str(bit) for bit in range(64) if every >> bit & 1)
