"""A copy is verified only if every byte arrived, nothing beside it changed and the owner itself can be trusted; each fault has its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs
from virtual_gpus import EFFORT, SEED, made, scenario, setup_of, tried

from linkproof.measured import Case
from linkproof.probe import copy_check
from linkproof.probe.copy_check import GUARD_B, SMALL_B, START_B, eye_tested, schedule
from linkproof.probe.devices import U8, Buffer, DeviceLost, NotPossible, NotTested
from linkproof.probe.payload import Key
from linkproof.probe.setup import SIZES_B, Effort, MiB, Setup
from linkproof.sim.scenario import LinkFault
from linkproof.sim.virtual import Virtual, create
from linkproof.tasks import COPIES

KEY = Key(SEED, 0, 1, 3)


@pytest.fixture
def healthy(tmp_path: Path) -> Iterator[Virtual]:
    v = made(tmp_path)
    yield v
    assert not list(tmp_path.glob("[0-9]*-*")), "every check gives its memory back"


@pytest.mark.parametrize("mode", COPIES)
def test_a_healthy_link_is_verified_in_every_way_to_copy(healthy: Virtual, mode: str) -> None:
    for pair in ((0, 1), (1, 0)):
        o = tried(healthy, mode, *pair)
        assert (o.state, o.wrong, o.bad_rounds, o.smallest_bad_B) == ("verified", (), 0, 0)
        ways = len(COPIES[mode][1])
        assert o.rounds == 13 * ways and o.verified_B == ways * (3 * (4 + 256 + 4112 + 65536) + 2 * MiB + 16)
        assert o.largest_ok_B == o.size_B == 2 * MiB + 16
        assert (o.speed is not None) == (mode in ("staged", "push", "pull", "store16", "load16"))


FAULTS = {
    "zero": "zero", "drop": "untouched", "stale": "stale", "shift:16": "offset", "shift:-3": "offset", "page_swap": "offset", "tail": "untouched",
    "bit": "bits", "torn": "torn", "neighbour": "overrun", "rare:0.001": "bits", "mirror": "untouched",
}  # fmt: skip


@pytest.mark.parametrize("how", ["push", "store16", "load"])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_seen_and_has_its_name_and_the_control_has_none(healthy: Virtual, fault: str, how: str) -> None:
    o = tried(healthy, how, 0, 1, fault=fault)
    assert o.state == "corrupt" and FAULTS[fault] in {w.kind for w in o.wrong} and o.bad_rounds > 0
    assert o.args == {"bad": str(o.bad_rounds), "rounds": str(o.rounds)}
    assert tried(healthy, "staged", 0, 1, fault=fault).state == "verified", "a fault of the direct path does not touch the control"


@pytest.mark.parametrize("size_B", [4, 64 * 1024, 2 * MiB + 16, 16 * MiB])
@pytest.mark.parametrize(("fault", "kind"), [("zero", "zero"), ("bit", "bits"), ("neighbour", "overrun")])
def test_small_transfers_through_the_host_and_large_ones_by_the_owners_kernel_say_the_same(
    healthy: Virtual, fault: str, kind: str, size_B: int
) -> None:
    o = tried(healthy, "push", 0, 1, fault=fault, effort=Effort((size_B,), 3, 1))
    assert o.state == "corrupt" and kind in {w.kind for w in o.wrong}
    assert size_B > SMALL_B or o.wrong[0].first_B <= size_B


def test_the_kinds_of_a_large_transfer_are_scaled_to_all_of_it(healthy: Virtual) -> None:
    o = tried(healthy, "push", 0, 1, fault="zero", effort=Effort((16 * MiB,), 3, 1))
    assert o.wrong[0].kind == "zero" and o.wrong[0].bad_B > 0.95 * 16 * MiB and o.wrong[0].rate == pytest.approx(1, abs=0.01)
    tail = tried(healthy, "push", 0, 1, fault="tail:4096", effort=Effort((16 * MiB,), 3, 1)).wrong[0]
    assert (tail.kind, tail.first_B, tail.bad_B) == ("untouched", 16 * MiB - 4096, 4096)


def test_a_fault_from_a_size_on_tells_where_right_ends_and_wrong_begins(tmp_path: Path) -> None:
    v = made(tmp_path, 2, LinkFault("bit", from_size_B=4112))
    o = tried(v, "push", 0, 1)
    assert (o.state, o.smallest_bad_B, o.size_B) == ("corrupt", 4112, 4112) and o.largest_ok_B == 256


def test_only_the_first_bad_transfers_of_a_size_are_counted_and_the_next_size_is_tried(healthy: Virtual) -> None:
    o = tried(healthy, "push", 0, 1, fault="zero", effort=Effort((256, 65536, 2 * MiB), rounds_small=40, rounds_big=6))
    assert (o.rounds, o.bad_rounds) == (4 + 4 + 1, 9)


def test_a_fault_of_one_direction_is_not_one_of_the_other(tmp_path: Path) -> None:
    v = made(tmp_path, 2, LinkFault("zero", pairs=("1->0",)))
    assert [tried(v, how, *pair).state for how in ("push", "pull") for pair in ((0, 1), (1, 0))] == ["verified", "corrupt"] * 2


# ---------------------------------------------------------------- beside the transfer


class Spoils(Virtual):
    """A machine whose copies also hit memory of the target that nobody named: the last allocation."""

    def move(self, how: str, src: Buffer, src_at_B: int, dst: Buffer, dst_at_B: int, size_B: int, wait: bool = True) -> None:
        super().move(how, src, src_at_B, dst, dst_at_B, size_B, wait)
        mine = [b for b in self._blocks if b.gpu == dst.gpu and len(b.data)]
        if how == "push":
            mine[-1].data[4096:4104] ^= 255


def test_memory_of_the_target_that_no_transfer_had_to_touch_is_looked_at(tmp_path: Path) -> None:
    create(scenario(), tmp_path)
    o = tried(Spoils(tmp_path), "push", 0, 1)
    assert o.state == "corrupt" and [(w.kind, w.first_B, w.bad_B) for w in o.wrong] == [("bystander", 4096, 8)]
    assert tried(Spoils(tmp_path), "pull", 0, 1).state == "verified"


# ---------------------------------------------------------------- an owner that cannot be trusted


class Blind(Virtual):
    """GPU 1's own memory is bad: one cell keeps a bit, whoever writes."""

    def get(self, buffer: Buffer, at_B: int, size_B: int) -> U8:
        out = super().get(buffer, at_B, size_B)
        if buffer.gpu == 1:
            out[: max(0, 16 - at_B)] |= 1
        return out


