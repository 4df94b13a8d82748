"""Reads the digest of a tensor: on a CUDA or HIP device by a kernel that writes into pinned host memory, on any other from the bytes on the host.

In:      a tensor, the key of its hop.
Out:     a Reading; `value` gives the number once `wait` has been called. Readings are good until `reset`.
Unknown: without Triton, and on other devices, reading waits for the device each time: right, but slow. It is logged once.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from linkproof.guard.digest import MASK, content, digest
from linkproof.probe.devices import U8

log = logging.getLogger("linkproof.guard")
MOST_B = 8 << 30  # the kernel counts words in 32 bits
RING_WORDS = 1 << 16  # 512 KiB of pinned memory per thread
POISON = (0x5A5A5A5A5A5A5A5A, 0xA5A5A5A5A5A5A5A5)  # for a source, for a destination: two numbers that never came are not equal
Reading = int | tuple[int, int]  # the digest, or (first word in the ring, words)


class Reader:
    def __init__(self) -> None:
        self._kernel: Any = None
        self._ring: torch.Tensor | None = None
        self._words: Any = None
        self._next = 0
        self._streams: set[torch.cuda.Stream] = set()

    def read(self, t: torch.Tensor, key: int, arrived: bool) -> Reading:
        """arrived: of the destination. The caller has seen to it that there is room."""
        if t.device.type == "cuda" and self._triton() is not None:
            return self._launch(t, key, arrived)
        return digest(content(host_bytes(t)), key)

    def has_room(self, device: torch.device, size_B: int) -> bool:
        """For both ends of a hop. If not: compare what is read, `reset`, go on."""
        return device.type != "cuda" or self._triton() is None or self._next + 2 * self._kernel.programs(size_B) <= RING_WORDS

    def wait(self) -> None:
        for stream in self._streams:
            stream.synchronize()

    def value(self, reading: Reading) -> int:
        if isinstance(reading, int):
            return reading
        first, count = reading
        return int(np.add.reduce(self._words[first : first + count])) & MASK or 1

    def reset(self) -> None:
        self._next = 0
        self._streams.clear()

    def _triton(self) -> Any:
        if self._kernel is None:
            try:
                from linkproof.guard import digest_kernel

                self._kernel = digest_kernel
                self._ring = torch.empty(RING_WORDS, dtype=torch.int64, pin_memory=True)
                self._words = self._ring.numpy().view(np.uint64)
            except ImportError:
                log.warning("guard: triton is not installed; tensors are read back to the host to be compared, which is slow")
                self._kernel = False
        return self._kernel or None

    def _launch(self, t: torch.Tensor, key: int, arrived: bool) -> Reading:
        assert self._ring is not None
        t = t.detach()
        if not t.is_contiguous() or t.is_conj() or t.is_neg():
            t = t.resolve_conj().resolve_neg().contiguous()
        if t.data_ptr() % 8:
            t = t.clone()
        size_B = t.numel() * t.element_size()
        count = self._kernel.programs(size_B)
        first = self._next
        self._next += count
        self._words[first : first + count] = POISON[arrived]
        with torch.cuda.device(t.device):
            self._kernel.launch(t.data_ptr(), self._ring.data_ptr() + 8 * first, size_B, key)
            self._streams.add(torch.cuda.current_stream())
        return first, count


def host_bytes(t: torch.Tensor) -> U8:
    """The raw bits in logical order, read back over the owner's own way to the host."""
    t = t.detach()
    if t.dtype.is_complex or t.is_neg():
        t = t.resolve_conj().resolve_neg()
    data: U8 = t.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return data


def readable(t: torch.Tensor, size_B: int) -> bool:
    """Whether the bits of this tensor are those of its memory: not for sparse, quantised and wrapped ones, nor for those past all counting."""
    plain = type(t) in (torch.Tensor, torch.nn.Parameter) or not hasattr(t, "__tensor_flatten__")
    return plain and t.layout == torch.strided and not t.is_quantized and size_B < MOST_B
