"""Bytes of every origin become the text that was meant."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkproof.collect.decode import decode, decode_lines, not_text, recode, unmojibake

LOG = "RuntimeError: CUDA error\nNCCL WARN x\n"
CHINESE = "错误：显存不足，请检查驱动\nRuntimeError: 设备端断言被触发\n"


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_unicode_in_every_width_with_and_without_a_mark(codec: str) -> None:
    assert decode(LOG.encode(codec)) == LOG


@pytest.mark.parametrize("codec", ["utf-8", "gb18030", "gbk", "utf-16"])
def test_chinese_logs_are_read(codec: str) -> None:
    assert decode(CHINESE.encode(codec)) == CHINESE


def test_western_bytes_are_read_as_cp1252() -> None:
    text = "Größe naïve “x” – café\n"
    assert decode(text.encode("cp1252")) == text


def test_a_short_gbk_word_that_is_valid_utf8_by_accident_is_still_gbk() -> None:
    assert decode("一\n联通\n".encode("gbk")) == "一\n联通\n"


def test_a_character_cut_in_half_costs_itself_only() -> None:
    assert decode("显存不足".encode()[:-1]) == "显存不\ufffd"


def test_one_bad_line_does_not_change_the_others() -> None:
    assert decode("显存\n".encode() + b"caf\xe9\n" + "断言\n".encode()) == "显存\ncafé\n断言\n"


def test_a_hole_of_nul_after_a_crash_is_closed() -> None:
    assert decode(b"kernel: a\n" + b"\0" * 4096 + b"kernel: b\n") == "kernel: a\nkernel: b\n"


def test_nul_between_variables_ends_a_line() -> None:
    assert decode(b"NCCL_DEBUG=INFO\0NCCL_P2P_DISABLE=1\0") == "NCCL_DEBUG=INFO\nNCCL_P2P_DISABLE=1\n"


def test_utf8_shown_as_cp1252_is_restored() -> None:
    for meant in ("‘index out of bounds’", "“x” — y…", "显存不足", "café"):
        twice = "".join(chr(b) if b in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else bytes([b]).decode("cp1252") for b in meant.encode())
        assert decode(f"Assertion {twice} failed".encode()) == f"Assertion {meant} failed"


def test_utf8_shown_as_gbk_is_restored() -> None:
    wrong = "Assertion ‘index out of bounds’ failed".encode().decode("gbk", "replace")
    assert "鈥" in wrong
    assert unmojibake(wrong) == "Assertion ‘index out of bounds' failed"


@pytest.mark.parametrize("text", ["café…” Straß“", "Ü “x”", "é»»", "鈥", "100 %|█████| Ã"])
def test_what_may_be_meant_so_stays(text: str) -> None:
    assert unmojibake(text) == text


def test_lines_of_a_reduced_log_are_read_together() -> None:
    lines = list(enumerate(CHINESE.encode("gbk").split(b"\n"), 40))
    assert decode_lines(lines) == list(enumerate(CHINESE.split("\n"), 40))
    assert decode_lines([(3, b"a\0b"), (9, "â€˜x".encode())]) == [(3, "ab"), (9, "‘x")]


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_wide_stream_becomes_utf8_wherever_it_is_cut(codec: str) -> None:
    data = (CHINESE + LOG * 300).encode(codec)
    for size in (1, 3, 4097):
        assert b"".join(recode(data[i : i + size] for i in range(0, len(data), size))).decode() == CHINESE + LOG * 300


def test_any_other_stream_passes_as_it_is() -> None:
    assert list(recode([])) == []
    assert b"".join(recode([b"a\n" * 5000, b"\xff\xfe\0"])) == b"a\n" * 5000 + b"\xff\xfe\0"


# ---------------------------------------------------------------- text or not


@pytest.mark.parametrize(
    "head",
    [
        b"\x7fELF\2\1\1" + b"\0" * 9,
        b"\x89PNG\r\n\x1a\n\0\0",
        b"\xff\xd8\xff\xe0\0\x10JFIF",
        b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.",
        b'\x40\0\0\0\0\0\0\0{"__metadata__"',
        b"\x93NUMPY\1\0v\0{",
        b"GGUF\3\0\0\0",
        bytes(range(256)) * 8,
    ],
)
def test_a_binary_file_is_told(head: bytes) -> None:
    why = not_text(head)
    assert why is not None and all(why)


@pytest.mark.parametrize(
    "data",
    [
        LOG.encode(),
        LOG.encode("utf-16-le"),
        CHINESE.encode("gbk"),
        b"\x1b[31mred\x1b[0m\x08\r",
        b"kernel: a\n" + b"\0" * 60000,
        b"A=1\0B=2\0",
        b"MZ is a name\n",
    ],
)
def test_a_text_is_not_taken_for_a_binary(data: bytes) -> None:
    assert not_text(data) is None


@pytest.mark.parametrize("data", [b"", b" \r\n\n", b"\0" * 9000])
def test_nothing_but_blanks_and_nul_is_no_text(data: bytes) -> None:
    assert not_text(data) == ("", "")


# ---------------------------------------------------------------- hostile bytes

_PIECES = [
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\0",
    b"\n",
    b"a\0",
    b"\xe2\x80",
    "â€™".encode(),
    "鈥".encode(),
    b"\xd2\xbb",
    b"\x81\x30",
    "显".encode(),
    b"x",
]


@given(st.binary(max_size=300) | st.lists(st.sampled_from(_PIECES), max_size=60).map(b"".join))
def test_no_bytes_raise(data: bytes) -> None:
    text = decode(data)
    assert "\0" not in text
    text.encode()
    assert [no for no, _ in decode_lines(enumerate(data.split(b"\n")))] == list(range(data.count(b"\n") + 1))
    assert b"".join(recode([data[:7], data[7:]])) is not None
    assert not_text(data) is None or len(not_text(data) or ()) == 2


@pytest.mark.parametrize("unit", [*_PIECES, b"\xe9\xa0\n", "Ââ€".encode(), "鈥\n".encode()])
def test_twice_the_bytes_take_about_twice_the_time(unit: bytes) -> None:
    def took_s(data: bytes) -> float:
        start = time.perf_counter()
        decode(data)
        return time.perf_counter() - start

    data = b"x" + unit * (120_000 // len(unit))
    once = min(took_s(data) for _ in range(3))
    assert min(took_s(data + data) for _ in range(3)) < 3 * once + 0.05
