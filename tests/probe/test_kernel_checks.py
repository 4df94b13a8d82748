"""Views, messages with flags, atomics and chains: two and three virtual GPUs, right, refused, and wrong on one pair only."""

from __future__ import annotations

from itertools import pairwise, permutations
from pathlib import Path

import pytest
from msgspec import structs
from virtual_gpus import EFFORT, blocks_left, made, setup_of, tried

from linkproof.measured import Case
from linkproof.probe.devices import U8, Buffer, DeviceLost, NotPossible, NotTested
from linkproof.probe.kernel_checks import ADDITIONS, CHAIN_SIZES_B, MESSAGE_SIZES_B, VIEW_SIZES_B
from linkproof.sim.scenario import Link, LinkFault, PairLink
from linkproof.sim.virtual import Virtual, create
from linkproof.tasks import run_case

MODES = ("views", "flags", "atomics")
ONE_PAIR = ("1->2",)
ATOMIC = Link(atomics=True)


def refused(devices: Virtual, mode: str, *gpus: int) -> bool:
    with pytest.raises(NotPossible):
        tried(devices, mode, *gpus)
    return True


@pytest.mark.parametrize("gpus", [2, 3])
def test_what_is_right_is_verified_on_every_pair_and_gives_its_memory_back(tmp_path: Path, gpus: int) -> None:
    v = made(tmp_path, gpus, link=ATOMIC)
    for mode in MODES:
        for pair in permutations(range(gpus), 2):
            o = tried(v, mode, *pair)
            assert (o.state, o.wrong, o.why, o.bad_rounds) == ("verified", (), "", 0) and o.rounds > 0 and o.verified_B > 0
    assert blocks_left(v) == []


@pytest.mark.parametrize("mode", MODES)
def test_one_pair_without_peer_access_is_refused_and_the_others_are_tried(tmp_path: Path, mode: str) -> None:
    v = made(tmp_path, 3, refused_pairs=("1->2", "2->1"), link=ATOMIC)
    assert refused(v, mode, 1, 2) and refused(v, mode, 2, 1)
    assert [tried(v, mode, *pair).state for pair in ((0, 1), (1, 0), (0, 2), (2, 0))] == ["verified"] * 4


# ---------------------------------------------------------------- views


@pytest.mark.parametrize(
    ("fault", "kind"), [("drop", "untouched"), ("zero", "zero"), ("bit", "bits"), ("torn", "torn"), ("tail", "untouched")]
)
def test_stores_that_go_wrong_are_seen_in_the_owners_view_of_that_pair_alone(tmp_path: Path, fault: str, kind: str) -> None:
    v = made(tmp_path, 3, LinkFault(fault, modes=("store16",), pairs=ONE_PAIR))
    o = tried(v, "views", 1, 2)
    assert o.state == "corrupt" and kind in {w.kind for w in o.wrong}
    assert "writer reads its own bytes back" not in o.why, "the writer does not see them either"
    assert [tried(v, "views", *pair).state for pair in ((2, 1), (0, 2), (1, 0))] == ["verified"] * 3


def test_a_writer_that_sees_what_its_owner_does_not_have_is_told_so(tmp_path: Path) -> None:
    v = made(tmp_path, 3, LinkFault("mirror", modes=("store", "store16"), pairs=ONE_PAIR))
    o = tried(v, "views", 1, 2)
    times = f"{3 * len(VIEW_SIZES_B)}"
    assert o.state == "corrupt" and o.why.startswith("the writer reads its own bytes back") and o.args == {"mirror": times, "rounds": times}
    assert tried(v, "views", 2, 1).state == "verified"


def test_a_writer_that_sees_wrong_what_its_owner_has_right_is_seen(tmp_path: Path) -> None:
    """Loads go wrong and stores do not: the look of the writer is a load over the link."""
    v = made(tmp_path, 2, LinkFault("bit", modes=("load",)))
    o = tried(v, "views", 0, 1)
    assert o.state == "corrupt" and {w.kind for w in o.wrong} == {"bits"} and all(0 <= w.first_B < o.size_B for w in o.wrong)
    assert o.why.startswith("the owner has the data, the writer does not see them") and o.args["n"] == o.args["rounds"]
    assert tried(made(tmp_path / "stores", 2, LinkFault("bit", modes=("store", "store16"))), "views", 0, 1).why.startswith("{bad} of"), (
        "both see them wrong"
    )


# ---------------------------------------------------------------- flags


def test_all_messages_are_counted(tmp_path: Path) -> None:
    o = tried(made(tmp_path), "flags", 0, 1)
    wanted = EFFORT.message_rounds
    assert o.rounds == wanted * len(MESSAGE_SIZES_B) and o.size_B == MESSAGE_SIZES_B[-1] and o.verified_B == MESSAGE_SIZES_B[-1] * o.rounds


@pytest.mark.parametrize("mode", ["flags", "flags_ipc"])
def test_a_flag_before_its_data_is_called_reordered_on_its_pair_alone(tmp_path: Path, mode: str) -> None:
    v = made(tmp_path, 3, LinkFault("reorder", pairs=ONE_PAIR))
    found = {o.case.gpus: o for pair in permutations(range(3), 2) for o in run_case(v, Case(mode, pair), setup_of(tmp_path))}
    for pair, o in found.items():
        if set(pair) == {1, 2}:  # to and fro
            assert o.state == "corrupt" and o.wrong[0].kind == "reordered" and 0 < o.bad_rounds <= o.rounds
        else:
            assert o.state == "verified", pair


def test_one_late_message_in_many_is_seen(tmp_path: Path) -> None:
    v = made(tmp_path, 2, LinkFault("reorder", probability=0.02))
    o = tried(v, "flags", 0, 1)
    assert o.state == "corrupt" and 0 < o.bad_rounds < o.rounds / 4 and o.args["late"] == f"{o.bad_rounds:,}"
    assert o.verified_B == o.size_B * (o.rounds - o.bad_rounds)


