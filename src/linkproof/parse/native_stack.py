"""Native stacks and memory checkers: gdb, py-spy --native, a signal handler's backtrace, compute-sanitizer.

In:      `#0 fn (...) at proxy.cc:462`, `[ 5] libnccl.so.2(_Z19ncclCuMemHostEnablev+0x1b2)`, `========= Address 0x.. is 130,023,424 bytes after ..`.
Out:     Event nccl_stack (value: the NCCL function), cumem_host_failed, sanitizer_far (value: bytes to the nearest allocation).
Unknown: frames of other libraries give nothing.
Raises:  nothing.
Source:  gdb and glibc backtrace forms; compute-sanitizer memcheck report; NCCL function names.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Source, Text
from linkproof.parse.rules import Match, Rule, run

FAR_B = 1 << 20  # an address that far from any allocation is no overrun of a buffer, it belongs to nobody


def _far(found: Match | None, source: Source, rank: int | None) -> Fact | None:
    if found is None:
        return None
    distance_B = int(found[1].replace(",", ""))
    return Event(source=source, rank=rank, kind="sanitizer_far", value=str(distance_B)) if distance_B >= FAR_B else None


RULES = (
    Rule("ncclCuMemHost", r"(ncclCuMemHost[A-Za-z]{1,12}?)(?:v\b|\b)", "cumem_host_failed"),
    Rule("nccl", r"^\s*#\d{1,3} +(?:0x[0-9a-f]{6,16} in )?(nccl\w{2,60}) ?\(", "nccl_stack"),
    Rule("nccl", r"libnccl\.so[.\d]*\((?:_Z\d+)?(nccl\w{2,60}?)(?:P\w*|v)?\+0x[0-9a-f]+\)", "nccl_stack"),
    Rule("bytes after the nearest allocation", r"is ([\d,]{1,20}) bytes after the nearest allocation", _far),
    Rule("bytes before the nearest allocation", r"is ([\d,]{1,20}) bytes before the nearest allocation", _far),
)
ANCHORS = (
    "ncclCuMemHost",
    "#0 ",
    "#1 ",
    "#2 ",
    "#3 ",
    "#4 ",
    "#5 ",
    "#6 ",
    "libnccl.so",
    "bytes after the nearest",
    "bytes before the nearest",
)
KEEP = (1, 3)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    yield from run(RULES, text, hits, most=20)
