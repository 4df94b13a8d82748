"""`time COMMAND` around a driver query -> did it take very long?

In:      `real 1m52.418s` (bash) or `1:52.41 elapsed` some lines below a prompt line that runs nvidia-smi, rocm-smi or lspci.
Out:     Event slow_gpu_query with the seconds, from LONG_s on.
Unknown: a time without such a command above it gives nothing.
Raises:  nothing.
Source:  bash `time` and GNU time output.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Text
from linkproof.parse.rules import rx, source

ANCHORS = ("real\t", "real ", "elapsed")
KEEP = (60, 0)
LONG_s = 20.0  # eight GPUs answer in two seconds; starting a driver that is not resident takes some ten
_BACK = 80


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    for index in hits[:50]:
        line = text.lines[index]
        found = rx(r"^\s*real\s+(\d{1,5})m([\d.]{1,9})s").search(line.text[:200]) or rx(
            r"(\d{1,4}):(\d{2}(?:\.\d{1,3})?)\s?elapsed"
        ).search(line.text[:200])
        if found is None:
            continue
        took_s = int(found[1]) * 60 + float(found[2])
        above = text.lines[max(0, index - _BACK) : index]
        if took_s >= LONG_s and any(rx(r"(?:^|[\s$#])(?:nvidia-smi|rocm-smi|amd-smi)\b").search(one.text[:300]) for one in above):
            yield Event(source=source(text, line), rank=line.rank, kind="slow_gpu_query", value=f"{took_s:g}")
