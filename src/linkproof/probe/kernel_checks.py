"""What kernels do with another GPU's memory: writer's view against owner's, messages with flags, atomics; and three GPUs in a row.

In:      Devices, a Case, what effort.
Out:     Outcome. Atomics are reported, not judged: PCIe has none, and nobody needs them there.
Raises:  DeviceLost, MemoryError, NotPossible, NotTested.
Source:  NVIDIA/nccl#2335 (the writer sees its bytes, the owner zeros), noonghunna/club-3090#902 (copies pass, flags hang).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from time import perf_counter

import numpy as np
from msgspec import structs

from linkproof.measured import Case, Outcome, Wrong
from linkproof.probe.copy_check import GUARD_B, Room, Tally, judge, make_room, prepare, window_B
from linkproof.probe.devices import Buffer, Devices, NotPossible
from linkproof.probe.payload import U8, Key, classify, payload
from linkproof.probe.setup import KiB, MiB, Setup

VIEW_SIZES_B = (256, 8 * KiB, 297 * KiB, 1 * MiB)
MESSAGE_SIZES_B = (128, 8 * KiB)
ADDITIONS = 100_000
CHAIN_SIZES_B = (256, 8 * KiB, 1 * MiB)


def views(devices: Devices, case: Case, setup: Setup) -> Outcome:
    """Store by kernel, then read twice: by kernel from the writer's side, through the host from the owner's. Both must see the data."""
    src, dst = case.gpus
    tally = Tally(case, setup)
    mirror = blind = 0
    with ExitStack() as stack:
        room = make_room(devices, stack, src, dst, setup)
        for size_B in VIEW_SIZES_B:
            for _ in range(max(3, setup.effort.rounds_big)):
                key = tally.key()
                prepare(devices, room, key, 0, size_B)
                devices.move("store16", room.src, GUARD_B, room.dst, GUARD_B, size_B)
                writer = devices.look(src, room.dst, GUARD_B, size_B)
                owner = judge(devices, room.dst, key, 0, size_B)
                seen = np.array_equal(writer, payload(key, GUARD_B, size_B))
                mirror += bool(owner) and seen
                blind += not owner and not seen
                tally.add(size_B, owner or (() if seen else classify_view(writer, key, size_B)))
    outcome = tally.outcome()
    if mirror:
        why = "the writer reads its own bytes back, the owner does not have them ({mirror} of {rounds} transfers)"
        return _as(outcome, why, mirror=f"{mirror:,}", rounds=f"{tally.rounds:,}")
    if blind == tally.bad > 0:
        why = "the owner has the data, the writer does not see them when it reads back ({n} of {rounds} transfers)"
        return _as(outcome, why, n=f"{blind:,}", rounds=f"{tally.rounds:,}")
    return outcome


def classify_view(got: U8, key: Key, size_B: int) -> tuple[Wrong, ...]:
    seen = classify(got, key, GUARD_B, GUARD_B + size_B, GUARD_B)
    return tuple(structs.replace(w, first_B=w.first_B - GUARD_B) for w in seen)


def _as(outcome: Outcome, why: str, **args: str) -> Outcome:
    return structs.replace(outcome, why=why, args=args)


def flags(devices: Devices, case: Case, setup: Setup) -> Outcome:
    """Data first, then a flag, to and fro between two kernels that stay resident: what every all-reduce kernel does."""
    a, b = case.gpus
    begun = perf_counter()
    done = late = wanted = 0
    told_B = 0
    for number, size_B in enumerate(MESSAGE_SIZES_B):
        rounds = setup.effort.message_rounds
        with ExitStack() as stack:
            mine, theirs = (_made(devices, stack, gpu, 2 * MiB) for gpu in (a, b))
            key = Key(setup.seed, a, b, number)
            got, wrong = devices.messages(mine, theirs, rounds, size_B, setup.effort.message_deadline_s, key.word)
        done, late, wanted, told_B = done + got, late + wrong, wanted + rounds, size_B
        if got < rounds or wrong:
            break
    return messages_outcome(case, done, late, wanted, told_B, perf_counter() - begun)


def messages_outcome(case: Case, done: int, late: int, wanted: int, size_B: int, took_s: float) -> Outcome:
    """done of wanted messages came, late of them without their data."""
    state, why = "verified", ""
    if late:
        state, why = "corrupt", "{late} of {done} messages: the flag was there before its data"
    elif done < wanted:
        state, why = "hung", "after {done} of {rounds} messages the flag of the other side did not come"
    args = {"done": f"{done:,}", "rounds": f"{wanted:,}", "late": f"{late:,}"} if why else {}
    wrong = (Wrong("reordered", late * size_B, 0),) if late else ()
    return Outcome(case, state, why, args, wrong, size_B, rounds=done, bad_rounds=late, verified_B=size_B * (done - late), took_s=took_s)


def _made(devices: Devices, stack: ExitStack, gpu: int, size_B: int) -> Buffer:
    buffer = devices.alloc(gpu, size_B)
    stack.callback(buffer.free)
    return buffer


def atomics(devices: Devices, case: Case, setup: Setup) -> Outcome:
    """Both GPUs add to one word of dst. A sum too small means that additions over this link are not atomic."""
    src, dst = case.gpus
    begun = perf_counter()
    with ExitStack() as stack:
        word = _made(devices, stack, dst, 4 * KiB)
        devices.put(word, 0, np.zeros(64, np.uint8))
        found = devices.add(src, word, ADDITIONS)
    lost = 2 * ADDITIONS - found
    if not lost:
        return Outcome(case, "verified", rounds=2 * ADDITIONS, verified_B=4, took_s=perf_counter() - begun)
    why = "{lost} of {all} additions are lost: atomics do not work over this link, as on most PCIe links"
    args = {"lost": f"{lost:,}", "all": f"{2 * ADDITIONS:,}"}
    return Outcome(case, "refused", why, args, rounds=2 * ADDITIONS, took_s=perf_counter() - begun)


def chain(devices: Devices, case: Case, setup: Setup) -> Outcome:
    """a -> b staged and b -> c direct, then direct and staged, each second hop begun without waiting for the first."""
    a, b, c = case.gpus
    tally = Tally(case, setup)
    with ExitStack() as stack:
        first = make_room(devices, stack, a, b, setup)
        last = Room(first.dst, _made(devices, stack, c, window_B(16, max(CHAIN_SIZES_B))), first.bystander)
        for hops in (("staged", "push"), ("push", "staged"), ("push", "push")):
            for size_B in CHAIN_SIZES_B:
                for _ in range(max(3, setup.effort.rounds_big)):
                    tally.add(size_B, _two_hops(devices, first, last, tally.key(), size_B, hops))
    return tally.outcome()


def _two_hops(devices: Devices, first: Room, last: Room, key: Key, size_B: int, hops: Sequence[str]) -> tuple[Wrong, ...]:
    whole = window_B(0, size_B)
    prepare(devices, Room(first.src, last.dst, last.bystander), key, 0, size_B)
    middle = Key(key.seed, key.src, key.dst, (key.round_ + 128) & 255)  # old data of the middle must not pass for the new
    devices.put(first.dst, 0, payload(middle, 0, whole))
    devices.move(hops[0], first.src, GUARD_B, first.dst, GUARD_B, size_B, wait=False)
    devices.move(hops[1], last.src, GUARD_B, last.dst, GUARD_B, size_B, wait=False)
    devices.sync()
    return judge(devices, last.dst, key, 0, size_B)


def possible(devices: Devices, src: int, dst: int) -> None:
    """Raises NotPossible where the driver itself offers no peer access: then there is no direct way to be tried."""
    if src != dst and devices.peer_claimed(src, dst) is False:
        raise NotPossible("the driver offers no peer access from GPU {a} to GPU {b}", a=str(src), b=str(dst))
