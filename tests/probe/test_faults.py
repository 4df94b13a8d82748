"""Every wrong way for bytes to arrive is delivered, and named for what it is; and what is right has no name."""

from __future__ import annotations

import numpy as np
import pytest

from linkproof.errors import UsageError
from linkproof.measured import Wrong
from linkproof.probe.devices import U8
from linkproof.probe.faults import KINDS, Fault, Injector, Mirror, deliver, parse, pass_messages
from linkproof.probe.payload import Key, classify, payload, poison

SEED, GUARD_B = 0xFEED_F00D_1234_5678, 8192
SIZES_B = (4, 8, 256, 4096 - 16, 8192, 65536 + 16, 1 << 20)


def arrived(
    fault: Fault | None, size_B: int = 1 << 20, start_B: int = 0, address_B: int = 0, seed: int = 1, round_: int = 1
) -> tuple[Wrong, ...]:
    """One transfer over a link with this fault, judged as a check would. The round before went over the same link."""
    key, before = Key(SEED, 0, 1, round_), Key(SEED, 0, 1, round_ - 1)
    lo, whole = GUARD_B + start_B, (2 * GUARD_B + start_B + size_B + 7) // 8 * 8
    memory: U8 = np.array(poison(key, 0, whole))
    rng = np.random.default_rng(seed)
    deliver(fault, memory, lo, payload(key, lo, size_B), payload(before, lo, size_B), rng, address_B)
    return classify(memory, key, lo, lo + size_B, 0, address_B)


@pytest.mark.parametrize("size_B", SIZES_B)
@pytest.mark.parametrize("start_B", [0, 4, 16])
def test_without_a_fault_nothing_is_wrong(size_B: int, start_B: int) -> None:
    assert arrived(None, size_B, start_B) == ()


@pytest.mark.parametrize("kind", ["reorder", "slow", "atomics_lost"])
def test_faults_of_order_and_speed_leave_a_plain_copy_right(kind: str) -> None:
    assert arrived(Fault(kind)) == ()


@pytest.mark.parametrize("size_B", SIZES_B)
@pytest.mark.parametrize("start_B", [0, 4, 16])
@pytest.mark.parametrize(("kind", "seen"), [("zero", "zero"), ("drop", "untouched"), ("mirror", "untouched"), ("stale", "stale")])
def test_a_transfer_that_is_wrong_as_a_whole_is_named_at_every_size(kind: str, seen: str, size_B: int, start_B: int) -> None:
    wrong = arrived(Fault(kind), size_B, start_B)
    assert wrong and sum(w.bad_B for w in wrong) >= size_B * (0.98 if size_B > 8 else 0.5)  # a byte in 256 is right by chance
    if size_B >= 256:  # half a word cannot say which round it is of
        assert wrong[0].kind == seen


def test_stale_data_tell_their_round() -> None:
    assert arrived(Fault("stale"), round_=7)[0].detail == "round 6"


@pytest.mark.parametrize("far_B", [16, 8, 3, -3, -16, 4096, 12])
def test_shifted_data_tell_how_far(far_B: int) -> None:
    wrong = arrived(Fault("shift", far_B))
    assert (wrong[0].kind, wrong[0].detail) == ("offset", f"{far_B:+d}")


@pytest.mark.parametrize("page", [4096, 65536])
def test_swapped_pages_are_seen_as_pages(page: int) -> None:
    for seed in range(20):
        wrong = arrived(Fault("page_swap", page), seed=seed)
        assert wrong[0].kind == "offset" and 1.6 * page < wrong[0].bad_B <= 2 * page  # words differ, not each byte
        assert wrong[0].grain_B >= page and int(wrong[0].detail) % page == 0


def test_pages_lie_where_the_memory_lies() -> None:
    wrong = arrived(Fault("page_swap"), address_B=0x7F0000001000 + 512)
    assert wrong[0].grain_B == 4096 and (wrong[0].first_B + 0x7F0000001000 + 512) % 4096 == 0


def test_a_missing_tail_is_untouched_and_at_the_end() -> None:
    wrong = arrived(Fault("tail"), 65536)
    assert [(w.kind, w.bad_B, w.first_B) for w in wrong] == [("untouched", 16384, GUARD_B + 49152)]
    assert arrived(Fault("tail", 16), 65536)[0].bad_B == 16


@pytest.mark.parametrize("bit", [0, 14, 63])
def test_a_flipped_bit_is_named(bit: int) -> None:
    wrong = arrived(Fault("bit", bit), 8192)
    assert [(w.kind, w.bad_B, w.detail) for w in wrong] == [("bits", 1, str(bit))]


@pytest.mark.parametrize("size_B", [1, 4, 8])
def test_a_bit_is_flipped_even_in_the_smallest_transfer(size_B: int) -> None:
    assert sum(w.bad_B for w in arrived(Fault("bit"), size_B)) == 1


def test_what_is_written_behind_the_end_is_an_overrun() -> None:
    wrong = arrived(Fault("neighbour"), 8192)
    assert [(w.kind, w.first_B, w.detail) for w in wrong] == [("overrun", GUARD_B + 8192, "+0")] and 60 <= wrong[0].bad_B <= 64


def test_rare_flips_come_at_their_rate() -> None:
    size_B = 64 << 20
    wrong = arrived(Fault("rare", 1e-5), size_B)
    assert [w.kind for w in wrong] == ["bits"] and 0.5e-5 < wrong[0].rate < 2e-5
    assert arrived(Fault("rare"), size_B)[0].rate == pytest.approx(1e-6, rel=0.9)


