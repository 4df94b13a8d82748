"""One hop and what is remembered of it: no behaviour but to say whether somebody has written into its ends.

Out:     Hop (what crossed, and the digests of both ends), Carried (with the tensors themselves, until it is read), Bad (its ends differ),
         Served (a copy that others on the same GPU may have, too).
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch

from linkproof.guard.classify import Damage
from linkproof.guard.copies import Link
from linkproof.guard.reader import Reading


class Hop(NamedTuple):
    link: Link
    number: int
    key: int
    size_B: int
    dtype: torch.dtype
    shape: torch.Size
    staged: bool
    late: bool = False  # read some time after it was carried
    sent: Reading = 0
    arrived: Reading = 0


class Carried(NamedTuple):
    """A hop that is to be read yet. versions: of source and copy when it was carried."""

    hop: Hop
    source: torch.Tensor
    copy: torch.Tensor
    versions: tuple[int, int] = (0, 0)

    @property
    def untouched(self) -> bool:
        """As far as torch knows; somebody may also have taken the memory away."""
        source, copy = self.source, self.copy
        if self.versions != (source._version, copy._version):
            return False
        return source.device.type != "cuda" or (source.data_ptr() != 0 and copy.data_ptr() != 0)


class Bad(NamedTuple):
    hop: Hop
    damage: Damage


class Served:
    """One copy and who may have it still."""

    __slots__ = ("copy", "copy_version", "source", "times", "version")

    def __init__(self, source: weakref.ref[torch.Tensor], version: int, copy: torch.Tensor) -> None:
        self.source, self.version, self.copy, self.copy_version, self.times = source, version, copy, copy._version, 1

    def serves(self, t: torch.Tensor) -> bool:
        """Gradients are to be summed as they would be without us."""
        if self.source() is not t or self.version != t._version or self.copy_version != self.copy._version:
            return False
        return not (t.requires_grad and torch.is_grad_enabled())

    @property
    def written(self) -> bool:
        return self.copy._version != self.copy_version
