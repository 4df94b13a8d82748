"""Runs inside the guest: bytes from one GPU's memory to another's by the GPU's own engine, and through the processor as a control.

The GPU is QEMU's `bochs-display` with 16 MB of memory behind BAR 0; its engine is `edu`, the card's second function. What the engine sends is
what a GPU sends to a peer: memory requests to addresses inside the other card's BAR, which the IOMMU sees with the engine's address.

In:      addresses of two cards, source first.
Out:     Copied: what the engine said, and what the bytes say.
Source:  QEMU `docs/specs/edu.rst`.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

from msgspec import Struct

DEVICES = Path("/sys/bus/pci/devices")
SIZE_B = 256
BUFFER = 0x40000  # the engine's own memory, in its address space
FROM, TO, COUNT, COMMAND = 0x80, 0x88, 0x90, 0x98  # registers, bytes
START, OUTWARD = 1, 2
DEADLINE_S = 5.0


class Copied(Struct):
    """right: every byte arrived. done: the engine says that it has read and written. poison: no byte of the destination has changed."""

    src: str
    dst: str
    done: bool
    right: bool
    poison: bool
    staged: bool


def engine_of(gpu: str) -> str:
    return f"{gpu[:-1]}1"


def bar(bdf: str) -> tuple[int, int]:
    """First and last address of BAR 0."""
    start, end, _ = (DEVICES / bdf / "resource").read_text().splitlines()[0].split()
    return int(start, 16), int(end, 16)


def switch_on(bdf: str, *, master: bool = False) -> None:
    """What a driver does when it binds: the device may answer to its memory addresses, and send requests of its own."""
    (DEVICES / bdf / "enable").write_text("1")
    fd = os.open(DEVICES / bdf / "config", os.O_RDWR)
    try:
        (command,) = struct.unpack("<H", os.pread(fd, 2, 4))
        os.pwrite(fd, struct.pack("<H", command | 2 | (4 if master else 0)), 4)
    finally:
        os.close(fd)


class Memory:
    """BAR 0 of a function, in accesses of 32 bits."""

    def __init__(self, bdf: str, size_B: int = 4096) -> None:
        fd = os.open(DEVICES / bdf / "resource0", os.O_RDWR | os.O_SYNC)
        try:
            self.words = memoryview(mmap.mmap(fd, size_B)).cast("I")
        finally:
            os.close(fd)

    def read(self, size_B: int) -> bytes:
        return struct.pack(f"<{size_B // 4}I", *(self.words[i] for i in range(size_B // 4)))

    def write(self, data: bytes) -> None:
        for i, word in enumerate(struct.unpack(f"<{len(data) // 4}I", data)):
            self.words[i] = word


def _send(engine: Memory, src: int, dst: int, how: int) -> bool:
    for register, value in ((FROM, src), (TO, dst), (COUNT, SIZE_B)):
        engine.words[register // 4] = value & 0xFFFFFFFF  # two halves, the low one first
        engine.words[register // 4 + 1] = value >> 32
    engine.words[COMMAND // 4] = START | how
    end = time.monotonic() + DEADLINE_S
    while engine.words[COMMAND // 4] & START:
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def copy(src: str, dst: str) -> Copied:
    """Fresh bytes each time; the destination holds their complement before, so a byte that never came is wrong."""
    for bdf, master in ((src, False), (dst, False), (engine_of(src), True)):
        switch_on(bdf, master=master)
    source, target, engine = Memory(src), Memory(dst), Memory(engine_of(src))
    assert engine.words[0] & 0xFF == 0xED, "this is no edu device"
    want = os.urandom(SIZE_B)
    poison = bytes(byte ^ 0xFF for byte in want)
    source.write(want)
    target.write(source.read(SIZE_B))
    staged = target.read(SIZE_B) == want
    target.write(poison)
    done = _send(engine, bar(src)[0], BUFFER, 0) and _send(engine, BUFFER, bar(dst)[0], OUTWARD)
    got = target.read(SIZE_B)
    return Copied(src, dst, done, got == want, got == poison, staged)
