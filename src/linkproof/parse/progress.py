"""Progress lines of long work that one rank does while others may wait: data preparation, loading, saving.

In:      log lines with a progress bar or a message of datasets, transformers, DeepSpeed, torch or lightning.
Out:     Event busy_work, at most MOST; the value is the work in a few words.
Unknown: other progress bars (training steps, requests) are no such work and give nothing.
Raises:  nothing.
Source:  message texts of datasets `arrow_dataset.py`, transformers `trainer.py` and `modeling_utils.py`, DeepSpeed `engine.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Fact, Text
from linkproof.parse.rules import Rule, anchors_of, run

MOST = 20
RULES = (
    Rule("tokenizer on", r"(Running tokenizer on \w{1,40})", "busy_work"),
    Rule("Tokenizing", r"(Tokenizing[^:|]{0,40})[:|]? +\d{1,3}%", "busy_work"),
    Rule("Map", r"\b(Map(?: \(num_proc=\d{1,4}\))?):? +\d{1,3}%", "busy_work"),
    Rule("Filter", r"\b(Filter(?: \(num_proc=\d{1,4}\))?):? +\d{1,3}%", "busy_work"),
    Rule("Generating", r"(Generating \w{1,30} split)", "busy_work"),
    Rule("Packing", r"(Packing[^:|]{0,40}):? +\d{1,3}%", "busy_work"),
    Rule("Loading checkpoint shards", r"(Loading checkpoint shards):? +\d{1,2}%", "busy_work"),
    Rule("Saving model checkpoint", r"(Saving model checkpoint)", "busy_work"),
    Rule("Saving checkpoint", r"(Saving checkpoint)", "busy_work"),
    Rule("Downloading", r"(Downloading (?:data|shards|dataset)[^:|]{0,30}):? +\d{1,3}%", "busy_work"),
)
ANCHORS = anchors_of(RULES)
KEEP = (0, 0)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    yield from run(RULES, text, hits, most=MOST)
