"""How long transfers take by the GPU's own clock, without the time that this program needs to ask for them.

Asking for one transfer takes longer than many a transfer itself (from Python, 15 to 120 us; 32 MiB over NVLink, 87 us). So all streams are held
until everything is queued: a kernel that does nothing but wait runs on the first of them, the others wait for its end. The clock starts when
it ends. It waits for a time and not for a word of the host: whatever keeps the host back, it ends.

In:      streams, on which transfers begin and end, and a function that asks for transfers.
Out:     seconds. Afterwards it is known whether the hold lasted: if not, it is made longer and all is done again.
Unknown: where no hold lasts (CUDA_LAUNCH_BLOCKING=1, more work than the queue of a stream takes) the time to ask is in the figure, as far
         as the GPU waited for it.
Raises:  what torch raises.
Source:  nvbandwidth and p2pBandwidthLatencyTest hold their streams the same way.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from time import perf_counter
from typing import NamedTuple

import torch

HOLD_TIMES = 2.0  # of what asking took when it was tried
HOLD_LEAST_S, HOLD_MOST_S = 0.0005, 0.3
LONGER, TRIES = 3.0, 3
CALIBRATED = 1_000_000  # turns of the GPU's clock


class Way(NamedTuple):
    """The streams of one pair. Its transfers end on `end`, a stream of `gpu`; `other` is the second one that they use."""

    gpu: int
    end: torch.cuda.Stream
    other: torch.cuda.Stream


class Timer:
    """on: makes a GPU the current one."""

    def __init__(self, on: Callable[[int], AbstractContextManager[None]]) -> None:
        self._on = on
        self._turns_per_s: dict[int, float] = {}
        self.held = False  # of the last measurement: the time to ask is not in it

    def took_s(self, ways: Sequence[Way], give_out: Callable[[int], None], times: int) -> float:
        """Of the way that takes longest. give_out(n): asks for n transfers on each way."""
        give_out(1)  # builds kernels, opens what is opened once
        _settle(ways)
        begun = perf_counter()
        give_out(1)
        hold_s = max(HOLD_LEAST_S, HOLD_TIMES * times * (perf_counter() - begun))
        _settle(ways)
        took_s = 0.0
        for _ in range(TRIES):
            took_s, self.held = self._once(ways, give_out, times, hold_s if hold_s <= HOLD_MOST_S else 0.0)
            if self.held or hold_s > HOLD_MOST_S:
                break
            hold_s *= LONGER
        return took_s

    def _once(self, ways: Sequence[Way], give_out: Callable[[int], None], times: int, hold_s: float) -> tuple[float, bool]:
        """(seconds, everything was queued before the first transfer began)"""
        opened = self._hold(ways[0], hold_s)
        marks = []
        for way in ways:
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            way.end.wait_event(opened)
            first.record(way.end)
            way.other.wait_event(first)
            marks.append((first, last, way.end))
        give_out(times)
        for _, last, end in marks:
            last.record(end)
        held = not opened.query()
        for _, last, _ in marks:
            last.synchronize()
        return max(float(first.elapsed_time(last)) for first, last, _ in marks) / 1e3, held

    def _hold(self, way: Way, hold_s: float) -> torch.cuda.Event:
        """Gives what the others wait for."""
        opened = torch.cuda.Event()
        sleep = getattr(torch.cuda, "_sleep", None)
        with self._on(way.gpu):
            if sleep is not None and hold_s:
                turns = int(hold_s * self._clock(way.gpu, sleep))
                with torch.cuda.stream(way.end):
                    sleep(turns)
            opened.record(way.end)
        return opened

    def _clock(self, gpu: int, sleep: Callable[[int], None]) -> float:
        """Turns a second, measured once. A clock that slows down later holds longer; one that speeds up is found out by `held`."""
        if gpu not in self._turns_per_s:
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            sleep(CALIBRATED)  # loads the kernel
            first.record(torch.cuda.current_stream())
            sleep(CALIBRATED)
            last.record(torch.cuda.current_stream())
            last.synchronize()
            self._turns_per_s[gpu] = CALIBRATED / max(float(first.elapsed_time(last)) / 1e3, 1e-6)
        return self._turns_per_s[gpu]


def _settle(ways: Sequence[Way]) -> None:
    for way in ways:
        way.end.synchronize()
        way.other.synchronize()
