"""How fast, how late? Bandwidth and latency of one way of moving, on warm clocks, by the GPU's own clock.

In:      Devices, pairs (one, both directions, or all of the machine at once), the way.
Out:     a Speed per pair: medians with the slowest and fastest of the rounds. Pairs that run at once share the time: each is given its own bytes
         over the time of all.
Raises:  DeviceLost, MemoryError, NotPossible.
Source:  GB is 10^9. Warm-up: rounds are thrown away until two in a row differ by less than a tenth, at most WARM_MAX of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

from linkproof.measured import Speed
from linkproof.probe.devices import Buffer, Devices
from linkproof.probe.setup import MiB

MODES = ("staged", "push", "pull", "store16", "load16")  # 4-byte accesses are slow by themselves
SIZE_B = 32 * MiB
ROUNDS, TIMES = 5, 4
WARM_MAX = 4
LATENCY_B, LATENCY_TIMES = 8, 50


def measure(devices: Devices, pairs: Sequence[tuple[int, int]], how: str, load: str = "alone") -> list[Speed]:
    with ExitStack() as stack:

        def made(gpu: int) -> Buffer:
            buffer = devices.alloc(gpu, SIZE_B)
            stack.callback(buffer.free)
            return buffer

        rooms = [(made(src), made(dst)) for src, dst in pairs]
        warm(devices, how, rooms)
        took_s = sorted(devices.timed_s(how, rooms, SIZE_B, TIMES) for _ in range(ROUNDS))
        late_s = sorted(devices.timed_s(how, rooms[:1], LATENCY_B, LATENCY_TIMES) / LATENCY_TIMES for _ in range(ROUNDS))
    lat_us = median(late_s) * 1e6 if load == "alone" else None
    rate = [SIZE_B * TIMES / max(t, 1e-9) / 1e9 for t in took_s]
    return [
        Speed(
            src,
            dst,
            how,
            round(median(rate), 3),
            (round(rate[-1], 3), round(rate[0], 3)),
            lat_us and round(lat_us, 2),
            load,
            SIZE_B,
            ROUNDS,
        )
        for src, dst in pairs
    ]


def warm(devices: Devices, how: str, rooms: list[tuple[Buffer, Buffer]]) -> None:
    before = 0.0
    for _ in range(WARM_MAX):
        took = devices.timed_s(how, rooms, SIZE_B, TIMES)
        if before and abs(took - before) < 0.1 * before:
            return
        before = took
