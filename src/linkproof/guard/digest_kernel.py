"""The digest of digest.py at memory speed, in Triton: each program writes the sum of its words straight into pinned host memory.

In:      addresses as plain integers (the tensor's; a multiple of 8), size_B, key, room for `programs(size_B)` words in host memory.
Out:     those words, whose sum is the digest. Launched on the current stream of the current device; nobody waits here.
Unknown: 64-bit scalars travel as two signed halves, as in probe/kernels.py.
Raises:  whatever Triton raises if it cannot build.
Source:  digest.py. The GPU's own way to its host is the one that is trusted: no digest goes from GPU to GPU.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from linkproof.guard.digest import MIX_A, MIX_B
from linkproof.probe.gpu.kernels import _pointer, _whole, halves
from linkproof.probe.payload import MULTIPLIER

BLOCK, WARPS = 1024, 4
MOST_PROGRAMS = 1024  # words in host memory that one digest can take

_GOLDEN, _A, _B = tl.constexpr(MULTIPLIER), tl.constexpr(MIX_A), tl.constexpr(MIX_B)


@triton.jit
def _mixed(word, index):
    z = word ^ ((index.to(tl.uint64) + 1) * _GOLDEN)
    z = (z ^ (z >> 30)) * _A
    z = (z ^ (z >> 27)) * _B
    return z ^ (z >> 31)


@triton.jit(do_not_specialize=["at", "out", "words", "tail_B", "key_low", "key_high"])
def sum_words(at, out, words, tail_B, key_low, key_high, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    base = _pointer(at, tl.uint64, 8)
    total = tl.zeros([BLOCK], tl.uint64)
    for begin in range(tl.program_id(0) * BLOCK, words, tl.num_programs(0) * BLOCK):
        index = begin + lane
        here = index < words
        word = tl.load(base + index, mask=here, other=0)
        total += tl.where(here, _mixed(word, index), 0)
    mine = tl.sum(total, axis=0)
    if tl.program_id(0) == 0:
        mine += _whole(key_low, key_high)
        if tail_B > 0:
            byte = tl.arange(0, 8)
            last = tl.load(_pointer(at, tl.uint8, 8) + words.to(tl.int64) * 8 + byte, mask=byte < tail_B, other=0)
            word = tl.sum(last.to(tl.uint64) << (byte * 8).to(tl.uint64), axis=0)
            mine += _mixed(word, words)
    tl.store(_pointer(out, tl.uint64, 8) + tl.program_id(0), mine)


def programs(size_B: int) -> int:
    return max(1, min(MOST_PROGRAMS, -(-(size_B // 8) // BLOCK)))


def launch(at: int, out: int, size_B: int, key: int) -> None:
    sum_words[(programs(size_B),)](at, out, size_B // 8, size_B % 8, *halves(key), BLOCK=BLOCK, num_warps=WARPS)
