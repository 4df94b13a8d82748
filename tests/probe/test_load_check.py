"""Under load: every pair is judged by itself, and a fault that only load brings out is seen there and nowhere else."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
from msgspec import structs
from virtual_gpus import EFFORT, blocks_left, made, setup_of, tried

from linkproof.measured import Case, Outcome
from linkproof.probe.devices import DeviceLost, NotPossible
from linkproof.probe.load_check import SIZES_B
from linkproof.probe.setup import MiB
from linkproof.sim.scenario import LinkFault, Shared
from linkproof.sim.virtual import Virtual, create
from linkproof.tasks import run_case

BIG = structs.replace(EFFORT, sizes_B=(*EFFORT.sizes_B, 16 * MiB))


def loaded(v: Virtual, mode: str, *gpus: int, load: str = "all") -> dict[tuple[int, ...], Outcome]:
    return {o.case.gpus: o for o in run_case(v, Case(mode, gpus, load), setup_of(v.folder))}


@pytest.mark.parametrize("mode", ["staged", "push", "store16"])
def test_every_pair_has_an_outcome_and_a_speed_of_its_own(tmp_path: Path, mode: str) -> None:
    v = made(tmp_path, 3)
    found = loaded(v, mode, 0, 1, 2)
    assert set(found) == set(permutations(range(3), 2))
    for pair, o in found.items():
        assert (o.state, o.case.load, o.rounds, o.largest_ok_B) == ("verified", "all", 3 * 2, 2 * MiB)
        assert o.speed is not None and (o.speed.src, o.speed.dst) == pair and o.speed.load == "all" and o.speed.lat_us is None
    assert blocks_left(v) == [] and not v.loaded


def test_sizes_go_as_far_as_the_effort_does(tmp_path: Path) -> None:
    (one, _) = run_case(made(tmp_path), Case("push", (0, 1), "both_ways"), setup_of(tmp_path, BIG))
    assert one.largest_ok_B == max(SIZES_B) == 16 * MiB and one.rounds == 3 * len(SIZES_B)


@pytest.mark.parametrize("load", ["both_ways", "all"])
def test_a_fault_that_only_load_brings_out_is_not_there_alone_and_is_on_its_pair(tmp_path: Path, load: str) -> None:
    v = made(tmp_path, 3, LinkFault("bit", value=7, pairs=("1->2",), only_under_load=True))
    assert tried(v, "push", 1, 2).state == "verified"
    found = loaded(v, "push", *((1, 2) if load == "both_ways" else (0, 1, 2)), load=load)
    assert {pair for pair, o in found.items() if o.state == "corrupt"} == {(1, 2)}
    assert {(w.kind, w.detail) for w in found[1, 2].wrong} == {("bits", "7")}
    assert tried(v, "push", 1, 2).state == "verified", "the load is taken away again"


@pytest.mark.parametrize(("fault", "kind"), [("zero", "zero"), ("drop", "untouched"), ("shift:16", "offset"), ("neighbour", "overrun")])
def test_faults_put_in_on_purpose_are_named_under_load_too(tmp_path: Path, fault: str, kind: str) -> None:
    v = made(tmp_path)
    outcomes = run_case(v, Case("push", (0, 1), "both_ways", fault=fault), setup_of(tmp_path))
    assert [o.state for o in outcomes] == ["corrupt"] * 2 and all(kind in {w.kind for w in o.wrong} for o in outcomes)
    assert all(o.case.fault == fault for o in outcomes)
    clean = run_case(v, Case("staged", (0, 1), "both_ways", fault=fault), setup_of(tmp_path))
    assert [o.state for o in clean] == ["verified"] * 2


def test_a_way_that_pairs_share_is_slower_under_load_and_right(tmp_path: Path) -> None:
    v = made(tmp_path, 3)
    links = tuple(f"{a}->{b}" for a, b in permutations(range(3), 2))
    create(structs.replace(v.scenario, shared=(Shared(links, 20.0),)), tmp_path)
    alone = tried(Virtual(tmp_path), "push", 0, 1).speed
    together = loaded(Virtual(tmp_path), "push", 0, 1, 2)[0, 1]
    assert together.state == "verified" and alone is not None and together.speed is not None
    assert together.speed.bw_GBps == pytest.approx(20.0 / 6, rel=0.1) and alone.bw_GBps > 15


def test_one_card_is_loaded_with_itself(tmp_path: Path) -> None:
    assert set(loaded(made(tmp_path), "push", 0)) == {(0, 0)}


def test_a_pair_without_peer_access_refuses_the_case_of_all_and_host_memory_does_not(tmp_path: Path) -> None:
    v = made(tmp_path, 3, refused_pairs=("1->2", "2->1"))
    with pytest.raises(NotPossible):
        loaded(v, "push", 0, 1, 2)
    assert {o.state for o in loaded(v, "staged", 0, 1, 2).values()} == {"verified"}


def test_no_room_and_a_lost_gpu_travel_and_leave_nothing_behind(tmp_path: Path) -> None:
    small = made(tmp_path / "small", 3, each={"memory_GiB": 0.01})
    with pytest.raises(MemoryError):
        loaded(small, "push", 0, 1, 2)
    v = made(tmp_path / "lost", 3)
    (v.folder / "lost-0").touch()
    with pytest.raises(DeviceLost):
        loaded(v, "push", 0, 1, 2)
    assert blocks_left(small) == blocks_left(v) == [] and not v.loaded
