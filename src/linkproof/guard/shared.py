"""Copies that have been made in this forward: whoever is sent the same tensor to the same place again gets the same copy.

In:      tensors that a hook hands over, and what was made of them.
Out:     Shared: `copy_of` one, `again` for all that a hook hands over by name; `written`: somebody has written into a copy that two have got.
Unknown: a kernel that writes into a tensor behind torch's back (no version is counted up): such a copy is served again.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch

from linkproof.guard.copies import SCALARS, left_alone

HELD_B = 1 << 16  # sources up to that size are held until the forward is through: quicker than to watch whether they live
HELD_SUM_B = 8 << 20
Place = tuple[int, Any]  # id of the source, GPU or link


class Served(NamedTuple):
    """One copy. source: the tensor itself or a weak reference."""

    source: Any
    version: int
    copy: torch.Tensor
    copy_version: int

    @property
    def written(self) -> bool:
        return self.copy._version != self.copy_version


_new = tuple.__new__  # of a named tuple: a third of the time that its own takes


class Delivered:
    """Named arguments that one hook handed over, and the copies: the next layer mostly gets the very same ones."""

    __slots__ = ("given", "out", "served", "twice")

    def __init__(self, given: dict[str, Any], out: dict[str, Any], served: list[tuple[torch.Tensor, Served]]) -> None:
        self.given, self.out, self.served, self.twice = given, out, served, False

    def serves(self, named: dict[str, Any]) -> bool:
        given = self.given
        if len(given) != len(named) or torch.is_grad_enabled():
            return False
        for k, v in named.items():
            if given.get(k, self) is not v:
                return False
        for t, s in self.served:  # noqa: SIM110  a generator costs more
            if t._version != s.version or s.copy._version != s.copy_version:
                return False
        return True


class Shared:
    def __init__(self) -> None:
        self._served: dict[Place, Served] = {}
        self._twice: set[Place] = set()  # more than one has got it
        self._kept: list[Served] = []  # of these, those whose place another has taken, or nobody
        self._delivered: dict[Any, Delivered] = {}  # the last, by GPU or link
        self._held_B = 0

    def forget(self) -> None:
        self._served.clear()
        self._twice.clear()
        self._kept.clear()
        self._delivered.clear()
        self._held_B = 0

    def forget_names(self) -> None:
        self._delivered.clear()

    def copy_of(self, place: Place, t: torch.Tensor) -> torch.Tensor | None:
        """None, too, if somebody has written into source or copy, and where gradients are to be summed as they would be without us."""
        served = self._served.get(place)
        if served is None:
            return None
        source, version, copy, copy_version = served
        if version != t._version or copy_version != copy._version:
            return None
        if source is not t and (isinstance(source, torch.Tensor) or source() is not t):
            return None
        if t.requires_grad and torch.is_grad_enabled():
            return None
        self._twice.add(place)
        return copy

    def add(self, place: Place, t: torch.Tensor, copy: torch.Tensor, size_B: int) -> None:
        if place in self._twice:
            self._drop(place)
        source: Any = t
        if size_B > HELD_B or self._held_B > HELD_SUM_B:
            source = weakref.ref(t, lambda _: self._drop(place))
        else:
            self._held_B += size_B
        self._served[place] = _new(Served, (source, t._version, copy, copy._version))

    def _drop(self, place: Place) -> None:
        served = self._served.pop(place, None)
        if served is not None and place in self._twice:
            self._twice.discard(place)
            self._kept.append(served)

    def again(self, named: dict[str, Any], dst: Any) -> Delivered | None:
        """All that a hook hands over by name, if it was the same the last time."""
        last = self._delivered.get(dst)
        if last is None or not last.serves(named):
            return None
        if not last.twice:
            last.twice = True
            self._twice.update((id(t), dst) for t, _ in last.served)
        return last

    def remember(self, named: dict[str, Any], out: dict[str, Any], dst: Any, skip: Any) -> None:
        """If nothing in there can change unseen."""
        found = []
        for k, v in named.items():
            for x in v if type(v) is tuple else (v,):
                if isinstance(x, torch.Tensor):
                    served = self._served.get((id(x), dst))
                    if served is None:
                        return
                    found.append((x, served))
                elif not (x is None or k in skip or type(x) in SCALARS or left_alone(x)):
                    return
        self._delivered[dst] = Delivered(named.copy(), out.copy(), found)

    def mended(self, copy: torch.Tensor) -> None:
        """We have written into it ourselves."""
        for place in tuple(self._served):  # a source may go at any moment, and takes its place with it
            served = self._served.get(place)
            if served is not None and served.copy is copy:
                self._served[place] = served._replace(copy_version=copy._version)

    @property
    def written(self) -> bool:
        """Somebody has written into a copy that two have got."""
        twice = [self._served.get(place) for place in tuple(self._twice)]
        return any(served is not None and served.written for served in (*self._kept, *twice))
