"""NCCL on the simulated machine: rings over its links, with integer sums, so a faulty link really makes a wrong result.

In:      Virtual, operation, transport and protocol as one asks NCCL for them, size of each rank's buffer, the ranks (GPU numbers).
Out:     Collected: who has the right result, and which transport was really used (NCCL falls back from P2P to shared memory by itself).
Raises:  NotPossible where NCCL would stop with an error; DeviceLost. A fault `hang` really hangs.
Source:  NCCL: p2p writes with kernel stores (LL: 8 bytes with their flag; LL128: 128-byte lines with theirs; Simple: data, then a flag),
         shm through host memory, net through a socket. 9,637,888 bytes is the segment that its own error message names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from linkproof.probe.devices import NotPossible
from linkproof.probe.faults import PROTOCOLS, hang
from linkproof.sim.memory import Block
from linkproof.sim.scenario import MiB
from linkproof.sim.virtual import Virtual

OPS = ("all_reduce", "all_gather", "broadcast", "sendrecv")
SHOWN = {"p2p": "P2P/CUMEM", "shm": "SHM/direct", "net": "NET/Socket"}
SHM_SEGMENT_B, SEGMENTS_PER_RANK = 9_637_888, 2
LOSES_FLAGS = ("drop", "zero", "stale", "mirror")  # the receiver waits for a flag that never comes
I64 = NDArray[np.int64]


class Collected(NamedTuple):
    """ok: per rank, in the order of `ranks`. wrong: GPUs whose result is wrong. transport: as NCCL's log names it."""

    ok: tuple[bool, ...]
    wrong: tuple[int, ...]
    transport: str


def collective(virtual: Virtual, op: str, transport: str, protocol: str, size_B: int, ranks: Sequence[int]) -> Collected:
    """transport: default p2p shm net. protocol: default LL LL128 Simple."""
    n, count = len(ranks), max(1, size_B // 8)
    used = _transport(virtual, transport, ranks)
    wire = _Wire(virtual, used, _protocol(protocol, size_B), ranks, count)
    try:
        mine = [np.arange(count, dtype=np.int64) * (3 + gpu) + 1000 * (rank + 1) for rank, gpu in enumerate(ranks)]
        if op == "all_reduce":
            got, want = wire.all_reduce(mine), [np.sum(mine, axis=0)] * n
        elif op == "all_gather":
            got, want = wire.all_gather(mine), [np.concatenate(mine)] * n
        elif op == "broadcast":
            got, want = wire.broadcast(mine), [mine[0]] * n
        else:
            got, want = [wire.send((r - 1) % n, r, mine[(r - 1) % n]) for r in range(n)], [mine[(r - 1) % n] for r in range(n)]
    finally:
        wire.close()
    ok = tuple(bool(np.array_equal(g, w)) for g, w in zip(got, want, strict=True))
    return Collected(ok, tuple(gpu for gpu, right in zip(ranks, ok, strict=True) if not right), SHOWN[used])


def _protocol(protocol: str, size_B: int) -> str:
    """What NCCL would take by itself: LL for small messages, Simple for large ones."""
    return protocol if protocol in PROTOCOLS else "LL" if size_B <= 64 * 1024 else "Simple"


def _transport(virtual: Virtual, transport: str, ranks: Sequence[int]) -> str:
    neighbours = [(a, b) for a in ranks for b in ranks if a != b]
    used = transport
    if transport in ("default", "p2p"):
        used = "p2p" if all(virtual.peer_claimed(a, b) for a, b in neighbours) else "shm"
    need_B, have_B = len(ranks) * SEGMENTS_PER_RANK * SHM_SEGMENT_B, virtual.scenario.host.shm_MiB * MiB
    if used == "shm" and need_B > have_B:
        raise NotPossible(
            "NCCL needs {need} MB of shared memory, /dev/shm holds {have} MB", need=f"{need_B / 1e6:.0f}", have=f"{have_B / 1e6:.0f}"
        )
    return used


class _Wire:
    """One receive buffer per rank; what a transfer does not bring stays what the last one left there, as in NCCL's own buffers."""

    def __init__(self, virtual: Virtual, transport: str, protocol: str, ranks: Sequence[int], count: int) -> None:
        self.virtual, self.transport, self.protocol, self.ranks = virtual, transport, protocol, ranks
        self.inbox: list[Block] = []
        for gpu in ranks:
            self.inbox.append(virtual.alloc(gpu, count * 8))

    def close(self) -> None:
        for block in self.inbox:
            block.free()

    def send(self, src: int, dst: int, values: I64) -> I64:
        """What rank dst reads out of its receive buffer after rank src has sent."""
        a, b = self.ranks[src], self.ranks[dst]
        if a == b or not len(values):
            return values.copy()
        self.virtual.there(a, b)
        data, box = np.ascontiguousarray(values).view(np.uint8), self.inbox[dst]
        names = {"p2p": ("store16", self.protocol), "shm": ("staged", "shm"), "net": ("net",)}[self.transport]
        before = box.data[: len(data)].copy()
        fault = self.virtual.carry(names, a, box, 0, data)
        if fault is not None and self.transport == "p2p" and fault.kind in LOSES_FLAGS:
            hang()
        if fault is not None and fault.kind == "reorder" and self.protocol == "Simple":
            return before.view(np.int64)  # the flag was there first: this is what it read
        return box.data[: len(data)].copy().view(np.int64)

    def all_reduce(self, mine: list[I64]) -> list[I64]:
        """Ring: reduce-scatter, then all-gather."""
        n = len(mine)
        parts = [np.array_split(values, n) for values in mine]
        for step in range(n - 1):
            came = [self.send((r - 1) % n, r, parts[(r - 1) % n][(r - 1 - step) % n]) for r in range(n)]
            for r in range(n):
                parts[r][(r - 1 - step) % n] = parts[r][(r - 1 - step) % n] + came[r]
        for step in range(n - 1):
            came = [self.send((r - 1) % n, r, parts[(r - 1) % n][(r - step) % n]) for r in range(n)]
            for r in range(n):
                parts[r][(r - step) % n] = came[r]
        return [np.concatenate(one) for one in parts]

    def all_gather(self, mine: list[I64]) -> list[I64]:
        n = len(mine)
        have = [{r: mine[r]} for r in range(n)]
        for step in range(n - 1):
            came = [self.send((r - 1) % n, r, have[(r - 1) % n][(r - 1 - step) % n]) for r in range(n)]
            for r in range(n):
                have[r][(r - 1 - step) % n] = came[r]
        return [np.concatenate([have[r][k] for k in range(n)]) for r in range(n)]

    def broadcast(self, mine: list[I64]) -> list[I64]:
        got = [mine[0]]
        for r in range(1, len(mine)):
            got.append(self.send(r - 1, r, got[r - 1]))
        return got