def test_torn_words_and_torn_lines() -> None:
    assert arrived(Fault("torn"), 8192)[0].kind in ("torn", "untouched")
    assert "torn" in {w.kind for w in arrived(Fault("torn"), 8192)}
    assert {w.kind for w in arrived(Fault("torn", 16), 8192)} == {"untouched"}


def test_the_same_seed_gives_the_same_bytes() -> None:
    for kind in KINDS:
        if kind != "hang":
            assert arrived(Fault(kind), seed=5) == arrived(Fault(kind), seed=5)


# ---------------------------------------------------------------- when a fault acts


def carried(
    injector: Injector, names: tuple[str, ...] = ("push",), src: int = 0, dst: int = 1, size_B: int = 4096, address_B: int = 0
) -> U8:
    memory = np.full(size_B, 0xEE, np.uint8)
    injector.carry(names, src, dst, memory, 0, np.arange(size_B).astype(np.uint8), address_B)
    return memory


def right(memory: U8) -> bool:
    return bool(np.array_equal(memory, np.arange(len(memory)).astype(np.uint8)))


def test_a_fault_of_one_direction_spares_the_other() -> None:
    link = Injector([Fault("zero", pairs=("0->1",))])
    assert not right(carried(link)) and right(carried(link, src=1, dst=0))


def test_a_fault_under_load_waits_for_load() -> None:
    link = Injector([Fault("zero", only_under_load=True)])
    assert right(carried(link))
    link.loaded = True
    assert not right(carried(link))


def test_a_fault_of_a_mode_spares_the_others_and_no_link_fault_touches_the_host_path() -> None:
    stores = Injector([Fault("drop", modes=("store", "store16"))])
    assert not right(carried(stores, ("store16", "LL"))) and right(carried(stores, ("push",)))
    every = Injector([Fault("drop")])
    assert not right(carried(every, ("pull",))) and right(carried(every, ("staged",))) and right(carried(every, ("net",)))


def test_a_fault_above_an_address_spares_what_lies_below() -> None:
    memory = carried(Injector([Fault("zero", from_address_B=1 << 28)]), address_B=(1 << 28) - 1024)
    assert right(memory[:1024]) and not memory[1024:].any()
    assert right(carried(Injector([Fault("zero", from_address_B=1 << 28)]), address_B=0))


def test_a_fault_of_large_transfers_spares_small_ones() -> None:
    link = Injector([Fault("zero", from_size_B=4096)])
    assert right(carried(link, size_B=4095)) and not right(carried(link, size_B=4096))


def test_after_and_probability_count_transfers() -> None:
    link = Injector([Fault("zero", after=3)])
    assert [right(carried(link)) for _ in range(5)] == [True, True, True, False, False]
    often = Injector([Fault("zero", probability=0.3)], seed=3)
    assert 200 < sum(not right(carried(often, size_B=8)) for _ in range(1000)) < 400


def test_stale_is_what_went_before_also_if_the_same_is_sent_twice() -> None:
    link = Injector([Fault("stale")])
    first, second = np.full(64, 1, np.uint8), np.full(64, 2, np.uint8)
    memory = np.full(64, 9, np.uint8)
    link.carry(("push",), 0, 1, memory, 0, first)
    assert (memory == 9).all()
    for _ in range(3):
        link.carry(("push",), 0, 1, memory, 0, second)
        assert (memory == 1).all()


def test_a_mirror_shows_each_writer_its_own() -> None:
    mirror, buffer = Mirror(), object()
    mirror.write(0, buffer, 8, np.full(8, 5, np.uint8))
    assert mirror.view(0, buffer, 0, 24).tolist() == [0] * 8 + [5] * 8 + [0] * 8
    assert not mirror.view(1, buffer, 0, 24).any() and not mirror.view(0, object(), 0, 24).any()


# ---------------------------------------------------------------- as text


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("zero", Fault("zero")),
        ("shift:3", Fault("shift", 3)),
        ("bit:7,pairs=0->1+1->0,only_under_load", Fault("bit", 7, pairs=("0->1", "1->0"), only_under_load=True)),
        ("drop,modes=store+store16,after=5,probability=0.5", Fault("drop", modes=("store", "store16"), after=5, probability=0.5)),
        ("drop,from_address_B=268435456", Fault("drop", from_address_B=1 << 28)),
    ],
)
def test_a_fault_can_be_written_in_a_word(text: str, fault: Fault) -> None:
    assert parse(text) == fault


@pytest.mark.parametrize("text", ["", "nonsense", "shift:far", "zero,modes=fly", "zero,pairs=0-1", "zero,when=now", "zero,probability=0"])
def test_what_is_no_fault_is_refused_and_said(text: str) -> None:
    with pytest.raises(UsageError) as e:
        parse(text)
    assert e.value.ref == "no-such-fault"


# ---------------------------------------------------------------- messages


def messages(late: bool, lose_flags: bool = False) -> tuple[int, int]:
    memory = [np.zeros(1024, np.uint8), np.zeros(1024, np.uint8)]

    def carry(side: int, at_B: int, data: U8) -> None:
        if not (lose_flags and len(data) == 8):
            memory[side][at_B : at_B + len(data)] = data

    return pass_messages(carry, lambda side, at, n: memory[side][at : at + n], lambda side: late, 50, 128, 0.2, 0x1234)


def test_messages_in_order_all_pass_and_late_data_are_counted() -> None:
    assert messages(late=False) == (50, 0)
    assert messages(late=True) == (50, 50)


def test_a_lost_flag_ends_at_the_deadline() -> None:
    assert messages(late=False, lose_flags=True) == (0, 0)
