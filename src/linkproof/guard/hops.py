"""One hop and what is remembered of it: no behaviour but to say whether somebody has written into its ends.

Out:     Carried (a hop with its tensors, until it is compared), Hop (what is said of it), Bad (its ends differ).
"""

from __future__ import annotations

from typing import NamedTuple

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
