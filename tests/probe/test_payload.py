"""Every word says what it is: whatever a link does to it, at any place, size and alignment, has its right name; what is right has none."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linkproof.measured import Wrong
from linkproof.probe.payload import WORD_B, Key, classify, decode, payload, poison, total_bad_B, words

U8 = np.typing.NDArray[np.uint8]
GUARD_B = 64
KEY = Key(0x0123_4567_89AB_CDEF, 0, 1, 7)
SEEDS = st.integers(0, (1 << 64) - 1)
GPUS = st.integers(0, 63)
KEYS = st.builds(Key, SEEDS, GPUS, GPUS, st.integers(0, 255))
FIRSTS = st.integers(0, (1 << 36) - 2049)
quick = settings(max_examples=150, deadline=None)


class Place:
    """A transfer in its window: poison before and behind, the payload between."""

    def __init__(self, key: Key, start_B: int, size_B: int) -> None:
        self.key, self.lo, self.hi = key, GUARD_B + start_B, GUARD_B + start_B + size_B
        self.whole_B = -(-self.hi // WORD_B) * WORD_B + GUARD_B
        self.got: U8 = poison(key, 0, self.whole_B).copy()
        self.got[self.lo : self.hi] = payload(key, self.lo, size_B)
        self.right = self.got.copy()

    def judged(self, address_B: int = 0) -> tuple[Wrong, ...]:
        return classify(self.got, self.key, self.lo, self.hi, 0, address_B)

    @property
    def changed_B(self) -> int:
        return int((self.got != self.right).sum())


@st.composite
def places(draw: st.DrawFn, least_B: int = 1, most_B: int = 6000) -> Place:
    return Place(draw(KEYS), draw(st.integers(0, 40)), draw(st.integers(least_B, most_B)))


# ---------------------------------------------------------------- the words


@given(KEYS, FIRSTS, st.integers(1, 2048))
@quick
def test_no_two_words_of_a_window_are_the_same(key: Key, first: int, count: int) -> None:
    assert len(np.unique(words(key, first, count))) == count


@given(SEEDS, st.lists(st.tuples(GPUS, GPUS, st.integers(0, 255)), min_size=2, max_size=6, unique=True), FIRSTS)
@quick
def test_no_word_of_one_transfer_is_one_of_another(seed: int, transfers: list[tuple[int, int, int]], first: int) -> None:
    every = np.concatenate([words(Key(seed, *one), first, 200) for one in transfers])
    assert len(np.unique(every)) == len(every)


@given(KEYS, FIRSTS, st.integers(1, 300))
@quick
def test_a_word_tells_pair_round_and_place(key: Key, first: int, count: int) -> None:
    d = decode(key.seed, words(key, first, count))
    assert d.ours.all() and (d.src == key.src).all() and (d.dst == key.dst).all() and (d.round_ == key.round_).all()
    assert np.array_equal(d.word, np.arange(first, first + count))


@given(KEYS, SEEDS)
@quick
def test_words_of_another_run_are_seldom_taken_for_ours(key: Key, other: int) -> None:
    if (other ^ key.seed) >> 56:  # the seed's upper byte hides the magic number
        assert not decode(other, words(key, 0, 500)).ours.any()


@given(KEYS, st.integers(0, 5000), st.integers(0, 500))
@quick
def test_the_poison_is_wrong_in_every_bit_and_any_piece_is_a_piece_of_the_whole(key: Key, at_B: int, size_B: int) -> None:
    assert np.array_equal(payload(key, at_B, size_B) ^ poison(key, at_B, size_B), np.full(size_B, 255, np.uint8))
    assert np.array_equal(payload(key, at_B, size_B), payload(key, 0, at_B + size_B)[at_B:])


# ---------------------------------------------------------------- right, and wrong


@given(places(), st.integers(0, 1 << 47))
@quick
def test_the_right_window_has_nothing_wrong(place: Place, address_B: int) -> None:
    assert place.judged(address_B) == ()


@given(places(), st.data())
@quick
def test_no_change_of_a_byte_goes_unseen_wherever_it_is(place: Place, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, place.whole_B - 1))
    place.got[at] ^= data.draw(st.integers(1, 255))
    (seen,) = place.judged()
    assert (seen.first_B, seen.bad_B) == (at, 1) and (seen.kind == "overrun") == (not place.lo <= at < place.hi)


@given(places(), st.data())
@quick
def test_every_changed_byte_is_counted_once(place: Place, data: st.DataObject) -> None:
    spots = data.draw(st.lists(st.tuples(st.integers(0, place.whole_B - 1), st.integers(0, 255)), max_size=40))
    for at, value in spots:
        place.got[at] = value
    assert total_bad_B(place.judged()) == place.changed_B


WHOLE_WORDS: dict[str, tuple[str, Callable[[Key, int, int], U8]]] = {
    "zero": ("zero", lambda key, at, n: np.zeros(n, np.uint8)),
    "untouched": ("untouched", poison),
    "stale": ("stale", lambda key, at, n: payload(Key(key.seed, key.src, key.dst, (key.round_ + 1) & 255), at, n)),
    "other_pair": ("other_pair", lambda key, at, n: payload(Key(key.seed, key.src ^ 1, key.dst, key.round_), at, n)),
    "offset": ("offset", lambda key, at, n: payload(key, at + 24, n)),
    "bits": ("bits", lambda key, at, n: payload(key, at, n) ^ np.resize(np.array([0, 64, 0, 0, 0, 0, 0, 0], np.uint8), n)),
}


@pytest.mark.parametrize("made", WHOLE_WORDS)
@given(place=places(least_B=48), data=st.data())
@quick
def test_wrong_words_have_their_name_anywhere(made: str, place: Place, data: st.DataObject) -> None:
    name, wrong = WHOLE_WORDS[made]
    first, last = -(-place.lo // WORD_B), place.hi // WORD_B
    begin = data.draw(st.integers(first, last - 1))
    end = data.draw(st.integers(begin + 1, last))
    place.got[begin * WORD_B : end * WORD_B] = wrong(place.key, begin * WORD_B, (end - begin) * WORD_B)
    told = place.judged()
    assert [w.kind for w in told] == [name] and told[0].bad_B == place.changed_B > 0
    detail = {
        "stale": f"round {(place.key.round_ + 1) & 255}", "other_pair": f"{place.key.src ^ 1}->{place.key.dst}", "offset": "+24", "bits": "14",
    }  # fmt: skip
    assert told[0].detail == detail.get(name, "")


@given(places(least_B=256), st.integers(-63, 63))
@quick
def test_displaced_bytes_tell_how_far_even_by_half_a_word(place: Place, far_B: int) -> None:
    if far_B:
        size_B = place.hi - place.lo
        place.got[place.lo : place.hi] = payload(place.key, place.lo + far_B, size_B)
        assert (place.judged()[0].kind, place.judged()[0].detail) == ("offset", f"{far_B:+d}")


@given(places(least_B=64), st.data())
@quick
def test_a_word_of_which_a_part_arrived_is_torn(place: Place, data: st.DataObject) -> None:
    at = data.draw(st.integers(-(-place.lo // WORD_B), place.hi // WORD_B - 1)) * WORD_B
    piece = data.draw(st.sampled_from([(0, 4), (4, 8), (0, 2), (6, 8)]))
    where = slice(at + piece[0], at + piece[1])
    place.got[where] = data.draw(st.sampled_from([poison(place.key, where.start, where.stop - where.start), np.zeros(1, np.uint8)]))
    few_bits = int(np.unpackbits((place.got ^ place.right)[at : at + 8]).sum()) <= 4
    if place.changed_B and not few_bits:
        assert [w.kind for w in place.judged()] == ["torn"]


@given(places(), st.integers(1, GUARD_B), st.booleans())
@quick
def test_what_was_written_beside_the_transfer_is_seen_on_both_sides(place: Place, size_B: int, behind: bool) -> None:
    begin = place.hi if behind else place.lo - size_B
    end = min(place.whole_B, begin + size_B)
    place.got[begin:end] ^= 255
    (seen,) = place.judged()
    assert (seen.kind, seen.bad_B) == ("overrun", end - begin)
    assert seen.detail == ("+0" if behind else f"-{size_B}")


@given(places(least_B=1024), st.integers(0, 1 << 32))
@quick
def test_random_bytes_are_called_garbage(place: Place, seed: int) -> None:
    place.got[place.lo : place.hi] = np.random.default_rng(seed).integers(0, 256, place.hi - place.lo, np.uint8)
    told = place.judged()
    assert told[0].kind == "garbage" and told[0].bad_B > 0.9 * place.changed_B


def test_a_single_wrong_word_is_not_taken_for_one_of_another_pair() -> None:
    """A torn word looks by chance like one of ours once in 256 times."""
    kinds = set()
    for seed in range(4):
        place = Place(Key(seed * 0x9E37_79B9_7F4A_7C15 % (1 << 64), 0, 1, 7), 0, 16 << 10)
        for at in range(place.lo, place.hi, WORD_B):
            place.got[at : at + 4] = 0
            kinds |= {w.kind for w in place.judged()}
            place.got[at : at + 4] = place.right[at : at + 4]
    assert kinds == {"torn"}


@given(st.integers(1, 15), SEEDS)
@quick
def test_four_flipped_bits_are_bits_and_more_are_not(place_of: int, seed: int) -> None:
    for flipped, kind in ((0x0F, "bits"), (0xFF, "garbage")):
        place = Place(Key(seed, 3, 4, 1), 0, 4096)
        place.got[place.lo + place_of * 8] ^= flipped
        told = place.judged()[0].kind
        assert told == kind or (flipped == 0xFF and told == "torn"), "a byte that is the complement may also be one that did not arrive"


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize("page_B", [4096, 65536, 2 << 20])
@pytest.mark.parametrize("address_B", [0, 4096 * 5, 512])
def test_pages_that_did_not_arrive_are_seen_as_pages_of_the_owner(page_B: int, address_B: int) -> None:
    place = Place(KEY, 0, 3 * page_B)
    first = -(place.lo + address_B) % page_B + place.lo
    place.got[first : first + page_B] = poison(KEY, first, page_B)
    (seen,) = place.judged(address_B)
    assert (seen.kind, seen.grain_B, seen.bad_B) == ("untouched", page_B, page_B)


def test_a_piece_that_is_no_page_and_a_whole_transfer_have_no_grain() -> None:
    place = Place(KEY, 0, 65536)
    place.got[place.lo + 8 : place.lo + 8 + 4096] = 0
    assert place.judged()[0].grain_B == 0
    place.got[place.lo : place.hi] = 0
    assert place.judged()[0].grain_B == 0


def test_a_window_of_4_MiB_that_is_all_wrong_is_named_in_time() -> None:
    place = Place(KEY, 0, 4 << 20)
    place.got[:] = np.random.default_rng(1).integers(0, 256, place.whole_B, np.uint8)
    begun = perf_counter()
    assert {w.kind for w in place.judged()} >= {"garbage", "overrun"}
    assert perf_counter() - begun < 10  # it takes a fifth of a second
