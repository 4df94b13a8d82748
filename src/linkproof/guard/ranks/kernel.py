"""The numbers of ranks_sum.project at memory speed, in Triton: each program writes two float64 straight into pinned host memory.

In:      addresses as plain integers (the tensor's, a multiple of its element size), element count, room for `2 * BLOCKS * programs` float64.
Out:     [BLOCKS, programs, 2]: signed sum and sum of squares of what each program has read. Launched on the current stream; nobody waits here.
Raises:  whatever Triton raises if it cannot build.
Source:  sum.py; a test holds both equal.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from linkproof.guard.digest_kernel import _mixed
from linkproof.guard.ranks.sum import BLOCKS, block_of
from linkproof.probe.gpu.kernels import _pointer

LANES, WARPS = 1024, 4
MOST_PROGRAMS = 64  # per block
TYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit(do_not_specialize=["at", "out", "numel", "size"])
def project_block(at, out, numel, size, TYPE: tl.constexpr, ALIGN: tl.constexpr, LANES: tl.constexpr):
    lane = tl.arange(0, LANES)
    block = tl.program_id(0).to(tl.int64)
    begin = block * size
    signed = tl.zeros([LANES], tl.float64)
    squares = tl.zeros([LANES], tl.float64)
    for first in range(tl.program_id(1) * LANES, size, tl.num_programs(1) * LANES):
        place = first + lane
        here = (place < size) & (begin + place < numel)
        x = tl.load(_pointer(at, TYPE, ALIGN) + begin + place, mask=here, other=0).to(tl.float64)
        minus = (_mixed(tl.zeros([LANES], tl.uint64), begin + place) >> 63) != 0
        signed += tl.where(minus, -x, x)
        squares += x * x
    mine = (block * tl.num_programs(1) + tl.program_id(1)) * 2
    tl.store(_pointer(out, tl.float64, 8) + mine, tl.sum(signed, axis=0))
    tl.store(_pointer(out, tl.float64, 8) + mine + 1, tl.sum(squares, axis=0))


def programs(numel: int) -> int:
    return max(1, min(MOST_PROGRAMS, block_of(numel) // LANES))


def launch(at: int, out: int, numel: int, dtype: torch.dtype) -> None:
    grid = (BLOCKS, programs(numel))
    project_block[grid](at, out, numel, block_of(numel), TYPE=TYPES[dtype], ALIGN=dtype.itemsize, LANES=LANES, num_warps=WARPS)
