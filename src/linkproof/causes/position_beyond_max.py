"""Sequence longer than the position table."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import ModelRun, NotChecked, Sign

CLASS = "not_comm"
PRIOR = -4.6


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if told := f.input("position_beyond_max"):
        yield pro(6.5, "a position lies beyond the table ({value})", told, value=told.value or "?")
    asserts = f.asserted("embedding", "row_gather", "index", "index_copy", "gather") or f.event("index_out_of_range_cpu", "assert_generic")
    run = f.first(ModelRun, result=("assert", "crash"))
    if (long := f.pattern("only_long_inputs")) and (asserts or run):
        yield pro(5.0, "it fails above a length ({value})", long, value=long.value or "?")
    elif long:
        yield pro(1.5, "it fails above a length ({value})", long, value=long.value or "?")
    longest, table = f.input_number("longest_sequence"), f.input_number("max_position")
    if longest and table and longest[0] > table[0]:
        yield pro(
            6.0,
            "the longest sequence has {longest} tokens, the table {rows} positions",
            longest[1],
            longest=longest[1].value,
            rows=table[1].value,
        )
    elif longest and run is None and f.trouble:
        yield pro(2.4, "the length of the longest sequence was looked at ({value})", longest[1], value=longest[1].value)
    if said := f.event("seq_too_long"):
        yield pro(
            4.5 if asserts or run else 1.5,
            "a message says that the sequence is longer than the model takes ({value})",
            said,
            value=said.value,
        )
    if f.asserted("embedding") or f.event("index_out_of_range_cpu"):
        embed = f.asserted("embedding") or f.event("index_out_of_range_cpu")
        if embed:
            yield pro(2.0, "position tables are looked up like embeddings", embed)
    elif row := f.asserted("row_gather"):
        yield pro(1.6, "the assertion is that of a lookup of rows: an embedding, or a table of positions", row)
    elif index := f.asserted("index", "index_copy"):
        yield pro(1.2, "position tables and static caches are indexed by position", index)
    if f.single_bad and asserts:
        yield pro(1.5, "it asserts on one GPU too", f.single_bad)
    if short := f.pattern("only_some_inputs"):
        yield con(1.0, "some inputs fail and nothing says that they are the long ones", short)
    if f.single_ok and f.split_bad:
        yield con(2.5, "the same input is right on one GPU", f.single_ok)
    if pad := f.setting("pad", "cured", "changed"):
        yield con(2.0, "another padding token changes it: tokens rather than positions", pad)
