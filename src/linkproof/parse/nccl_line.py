"""One line of an NCCL or RCCL log -> file, function, level and message. Not a parser itself: the small tools that the NCCL parsers share.

In:      a cleaned line. The frame has drifted (`HOST:PID:TID [DEV] file.cc:LINE NCCL WARN msg`; a time stamp before it since 2.26;
         ` (function)` after `file:line` since 2.30) and is often cut away, so everything is searched for, nothing is anchored.
Out:     Framed, or None where there is no `NCCL WARN` and the like in the line.
Unknown: a file or function that is not printed is "".
Source:  NCCL `src/debug.cc`, releases 2.3.5 to 2.30.7; RCCL prints absolute paths of its build tree.
"""

from __future__ import annotations

from typing import NamedTuple

from linkproof.model import Text
from linkproof.parse.rules import LINE_MAX, rx

FILE = r"[\w./+@-]+\.(?:cc|cpp|cu|h|hpp|hip)"
_FRAME = rf"(?:({FILE}):?\d{{0,7}}:? (?:\(([^()]*)\) )?)?\b[NR]CCL (WARN|INFO|TRACE|DIAG|ERROR) ?(.*)"
# What the NCCL functions print: `transport/nvls.cc:394 -> 1`, since 2.30 `transport/nvls.cc:394 (ncclNvlsSetup) -> 1`.
TRACE = rf"({FILE}):\d{{1,7}}(?: \([^()]*\))? -> (\d{{1,3}})\b"


class Framed(NamedTuple):
    where: str  # `transport/nvls.cc`
    func: str
    level: str
    message: str


def framed(words: str) -> Framed | None:
    found = rx(_FRAME).search(words[:LINE_MAX])
    if found is None:
        return None
    return Framed(short_file(found.group(1) or ""), found.group(2) or "", found.group(3), found.group(4).strip())


def short_file(path: str) -> str:
    """`/b/rccl/hipify/src/transport/p2p.cc` and `transport/p2p.cc` -> `transport/p2p.cc`, the name inside the source tree."""
    _, tree, inside = path.rpartition("/src/")
    if tree:
        return inside
    return path.removeprefix("src/") if not path.startswith("/") else path.rpartition("/")[2]


def near(text: Text, index: int, *words: str, before: int = 0, after: int = 0) -> bool:
    """Does one of these words stand in the line or in so many lines around it? The reach is the caller's constant, never open."""
    around = text.lines[max(0, index - before) : index + after + 1]
    return any(w in line.text for line in around for w in words)


def socket_state(words: str) -> str:
    """The words of an errno -> refused timeout unreachable closed other."""
    low = words.lower()
    if "refused" in low:
        return "refused"
    if "timed out" in low or "timeout" in low:
        return "timeout"
    if "no route" in low or "unreachable" in low or "network is down" in low or "host is down" in low:
        return "unreachable"
    if "reset by peer" in low or "broken pipe" in low or "closed" in low or "not connected" in low:
        return "closed"
    return "other"
