"""The long-log scan against a plain one that holds everything in memory."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linkproof.collect import blocks as blocks_module
from linkproof.collect import scan as scan_module
from linkproof.collect.literals import literals
from linkproof.collect.scan import Limits, RawLine, Scanned, scan

Anchors = Mapping[str, tuple[int, int]]
NO_ENDS = Limits(head=0, tail=0)
ENGINES = ("hyperscan", "ahocorasick")


def plain(log: bytes, anchors: Anchors, limits: Limits) -> Scanned:
    """What `scan` promises, written down as directly as possible."""
    lines = log.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    seen = [line[: limits.block_B] for line in lines]
    kept, hits, dropped = set(range(limits.head)), {}, {}
    kept |= set(range(len(lines) - limits.tail, len(lines)))
    for name, (before, after) in anchors.items():
        where = [i for i, line in enumerate(seen) if name.encode() in line]
        rest = where[limits.first :]
        chosen = where[: limits.first] + (rest[-limits.last :] if limits.last else [])
        for i in chosen:
            kept |= set(range(i - before, i + after + 1))
        hits[name], dropped[name] = len(where), len(where) - len(chosen)
    return Scanned(
        lines=[RawLine(i + 1, cut(line, anchors, limits.line_B)) for i, line in enumerate(seen) if i in kept],
        total_lines=len(lines),
        total_B=len(log),
        hits={name: n for name, n in hits.items() if n},
        dropped={name: n for name, n in dropped.items() if n},
    )


def cut(line: bytes, anchors: Anchors, most_B: int) -> bytes:
    line = line[:-1] if line.endswith(b"\r") else line
    ends = [at + len(name.encode()) for name in anchors if (at := line.find(name.encode())) >= 0]
    if len(line) <= most_B or not ends or min(ends) <= most_B:
        return line[:most_B]
    start = min(min(ends) - most_B // 4, len(line) - most_B)
    start = line.rfind(b"\r", start, min(ends)) + 1 or start
    return line[start : start + most_B]


def pieces(log: bytes, size_B: int) -> list[bytes]:
    return [log[i : i + size_B] for i in range(0, len(log), size_B)]


def numbers(scanned: Scanned) -> list[int]:
    return [line.no for line in scanned.lines]


# ---------------------------------------------------------------- what is kept


def test_a_hit_is_kept_with_its_lines_before_and_after() -> None:
    log = b"".join(b"line %d\n" % i for i in range(1, 10)).replace(b"line 5", b"NCCL WARN bad")
    assert scan([log], {"NCCL WARN": (1, 2)}, limits=NO_ENDS).lines == [
        RawLine(4, b"line 4"),
        RawLine(5, b"NCCL WARN bad"),
        RawLine(6, b"line 6"),
        RawLine(7, b"line 7"),
    ]


def test_context_is_cut_off_at_both_ends_of_the_log() -> None:
    assert numbers(scan([b"hit\nx\nx\nhit"], {"hit": (9, 1)}, limits=NO_ENDS)) == [1, 2, 3, 4]


def test_a_line_that_nobody_asked_for_is_left_out() -> None:
    assert scan([b"NCCL INFO fine\n" * 400], {"NCCL WARN": (2, 2)}, limits=NO_ENDS).lines == []


def test_the_first_and_the_last_lines_of_an_anchor_are_kept_and_the_rest_is_counted() -> None:
    log = b"".join(b"via P2P %d\nother\n" % i for i in range(1000))
    found = scan([log], {" P2P ": (0, 0)}, limits=Limits(first=3, last=2, head=0, tail=0))
    assert [line.data for line in found.lines] == [b"via P2P %d" % i for i in (0, 1, 2, 998, 999)]
    assert (found.hits, found.dropped) == ({" P2P ": 1000}, {" P2P ": 995})


def test_a_rare_anchor_behind_a_flood_is_kept() -> None:
    log = b"NCCL INFO Channel 00 : 0[0] -> 1[1] via P2P\n" * 50_000 + b"NVRM: Xid 79\n" + b"x via P2P\n" * 50_000
    found = scan(pieces(log, 70_000), {"via P2P": (0, 0), "NVRM: Xid": (0, 0)}, limits=NO_ENDS)
    assert RawLine(50_001, b"NVRM: Xid 79") in found.lines
    assert numbers(found)[-50:] == list(range(99_952, 100_002))
    assert 0 < found.dropped["via P2P"] <= 100_000 - 250


def test_the_first_and_the_last_lines_of_the_log_are_kept_without_any_anchor() -> None:
    log = b"".join(b"%d\n" % i for i in range(1, 2001))
    assert numbers(scan(pieces(log, 100), {})) == [*range(1, 51), *range(1801, 2001)]


def test_a_line_with_an_anchor_twice_and_with_two_anchors_is_kept_once() -> None:
    found = scan([b"a b a\n"], {"a": (0, 0), "b": (0, 0)}, limits=NO_ENDS)
    assert (found.lines, found.hits) == ([RawLine(1, b"a b a")], {"a": 1, "b": 1})


def test_an_anchor_inside_another_one_counts_for_both() -> None:
    assert scan([b"device-side assert\n"], {"assert": (0, 0), "device-side assert": (0, 0)}).hits == {"assert": 1, "device-side assert": 1}


# ---------------------------------------------------------------- odd texts


def test_crlf_is_taken_off() -> None:
    found = scan([b"one\r\nhit\r", b"\nthree\r\n"], {"hit": (1, 1)}, limits=NO_ENDS)
    assert [line.data for line in found.lines] == [b"one", b"hit", b"three"]


def test_an_empty_log_has_no_lines() -> None:
    assert scan([], {"hit": (0, 0)}) == Scanned([], 0, 0, {}, {})
    assert scan([b"", b""], {}) == Scanned([], 0, 0, {}, {})


def test_a_last_line_without_line_end_counts() -> None:
    found = scan([b"a\nhit"], {"hit": (0, 3)}, limits=NO_ENDS)
    assert (found.lines, found.total_lines, found.total_B) == ([RawLine(2, b"hit")], 2, 5)


def test_an_over_long_line_is_cut() -> None:
    found = scan([b"hit" + b"x" * 100_000 + b"\nnext\n"], {"hit": (0, 1)})
    assert [line.data for line in found.lines] == [b"hit" + b"x" * 4093, b"next"]


def test_of_an_over_long_line_the_part_around_its_anchor_is_kept() -> None:
    bar = b"".join(b"\rLoading: %3d%%" % (i % 100) for i in range(5000))
    (line,) = scan([bar + b"\rRuntimeError: CUDA error\n"], {"CUDA error": (0, 0)}).lines
    assert line.data == b"RuntimeError: CUDA error"


def test_lines_after_one_that_is_longer_than_a_block_have_their_right_number() -> None:
    log = b"x" * 3_000_000 + b"\nhit\n"
    found = scan(pieces(log, 65_536), {"hit": (0, 0)}, limits=NO_ENDS)
    assert (found.lines, found.total_lines) == ([RawLine(2, b"hit")], 2)


def test_an_anchor_with_a_line_end_is_refused() -> None:
    for bad in ("", "a\nb", "a\0"):
        with pytest.raises(ValueError, match="not a literal"):
            scan([b"text\n"], {bad: (0, 0)})


def test_a_chinese_anchor_is_found_in_utf_8() -> None:
    assert scan(["显存不足\n".encode()], {"显存": (0, 0)}).hits == {"显存": 1}


def test_progress_tells_the_bytes_read() -> None:
    told: list[int] = []
    scan([b"x" * 999_999 + b"\n"] * 4, {}, progress=told.append)
    assert told == sorted(told)
    assert 2_000_000 <= told[-1] <= 4_000_000


# ---------------------------------------------------------------- chunks and blocks


def test_every_place_to_cut_a_small_log_gives_the_same_lines() -> None:
    log = b"a\r\nNCCL WARN x\r\nb\nc\nvia P2P\n\nNCCL WARN y\nlong line via SHM of many words\nend"
    anchors = {"NCCL WARN": (1, 1), "via P2P": (0, 2), "via": (0, 0), "words": (0, 0)}
    limits = Limits(head=0, tail=0, line_B=12, block_B=24)
    want = plain(log, anchors, limits)
    for first in range(len(log) + 1):
        for size_B in (1, 2, 7, 1000):
            assert scan([log[:first], *pieces(log[first:], size_B)], anchors, limits=limits) == want


WORDS = st.sampled_from([b"A1", b"BB2", b"A1A1", b"CCC", b"x", b"filler ", b"\r", b"\xff", b"z" * 40, "好".encode()])
MIXED = st.lists(st.lists(WORDS, max_size=6).map(b"".join), max_size=60)
FLOOD = st.lists(st.sampled_from([b"A1", b"A1", b"A1 BB2", b"x"]), min_size=20, max_size=150)
QUIET = st.lists(st.sampled_from([b"x", b"", b"BB2"]), max_size=80)
LINES = st.one_of(MIXED, st.lists(st.one_of(MIXED, FLOOD, QUIET), min_size=2, max_size=4).map(lambda parts: list(chain(*parts))))


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=150, deadline=None)
@given(
    lines=LINES,
    repeat=st.integers(1, 3),
    line_end=st.sampled_from([b"\n", b"\r\n"]),
    open_end=st.booleans(),
    size_B=st.integers(1, 200),
    contexts=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=4, max_size=4),
    caps=st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)),
    line_B=st.integers(4, 30),
    block_B=st.integers(8, 100),
    tuned=st.tuples(st.integers(1, 6), st.integers(1, 30), st.integers(1, 8)),
)
def test_the_scan_gives_what_a_plain_search_in_memory_gives(
    engine: str,
    lines: list[bytes],
    repeat: int,
    line_end: bytes,
    open_end: bool,
    size_B: int,
    contexts: list[tuple[int, int]],
    caps: tuple[int, int, int, int],
    line_B: int,
    block_B: int,
    tuned: tuple[int, int, int],
) -> None:
    log = line_end.join(lines * repeat) + (b"" if open_end else line_end)
    anchors = dict(zip(("A1", "BB2", "1A", "好"), contexts, strict=True))
    limits = Limits(*caps, line_B=line_B, block_B=block_B)
    with pytest.MonkeyPatch.context() as patch:  # small enough that windows slide and floods are met
        for name, value in zip(("WINDOW", "RETUNE_HITS", "RETUNE_BLOCKS"), tuned, strict=True):
            patch.setattr(scan_module, name, value)
        patch.setattr(blocks_module, "MARK_B", 16)
        found = scan(pieces(log, size_B), anchors, limits=limits, engine=engine)
    want = plain(log, anchors, limits)
    assert found[:3] == want[:3]
    for told, true in ((found.hits, want.hits), (found.dropped, want.dropped)):
        assert told.keys() == true.keys()
        assert all(told[name] <= true[name] for name in told)
    for name in found.hits:
        kept = found.hits[name] - found.dropped.get(name, 0)
        assert kept == want.hits[name] - want.dropped.get(name, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_flood_that_stops_and_starts_again_loses_none_of_its_last_lines(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "RETUNE_HITS", 50)
    monkeypatch.setattr(scan_module, "RETUNE_BLOCKS", 20)
    monkeypatch.setattr(scan_module, "WINDOW", 4)
    flood, quiet = b"via P2P x\nvia SHM y\n" * 600, b"nothing\n" * 3000
    log = flood + quiet + b"via P2P late\n" + quiet + flood[:1000] + quiet + b"via SHM late\n" + quiet
    anchors = {"via P2P": (0, 0), "via SHM": (1, 1)}
    limits = Limits(first=5, last=60, head=0, tail=0, block_B=200)
    assert scan(pieces(log, 333), anchors, limits=limits, engine=engine).lines == plain(log, anchors, limits).lines


def test_both_engines_find_the_same_places() -> None:
    rng = random.Random(5)
    words = [bytes(rng.choices(b"ab.*[\\(", k=rng.randint(1, 5))) for _ in range(40)]
    words = list(dict.fromkeys(words))
    text = memoryview(bytes(rng.choices(b"ab.*[\\(\n", k=5000)))
    both = [literals(words, engine) for engine in ENGINES]
    assert both[0].ends(text) == both[1].ends(text) != []
    for engine in both:
        engine.tell_once({0, 1, 2})
    assert both[0].ends(text) == both[1].ends(text)


# ---------------------------------------------------------------- bounds


def test_when_there_is_no_room_left_every_anchor_still_has_some_lines() -> None:
    names = [f"<word{i:03}>" for i in range(300)]
    log = "".join(f"{name} {'.' * 50} {n}\n" for n in range(400) for name in names).encode()
    limits = Limits(max_lines=8000, max_B=400_000)
    found = scan(pieces(log, 1 << 16), dict.fromkeys(names, (0, 0)), limits=limits)
    assert len(found.lines) <= 1.1 * 8000 + 250
    assert sum(len(line.data) for line in found.lines) <= 1.3 * 400_000
    text = b"".join(line.data for line in found.lines)
    assert all(name.encode() in text for name in names)


def peak_B(chunks: Iterator[bytes], anchors: Anchors) -> tuple[int, Scanned]:
    tracemalloc.start()
    try:
        found = scan(chunks, anchors)
        return tracemalloc.get_traced_memory()[1], found
    finally:
        tracemalloc.stop()


def fresh(block: bytes, times: int) -> Iterator[bytes]:
    for _ in range(times):
        yield bytes(bytearray(block))


ROOM: tuple[Any, ...] = (
    ("a log of ordinary lines", b"node00:1:2 [0] NCCL INFO Channel 00 : 0[0] -> 1[1] via P2P\n" * 16_000),
    ("no line end at all", b"via P2P " * 125_000),
    ("nothing but line ends", b"\n" * 200_000),
    ("long lines", (b"via P2P " * 600 + b"\n") * 200),
)


@pytest.mark.parametrize("block", [block for _, block in ROOM], ids=[name for name, _ in ROOM])
def test_memory_does_not_grow_with_the_log(block: bytes) -> None:
    times = 300_000_000 // len(block) if block.strip() else 200
    at_most_B, found = peak_B(fresh(block, times), {"via P2P": (1, 2), "NCCL WARN": (2, 10)})
    assert found.total_B == times * len(block)
    assert at_most_B < 60_000_000
