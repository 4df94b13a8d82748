"""Wrappings of every kind come off, and nothing that is none."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linkproof.parse.clean import LINE_MAX, clean


def rows(text: str) -> list[str]:
    return [line.text for line in clean("log", text).lines]


def ranks(text: str) -> list[int | None]:
    return [line.rank for line in clean("log", text).lines]


# ---------------------------------------------------------------- lines and numbers


def test_a_plain_text_comes_back_as_it_was() -> None:
    text = 'Traceback (most recent call last):\n  File "a.py", line 1\n\tLnkSta:\tSpeed 16GT/s\n+ added\n- gone\n@@ -1 +1 @@'
    assert rows(text) == text.split("\n")


def test_numbers_count_in_the_original_and_blank_lines_in_a_row_become_one() -> None:
    got = clean("log", "a\n\n\n\nb\n")
    assert [(line.no, line.text) for line in got.lines] == [(1, "a"), (2, ""), (5, "b")]
    assert (got.name, got.total_lines) == ("log", 5)


def test_lines_of_a_reduced_log_keep_their_numbers_and_its_length() -> None:
    got = clean("big", [(7, "[rank1]: x"), (900, "y\r")], total_lines=1000)
    assert [(line.no, line.text, line.rank) for line in got.lines] == [(7, "x", 1), (900, "y", None)]
    assert got.total_lines == 1000


def test_an_empty_text_has_no_lines() -> None:
    assert clean("log", "").lines == [] and clean("log", "").total_lines == 0


def test_a_line_without_end_is_cut() -> None:
    assert rows("x" * 100_000) == ["x" * LINE_MAX]


def test_crlf_and_doubled_cr_are_line_ends() -> None:
    assert rows("a\r\nb\r\r\nc") == ["a", "b", "c"]


def test_a_text_with_cr_only_has_lines_too() -> None:
    assert rows("a\rRuntimeError: x\rc") == ["a", "RuntimeError: x", "c"]


# ---------------------------------------------------------------- terminals


def test_colours_titles_and_links_are_taken_off() -> None:
    assert rows("\x1b[1;31mError\x1b[0m: \x1b]0;title\x07x\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\\x1b(B\x1b[K") == ["Error: xlink"]


def test_an_unfinished_escape_hides_nothing_that_follows() -> None:
    assert rows("\x1b]0;RuntimeError: x\nNCCL WARN\x1b[") == ["0;RuntimeError: x", "NCCL WARN"]


@pytest.mark.parametrize("spelled", ["\\x1b", "\\033", "\\u001b", "^[", "#033", "␛", "\ufffd", ""])
def test_colours_whose_escape_was_lost_or_spelled_out_are_taken_off(spelled: str) -> None:
    assert rows(f"{spelled}[36m(Worker pid=7){spelled}[0m NCCL WARN x") == ["NCCL WARN x"]


def test_a_bracket_that_looks_like_half_a_colour_stays() -> None:
    assert rows("took [30m] of [1m 20s") == ["took [30m] of [1m 20s"]


def test_of_a_progress_bar_the_end_is_left_and_what_speaks_of_trouble() -> None:
    text = "  0%|  | 0/9\r 10%|# | 1/9\rRuntimeError: x\r100%|##| 9/9\r\nnext"
    assert [(line.no, line.text) for line in clean("log", text).lines] == [(1, "RuntimeError: x"), (1, "100%|##| 9/9"), (2, "next")]


def test_a_message_glued_to_a_bar_stands_alone_with_its_rank() -> None:
    got = clean("log", "Loading:  50%|█████     | 1/2 [00:01<00:01,  1.20s/it][rank2]: Traceback (most recent call last):").lines
    assert [(line.text, line.rank) for line in got] == [("Traceback (most recent call last):", 2)]


def test_a_bar_with_nothing_behind_it_stays() -> None:
    assert rows("Loading:  50%|█████     | 1/2 [00:01<00:01,  1.20s/it]") == ["Loading:  50%|█████     | 1/2 [00:01<00:01,  1.20s/it]"]


def test_backspaces_type_over() -> None:
    assert rows("N\bNA\bAM\bME |\b/\b-\bdone") == ["NAME done"]


def test_invisible_characters_go_and_odd_blanks_become_blanks() -> None:
    assert rows("NCCL\u200b\ufeff WARN\u00a0x\u3000y\0\x01") == ["NCCL WARN x y"]


# ---------------------------------------------------------------- web pages and forums


def test_entities_are_read_also_when_escaped_twice() -> None:
    assert rows("a &lt; b &amp;&amp; c &amp;gt; d &#39;e&#x27; &quot;f&quot;") == ["a < b && c > d 'e' \"f\""]


def test_what_only_looks_like_an_entity_stays() -> None:
    assert rows("cmd & x; &bogus; &#99999999; &#55296;") == ["cmd & x; &bogus; &#99999999;  "]


def test_tags_of_a_page_go_and_br_is_a_line_end() -> None:
    assert [(line.no, line.text) for line in clean("log", "<pre>RuntimeError: x<br>y</pre>\n<code>z</code>").lines] == [
        (1, "RuntimeError: x"),
        (1, "y"),
        (2, "z"),
    ]


def test_angle_brackets_of_programs_stay() -> None:
    kept = ['  File "a.py", line 3, in <module>', "gather<float, long>(p)", '<pci busid="0000:01:00.0" class="0x03"></pci>', "[1] <stderr>"]
    assert rows("\n".join(kept)) == kept


def test_curly_quotes_become_straight_and_an_editors_dash_an_option() -> None:
    assert rows("Assertion ‘i < n’ failed “x” ´y´\nuse —shm-size=8g — or not") == [
        "Assertion 'i < n' failed \"x\" 'y'",
        "use --shm-size=8g — or not",
    ]


def test_an_assertion_keeps_its_backticks() -> None:
    assert rows("Assertion `i < n` failed.") == ["Assertion `i < n` failed."]


def test_quote_marks_come_off_and_the_indentation_stays() -> None:
    assert rows('> Traceback\n>   File "x"\n>> twice\n> > three\n>tensor([1])') == [
        "Traceback",
        '  File "x"',
        "twice",
        "three",
        "tensor([1])",
    ]


def test_prompts_and_operators_are_no_quote_marks() -> None:
    assert rows(">>> a.to('cuda:1')\n>= 3\n    > deep") == [">>> a.to('cuda:1')", ">= 3", "    > deep"]


def test_fences_are_dropped_and_a_traceback_underline_is_not() -> None:
    assert rows("```python\nx\n    ~~~~^^^^\n```\n~~~\ny```") == ["x", "    ~~~~^^^^", "y"]


def test_a_forum_bar_goes_and_a_table_stays() -> None:
    assert rows("| RuntimeError: x\n|   more") == ["RuntimeError: x", "  more"]
    table = ["+---+---+", "| a | b |", "| 1 | 2 |"]
    assert rows("\n".join(table)) == table


# ---------------------------------------------------------------- launchers and containers


@pytest.mark.parametrize(
    ("prefix", "rank"),
    [
        ("[rank3]: ", 3),
        ("[rank3] ", 3),
        ("[default5]:", 5),
        ("[default0]:[rank8]: ", 8),
        ("[1,3]<stderr>:", 3),
        ("[1,3]<stdout>: ", 3),
        ("(Worker_TP2 pid=123) ", 2),
        ("(Worker_DP0_TP1_EP1 pid=123) ", 1),
        ("(VllmWorker rank=5 pid=77) ", 5),
        ("(VllmWorkerProcess pid=1) ", None),
        ("(RayWorkerWrapper pid=1, ip=10.0.0.2) ", None),
        ("(pid=1) ", None),
        ("(EngineCore_DP0 pid=1) (Worker_TP3 pid=9) ", 3),
        ("(Worker_TP3 pid=9) [rank1]: ", 1),
        ("[2025-01-01 00:00:00 TP3] ", 3),
        ("[2025-01-01 00:00:00 DP1 TP2 EP4] ", 2),
        ("[pod/vllm-0/server] ", None),
        ("2026-07-01T10:00:00.123456789Z stderr F ", None),
        ("2026-07-01T10:00:00.123456789+08:00 stdout P [rank6]: ", 6),
        ("2026-07-01T10:00:00.123456789Z ", None),
        ("Jul 01 10:00:00 hostA vllm[12]: [rank4]: ", 4),
        ("\x1b[36m(Worker_TP1 pid=1)\x1b[0m ", 1),
        ("> [rank2]: ", 2),
    ],
)
def test_a_prefix_goes_with_one_blank_and_says_its_rank(prefix: str, rank: int | None) -> None:
    got = clean("log", f'{prefix}  File "x.py", line 3, in f').lines
    assert [(line.text, line.rank) for line in got] == [('  File "x.py", line 3, in f', rank)]


@pytest.mark.parametrize(
    "line",
    [
        "[Rank 0] Watchdog caught collective operation timeout",
        "[2] NCCL INFO x",
        "[2025-08-20 18:58:30] hostA:1:2 [0] misc/socket.cc:5 NCCL WARN x",
        "hostA:1:2 [3] NCCL INFO x",
        "Jul 01 10:00:00 hostA kernel: NVRM: Xid (PCI:0000:01:00): 79",
        "Jul 01 10:00:00 hostA nv-fabricmanager[7]: x",
        "2026-07-01T10:00:00.123+00:00 hostA kernel: NVRM: x",
        "(raylet) A worker died",
        "(see pid=12 above) (x)",
        "[rankings]: x",
        "[rank123456789]: x",
    ],
)
def test_what_says_who_speaks_or_is_no_prefix_stays(line: str) -> None:
    got = clean("log", line).lines
    assert [(x.text, x.rank) for x in got] == [(line, None)]


def test_lines_that_ray_saw_on_other_workers_lose_the_remark() -> None:
    assert rows("(W pid=1) AssertionError: x [repeated 3x across cluster] (Ray deduplicates logs)") == ["AssertionError: x"]


def test_srun_labels_are_ranks_if_most_lines_have_them() -> None:
    text = '0: Traceback\n1: ok\n0:   File "x"\n0: \n1: [rank9]: y'
    assert rows(text) == ["Traceback", "ok", '  File "x"', "", "y"]
    assert ranks(text) == [0, 1, 0, 0, 9]


def test_line_numbers_of_a_listing_are_no_ranks() -> None:
    assert ranks("12: a\n13: b\n14: c") == [None, None, None]


def test_a_number_and_colon_here_and_there_is_no_label() -> None:
    text = "step\n0: a\nother\n1: b\nmore"
    assert rows(text) == text.split("\n")


def test_docker_compose_names_go() -> None:
    assert rows('vllm-1  | Traceback\nvllm-1  |   File "x"\nredis-1 | ready') == ["Traceback", '  File "x"', "ready"]


def test_a_table_of_names_stays() -> None:
    table = ["model | tp", "qwen | 2", "llama | 4", "phi | 1"]
    assert rows("\n".join(table)) == table


def test_pdsh_host_names_go_and_the_names_of_speakers_stay() -> None:
    assert rows("worker-1: a\nworker-2: b\n" * 3) == ["a", "b"] * 3
    for speaker in ("NVRM", "gpu0", "mlx5_0", "WARNING"):
        assert rows(f"{speaker}: a\n" * 6) == [f"{speaker}: a"] * 6


# ---------------------------------------------------------------- JSON


def test_docker_json_lines_give_their_log() -> None:
    text = '{"log":"[rank2]: boom\\n","stream":"stderr","time":"t"}\n{"log":"\\u001b[31mred\\u001b[0m\\r\\n","stream":"stdout","time":"t"}'
    assert [(line.no, line.text, line.rank) for line in clean("log", text).lines] == [(1, "boom", 2), (2, "red", None)]


def test_journal_json_names_the_kernel_and_bytes_are_read() -> None:
    text = '{"MESSAGE":"NVRM: Xid","_TRANSPORT":"kernel","__REALTIME_TIMESTAMP":"1"}\n{"MESSAGE":[72,105],"__REALTIME_TIMESTAMP":"1"}'
    assert rows(text) == ["kernel: NVRM: Xid", "Hi"]


def test_a_json_logger_gives_its_traceback_too() -> None:
    assert rows('{"levelname":"ERROR","message":"died","exc_info":"Traceback\\n  File x"}') == ["died", "Traceback", "  File x"]


def test_other_json_stays() -> None:
    kept = [
        '{"id":"chatcmpl-0","choices":[{"message":{"content":"!!!!"}}]}',
        '{"object":"error","message":"x"}',
        '{"log": broken}',
        '{"time":1}',
    ]
    assert rows("\n".join(kept)) == kept


def test_a_log_pasted_as_one_string_unfolds_under_one_number() -> None:
    text = '"Traceback\\n  File \\"x.py\\", line 1\\n\\tfoo\\n\\tbar\\nRuntimeError: \\u663e\\u5b58"'
    assert [(line.no, line.text) for line in clean("log", text).lines] == [
        (1, "Traceback"),
        (1, '  File "x.py", line 1'),
        (1, "\tfoo"),
        (1, "\tbar"),
        (1, "RuntimeError: 显存"),
    ]


def test_a_string_inside_a_long_log_is_not_unfolded() -> None:
    prompt = "Received request: prompt: 'a\\nb\\nc\\nd\\nNCCL WARN e'"
    assert rows("\n".join([prompt] + ["line"] * 10))[0] == prompt


# ---------------------------------------------------------------- hostile texts

_PIECES = [
    *"[(>|{<\"'`~&;:\r\n\t\b\0\x1b\x9b\\/ 0123456789mZ",
    "[rank", "]: ", "(W pid=", "\x1b[", "\x1b]", "<br>", "</pre>", "&amp;", "&#x", "\\n", '{"log":"', '","time":1}', "%|", "| 1/2 [", "```", "[0m", "TP3] ",
    "2026-07-01T10:00:00.123Z ", "Jul 01 10:00:00 h sh[1]: ", "‘", "—a-", "\ud800", "\u200b", "显", " [repeated ", " across cluster]", "<std", "[1,2]<stderr>:",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(_PIECES), max_size=60).map("".join) | st.text(max_size=200))
def test_nothing_raises_and_numbers_stay_in_order(text: str) -> None:
    got = clean("log", text)
    numbers = [line.no for line in got.lines]
    assert numbers == sorted(numbers) and all(1 <= n <= got.total_lines for n in numbers)
    assert all("\n" not in line.text and "\x1b" not in line.text and len(line.text) <= LINE_MAX for line in got.lines)
    "".join(line.text for line in got.lines).encode()  # no half characters: patterns want UTF-8


@pytest.mark.parametrize("unit", [*_PIECES, "[\n", "| \n", "0: \n", "[rank0]: \n", "x\b", "error\r", "<p ", "&#", '"\\n'])
def test_twice_the_text_takes_about_twice_the_time(unit: str) -> None:
    def took_s(text: str) -> float:
        start = time.perf_counter()
        clean("log", text)
        return time.perf_counter() - start

    def linear() -> bool:
        text = unit * (60_000 // len(unit))
        once = min(took_s(text) for _ in range(3))
        return min(took_s(text + text) for _ in range(3)) < 3 * once + 0.05

    assert any(linear() for _ in range(5)), "a busy machine is slow once; what grows with the square is slow each time"
