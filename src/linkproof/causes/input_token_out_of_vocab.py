"""A token id lies outside the embedding or logits."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import Changed, ModelRun, NotChecked, Sign

CLASS = "not_comm"
PRIOR = -3.6


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if told := f.input("token_id_out_of_vocab"):
        yield pro(6.5, "a token id lies outside the vocabulary ({value})", told, value=told.value or "?")
    top, rows = f.input_number("max_token_id"), f.input_number("vocab_rows")
    if top and rows and top[0] >= rows[0]:
        yield pro(7.0, "token id {top} and an embedding of {rows} rows", top[1], decisive=True, top=top[1].value, rows=rows[1].value)
    elif top and rows:
        yield con(4.0, "the largest token id {top} fits the {rows} rows", top[1], top=top[1].value, rows=rows[1].value)
    if negative := f.input("pad_token_negative"):
        yield pro(6.0, "a negative token id ({value}) is looked up", negative, value=negative.value or "-1")
    if size := f.event("vocab_mismatch"):
        yield pro(4.0, "tokenizer and embedding have different sizes", size)
    embed = f.asserted("embedding") or f.event("index_out_of_range_cpu")
    generic = f.event("assert_generic")
    told_assert = f.first(ModelRun, result="assert")
    if embed:
        yield pro(3.3, "the assertion is that of an embedding lookup", embed)
    elif row := f.asserted("row_gather"):
        yield pro(2.3, "the assertion is that of a lookup of rows: an embedding, or a table of positions", row)
    elif scatter := f.asserted("gather", "scatter"):
        yield pro(0.6, "a gather or scatter by token id may assert so", scatter)
    asserts = embed or f.asserted("row_gather") or generic or told_assert
    changed = f.first(Changed, what="model")
    if changed and asserts:
        added = any(w in changed.detail.lower() for w in ("token", "vocab", "embed"))
        yield pro(4.0 if added else 2.0, "the model or its tokenizer was changed just before ({detail})", changed, detail=changed.detail)
    if asserts and (some := f.pattern("only_some_inputs")):
        yield pro(2.2, "only certain inputs fail", some)
    if asserts and (pad := f.setting("pad", "cured", "changed")):
        yield pro(3.0, "another padding token changes it", pad)
    if f.single_bad and f.single_bad.result == "assert":
        yield pro(2.2, "it asserts on one GPU too", f.single_bad)
    if f.single_ok and f.split_bad:
        yield con(2.5, "the same input is right on one GPU", f.single_ok)
    if long := f.pattern("only_long_inputs"):
        yield con(2.2, "only long inputs fail: positions rather than tokens", long)
    if (a := f.asserted("embedding", "index", "row_gather")) and a.index is not None and a.size is not None:
        if a.index >= a.size * 64 or a.index < -a.size * 64:
            yield con(2.5, "the printed index {index} is far from any token: corrupted rather than mistaken", a, index=str(a.index))
        elif a.index >= a.size or a.index < 0:
            yield pro(1.5, "the printed index {index} lies just outside the {size} rows", a, index=str(a.index), size=str(a.size))
    if loss := f.asserted("nll_loss", "bce_loss"):
        yield con(3.0, "the assertion is that of a loss", loss)
