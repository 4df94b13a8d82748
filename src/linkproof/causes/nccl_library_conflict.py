"""Two NCCL libraries, and the wrong one is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import WRONG_DATA, Reading, version
from linkproof.model import NotChecked, Sign, Versions

CLASS = "comm_software"
PRIOR = -5.0


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if symbol := f.event("undefined_nccl_symbol"):
        yield pro(7.0, "the loaded NCCL lacks {symbol}: an older library came first", symbol, decisive=True, symbol=symbol.value or "?")
    if two := f.host("two_nccl_libraries"):
        yield pro(4.5, "two NCCL libraries are installed ({value})", two, value=two.value or "?", stands=True)
    elif several := f.event("several_nccl"):
        yield pro(3.5, "more than one NCCL is named: {value}", several, value=several.value, stands=True)
    if mismatch := f.event("nccl_version_mismatch"):
        yield pro(3.0, "ranks or libraries report different NCCL versions", mismatch)
    seen = {v.nccl: v for v in f.all(Versions) if v.nccl}
    if len({version(n)[:3] for n in seen if len(version(n)) >= 3}) > 1:
        yield pro(1.5, "texts name different NCCL versions: {versions}", next(iter(seen.values())), versions=", ".join(sorted(seen)))
    copy = f.peer_copy_bad
    if copy and copy.result in WRONG_DATA:
        yield con(4.0, "plain copies between the GPUs are wrong too", copy)
