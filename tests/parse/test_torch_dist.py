import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linkproof.model import Event, Fact, Ranks, Watchdog
from linkproof.parse import read
from linkproof.parse.clean import clean


def facts(words: str) -> list[Fact]:
    return read(clean("log", words))


def events(words: str) -> dict[str, str]:
    return {f.kind: f.value for f in facts(words) if isinstance(f, Event)}


def ranks(words: str) -> list[tuple[str, str]]:
    return [(f.fact, f.detail) for f in facts(words) if isinstance(f, Ranks)]


def caught(rank: int, work: str) -> str:
    return f"[rank{rank}]:[E ProcessGroupNCCL.cpp:616] [Rank {rank}] Watchdog caught collective operation timeout: WorkNCCL({work}) ran for 600089 milliseconds before timing out."


def gave_up(rank: int, group: str, work: int, enqueued: int) -> str:
    return (
        f"[rank{rank}]:[E ProcessGroupNCCL.cpp:1834] [PG ID {group} PG GUID {group}(x) Rank {rank}] Timeout at NCCL work: {work}, "
        f"last enqueued NCCL work: {enqueued}, last completed NCCL work: {work - 1}."
    )


@pytest.mark.parametrize("work, want", [
    ("OpType=ALLREDUCE, TensorShape=[25], Timeout(ms)=1800000", ("ALLREDUCE", None, None, None, 1800000)),  # 1.9
    ("SeqNum=12, OpType=BROADCAST, Timeout(ms)=1800000", ("BROADCAST", 12, None, None, 1800000)),  # 1.13
    ("SeqNum=876319, OpType=BROADCAST, NumelIn=8, NumelOut=8, Timeout(ms)=600000", ("BROADCAST", 876319, 8, 8, 600000)),  # 2.1 on
])  # fmt: skip
def test_a_collective_that_was_given_up_is_read_in_the_form_of_every_release(work: str, want: tuple[object, ...]) -> None:
    found = [f for f in facts(caught(1, work)) if isinstance(f, Watchdog)]
    assert [(f.op, f.seq, f.numel_in, f.numel_out, f.timeout_ms) for f in found] == [want]
    assert found[0].rank == 1
    assert events(caught(1, work)) == {"collective_timeout": want[0]}


def test_the_rank_is_taken_from_torchs_own_words_where_the_launcher_says_none() -> None:
    line = "[E ProcessGroupNCCL.cpp:828] [Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=2, OpType=ALLREDUCE) ran for 1 ms"
    assert [f.rank for f in facts(line) if isinstance(f, Watchdog)] == [3]


def test_the_exception_that_repeats_the_watchdog_is_the_same_watchdog_and_names_its_group() -> None:
    work = "SeqNum=5, OpType=ALLREDUCE, NumelIn=4, NumelOut=4, Timeout(ms)=600000"
    again = "[rank1]:[E ProcessGroupNCCL.cpp:1414] [PG ID 2 PG GUID 11 Rank 1] Process group watchdog thread terminated with exception: "
    lines = caught(1, work) + "\n" + again + caught(1, work).split("] ", 2)[2]
    assert [f.group for f in facts(lines) if isinstance(f, Watchdog)] == ["11"]


def test_ranks_that_stop_at_the_same_work_with_other_sizes_are_told() -> None:
    lines = "\n".join(caught(r, f"SeqNum=7, OpType=ALLREDUCE, NumelIn={n}, NumelOut={n}, Timeout(ms)=1") for r, n in ((0, 1000), (1, 8)))
    assert ranks(lines) == [("sizes_differ", "work 7: rank 0 ALLREDUCE of 1000, rank 1 ALLREDUCE of 8")]


def test_ranks_that_stop_at_the_same_work_with_other_operations_are_told() -> None:
    lines = (
        caught(0, "SeqNum=7, OpType=ALLREDUCE, NumelIn=9, NumelOut=9")
        + "\n"
        + caught(1, "SeqNum=7, OpType=BROADCAST, NumelIn=9, NumelOut=9")
    )
    assert ranks(lines) == [("sizes_differ", "work 7: rank 0 ALLREDUCE of 9, rank 1 BROADCAST of 9")]


def test_equal_sizes_other_numbers_and_uneven_operations_are_no_difference() -> None:
    same = [caught(r, "SeqNum=7, OpType=ALLREDUCE, NumelIn=9, NumelOut=9") for r in (0, 1)]
    later = [caught(0, "SeqNum=7, OpType=ALLREDUCE, NumelIn=9, NumelOut=9"), caught(1, "SeqNum=8, OpType=BROADCAST, NumelIn=1, NumelOut=1")]
    uneven = [caught(r, f"SeqNum=7, OpType=ALLTOALL_BASE, NumelIn={n}, NumelOut=9") for r, n in ((0, 1), (1, 2))]
    gathered = [caught(r, f"SeqNum=7, OpType=GATHER, NumelIn={n}, NumelOut=9") for r, n in ((0, 1), (1, 2))]
    pipe = [caught(0, "SeqNum=7, OpType=SEND, NumelIn=9, NumelOut=9"), caught(1, "SeqNum=7, OpType=RECV, NumelIn=9, NumelOut=9")]
    assert [ranks("\n".join(lines)) for lines in (same, later, uneven, gathered, pipe)] == [[], [], [], [], []]


