"""The memory of virtual GPUs: one file per allocation in a folder, so that every process of a run sees the same machine.

In:      the folder, number and size of each GPU's memory.
Out:     Block: an allocation, mapped; a second process opens the same one by its file's name.
Raises:  MemoryError when the GPU is full; FileNotFoundError when a block is gone.

Whoever has a block open holds a lock on its file; the kernel lets go when the process ends, however it ends. So what a killed worker
left behind is found and given back at the next allocation, as a driver does it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GRANULE_B = 2 << 20  # allocations begin on such an address


class Block:
    """Memory of one GPU. data: its bytes. Whoever made it frees it for all; whoever opened it only lets go."""

    def __init__(self, path: Path, made: bool) -> None:
        gpu, address, size, _ = path.name.split("-")
        self.path, self.made = path, made
        self.gpu, self.address_B, self.size_B = int(gpu), int(address, 16), int(size)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        self.data: NDArray[np.uint8] = np.frombuffer(mmap.mmap(self._fd, max(8, -(-self.size_B // 8) * 8)), np.uint8)

    def free(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self.data = np.zeros(0, np.uint8)
            if self.made:
                self.path.unlink(missing_ok=True)


def _abandoned(path: Path) -> bool:
    """Nobody has it open any more."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def make(folder: Path, gpu: int, size_B: int, memory_B: int, reserved_B: int) -> Block:
    """At the lowest address that is free. Raises MemoryError."""
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        address, taken = -(-reserved_B // GRANULE_B) * GRANULE_B, []
        for path in folder.glob(f"{gpu}-*"):
            if _abandoned(path):
                path.unlink(missing_ok=True)
                continue
            _, begin, size, _ = path.name.split("-")
            taken.append((int(begin, 16), int(size)))
        for begin_B, length_B in sorted(taken):
            if address + size_B <= begin_B:
                break
            address = max(address, -(-(begin_B + length_B) // GRANULE_B) * GRANULE_B)
        if address + size_B > memory_B:
            raise MemoryError(f"GPU {gpu}: {size_B} bytes do not fit")
        path = folder / f"{gpu}-{address:012x}-{size_B}-{os.getpid()}"
        with path.open("wb") as file:
            file.truncate(max(8, -(-size_B // 8) * 8))
        return Block(path, made=True)


def sweep_up(folder: Path) -> None:
    """Remove every block; only when nobody uses the machine any more."""
    for path in folder.glob("[0-9]*-*"):
        with suppress(FileNotFoundError):
            path.unlink()
