"""What happened to a tensor on its way: the bytes that were sent and those that arrived, or only their digests.

In:      both as uint8; contents (digest.content) that were on the receiving GPU before.
Out:     Damage: kind, wrong bytes, the first of them. kind: zeros stale shifted pages tail bits garbage, `changed` from digests alone.
Unknown: a kind is the simplest story that fits the bytes; a short tensor can fit several.
Source:  the ways in which links fail, told in probe/faults.py.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from linkproof.guard.digest import content, of_zeros
from linkproof.probe.devices import U8
from linkproof.probe.payload import GRAINS_B

WINDOW_B = 16
FEW_BITS = 1 / 256  # at most this share of the bits, and never more than one bit in a byte on average


class Damage(NamedTuple):
    kind: str
    bad_B: int | None = None
    first_bad_B: int | None = None


def by_digest(arrived: int, size_B: int, earlier: Collection[int]) -> Damage:
    if arrived == of_zeros(size_B):
        return Damage("zeros")
    return Damage("stale" if arrived in earlier else "changed")


def by_bytes(sent: U8, arrived: U8, earlier: Collection[int]) -> Damage:
    wrong = sent != arrived
    places = np.flatnonzero(wrong)
    if not len(places):
        return Damage("changed", 0)
    return Damage(_kind(sent, arrived, wrong, places, earlier), len(places), int(places[0]))


def _kind(sent: U8, arrived: U8, wrong: np.ndarray, places: np.ndarray, earlier: Collection[int]) -> str:
    n, first, last = len(sent), int(places[0]), int(places[-1])
    if not arrived.any():
        return "zeros"
    if content(arrived) in earlier:
        return "stale"
    flipped = int(np.unpackbits(sent ^ arrived).sum())
    if flipped <= max(1, int(8 * n * FEW_BITS)) and flipped <= 2 * len(places):
        return "bits"
    if first and last >= n - 8 and wrong[first:].mean() > 0.5 and not _moved_page(sent, arrived, first):
        return "tail"
    if any(grain < n and _in_pages(wrong, grain) for grain in GRAINS_B):
        return "pages"
    if _shift(sent, arrived):
        return "shifted"
    return "garbage"


def _in_pages(wrong: np.ndarray, grain: int) -> bool:
    """Some pages are wrong through and through, the others right."""
    whole = len(wrong) // grain * grain
    share = wrong[:whole].reshape(-1, grain).mean(axis=1)
    if wrong[whole:].any() and wrong[whole:].mean() < 0.5:
        return False
    return bool(((share == 0) | (share > 0.5)).all() and (share == 0).any() and (share > 0.5).any())


def _moved_page(sent: U8, arrived: U8, first: int) -> bool:
    """The first wrong page was sent, but to another place."""
    grain = GRAINS_B[-1]
    at = first // grain * grain
    page = arrived[at : at + grain]
    found = sent.tobytes().find(page.tobytes()) if len(page) == grain else -1
    return found >= 0 and found % grain == 0


def _shift(sent: U8, arrived: U8) -> int:
    """How many bytes further on in what was sent most of what arrived is found; 0: nowhere."""
    text, n = sent.tobytes(), len(sent)
    for at in (0, n // 3, 2 * n // 3):
        window = arrived[at : at + WINDOW_B]
        if len(window) < WINDOW_B or len(set(window.tolist())) < WINDOW_B // 2:
            continue
        found = text.find(window.tobytes())
        if found < 0 or found == at:
            continue
        far = found - at
        overlap = arrived[max(0, -far) : n - max(0, far)] == sent[max(0, far) : n - max(0, -far)]
        if overlap.mean() > 0.9:
            return far
    return 0
