"""Collectives checked for real over gloo between forked ranks, with one rank's result tampered with; NCCL's log in the shapes it has had."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from linkproof.measured import Case, Outcome
from linkproof.probe.collectives import nccl_said, sums
from linkproof.probe.payload import Key, words
from linkproof.probe.setup import Effort, Setup

torch = pytest.importorskip("torch", reason="needs torch; CPU is enough")
dist = torch.distributed

from linkproof.probe.collectives import groups, nccl_check, ranks  # noqa: E402

SEED = 0x1234_5678_9ABC_DEF0
QUICK = Effort(sizes_B=(8, 256, 8192, 65536), rounds_small=8, rounds_big=3)
SETUP = Setup("gloo", SEED, QUICK)


def _child(case: Case, member: int, members: int, folder: str, tamper: Callable[[int], None], mail: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(groups.member_env(case, SETUP, member, members))
    tamper(member)
    mail.put((member, groups.member(case, SETUP, member, members, folder)))


def _gang(folder: Path, members: int, tamper: Callable[[int], None] = lambda member: None, mode: str = "nccl") -> dict[int, Outcome]:
    case = Case(mode, tuple(range(members)), arm="default/default" if mode == "nccl" else "")
    fork = multiprocessing.get_context("fork")
    mail = fork.SimpleQueue()
    children = [fork.Process(target=_child, args=(case, m, members, str(folder), tamper, mail)) for m in range(members)]
    for child in children:
        child.start()
    told = dict(mail.get() for _ in children)
    for child in children:
        child.join()
    return told


# ---------------------------------------------------------------- gloo ranks


@pytest.mark.parametrize("members", [2, 3])
def test_a_clean_run_is_verified_on_every_rank(tmp_path: Path, members: int) -> None:
    told = _gang(tmp_path, members)
    assert {o.state for o in told.values()} == {"verified"}
    per_round = (members - 1) + 1 + 1 + members
    assert all(o.rounds == 5 * 8 * per_round for o in told.values())  # 8, 256, 4080, 8192, 65536 bytes
    assert all(
        o.verified_B > 100_000 and o.bw_GBps and o.bw_size_B == 65536 and o.transport == "gloo" and o.bad_rounds == 0 for o in told.values()
    )


@pytest.mark.parametrize("held", [True, False])
def test_the_time_of_an_all_reduce_is_between_two_marks_behind_one_that_is_not_timed(monkeypatch: pytest.MonkeyPatch, held: bool) -> None:
    done: list[str] = []
    marks = iter(("first", "last"))

    def mark(enable_timing: bool) -> Any:
        name = next(marks)
        return SimpleNamespace(record=lambda: done.append(name), elapsed_time=lambda last: 12.0)

    monkeypatch.setattr(torch.cuda, "Event", mark)
    monkeypatch.setattr(torch.cuda, "_sleep", (lambda turns: done.append("hold")) if held else None)
    monkeypatch.setattr(dist, "all_reduce", lambda data: done.append("all_reduce"))
    gang = SimpleNamespace(sync=lambda: done.append("sync"), device=SimpleNamespace(type="cuda"))
    assert nccl_check._seconds(gang, torch.zeros(1), 3) == pytest.approx(0.004)  # type: ignore[arg-type]
    assert done == ["sync", *(["hold"] if held else []), "all_reduce", "first", *["all_reduce"] * 3, "last", "sync"]


def _after(
    op: str, on: int, change: Callable[[Any, Any], None], sizes: Callable[[int], bool] = lambda size_B: size_B == 8192
) -> Callable[[int], None]:
    """On one rank, once per call of dist.<op> on data of such a size: change(result, what was there before)."""

    def tamper(member: int) -> None:
        if member != on:
            return
        true = getattr(dist, op)

        def false(out: Any, *more: Any, **named: Any) -> Any:
            before = out.clone()
            done = true(out, *more, **named)
            if sizes(out.numel() * out.element_size()):
                change(out, before)
            return done

        setattr(dist, op, false)

    return tamper


def test_one_wrong_element_of_one_rank_is_found_and_told_by_that_rank_alone(tmp_path: Path) -> None:
    def change(out: Any, before: Any) -> None:
        out[100] += 1

    told = _gang(tmp_path, 2, _after("all_reduce", 1, change))
    assert told[0].state == "verified"
    bad = told[1]
    assert bad.state == "corrupt" and bad.op == "all_reduce bfloat16" and bad.size_B == 8192 and bad.args["rank"] == "1"
    assert bad.bad_rounds == 8 and bad.smallest_bad_B == 8192 and bad.largest_ok_B == 65536
    assert bad.wrong[0].first_B == 200 and bad.wrong[0].bad_B == 2


def test_the_part_of_a_rank_that_is_missing_from_the_sum_is_named(tmp_path: Path) -> None:
    def tamper(member: int) -> None:
        if member == 2:  # its part never arrives anywhere, nor on itself
            true = dist.all_reduce

            def false(out: Any, *more: Any, **named: Any) -> Any:
                return true(out.zero_() if out.numel() * out.element_size() == 256 else out, *more, **named)

            dist.all_reduce = false

    told = _gang(tmp_path, 3, tamper)
    assert {o.state for o in told.values()} == {"corrupt"}
    assert [(told[m].wrong[0].kind, told[m].wrong[0].detail) for m in (0, 1)] == [("zero", "rank 2 missing")] * 2


def test_between_two_ranks_a_sum_that_is_the_own_part_names_the_other(tmp_path: Path) -> None:
    told = _gang(tmp_path, 2, _after("all_reduce", 0, lambda out, before: out.copy_(before)))
    assert (told[0].wrong[0].kind, told[0].wrong[0].detail) == ("untouched", "rank 1 missing")
    assert told[1].state == "verified"


def test_a_sum_of_zeros_is_named(tmp_path: Path) -> None:
    assert _gang(tmp_path, 2, _after("all_reduce", 0, lambda out, before: out.zero_()))[0].wrong[0].kind == "zero"


def test_a_broadcast_that_never_came_is_named(tmp_path: Path) -> None:
    told = _gang(tmp_path, 2, _after("broadcast", 1, lambda out, before: out.copy_(before)))
    assert told[1].wrong[0].kind == "untouched" and told[1].op == "broadcast from 0" and told[1].wrong[0].bad_B == 8192
    assert told[0].state == "verified"


def test_a_result_of_the_last_round_is_stale(tmp_path: Path) -> None:
    def tamper(member: int) -> None:
        if member != 1:
            return
        true = dist.broadcast
        kept: dict[int, Any] = {}

        def false(out: Any, root: int) -> None:
            true(out, root)
            fresh = out.clone()
            if root == 0 and out.numel() * 8 == 65536:
                out.copy_(kept.get(out.numel(), fresh))
            if root == 0:
                kept[out.numel()] = fresh

        dist.broadcast = false

    bad = _gang(tmp_path, 2, tamper)[1]
    assert bad.state == "corrupt" and bad.op == "broadcast from 0"
    assert bad.wrong[0].kind == "stale" and bad.wrong[0].detail.startswith("round ")


def test_words_past_the_end_are_an_overrun(tmp_path: Path) -> None:
    def change(out: Any, before: Any) -> None:
        out.as_strided((out.numel() + 2,), (1,), out.storage_offset())[-2:] = 7

    bad = _gang(tmp_path, 2, _after("broadcast", 1, change))[1]
    assert bad.state == "corrupt" and bad.wrong[0].kind == "overrun" and bad.wrong[0].detail == "+0"


def test_a_wrong_pair_of_send_and_receive_is_named_by_the_receiver(tmp_path: Path) -> None:
    def tamper(member: int) -> None:
        if member != 2:
            return
        true = dist.batch_isend_irecv

        def false(ops: Any) -> Any:
            works = true(ops)
            for work in works:
                work.wait()
            if ops[1].peer == 0 and ops[1].tensor.numel() * 8 == 8192:
                ops[1].tensor[512:] = 0  # the second half of what came from rank 0
            return []

        dist.batch_isend_irecv = false

    bad = _gang(tmp_path, 3, tamper)[2]
    assert bad.state == "corrupt" and bad.op == "send/recv 0->2"
    assert bad.wrong[0].kind == "zero" and 4000 < bad.wrong[0].bad_B <= 4096 and bad.wrong[0].first_B == 4096
    assert bad.wrong[0].rate == 0.5


def test_a_rank_that_never_calls_leaves_a_hang_that_names_it(tmp_path: Path) -> None:
    """The runner ends it; the notes of the ranks say where it stood."""

    def tamper(member: int) -> None:
        if member == 1:
            true = dist.all_reduce

            def never(out: Any, *more: Any, **named: Any) -> Any:
                if out.numel() * out.element_size() < 8192:
                    return true(out, *more, **named)
                import time

                time.sleep(600)
                return None

            dist.all_reduce = never

    case = Case("nccl", (0, 1), arm="default/default")
    fork = multiprocessing.get_context("fork")
    mail = fork.SimpleQueue()
    children = [fork.Process(target=_child, args=(case, m, 2, str(tmp_path), tamper, mail)) for m in range(2)]
    for child in children:
        child.start()
    for _ in range(200):
        at = nccl_said.hung(case, 2, str(tmp_path), moving_s=0)
        if at.size_B == 8192 and at.op.startswith("all_reduce"):
            break
        children[0].join(0.1)
    for child in children:
        child.kill()
        child.join()
    at = nccl_said.hung(case, 2, str(tmp_path), moving_s=0)
    assert at.state == "hung" and at.op == "all_reduce bfloat16" and at.size_B == 8192 and at.args["rank"] == "0, 1"


def test_a_gang_that_still_begins_transfers_is_slow_and_not_hung(tmp_path: Path) -> None:
    for rank, round_ in ((0, 7), (1, 6)):
        nccl_said.note_path(str(tmp_path), rank).write_text(f'{{"op": "all_gather", "size_B": 64, "round": {round_}}}    ')
    case = Case("nccl", (0, 1))
    assert nccl_said.hung(case, 2, str(tmp_path)).state == "not_tested"
    for rank in (0, 1):
        os.utime(nccl_said.note_path(str(tmp_path), rank), (1, 1))
    at = nccl_said.hung(case, 2, str(tmp_path))
    assert at.state == "hung" and at.args == {"op": "all_gather", "round": "6", "rank": "1"}


def test_without_any_note_no_rank_had_begun(tmp_path: Path) -> None:
    assert nccl_said.hung(Case("nccl", (0, 1)), 2, str(tmp_path)).why == "no answer; no rank had begun"


# ---------------------------------------------------------------- data


def test_torch_and_numpy_make_the_same_words_and_the_same_parts() -> None:
    key, index = Key(SEED, 1, 1, 9), torch.arange(1000, dtype=torch.int64)
    assert np.array_equal(ranks._hash(key, index).numpy().view(np.uint64), words(key, 0, 1000))
    one = object.__new__(ranks.Ranks)
    one.setup, one.ranks, one.device, one.now = SETUP, 3, torch.device("cpu"), 9
    for dtype in nccl_check.DTYPES:
        assert np.array_equal(one.part(dtype, 1, 0, 1000).numpy(), sums.part(ranks.dtype_name(dtype), key, 3, index.numpy()))


@pytest.mark.parametrize("members", [2, 8])
def test_every_partial_sum_is_exact_in_every_type(members: int) -> None:
    index = np.arange(4096, dtype=np.int64)
    for dtype in nccl_check.DTYPES:
        parts = [torch.from_numpy(sums.part(ranks.dtype_name(dtype), Key(SEED, r, r, 1), members, index)).to(dtype) for r in range(members)]
        forward, backward = parts[0].clone(), parts[-1].clone()
        for p in parts[1:]:
            forward += p
        for p in reversed(parts[:-1]):
            backward += p
        assert torch.equal(forward, backward) and (not dtype.is_floating_point or float(forward.max()) <= 256)


def _named(change: Callable[[Any, Any], Any], dtype: str = "float32", members: int = 4) -> tuple[str, str]:
    index = np.arange(512, dtype=np.int64)
    parts = [sums.part(dtype, Key(SEED, r, r, 9), members, index) for r in range(members)]
    before = [sums.part(dtype, Key(SEED, r, r, 8), members, index) for r in range(members)]
    got = change(np.array(parts), np.array(before))
    return sums.name(got if dtype == "int64" else got.astype(np.float64), index, dtype, lambda r, n: Key(SEED, r, r, n), 0, members, 9)


@pytest.mark.parametrize(
    ("change", "kind", "detail"),
    [
        (lambda p, b: p[1:].sum(0) * 0, "zero", ""),
        (lambda p, b: p[0], "untouched", "own part only"),
        (lambda p, b: p.sum(0) - p[3], "zero", "rank 3 missing"),
        (lambda p, b: b.sum(0), "stale", "round 8"),
        (lambda p, b: p.sum(0) - p[2] + b[2], "stale", "rank 2, round 8"),
        (lambda p, b: p.sum(0) + p[1], "garbage", "rank 1 counted twice"),
        (lambda p, b: p.sum(0) * 3 + 1000, "garbage", ""),
    ],
)
def test_a_wrong_sum_says_what_it_is(change: Callable[[Any, Any], Any], kind: str, detail: str) -> None:
    assert _named(change) == (kind, detail)


def test_one_wrong_float_alone_is_held_against_nobody() -> None:
    index = np.arange(1, dtype=np.int64)
    parts = [sums.part("bfloat16", Key(SEED, r, r, 9), 4, index) for r in range(4)]
    got = (np.sum(parts, axis=0) - parts[3]).astype(np.float64)
    assert sums.name(got, index, "bfloat16", lambda r, n: Key(SEED, r, r, n), 0, 4, 9) == ("garbage", "")


def test_the_ll_protocol_is_not_tried_with_large_messages() -> None:
    deep = Setup("cuda", SEED, Effort(sweep=True))
    assert max(nccl_check._sizes(Case("nccl", (0, 1), arm="net/LL"), deep)) == 16 << 20
    assert max(nccl_check._sizes(Case("nccl", (0, 1), arm="net/LL128"), deep)) == 256 << 20
    assert max(nccl_check._sizes(Case("nccl", (0, 1), arm="p2p/Simple"), Setup("cuda", SEED))) == 16 << 20


def test_a_flipped_bit_of_a_whole_number_is_told_with_its_number() -> None:
    assert _named(lambda p, b: p.sum(0) ^ (1 << 14), "int64") == ("bits", "14")


# ---------------------------------------------------------------- arms and environment


def test_several_cards_get_every_transport_and_the_default() -> None:
    assert nccl_said.arms(2, (2, 28, 9), False) == ["default/default", "p2p/LL", "p2p/LL128", "p2p/Simple", "shm/Simple", "net/Simple"]
    assert "shm/LL128" in nccl_said.arms(8, (2, 28, 9), True)
    assert nccl_said.arms(2, None, False) == nccl_said.arms(2, (2, 28, 9), False)
    assert nccl_said.arms(8, (2, 28, 9), False) == ["default/default", "shm/Simple"]
    assert nccl_said.arms(1, (2, 28, 9), False) == ["p2p/Simple", "shm/Simple", "net/Simple"]


def test_a_forced_arm_sets_what_the_user_may_have_set_and_the_default_arm_leaves_it() -> None:
    forced = groups.member_env(Case("nccl", (0, 1), arm="p2p/LL128"), SETUP, 0, 2)
    assert (forced["NCCL_P2P_DISABLE"], forced["NCCL_P2P_LEVEL"], forced["NCCL_PROTO"]) == ("0", "SYS", "LL128")
    net = groups.member_env(Case("nccl", (0, 1), arm="net/Simple"), SETUP, 0, 2)
    assert (net["NCCL_P2P_DISABLE"], net["NCCL_SHM_DISABLE"]) == ("1", "1")
    default = groups.member_env(Case("nccl", (0, 1), arm="default/default"), SETUP, 0, 2)
    assert {name for name in default if name.startswith("NCCL_")} == {"NCCL_DEBUG", "NCCL_DEBUG_SUBSYS"}


def test_one_card_before_2_30_has_no_p2p_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl_check, "nccl_version", lambda: (2, 28, 9))
    monkeypatch.delenv("NCCL_DEBUG_FILE", raising=False)
    case = Case("nccl", (0, 0), arm="p2p/Simple")
    told = groups.member(case, Setup("cuda", SEED), 0, 2, str(tmp_path))
    assert told.state == "not_tested" and told.args == {"version": "2.28.9"}
    assert groups.member_env(case, SETUP, 1, 2)["NCCL_HOSTID"] == "linkproof-1"
    monkeypatch.setattr(nccl_check, "nccl_version", lambda: (2, 30, 3))
    assert groups.member_env(case, SETUP, 1, 2)["NCCL_MULTI_RANK_GPU_ENABLE"] == "1"


def test_an_arm_is_proved_only_by_the_road_that_nccl_took() -> None:
    p2p, shm = {"P2P/CUMEM": {(0, 1), (1, 0)}}, {"SHM/direct": {(0, 1)}}
    assert nccl_check.proved("p2p", "LL128", p2p, {"LL128"}) == ("", {})
    assert nccl_check.proved("p2p", "LL128", p2p | shm, {"LL128"})[1] == {"transport": "SHM/direct", "wanted": "P2P"}
    assert nccl_check.proved("p2p", "LL128", {}, {"LL128"})[0] == "NCCL's log does not say which transport it used"
    assert nccl_check.proved("shm", "LL", shm, {"LL", "Simple"})[1] == {"protocol": "LL, Simple", "wanted": "LL"}
    assert nccl_check.proved("shm", "LL", shm, set())[0] == "NCCL's log does not say which protocol it used"
    assert nccl_check.proved("default", "default", shm, set()) == ("", {})


def test_an_error_that_only_refuses_the_arm_is_no_fault_and_any_other_is() -> None:
    arm = Case("nccl", (0, 1), arm="net/Simple")
    assert groups.failed(arm, RuntimeError("x"), "h:1:1 [0] b.cc:1 NCCL WARN Bootstrap : no socket interface found").state == "refused"
    assert groups.failed(arm, RuntimeError("Duplicate GPU detected : rank 1")).state == "not_tested"
    assert groups.failed(arm, torch.cuda.OutOfMemoryError("CUDA out of memory")).state == "not_tested"
    died = groups.failed(arm, RuntimeError("NCCL error: unhandled cuda error"), "h:1:1 [0] p.cc:9 NCCL WARN Cuda failure 'peer mapping'")
    assert died.state == "died" and died.args["said"] == "Cuda failure 'peer mapping'"


# ---------------------------------------------------------------- NCCL's log


@pytest.mark.parametrize(
    ("line", "transport"),
    [
        ("h:7:9 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM", "P2P/CUMEM"),
        ("h:7:9 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM/read", "P2P/CUMEM/read"),
        ("h:7:9 [0] NCCL INFO Channel 00 : 0[7000] -> 1[8000] via P2P/IPC", "P2P/IPC"),
        ("h:7:9 [0] NCCL INFO Channel 01 : 0[0] -> 1[1] via SHM/direct/direct", "SHM/direct"),
        ("h:7:9 [0] NCCL INFO Channel 01 : 0[0] -> 1[1] via SHM/direct", "SHM/direct"),
        ("h:7:9 [0] NCCL INFO Channel 02/0 : 0[0] -> 1[0] [send] via NET/Socket/0", "NET/Socket"),
        ("h:7:9 [0] NCCL INFO Channel 02/1 : 0[0] -> 1[0] [receive] via NET/Socket/0/Shared", "NET/Socket"),
        ("h:7:9 [0] NCCL INFO Channel 02/0 : 0[0] -> 1[0] [send] via NET/IB/3/GDRDMA(PCI)", "NET/IB/GDRDMA(PCI)"),
        ("h:7:9 [0] NCCL INFO Ring 00 : 0[0] -> 1[1] via direct shared memory", "SHM"),
        ("h:7:9 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/direct pointer comm 0x55 nRanks 02", "P2P/direct pointer"),
    ],
)
def test_the_transport_is_read_in_every_shape_that_the_line_has_had(line: str, transport: str) -> None:
    assert nccl_said.routes(line) == {transport: {(0, 1)}}


def test_what_a_variable_asks_for_is_not_taken_for_what_was_used() -> None:
    log = "h:7:9 [0] NCCL INFO NCCL_P2P_LEVEL set by environment to SYS\nh:7:9 [0] NCCL INFO Check P2P Type isAllDirectP2p 1 directMode 0"
    assert nccl_said.routes(log) == {} and nccl_said.protocols(log) == set()


def test_the_protocol_is_read_by_name_and_by_number() -> None:
    assert nccl_said.protocols("AllReduce: 8 Bytes -> Algo RING proto LL128 channel{Lo..Hi}={0..0}") == {"LL128"}
    assert nccl_said.protocols("AllGather: 64 Bytes -> Algo RING proto SIMPLE channel{Lo..Hi}={0..3}") == {"Simple"}
    assert nccl_said.protocols("NCCL INFO 8 Bytes -> Algo 1 proto 0 time 6.3") == {"LL"}
    assert nccl_said.protocol_taken("h:1:1 [0] NCCL INFO NCCL_PROTO set by environment to LL128\n") == "LL128"
    assert nccl_said.algorithms("AllReduce: 8 Bytes -> Algo NVLS proto SIMPLE channel") == {"NVLS"}


@pytest.mark.parametrize(
    ("log", "state"),
    [
        ("h:7 NCCL DIAG [OK] p2p: verified P2P access in both directions between every GPU pair (56 peer accesses)", "verified"),
        ("h:7 NCCL DIAG [OK] p2p: verified P2P access in both directions between every GPU pair (0 peer accesses)", "not_tested"),
        ("h:7 NCCL DIAG [OK] p2p: 12 directed GPU P2P edges verified", "verified"),
        ("h:7 NCCL DIAG [OK] p2p: 11/12 directed GPU P2P edges verified", "not_tested"),
        ("h:7 NCCL DIAG [INFO] p2p: only 3/4 GPU-to-GPU peer accesses passed verification", "corrupt"),
        ("h:7 NCCL DIAG [INFO] p2p: write mismatch srcNvmlDev=0 dstNvmlDev=1 expected=0x1122 got=0x0 verify=0x0", "corrupt"),
        ("h:7 NCCL DIAG [INFO] p2p: peer-memory import failed srcNvmlDev=0 reason=invalid handle", "refused"),
        ("h:7:7 [0] NCCL INFO NCCL_RUN_DIAGNOSTICS set by environment to 1", "not_tested"),
    ],
)
def test_nccls_own_diagnostics_are_believed_only_with_a_count(log: str, state: str) -> None:
    assert nccl_said.diagnostics(log)[0] == state


def test_a_mismatch_outweighs_a_success() -> None:
    ok = "h:7 NCCL DIAG [OK] p2p: 12 directed GPU P2P edges verified\n"
    assert nccl_said.diagnostics(ok + "h:8 NCCL DIAG [INFO] p2p: read mismatch x expected=0x1 got=0x2 verify=0x2")[0] == "corrupt"
