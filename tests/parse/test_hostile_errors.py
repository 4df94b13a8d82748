"""Whatever the text, the parsers of error messages give facts or nothing, and no exception."""

from importlib import import_module

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linkproof.model import Fact, Line, Text

NAMES = ("device_assert", "traceback", "error_text", "cuda_error", "process_end", "model_text", "engine_log", "ray_log", "tensor_print",
         "generated_text", "code_snippet")  # fmt: skip
ANCHORS = sorted({anchor for name in NAMES for anchor in import_module(f"linkproof.parse.{name}").ANCHORS})
PIECES = st.one_of(st.sampled_from(ANCHORS), st.text(max_size=20), st.integers(0, 10**30).map(str), st.sampled_from("()[]{}'\"`:=,.->| \\"))
LINES = st.lists(PIECES, max_size=8).map(" ".join)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(lines=st.lists(LINES, min_size=1, max_size=12), rank=st.one_of(st.none(), st.integers(0, 7)))
def test_any_mixture_of_anchors_gives_only_facts(name: str, lines: list[str], rank: int | None) -> None:
    text = Text("t", [Line(no, words, rank) for no, words in enumerate(lines, 1)], len(lines))
    found = list(import_module(f"linkproof.parse.{name}").parse(text, list(range(len(lines)))))
    assert all(isinstance(fact, Fact) and 1 <= fact.source.line <= len(lines) for fact in found)


@pytest.mark.parametrize("name", NAMES)
def test_facts_of_a_flood_are_bounded(name: str) -> None:
    flood = [f"{anchor} {number} ' {number}.5 \" [{number}]" for number in range(40) for anchor in ANCHORS]
    text = Text("t", [Line(no, words) for no, words in enumerate(flood, 1)], len(flood))
    found = list(import_module(f"linkproof.parse.{name}").parse(text, list(range(len(flood)))))
    assert len(found) < 5000
