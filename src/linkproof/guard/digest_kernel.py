"""The digest of digest.py at memory speed, in Triton, of several tensors in one launch: each program writes the sum of its words straight into
pinned host memory.

In:      a table in pinned host memory, one row per tensor: its address (a multiple of 8), where its sums go, words, bytes behind the last
         word, key, programs. The device reads the table itself: a launch has one argument, whatever there is to read.
Out:     `programs(size_B)` sums per tensor, whose sum is the digest. Launched on the current stream of the current device; nobody waits here.
Raises:  whatever Triton raises if it cannot build.
Source:  digest.py. The GPU's own way to its host is the one that is trusted: no digest goes from GPU to GPU.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from linkproof.guard.digest import MASK, MIX_A, MIX_B
from linkproof.probe.gpu.kernels import _pointer
from linkproof.probe.payload import MULTIPLIER

BLOCK, WARPS = 1024, 4
ROW = 6  # words
MOST_PROGRAMS = 1024  # words in host memory that one digest can take
TAKES_CONSTANTS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)  # else a built kernel is called another way
_built: dict[int | None, Any] = {}  # by device

_GOLDEN, _A, _B = tl.constexpr(MULTIPLIER), tl.constexpr(MIX_A), tl.constexpr(MIX_B)


@triton.jit
def _mixed(word, index):
    z = word ^ ((index.to(tl.uint64) + 1) * _GOLDEN)
    z = (z ^ (z >> 30)) * _A
    z = (z ^ (z >> 27)) * _B
    return z ^ (z >> 31)


@triton.jit(do_not_specialize=["table"])
def sum_words(table, BLOCK: tl.constexpr, ROW: tl.constexpr):
    row = _pointer(table, tl.uint64, 8) + tl.program_id(1) * ROW
    words, tail_B, programs = tl.load(row + 2).to(tl.int32), tl.load(row + 3).to(tl.int32), tl.load(row + 5).to(tl.int32)
    if tl.program_id(0) < programs:
        lane = tl.arange(0, BLOCK)
        base = _pointer(tl.load(row), tl.uint64, 8)
        total = tl.zeros([BLOCK], tl.uint64)
        for begin in range(tl.program_id(0) * BLOCK, words, programs * BLOCK):
            index = begin + lane
            here = index < words
            word = tl.load(base + index, mask=here, other=0)
            total += tl.where(here, _mixed(word, index), 0)
        mine = tl.sum(total, axis=0)
        if tl.program_id(0) == 0:
            mine += tl.load(row + 4)
            if tail_B > 0:
                byte = tl.arange(0, 8)
                last = tl.load(_pointer(tl.load(row), tl.uint8, 8) + words.to(tl.int64) * 8 + byte, mask=byte < tail_B, other=0)
                word = tl.sum(last.to(tl.uint64) << (byte * 8).to(tl.uint64), axis=0)
                mine += _mixed(word, words)
        tl.store(_pointer(tl.load(row + 1), tl.uint64, 8) + tl.program_id(0), mine)


def programs(size_B: int) -> int:
    return max(1, min(MOST_PROGRAMS, -(-(size_B // 8) // BLOCK)))


def launch(table: int, rows: int, most: int, device: int | None, stream: int) -> None:
    """table: its address. most: programs of the largest. device, stream: the current ones; the first launch on a device goes through Triton's
    front end, the others use what that has built."""
    built = _built.get(device)
    if built is not None:
        built[most, rows, 1](table, BLOCK, ROW, stream=stream)
        return
    built = sum_words[most, rows, 1](table, BLOCK=BLOCK, ROW=ROW, num_warps=WARPS)
    if TAKES_CONSTANTS and table > MASK >> 32:  # an address below would have been taken for 32 bits
        _built[device] = built
