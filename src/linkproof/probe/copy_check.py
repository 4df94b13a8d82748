"""Do the bytes arrive right? One ordered pair, one way of moving them, many sizes, fresh data each time.

In:      Devices, a Case of a pair or a chain, what effort.
Out:     Outcome: verified only if every byte of every transfer was there, nothing beside it changed and the owner itself read it back.
Unknown: what the machine cannot do raises NotPossible or NotTested (devices.py); the caller turns them into states.
Raises:  DeviceLost, MemoryError.
Source:  a target is poisoned with the complement before each transfer, by its owner; a word says what it is (payload.py). Small transfers
         are read back whole through the host; large ones are compared by a kernel of the owner, whose eye the host has tested before.
By hand  linkproof check --pair 0:1 --mode push
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from time import perf_counter

import numpy as np
from msgspec import Struct, structs

from linkproof.measured import Case, Outcome, Wrong
from linkproof.probe.devices import Buffer, Devices
from linkproof.probe.payload import U8, WORD_B, Key, classify, payload, poison
from linkproof.probe.setup import MiB, Setup

GUARD_B = 8192  # poison before and behind every transfer
BYSTANDER_B = 2 * MiB
SMALL_B = 1 * MiB  # up to here the whole window goes through the host
LOOK_B = 4 * MiB  # of a large transfer that is wrong, this much is read back and sorted by kind
ENOUGH_SMALL, ENOUGH_BIG = 4, 1  # wrong transfers of one size, then the next size
START_B = (0, 4, 16)  # where a transfer begins behind the guard: a word's own place, half a word, a vector
SPOTS = 8  # places at which the host tests the owner's kernels
SWEEP_SHARE = 0.85  # of a GPU's memory that `--deep` walks through
SWEEP_BLOCK_B = 256 * MiB

Move = Callable[[int, int], None]  # (at_B, size_B): carry these bytes of the source's window to the same place of the target's


class Room(Struct):
    """Windows of one pair, used again for every size: what an earlier transfer left must not pass for this one. All are on `dst` but src."""

    src: Buffer
    dst: Buffer
    bystander: Buffer


class Tally:
    """What the transfers of one case came to."""

    def __init__(self, case: Case, setup: Setup) -> None:
        self.case, self.seed = case, setup.seed
        self.rounds = self.bad = self.verified_B = self.smallest_bad_B = self.largest_ok_B = self.told_B = self.told_round = 0
        self.wrong: tuple[Wrong, ...] = ()
        self.seen: dict[str, Wrong] = {}
        self._begun = perf_counter()

    def key(self) -> Key:
        """Of the next transfer."""
        return Key(self.seed, self.case.gpus[0], self.case.gpus[-1], self.rounds)

    def add(self, size_B: int, wrong: tuple[Wrong, ...]) -> None:
        if wrong and not self.wrong:
            self.wrong, self.told_B, self.told_round = wrong, size_B, self.rounds
        for w in wrong:
            self.seen.setdefault(w.kind, w)
        self.rounds += 1
        self.bad += bool(wrong)
        self.verified_B += size_B
        if wrong:
            self.smallest_bad_B = min(self.smallest_bad_B or size_B, size_B)
        else:
            self.largest_ok_B = max(self.largest_ok_B, size_B)

    def outcome(self) -> Outcome:
        """wrong: of the first bad transfer, and one of every other kind that came later."""
        later = tuple(w for kind, w in self.seen.items() if kind not in {w.kind for w in self.wrong})
        return Outcome(
            self.case,
            "corrupt" if self.bad else "verified",
            "{bad} of {rounds} transfers arrived wrong" if self.bad else "",
            {"bad": f"{self.bad:,}", "rounds": f"{self.rounds:,}"} if self.bad else {},
            self.wrong + later,
            self.told_B if self.bad else self.largest_ok_B,
            self.told_round,
            self.rounds,
            self.bad,
            self.smallest_bad_B,
            self.largest_ok_B,
            self.verified_B,
            perf_counter() - self._begun,
        )


# ---------------------------------------------------------------- one transfer


def transfer(devices: Devices, room: Room, key: Key, start_B: int, size_B: int, move: Move) -> tuple[Wrong, ...]:
    """Poison, fill, move, read back. What is wrong, () if nothing."""
    prepare(devices, room, key, start_B, size_B)
    move(GUARD_B + start_B, size_B)
    return judge(devices, room.dst, key, start_B, size_B)


def window_B(start_B: int, size_B: int) -> int:
    return -(-(GUARD_B + start_B + size_B) // WORD_B) * WORD_B + GUARD_B


def prepare(devices: Devices, room: Room, key: Key, start_B: int, size_B: int) -> None:
    whole = window_B(start_B, size_B)
    if size_B <= SMALL_B:
        devices.put(room.src, 0, payload(key, 0, whole))
        devices.put(room.dst, 0, poison(key, 0, whole))
    else:
        devices.fill(room.src, key.word, 0, whole // WORD_B)
        devices.fill(room.dst, key.word, 0, whole // WORD_B, invert=True)


def judge(devices: Devices, dst: Buffer, key: Key, start_B: int, size_B: int) -> tuple[Wrong, ...]:
    whole, lo = window_B(start_B, size_B), GUARD_B + start_B
    hi = lo + size_B
    return tuple(structs.replace(w, first_B=w.first_B - lo) for w in _seen(devices, dst, key, whole, lo, hi))


def _seen(devices: Devices, dst: Buffer, key: Key, whole: int, lo: int, hi: int) -> tuple[Wrong, ...]:
    """As `classify`: places count from the start of the window."""
    if hi - lo <= SMALL_B:
        return classify(devices.get(dst, 0, whole), key, lo, hi, 0, dst.address_B)
    first, end = -(-lo // WORD_B), hi // WORD_B  # words that belong to the transfer whole
    bad, at = devices.wrong(dst, key.word, first, end - first)
    edges = classify(devices.get(dst, 0, first * WORD_B), key, lo, hi, 0, dst.address_B)
    edges += classify(devices.get(dst, end * WORD_B, whole - end * WORD_B), key, lo, hi, end * WORD_B, dst.address_B)
    return edges + _sorted_by_kind(devices, dst, key, lo, hi, bad, at) if bad else edges


def _sorted_by_kind(devices: Devices, dst: Buffer, key: Key, lo: int, hi: int, bad: int, at: int) -> tuple[Wrong, ...]:
    """Kinds from the LOOK_B behind the first wrong word, numbers scaled to the count that the owner's kernel made over all."""
    begin = at * WORD_B // 4096 * 4096
    begin = max(begin, -(-lo // WORD_B) * WORD_B)
    size = min(LOOK_B, hi - begin)
    seen = classify(devices.get(dst, begin, size), key, lo, hi, begin, dst.address_B)
    known = sum(w.bad_B for w in seen)
    if not known:  # the kernel and the host's copy do not see the same: that is a finding of its own
        return (Wrong("garbage", bad * WORD_B, at * WORD_B, "kernel and host disagree"),)
    scale = max(1.0, bad * WORD_B / known)
    words = (hi - lo) / WORD_B
    return tuple(
        structs.replace(w, bad_B=int(w.bad_B * scale), rate=round(w.rate * (size / WORD_B) * scale / words, 9)) if scale > 1 else w
        for w in seen
    )


def eye_tested(devices: Devices, buffer: Buffer, key: Key, size_B: int) -> bool:
    """The owner's fill and compare kernels, tested through the host: right words are there, a wrong one is seen, at its place."""
    count = size_B // WORD_B
    devices.fill(buffer, key.word, 0, count)
    for spot in np.linspace(0, count - 1, SPOTS).astype(int).tolist():
        if not np.array_equal(devices.get(buffer, spot * WORD_B, WORD_B), payload(key, spot * WORD_B, WORD_B)):
            return False
    spoilt = count // 3
    devices.put(buffer, spoilt * WORD_B, ~payload(key, spoilt * WORD_B, WORD_B))
    seen = devices.wrong(buffer, key.word, 0, count)
    devices.put(buffer, spoilt * WORD_B, payload(key, spoilt * WORD_B, WORD_B))
    return seen == (1, spoilt) and devices.wrong(buffer, key.word, 0, count) == (0, -1)


# ---------------------------------------------------------------- one case


def schedule(setup: Setup) -> Iterator[tuple[int, int]]:
    """(start, size) of every transfer: small sizes often and from odd places, large ones a few times."""
    effort = setup.effort
    for size_B in effort.sizes_B:
        times = effort.rounds_small if size_B <= SMALL_B else effort.rounds_big
        for i in range(times):
            yield START_B[i % len(START_B)], size_B


def run(devices: Devices, case: Case, setup: Setup, kind: str, moves: Sequence[str]) -> Outcome:
    """Every transfer of the schedule in each of these ways. kind: allocator of both windows."""
    src_gpu, dst_gpu = case.gpus
    tally = Tally(case, setup)
    with ExitStack() as stack:
        room = make_room(devices, stack, src_gpu, dst_gpu, setup, kind)
        if refused := untrusted(devices, room, tally.key(), case, setup):
            return refused
        canary = Key(setup.seed, dst_gpu, dst_gpu, 255)
        devices.fill(room.bystander, canary.word, 0, BYSTANDER_B // WORD_B)
        for how in moves:

            def move(at_B: int, size_B: int, how: str = how) -> None:
                devices.move(how, room.src, at_B, room.dst, at_B, size_B)

            bad: Counter[int] = Counter()
            for start_B, size_B in schedule(setup):
                if bad[size_B] < (ENOUGH_SMALL if size_B <= SMALL_B else ENOUGH_BIG):
                    wrong = transfer(devices, room, tally.key(), start_B, size_B, move)
                    tally.add(size_B, wrong)
                    bad[size_B] += bool(wrong)
        bystander(devices, room, canary, tally)
        if setup.effort.sweep:
            sweep(devices, room, tally, moves[0])
    return tally.outcome()


def make_room(devices: Devices, stack: ExitStack, src_gpu: int, dst_gpu: int, setup: Setup, kind: str = "plain") -> Room:
    size_B = window_B(max(START_B), max(setup.effort.sizes_B))

    def made(gpu: int, size: int) -> Buffer:
        buffer = devices.alloc(gpu, size, kind)
        stack.callback(buffer.free)
        return buffer

    src = made(src_gpu, size_B)
    dst = made(dst_gpu, size_B)
    return Room(src, dst, made(dst_gpu, BYSTANDER_B))


def untrusted(devices: Devices, room: Room, key: Key, case: Case, setup: Setup) -> Outcome | None:
    """The control before everything else: what both owners write and read by themselves, without any link, must be right."""
    size_B = min(8 * MiB, window_B(0, max(setup.effort.sizes_B))) // WORD_B * WORD_B
    for buffer in (room.src, room.dst):
        if not eye_tested(devices, buffer, key, size_B):
            why = "GPU {gpu} does not read back what it wrote into its own memory: no link can be judged with it"
            return Outcome(case, "not_tested", why, {"gpu": str(buffer.gpu)})
    return None


def bystander(devices: Devices, room: Room, canary: Key, tally: Tally) -> None:
    """Memory of the target that no transfer had to touch."""
    bad, at = devices.wrong(room.bystander, canary.word, 0, BYSTANDER_B // WORD_B)
    if bad:
        tally.add(BYSTANDER_B, (Wrong("bystander", bad * WORD_B, at * WORD_B),))


def sweep(devices: Devices, room: Room, tally: Tally, how: str) -> None:
    """Addresses all over the target's memory: small windows at both ends and the middle of blocks that fill it (BAR windows end somewhere)."""
    memory_B = next(c.memory_B for c in devices.cards() if c.index == room.dst.gpu)
    taken: list[Buffer] = []
    try:
        while (len(taken) + 1) * SWEEP_BLOCK_B < memory_B * SWEEP_SHARE:
            try:
                taken.append(devices.alloc(room.dst.gpu, SWEEP_BLOCK_B))
            except MemoryError:
                break
        size_B = 64 * 1024
        whole = window_B(0, size_B)
        for block in taken:
            for base_B in (0, SWEEP_BLOCK_B // 2, SWEEP_BLOCK_B - whole):
                key = tally.key()
                devices.put(room.src, 0, payload(key, 0, whole))
                devices.put(block, base_B, poison(key, 0, whole))
                devices.move(how, room.src, GUARD_B, block, base_B + GUARD_B, size_B)
                got: U8 = devices.get(block, base_B, whole)
                seen = classify(got, key, GUARD_B, GUARD_B + size_B, 0, block.address_B + base_B)
                tally.add(size_B, tuple(structs.replace(w, first_B=w.first_B - GUARD_B) for w in seen))
    finally:
        for block in taken:
            block.free()
