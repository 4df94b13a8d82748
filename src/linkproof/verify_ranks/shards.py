"""Each rank's part of every parameter, bit by bit, against the slice of the checkpoint that it should be.

In:      a model split by transformers, the checkpoint's folder (safetensors).
Out:     Shards: names of parts that differ, how many were compared, how many stand in no file as they are loaded.
Unknown: tensors that the loader renames, merges or converts (experts), parts that are cut in another way than in slices (packed projections).
Raises:  OSError if a file cannot be read.
Source:  the slice is worked out from DTensor's placements, the bytes are read on the host: no link takes part.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open

from linkproof.guard.reader import host_bytes


class Shards(NamedTuple):
    bad: list[str]
    compared: int
    unknown: int


def compare(model: Any, folder: str) -> Shards:
    files = {name: file for path in sorted(Path(folder).glob("*.safetensors")) for file in [_opened(path)] for name in file.keys()}  # noqa: SIM118
    bad: list[str] = []
    compared = unknown = 0
    for name, parameter in model.named_parameters():  # tied ones once
        cut = _cut(parameter)
        local = getattr(parameter, "_local_tensor", parameter).detach()
        piece = files[name].get_slice(name) if name in files else None
        if cut is None or piece is None or list(piece.get_shape()) != list(parameter.shape):
            unknown += 1
            continue
        want = piece[cut].to(local.dtype)
        compared += 1
        if tuple(want.shape) != tuple(local.shape) or not np.array_equal(host_bytes(want), host_bytes(local)):
            bad.append(name)
    return Shards(bad, compared, unknown)


def _opened(path: Path) -> Any:
    return safe_open(str(path), framework="pt")


def _cut(parameter: torch.Tensor) -> tuple[slice, ...] | None:
    """This rank's place in the whole; None if it is no plain slice."""
    placements = getattr(parameter, "placements", None)
    if placements is None:
        return tuple(slice(0, size) for size in parameter.shape)
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not all(type(p) in (Shard, Replicate) for p in placements):
        return None
    mesh = getattr(parameter, "device_mesh")  # noqa: B009  a Tensor has none, a DTensor has
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, mesh, placements)
    return tuple(slice(at, at + size) for at, size in zip(offset, shape, strict=True))
