"""Real GPUs, through torch, the driver and Triton: `Devices` for NVIDIA and, as far as it goes, for AMD.

In:      numbers of GPUs as torch sees them.
Out:     what devices.py promises. Importing this file starts nothing; `Cuda()` starts CUDA, and a context only on GPUs that are used.
Unknown: without Triton the owner's words are made by torch (slower), and kernel modes raise NotTested.
Raises:  NotPossible, NotTested, MemoryError; DeviceLost once a context is broken: found by asking the driver again, not by reading its words.
Source:  push is torch's own copy on the source's stream; pull is the driver's peer copy on the destination's; the rest is in kernels.py.

Order: a transfer waits for those that still fill its source, and for those that still use its target; others run beside it, each pair of
GPUs on streams of its own. So a chain keeps its order and a machine full of pairs runs at once.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import os
from collections.abc import Callable
from typing import cast

import numpy as np
import torch

from linkproof.probe.devices import HOWS, U8, Buffer, NotTested
from linkproof.probe.gpu import slow_kernels
from linkproof.probe.gpu.base import HOST_B, Gpus, told
from linkproof.probe.gpu.driver import DriverError
from linkproof.probe.gpu.memory import Memory
from linkproof.probe.gpu.share import open_shared, share_memory, take
from linkproof.probe.gpu.timing import Timer, Way

STAGE_B = 4 << 20  # of each of the two pinned buffers of a staged transfer
NONE_WRONG = (0, (1 << 63) - 1)


class _Lane:
    """Streams of one ordered pair, and the pinned memory of its staged way."""

    def __init__(self, src: int, dst: int) -> None:
        self.out, self.into = torch.cuda.Stream(src), torch.cuda.Stream(dst)
        self.stage: list[tuple[torch.Tensor, torch.cuda.Event]] = []

    def stages(self) -> list[tuple[torch.Tensor, torch.cuda.Event]]:
        """Two pinned buffers, each with the event after which it may be written again."""
        if not self.stage:
            self.stage = [(torch.empty(STAGE_B, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()) for _ in range(2)]
        return self.stage


class Cuda(Gpus):
    def __init__(self) -> None:
        super().__init__()
        self._lanes: dict[tuple[int, int, int], _Lane] = {}
        self._found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.timer = Timer(self.on)

    @told
    def peer_claimed(self, src: int, dst: int) -> bool | None:
        return src == dst or (self.driver.can_access(src, dst) and self.driver.can_access(dst, src))

    # ------------------------------------------------ memory

    @told
    def alloc(self, gpu: int, size_B: int, kind: str = "plain") -> Memory:
        """kind: one of KINDS, or of HANDLES (memory that can be shared that way)."""
        if kind in ("pool", "vmm", "ipc_vmm"):
            self._nvidia_only()
        with self.on(gpu):
            try:
                return take(self.driver, gpu, size_B, kind)
            except (DriverError, torch.cuda.OutOfMemoryError):
                torch.cuda.empty_cache()  # torch keeps what was freed, and the driver cannot have it
                return take(self.driver, gpu, size_B, kind)

    @told
    def put(self, buffer: Buffer, at_B: int, data: U8) -> None:
        memory = self._settled(buffer)
        with self.on(memory.home):
            host = self._pinned()
            for done in range(0, len(data), HOST_B):
                part = data[done : done + HOST_B]
                host.numpy()[: len(part)] = part
                self.driver.from_host(memory.address_B + at_B + done, host.data_ptr(), len(part), self._stream())
                torch.cuda.current_stream().synchronize()

    @told
    def get(self, buffer: Buffer, at_B: int, size_B: int) -> U8:
        memory, data = self._settled(buffer), np.empty(size_B, np.uint8)
        with self.on(memory.home):
            host = self._pinned()
            for done in range(0, size_B, HOST_B):
                n = min(HOST_B, size_B - done)
                self.driver.to_host(host.data_ptr(), memory.address_B + at_B + done, n, self._stream())
                torch.cuda.current_stream().synchronize()
                data[done : done + n] = host.numpy()[:n]
        return data

    @told
    def fill(self, buffer: Buffer, key_word: int, first: int, count: int, invert: bool = False) -> None:
        memory = self._settled(buffer)
        with self.on(memory.gpu):
            self.launch_fill(memory, key_word, first, count, invert)
            torch.cuda.current_stream().synchronize()

    @told
    def wrong(self, buffer: Buffer, key_word: int, first: int, count: int, invert: bool = False) -> tuple[int, int]:
        memory = self._settled(buffer)
        with self.on(memory.gpu):
            if self._triton(memory.gpu) is None:
                return slow_kernels.compare(_words(memory, first, count), key_word, first, invert)
            bad, lowest = self.launch_compare(memory, key_word, first, count, invert).tolist()
        return bad, lowest if bad else -1

    def launch_fill(self, memory: Memory, key_word: int, first: int, count: int, invert: bool = False) -> None:
        """As `fill`, on the current stream, without waiting."""
        if self._triton(memory.gpu) is None:
            slow_kernels.fill(_words(memory, first, count), key_word, first, invert)
        else:
            self._kernels.fill(memory.address_B + 8 * first, key_word, first, count, invert)

    def launch_compare(self, memory: Memory, key_word: int, first: int, count: int, invert: bool = False) -> torch.Tensor:
        """As `wrong`, without waiting; needs Triton. (wrong words, lowest number) as a tensor, good until the next call."""
        if memory.gpu not in self._found:
            clean = torch.tensor(NONE_WRONG, device=f"cuda:{memory.gpu}")
            self._found[memory.gpu] = clean, clean.clone()
        clean, found = self._found[memory.gpu]
        found.copy_(clean)
        self.triton(memory.gpu).compare(memory.address_B + 8 * first, found, key_word, first, count, invert)
        return found

    # ------------------------------------------------ the paths on trial

    @told
    def move(self, how: str, src: Buffer, src_at_B: int, dst: Buffer, dst_at_B: int, size_B: int, wait: bool = True) -> None:
        a, b = cast(Memory, src), cast(Memory, dst)
        lane = self._lane(how, a, b)
        for event in (a.written, b.written, *b.read):
            if event is not None:
                lane.out.wait_event(event)
                lane.into.wait_event(event)
        end = self._begin(how, a, src_at_B, b, dst_at_B, size_B, lane)
        done = torch.cuda.Event()
        done.record(end)
        b.written, b.read = done, []
        a.read.append(done)
        self._under_way += (a, b)
        if wait:
            self.sync()

    def _lane(self, how: str, a: Memory, b: Memory, slot: int = 0) -> _Lane:
        """Also sees to it that the way is there at all: peer access for who needs it, or NotPossible."""
        if how not in HOWS:
            raise ValueError(how)
        gpu, other = (a.home, b) if how in ("staged", "push", "store", "store16") else (b.home, a)
        if how != "staged":
            self.reach(gpu, other)
        if how not in ("staged", "push", "pull"):
            self.triton(gpu)
        place = a.home, b.home, slot
        if place not in self._lanes:
            self._lanes[place] = _Lane(a.home, b.home)
        return self._lanes[place]

    def _begin(self, how: str, a: Memory, a_at_B: int, b: Memory, b_at_B: int, size_B: int, lane: _Lane) -> torch.cuda.Stream:
        """Starts the transfer; gives the stream on which it ends."""
        source, to = a.address_B + a_at_B, b.address_B + b_at_B
        if how == "staged":
            self._staged(source, a.home, to, b.home, size_B, lane)
            return lane.into
        pulled = how in ("pull", "load", "load16")
        end, gpu = (lane.into, b.home) if pulled else (lane.out, a.home)
        with self.on(gpu):
            if how == "pull":
                self.driver.copy_peer(to, b.home, source, a.home, size_B, end.cuda_stream)
            elif how != "push":
                with torch.cuda.stream(end):
                    self._kernels.carry(to, source, size_B, 16 if how.endswith("16") else 4)
            elif a.tensor is None or b.tensor is None:
                self.driver.copy(to, source, size_B, end.cuda_stream)
            else:  # torch ties both GPUs' current streams together: neither may be one that other pairs use
                with torch.cuda.stream(lane.into), torch.cuda.stream(lane.out):
                    b.tensor[b_at_B : b_at_B + size_B].copy_(a.tensor[a_at_B : a_at_B + size_B], non_blocking=True)
        return end

    def _staged(self, source: int, source_gpu: int, to: int, to_gpu: int, size_B: int, lane: _Lane) -> None:
        with self.on(source_gpu):
            stages = lane.stages()
        for number, done in enumerate(range(0, size_B, STAGE_B)):
            host, free = stages[number % 2]
            n, full = min(STAGE_B, size_B - done), torch.cuda.Event()
            lane.out.wait_event(free)
            with self.on(source_gpu):
                self.driver.to_host(host.data_ptr(), source + done, n, lane.out.cuda_stream)
            full.record(lane.out)
            lane.into.wait_event(full)
            with self.on(to_gpu):
                self.driver.from_host(to + done, host.data_ptr(), n, lane.into.cuda_stream)
            free.record(lane.into)

    @told
    def look(self, gpu: int, buffer: Buffer, at_B: int, size_B: int) -> U8:
        memory = self._settled(buffer)
        self.reach(gpu, memory)
        scratch = self.alloc(gpu, size_B)
        try:
            with self.on(gpu):
                self.triton(gpu).carry(scratch.address_B, memory.address_B + at_B, size_B, 16)
                torch.cuda.current_stream().synchronize()
            return self.get(scratch, 0, size_B)
        finally:
            scratch.free()

    @told
    def add(self, gpu: int, buffer: Buffer, times: int) -> int:
        self._nvidia_only()
        memory = self._settled(buffer)
        lane = self._lane("store", Memory(gpu, 0, 0, "", lambda: None), memory)
        self.put(buffer, 0, np.zeros(4, np.uint8))
        sides = ((gpu, lane.out), (memory.gpu, lane.into))
        for count in (0, times):  # none first: building a kernel takes longer than running it, and both shall run at once
            for where, stream in sides:
                with self.on(where), torch.cuda.stream(stream):
                    self._kernels.add(memory.address_B, count)
        for _, stream in sides:
            stream.synchronize()
        return int(self.get(buffer, 0, 4).view(np.uint32)[0])

    @told
    def messages(self, a: Buffer, b: Buffer, rounds: int, size_B: int, deadline_s: float, key_word: int) -> tuple[int, int]:
        """Both buffers hold the message and, on the next multiple of 128 bytes, a line for the flag. The second number counts messages of
        both directions."""
        self.clear_flag(a, size_B)
        self.clear_flag(b, size_B)
        for count in (0, rounds):  # none first: loading a kernel may wait for all that runs, and the first side would wait for the second
            one = self._message_side(a, b, True, count, size_B, deadline_s, key_word)
            two = self._message_side(b, a, False, count, size_B, deadline_s, key_word)
            (done_a, late_a), (done_b, late_b) = one(), two()
        return min(done_a, done_b), late_a + late_b

    def clear_flag(self, buffer: Buffer, size_B: int) -> None:
        """By the owner, before either side begins."""
        kernels = self.triton(buffer.gpu)
        self.put(buffer, kernels.flag_at_B(size_B), np.zeros(kernels.FLAG_B, np.uint8))

    @told
    def message_side(
        self, mine: Buffer, theirs: Buffer, begins: bool, rounds: int, size_B: int, deadline_s: float, key_word: int
    ) -> tuple[int, int]:
        """One of the two sides, for a process that has opened the other's memory. Both owners call `clear_flag` before either calls this."""
        self._message_side(mine, theirs, begins, 0, size_B, deadline_s, key_word)()
        return self._message_side(mine, theirs, begins, rounds, size_B, deadline_s, key_word)()

    def _message_side(
        self, mine: Buffer, theirs: Buffer, begins: bool, rounds: int, size_B: int, deadline_s: float, key_word: int
    ) -> Callable[[], tuple[int, int]]:
        """Starts a side; what it gives waits for its end: (rounds done, rounds with bad data)."""
        self._nvidia_only()
        if os.environ.get("CUDA_LAUNCH_BLOCKING", "0") == "1":
            raise NotTested("CUDA_LAUNCH_BLOCKING is set: no two kernels can run at once")
        m, t = self._settled(mine), self._settled(theirs)
        kernels = self.triton(m.home)
        if min(m.size_B, t.size_B) < kernels.flag_at_B(size_B) + kernels.FLAG_B:
            raise ValueError("the buffers have no room for the flag")
        stream = self._lane("store", m, t, slot=int(begins)).out
        with self.on(m.home), torch.cuda.stream(stream):
            result = torch.zeros(2, dtype=torch.int32, device=f"cuda:{m.home}")
            kernels.messages(m.address_B, t.address_B, result, begins, rounds, size_B, deadline_s, key_word)

        def wait() -> tuple[int, int]:
            stream.synchronize()
            done, late = result.tolist()
            return done, late

        return wait

    @told
    def timed_s(self, how: str, pairs: list[tuple[Buffer, Buffer]], size_B: int, times: int) -> float:
        """Of the pair that takes longest, by `timing`. Every pair has streams of its own; transfers are given out in turn, so all are under way
        at once."""
        work, ways = [], []
        for slot, (src, dst) in enumerate(pairs):
            a, b = self._settled(src), self._settled(dst)
            lane = self._lane(how, a, b, slot)
            work.append((a, b, lane))
            sends = how in ("push", "store", "store16")
            ways.append(Way(a.home, lane.out, lane.into) if sends else Way(b.home, lane.into, lane.out))

        def give_out(n: int) -> None:
            for _ in range(n):
                for a, b, lane in work:
                    self._begin(how, a, 0, b, 0, size_B, lane)

        return self.timer.took_s(ways, give_out, times)

    # ------------------------------------------------ between processes

    @told
    def share(self, buffer: Buffer, handle: str) -> bytes:
        if handle == "ipc_vmm":
            self._nvidia_only()
        memory = self._settled(buffer)
        with self.on(memory.home):
            return share_memory(self.driver, memory, handle, self._cards[memory.gpu].uuid)

    @told
    def open(self, gpu: int, shared: bytes, handle: str) -> Memory:
        if handle == "ipc_vmm":
            self._nvidia_only()
        with self.on(gpu):
            return open_shared(self.driver, gpu, shared, handle, [card.uuid for card in self._cards])

    def close(self) -> None:
        """Buffers belong to their callers; what is left goes with the process."""
        self._lanes.clear()
        self._host = None


def _words(memory: Memory, first: int, count: int) -> torch.Tensor:
    whole: torch.Tensor = memory.as_tensor()
    return whole[8 * first : 8 * (first + count)].view(torch.int64)
