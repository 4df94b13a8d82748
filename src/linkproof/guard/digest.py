"""One 64-bit number for the raw bits of a tensor, the same on a CPU and a GPU; equal at both ends of a hop or the hop lied.

    word i  = 8 bytes, little-endian, the last one filled up with zeros         mix = the finalizer of splitmix64, a bijection
    content = sum of mix(word ^ (i + 1) * GOLDEN)   mod 2^64                     digest = content + key(step, hop, size)

In:      bytes in logical order; step, hop and size_B.
Out:     integers below 2^64, never 0.
Unknown: one changed word always changes the sum; several changed words are missed with a chance of about 2^-64.
Source:  splitmix64 (Steele, Lea, Flood 2014). Mixing each word with its place is what tells swapped, rolled and repeated data; mixing before
         adding is what tells sign bits that flip in two words (weights alone do not: 2^63 times two odd numbers adds up to nothing).
         GPU: digest_kernel.py; a test holds both equal.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from linkproof.probe.devices import U8
from linkproof.probe.payload import MULTIPLIER as GOLDEN

MIX_A, MIX_B = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
MASK = (1 << 64) - 1
CHUNK_WORDS = 1 << 14  # three arrays of them stay in the processor's cache

U64 = NDArray[np.uint64]
_PLACES: U64 = np.arange(1, CHUNK_WORDS + 1, dtype=np.uint64) * np.uint64(GOLDEN)
_A, _B, _30, _27, _31 = (np.uint64(n) for n in (MIX_A, MIX_B, 30, 27, 31))


def content(data: U8) -> int:
    whole = len(data) // 8
    words: U64 = data[: whole * 8].view(np.uint64)
    total = 0
    for first in range(0, whole, CHUNK_WORDS):
        total += _sum(words[first : first + CHUNK_WORDS], first)
    if whole * 8 < len(data):
        last = np.zeros(8, np.uint8)
        last[: len(data) - whole * 8] = data[whole * 8 :]
        total += _sum(last.view(np.uint64), whole)
    return total & MASK


def _sum(words: U64, first: int) -> int:
    places = _PLACES[: len(words)]
    if first:
        places = places + np.uint64(first * GOLDEN & MASK)
    return int(np.add.reduce(mixed(words ^ places)))


def mixed(z: U64) -> U64:
    """Of each word, in place."""
    z ^= z >> _30
    z *= _A
    z ^= z >> _27
    z *= _B
    z ^= z >> _31
    return z


def _mix(z: int) -> int:
    z = (z ^ z >> 30) * MIX_A & MASK
    z = (z ^ z >> 27) * MIX_B & MASK
    return z ^ z >> 31


def step_key(step: int) -> int:
    return _mix(step + 1 & MASK)


def hop_salt(hop: int, size_B: int) -> int:
    """The part of the key that is the same in every step."""
    return _mix((hop + 1) * MIX_A + (size_B + 1) * MIX_B & MASK)


def key(step: int, hop: int, size_B: int) -> int:
    return step_key(step) + hop_salt(hop, size_B) & MASK


def digest(content_: int, key_: int) -> int:
    return (content_ + key_ & MASK) or 1


def content_of(digest_: int, key_: int) -> int:
    return digest_ - key_ & MASK


def of_zeros(size_B: int) -> int:
    """The content of as many bytes of zero."""
    return content(np.zeros(size_B, np.uint8))
