"""`p2pBandwidthLatencyTest` -> is peer access offered, and is it faster than copies through the host.

In:      the connectivity matrix, bandwidth and latency matrices with P2P disabled and enabled; some of them may be missing.
Out:     PeerAccess(claimed) from the connectivity matrix; Event p2p_slower with both figures where pairs that can use peer access
         gain less than a tenth by it, or wait ten times as long (or a millisecond and more, where there is nothing to compare with).
Unknown: without a connectivity matrix equal figures may mean that there is no peer access: then only clearly slower ones count.
Raises:  nothing.
Source:  cuda-samples p2pBandwidthLatencyTest.cu of CUDA 8 .. 13.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Line, Text
from linkproof.parse.peer_tests import claimed
from linkproof.parse.rules import LINE_MAX, rx, source

ANCHORS = ("P2P Connectivity Matrix", "P2P=Disabled", "P2P=Enabled")
KEEP = (0, 40)

GAIN = 1.1  # peer access worth the name gains more than a tenth over staging in host memory
SLOWER = 0.9
LATENCY = 10.0
NEVER_us = 1000.0  # a write to a peer takes a few us over PCIe and some ten through the host; a thousand is a path that times out
_ROWS_MOST = 36

Matrix = dict[tuple[int, int], tuple[float, Line]]


def _title(words: str) -> str:
    if "P2P Connectivity Matrix" in words:
        return "connected"
    found = rx(r"(?:(Uni|Bi)directional )?P2P=(Disabled|Enabled) (Bandwidth|Latency)").search(words)
    if found is None:
        return ""
    kind = "bi" if found.group(1) == "Bi" else ""
    return kind + str(found.group(3)).lower() + " " + str(found.group(2)).lower()


def _matrix(text: Text, title: int) -> Matrix:
    """The first matrix below a title: latency has a second one, of the CPU."""
    columns: list[int] = []
    found: Matrix = {}
    for index in range(title + 1, min(title + 1 + _ROWS_MOST, len(text.lines))):
        line = text.lines[index]
        tokens = line.text[:LINE_MAX].split()
        if not tokens:
            continue
        numbers = [token for token in tokens if rx(r"^\d{1,9}(?:\.\d{1,6})?$").search(token) is not None]
        if tokens[0] in ("D\\D", "GPU", "CPU") and len(numbers) == len(tokens) - 1:
            if columns:
                break
            columns = [int(float(number)) for number in numbers]
        elif columns and len(numbers) == len(tokens) > 1:
            row = int(float(numbers[0]))
            for column, number in zip(columns, numbers[1:], strict=False):
                if column != row:
                    found[row, column] = (float(number), line)
        else:
            break
    return found


def _compare(text: Text, off: Matrix, on: Matrix, connected: Matrix, unit: str) -> Iterator[Fact]:
    slow: list[tuple[float, str, Line]] = []
    for pair, (with_p2p, line) in on.items():
        without = off.get(pair, (0.0, line))[0]
        if unit == "us" and with_p2p > NEVER_us and without <= 0:
            slow.append((1 / with_p2p, f"GPU {pair[0]} -> {pair[1]}: {with_p2p:g} us with peer access", line))
        if without <= 0 or (connected and not connected.get(pair, (0.0, line))[0]):
            continue
        if unit == "us":
            ratio, bad = without / max(with_p2p, 1e-6), with_p2p > LATENCY * without
        else:
            ratio = with_p2p / without
            bad = ratio < (GAIN if connected else SLOWER)
        if bad:
            slow.append((ratio, f"GPU {pair[0]} -> {pair[1]}: {with_p2p:g} {unit} with peer access, {without:g} without", line))
    if slow:
        worst = min(slow, key=lambda one: one[0])
        yield Event(source=source(text, worst[2]), kind="p2p_slower", value=f"{worst[1]} ({len(slow)} of {len(on)} pairs)")


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    found: dict[str, Matrix] = {}
    for index in hits:
        title = _title(text.lines[index].text[:LINE_MAX])
        if title and title not in found:
            found[title] = _matrix(text, index)
    connected = found.get("connected", {})
    yield from claimed(text, {pair: (value > 0, line) for pair, (value, line) in connected.items()})
    for kind, unit in (("bandwidth", "GB/s"), ("latency", "us")):
        yield from _compare(text, found.get(f"{kind} disabled", {}), found.get(f"{kind} enabled", {}), connected, unit)
