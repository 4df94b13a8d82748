from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkproof.parse.spans import bdf, windows, without_ansi


@pytest.mark.parametrize("words, address", [
    ("00000000:0A:00.0", "0000:0a:00.0"),
    ("0A:00.0", "0a:00.0"),
    ("PCI:0000:03:00", "0000:03:00.0"),
    ("0018:01:00", "0018:01:00.0"),
    ("10000:E1:00.0", "10000:e1:00.0"),
    ("12:34", ""),
    ("nothing", ""),
])  # fmt: skip
def test_addresses_have_one_form(words: str, address: str) -> None:
    assert bdf(words) == address


def test_codes_go_also_when_their_escape_was_lost() -> None:
    assert without_ansi("\x1b[4mGPU0\x1b[0m [4mGPU1[0m") == "GPU0 GPU1"
    assert without_ansi("[0] NCCL INFO x[1]") == "[0] NCCL INFO x[1]"


@given(st.lists(st.integers(0, 300), unique=True).map(sorted), st.integers(0, 9), st.integers(0, 9), st.integers(1, 301))
def test_windows_cover_every_hit_once_and_stay_inside(hits: list[int], before: int, after: int, size: int) -> None:
    hits = [hit for hit in hits if hit < size]
    visited = [index for window in windows(hits, before, after, size) for index in window]
    assert visited == sorted(set(visited))
    assert set(hits) <= set(visited) <= set(range(size))
