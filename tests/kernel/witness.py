"""`lspci -D -nn -vvv` read by itself, with none of linkproof's code: the other eye on the same registers.

In:      the listing as pciutils 3.5 and later print it to root.
Out:     Witnessed per function; None where lspci says nothing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

BITS = {"SrcValid": 1, "TransBlk": 2, "ReqRedir": 4, "CmpltRedir": 8, "UpstreamFwd": 16, "EgressCtrl": 32, "DirectTrans": 64}
KINDS = {"Root Port": "root_port", "Upstream Port": "upstream_port", "Downstream Port": "downstream_port", "Endpoint": "endpoint"}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Witnessed(NamedTuple):
    cls: int
    vendor: int
    device: int
    kind: str
    acs: int | None
    speed_GTps: float | None
    width: int | None
    speed_best_GTps: float | None
    width_best: int | None
    numa: int | None
    iommu_group: str
    driver: str
    bars_B: dict[int, int]


def _first(pattern: str, record: str) -> str | None:
    found = re.search(pattern, record, re.M)
    return found[1] if found else None


def _word(record: str) -> int | None:
    line = _first(r"ACSCtl:(.*)$", record)
    return None if line is None else sum(bit for name, bit in BITS.items() if f"{name}+" in line)


def _link(name: str, record: str) -> tuple[float | None, int | None]:
    found = re.search(rf"{name}:.*?Speed ([\d.]+)GT/s.*?Width x(\d+)", record)
    return (float(found[1]), int(found[2])) if found else (None, None)


def witnessed(listing: str) -> dict[str, Witnessed]:
    """What lspci says of every function, by address."""
    out = {}
    for record in listing.strip().split("\n\n"):
        head = re.match(r"(\S+) .*? \[([0-9a-f]{4})\]: .*?\[([0-9a-f]{4}):([0-9a-f]{4})\]", record)
        assert head is not None, record[:200]
        kind = _first(r"Express \(v\d\) (?:Legacy )?(Root Port|Upstream Port|Downstream Port|Endpoint|.*?),", record) or ""
        numa = _first(r"NUMA node: (\d+)", record)
        bars = re.findall(r"Region (\d): .* at [0-9a-f]+ .*\[size=(\d+)([KMG]?)\]", record)
        out[head[1]] = Witnessed(
            int(head[2], 16), int(head[3], 16), int(head[4], 16), KINDS.get(re.sub(r" \(.*", "", kind), ""), _word(record),
            *_link("LnkSta", record), *_link("LnkCap", record), None if numa is None else int(numa),
            _first(r"IOMMU group: (\d+)", record) or "", _first(r"Kernel driver in use: (\S+)", record) or "",
            {int(number): int(size) * _UNITS[unit] for number, size, unit in bars},
        )  # fmt: skip
    return out
