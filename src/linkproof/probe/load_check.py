"""Right under load too? Both directions at once, then every pair of the machine at once; each transfer still verified.

In:      Devices, the ordered pairs, one way of moving, what effort.
Out:     one Outcome per pair.
Raises:  DeviceLost, MemoryError, NotPossible.
Source:  shared uplinks, bifurcated risers and marginal links are right alone and wrong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from msgspec import structs

from linkproof.measured import Case, Outcome
from linkproof.probe.copy_check import GUARD_B, Room, Tally, judge, make_room, prepare
from linkproof.probe.devices import Devices
from linkproof.probe.setup import Effort, KiB, MiB, Setup

SIZES_B = (8 * KiB, 2 * MiB, 16 * MiB)
TIMES_PER_ROUND = 4  # transfers of a pair that are under way at once: the last one is judged, all carry the same data


def run(devices: Devices, pairs: Sequence[tuple[int, int]], how: str, load: str, setup: Setup) -> list[Outcome]:
    sizes_B = tuple(size_B for size_B in SIZES_B if size_B <= max(setup.effort.sizes_B))
    small = structs.replace(setup, effort=Effort(sizes_B=sizes_B))
    with ExitStack() as stack:
        rooms: dict[tuple[int, int], tuple[Room, Tally]] = {}
        for src, dst in pairs:
            case = Case(how, (src, dst), load)
            rooms[src, dst] = make_room(devices, stack, src, dst, small), Tally(case, setup)
        for size_B in sizes_B:
            for _ in range(max(3, setup.effort.rounds_big)):
                keys = {pair: tally.key() for pair, (_, tally) in rooms.items()}
                for pair, (room, _) in rooms.items():
                    prepare(devices, room, keys[pair], 0, size_B)
                for _ in range(TIMES_PER_ROUND):
                    for room, _ in rooms.values():
                        devices.move(how, room.src, GUARD_B, room.dst, GUARD_B, size_B, wait=False)
                devices.sync()
                for pair, (room, tally) in rooms.items():
                    tally.add(size_B, judge(devices, room.dst, keys[pair], 0, size_B))
        return [tally.outcome() for _, tally in rooms.values()]
