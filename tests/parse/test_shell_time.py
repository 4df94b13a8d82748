"""A driver query that takes minutes is noticed; a quick one, or a long training, is not."""

from __future__ import annotations

import pytest

from linkproof.model import Event
from linkproof.parse import read
from linkproof.parse.clean import clean


def slow(text: str) -> list[str]:
    return [f.value for f in read(clean("x", text)) if isinstance(f, Event) and f.kind == "slow_gpu_query"]


def test_a_query_of_two_minutes_is_slow() -> None:
    assert slow("$ time nvidia-smi topo -m\n\tGPU0\tGPU1\nGPU0\t X \tNV3\n\nreal\t1m52.418s\nuser\t0m0.006s\n") == ["112.418"]


@pytest.mark.parametrize("text", ["$ time nvidia-smi\nreal\t0m1.2s\n", "$ time python train.py\nreal\t31m52.4s\n", "real\t5m1.0s\n"])
def test_quick_queries_and_other_commands_are_not(text: str) -> None:
    assert slow(text) == []
