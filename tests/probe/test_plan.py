"""The plan tries everything once, says what it leaves out and why, and its numbers add up; for machines of any size."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from linkproof.errors import UsageError
from linkproof.measured import MODES, Card, Case, Outcome
from linkproof.probe.collectives.nccl_said import arms
from linkproof.probe.plan import CHAINS_MOST, MANY_PAIRS, START_S, UNDER_LOAD, Plan, Wish, effort, plan
from linkproof.probe.setup import OWN_PROCESSES, SIZES_B, MiB
from linkproof.prove import planned

PAIR_MODES = [m.name for m in MODES.values() if m.scope == "pair" and m.name not in OWN_PROCESSES]
ARMS = ("default/default", "p2p/LL", "shm/Simple")


def cards(n: int, busy: tuple[int, ...] = ()) -> list[Card]:
    return [Card(i, "NVIDIA H200", busy="python (pid 7)" if i in busy else "") for i in range(n)]


ALL = Wish()


def made(n: int, wish: Wish = ALL, *, backend: str = "cuda", busy: tuple[int, ...] = (), absent: tuple[str, ...] = ()) -> Plan:
    return plan(cards(n, busy), backend, ARMS, wish, absent)


def cases(p: Plan, mode: str, load: str = "alone") -> list[tuple[int, ...]]:
    return [job.case.gpus for job in p.jobs if (job.case.mode, job.case.load) == (mode, load)]


def left(p: Plan) -> list[Outcome]:
    """What is left out, but for multicast, which nobody asked for."""
    return [o for o in p.left_out if o.case.mode != "nvls"]


@given(st.integers(2, 16), st.booleans())
@settings(max_examples=30, deadline=None)
def test_every_ordered_pair_and_mode_is_tried_once_whatever_the_number_of_gpus(n: int, deep: bool) -> None:
    p = made(n, Wish(deep=deep))
    pairs = sorted(permutations(range(n), 2))
    for mode in PAIR_MODES:
        assert sorted(cases(p, mode)) == pairs, mode
    for mode in OWN_PROCESSES:
        assert cases(p, mode) == [tuple(range(n))], "one gang, in which every pair has its turn"
    for how in UNDER_LOAD if deep or len(pairs) <= MANY_PAIRS else ("push", "store16"):
        assert cases(p, how, "both_ways") == [(a, b) for a, b in pairs if a < b]
        assert cases(p, how, "all") == ([tuple(range(n))] if n > 2 else [])
    every = [job.case for job in p.jobs]
    assert len({repr(case) for case in every}) == len(every) and left(p) == []
    chains = cases(p, "chain")
    assert len(chains) == (n if deep else min(n, CHAINS_MOST)) and all(a != b != c for a, b, c in chains)


@given(st.integers(1, 16), st.booleans(), st.sampled_from(["cuda", "hip", "virtual"]))
@settings(max_examples=40, deadline=None)
def test_costs_add_up_and_a_deadline_is_far_above_its_cost(n: int, deep: bool, backend: str) -> None:
    p = made(n, Wish(deep=deep), backend=backend)
    assert p.cost_s == pytest.approx(START_S + sum(job.cost_s for job in p.jobs))
    assert all(job.deadline_s >= max(3.0, 10 * job.cost_s) and job.cost_s > 0 for job in p.jobs)


def test_eight_gpus_take_less_than_a_minute_and_deep_takes_longer() -> None:
    p = plan(cards(8), "cuda", arms(8, (2, 27, 5), False), Wish(), ("vllm_allreduce", "sglang_allreduce"))
    assert 20 < p.cost_s < 60
    assert made(8, Wish(deep=True)).cost_s > 2 * made(8).cost_s
    assert made(1).cost_s < 60 and made(2).cost_s < made(8).cost_s


def test_the_control_comes_first_and_what_runs_alone_before_what_runs_at_once() -> None:
    order = [job.case for job in made(4).jobs]
    assert order[0].mode == "staged"
    first_load = next(i for i, case in enumerate(order) if case.load != "alone")
    first_group = next(i for i, case in enumerate(order) if MODES[case.mode].scope == "group")
    assert max(i for i, case in enumerate(order) if case.mode in PAIR_MODES and case.load == "alone") < first_load < first_group


# ---------------------------------------------------------------- what is left out, and what is wanted


def test_a_busy_gpu_is_left_alone_with_the_reason_and_force_takes_it() -> None:
    p = made(4, busy=(2,))
    assert all(2 not in job.case.gpus for job in p.jobs) and sorted(cases(p, "push")) == sorted(permutations((0, 1, 3), 2))
    (busy,) = left(p)
    assert (busy.case.gpus, busy.state, busy.args) == ((2, 2), "not_tested", {"gpu": "2", "by": "python (pid 7)"}) and "--force" in busy.why
    forced = made(4, Wish(force=True), busy=(2,))
    assert left(forced) == [] and sorted(cases(forced, "push")) == sorted(permutations(range(4), 2))


def test_nothing_is_planned_where_all_are_busy_and_each_says_so() -> None:
    p = made(2, busy=(0, 1))
    assert p.jobs == () and [o.case.gpus for o in p.left_out] == [(0, 0), (1, 1)] and p.cost_s == START_S


def test_a_pair_alone_is_one_direction_of_two_gpus() -> None:
    p = made(8, Wish(pairs=((3, 5),)))
    assert cases(p, "push") == [(3, 5)] and cases(p, "push", "both_ways") == [(3, 5)] and cases(p, "push", "all") == []
    assert cases(p, "ipc") == [(3, 5)] and {job.case.gpus for job in p.jobs if job.case.mode == "nccl"} == {(3, 5)}


def test_a_mode_alone_is_all_pairs_of_that_mode() -> None:
    p = made(3, Wish(modes=("store16", "flags")))
    assert {job.case.mode for job in p.jobs} == {"store16", "flags"} and sorted(cases(p, "flags")) == sorted(permutations(range(3), 2))
    assert made(3, Wish(pairs=((0, 1),), modes=("pull",))).jobs[0].case == Case("pull", (0, 1))


@pytest.mark.parametrize("pair", [(0, 9), (9, 0), (1, 1)])
def test_a_pair_that_is_not_there_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(UsageError) as told:
        planned(cards(2), "cuda", Wish(pairs=(pair,)))
    assert "0, 1" in told.value.told("en") and "GPU 编号为 0, 1" in told.value.told("zh")
    assert planned(cards(1), "cuda", Wish(pairs=((0, 0),))).jobs, "one card with itself is what there is"


def test_one_gpu_is_tried_with_itself_and_as_two_processes() -> None:
    p = made(1)
    assert {job.case.gpus for job in p.jobs} == {(0, 0)} and cases(p, "chain") == [] and not any(job.case.load != "alone" for job in p.jobs)
    assert {job.case.mode for job in p.jobs} == set(MODES) - {"chain", "nvls"}


# ---------------------------------------------------------------- NVLink multicast: only if asked for


def multicast(p: Plan) -> tuple[int, list[tuple[str, dict[str, str]]]]:
    """(how often it is tried, why it is not)"""
    return len(cases(p, "nvls")), [(o.why, o.args) for o in p.left_out if o.case.mode == "nvls"]


@pytest.mark.parametrize("n", [1, 2, 8])
def test_multicast_is_tried_only_if_it_was_asked_for_and_else_it_says_how_to_ask(n: int) -> None:
    for wish in (Wish(), Wish(force=True), Wish(pairs=((0, 1),) if n > 1 else ())):
        tried, ((why, args),) = multicast(made(n, wish))
        assert not tried and args == {} and "--deep or --mode nvls" in why and "killed" in why
    for wish in (Wish(deep=True), Wish(modes=("nvls",)), Wish(modes=("push", "nvls"))):
        assert multicast(made(n, wish)) == (1, [])
    assert multicast(made(n, Wish(modes=("push",)))) == (0, []) == multicast(made(n, Wish(), backend="virtual"))


@pytest.mark.parametrize("wish", [Wish(), Wish(deep=True), Wish(modes=("nvls",))])
def test_multicast_that_is_switched_off_or_not_offered_is_not_tried_asked_for_or_not(wish: Wish) -> None:
    off = plan(cards(2), "cuda", ARMS, wish, (), "NCCL_NVLS_ENABLE=0")
    assert multicast(off) == (0, [("NVLink multicast is switched off here: {setting}", {"setting": "NCCL_NVLS_ENABLE=0"})])
    for offered, said in ((False, "GPU and driver offer no NVLink multicast"), (True, ""), (None, "")):
        these = [structs.replace(c, multicast=offered if c.index == 1 else True) for c in cards(2)]
        tried, whys = multicast(plan(these, "cuda", ARMS, wish))
        assert (tried, [why for why, _ in whys]) == (0, [said]) if said else tried == (wish != Wish())


@pytest.mark.parametrize(
    ("env", "off"),
    [
        ({}, ""),
        ({"TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}, "TORCH_SYMM_MEM_DISABLE_MULTICAST=1"),
        ({"NCCL_NVLS_ENABLE": "0"}, "NCCL_NVLS_ENABLE=0"),
        ({"TORCH_SYMM_MEM_DISABLE_MULTICAST": "0", "NCCL_NVLS_ENABLE": "1"}, ""),
        ({"TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NCCL_NVLS_ENABLE": "0"}, "TORCH_SYMM_MEM_DISABLE_MULTICAST=1"),
    ],
)
def test_the_setting_that_switches_multicast_off_is_named(env: dict[str, str], off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_SYMM_MEM_DISABLE_MULTICAST", "NCCL_NVLS_ENABLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    tried, whys = multicast(planned(cards(2), "cuda", Wish(modes=("nvls",))))
    assert (tried, [args["setting"] for _, args in whys]) == ((0, [off]) if off else (1, []))


def test_no_gpu_no_plan() -> None:
    assert (made(0).jobs, made(0).left_out) == ((), ())


def test_what_is_written_for_nvidia_alone_is_not_tested_on_amd_and_says_so() -> None:
    p = made(2, backend="hip")
    nvidia = {m.name for m in MODES.values() if m.nvidia}
    assert not {job.case.mode for job in p.jobs} & nvidia and {o.case.mode for o in p.left_out} == nvidia
    assert {(o.state, o.why) for o in p.left_out} == {("not_tested", "only written for NVIDIA GPUs")}
    assert {job.case.mode for job in p.jobs} == set(MODES) - nvidia


def test_a_simulated_machine_has_no_engines_and_nothing_is_said_of_them() -> None:
    p = made(2, backend="virtual")
    groups = {m.name for m in MODES.values() if m.scope == "group"}
    assert {job.case.mode for job in p.jobs} == set(MODES) - groups | {"nccl"} and p.left_out == ()


def test_what_is_not_installed_costs_next_to_nothing_and_is_still_asked() -> None:
    here, gone = made(2), made(2, absent=("vllm_allreduce",))
    cost = {name: next(j.cost_s for j in p.jobs if j.case.mode == "vllm_allreduce") for name, p in (("here", here), ("gone", gone))}
    assert cost["gone"] < 0.2 < 5 < cost["here"]


def test_simulated_gpus_share_the_cores_of_this_computer_and_get_time_for_it() -> None:
    """A case that only waits for its turn must not be called hung."""
    usual, deep = made(8, backend="virtual"), made(2, Wish(deep=True), backend="virtual")
    assert min(job.deadline_s for job in usual.jobs) >= 3
    assert all(job.deadline_s >= 12 for job in usual.jobs if len(job.case.gpus) == 8)
    assert all(job.deadline_s >= 18 for job in deep.jobs)


# ---------------------------------------------------------------- effort


def test_a_real_machine_gets_every_size_whatever_its_number_of_gpus_and_deep_looks_harder() -> None:
    for n in (1, 2, 4, 8, 16):
        usual, deep = effort(False, False, n), effort(True, False, n)
        assert usual.sizes_B == deep.sizes_B == SIZES_B and min(usual.rounds_small, usual.rounds_big) >= 1
        assert deep.rounds_small > usual.rounds_small and deep.sweep and not usual.sweep and deep.message_rounds >= 10_000
    assert effort(False, False, 2).message_rounds >= 10_000


def test_a_simulated_machine_gets_small_transfers_and_all_of_them_in_deep() -> None:
    assert max(effort(False, True, 2).sizes_B) == 16 * MiB and max(effort(False, True, 8).sizes_B) == 2 * MiB + 16
    assert effort(True, True, 8).sizes_B == SIZES_B and effort(True, True, 2).sweep
