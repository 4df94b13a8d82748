"""One rank's collectives: lets them through, takes the numbers of what went in and came out, compares them with the other ranks'.

In:      `begin`, then collectives from the ears (`through`), then `settle`; `end`.
Out:     their results; `settle` gives what was wrong, the same on every rank.
Unknown: tensors whose bits cannot be read (sparse, wrapped): let through, counted as unchecked.
Raises:  LinkFault ("ranks-diverge") from `begin`'s comparison of the inputs, before the first collective of the forward; what `judged` raises.

All numbers are taken where the tensor is; on a GPU a kernel writes them into pinned memory of the host. A collective costs a digest of its
result and, for a sum, two projections (sum.py); a forward costs one exchange of all numbers at its end, and one of a few words, for the
inputs, that is under way while the forward begins.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]

from linkproof.guard import policy
from linkproof.guard.digest import content_of, key, of_zeros
from linkproof.guard.metrics import Counts
from linkproof.guard.ranks.channel import I64, Channel
from linkproof.guard.ranks.ears import Collective
from linkproof.guard.ranks.judge import CODES, Found, Made, compare, minority
from linkproof.guard.ranks.sum import BLOCKS, F64, SUMMED, project
from linkproof.guard.reader import Reader, readable

if TYPE_CHECKING:
    from linkproof.guard.ranks.watch import RankGuard

REMEMBERED = 8
RING_WORDS = 1 << 16  # 512 KiB of pinned memory
FORWARD, GENERATED, AGREED = 0, 1, 2


class Projector:
    """ranks_sum.project, on a CUDA device without waiting. `value` is good once the stream is through, until `reset`."""

    def __init__(self) -> None:
        self._kernel: Any = None
        self._ring: Any = None
        self._next = 0

    def has_room(self, t: torch.Tensor) -> bool:
        """For what goes in and what comes out."""
        return not self._triton(t) or self._next + 4 * BLOCKS * self._kernel.programs(t.numel()) <= RING_WORDS

    def read(self, t: torch.Tensor) -> Any:
        if not self._triton(t):
            return project(t)
        t = t.detach()
        t = t if t.is_contiguous() else t.contiguous()
        count = 2 * BLOCKS * self._kernel.programs(t.numel())
        first, self._next = self._next, self._next + count
        self._ring[first : first + count] = float("nan")  # numbers that never came
        with torch.cuda.device(t.device):
            self._kernel.launch(t.data_ptr(), self._ring.data_ptr() + 8 * first, t.numel(), t.dtype)
        return first, count

    def value(self, reading: Any) -> F64:
        if isinstance(reading, np.ndarray):
            return reading
        first, count = reading
        out: F64 = self._ring[first : first + count].numpy().reshape(BLOCKS, -1, 2).sum(1).T
        return out

    def reset(self) -> None:
        self._next = 0

    def _triton(self, t: torch.Tensor) -> bool:
        if t.device.type != "cuda":
            return False
        if self._kernel is None:
            try:
                from linkproof.guard.ranks import kernel as ranks_kernel

                self._kernel = ranks_kernel
                self._ring = torch.empty(RING_WORDS, dtype=torch.float64, pin_memory=True)
            except ImportError:  # Reader tells it
                self._kernel = False
        return bool(self._kernel)


class Record:
    """A collective and the readings of it."""

    def __init__(self, number: int, c: Collective, made: Made, key_: int, staged: bool) -> None:
        self.number, self.name, self.made, self.key, self.staged = number, c.name, made, key_, staged
        self.shape, self.size_B = tuple(c.source.shape), c.source.numel() * c.source.element_size()
        self.digests: list[Any] = []  # Readings, and numbers once these have come
        self.sizes_B: list[int] = []
        self.sums: list[Any] = []


class RankSession:
    def __init__(self, guard: RankGuard, channel: Channel) -> None:
        self.guard, self.mode, self.channel = guard, guard.mode, channel
        self.counts = Counts()
        self.reader, self.projector = Reader(), Projector()
        self.staged = guard.mode.staged  # every collective goes through host memory
        self.in_forward = self.inside = self.broken = False
        self.step = -1
        self.records: list[Record] = []
        self._strict = self._checks = False
        self._number = 0
        self._told: Callable[[], I64] | None = None
        self._streams: set[torch.cuda.Stream] = set()
        self._earlier: dict[int, deque[int]] = {}
        self._groups: dict[Any, tuple[Any, bool]] = {}

    # ------------------------------------------------ one forward
    def begin(self, step: int, strict: bool, checks: bool) -> None:
        self.step = self.channel.step = step
        self._strict, self._checks = strict, checks
        self.in_forward, self._number = True, 0
        self._forget()

    def settle(self) -> list[Found]:
        """Compare what has not been compared, with all ranks."""
        self.inputs_agree()
        if self._strict or not self._checks:
            return []
        return self._compared()

    def end(self) -> None:
        self.in_forward = False
        self._told = None
        self._forget()

    def _forget(self) -> None:
        self.records.clear()
        self.reader.reset()
        self.projector.reset()
        self._streams.clear()

    # ------------------------------------------------ what the ranks are fed with
    def tell_inputs(self, tensors: Sequence[torch.Tensor], what: int = FORWARD) -> None:
        """Compared before the first collective: a rank that goes another way would leave the others waiting in it."""
        self._told = self.channel.start([what, self.step, self._digest_of(tensors)])

    def inputs_agree(self) -> None:
        if self._told is None:
            return
        began = perf_counter()
        told, self._told = self._told, None
        rows = told()[:, :3]
        self.counts.overhead_s += perf_counter() - began
        if (rows == rows[0]).all():
            return
        apart = len({(row[0], row[1]) for row in rows.tolist()}) > 1
        odd = minority([hash(tuple(row)) for row in rows.tolist()])
        self.guard.judged([Found(0, "ended" if apart else "ids", odd, step=int(rows[:, 1].max()))], self)

    def agreed(self, code: int) -> list[int]:
        """What every rank wants to do."""
        return [int(row[2]) for row in self.channel.heads([AGREED, self.step, code])]

    def _digest_of(self, tensors: Sequence[torch.Tensor]) -> int:
        readings = [(t, self.reader.read(t, key(0, i, t.numel()))) for i, t in enumerate(tensors) if readable(t, t.numel() * 8)]
        if any(t.device.type == "cuda" for t, _ in readings):
            torch.cuda.current_stream().synchronize()
        text = b"".join(f"{tuple(t.shape)} {self.reader.value(r)};".encode() for t, r in readings)
        self.reader.reset()
        return (zlib.crc32(text) << 32 | zlib.adler32(text)) >> 1

    # ------------------------------------------------ one collective
    def takes(self, group: Any) -> bool:
        """Whether this group's ranks are those that are guarded."""
        place = group if isinstance(group, str) else (id(group[0]), group[1]) if isinstance(group, tuple) else id(group)
        known = self._groups.get(place)
        if known is None:
            known = self._groups[place] = group, self._ranks(group) == self.channel.ranks  # kept, so that its id stays its own
        if not known[1]:
            self.counts.unchecked += 1
        return known[1]

    @staticmethod
    def _ranks(group: Any) -> list[int]:
        if group is None:
            return list(range(dist.get_world_size()))
        if not isinstance(group, dist.ProcessGroup):
            group = _resolve_process_group(funcol._resolve_group_name(group))
        return dist.get_process_group_ranks(group)

    def through(self, c: Collective) -> Any:
        self.inputs_agree()
        if c.source.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise policy.in_capture()
        began, counts = perf_counter(), self.counts
        source = c.source.detach()
        source = source.wait() if isinstance(source, funcol.AsyncCollectiveTensor) else source
        number, size_B = self._number, source.numel() * source.element_size()
        self._number += 1
        staged = self.staged and c.host is not None
        compared = self._checks and size_B > 0 and readable(source, size_B)
        record = self._put_in(number, c, source, staged) if compared else None
        before = source.clone() if compared and self._strict and c.in_place and self.mode.changes else source
        counts.overhead_s += perf_counter() - began
        result = self._made(c, staged)
        began = perf_counter()
        link = counts.link(f"{self.guard.name} {c.name}")
        link.hops, link.size_B = link.hops + 1, link.size_B + size_B
        counts.hops, counts.size_B = counts.hops + 1, counts.size_B + size_B
        counts.staged += staged
        counts.unchecked += not compared
        if record is not None:
            self._came_out(record, c, result)
            if self._strict:
                result = self._compared_now(record, c, before, result)
        counts.overhead_s += perf_counter() - began
        return result

    def _made(self, c: Collective, staged: bool) -> Any:
        self.inside = True
        try:
            result = c.host() if staged and c.host is not None else c.link()
            c.result(result)  # waits for it, as far as the host has to
            return result
        except RuntimeError:
            self.broken = True
            raise
        finally:
            self.inside = False

    def _put_in(self, number: int, c: Collective, source: torch.Tensor, staged: bool) -> Record:
        pieces = len(self.channel.ranks) if c.pieces else 0
        summed = not pieces and c.op == "sum" and source.dtype in SUMMED
        size_B = source.numel() * source.element_size()
        if not (self.reader.has_room(source.device, ((1 + pieces) * size_B,)) and self.projector.has_room(source)):
            self._to_numbers()
        ident = zlib.crc32(f"{c.name} {c.op} {source.dtype} {tuple(source.shape)}".encode())
        record = Record(number, c, Made(ident, pieces, summed, source.dtype, source.numel()), key(self.step, number, size_B), staged)
        if pieces:
            self._read(record, source)
        if summed:
            record.sums.append(self.projector.read(source))
        self.records.append(record)
        return record

    def _came_out(self, record: Record, c: Collective, result: Any) -> None:
        if c.pieces:
            for piece in c.pieces(result):
                self._read(record, piece.detach())
            return
        out = c.result(result).detach()
        self._read(record, out)
        if record.made.summed:
            record.sums.append(self.projector.read(out))
        if out.device.type == "cuda":
            self._streams.add(torch.cuda.current_stream(out.device))

    def _read(self, record: Record, t: torch.Tensor) -> None:
        record.digests.append(self.reader.read(t, record.key))
        record.sizes_B.append(t.numel() * t.element_size())
        if t.device.type == "cuda":
            self._streams.add(torch.cuda.current_stream(t.device))

    # ------------------------------------------------ compared
    def _to_numbers(self) -> None:
        """Wait for the GPU, and free the memory that it writes into."""
        for stream in self._streams:
            event = stream.record_event()
            self.channel.wait_for(event.query)
        for record in self.records:
            record.digests = [d if isinstance(d, int) else self.reader.value(d) for d in record.digests]  # some have come earlier
            record.sums = [self.projector.value(s) for s in record.sums]
        self.reader.reset()
        self.projector.reset()
        self._streams.clear()

    def _compared(self) -> list[Found]:
        self._to_numbers()
        words = [self._words(record) for record in self.records]
        mine = np.concatenate(words) if words else np.zeros(0, np.int64)
        return compare([r.made for r in self.records], self.channel.reports(mine))

    def _words(self, record: Record) -> I64:
        digests = np.array(record.digests, np.uint64).view(np.int64)
        codes = [self._code(record, i) for i in range(len(digests))]
        if record.made.pieces:
            rest = np.stack((digests[1:], np.array(codes[1:])), 1).reshape(-1)
            return np.concatenate(([record.made.ident, digests[0]], rest))
        head = np.array([record.made.ident, digests[0], codes[0]])
        if not record.made.summed:
            return head
        went_in, came_out = record.sums
        return np.concatenate((head, np.concatenate((went_in.reshape(-1), came_out[0])).view(np.int64)))

    def _code(self, record: Record, place: int) -> int:
        """Whether these bits are all zero, or were a result of that size in an earlier forward."""
        reading, size_B = record.digests[place], record.sizes_B[place]
        assert isinstance(reading, int)
        content = content_of(reading, record.key)
        earlier = self._earlier.setdefault(size_B, deque(maxlen=REMEMBERED))
        if content == _zeros(size_B):
            return CODES.index("zeros")
        if content in earlier:
            return CODES.index("stale")
        earlier.append(content)
        return CODES.index("changed")

    def _compared_now(self, record: Record, c: Collective, before: torch.Tensor, result: Any) -> Any:
        """Before it is used; made again over the host if it is wrong and what went in is still there."""
        found = self._compared()
        self._forget()
        if not found:
            return result
        found = [f._replace(number=record.number) for f in found]
        if self.guard.judged(found, self, [record]) != "heal":
            return result
        if c.in_place:
            with torch.no_grad():
                c.source.copy_(before)
        again = self._put_in(record.number, c, before, True)
        result = self._made(c, True)
        self._came_out(again, c, result)
        self.counts.staged += 1
        found = self._compared()
        self._forget()
        if found:
            self.guard.judged([f._replace(number=record.number) for f in found], self, [again])
        self.guard.mended([again])
        return result


def signed(digest: int) -> int:
    """As it stands in a report."""
    return digest - (1 << 64) if digest >> 63 else digest


_ZEROS: dict[int, int] = {}


def _zeros(size_B: int) -> int:
    found = _ZEROS.get(size_B)
    if found is None:
        if len(_ZEROS) > 256:
            _ZEROS.clear()
        found = _ZEROS[size_B] = of_zeros(size_B)
    return found
