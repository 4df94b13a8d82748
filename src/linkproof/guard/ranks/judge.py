"""What ranks report of one forward, compared: which collective was wrong, how, and whose fault it looks. Runs on every rank, alike on all.

In:      the shape of the reports (`Made`, this rank's own, one per collective), everybody's words.
Out:     Found, in the order of the collectives: the first is the first lie.
Unknown: `odd` is empty where two stories fit: two ranks that differ in bits that rounding could explain.
Raises:  nothing.
Source:  an all-reduce gives every rank the same bits: each piece is added up once and handed round (NCCL's ring, tree and NVLS, gloo).
         An all-gather gives each rank the bits that each other had.

    words of a collective: what it is | sum: digest, code, part [2 x BLOCKS], result [BLOCKS] | else: own digest, then digest and code per piece
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from linkproof.guard.ranks.channel import I64
from linkproof.guard.ranks.sum import BLOCKS, judge

CODES = ("changed", "zeros", "stale")


class Made(NamedTuple):
    """One collective that this rank took part in. pieces: of an all-gather; 0 for a reduction. summed: the parts are reported as well."""

    ident: int
    pieces: int
    summed: bool
    dtype: torch.dtype
    numel: int

    @property
    def words(self) -> int:
        return 2 + 2 * self.pieces if self.pieces else 3 + (3 * BLOCKS if self.summed else 0)


class Found(NamedTuple):
    """number: collective of the forward. odd: places in the group. digests: the result of each rank (of a reduction). step: if not this one."""

    number: int
    kind: str
    odd: tuple[int, ...]
    digests: tuple[int, ...] = ()
    step: int | None = None


def compare(made: Sequence[Made], reports: Sequence[I64]) -> list[Found]:
    found: list[Found] = []
    at = 0
    for number, m in enumerate(made):
        rows = [r[at : at + m.words] for r in reports]
        idents = [int(r[0]) if len(r) == m.words else -1 for r in rows]
        if len(set(idents)) > 1:
            return [*found, Found(number, "order", minority(idents))]
        one = _gathered(number, rows) if m.pieces else _reduced(number, m, np.stack(rows))
        found += [one] if one else []
        at += m.words
    if any(len(r) > at for r in reports):
        found.append(Found(len(made), "order", minority([len(r) for r in reports])))
    return found


def minority(values: Sequence[int]) -> tuple[int, ...]:
    """Places whose value is not the one that most have; empty if no value has most."""
    (most, count), *others = Counter(values).most_common()
    if others and others[0][1] == count:
        return ()
    return tuple(i for i, v in enumerate(values) if v != most)


def _reduced(number: int, made: Made, rows: I64) -> Found | None:
    digests = tuple(int(d) for d in rows[:, 1])
    wrong: tuple[int, ...] | None = None
    missing = None
    if made.summed:
        numbers = rows[:, 3:].view(np.float64)
        wrong, missing = judge(numbers[:, : 2 * BLOCKS].reshape(-1, 2, BLOCKS), numbers[:, 2 * BLOCKS :], made.dtype, made.numel)
    same = len(set(digests)) == 1
    if same and not wrong:
        return None
    if missing is not None and wrong and len(wrong) == len(rows):
        return Found(number, "missing", (missing,), digests)
    if same:
        return Found(number, _kind(rows[:, 2], range(len(rows)), "sum"), (), digests)
    odd = wrong if wrong and len(wrong) < len(rows) else minority(digests)
    return Found(number, _kind(rows[:, 2], odd, "changed"), odd, digests)


def _gathered(number: int, rows: Sequence[I64]) -> Found | None:
    bad = [
        (receiver, sender, int(row[3 + 2 * sender]))
        for receiver, row in enumerate(rows)
        for sender in range(len(rows))
        if row[2 + 2 * sender] != rows[sender][1]
    ]
    if not bad:
        return None
    receivers, senders = sorted({b[0] for b in bad}), sorted({b[1] for b in bad})
    odd = receivers if len(receivers) == 1 or len(senders) > 1 else senders
    kinds = {b[2] for b in bad}
    return Found(number, CODES[kinds.pop()] if len(kinds) == 1 else "changed", tuple(odd))


def _kind(codes: I64, of: Sequence[int], else_: str) -> str:
    kinds = {int(codes[r]) for r in of}
    kind = CODES[kinds.pop()] if len(kinds) == 1 else "changed"
    return else_ if kind == "changed" else kind
