"""Every parameter and buffer on every device, as digests, against the checkpoint.

In:      the host's copy, the checkpoint's folder, the split model.
Out:     `truth`: name -> digest, from the files where a file holds that very tensor, else from what the host loaded. `compare`: a Weights.
Unknown: tensors that the loader merges or converts (experts, another dtype) stand in no file as they are on the device.
Source:  guard/digest.py; on a GPU its own kernel reads them there and writes 8 bytes into host memory, so no link is asked to be right.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from linkproof.guard.digest import content, digest
from linkproof.guard.reader import Reader, Readings, host_bytes
from linkproof.verified import BadWeight, Weights

NAMES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "U8": torch.uint8}


class Truth(NamedTuple):
    """of: name -> digest. from_files: the names that a file was read for. misread: names that the host loaded otherwise than the file has them."""

    of: dict[str, int]
    from_files: frozenset[str]
    misread: tuple[str, ...]


def tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def truth(model: Any, folder: str) -> Truth:
    loaded = {name: t.detach() for name, t in tensors(model)}
    files = dict(_in_files(folder, loaded)) if folder else {}
    of = {name: digest(content(host_bytes(t)), 0) for name, t in loaded.items()}
    misread = tuple(sorted(name for name, found in files.items() if of[name] != found))
    return Truth(of | files, frozenset(files), misread)


def _in_files(folder: str, loaded: dict[str, torch.Tensor]) -> Iterator[tuple[str, int]]:
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if not entry.name.endswith(".safetensors"):
            continue
        with open(entry.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:  # noqa: PTH123
            length = int.from_bytes(data[:8], "little")
            for name, about in json.loads(data[8 : 8 + length]).items():
                mine = loaded.get(name)
                if mine is None or NAMES.get(about["dtype"]) is not mine.dtype or list(mine.shape) != about["shape"]:
                    continue
                begin, end = about["data_offsets"]
                yield name, digest(content(np.frombuffer(data[8 + length + begin : 8 + length + end], np.uint8)), 0)


def on_devices(model: Any) -> dict[str, tuple[str, int, int]]:
    """name -> device, bytes, digest."""
    readers: dict[torch.device, Reader] = {}
    found: dict[str, tuple[str, int, int]] = {}
    waiting: list[tuple[str, torch.Tensor, Readings, Reader]] = []

    def settle() -> None:
        for reader in readers.values():
            reader.wait()
        found.update({n: (str(t.device), t.numel() * t.element_size(), r.value(reading)) for n, t, reading, r in waiting})
        for reader in readers.values():
            reader.reset()
        waiting.clear()

    for name, t in tensors(model):
        if t.device.type == "meta" or not t.numel():
            continue
        reader = readers.setdefault(t.device, Reader())
        if not reader.has_room(t.device, (t.numel() * t.element_size(),)):
            settle()
        waiting.append((name, t, reader.read(t, 0), reader))
    settle()
    return found


def compare(right: Truth, before: dict[str, tuple[str, int, int]], after: dict[str, tuple[str, int, int]]) -> Weights:
    """before the arms ran, and after them."""
    bad = [BadWeight(name, "host", 0, True) for name in right.misread]
    for name, (device, size_B, found) in after.items():
        early = name in before and before[name][2] != right.of.get(name)
        if name in right.of and (found != right.of[name] or early):
            bad.append(BadWeight(name, device, size_B, early))
    known = [name for name in after if name in right.of]
    files = sum(name in right.from_files for name in known)
    return Weights(tensors=len(known), size_B=sum(after[n][1] for n in known), from_files=files, bad=tuple(bad))
