"""Ranks issue different operations or sizes."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import NotChecked, Sign

CLASS = "not_comm"
PRIOR = -4.6


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if sizes := f.ranks("sizes_differ"):
        yield pro(6.0, "ranks ask for different sizes or operations ({detail})", sizes, detail=sizes.detail or "?")
    if found := f.event("collective_mismatch"):
        yield pro(6.0, "a checker says that ranks called different collectives", found, decisive=True)
    if cut := f.event("nccl_truncated"):
        yield pro(4.5, "a message was longer than its receiver expected", cut)
    if spec := f.setting("spec_off", "cured"):
        yield pro(2.5, "without speculative decoding, where ranks may disagree, it runs", spec)
    if (some := f.pattern("only_some_inputs")) and f.hang:
        yield pro(1.2, "certain inputs make the ranks part ways", some)
    if off := f.setting("p2p_off", "cured"):
        yield con(3.0, "a change of transport ended it", off)
    if other := f.setting("nccl_version", "cured"):
        yield con(2.5, "another NCCL release ended it", other)
