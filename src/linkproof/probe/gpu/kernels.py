"""Kernels of the probe, in Triton: make and compare the payload at memory speed, store and load across a link, pass messages, add.

In:      addresses as plain integers, turned into pointers here: Triton would refuse the pointer of another GPU or process.
Out:     launchers for the current stream of the current device; none of them waits.
Unknown: 64-bit scalars travel as two signed halves: Triton types an integer by its value, and would build one kernel per magnitude.
Raises:  whatever Triton raises if it cannot build: `cuda.py` turns that into NotTested.
Source:  PTX ISA, memory consistency model, for the flags. The words are those of payload.py; a test holds both equal.

Runs in Triton's interpreter on a CPU, but for `pass_messages` (PTX).
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from linkproof.probe.payload import MULTIPLIER

# measured on an H200 by bench/fill_verify.py: blocks of BLOCK words, LOOPS of them per program
FILL = {"BLOCK": 4096, "LOOPS": 1, "num_warps": 8}
VERIFY = {"BLOCK": 2048, "LOOPS": 4, "num_warps": 4}
CARRY = {"BLOCK": 4096, "num_warps": 8}
WORDS_PER_LAUNCH, BYTES_PER_LAUNCH = 1 << 30, 1 << 30  # counts are 32-bit scalars
LANES = 128  # threads of a message kernel: one element of a tensor of LANES is one thread
FLAG_B = 128  # room behind a message; the flag has a line of its own

_MULTIPLIER = tl.constexpr(MULTIPLIER)
_ALL_ONES = tl.constexpr((1 << 64) - 1)


def halves(value: int) -> tuple[int, int]:
    """Low and high 32 bits, each as a signed integer."""
    low, high = value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF
    return low - (low >> 31 << 32), high - (high >> 31 << 32)


@triton.jit
def _whole(low, high):
    return (high.to(tl.uint64) << 32) | (low.to(tl.uint64) & 0xFFFFFFFF)


@triton.jit
def _word(number, key, INVERT: tl.constexpr):
    x = (number.to(tl.uint64) ^ key) * _MULTIPLIER
    x = x ^ (x >> 32)
    if INVERT:
        x = x ^ _ALL_ONES
    return x


@triton.jit
def _pointer(address, TYPE: tl.constexpr, ALIGN: tl.constexpr):
    """ALIGN: what the address is a multiple of; threads move as many bytes at a time, 16 at most."""
    return tl.multiple_of(address.to(tl.int64).to(tl.pointer_type(TYPE)), ALIGN)


# ---------------------------------------------------------------- data


@triton.jit(do_not_specialize=["at", "key_low", "key_high", "first_low", "first_high", "count"])
def fill_words(
    at, key_low, key_high, first_low, first_high, count, INVERT: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr, LOOPS: tl.constexpr
):
    """Words first .. first+count, to the address `at` on. Whole blocks go without a mask: only then are the stores 16 bytes wide."""
    key, first = _whole(key_low, key_high), _whole(first_low, first_high)
    base, lane = _pointer(at, tl.uint64, ALIGN), tl.arange(0, BLOCK)
    begin = tl.program_id(0) * (BLOCK * LOOPS)
    for _ in range(LOOPS):
        index = begin + lane
        word = _word(first + index.to(tl.uint64), key, INVERT)
        if begin + BLOCK <= count:
            tl.store(base + index, word)
        else:
            tl.store(base + index, word, mask=index < count)
        begin += BLOCK


@triton.jit(do_not_specialize=["at", "key_low", "key_high", "first_low", "first_high", "count"])
def compare_words(
    at,
    found,
    key_low,
    key_high,
    first_low,
    first_high,
    count,
    INVERT: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
    LOOPS: tl.constexpr,
):
    """found[0] += wrong words, found[1] = min(number of a wrong word). All differences are collected first; only who has some looks again."""
    key, first = _whole(key_low, key_high), _whole(first_low, first_high)
    base, lane = _pointer(at, tl.uint64, ALIGN), tl.arange(0, BLOCK)
    start = tl.program_id(0) * (BLOCK * LOOPS)
    begin, different = start, tl.zeros([BLOCK], tl.uint64)
    for _ in range(LOOPS):
        index = begin + lane
        word = _word(first + index.to(tl.uint64), key, INVERT)
        if begin + BLOCK <= count:
            different = different | (tl.load(base + index) ^ word)
        else:
            seen = tl.load(base + index, mask=index < count, other=0)
            different = different | tl.where(index < count, seen ^ word, tl.zeros_like(word))
        begin += BLOCK
    if tl.max((different != 0).to(tl.int32), axis=0) != 0:
        begin, bad = start, tl.zeros([BLOCK], tl.int32)
        lowest = tl.full([BLOCK], 0x7FFFFFFFFFFFFFFF, tl.int64)
        for _ in range(LOOPS):
            index = begin + lane
            seen = tl.load(base + index, mask=index < count, other=0)
            number = first + index.to(tl.uint64)
            wrong = (seen != _word(number, key, INVERT)) & (index < count)
            bad += wrong.to(tl.int32)
            lowest = tl.minimum(lowest, tl.where(wrong, number.to(tl.int64), lowest))
            begin += BLOCK
        tl.atomic_add(found, tl.sum(bad, axis=0).to(tl.int64))
        tl.atomic_min(found + 1, tl.min(lowest, axis=0))


def fill(at: int, key_word: int, first: int, count: int, invert: bool, shape: dict[str, int] | None = None) -> None:
    """Words first .. first+count, the first of them at address `at`."""
    shape, align = shape or FILL, 16 if at % 16 == 0 else 8
    for begin in range(0, count, WORDS_PER_LAUNCH):
        n = min(WORDS_PER_LAUNCH, count - begin)
        grid = (triton.cdiv(n, shape["BLOCK"] * shape["LOOPS"]),)
        fill_words[grid](at + begin * 8, *halves(key_word), *halves(first + begin), n, INVERT=invert, ALIGN=align, **shape)


def compare(at: int, found: object, key_word: int, first: int, count: int, invert: bool, shape: dict[str, int] | None = None) -> None:
    """found: tensor of two int64 on the same GPU, (0, 2^63 - 1) before."""
    shape, align = shape or VERIFY, 16 if at % 16 == 0 else 8
    for begin in range(0, count, WORDS_PER_LAUNCH):
        n = min(WORDS_PER_LAUNCH, count - begin)
        grid = (triton.cdiv(n, shape["BLOCK"] * shape["LOOPS"]),)
        compare_words[grid](at + begin * 8, found, *halves(key_word), *halves(first + begin), n, INVERT=invert, ALIGN=align, **shape)


# ---------------------------------------------------------------- across a link


@triton.jit(do_not_specialize=["to", "source", "head", "units", "tail"])
def carry_lanes(to, source, head, units, tail, TYPE: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr):
    """head bytes, then `units` of ALIGN bytes, each one load and one store of a thread (as lanes of TYPE), then tail bytes."""
    lanes = units * (ALIGN * 8 // TYPE.primitive_bitwidth)  # the compiler sees that no unit is cut: a mask does not narrow it
    if tl.program_id(0) == 0:
        byte = tl.arange(0, 16)
        end = head + lanes * (TYPE.primitive_bitwidth // 8)
        to8, source8 = _pointer(to, tl.uint8, 1), _pointer(source, tl.uint8, 1)
        tl.store(to8 + byte, tl.load(source8 + byte, mask=byte < head), mask=byte < head)
        tl.store(to8 + end + byte, tl.load(source8 + end + byte, mask=byte < tail), mask=byte < tail)
    begin = tl.program_id(0) * BLOCK
    index = begin + tl.arange(0, BLOCK)
    dst, src = _pointer(to + head, TYPE, ALIGN), _pointer(source + head, TYPE, ALIGN)
    tl.store(dst + index, tl.load(src + index, mask=index < lanes), mask=index < lanes)


def carry(to: int, source: int, size_B: int, width_B: int) -> None:
    """size_B bytes from address to address, width_B (4 or 16) at a time; less where the two addresses do not share that alignment."""
    width = next(w for w in (width_B, 4, 1) if w <= width_B and (to - source) % w == 0)
    for done in range(0, size_B, BYTES_PER_LAUNCH):
        n = min(BYTES_PER_LAUNCH, size_B - done)
        head = min(n, -(to + done) % width)
        units = (n - head) // width
        tail = n - head - units * width
        grid = (max(1, triton.cdiv(units * width // min(width, 4), CARRY["BLOCK"])),)
        lane = tl.uint8 if width == 1 else tl.int32
        carry_lanes[grid](to + done, source + done, head, units, tail, TYPE=lane, ALIGN=width, **CARRY)


@triton.jit(do_not_specialize=["times"])
def add_ones(at, times):
    for _ in range(times):
        tl.atomic_add(_pointer(at, tl.int32, 4), 1, sem="relaxed", scope="sys")


def add(at: int, times: int) -> None:
    """`times` additions of 1 at system scope, from many programs at once."""
    programs = next((n for n in range(min(times, 1024), 0, -1) if times % n == 0), 1)
    add_ones[(programs,)](at, times // programs, num_warps=1)


# ---------------------------------------------------------------- messages


@triton.jit
def _now_ns(lane):
    """One clock for all threads of the program, or they would not leave their loop together."""
    return tl.max(tl.inline_asm_elementwise("mov.u64 $0, %globaltimer;", "=l,r", [lane], dtype=tl.int64, is_pure=False, pack=1), axis=0)


@triton.jit
def _flag_is(address, lane):
    """Every thread acquires for itself; the least is what all agree on."""
    seen = tl.inline_asm_elementwise(
        "ld.acquire.sys.global.u32 $0, [$1];", "=r,l", [address + lane.to(tl.int64) * 0], dtype=tl.int32, is_pure=False, pack=1
    )
    return tl.min(seen, axis=0)


@triton.jit
def _raise_flag(address, lane, value):
    """After the barrier, thread 0 releases what all threads stored."""
    tl.debug_barrier()
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.eq.u32 p, $2, 0; @p st.release.sys.global.u32 [$1], $3; mov.u32 $0, 0; }",
        "=r,l,r,r",
        [address + lane.to(tl.int64) * 0, lane, value + lane * 0],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _send(to, flag, number, key, count, lane, INVERT: tl.constexpr, LANES: tl.constexpr):
    base = _pointer(to, tl.uint64, 8)
    for begin in range(0, count, LANES):
        index = begin + lane
        tl.store(base + index, _word(index, key ^ (number.to(tl.uint64) << 36), INVERT), mask=index < count)
    _raise_flag(flag, lane, number)


@triton.jit
def _receive(at, flag, number, key, count, lane, end_ns, INVERT: tl.constexpr, LANES: tl.constexpr):
    """(the flag came, words that differ)"""
    seen = _flag_is(flag, lane)
    alive = 1
    while (seen < number) & (alive == 1):
        alive = (_now_ns(lane) < end_ns).to(tl.int32)
        seen = _flag_is(flag, lane)
    bad = tl.zeros([LANES], tl.int32)
    base = _pointer(at, tl.uint64, 8)
    for begin in range(0, count, LANES):
        index = begin + lane
        word = tl.load(base + index, mask=index < count, other=0, volatile=True)
        bad += ((word != _word(index, key ^ (number.to(tl.uint64) << 36), INVERT)) & (index < count)).to(tl.int32)
    tl.debug_barrier()  # nobody may answer, and so have the data overwritten, before all have looked
    return (seen >= number).to(tl.int32), tl.sum(bad, axis=0)


@triton.jit(do_not_specialize=["begins", "rounds", "count", "key_low", "key_high", "wait_low", "wait_high"])
def pass_messages(
    mine, theirs, mine_flag, their_flag, result, begins, rounds, count, key_low, key_high, wait_low, wait_high, LANES: tl.constexpr
):
    """One side of the exchange, one program. Polls only its own memory, writes only the other's. result: [rounds done, rounds with bad data].

    The data of round r are the words of key ^ r << 36; answers are the inverse, so that a side cannot take its own for the other's.
    """
    lane = tl.arange(0, LANES)
    key = _whole(key_low, key_high)
    end_ns = _now_ns(lane) + _whole(wait_low, wait_high).to(tl.int64)
    number, going = 1, 1
    done, late = 0, 0
    while (number <= rounds) & (going == 1):
        if begins == 1:
            _send(theirs, their_flag, number, key, count, lane, False, LANES)
            going, bad = _receive(mine, mine_flag, number, key, count, lane, end_ns, True, LANES)
        else:
            going, bad = _receive(mine, mine_flag, number, key, count, lane, end_ns, False, LANES)
            if going == 1:
                _send(theirs, their_flag, number, key, count, lane, True, LANES)
        done += going
        late += ((bad != 0) & (going == 1)).to(tl.int32)
        number += 1
    tl.store(result, done)
    tl.store(result + 1, late)


def flag_at_B(size_B: int) -> int:
    """Where in a buffer the flag of messages of size_B lies: on a line of its own behind them."""
    return -(-size_B // FLAG_B) * FLAG_B


def messages(mine: int, theirs: int, result: object, begins: bool, rounds: int, size_B: int, deadline_s: float, key_word: int) -> None:
    """One side. mine, theirs: addresses as this GPU sees them, multiples of FLAG_B. result: tensor of two int32 on this GPU."""
    at_B = flag_at_B(size_B)
    wait = halves(int(deadline_s * 1e9))
    pass_messages[(1,)](
        mine,
        theirs,
        mine + at_B,
        theirs + at_B,
        result,
        int(begins),
        rounds,
        -(-size_B // 8),
        *halves(key_word),
        *wait,
        LANES=LANES,
        num_warps=LANES // 32,
    )
