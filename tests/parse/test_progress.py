"""Long work of one rank is seen; ordinary progress is not."""

from __future__ import annotations

import pytest

from linkproof.model import Event
from linkproof.parse import read
from linkproof.parse.clean import clean


def works(text: str) -> list[str]:
    return [f.value for f in read(clean("log", text)) if isinstance(f, Event) and f.kind == "busy_work"]


@pytest.mark.parametrize(
    ("line", "work"),
    [
        ("Running tokenizer on dataset:  88%|████▊ | 383700/433643 [29:55<03:25, 2432.70 examples/s]", "Running tokenizer on dataset"),
        ("Map (num_proc=8):  12%|█▏        | 120000/1000000 [10:05<1:10:03, 209.33 examples/s]", "Map (num_proc=8)"),
        ("Loading checkpoint shards:  47%|████▋     | 7/15 [05:12<06:01, 45.2s/it]", "Loading checkpoint shards"),
        ("Saving model checkpoint to /data/out/checkpoint-500", "Saving model checkpoint"),
    ],
)
def test_long_work_of_one_rank_is_seen(line: str, work: str) -> None:
    assert works(line) == [work]


@pytest.mark.parametrize(
    "line", ["  3%|▎  | 10/300 [01:02<30:11, 6.2s/it]", "Processed prompts:   0%|          | 0/16", "the Map of the city"]
)
def test_other_progress_is_no_such_work(line: str) -> None:
    assert works(line) == []