@pytest.mark.parametrize("fault", ["hang", "drop", "zero"])
def test_a_flag_that_never_comes_is_a_hang_that_ends_by_itself(tmp_path: Path, fault: str) -> None:
    v = made(tmp_path, 3, LinkFault(fault, modes=("flags",), pairs=ONE_PAIR))
    quick = structs.replace(EFFORT, message_deadline_s=0.3)
    o = tried(v, "flags", 1, 2, effort=quick)
    assert (o.state, o.rounds, o.wrong) == ("hung", 0, ()) and o.args["rounds"] == f"{quick.message_rounds}"
    assert o.took_s < 3, "the second size is not waited for"
    assert tried(v, "flags", 0, 1).state == "verified" and blocks_left(v) == []


def test_messages_between_processes_of_a_simulated_machine_are_told_for_every_pair(tmp_path: Path) -> None:
    v = made(tmp_path, 3, LinkFault("reorder", pairs=ONE_PAIR))
    outcomes = run_case(v, Case("flags_ipc", (0, 1, 2)), setup_of(tmp_path))
    assert {o.case.gpus: o.state for o in outcomes} == {
        pair: "corrupt" if set(pair) == {1, 2} else "verified" for pair in permutations(range(3), 2)
    }


def test_amd_has_no_flags_and_no_atomics_here(tmp_path: Path) -> None:
    v = made(tmp_path, each={"vendor": "amd"})
    for mode in ("flags", "flags_ipc", "atomics"):
        with pytest.raises(NotTested):
            run_case(v, Case(mode, (0, 1)), setup_of(tmp_path))


# ---------------------------------------------------------------- atomics


def test_lost_additions_are_counted_and_are_no_corruption(tmp_path: Path) -> None:
    v = made(tmp_path, 3, LinkFault("atomics_lost", pairs=ONE_PAIR), link=ATOMIC)
    o = tried(v, "atomics", 1, 2)
    assert o.state == "refused" and o.args == {"lost": f"{ADDITIONS:,}", "all": f"{2 * ADDITIONS:,}"} and o.wrong == ()
    assert tried(v, "atomics", 2, 1).state == "verified"


def test_a_link_without_atomics_refuses_them(tmp_path: Path) -> None:
    v = made(tmp_path, 3, link=ATOMIC)
    create(structs.replace(v.scenario, links=(PairLink(ONE_PAIR, Link(atomics=False)),)), tmp_path)
    assert refused(Virtual(tmp_path), "atomics", 1, 2) and tried(Virtual(tmp_path), "atomics", 2, 1).state == "verified"


# ---------------------------------------------------------------- chains


@pytest.mark.parametrize("three", [(0, 1, 2), (2, 1, 0), (0, 1, 0)])
def test_a_right_chain_is_verified_hop_by_hop_and_size_by_size(tmp_path: Path, three: tuple[int, ...]) -> None:
    v = made(tmp_path, 3)
    o = tried(v, "chain", *three)
    assert (o.state, o.rounds, o.case.gpus) == ("verified", 3 * 3 * len(CHAIN_SIZES_B), three) and blocks_left(v) == []


@pytest.mark.parametrize(("pairs", "bad"), [(("0->1",), {(0, 1, 2)}), (("1->2",), {(0, 1, 2)}), (("2->0",), {(1, 2, 0), (2, 0, 1)})])
def test_a_chain_is_wrong_if_one_of_its_hops_is(tmp_path: Path, pairs: tuple[str, ...], bad: set[tuple[int, ...]]) -> None:
    v = made(tmp_path, 3, LinkFault("zero", modes=("push",), pairs=pairs))
    for three in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        hops = {f"{a}->{b}" for a, b in pairwise(three)}
        assert (tried(v, "chain", *three).state == "corrupt") == bool(hops & set(pairs)), three
    assert all(tried(v, "chain", *three).state == "corrupt" for three in bad)


class Overtakes(Virtual):
    """The second hop of a chain begins before the first one's data are there, unless somebody waits between."""

    late: list[tuple[Buffer, int, U8]]

    def move(self, how: str, src: Buffer, src_at_B: int, dst: Buffer, dst_at_B: int, size_B: int, wait: bool = True) -> None:
        if how == "staged" and not wait:
            data = self.get(src, src_at_B, size_B)
            self.late = [*getattr(self, "late", []), (dst, dst_at_B, data)]
        else:
            super().move(how, src, src_at_B, dst, dst_at_B, size_B, wait)

    def sync(self) -> None:
        for dst, at_B, data in getattr(self, "late", []):
            self.put(dst, at_B, data)
        self.late = []


def test_a_hop_that_overtakes_the_one_before_is_seen_and_copies_with_waiting_are_right(tmp_path: Path) -> None:
    create(made(tmp_path, 3).scenario, tmp_path)
    v = Overtakes(tmp_path)
    o = tried(v, "chain", 0, 1, 2)
    assert o.state == "corrupt" and o.wrong[0].kind == "stale", "the middle had old data"
    assert tried(v, "staged", 0, 1).state == tried(v, "push", 1, 2).state == "verified"


def test_a_gpu_lost_on_the_way_is_told_by_every_check(tmp_path: Path) -> None:
    v = made(tmp_path, 3, link=ATOMIC)
    (tmp_path / "lost-2").touch()
    for mode in MODES:
        with pytest.raises(DeviceLost):
            tried(v, mode, 1, 2)
        assert tried(v, mode, 0, 1).state == "verified"
    with pytest.raises(DeviceLost):
        tried(v, "chain", 0, 1, 2)
