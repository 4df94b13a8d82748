"""Reads the digest of a tensor: on a CUDA or HIP device by a kernel that writes into pinned host memory, on any other from the bytes on the host.

In:      a tensor, the key of its hop.
Out:     a Reading; `value` gives the number once `wait` has been called. Readings are good until `reset`.
Unknown: without Triton, and on other devices, reading waits for the device each time: right, but slow. It is logged once.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from linkproof.guard.digest import MASK, U64, content, digest
from linkproof.probe.devices import U8

log = logging.getLogger("linkproof.guard")
MOST_B = 8 << 30  # the kernel counts words in 32 bits
RING_WORDS = 1 << 16  # 512 KiB of pinned memory per thread
TABLE_ROWS = 1 << 13  # 384 KiB
ROWS_LEFT = 1 << 8  # for callers that read more than one tensor where they have asked for one
POISON = (0x5A5A5A5A5A5A5A5A, 0xA5A5A5A5A5A5A5A5)  # for a source, for a destination: two numbers that never came are not equal
Reading = int | tuple[int, int]  # the digest, or (first word in the ring, words)
Wanted = tuple[torch.Tensor, int, bool]  # the key of its hop; arrived: of the destination


class Reader:
    def __init__(self) -> None:
        self._kernel: Any = None
        self._pinned: tuple[torch.Tensor, ...] = ()
        self._words: Any = None  # sums
        self._rows: Any = None
        self._words_at = self._rows_at = 0  # addresses
        self._next = self._next_row = 0
        self._streams: dict[tuple[int | None, int], torch.cuda.Stream] = {}  # to wait for
        self._known_streams: dict[tuple[int | None, int], torch.cuda.Stream] = {}
        self.used: set[tuple[int | None, int]] = set()  # (device, stream) of what is read later than it was carried; its owner empties it

    def read(self, t: torch.Tensor, key: int, arrived: bool) -> Reading:
        """arrived: of the destination. The caller has seen to it that there is room."""
        return self.read_all([(t, key, arrived)])[0]

    def read_all(self, what: Sequence[Wanted]) -> list[Reading]:
        """Tensors of one device, in one launch."""
        if what[0][0].device.type == "cuda" and self._triton() is not None:
            return self._launch(what)
        return [digest(content(host_bytes(t)), key) for t, key, _ in what]

    def will_read(self, *devices: torch.device) -> None:
        """Later, and perhaps while another stream is the current one."""
        for device in devices:
            if device.type == "cuda":
                self.used.add((device.index, torch._C._cuda_getCurrentRawStream(device.index)))

    def has_room(self, device: torch.device, *sizes_B: int) -> bool:
        """For both ends of such hops. If not: compare what is read, `reset`, go on."""
        if device.type != "cuda" or self._triton() is None:
            return True
        words = 2 * sum(map(self._kernel.programs, sizes_B))
        return self._next + words <= RING_WORDS and self._next_row + max(ROWS_LEFT, 2 * len(sizes_B)) <= TABLE_ROWS

    def wait(self) -> None:
        for stream in self._streams.values():
            stream.synchronize()

    def value(self, reading: Reading) -> int:
        if isinstance(reading, int):
            return reading
        first, count = reading
        if count == 1:
            return int(self._words[first]) or 1
        return int(np.add.reduce(self._words[first : first + count])) & MASK or 1

    def reset(self) -> None:
        self._next = self._next_row = 0
        self._streams.clear()

    def _triton(self) -> Any:
        if self._kernel is None:
            try:
                from linkproof.guard import digest_kernel

                self._pin(digest_kernel, pin=True)
            except ImportError:
                log.warning("guard: triton is not installed; tensors are read back to the host to be compared, which is slow")
                self._kernel = False
        return self._kernel or None

    def _pin(self, kernel: Any, pin: bool) -> None:
        self._kernel = kernel
        words, rows = (torch.empty(shape, dtype=torch.int64, pin_memory=pin) for shape in ((RING_WORDS,), (TABLE_ROWS, kernel.ROW)))
        self._pinned = words, rows
        self._words, self._rows = words.numpy().view(np.uint64), rows.numpy().view(np.uint64)
        self._words_at, self._rows_at = words.data_ptr(), rows.data_ptr()

    def _launch(self, what: Sequence[Wanted]) -> list[Reading]:
        kernel, most = self._kernel, 1
        rows: list[int] = []
        poison: list[int] = []
        made = []
        readings: list[Reading] = []
        begin = self._next
        for t, key, arrived in what:
            if t.requires_grad:
                t = t.detach()
            if not t.is_contiguous() or t.is_conj() or t.is_neg():
                t = t.resolve_conj().resolve_neg().contiguous()
            if t.data_ptr() % 8:
                t = t.clone()
            made.append(t)  # until it is read
            row = kernel.row(t.data_ptr(), self._words_at + 8 * self._next, t.numel() * t.element_size(), key)
            count = row[-1]
            rows += row
            poison += (POISON[arrived],) * count
            readings.append((self._next, count))
            most = max(most, count)
            self._next += count
        self._words[begin : self._next] = _u64(poison)
        table, count = self._next_row, len(what)
        self._next_row += count
        self._rows[table : self._next_row] = _u64(rows).reshape(count, kernel.ROW)
        device = what[0][0].device.index
        if device == torch.cuda.current_device():
            self._on_current(device, table, count, most)
        else:
            with torch.cuda.device(device):
                self._on_current(device, table, count, most)
        return readings

    def _on_current(self, device: int | None, table: int, rows: int, most: int) -> None:
        place = device, torch._C._cuda_getCurrentRawStream(device)  # type: ignore[arg-type]
        if self.used and any(used[0] == device and used != place for used in self.used):
            torch.cuda.synchronize(device)
        self._kernel.launch(self._rows_at + 8 * self._kernel.ROW * table, rows, most, device)
        if place not in self._streams:
            stream = self._known_streams.get(place)
            if stream is None:
                stream = self._known_streams[place] = torch.cuda.current_stream()
            self._streams[place] = stream


def _u64(numbers: list[int]) -> U64:
    """Quicker than numpy makes one of Python's integers."""
    return np.frombuffer(array("Q", numbers), np.uint64)


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
