"""Wrong ways for bytes to arrive: to prove that the checks would see them (self-test), and to draw broken machines (`linkproof.sim`).

In:      `Fault`s (a table, or a text as `shift:16,pairs=0->1,only_under_load`), transfers.
Out:     `deliver` writes into the destination what would arrive. Same faults, same seed, same transfers: same bytes.
Unknown: a fault cannot act where its mechanism finds no room: two pages to swap, memory behind the end to write on to.
Raises:  UsageError for a text or a table that is no fault.
Source:  the failures that each kind stands for are told in the scenarios of `linkproof.sim`.

A pair is the way of the data, whoever moves them: `0->1` is a push by 0 and a pull or load by 1. A fault that names no modes is one of
the direct path: it touches neither what goes through host memory (`staged`) nor what goes over a network (`net`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import msgspec
import numpy as np
from msgspec import Struct

from linkproof.errors import UsageError
from linkproof.probe.devices import HOWS, U8
from linkproof.probe.payload import MAGIC, Key, payload

# kind -> (what `value` is, its default)
KINDS: dict[str, tuple[str, float]] = {
    "zero": ("", 0),
    "drop": ("", 0),  # nothing arrives: a posted write that is lost
    "stale": ("", 0),  # what was sent before arrives again
    "shift": ("bytes, signed: at a place stands what belongs that far behind it", 16),
    "page_swap": ("bytes of a page", 4096),
    "tail": ("bytes missing at the end; 0: a quarter", 0),
    "bit": ("number of the bit that is flipped in one 64-bit word", 14),
    "rare": ("share of words with a flipped bit", 1e-6),
    "neighbour": ("bytes written on beyond the end", 64),
    "torn": ("bytes that stay together where a 128-byte line is torn", 4),
    "reorder": ("", 0),  # a flag is seen before the data it stands for; plain copies are right
    "hang": ("", 0),
    "slow": ("how many times slower", 4),  # right, and slow
    "mirror": ("", 0),  # the writer sees its bytes, the owner does not
    "atomics_lost": ("", 0),  # copies are right
}
PROTOCOLS = ("LL", "LL128", "Simple")
MODES = (*HOWS, "flags", "atomics", "shm", "net", *PROTOCOLS)
NOT_DIRECT = ("staged", "shm", "net")
LINE_B = 128
LOST = ("drop", "mirror", "atomics_lost")  # what loses stores loses atomic additions


class Fault(Struct, frozen=True, forbid_unknown_fields=True):
    """One fault. value: see KINDS. modes: of MODES, () every direct one. pairs: `0->1`, () every pair.

    from_size_B: only transfers of at least that size. from_address_B: only bytes at that address of the destination or above.
    probability: of acting, per transfer. after: transfers that pass first.
    """

    kind: str
    value: float | None = None
    modes: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    only_under_load: bool = False
    from_size_B: int = 0
    from_address_B: int = 0
    probability: float = 1.0
    after: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"fault kind {self.kind!r}: known are {', '.join(KINDS)}")
        if unknown := [m for m in self.modes if m not in MODES]:
            raise ValueError(f"fault mode {unknown[0]!r}: known are {', '.join(MODES)}")
        for pair in self.pairs:
            src, arrow, dst = pair.partition("->")
            if not (arrow and src.isdigit() and dst.isdigit()):
                raise ValueError(f"fault pair {pair!r}: is written as 0->1")
        if not 0 < self.probability <= 1:
            raise ValueError(f"fault probability {self.probability}: above 0, up to 1")

    @property
    def amount(self) -> float:
        return KINDS[self.kind][1] if self.value is None else self.value

    def may_touch(self, names: Sequence[str], src: int, dst: int, loaded: bool) -> bool:
        """names: all that this transfer is (`store16`, and `LL` if it is one of NCCL's)."""
        by_mode = any(n in self.modes for n in names) if self.modes else not any(n in NOT_DIRECT for n in names)
        return by_mode and (not self.pairs or f"{src}->{dst}" in self.pairs) and (loaded or not self.only_under_load)


def parse(text: str) -> Fault:
    """`kind[:value][,field=value][,only_under_load]`; several modes or pairs are joined by `+`. Raises UsageError."""
    head, *rest = text.split(",")
    kind, colon, value = head.partition(":")
    try:
        table: dict[str, Any] = {"kind": kind.strip()}
        if colon:
            table["value"] = float(value)
        for piece in rest:
            name, equals, said = piece.strip().partition("=")
            table[name] = True if not equals else said.split("+") if name in ("modes", "pairs") else said
        return msgspec.convert(table, Fault, strict=False)
    except ValueError as e:  # msgspec.ValidationError is one
        raise UsageError(
            "no-such-fault",
            (f"{text!r}: {e}", f"{text!r}：{e}"),
            ("nothing was tried", "没有进行任何测试"),
            ("write it as kind:value, for example shift:16 or zero,pairs=0->1", "请写成 kind:value，例如 shift:16 或 zero,pairs=0->1"),
        ) from None


def hang() -> NoReturn:
    """Until somebody else ends this process."""
    while True:
        time.sleep(60)


def deliver(fault: Fault | None, memory: U8, at_B: int, data: U8, earlier: U8 | None, rng: np.random.Generator, address_B: int = 0) -> None:
    """Write into the destination what arrives of a transfer.

    memory:    the whole destination buffer, written in place; address_B: where it begins in its owner's memory (pages lie there).
    at_B:      where the transfer goes. data: what was sent. earlier: what was sent before on this path; None: nothing, so stale is nothing.
    """
    kind, amount, n = fault.kind if fault else "", fault.amount if fault else 0.0, len(data)
    here = memory[at_B : at_B + n]
    if kind == "hang":
        hang()
    elif kind == "zero":
        here[:] = 0
    elif kind in ("drop", "mirror"):
        pass
    elif kind == "stale":
        if earlier is not None:
            here[: len(earlier)] = earlier[:n]
    elif kind == "shift":
        far = int(amount)
        if 0 <= far < n:
            here[: n - far] = data[far:]
        elif -n < far < 0:
            here[-far:] = data[: n + far]
    elif kind == "tail":
        missing = int(amount) or (n + 3) // 4
        here[: max(0, n - missing)] = data[: max(0, n - missing)]
    elif kind == "torn":
        _torn(here, data, int(amount), rng)
    else:
        here[:] = data
        if kind == "page_swap":
            _swap_pages(here, data, int(amount), address_B + at_B, rng)
        elif kind == "bit":
            _flip(memory, at_B, n, 1, int(amount), rng)
        elif kind == "rare":
            _flip(memory, at_B, n, int(rng.binomial(max(1, n // 8), amount)), None, rng)
        elif kind == "neighbour":
            behind = memory[at_B + n : at_B + n + int(amount)]
            behind[:] = np.resize(data, len(behind))


def _swap_pages(here: U8, data: U8, page: int, address_B: int, rng: np.random.Generator) -> None:
    first = -address_B % page
    pages = (len(data) - first) // page
    if pages < 2:
        return
    one = int(rng.integers(pages))
    other = (one + 1 + int(rng.integers(pages - 1))) % pages
    a, b = first + one * page, first + other * page
    here[a : a + page], here[b : b + page] = data[b : b + page], data[a : a + page]


def _flip(memory: U8, at_B: int, n: int, words: int, bit: int | None, rng: np.random.Generator) -> None:
    """Flip one bit in each of some words. Words are counted from the start of the memory; a transfer without a whole one: in any byte."""
    first, last = -(-at_B // 8), (at_B + n) // 8
    for _ in range(words):
        place = int(rng.integers(64)) if bit is None else bit % 64
        at = int(rng.integers(first, last)) * 8 + place // 8 if last > first else at_B + int(rng.integers(n))
        memory[at] ^= 1 << place % 8


def _torn(here: U8, data: U8, together: int, rng: np.random.Generator) -> None:
    """One line in eight, and at least one, gets only some of its pieces; what does not arrive stays as it was."""
    lines = -(-len(data) // LINE_B)
    torn = rng.random(lines) < 1 / 8
    torn[int(rng.integers(lines))] = True
    missing = np.zeros((lines, LINE_B), np.bool_)
    for line in np.flatnonzero(torn):
        pieces = rng.random(-(-LINE_B // together)) < 0.5
        pieces[: max(1, min(LINE_B, len(data)) // together)][int(rng.integers(max(1, min(LINE_B, len(data)) // together)))] = True
        missing[line] = np.repeat(pieces, together)[:LINE_B]
    kept = ~missing.reshape(-1)[: len(data)]
    here[kept] = data[kept]


class Injector:
    """The faults between the GPUs of one process, with their memory: how many transfers, what was sent before. The first that acts, acts."""

    def __init__(self, faults: Sequence[Fault], seed: int = 0) -> None:
        self.faults = tuple(faults)
        self.loaded = False
        self.rng = np.random.default_rng(seed)
        self._passed = [0] * len(self.faults)
        self._keeps = any(f.kind == "stale" for f in self.faults)
        self._sent: dict[tuple[int, int], tuple[U8 | None, U8]] = {}  # of a pair: what was sent before the last, and the last

    def acting(self, names: Sequence[str], src: int, dst: int, size_B: int = 0, end_B: int = 0, *, counted: bool = True) -> Fault | None:
        """The fault that acts on this transfer. end_B: address behind its last byte; 0: not told, and no address keeps it away."""
        for i, fault in enumerate(self.faults):
            if not fault.may_touch(names, src, dst, self.loaded) or size_B < fault.from_size_B or 0 < end_B <= fault.from_address_B:
                continue
            if counted:
                self._passed[i] += 1
                if self._passed[i] <= fault.after or (fault.probability < 1 and self.rng.random() >= fault.probability):
                    continue
            return fault
        return None

    def carry(self, names: Sequence[str], src: int, dst: int, memory: U8, at_B: int, data: U8, address_B: int = 0) -> Fault | None:
        """One transfer, with the fault that acts on it, if any; that fault."""
        fault = self.acting(names, src, dst, len(data), address_B + at_B + len(data))
        self.deliver(fault, src, dst, memory, at_B, data, address_B)
        return fault

    def deliver(self, fault: Fault | None, src: int, dst: int, memory: U8, at_B: int, data: U8, address_B: int = 0) -> None:
        earlier = self._before(src, dst, data) if self._keeps else None
        right = min(len(data), max(0, fault.from_address_B - address_B - at_B)) if fault else 0
        if right:  # below the address where the fault begins
            memory[at_B : at_B + right] = data[:right]
        if right < len(data):
            deliver(fault, memory, at_B + right, data[right:], None if earlier is None else earlier[right:], self.rng, address_B)

    def _before(self, src: int, dst: int, data: U8) -> U8 | None:
        """What was sent before these data; the same data sent again are not before themselves."""
        before, last = self._sent.get((src, dst), (None, None))
        if last is None or not np.array_equal(last, data):
            self._sent[src, dst] = before, last = last, data.copy()
        return before

    def slowness(self, names: Sequence[str], src: int, dst: int) -> float:
        """How many times slower this way is; a hang never comes back."""
        fault = self.acting(names, src, dst, counted=False)
        if fault is not None and fault.kind == "hang":
            hang()
        return fault.amount if fault is not None and fault.kind == "slow" else 1.0


class Mirror:
    """What writers believe they wrote (kind `mirror`): each sees its own bytes over zeros, the owner's memory has none of them."""

    KEPT = 16

    def __init__(self) -> None:
        self._written: list[tuple[int, object, int, U8]] = []

    def write(self, gpu: int, buffer: object, at_B: int, data: U8) -> None:
        self._written = [*self._written[1 - self.KEPT :], (gpu, buffer, at_B, data.copy())]

    def view(self, gpu: int, buffer: object, at_B: int, size_B: int) -> U8:
        out = np.zeros(size_B, np.uint8)
        for writer, where, begin, data in self._written:
            lo, hi = max(begin, at_B), min(begin + len(data), at_B + size_B)
            if writer == gpu and where is buffer and lo < hi:
                out[lo - at_B : hi - at_B] = data[lo - begin : hi - begin]
        return out


# ---------------------------------------------------------------- messages with flags, carried by moves


def pass_messages(
    carry: Callable[[int, int, U8], None],
    get: Callable[[int, int, int], U8],
    late: Callable[[int], bool],
    rounds: int,
    size_B: int,
    deadline_s: float,
    key_word: int,
) -> tuple[int, int]:
    """The flag protocol of `Devices.messages`, from two steps that any machine has: (rounds done, rounds whose data came behind their flag).

    carry(side, at_B, data): from the other side to this one (0 or 1). get(side, at_B, size_B): what that side reads. Each message has data
    of its own (words of `key_word`, on and on), then a flag that holds its number. late(side): the flag overtakes the data, so the receiver
    reads when it sees the flag, and finds the data of before. A flag that never comes ends this at the deadline.
    """
    key = Key(key_word ^ MAGIC << 56, 0, 0, 0)  # the Key with that word
    count, flag_at_B = -(-size_B // 8), -(-size_B // 128) * 128
    until, bad = time.monotonic() + deadline_s, 0
    for round_ in range(rounds):
        torn = False
        for side in (1, 0):
            number = 2 * round_ + 1 - side
            data = payload(key, number * count * 8, size_B)
            flag = np.array([number + 1], np.uint64).view(np.uint8)
            overtaken = late(side)
            if not overtaken:
                carry(side, 0, data)
            carry(side, flag_at_B, flag)
            if not np.array_equal(get(side, flag_at_B, 8), flag):
                time.sleep(max(0.0, until - time.monotonic()))  # spins until its watchdog ends it
                return round_, bad
            torn = torn or not np.array_equal(get(side, 0, size_B), data)
            if overtaken:
                carry(side, 0, data)
        bad += torn
        if time.monotonic() > until:
            return round_ + 1, bad
    return rounds, bad