class Sees(Virtual):
    """GPU 0's compare kernel finds nothing wrong, whatever there is."""

    def wrong(self, buffer: Buffer, key_word: int, first: int, count: int, invert: bool = False) -> tuple[int, int]:
        return (0, -1) if buffer.gpu == 0 else super().wrong(buffer, key_word, first, count, invert)


@pytest.mark.parametrize(("kind", "gpu"), [(Blind, 1), (Sees, 0)])
@pytest.mark.parametrize("pair", [(0, 1), (1, 0)])
def test_who_cannot_read_its_own_memory_gives_no_verdict_on_a_link(
    tmp_path: Path, kind: type[Virtual], gpu: int, pair: tuple[int, int]
) -> None:
    create(scenario(), tmp_path)
    for fault in ("", "zero"):
        o = tried(kind(tmp_path), "push", *pair, fault=fault)
        assert (o.state, o.args) == ("not_tested", {"gpu": str(gpu)}) and o.verified_B == 0


def test_the_eye_is_tested_with_a_wrong_word(healthy: Virtual) -> None:
    block = healthy.alloc(0, 1 * MiB)
    assert eye_tested(healthy, block, KEY, 1 * MiB)
    assert not eye_tested(Sees(healthy.folder), block, KEY, 1 * MiB)
    block.free()


# ---------------------------------------------------------------- addresses, and what cannot be done


def test_the_sweep_finds_a_fault_of_high_addresses_that_transfers_do_not_reach(tmp_path: Path) -> None:
    v = made(tmp_path, 2, LinkFault("drop", from_address_B=1 << 30), each={"memory_GiB": 2})
    assert tried(v, "push", 0, 1).state == "verified", "small windows lie at the start of the memory"
    o = tried(v, "push", 0, 1, effort=structs.replace(EFFORT, sweep=True))
    assert o.state == "corrupt" and (o.wrong[0].kind, o.wrong[0].first_B, o.smallest_bad_B) == ("untouched", 0, 64 * 1024)
    v = made(tmp_path / "right", 2, each={"memory_GiB": 2})
    swept = tried(v, "push", 0, 1, effort=structs.replace(EFFORT, sweep=True))
    assert swept.state == "verified" and swept.rounds > 13 + 3 * 5, "six blocks of 256 MiB, three places each"


def test_no_room_no_peer_access_no_such_memory_and_a_lost_gpu_travel_to_the_worker(tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        tried(made(tmp_path / "a", 2, each={"memory_GiB": 0.002}), "push", 0, 1)
    apart = made(tmp_path / "b", 2, refused_pairs=("0->1", "1->0"), refused=("vmm",))
    with pytest.raises(NotPossible):
        tried(apart, "push", 0, 1)
    assert tried(apart, "staged", 0, 1).state == "verified"
    with pytest.raises(NotPossible):
        copy_check.run(apart, Case("vmm", (0, 1)), setup_of(apart.folder), "vmm", ("staged",))
    with pytest.raises(NotTested):
        tried(made(tmp_path / "c", 2, each={"vendor": "amd"}), "pool", 0, 1)
    (apart.folder / "lost-1").touch()
    with pytest.raises(DeviceLost):
        tried(apart, "staged", 0, 1)


def test_one_card_with_itself_is_checked_as_a_card(healthy: Virtual) -> None:
    assert tried(healthy, "push", 0, 0).state == "verified"
    assert tried(healthy, "push", 0, 0, fault="zero").wrong[0].kind == "zero"


def test_the_schedule_visits_every_size_and_every_place_to_begin() -> None:
    steps = list(schedule(Setup("cuda", 1)))
    assert {size for _, size in steps} == set(SIZES_B)
    assert {start for start, size in steps if size == SIZES_B[0]} == set(START_B) == {start for start, size in steps if size == SIZES_B[-1]}
    assert all(start < GUARD_B for start, _ in steps)
