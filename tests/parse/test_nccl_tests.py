import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linkproof.model import Collective, CudaError, Event, Fact, Gpu, Pattern
from linkproof.parse import read
from linkproof.parse.clean import clean

DEVICES = """# nThread 1 nGpus 2 minBytes 8 maxBytes 134217728 step: 2(factor) warmup iters: 5 iters: 20 agg iters: 1 validation: 1 graph: 0
#
# Using devices
#  Rank  0 Group  0 Pid  20563 on      node1 device  0 [0000:01:00] NVIDIA GeForce RTX 4090
#  Rank  1 Group  0 Pid  20563 on      node1 device  1 [0000:41:00] NVIDIA GeForce RTX 4090
"""
HEADER = """#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
"""
SUMMARY = "# Out of bounds values : {} {}\n# Avg bus bandwidth    : 4.25\n"


def row(size: int, wrong: str = "0", inplace: str = "0", stamp: str = "") -> str:
    return f"{size:12d}  {size // 4:12d}     float     sum      -1    24.53    0.00    0.00  {wrong:>5}    24.13    0.00    0.00  {inplace:>5}{stamp}\n"


def facts(words: str) -> list[Fact]:
    return read(clean("out", words))


def runs(words: str) -> list[tuple[str, str, str, str, str]]:
    return [(f.engine, f.result, f.op, f.transport, f.ranks) for f in facts(words) if isinstance(f, Collective)]


def events(words: str) -> dict[str, str]:
    """Verdict events; the speeds have tests of their own."""
    return {f.kind: f.value for f in facts(words) if isinstance(f, Event) and f.kind not in ("nccl_tests_average", "nccl_tests_busbw")}


def speeds(words: str) -> dict[str, str]:
    return {f.kind: f.value for f in facts(words) if isinstance(f, Event) and f.kind in ("nccl_tests_average", "nccl_tests_busbw")}


def patterns(words: str) -> list[tuple[str, str]]:
    return [(f.fact, f.value) for f in facts(words) if isinstance(f, Pattern)]


def test_a_run_whose_values_are_right_is_ok_with_its_operation_and_cards() -> None:
    words = "$ ./build/all_reduce_perf -b 8 -e 128M -f 2 -g 2\n" + DEVICES + HEADER + row(8) + row(16) + SUMMARY.format(0, "OK")
    assert runs(words) == [("nccl", "ok", "all_reduce", "default", "2")]
    assert events(words) == {"nccl_tests_ok": ""}
    assert [(f.name, f.count) for f in facts(words) if isinstance(f, Gpu)] == [("NVIDIA GeForce RTX 4090", 2)]


def test_wrong_values_are_counted_and_the_first_wrong_size_is_told() -> None:
    words = DEVICES + HEADER + row(8) + row(65536) + row(131072, "32768") + row(262144, "65536", "9") + SUMMARY.format(2, "FAILED")
    assert runs(words) == [("nccl", "wrong", "", "default", "2")]
    assert events(words) == {"nccl_tests_failed": "2"}
    assert patterns(words) == [("from_bytes", "131072")]


def test_wrong_sizes_between_right_ones_are_some_sizes() -> None:
    words = HEADER + row(8) + row(16, "4") + row(32) + SUMMARY.format(1, "FAILED")
    assert patterns(words) == [("some_sizes", "")]


def test_a_run_that_is_wrong_throughout_has_no_pattern() -> None:
    assert patterns(HEADER + row(8, "2") + row(16, "4") + SUMMARY.format(2, "FAILED")) == []


def test_wrong_values_in_place_only_are_wrong() -> None:
    assert runs(HEADER + row(8, "0", "1") + SUMMARY.format(1, "FAILED"))[0][1] == "wrong"


def test_a_number_with_an_exponent_and_a_time_stamp_behind_it_are_read() -> None:
    words = HEADER.replace("#wrong\n", "#wrong         time stamp\n", 1) + row(8, "1.04858e+06", "0", "   2026-01-02 03:04:05")
    assert events(words) == {"nccl_tests_failed": "1"}


def test_a_comparison_that_was_switched_off_is_no_success() -> None:
    off = DEVICES.replace("validation: 1", "validation: 0") + HEADER + row(8, "N/A", "N/A") + SUMMARY.format(0, "OK")
    assert runs(off) == []
    assert "nccl_tests_ok" not in events(off)
    assert "nccl_tests_ok" not in events(HEADER + row(8, "N/A", "N/A") + SUMMARY.format(0, "OK"))


def test_a_run_cut_before_its_summary_is_no_success_but_wrong_rows_count() -> None:
    assert runs(DEVICES + HEADER + row(8) + row(16)) == []
    assert runs(DEVICES + HEADER + row(8) + row(16, "3"))[0][1] == "wrong"