def test_ranks_of_different_groups_are_not_compared() -> None:
    lines = [
        caught(0, "SeqNum=7, OpType=ALLREDUCE, NumelIn=1000, NumelOut=1000"), gave_up(0, "1", 7, 7),
        caught(1, "SeqNum=7, OpType=BROADCAST, NumelIn=8, NumelOut=8"), gave_up(1, "2", 7, 7),
    ]  # fmt: skip
    assert ranks("\n".join(lines)) == []
    assert ranks("\n".join(lines).replace("ID 2 PG GUID 2", "ID 1 PG GUID 1"))[0][0] == "sizes_differ"


def test_a_rank_that_never_came_to_the_work_is_late() -> None:
    dump = (
        "[rank1]:[E ProcessGroupNCCL.cpp:1870] [PG ID 0 PG GUID 0(x) Rank 1] Received a dump signal due to a collective timeout from rank 0 and we "
        "will try our best to dump the debug info. Last enqueued NCCL work: 10, last completed NCCL work: 10.This is most likely caused by "
        "incorrect usages of collectives, e.g., wrong sizes used across ranks"
    )
    assert ("one_rank_late", "rank 1 of group 0(x) never came to work 11") in ranks(gave_up(0, "0", 11, 11) + "\n" + dump)
    assert "collective_mismatch" not in events(dump)


def test_a_rank_that_is_only_less_far_ahead_is_not_late() -> None:
    assert ranks(gave_up(0, "0", 11, 25) + "\n" + gave_up(1, "0", 11, 14)) == []


def test_a_monitor_without_heartbeat_is_an_event() -> None:
    line = "[rank0]:[E ProcessGroupNCCL.cpp:1316] [PG 0 Rank 0] Heartbeat monitor timed out! Process will be terminated after dumping"
    stuck = (
        "[rank0]:[F ProcessGroupNCCL.cpp:1169] [PG 0 Rank 0] ProcessGroupNCCL's watchdog got stuck for 600 seconds without making progress"
    )
    assert events(line) == {"heartbeat_timeout": ""}
    assert events(stuck) == {"heartbeat_timeout": "600"}


def test_a_checker_that_sees_other_collectives_is_an_event() -> None:
    line = (
        "RuntimeError: Detected mismatch between collectives on ranks. Rank 1 is running collective: CollectiveFingerPrint(SequenceNumber=0, "
        "OpType=BROADCAST), but Rank 0 is running collective: CollectiveFingerPrint(SequenceNumber=0, OpType=ALLREDUCE)."
    )
    assert list(events(line)) == ["collective_mismatch"]
    assert list(events("Error type: SIZE_OR_SYNTAX_MISMATCH, Expected input sizes: '[[4]]' does not match")) == ["collective_mismatch"]
    assert not events("Error type: COLLECTIVE_STATE_MISMATCH, Expected state: 'scheduled' does not match found state: 'completed'")


@pytest.mark.parametrize("line, detail", [
    ("\t - To our best knowledge, ranks [1, 3] are the lagging ranks that caused this timeout. They never joined any collectives", "ranks 1, 3"),
    ("\t     [2] finished collective #4, but didn't join collective #5 (count from 1)", "ranks 2"),
    ("Not all ranks joining collective, sequence number: 5 internal record id: 4 missing ranks: {1}", "ranks 1"),
    ("[Rank 0]: Ranks 1 failed to pass monitoredBarrier in 1800000 ms", "ranks 1"),
])  # fmt: skip
def test_reports_that_name_the_late_ranks_are_read(line: str, detail: str) -> None:
    assert ranks(line) == [("one_rank_late", detail)]


def test_models_that_differ_are_told_but_not_what_an_aborted_exchange_leaves() -> None:
    line = "RuntimeError: DDP expects same model across all ranks, but Rank 0 has 398 params, while rank 1 has inconsistent 400 params."
    assert ranks(line) == [("sizes_differ", "398 against 400 parameters")]
    assert ranks(line.replace("400", "0")) == []


@given(st.text(alphabet="SeqNum=OpType,()0123456789[]PGRank \n", max_size=300))
@settings(max_examples=60, deadline=None)
def test_no_text_is_refused(words: str) -> None:
    assert isinstance(facts("Watchdog caught collective operation timeout: WorkNCCL(" + words), list)
