"""What a probe needs of GPUs. Two houses give it: `probe.gpu.cuda` (torch, NVIDIA and AMD) and `sim.virtual` (CPU, links from a scenario).

A Devices object lives in one process. All calls wait until the GPU is done, unless they say otherwise. Numbers of GPUs are those of `cards()`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from linkproof.measured import Card

U8 = NDArray[np.uint8]

# how `Devices.move` can carry bytes; a subset of the mode names
HOWS = ("staged", "push", "pull", "store", "store16", "load", "load16")
KINDS = ("plain", "pool", "vmm")  # allocators: the framework's own, stream-ordered pool, virtual memory API
HANDLES = ("ipc", "ipc_vmm")


class NotPossible(Exception):
    """This machine cannot do that at all (no peer access, no such allocator): the case is `refused`. text: a template, with its values."""

    def __init__(self, text: str, **args: str) -> None:
        super().__init__(text.format(**args))
        self.text, self.values = text, args


class NotTested(NotPossible):
    """It could not be tried (a library is missing, AMD): the case is `not_tested`."""


class DeviceLost(Exception):
    """A GPU does not answer any more, or its context is broken for good: this process is of no further use."""


class Buffer(Protocol):
    """Memory of one GPU. address_B: where it begins (0 if it cannot be known); its alignment matters for pages."""

    gpu: int
    size_B: int
    address_B: int

    def free(self) -> None: ...


class Devices(Protocol):
    backend: str  # cuda hip virtual
    loaded: bool  # set by whoever puts several pairs under load at once

    def cards(self) -> list[Card]: ...

    def peer_claimed(self, src: int, dst: int) -> bool | None:
        """What the driver says: may src's memory be reached from dst and back. None: not known."""

    # ------------------------------------------------ memory
    def alloc(self, gpu: int, size_B: int, kind: str = "plain") -> Buffer:
        """Raises NotPossible, MemoryError."""

    def put(self, buffer: Buffer, at_B: int, data: U8) -> None:
        """Host -> owner, by the owner's own copy engine: the path that is trusted, and that the control tests."""

    def get(self, buffer: Buffer, at_B: int, size_B: int) -> U8:
        """Owner -> host: the owner's own read-back."""

    def fill(self, buffer: Buffer, key_word: int, first: int, count: int, invert: bool = False) -> None:
        """A kernel of the owner writes `payload.words` (inverted: poison) to words first .. first+count of its own memory."""

    def wrong(self, buffer: Buffer, key_word: int, first: int, count: int, invert: bool = False) -> tuple[int, int]:
        """A kernel of the owner compares its own memory: (wrong words, number of the first one or -1)."""

    # ------------------------------------------------ the paths on trial
    def move(self, how: str, src: Buffer, src_at_B: int, dst: Buffer, dst_at_B: int, size_B: int, wait: bool = True) -> None:
        """Bytes from one GPU's memory to the other's. store and store16 run on src's GPU, load and load16 on dst's. Raises NotPossible."""

    def look(self, gpu: int, buffer: Buffer, at_B: int, size_B: int) -> U8:
        """What `gpu` sees of another GPU's memory by kernel loads (for `views`: the writer reads back what it wrote)."""

    def add(self, gpu: int, buffer: Buffer, times: int) -> int:
        """`times` atomic additions of 1 by a kernel of `gpu` on the first 4 bytes of the buffer, while its owner does the same.
        Gives the sum that its owner reads (2 * times if atomics hold). Raises NotPossible."""

    def messages(self, a: Buffer, b: Buffer, rounds: int, size_B: int, deadline_s: float, key_word: int) -> tuple[int, int]:
        """Two resident kernels, one on each buffer's GPU, pass a message of size_B to and fro, `rounds` times, data first and then a flag
        (release, acquire, system scope). Gives (rounds done, rounds whose data were not there when the flag was). Raises NotPossible."""

    def sync(self) -> None:
        """Wait for everything that `move(wait=False)` began. Raises DeviceLost."""

    def timed_s(self, how: str, pairs: list[tuple[Buffer, Buffer]], size_B: int, times: int) -> float:
        """Seconds for `times` transfers on each of these pairs, all pairs at once, by the GPU's clock where there is one: from the moment
        at which the first may begin and all are asked for."""

    # ------------------------------------------------ between processes
    def share(self, buffer: Buffer, handle: str) -> bytes:
        """handle: one of HANDLES. What another process on this machine needs to open it. Raises NotPossible."""

    def open(self, gpu: int, shared: bytes, handle: str) -> Buffer:
        """Another process's buffer, mapped for `gpu`. Raises NotPossible."""

    def close(self) -> None: ...


class Sides(Protocol):
    """What the two processes of `flags_ipc` need: each runs one half of `messages`. Both owners clear their flag before either half begins."""

    def clear_flag(self, buffer: Buffer, size_B: int) -> None: ...

    def message_side(
        self, mine: Buffer, theirs: Buffer, begins: bool, rounds: int, size_B: int, deadline_s: float, key_word: int
    ) -> tuple[int, int]:
        """(rounds done, messages that came to this side without their data)"""
