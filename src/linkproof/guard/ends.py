"""Both ends of hops: digests taken there, and compared.

In:      Carried; `read` starts the digests, one launch for each device, `compare` waits for them.
Out:     Lie: a hop whose ends differ, and what had gone to that GPU before in that size.
Unknown: a source that went to several GPUs is read once: what one of these copies did to it while it was sent is not seen for the others.
Raises:  nothing.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch

from linkproof.guard.digest import U64, hop_keys
from linkproof.guard.hops import Carried, Hop
from linkproof.guard.reader import Reader, Readings, Wanted

REMEMBERED = 8  # contents per GPU and size, to tell stale data
COMPARED_BEFORE = 128  # readings in which they are looked for


class Lie(NamedTuple):
    """hop: with its digests. before: contents of earlier hops to the same GPU in the same size, newest first."""

    hop: Hop
    before: list[int]

    @property
    def content(self) -> int:
        return self.hop.arrived - self.hop.key & (1 << 64) - 1


class _Read(NamedTuple):
    """carried: with their tensors if these are alive anyway. first: for each the first hop of the same source, whose reading holds for all.
    places: of each reading of a device: i for the source of hop i, n + i for its copy."""

    carried: list[Carried] | list[Hop]
    keys: U64
    first: list[int]
    places: list[tuple[list[int], Readings]]


class Ends:
    def __init__(self) -> None:
        self.reader = Reader()
        self._reading: list[_Read] = []
        self._lies: list[Lie] = []
        self._before: deque[tuple[list[tuple[torch.device, int]], list[int]]] = deque(maxlen=COMPARED_BEFORE)

    def forget(self) -> None:
        """Of this forward."""
        self._reading.clear()
        self._lies.clear()
        self.reader.used.clear()
        self.reader.reset()

    def read(self, some: list[Carried], step_key: int, held: bool) -> None:
        """held: somebody keeps the tensors until they are compared."""
        sizes_B = [c.size_B for c in some]
        device = some[0].link.src
        if not self.reader.has_room(device, *sizes_B):
            self._compare()
            if len(some) > 1 and not self.reader.has_room(device, *sizes_B):
                self.read(some[: len(some) // 2], step_key, held)
                self.read(some[len(some) // 2 :], step_key, held)
                return
        n = len(some)
        keys = hop_keys(step_key, np.array([c.number for c in some], np.uint64), np.array(sizes_B, np.uint64))
        ends: dict[torch.device, tuple[list[int], list[Wanted]]] = {}
        sources: dict[int, int] = {}
        first = []
        for i, (link, _, source, copy, *_) in enumerate(some):
            j = sources.setdefault(id(source), i)
            first.append(j)
            if i == j:
                here = ends.get(link.src) or ends.setdefault(link.src, ([], []))
                here[0].append(i)
                here[1].append((source, False))
            here = ends.get(link.dst) or ends.setdefault(link.dst, ([], []))
            here[0].append(n + i)
            here[1].append((copy, True))
        places = [(where, self.reader.read_all(wanted, keys[[i % n for i in where]])) for where, wanted in ends.values()]
        self._reading.append(_Read(some if held else [c.hop() for c in some], keys, first, places))

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
        return bool(sent[0] == arrived[0])

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

    def _digests(self, read: _Read) -> tuple[U64, U64]:
        n = len(read.carried)
        both: Any = np.empty(2 * n, np.uint64)
        for where, readings in read.places:
            both[where] = self.reader.values(readings)
        sent, first = both[:n], read.first
        if len(set(first)) < n:
            sent = np.maximum(sent[first] - read.keys[first] + read.keys, 1)
        return sent, both[n:]

    def _compare(self) -> None:
        if not self._reading:
            return
        self.reader.wait()
        for read in self._reading:
            sent, arrived = self._digests(read)
            places, contents = [(c.link.dst, c.size_B) for c in read.carried], (sent - read.keys).tolist()
            wrong = (sent != arrived).nonzero()[0].tolist()
            for i in wrong:
                hop = read.carried[i].hop()._replace(key=int(read.keys[i]), sent=int(sent[i]), arrived=int(arrived[i]))
                self._before.append((places[:i], contents[:i]))
                self._lies.append(Lie(hop, self.before(*places[i])))
                self._before.pop()
            self._before.append((places, contents))
        self._reading.clear()
        self.reader.reset()
