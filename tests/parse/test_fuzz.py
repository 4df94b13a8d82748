"""Every parser, fed with recorded texts that were cut, mixed, repeated and damaged: nothing but ParseError may leave it."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from linkproof.errors import ParseError
from linkproof.model import Fact, Line, Text
from linkproof.parse import Parser, parsers, read
from linkproof.parse.clean import clean

CASES = Path(__file__).resolve().parent.parent / "cases"
SEEDS = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(CASES.glob("*/evidence/*.txt"))]
LINES = [line for seed in SEEDS for line in seed.splitlines() if line.strip()]
TOKENS = [
    "-1",
    "99999999999999999999999",
    "0x",
    "\x00",
    "",
    " ",
    "\t",
    "é",
    "\ud83d",
    "[",
    "]",
    "(",
    "'",
    '"',
    "`",
    "<",
    "&",
    "%s",
    "{x}",
    "nan",
    "1e999",
    ":",
    "::",
    "..",
]


def damaged(line: str, random: Random) -> str:
    """One line with a token replaced, doubled, cut or grown."""
    words = line.split(" ")
    at = random.randrange(len(words))
    kind = random.randrange(5)
    if kind == 0:
        words[at] = random.choice(TOKENS)
    elif kind == 1:
        words.insert(at, words[random.randrange(len(words))])
    elif kind == 2:
        return line[: random.randrange(len(line) + 1)]
    elif kind == 3:
        words[at] = words[at] * random.choice([2, 50, 600])
    else:
        words[at] = "".join(random.choice("0123456789") if c.isdigit() else c for c in words[at])
    return " ".join(words)


def facts_of(parser: Parser, text: Text) -> list[Fact]:
    hits = [i for i, line in enumerate(text.lines) if any(anchor in line.text for anchor in parser.anchors)]
    try:
        return list(parser.parse(text, hits)) if hits else []
    except ParseError:
        return []


@pytest.mark.parametrize("parser", parsers(), ids=lambda p: p.name)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_a_parser_survives_damaged_texts(parser: Parser, seed: int) -> None:
    random = Random(seed)
    own = [line for line in LINES if any(anchor in line for anchor in parser.anchors)] or [f"{random.choice(parser.anchors)} 1 2 3"]
    chosen = [damaged(random.choice(own if random.random() < 0.8 else LINES), random) for _ in range(random.randrange(1, 30))]
    text = clean("fuzz", "\n".join(random.choice(["", "[rank3]: "]) + words[:4000].replace("\n", " ") for words in chosen))
    for fact in facts_of(parser, text):
        assert fact.source.file == "fuzz" and 0 <= fact.source.line <= max((line.no for line in text.lines), default=0)
        assert len(fact.source.text) <= 300


@pytest.mark.parametrize("parser", parsers(), ids=lambda p: p.name)
def test_a_parser_survives_its_own_anchors_alone_and_cut(parser: Parser) -> None:
    shapes = list(parser.anchors) + [a[: len(a) // 2] for a in parser.anchors] + [f"{a}{a}{a}" for a in parser.anchors]
    text = Text("fuzz", [Line(no, words) for no, words in enumerate(shapes, 1)])
    assert isinstance(facts_of(parser, text), list)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=600))
def test_any_text_is_read(words: str) -> None:
    assert all(fact.source.file == "any" for fact in read(clean("any", words)))
