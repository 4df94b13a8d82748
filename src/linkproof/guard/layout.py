"""How the ends of some hops are read and told apart: worked out once, for the hops of one token are those of the last one.

In:      Carried, all that will be read in one go.
Out:     Layout: what is read on which device, the keys, who shares a source, and what to count.
"""

from __future__ import annotations

import torch

from linkproof.guard.copies import Link
from linkproof.guard.digest import MASK, hop_salt
from linkproof.guard.hops import Carried

KEPT = 256  # layouts of one thread
Shape = tuple[tuple[Link, int, int, int], ...]  # of each hop: link, number, size_B, the first hop of the same source


class Layout:
    """parts: what is read on each device: i for the source of hop i, n + i for its copy. plain: on one device, and no two share a source."""

    def __init__(self, shape: Shape) -> None:
        n = len(shape)
        ends: dict[torch.device, list[int]] = {}
        counts: dict[str, tuple[int, int]] = {}
        salts = [hop_salt(number, size_B) for _, number, size_B, _ in shape]
        for i, (link, _, size_B, first) in enumerate(shape):
            if first == i:
                ends.setdefault(link.src, []).append(i)
            hops, sum_B = counts.get(link.name, (0, 0))
            counts[link.name] = hops + 1, sum_B + size_B
        for i, (link, *_) in enumerate(shape):
            ends.setdefault(link.dst, []).append(n + i)
        self.parts = list(ends.values())
        self.plain = self.parts[0] == list(range(2 * n))
        self.part_sizes_B = [tuple([shape[i % n][2] for i in part]) for part in self.parts]
        self.keys_apart = [(first, salts[i] - salts[first]) for i, (*_, first) in enumerate(shape)]
        self.sizes_B = tuple([size_B for _, _, size_B, _ in shape])
        self.places = [(link.dst, size_B) for link, _, size_B, _ in shape]
        self.counts = [(name, *both) for name, both in counts.items()]
        self._salts = salts

    def keys(self, step_key: int) -> list[int]:
        return [salt + step_key & MASK for salt in self._salts]

    def sent(self, own: list[int]) -> list[int]:
        """The digest that each hop's source would have had of its own: a source that went to several GPUs is read once, for the first."""
        return own if self.plain else [own[first] + apart & MASK or 1 for first, apart in self.keys_apart]


class Layouts:
    def __init__(self) -> None:
        self._known: dict[Shape, Layout] = {}

    def of(self, some: list[Carried]) -> Layout:
        sources: dict[int, int] = {}
        first = sources.setdefault
        shape = tuple([(c.link, c.number, c.size_B, first(id(c.source), i)) for i, c in enumerate(some)])
        found = self._known.get(shape)
        if found is None:
            if len(self._known) == KEPT:
                self._known.clear()
            found = self._known[shape] = Layout(shape)
        return found
