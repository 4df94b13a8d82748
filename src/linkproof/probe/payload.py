"""Data that say what they are: every 64-bit word names its pair, its round and its place, so each wrong word tells where it came from.

    counter = magic(8) src(6) dst(6) round(8) word(36)        word: number of the word in its window
    word    = mix(counter ^ seed)                             mix: times an odd constant, upper half onto the lower; can be undone
    poison  = ~word                                           what a target holds before: every bit wrong

In:      a Key (seed, src, dst, round), places in bytes.
Out:     numpy arrays of uint8; `classify` gives `Wrong`s, most bytes first.
Unknown: a wrong word that is none of these is "garbage".
Raises:  nothing. Words are little-endian, as all machines with these GPUs are.
Source:  this file. The GPU makes the same words (kernels.py); a test holds both equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from linkproof.measured import Wrong

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
INVERSE = pow(MULTIPLIER, -1, 1 << 64)
MAGIC = 0xA5
WORD_B = 8
WORD_BITS, ROUND_BITS, GPU_BITS = 36, 8, 6
WINDOW_WORDS_MOST = 1 << 26  # 512 MiB
GRAINS_B = (2 << 20, 64 << 10, 4 << 10)
_MASK = (1 << 64) - 1


class Key(Struct, frozen=True):
    """What makes the data of one transfer. seed: 64 random bits of this run."""

    seed: int
    src: int
    dst: int
    round_: int

    @property
    def word(self) -> int:
        """What is xor-ed with a word's number before it is mixed: the only thing that a kernel must know."""
        base = MAGIC << 56 | (self.src & 63) << 50 | (self.dst & 63) << 44 | (self.round_ & 255) << WORD_BITS
        return (base ^ self.seed) & _MASK


def _mix(x: U64) -> U64:
    with np.errstate(over="ignore"):
        x = x * np.uint64(MULTIPLIER)
    return x ^ (x >> np.uint64(32))


def _unmix(w: U64) -> U64:
    w = w ^ (w >> np.uint64(32))
    with np.errstate(over="ignore"):
        return w * np.uint64(INVERSE)


def words(key: Key, first: int, count: int) -> U64:
    """Words first .. first+count of the window."""
    number = np.arange(first, first + count, dtype=np.uint64)
    return _mix(number ^ np.uint64(key.word))


