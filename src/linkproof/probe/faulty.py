"""Devices with a fault put between, to prove that the checks would see it: on virtual GPUs and on real ones, on one card too.

In:      any Devices, a Fault (faults.py).
Out:     the same Devices, that deliver what the fault makes of each transfer.
Raises:  what the Devices raise.
"""

from __future__ import annotations

import time

from linkproof.measured import Card
from linkproof.probe.devices import U8, Buffer, Devices
from linkproof.probe.faults import LOST, Fault, Injector, Mirror, hang, pass_messages


class Faulty:
    """Devices with a fault put between: everything is done for real first, then the target gets what the fault makes of it.

    So a check runs on a real GPU, even on one with itself, exactly as without a fault, and must see the difference. `loaded` is set by
    whoever puts all pairs under load. Addresses of `from_address_B` and pages count from the start of a buffer: where it lies in the
    memory of a real card is not known.
    """

    ROOM_B = 8192  # behind a transfer, that a fault may spoil

    def __init__(self, devices: Devices, fault: Fault, seed: int = 0) -> None:
        self.devices, self.fault = devices, fault
        self.backend = devices.backend
        self.injector = Injector((fault,), seed)
        self.mirror = Mirror()

    @property
    def loaded(self) -> bool:
        return self.injector.loaded

    @loaded.setter
    def loaded(self, value: bool) -> None:
        self.injector.loaded = value

    # ---- what a fault of a link does not touch
    def cards(self) -> list[Card]:
        return self.devices.cards()

    def peer_claimed(self, src: int, dst: int) -> bool | None:
        return self.devices.peer_claimed(src, dst)

    def alloc(self, gpu: int, size_B: int, kind: str = "plain") -> Buffer:
        return self.devices.alloc(gpu, size_B, kind)

    def put(self, buffer: Buffer, at_B: int, data: U8) -> None:
        self.devices.put(buffer, at_B, data)

    def get(self, buffer: Buffer, at_B: int, size_B: int) -> U8:
        return self.devices.get(buffer, at_B, size_B)

    def fill(self, buffer: Buffer, key_word: int, first: int, count: int, invert: bool = False) -> None:
        self.devices.fill(buffer, key_word, first, count, invert)

    def wrong(self, buffer: Buffer, key_word: int, first: int, count: int, invert: bool = False) -> tuple[int, int]:
        return self.devices.wrong(buffer, key_word, first, count, invert)

    def sync(self) -> None:
        self.devices.sync()

    def share(self, buffer: Buffer, handle: str) -> bytes:
        return self.devices.share(buffer, handle)

    def open(self, gpu: int, shared: bytes, handle: str) -> Buffer:
        return self.devices.open(gpu, shared, handle)

    def close(self) -> None:
        self.devices.close()

    # ---- the paths on trial
    def move(self, how: str, src: Buffer, src_at_B: int, dst: Buffer, dst_at_B: int, size_B: int, wait: bool = True) -> None:
        """With a fault it always waits: what it spoils must be there."""
        fault = self.injector.acting((how,), src.gpu, dst.gpu, size_B, dst_at_B + size_B)
        if fault is None and self.fault.kind != "stale":
            return self.devices.move(how, src, src_at_B, dst, dst_at_B, size_B, wait)
        lo = dst_at_B // 8 * 8
        hi = min(dst.size_B, dst_at_B + size_B + self.ROOM_B)
        memory = self.devices.get(dst, lo, hi - lo).copy()
        data = self.devices.get(src, src_at_B, size_B).copy()
        self.devices.move(how, src, src_at_B, dst, dst_at_B, size_B, True)
        if fault is not None and fault.kind == "mirror":
            self.mirror.write(src.gpu, dst, dst_at_B, data)
        self.injector.deliver(fault, src.gpu, dst.gpu, memory, dst_at_B - lo, data, lo)
        self.devices.put(dst, lo, memory)
        return None

    def look(self, gpu: int, buffer: Buffer, at_B: int, size_B: int) -> U8:
        seen = self.devices.look(gpu, buffer, at_B, size_B)
        fault = self.injector.acting(("store16", "store"), gpu, buffer.gpu, counted=False)
        return self.mirror.view(gpu, buffer, at_B, size_B) if fault is not None and fault.kind == "mirror" else seen

    def add(self, gpu: int, buffer: Buffer, times: int) -> int:
        found = self.devices.add(gpu, buffer, times)
        fault = self.injector.acting(("atomics",), gpu, buffer.gpu)
        if fault is not None and fault.kind == "hang":
            hang()
        return found - times if fault is not None and fault.kind in LOST else found

    def messages(self, a: Buffer, b: Buffer, rounds: int, size_B: int, deadline_s: float, key_word: int) -> tuple[int, int]:
        """Where a fault of the flags is put between, the messages go by moves and not by resident kernels: what is proven is that a check
        sees what such a machine shows, not that the kernels of this one are right."""
        there = self.injector.acting(("flags",), a.gpu, b.gpu, counted=False), self.injector.acting(("flags",), b.gpu, a.gpu, counted=False)
        fault = there[0] or there[1]
        if fault is None or fault.kind in ("slow", "atomics_lost"):
            return self.devices.messages(a, b, rounds, size_B, deadline_s, key_word)
        if fault.kind == "hang":
            time.sleep(deadline_s)  # two kernels that wait for each other until their watchdog ends them
            return 0, 0
        sides = (a, b)

        def carry(side: int, at_B: int, data: U8) -> None:
            acting = None
            if fault.kind != "reorder":
                acting = self.injector.acting(("flags",), sides[1 - side].gpu, sides[side].gpu, len(data), at_B + len(data))
            memory = self.devices.get(sides[side], at_B, len(data)).copy()
            self.injector.deliver(acting, sides[1 - side].gpu, sides[side].gpu, memory, 0, data, at_B)
            self.devices.put(sides[side], at_B, memory)

        def get(side: int, at_B: int, size_B: int) -> U8:
            return self.devices.get(sides[side], at_B, size_B)

        def late(side: int) -> bool:
            acting = self.injector.acting(("flags",), sides[1 - side].gpu, sides[side].gpu)
            return acting is not None and acting.kind == "reorder"

        return pass_messages(carry, get, late, rounds, size_B, deadline_s, key_word)

    def timed_s(self, how: str, pairs: list[tuple[Buffer, Buffer]], size_B: int, times: int) -> float:
        """A slow way is timed for as many transfers more."""
        slowest = max((self.injector.slowness((how,), s.gpu, d.gpu) for s, d in pairs), default=1.0)
        return self.devices.timed_s(how, pairs, size_B, max(1, round(times * slowest)))
