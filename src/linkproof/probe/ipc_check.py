"""Between processes: each owns memory, the others open it by a handle and write, and the owner reads back.

In:      Devices of this process, which of the processes it is, a folder that all share.
Out:     Outcomes of the memory that this process owns, one per writer.
Raises:  DeviceLost, MemoryError, NotPossible, NotTested.
Source:  vLLM and SGLang hand their all-reduce buffers over this way; containers and expandable segments break it.
"""

from __future__ import annotations

import os
import time
from itertools import combinations
from pathlib import Path
from typing import cast

from linkproof.measured import Case, Outcome
from linkproof.probe.copy_check import GUARD_B, SMALL_B, Room, Tally, judge, prepare, window_B
from linkproof.probe.devices import Buffer, Devices, NotPossible, NotTested, Sides
from linkproof.probe.kernel_checks import messages_outcome
from linkproof.probe.payload import WORD_B, Key, payload
from linkproof.probe.setup import KiB, MiB, Setup

SIZES_B = (256, 4 * KiB + 16, 8 * KiB, 1 * MiB, 16 * MiB)
POLL_S = 0.0005
FLAG_MESSAGE_B, ROUNDS_ONE_CARD, FLAGS_DEADLINE_S = 128, 200, 10.0


class Channel:
    """Notes between the two processes: a file each, written under another name and then moved, so never read by half."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def tell(self, name: str, data: bytes = b"-") -> None:
        part = self.folder / f".{name}.{os.getpid()}"
        part.write_bytes(data)
        part.rename(self.folder / name)

    def hear(self, name: str) -> bytes:
        """Waits for it; the deadline of the gang ends a wait in vain."""
        path = self.folder / name
        while not path.exists():
            time.sleep(POLL_S)
        return path.read_bytes()


def member(devices: Devices, case: Case, setup: Setup, number: int, folder: str) -> list[Outcome]:
    """One process per GPU. In turn k, process i writes into the memory of process i + k, and its owner judges.

    Gives the outcomes of this process's own memory, one per writer.
    """
    if case.mode == "flags_ipc":
        return _flags(devices, case, setup, number, Channel(folder))
    channel, n, gpu = Channel(folder), len(case.gpus), case.gpus[number]
    mine = devices.alloc(gpu, window_B(0, max(SIZES_B)), case.mode)
    source = devices.alloc(gpu, mine.size_B)
    channel.tell(f"handle-{number}", _handle(devices, mine, case.mode))
    outcomes = []
    for turn in range(1, n):
        writer, target = (number - turn) % n, (number + turn) % n
        theirs = _opened(devices, gpu, channel.hear(f"handle-{target}"), case.mode)
        channel.tell(f"opened-{turn}-{number}", b"no" if theirs is None else b"yes")
        tally = Tally(Case(case.mode, (case.gpus[writer], gpu)), setup)
        written_to = channel.hear(f"opened-{turn}-{writer}") == b"yes"
        for step, size_B in enumerate(_sizes(setup)):
            if written_to:
                key = Key(setup.seed, case.gpus[writer], gpu, step)
                prepare(devices, Room(source, mine, source), key, 0, size_B)
                channel.tell(f"poisoned-{turn}-{step}-{number}")
            if theirs is not None:
                _write(
                    devices, Key(setup.seed, gpu, case.gpus[target], step), source, theirs, size_B, step, channel, f"{turn}-{step}-{target}"
                )
            if written_to:
                channel.hear(f"written-{turn}-{step}-{number}")
                tally.add(size_B, judge(devices, mine, key, 0, size_B))
        refused = Outcome(tally.case, "refused", "one process could not open the memory of the other")
        outcomes.append(tally.outcome() if written_to else refused)
        if theirs is not None:
            theirs.free()
        channel.tell(f"turned-{turn}-{number}")
        channel.hear(f"turned-{turn}-{writer}")  # an owner must not free or change what is still mapped
    source.free()
    mine.free()
    return outcomes


def _flags(devices: Devices, case: Case, setup: Setup, number: int, channel: Channel) -> list[Outcome]:
    """Every two of the processes in turn: one half of the message kernels each, which judges the messages that come to it."""
    if not hasattr(devices, "message_side"):
        raise NotTested("{what}: only NVIDIA GPUs have it, or only there it is written", what=case.mode)
    sides, gpu = cast(Sides, devices), case.gpus[number]
    mine = devices.alloc(gpu, 1 * MiB, "ipc")
    channel.tell(f"handle-{number}", _handle(devices, mine, "ipc"))
    outcomes = []
    for turn, (one, two) in enumerate(combinations(range(len(case.gpus)), 2)):
        if number in (one, two):
            other = two if number == one else one
            theirs = _opened(devices, gpu, channel.hear(f"handle-{other}"), "ipc")
            told = Case(case.mode, (case.gpus[other], gpu))
            channel.tell(f"opened-{turn}-{number}", b"no" if theirs is None else b"yes")
            if channel.hear(f"opened-{turn}-{other}") == b"no" or theirs is None:
                outcomes.append(Outcome(told, "refused", "one process could not open the memory of the other"))
            else:
                # two processes take turns on one card, a few milliseconds each
                rounds = setup.effort.message_rounds if case.gpus[one] != case.gpus[two] else ROUNDS_ONE_CARD
                key = Key(setup.seed, case.gpus[one], case.gpus[two], 0)
                sides.clear_flag(mine, FLAG_MESSAGE_B)
                channel.tell(f"ready-{turn}-{number}")
                channel.hear(f"ready-{turn}-{other}")
                begun = time.perf_counter()
                done, late = sides.message_side(mine, theirs, number == one, rounds, FLAG_MESSAGE_B, FLAGS_DEADLINE_S, key.word)
                outcomes.append(messages_outcome(told, done, late, rounds, FLAG_MESSAGE_B, time.perf_counter() - begun))
        channel.tell(f"turned-{turn}-{number}")  # one pair at a time
        for everyone in range(len(case.gpus)):
            channel.hear(f"turned-{turn}-{everyone}")
        if number in (one, two) and theirs is not None:
            theirs.free()
    mine.free()
    return outcomes


def _sizes(setup: Setup) -> list[int]:
    return [size_B for size_B in SIZES_B for _ in range(max(3, setup.effort.rounds_big))]


def _handle(devices: Devices, mine: Buffer, mode: str) -> bytes:
    """b"" if it cannot be shared: the others then know."""
    try:
        return devices.share(mine, mode)
    except NotPossible:
        return b""


def _opened(devices: Devices, gpu: int, shared: bytes, mode: str) -> Buffer | None:
    try:
        return devices.open(gpu, shared, mode) if shared else None
    except NotPossible:
        return None


def _write(devices: Devices, key: Key, source: Buffer, theirs: Buffer, size_B: int, step: int, channel: Channel, name: str) -> None:
    """By copy engine and by kernel in turn, once the owner has poisoned."""
    channel.hear(f"poisoned-{name}")
    whole = window_B(0, size_B)
    if size_B <= SMALL_B:
        devices.put(source, 0, payload(key, 0, whole))
    else:
        devices.fill(source, key.word, 0, whole // WORD_B)
    devices.move("push" if step % 2 else "store16", source, GUARD_B, theirs, GUARD_B, size_B)
    channel.tell(f"written-{name}")