def payload(key: Key, at_B: int, size_B: int) -> U8:
    """Bytes at_B .. at_B+size_B of the window."""
    first = at_B // WORD_B
    count = -(-(at_B + size_B) // WORD_B) - first
    whole = words(key, first, count).view(np.uint8)
    return whole[at_B - first * WORD_B : at_B - first * WORD_B + size_B]


def poison(key: Key, at_B: int, size_B: int) -> U8:
    return ~payload(key, at_B, size_B)


# ---------------------------------------------------------------- what a wrong word is


class Decoded(Struct, frozen=True):
    """Arrays, one entry per word: is it a word of ours, and which."""

    ours: NDArray[np.bool_]
    src: NDArray[np.int64]
    dst: NDArray[np.int64]
    round_: NDArray[np.int64]
    word: NDArray[np.int64]


def decode(seed: int, w: U64) -> Decoded:
    c = _unmix(w) ^ np.uint64(seed & _MASK)

    def field(shift: int, bits: int) -> NDArray[np.int64]:
        return ((c >> np.uint64(shift)) & np.uint64((1 << bits) - 1)).astype(np.int64)

    return Decoded(field(56, 8) == MAGIC, field(50, 6), field(44, 6), field(36, 8), field(0, 36))


def _runs(bad: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Begin and end (exclusive) of every run of True."""
    edge = np.flatnonzero(np.diff(np.concatenate(([False], bad, [False])).astype(np.int8)))
    return edge[::2], edge[1::2]


def _grain_of(begin: NDArray[np.int64], end: NDArray[np.int64], address_B: int, lo_B: int, hi_B: int) -> int:
    """The largest page on which every run of wrong bytes begins and ends; the transfer's own ends count as page ends. 0: none, or all is wrong."""
    if not len(begin) or (len(begin) == 1 and begin[0] == lo_B and end[0] == hi_B):
        return 0
    for page in GRAINS_B:
        starts = ((begin + address_B) % page == 0) | (begin == lo_B)
        ends = ((end + address_B) % page == 0) | (end == hi_B)
        if hi_B - lo_B > page and bool(np.all(starts & ends)):
            return page
    return 0


def classify(got: U8, key: Key, lo_B: int, hi_B: int, window_at_B: int = 0, address_B: int = 0) -> tuple[Wrong, ...]:
    """What is wrong in a window as its owner read it, () if nothing.

    got:     bytes of the window from window_at_B (a multiple of 8) on; lo_B, hi_B: where in the window the transfer was to write.
             Inside must stand the payload, outside the poison.
    address_B: where byte 0 of the window lies in the owner's memory, for pages.
    """
    n = len(got)
    want = payload(key, window_at_B, n).copy()
    lo, hi = max(0, lo_B - window_at_B), min(n, hi_B - window_at_B)
    want[:lo] = ~want[:lo]
    want[hi:] = ~want[hi:]
    bad = got != want
    if not bad.any():
        return ()
    found: list[Wrong] = []
    outside = bad.copy()
    outside[lo:hi] = False
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        where = first + window_at_B - hi_B if first >= hi else first + window_at_B - lo_B
        found.append(Wrong("overrun", int(outside.sum()), first + window_at_B, f"{where:+d}"))
    bad[:lo] = False
    bad[hi:] = False
    if bad.any():
        found += _inside(got, want, bad, key, lo, hi, window_at_B, address_B)
    return tuple(sorted(found, key=lambda w: -w.bad_B))


def _padded(data: U8) -> U64:
    pad = -len(data) % WORD_B
    return (np.concatenate((data, np.zeros(pad, np.uint8))) if pad else np.ascontiguousarray(data)).view(np.uint64)


# in this order a word is asked what it is; the first that fits holds
_KINDS = ("zero", "untouched", "stale", "offset", "other_pair", "bits", "torn", "garbage")
_CODE = {kind: code for code, kind in enumerate(_KINDS)}
FEW_BITS = 4


def _inside(got: U8, want: U8, bad: NDArray[np.bool_], key: Key, lo: int, hi: int, at_B: int, address_B: int) -> list[Wrong]:
    w, e = _padded(got), _padded(want)
    per_word = _padded(bad.view(np.uint8)).view(np.uint8).reshape(-1, WORD_B).sum(axis=1, dtype=np.uint8)
    touched = np.flatnonzero(per_word)
    value, expected, here = w[touched], e[touched], touched + at_B // WORD_B
    codes = np.full(len(touched), _CODE["garbage"], np.int8)
    codes[value == ~expected] = _CODE["untouched"]
    codes[value == 0] = _CODE["zero"]
    open_ = np.flatnonzero(codes == _CODE["garbage"])
    d = decode(key.seed, value[open_])
    codes[open_] = _kinds(value[open_], expected[open_], d, here[open_], key)
    edge = (touched == lo // WORD_B) & (lo % WORD_B != 0) | (touched == hi // WORD_B) & (hi % WORD_B != 0)
    _settle_edges(codes, edge, got, want, bad, touched)
    byte_shift = _byte_shift(got, key, at_B, bad) if (codes == _CODE["garbage"]).mean() > 0.5 else 0
    if byte_shift:
        codes[codes == _CODE["garbage"]] = _CODE["offset"]
    out = []
    looked = max(1, (hi - lo) // WORD_B)
    for code in np.unique(codes).tolist():
        kind, chosen = _KINDS[code], codes == code
        mask = np.zeros(len(w), np.bool_)
        mask[touched[chosen]] = True
        first = int(touched[chosen][0]) * WORD_B
        first += int(np.flatnonzero(bad[first : first + WORD_B])[0])
        detail = _detail(kind, codes[open_] == code, d, here[open_], (value ^ expected)[chosen], byte_shift)
        grain = _words_grain_B(mask, address_B + at_B, lo, hi)
        out.append(Wrong(kind, int(per_word[touched[chosen]].sum()), first + at_B, detail, grain, round(float(chosen.sum()) / looked, 9)))
    return out


def _kinds(value: U64, expected: U64, d: Decoded, here: NDArray[np.int64], key: Key) -> NDArray[np.int8]:
    """Of words that are neither zero nor poison."""
    codes = np.full(len(value), _CODE["garbage"], np.int8)
    codes[_torn(value, expected)] = _CODE["torn"]
    codes[np.unpackbits((value ^ expected).view(np.uint8)).reshape(-1, 64).sum(axis=1) <= FEW_BITS] = _CODE["bits"]
    mine = d.ours & (d.src == key.src) & (d.dst == key.dst)
    same_round = d.round_ == (key.round_ & 255)
    # one word in 256 looks so by chance, and one of those in 1024 as if it came from a window of ours: only several of one pair are a pair's
    strange = d.ours & ~mine & (d.word < WINDOW_WORDS_MOST)
    pairs, count = np.unique(d.src[strange] << GPU_BITS | d.dst[strange], return_counts=True)
    many = pairs[count > len(value) // 16]
    codes[strange & np.isin(d.src << GPU_BITS | d.dst, many)] = _CODE["other_pair"]
    codes[mine & same_round & (d.word != here)] = _CODE["offset"]
    codes[mine & ~same_round] = _CODE["stale"]
    return codes


def _words_grain_B(mask: NDArray[np.bool_], address_B: int, lo: int, hi: int) -> int:
    """From whole words: a word at either end of the transfer reaches no further than the transfer."""
    begin, end = _runs(mask)
    return _grain_of(np.maximum(begin * WORD_B, lo), np.minimum(end * WORD_B, hi), address_B, lo, hi)


def _torn(value: U64, expected: U64) -> NDArray[np.bool_]:
    """Part of the word arrived: each byte is either right or still poison (or zero), and there are both."""
    v, e = value.view(np.uint8).reshape(-1, WORD_B), expected.view(np.uint8).reshape(-1, WORD_B)
    right = v == e
    left = (v == ~e) | (v == 0)
    torn: NDArray[np.bool_] = np.all(right | left, axis=1) & right.any(axis=1) & ~right.all(axis=1)
    return torn


def _settle_edges(
    codes: NDArray[np.int8], edge: NDArray[np.bool_], got: U8, want: U8, bad: NDArray[np.bool_], touched: NDArray[np.int64]
) -> None:
    """A word that only half belongs to the transfer cannot be decoded: its bytes say whether they are untouched or zero, or it goes with its
    neighbour."""
    for i in np.flatnonzero(edge).tolist():
        span = slice(int(touched[i]) * WORD_B, int(touched[i] + 1) * WORD_B)
        own = bad[span]
        value, expected = got[span][own], want[span][own]
        if bool(np.all(value == ~expected)):
            codes[i] = _CODE["untouched"]
        elif not value.any():
            codes[i] = _CODE["zero"]
        elif len(codes) > 1:
            codes[i] = codes[i - 1] if i else codes[1]


def _byte_shift(got: U8, key: Key, at_B: int, bad: NDArray[np.bool_]) -> int:
    """Data displaced by a number of bytes that is no multiple of a word: read again from each of the seven odd places."""
    begin, end = _runs(bad)
    longest = int(np.argmax(end - begin))
    b, e = int(begin[longest]), int(end[longest])
    for odd in range(1, WORD_B):
        start = b + (-b % WORD_B) + odd
        count = min(64, (e - start) // WORD_B)
        if count < 2:
            continue
        d = decode(key.seed, np.frombuffer(got[start : start + count * WORD_B].tobytes(), np.uint64))
        fits = d.ours & (d.src == key.src) & (d.dst == key.dst)
        if fits.mean() > 0.9:
            return int(np.median(d.word[fits] * WORD_B - (start + at_B + np.flatnonzero(fits) * WORD_B)))
    return 0


def _most(values: NDArray[np.int64]) -> int:
    found, count = np.unique(values, return_counts=True)
    return int(found[np.argmax(count)])


def _detail(kind: str, chosen: NDArray[np.bool_], d: Decoded, here: NDArray[np.int64], diff: U64, byte_shift: int) -> str:
    """chosen: which of the decoded words."""
    if kind == "bits":
        every = int(np.bitwise_or.reduce(diff))
        return ",".join(str(bit) for bit in range(64) if every >> bit & 1)
    if kind == "offset" and byte_shift:
        return f"{byte_shift:+d}"
    if not chosen.any():
        return ""
    if kind == "stale":
        return f"round {_most(d.round_[chosen])}"
    if kind == "other_pair":
        return f"{_most(d.src[chosen])}->{_most(d.dst[chosen])}"
    return f"{_most((d.word - here)[chosen]) * WORD_B:+d}" if kind == "offset" else ""


def total_bad_B(wrong: Sequence[Wrong]) -> int:
    return sum(w.bad_B for w in wrong)
