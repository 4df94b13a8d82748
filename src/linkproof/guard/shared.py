"""Copies that have been made in this forward: whoever is sent the same tensor to the same place again gets the same copy.

In:      tensors that a hook hands over, and what was made of them.
Out:     Shared: `copy_of` one, `again` for all that a hook hands over by name; `written`: somebody has written into a copy that two have got.
Unknown: a kernel that writes into a tensor behind torch's back (no version is counted up): such a copy is served again.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from linkproof.guard.copies import SCALARS, left_alone

HELD_B = 1 << 16  # sources up to that size are held until the forward is through: quicker than to watch whether they live
HELD_SUM_B = 8 << 20
Place = tuple[int, Any]  # id of the source, GPU or link


class Served:
    """One copy. source: the tensor itself or a weak reference. twice: more than one has got it."""

    __slots__ = ("copy", "copy_version", "source", "twice", "version")

    def __init__(self, source: weakref.ref[torch.Tensor] | torch.Tensor, version: int, copy: torch.Tensor, copy_version: int) -> None:
        self.source, self.version, self.copy, self.copy_version, self.twice = source, version, copy, copy_version, False

    def serves(self, t: torch.Tensor) -> bool:
        """Nobody has written into source or copy. Gradients are to be summed as they would be without us."""
        if self.version != t._version or self.copy_version != self.copy._version:
            return False
        source = self.source
        if source is not t and (isinstance(source, torch.Tensor) or source() is not t):
            return False
        return not (t.requires_grad and torch.is_grad_enabled())

    @property
    def written(self) -> bool:
        return self.copy._version != self.copy_version


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
        self._kept: list[Served] = []  # of sources that are gone
        self._delivered: dict[Any, Delivered] = {}  # the last, by GPU or link
        self._held_B = 0

    def forget(self) -> None:
        self._served.clear()
        self._kept.clear()
        self._delivered.clear()
        self._held_B = 0

    def forget_names(self) -> None:
        self._delivered.clear()

    def copy_of(self, place: Place, t: torch.Tensor) -> torch.Tensor | None:
        served = self._served.get(place)
        if served is None or not served.serves(t):
            return None
        served.twice = True
        return served.copy

    def add(self, place: Place, t: torch.Tensor, copy: torch.Tensor, size_B: int) -> None:
        served = self._served.get(place)
        if served is not None and served.twice:
            self._kept.append(served)
        source: Any = t
        if size_B > HELD_B or self._held_B > HELD_SUM_B:
            source = weakref.ref(t, lambda _: self._drop(place))
        else:
            self._held_B += size_B
        self._served[place] = Served(source, t._version, copy, copy._version)

    def _drop(self, place: Place) -> None:
        served = self._served.pop(place, None)
        if served is not None and served.twice:
            self._kept.append(served)

    def again(self, named: dict[str, Any], dst: Any) -> Delivered | None:
        """All that a hook hands over by name, if it was the same the last time."""
        last = self._delivered.get(dst)
        if last is None or not last.serves(named):
            return None
        if not last.twice:
            last.twice = True
            for _, served in last.served:
                served.twice = True
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
        for served in self._served.values():
            if served.copy is copy:
                served.copy_version = copy._version

    @property
    def written(self) -> bool:
        return any(s.twice and s.written for s in (*self._served.values(), *self._kept))
