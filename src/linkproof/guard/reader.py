"""Reads the digest of a tensor: on a CUDA or HIP device by a kernel that writes into pinned host memory, on any other from the bytes on the host.

In:      a tensor, the key of its hop.
Out:     Readings; `values` gives the numbers once `wait` has been called. Readings are good until `reset`.
Unknown: without Triton, and on other devices, reading waits for the device each time: right, but slow. It is logged once.
"""

from __future__ import annotations

import itertools
import logging
from array import array
from typing import Any, NamedTuple

import numpy as np
import torch

from linkproof.guard.digest import content, digest, mixed
from linkproof.probe.devices import U8

log = logging.getLogger("linkproof.guard")
MOST_B = 8 << 30  # the kernel counts words in 32 bits
RING_WORDS = 1 << 16  # 512 KiB of pinned memory per thread
TABLE_ROWS = 1 << 13  # 384 KiB
ROWS_LEFT = 1 << 8  # for callers that read more than one tensor where they have asked for one
FORMS_KEPT = 256
U64_CODE = "L" if array("L").itemsize == 8 else "Q"  # the one that numpy gives its memory


class Form(NamedTuple):
    """What the kernel is told of tensors of some sizes, but for their addresses and keys: that changes from token to token, this does not.

    words: one row a tensor, where its sums go counted from the first of all. first: that word of each. sums: of all. most: of the largest.
    """

    words: list[int]
    first: list[int]
    sums: int
    most: int


Readings = list[int] | tuple[int, Form]  # the digests, or (their first word in the ring, form)


class Reader:
    def __init__(self) -> None:
        self._kernel: Any = None
        self._pinned: tuple[torch.Tensor, ...] = ()
        self._sums: Any = None
        self._poison: Any = None  # what stands there before: no two are equal, so neither are numbers that never came
        self._table: Any = None
        self._sums_at = self._table_at = 0  # addresses
        self._next = self._next_row = 0
        self._forms: dict[tuple[int, ...], Form] = {}  # by sizes_B
        self._words_for: dict[tuple[int, ...], int] = {}  # sizes of hops: words of both ends
        self._streams: dict[tuple[int | None, int], torch.cuda.Stream] = {}  # to wait for
        self._known_streams: dict[tuple[int | None, int], torch.cuda.Stream] = {}
        self.used: set[tuple[int | None, int]] = set()  # (device, stream) of what is read later than it was carried; its owner empties it

    def read(self, t: torch.Tensor, key: int) -> Readings:
        """The caller has seen to it that there is room."""
        return self.read_all([t], [key], (t.nbytes,))

    def read_all(self, tensors: list[torch.Tensor], keys: list[int], sizes_B: tuple[int, ...]) -> Readings:
        """Of one device, in one launch."""
        if tensors[0].device.type == "cuda" and self._triton() is not None:
            return self._launch(tensors, keys, sizes_B)
        return [digest(content(host_bytes(t)), key) for t, key in zip(tensors, keys, strict=True)]

    def will_read(self, device: torch.device) -> None:
        """Later, and perhaps while another stream is the current one. Of a GPU."""
        self.used.add((device.index, torch._C._cuda_getCurrentRawStream(device.index)))

    def has_room(self, device: torch.device, sizes_B: tuple[int, ...]) -> bool:
        """For both ends of such hops. If not: compare what is read, `reset`, go on."""
        if device.type != "cuda" or self._triton() is None:
            return True
        words = self._words_for.get(sizes_B)
        if words is None:
            if len(self._words_for) == FORMS_KEPT:
                self._words_for.clear()
            words = self._words_for[sizes_B] = 2 * sum(map(self._kernel.programs, sizes_B))
        return self._next + words <= RING_WORDS and self._next_row + max(ROWS_LEFT, 2 * len(sizes_B)) <= TABLE_ROWS

    def wait(self) -> None:
        for stream in self._streams.values():
            stream.synchronize()

    def value(self, readings: Readings) -> int:
        """Of one that was read alone."""
        return self.values(readings)[0]

    def values(self, readings: Readings) -> list[int]:
        """Of what one call has read."""
        if not isinstance(readings, tuple):
            return readings
        begin, form = readings
        sums = self._sums[begin : begin + form.sums]
        if form.most > 1:
            sums = np.add.reduceat(np.frombuffer(sums, np.uint64), form.first)
        return [n or 1 for n in sums.tolist()]

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
        sums, table = (torch.empty(n, dtype=torch.int64, pin_memory=pin) for n in (RING_WORDS, TABLE_ROWS * kernel.ROW))
        self._pinned = sums, table
        self._sums, self._table = (t.numpy().view(np.uint64).data for t in self._pinned)
        self._poison = mixed(np.arange(1, RING_WORDS + 1, dtype=np.uint64)).data
        self._sums_at, self._table_at = sums.data_ptr(), table.data_ptr()

    def _launch(self, tensors: list[torch.Tensor], keys: list[int], sizes_B: tuple[int, ...]) -> Readings:
        addresses, kept = [], []
        for t in tensors:
            at = t.data_ptr()
            if at & 7 or not t.is_contiguous() or t.is_neg() or t.is_conj():
                kept.append(laid_out(t))  # until it is read
                at = kept[-1].data_ptr()
            addresses.append(at)
        form = self._forms.get(sizes_B) or self._form(sizes_B)
        begin, row, n = self._next, self._next_row, len(tensors)
        end, width = begin + form.sums, self._kernel.ROW
        self._next, self._next_row = end, row + n
        self._sums[begin:end] = self._poison[begin:end]
        words = form.words.copy()
        words[0::width] = addresses
        if begin:
            words[1::width] = [at + 8 * begin for at in words[1::width]]
        words[4::width] = keys
        self._table[width * row : width * (row + n)] = array(U64_CODE, words)
        device = tensors[0].device.index
        if device == torch.cuda.current_device():
            self._on_current(device, row, n, form.most)
        else:
            with torch.cuda.device(device):
                self._on_current(device, row, n, form.most)
        return begin, form

    def _form(self, sizes_B: tuple[int, ...]) -> Form:
        programs = [self._kernel.programs(size_B) for size_B in sizes_B]
        first = [0, *itertools.accumulate(programs[:-1])]
        words = [
            word
            for size_B, at, n in zip(sizes_B, first, programs, strict=True)
            for word in (0, self._sums_at + 8 * at, size_B >> 3, size_B & 7, 0, n)
        ]
        if len(self._forms) == FORMS_KEPT:
            self._forms.clear()
        form = self._forms[sizes_B] = Form(words, first, sum(programs), max(programs))
        return form

    def _on_current(self, device: int | None, row: int, rows: int, most: int) -> None:
        place = device, torch._C._cuda_getCurrentRawStream(device)  # type: ignore[arg-type]
        if self.used and any(used[0] == device and used != place for used in self.used):
            torch.cuda.synchronize(device)
        self._kernel.launch(self._table_at + 8 * self._kernel.ROW * row, rows, most, *place)
        if place not in self._streams:
            stream = self._known_streams.get(place)
            if stream is None:
                stream = self._known_streams[place] = torch.cuda.current_stream()
            self._streams[place] = stream


def laid_out(t: torch.Tensor) -> torch.Tensor:
    """With its bits one behind the other in memory, from an address that the kernel can take."""
    if not t.is_contiguous() or t.is_neg() or t.is_conj():
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