def test_the_deviation_of_old_tools_is_not_a_count() -> None:
    old = HEADER.replace("#wrong", " error") + row(8, "1e-07", "1e-07") + SUMMARY.format(0, "OK")
    assert events(old) == {"nccl_tests_ok": ""}


def test_the_summary_alone_is_believed() -> None:
    assert runs("# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 4.25") == [("nccl", "ok", "", "default", "")]


@pytest.mark.parametrize("line", [
    "node1: Test NCCL failure common.cu:777 'unhandled system error'",
    "node1: Test NCCL failure common.cu:954 'unhandled system error / Error while creating shared memory segment'",
    "node1: Test CUDA failure common.cu:297 'an illegal memory access was encountered'",
])  # fmt: skip
def test_a_run_that_breaks_off_is_an_error(line: str) -> None:
    assert [r[1] for r in runs(DEVICES + line)] == ["error"]


def test_the_cuda_error_that_ended_a_run_keeps_its_number() -> None:
    found = facts("node1: Test CUDA failure common.cu:297 'an illegal memory access was encountered'")
    assert [f.code for f in found if isinstance(f, CudaError)] == [700]


def test_rccl_is_told_by_its_files_or_cards() -> None:
    amd = DEVICES.replace("NVIDIA GeForce RTX 4090", "AMD Instinct MI210") + SUMMARY.format(0, "OK")
    assert runs(amd)[0][0] == "rccl"
    assert runs("n: Test NCCL failure /b/rccl-tests/build/hipify/common.cu.cpp:1291 'unhandled cuda error / '")[0][0] == "rccl"


def test_the_switches_before_the_command_name_the_transport() -> None:
    shm = "$ NCCL_P2P_DISABLE=1 ./build/all_reduce_perf -g 2\n" + SUMMARY.format(0, "OK")
    net = "$ NCCL_P2P_DISABLE=1 NCCL_SHM_DISABLE=1 ./build/alltoall_perf -g 2\n" + SUMMARY.format(0, "OK")
    assert runs(shm)[0][3] == "shm"
    assert runs(net) == [("nccl", "ok", "all_to_all", "net", "")]


def test_two_runs_in_one_text_are_two() -> None:
    one = "# Collective test starting: all_reduce_perf\n" + DEVICES + HEADER + row(8) + SUMMARY.format(0, "OK")
    two = "# Collective test starting: sendrecv_perf\n" + DEVICES + HEADER + row(8, "4") + SUMMARY.format(1, "FAILED")
    assert [(r[1], r[2], r[4]) for r in runs(one + two)] == [("ok", "all_reduce", "2"), ("wrong", "sendrecv", "2")]


def test_a_table_of_another_tool_is_no_run() -> None:
    assert runs("#wrong answers: 3\n 8 2 float sum -1 1 1 1 9\nall_reduce_perf is a program") == []


@given(st.text(alphabet="#wrong 0123456789float sum-1.eE+N/A\n", max_size=600))
@settings(max_examples=60, deadline=None)
def test_no_table_is_refused(words: str) -> None:
    assert isinstance(facts(HEADER + words), list)


def test_the_speed_of_the_largest_message_and_the_average_are_told() -> None:
    table = (
        "#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong\n"
        "     1048576        262144     float     sum      -1    150.0    6.99    6.99      0    150.0    6.99    6.99      0\n"
        "   134217728      33554432     float     sum      -1    18021    7.45    7.45      0    18000    7.46    7.46      0\n"
        "# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 7.22\n"
    )
    assert speeds(table) == {"nccl_tests_busbw": "7.45", "nccl_tests_average": "7.22"}


def test_small_messages_say_nothing_about_the_link() -> None:
    table = (
        "#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong\n"
        "        1024           256     float     sum      -1    15.0    0.07    0.07      0    15.0    0.07    0.07      0\n"
    )
    assert speeds(table) == {}


def test_a_run_broken_off_before_its_first_row_hung() -> None:
    table = (
        "# nThread 1 nGpus 2 minBytes 8 maxBytes 134217728 step: 2(factor) warmup iters: 5 iters: 20 validation: 1\n"
        "#       size         count    type   redop     time   algbw   busbw  error     time   algbw   busbw  error\n"
        "#        (B)    (elements)                     (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)\n^C\n"
    )
    assert [(engine, result) for engine, result, *_ in runs(table)] == [("nccl", "hang")]


def test_a_table_that_a_paste_cut_is_no_hang() -> None:
    table = "#       size         count    type   redop     time   algbw   busbw  error     time   algbw   busbw  error\n"
    assert runs(table) == []
