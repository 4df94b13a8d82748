"""Reads the digest of a tensor: on a CUDA or HIP device by a kernel that writes into pinned host memory, on any other from the bytes on the host.

In:      a tensor, the key of its hop.
Out:     Readings; `values` gives the numbers once `wait` has been called. Readings are good until `reset`.
Unknown: without Triton, and on other devices, reading waits for the device each time: right, but slow. It is logged once.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from linkproof.guard.digest import U64, content, digest
from linkproof.probe.devices import U8

log = logging.getLogger("linkproof.guard")
MOST_B = 8 << 30  # the kernel counts words in 32 bits
RING_WORDS = 1 << 16  # 512 KiB of pinned memory per thread
TABLE_ROWS = 1 << 13  # 384 KiB
ROWS_LEFT = 1 << 8  # for callers that read more than one tensor where they have asked for one
_3, _7, _8 = (np.uint64(n) for n in (3, 7, 8))
_RANGE, _ONES = np.arange(TABLE_ROWS, dtype=np.uint64), np.ones(TABLE_ROWS, np.uint64)
POISON = (0x5A5A5A5A5A5A5A5A, 0xA5A5A5A5A5A5A5A5)  # for a source, for a destination: two numbers that never came are not equal
Wanted = tuple[torch.Tensor, bool]  # arrived: of the destination
Readings = U64 | tuple[U64, int]  # the digests, or (first words in the ring, one behind the last word)


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

    def read(self, t: torch.Tensor, key: int, arrived: bool) -> Readings:
        """arrived: of the destination. The caller has seen to it that there is room."""
        return self.read_all([(t, arrived)], _u64((key,)))

    def read_all(self, what: Sequence[Wanted], keys: U64) -> Readings:
        """Tensors of one device, in one launch."""
        if what[0][0].device.type == "cuda" and self._triton() is not None:
            return self._launch(what, keys)
        return _u64([digest(content(host_bytes(t)), key) for (t, _), key in zip(what, keys.tolist(), strict=True)])

    def will_read(self, device: torch.device) -> None:
        """Later, and perhaps while another stream is the current one. Of a GPU."""
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

    def value(self, readings: Readings) -> int:
        """Of one that was read alone."""
        return int(self.values(readings)[0])

    def values(self, readings: Readings) -> U64:
        """Of what one call has read."""
        if not isinstance(readings, tuple):
            return readings
        first, end = readings
        words = self._words[first[0] : end]
        if len(words) > len(first):
            words = np.add.reduceat(words, (first - first[0]).astype(np.intp))
        numbers: U64 = np.maximum(words, 1)
        return numbers

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

    def _launch(self, what: Sequence[Wanted], keys: U64) -> Readings:
        programs, begin, table, n = self._kernel.programs, self._next, self._next_row, len(what)
        made = [laid_out(t) for t, _ in what]  # until they are read
        sizes = [t.nbytes for t in made]
        poison = _u64([POISON[arrived] for _, arrived in what])
        most: int = programs(max(sizes))
        first, counts = _RANGE[:n] + np.uint64(begin), _ONES[:n]
        self._next, self._next_row = begin + n, table + n
        if most > 1:
            counts = _u64([programs(size_B) for size_B in sizes])
            ends = np.cumsum(counts)
            first, self._next = ends - counts + np.uint64(begin), begin + int(ends[-1])
            poison = np.repeat(poison, counts.astype(np.intp))
        self._words[begin : self._next] = poison
        rows, sizes_B = self._rows[table : table + n], _u64(sizes)
        rows[:, 0] = _u64([t.data_ptr() for t in made])
        rows[:, 1] = first * _8 + np.uint64(self._words_at)
        rows[:, 2], rows[:, 3], rows[:, 4], rows[:, 5] = sizes_B >> _3, sizes_B & _7, keys, counts
        device = what[0][0].device.index
        if device == torch.cuda.current_device():
            self._on_current(device, table, n, most)
        else:
            with torch.cuda.device(device):
                self._on_current(device, table, n, most)
        return first, self._next

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


def _u64(numbers: Iterable[int]) -> U64:
    """Quicker than numpy makes one of Python's integers."""
    return np.frombuffer(array("Q", numbers), np.uint64)


def laid_out(t: torch.Tensor) -> torch.Tensor:
    """With its bits one behind the other in memory, from an address that the kernel can take."""
    if not t.is_contiguous() or t.is_neg() or (t.is_complex() and t.is_conj()):
        t = t.detach().resolve_conj().resolve_neg().contiguous()
    return t.detach().clone() if t.data_ptr() % 8 else t


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
