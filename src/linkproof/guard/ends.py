"""Both ends of hops: digests taken there, and compared.

In:      Carried; `read` starts the digests, one launch for each device, `compare` waits for them.
Out:     Lie: a hop whose ends differ, and what had gone to that GPU before in that size.
Unknown: a source that went to several GPUs is read once: what one of these copies did to it while it was sent is not seen for the others.
Raises:  nothing.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch

from linkproof.guard.digest import MASK
from linkproof.guard.hops import Carried, Hop
from linkproof.guard.layout import Layout, Layouts
from linkproof.guard.reader import Reader, Readings

REMEMBERED = 8  # contents per GPU and size, to tell stale data
COMPARED_BEFORE = 128  # readings in which they are looked for


class Lie(NamedTuple):
    """hop: with its digests. before: contents of earlier hops to the same GPU in the same size, newest first."""

    hop: Hop
    before: list[int]

    @property
    def content(self) -> int:
        return self.hop.arrived - self.hop.key & MASK


class _Read(NamedTuple):
    """carried: with their tensors if these are alive anyway. readings: of each part of the layout."""

    carried: list[Carried] | list[Hop]
    keys: list[int]
    layout: Layout
    readings: list[Readings]


class Ends:
    def __init__(self) -> None:
        self.reader = Reader()
        self._layouts = Layouts()
        self._reading: list[_Read] = []
        self._lies: list[Lie] = []
        self._before: deque[tuple[list[tuple[torch.device, int]], list[int]]] = deque(maxlen=COMPARED_BEFORE)

    def forget(self) -> None:
        """Of this forward."""
        self._reading.clear()
        self._lies.clear()
        self.reader.used.clear()
        self.reader.reset()

    def read(self, some: list[Carried], step_key: int, held: bool) -> Layout:
        """held: somebody keeps the tensors until they are compared."""
        layout = self._layouts.of(some)
        device = some[0].link.src
        if not self.reader.has_room(device, layout.sizes_B):
            self._compare()
            if len(some) > 1 and not self.reader.has_room(device, layout.sizes_B):
                self.read(some[: len(some) // 2], step_key, held)
                self.read(some[len(some) // 2 :], step_key, held)
                return layout
        keys = layout.keys(step_key)
        ends = [c.source for c in some] + [c.copy for c in some]
        both = keys + keys
        if layout.plain:
            readings = [self.reader.read_all(ends, both, layout.part_sizes_B[0])]
        else:
            readings = [
                self.reader.read_all([ends[i] for i in part], [both[i] for i in part], sizes_B)
                for part, sizes_B in zip(layout.parts, layout.part_sizes_B, strict=True)
            ]
        self._reading.append(_Read(some if held else [c.hop() for c in some], keys, layout, readings))
        return layout

    def compare(self) -> list[Lie]:
        """Of all that was read since the last time, in order."""
        self._compare()
        lies, self._lies = self._lies, []
        return lies

    def same(self, c: Carried, step_key: int) -> bool:
        """Read now, and only to know whether they are alike now."""
        self.read([c], step_key, True)
        self.reader.wait()
        sent, arrived = self._digests(self._reading.pop())
        self.reader.reset()
        return sent == arrived

    def before(self, device: torch.device, size_B: int, but: int | None = None) -> list[int]:
        """The last contents that were sent to a GPU in this size, newest first."""
        found: list[int] = []
        for places, contents in reversed(self._before):
            for place, content in zip(reversed(places), reversed(contents), strict=True):
                if place == (device, size_B) and content != but and content not in found:
                    found.append(content)
                    if len(found) == REMEMBERED:
                        return found
        return found

    def _digests(self, read: _Read) -> tuple[list[int], list[int]]:
        n, layout = len(read.carried), read.layout
        if layout.plain:
            both = self.reader.values(read.readings[0])
        else:
            both = [0] * (2 * n)
            for part, readings in zip(layout.parts, read.readings, strict=True):
                for i, value in zip(part, self.reader.values(readings), strict=True):
                    both[i] = value
        return layout.sent(both[:n]), both[n:]

    def _compare(self) -> None:
        if not self._reading:
            return
        self.reader.wait()
        for read in self._reading:
            sent, arrived = self._digests(read)
            places, contents = read.layout.places, [n - key & MASK for n, key in zip(sent, read.keys, strict=True)]
            if sent != arrived:
                self._told_apart(read, sent, arrived, places, contents)
            self._before.append((places, contents))
        self._reading.clear()
        self.reader.reset()

    def _told_apart(
        self, read: _Read, sent: list[int], arrived: list[int], places: list[tuple[torch.device, int]], contents: list[int]
    ) -> None:
        for i, both in enumerate(zip(sent, arrived, strict=True)):
            if both[0] != both[1]:
                hop = read.carried[i].hop()._replace(key=read.keys[i], sent=both[0], arrived=both[1])
                self._before.append((places[:i], contents[:i]))
                self._lies.append(Lie(hop, self.before(*places[i])))
                self._before.pop()
