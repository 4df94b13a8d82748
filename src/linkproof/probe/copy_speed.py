"""How fast, how late? Bandwidth and latency of one way of moving, on warm clocks, by the GPU's own clock.

In:      Devices, pairs (one, both directions, or all of the machine at once), the way.
Out:     a Speed per pair: medians with the slowest and fastest of the rounds. Pairs that run at once share the time: each is given its own bytes
         over the time of all.
Raises:  DeviceLost, MemoryError, NotPossible.
Source:  GB is 10^9. Warm-up: rounds are thrown away until two in a row differ by less than a tenth, at most WARM_MAX of them.

Latency first: what a transfer costs that carries nothing. Then the bandwidth, with transfers so large that this cost is START_SHARE of their
time at most: 32 MiB are enough for PCIe (1.3 ms), not for NVLink (87 us, of which a tenth would be the start). LARGEST_B and ROOM_B end the
growth: GPUs with many links that run at once share them, and their transfers take longer anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from statistics import median

from linkproof.measured import Speed
from linkproof.probe.devices import Buffer, Devices
from linkproof.probe.setup import MiB

MODES = ("staged", "push", "pull", "store16", "load16")  # 4-byte accesses are slow by themselves
SIZE_B, LARGEST_B = 32 * MiB, 256 * MiB
ROOM_B = 512 * MiB  # of one GPU, for all its pairs: what a check of 256 MiB copies takes as well
START_SHARE = 0.03
ROUNDS, TIMES = 5, 4
WARM_MAX = 4
LATENCY_B, LATENCY_TIMES = 8, 20

Rooms = list[tuple[Buffer, Buffer]]


def measure(devices: Devices, pairs: Sequence[tuple[int, int]], how: str, load: str = "alone") -> list[Speed]:
    with ExitStack() as stack:
        rooms, size_B = _made(devices, stack, pairs, SIZE_B), SIZE_B
        once_s = warm(devices, how, rooms)
        late_s = median(devices.timed_s(how, rooms[:1], LATENCY_B, LATENCY_TIMES) / LATENCY_TIMES for _ in range(ROUNDS))
        larger_B = enough_B(once_s, late_s, most_B(pairs))
        if larger_B > SIZE_B:
            with suppress(MemoryError):
                rooms, size_B = _made(devices, stack, pairs, larger_B), larger_B
        took_s = sorted(devices.timed_s(how, rooms, size_B, TIMES) for _ in range(ROUNDS))
    lat_us = round(late_s * 1e6, 2) if load == "alone" else None
    rate = [size_B * TIMES / max(t, 1e-9) / 1e9 for t in took_s]
    spread = (round(rate[-1], 3), round(rate[0], 3))
    return [Speed(src, dst, how, round(median(rate), 3), spread, lat_us, load, size_B, ROUNDS) for src, dst in pairs]


def _made(devices: Devices, stack: ExitStack, pairs: Iterable[tuple[int, int]], size_B: int) -> Rooms:
    """All or, in a MemoryError, none."""
    with ExitStack() as mine:

        def made(gpu: int) -> Buffer:
            buffer = devices.alloc(gpu, size_B)
            mine.callback(buffer.free)
            return buffer

        rooms = [(made(src), made(dst)) for src, dst in pairs]
        stack.push(mine.pop_all())
    return rooms


def warm(devices: Devices, how: str, rooms: Rooms) -> float:
    """Gives the seconds of one transfer of SIZE_B."""
    before = 0.0
    for _ in range(WARM_MAX):
        took = devices.timed_s(how, rooms, SIZE_B, TIMES)
        if before and abs(took - before) < 0.1 * before:
            return took / TIMES
        before = took
    return before / TIMES


def most_B(pairs: Sequence[tuple[int, int]]) -> int:
    """The largest transfer for which a GPU has room."""
    buffers = Counter(gpu for pair in pairs for gpu in pair)
    return min(LARGEST_B, ROOM_B // max(buffers.values()))


def enough_B(once_s: float, late_s: float, most_B: int) -> int:
    """From SIZE_B on, twice as much until the start is START_SHARE of the time. once_s: of SIZE_B, late_s: of next to nothing."""
    size_B = SIZE_B
    while size_B * 2 <= most_B and late_s > START_SHARE * (late_s + (once_s - late_s) * size_B / SIZE_B):
        size_B *= 2
    return size_B
