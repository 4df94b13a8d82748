"""One hop and what is remembered of it: no behaviour but to say whether somebody has written into its ends.

Out:     Carried (a hop with its tensors, until it is compared), Hop (what is said of it), Bad (its ends differ), Served (a copy that others on the same GPU may have, too), Delivered (several of them).
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch

from linkproof.guard.classify import Damage
from linkproof.guard.copies import Link


class Hop(NamedTuple):
    """What is said of a hop. key: of its digests."""

    link: Link
    number: int
    size_B: int
    staged: bool
    late: bool  # read some time after it was carried
    dtype: torch.dtype
    shape: torch.Size
    key: int = 0
    sent: int = 0  # digests
    arrived: int = 0

    def hop(self) -> Hop:
        return self


class Carried(NamedTuple):
    """A hop with its tensors, until it has been compared. versions of source and copy when it was carried: only of one that is read late."""

    link: Link
    number: int
    source: torch.Tensor
    copy: torch.Tensor
    size_B: int
    staged: bool
    late: bool = False
    source_version: int = 0
    copy_version: int = 0

    @property
    def untouched(self) -> bool:
        """As far as torch knows; somebody may also have taken the memory away."""
        source, copy = self.source, self.copy
        if self.source_version != source._version or self.copy_version != copy._version:
            return False
        return not source.is_cuda or (source.data_ptr() != 0 and copy.data_ptr() != 0)

    def hop(self) -> Hop:
        return Hop(self.link, self.number, self.size_B, self.staged, self.late, self.source.dtype, self.source.shape)


class Bad(NamedTuple):
    hop: Hop
    damage: Damage


class Served:
    """One copy and who may have it still. source: a weak reference, or the tensor itself where a hop that waits to be read holds it anyway."""

    __slots__ = ("copy", "copy_version", "source", "times", "version")

    def __init__(self, source: weakref.ref[torch.Tensor] | torch.Tensor, version: int, copy: torch.Tensor) -> None:
        self.source, self.version, self.copy, self.copy_version, self.times = source, version, copy, copy._version, 1

    def serves(self, t: torch.Tensor) -> bool:
        """Gradients are to be summed as they would be without us."""
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

    __slots__ = ("_versions", "given", "out", "served")

    def __init__(self, given: dict[str, Any], out: dict[str, Any], served: list[tuple[Served, torch.Tensor]]) -> None:
        self.given, self.out, self.served = given, out, [s for s, _ in served]
        self._versions = [(t, s.version, s.copy, s.copy_version) for s, t in served]

    def serves(self, tree: dict[str, Any]) -> bool:
        """Nobody has written into source or copy, and no gradient is to be summed."""
        given = self.given
        if len(given) != len(tree) or torch.is_grad_enabled():
            return False
        for k, v in tree.items():
            if given.get(k, self) is not v:
                return False
        for t, version, copy, copy_version in self._versions:  # noqa: SIM110  a generator costs more
            if t._version != version or copy._version != copy_version:
                return False
        return True
