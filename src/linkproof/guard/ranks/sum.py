"""Is a sum over ranks the sum of its parts? Told from a few numbers of each rank, without moving the tensors again.

    part p_r = sum of s_i * x_r[i]     norm_r = root of the sum of x_r[i]^2     result q_r = sum of s_i * y_r[i]     one of each per block

In:      what each rank put in (x_r) and got out (y_r), both read where they are; s_i = +1 or -1 by place alone, the same on every rank.
Out:     `Sum`: which ranks hold a wrong result, and whose part is missing in it.
Unknown: `wrong` is None where an input is not finite, or a sum may rightly overflow. A change that is smaller than the bound is not seen here
         (a low bit): where not all ranks have it, the digests tell. What a rank put in wrong is summed rightly.
         A part that is missing on every rank is seen among up to 8 ranks in bfloat16, 16 in float16, if the parts are of one size.
Source:  the bound. A sum of n parts is n - 1 additions in some order, each wrong by at most u times what it gives (u: unit roundoff of the
         type; adders that round better, with float32 inside, err less) or `tiny` (adders that flush subnormal numbers). What it gives is the sum
         of a subset of the parts, and the k-th largest subset has at most n - k + 1 of them (Higham, Accuracy and Stability, 4.2, for any order).
         So what rounding does to q is a sum of random signs, which no adder knows, times errors e_i whose root of squares is at most
             e = u (1 + g) * (sum over s = 2 .. n of the s largest norms) + (n - 1) * tiny * root(B)      g = (n-1)u / (1 - (n-1)u)
         by the triangle inequality, and with z = (q - p_1 - ... - p_n) / e,
             one block:   |z| > H                         has a chance of at most 2 exp(-H^2 / 2)         (Hoeffding)
             m blocks:    sum of z^2 > m + 2 root(mt) + 2t  has a chance of at most exp(-t)               (Hsu, Kakade, Zhang 2012)
         both set to MISSES. Our own sums of B products in float64 err by at most B * 2^-53 * root(B) * norm each.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from linkproof.guard.digest import _mix
from linkproof.probe.payload import MULTIPLIER as GOLDEN

BLOCKS = 16  # each judged by itself as well: a page that is lost is more of a block than of the whole
MISSES = 1e-18
_T = -math.log(MISSES)
OF_ONE = math.sqrt(2 * (_T + math.log(2)))
OF_ALL = BLOCKS + 2 * math.sqrt(BLOCKS * _T) + 2 * _T
OWN_U = 2.0**-53
SUMMED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

F64 = NDArray[np.float64]


class Sum(NamedTuple):
    """wrong: ranks (places in the group) whose result is not the sum, None if that cannot be told. missing: whose part they all lack."""

    wrong: tuple[int, ...] | None
    missing: int | None = None


def block_of(numel: int) -> int:
    """Elements in a block; the last ones may be short or empty."""
    return max(1, -(-numel // BLOCKS))


@lru_cache(maxsize=16)
def signs(size: int, device: torch.device) -> torch.Tensor:
    """int8, [BLOCKS, size]."""
    words = np.asarray(_mix(np.arange(1, BLOCKS * size + 1, dtype=np.uint64) * np.uint64(GOLDEN)))  # type: ignore[arg-type]  # wraps in arrays
    plus = (words >> np.uint64(63)) == 0
    return torch.from_numpy(np.where(plus, 1, -1).astype(np.int8)).view(BLOCKS, size).to(device)


def project(t: torch.Tensor) -> F64:
    """[2, BLOCKS]: signed sums, sums of squares. Waits for the device; `kernel` does the same without."""
    size = block_of(t.numel())
    x = t.detach().reshape(-1).to(torch.float64)
    if x.numel() < size * BLOCKS:
        x = torch.nn.functional.pad(x, (0, size * BLOCKS - x.numel()))
    x = x.view(BLOCKS, size)
    out: F64 = torch.stack(((x * signs(size, x.device)).sum(1), torch.linalg.vecdot(x, x))).cpu().numpy()
    return out


class _Bound(NamedTuple):
    rounding: F64  # [BLOCKS], e
    own: F64

    def admits(self, off: F64) -> NDArray[np.bool_]:
        """off: [n, BLOCKS]; which rows rounding can explain. NaN it cannot."""
        with np.errstate(invalid="ignore", over="ignore"):
            z = np.maximum(np.abs(off) - self.own, 0) / self.rounding
            return np.asarray((z <= OF_ONE).all(1) & ((z * z).sum(1) <= OF_ALL))


def bound(norms: F64, dtype: torch.dtype, numel: int) -> _Bound:
    """norms: [n, BLOCKS]."""
    n, size, info = len(norms), block_of(numel), torch.finfo(dtype)
    u = info.eps / 2
    g = (n - 1) * u / (1 - (n - 1) * u)
    norms = np.sort(norms, 0)[::-1] * (1 + size * 2 * OWN_U)  # they are sums of ours as well
    partial = norms.cumsum(0)[1:].sum(0)
    return _Bound(u * (1 + g) * partial + (n - 1) * info.tiny * math.sqrt(size), size**1.5 * OWN_U * (2 + g) * norms.sum(0))


def judge(parts: F64, results: F64, dtype: torch.dtype, numel: int) -> Sum:
    """parts: [n, 2, BLOCKS] as `project` gives them; results: [n, BLOCKS] signed sums."""
    put_in, norms = parts[:, 0], np.sqrt(parts[:, 1])
    if not (np.isfinite(put_in).all() and np.isfinite(norms).all()):
        return Sum(None)
    limit = bound(norms, dtype, numel)
    # no element of a right result is larger than the sum of the norms: above the largest number of the type it may overflow
    if not np.isfinite(results).all() and not (norms.sum(0) * 1.1 < torch.finfo(dtype).max).all():
        return Sum(None)
    with np.errstate(invalid="ignore"):
        off = results - put_in.sum(0)
        wrong = tuple(int(r) for r in np.flatnonzero(~limit.admits(off)))
        if not wrong:
            return Sum(())
        lacks = [k for k in range(len(parts)) if limit.admits(off[list(wrong)] + put_in[k]).all()]
    return Sum(wrong, lacks[0] if len(lacks) == 1 else None)
