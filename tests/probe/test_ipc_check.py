"""Between processes: real ones, a gang per case, each with its own view of the same virtual machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from virtual_gpus import blocks_left, scenario, setup_of

from linkproof.measured import Case, Outcome
from linkproof.probe.devices import NotTested
from linkproof.probe.ipc_check import SIZES_B, Channel, member
from linkproof.probe.workers.worker import Job, Runner
from linkproof.sim.scenario import LinkFault
from linkproof.sim.virtual import Virtual, create

ROUNDS = 3 * len(SIZES_B)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield


def gang(
    folder: Path, gpus: Sequence[int], *faults: LinkFault, mode: str = "ipc", deadline_s: float = 30.0, **changed: Any
) -> list[Outcome]:
    create(scenario(max(gpus) + 1, *faults, **changed), folder)
    with Runner(setup_of(folder)) as runner:
        return list(runner.run([Job(Case(mode, tuple(gpus)), deadline_s)]))


def by_pair(outcomes: list[Outcome]) -> dict[tuple[int, ...], Outcome]:
    found = {o.case.gpus: o for o in outcomes}
    assert len(found) == len(outcomes), "one for each pair"
    return found


@pytest.mark.parametrize(("mode", "gpus"), [("ipc", (0, 1)), ("ipc_vmm", (0, 1)), ("ipc", (0, 1, 2))])
def test_every_owner_judges_what_every_other_wrote(tmp_path: Path, mode: str, gpus: tuple[int, ...]) -> None:
    found = by_pair(gang(tmp_path, gpus, mode=mode))
    assert set(found) == set(permutations(gpus, 2))
    for o in found.values():
        assert (o.state, o.rounds, o.verified_B, o.case.mode) == ("verified", ROUNDS, 3 * sum(SIZES_B), mode)


@pytest.mark.parametrize("fault", [("zero", "zero"), ("drop", "untouched"), ("bit", "bits"), ("neighbour", "overrun")])
def test_a_fault_of_one_pair_is_seen_by_its_owner_alone(tmp_path: Path, fault: tuple[str, str]) -> None:
    found = by_pair(gang(tmp_path, (0, 1, 2), LinkFault(fault[0], pairs=("1->2",))))
    assert {pair for pair, o in found.items() if o.state != "verified"} == {(1, 2)}
    assert found[1, 2].state == "corrupt" and fault[1] in {w.kind for w in found[1, 2].wrong}


def test_a_fault_of_the_copy_engine_and_not_of_kernels_is_seen_too(tmp_path: Path) -> None:
    """Copies and kernel stores take turns."""
    for modes in (("push",), ("store16",)):
        found = by_pair(gang(tmp_path, (0, 1), LinkFault("zero", modes=modes)))
        assert {o.state for o in found.values()} == {"corrupt"} and all(0 < o.bad_rounds < ROUNDS for o in found.values())


def test_one_pair_without_peer_access_is_refused_and_the_others_are_verified(tmp_path: Path) -> None:
    found = by_pair(gang(tmp_path, (0, 1, 2), refused_pairs=("1->2", "2->1")))
    assert {pair: o.state for pair, o in found.items()} == {
        pair: "refused" if set(pair) == {1, 2} else "verified" for pair in permutations(range(3), 2)
    }


def test_a_machine_that_shares_no_handles_refuses_every_pair(tmp_path: Path) -> None:
    states = {o.state for o in gang(tmp_path, (0, 1), refused=("ipc",))}
    assert states == {"refused"}


def test_one_card_is_shared_between_two_processes(tmp_path: Path) -> None:
    (o,) = gang(tmp_path, (0, 0))
    assert (o.case.gpus, o.state, o.verified_B) == ((0, 0), "verified", 2 * 3 * sum(SIZES_B)), "what both have seen"
    (bad,) = gang(tmp_path, (0, 0), refused=("ipc",))
    assert bad.state == "refused"


def test_a_write_that_never_ends_is_a_hang_and_nothing_is_left(tmp_path: Path) -> None:
    outcomes = gang(tmp_path, (0, 1), LinkFault("hang", modes=("store16",), pairs=("0->1",)), deadline_s=1.5)
    assert outcomes and all(o.state == "hung" for o in outcomes)
    assert Virtual(tmp_path).alloc(0, 64).address_B == 0, "what the killed processes held is free again"


def test_no_room_for_the_buffers_is_not_tested_and_not_a_pass(tmp_path: Path) -> None:
    assert {o.state for o in gang(tmp_path, (0, 1), each={"memory_GiB": 0.01})} == {"not_tested"}


def test_flags_between_processes_need_kernels_that_a_virtual_gpu_has_not(tmp_path: Path) -> None:
    create(scenario(), tmp_path)
    devices = Virtual(tmp_path)
    with pytest.raises(NotTested):
        member(devices, Case("flags_ipc", (0, 1)), setup_of(tmp_path), 0, str(tmp_path))
    assert blocks_left(devices) == []


def test_a_note_is_never_read_by_half(tmp_path: Path) -> None:
    channel = Channel(str(tmp_path))
    channel.tell("handle-0", b"x" * 100_000)
    assert channel.hear("handle-0") == b"x" * 100_000 and [p.name for p in tmp_path.iterdir()] == ["handle-0"]
