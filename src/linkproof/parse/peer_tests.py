"""`simpleP2P`, `nvbandwidth`, `Device=0 CAN Access Peer Device=1`, the engines' peer-access cache -> was peer memory right, is it offered.

In:      output of CUDA samples and nvbandwidth, whole or a few lines; the JSON cache of vLLM and SGLang (`{"0->1": true}`).
Out:     Copy(via="load", pairs="first") of simpleP2P with ok, zeros or wrong; Copy(via="peer", result="wrong") of nvbandwidth;
         PeerAccess(claimed) once over all pairs and, where pairs differ, per refused pair.
Unknown: `Test passed` counts only near other lines of simpleP2P: every CUDA sample prints it. A waived test says that no peer access
         is offered, and nothing of bytes.
Raises:  nothing.
Source:  cuda-samples simpleP2P.cu, p2pBandwidthLatencyTest.cu; nvbandwidth kernels.cu; vLLM and SGLang custom_all_reduce_utils.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Copy, Fact, Line, PeerAccess, Seen, Text
from linkproof.parse.rules import LINE_MAX, rx, source

ANCHORS = (
    "simpleP2P", "Verification error @ element", "Peer access from ", "Peer-to-Peer access capability", "waiving test", "Access Peer Device=",
    "Test passed", "Test failed!", "Invalid value when checking the pattern at", "device_to_device_memcpy", "_to_device_memcpy", "_to_host_memcpy", "device_local_copy", '->0": ', '->1": ',
    "Run kernel on GPU",
)  # fmt: skip
KEEP = (1, 2)
_NEAR = 60

_CAN = r"Device=(\d{1,3}) (CAN|CANNOT) Access Peer Device=(\d{1,3})"
_FROM = r"Peer access from .*\(GPU(\d{1,3})\) -> .*\(GPU(\d{1,3})\) : (Yes|No)"
_CACHED = r"\"(\d{1,3})->(\d{1,3})\"\s*:\s*(true|false)"


def _pairs(text: Text, hits: list[int]) -> dict[tuple[int, int], tuple[bool, Line]]:
    found: dict[tuple[int, int], tuple[bool, Line]] = {}
    for index in hits:
        line = text.lines[index]
        words = line.text[:LINE_MAX]
        said = [(a, b, can == "CAN") for a, can, b in rx(_CAN).findall(words)]
        said += [(a, b, yes == "Yes") for a, b, yes in rx(_FROM).findall(words)]
        said += [(a, b, true == "true") for a, b, true in rx(_CACHED).findall(words)]
        for a, b, can in said:
            if a != b and len(found) < 4096:
                found[int(a), int(b)] = (can, line)
    return found


def claimed(text: Text, found: dict[tuple[int, int], tuple[bool, Line]]) -> Iterator[Fact]:
    """One answer over all pairs; the refused pairs too where some are and some are not."""
    if not found:
        return
    answers = {can for can, _ in found.values()}
    first = next(iter(found.values()))[1]
    yield PeerAccess(source=source(text, first), claimed="some" if len(answers) > 1 else "all" if True in answers else "none")
    if len(answers) > 1:
        for (a, b), (can, line) in found.items():
            if not can:
                yield PeerAccess(source=source(text, line), claimed="none", pairs=f"{a}-{b}")


def _simple_p2p(text: Text, hits: list[int]) -> Iterator[Fact]:
    last_own, errors, zeros = -1000, 0, 0
    first_error: Line | None = None
    ended: tuple[str, Line] | None = None
    for index in hits:
        line = text.lines[index]
        words = line.text[:LINE_MAX]
        error = rx(r"Verification error @ element \d+: val = (-?[0-9.]+|-?nan|-?inf), ref = (-?[0-9.]+)").search(words)
        if "Verification error @ element" in words:
            first_error = first_error or line
            # element 0 is 0 by right: only a zero where another value belongs tells of memory never written
            if error is None or rx(r"^-?0*\.?0*$").search(str(error.group(2))) is None:
                errors += 1
                zeros += error is not None and rx(r"^-?0*\.?0*$").search(str(error.group(1))) is not None
        if any(mark in words for mark in ("simpleP2P", "Verification error @", "Peer access from ", "Run kernel on GPU")):
            last_own = index
        elif index - last_own < _NEAR and rx(r"^\W*Test (passed|failed!)").search(words) is not None:
            ended = ("ok" if "passed" in words else "wrong", line)
    if first_error is not None:
        yield Copy(source=source(text, first_error), via="load", result="zeros" if errors and zeros == errors else "wrong", pairs="first")
    elif ended is not None:
        yield Copy(source=source(text, ended[1]), via="load", result=ended[0], pairs="first")


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    found = _pairs(text, hits)
    yield from claimed(text, found)
    yield from _simple_p2p(text, hits)
    running = wrong = seen = False
    for index in hits:
        line = text.lines[index]
        words = line.text[:LINE_MAX]
        if rx(r"^\W*(?:Running |SUM )?device_to_device_memcpy").search(words) is not None:
            running = True
            if not seen:
                seen = True
                yield Seen(source=source(text, line), kind="nvbandwidth")
            after = text.lines[index + 1].text if index + 1 < len(text.lines) else ""
            if not found and ("aived" in words or after.lstrip().startswith("Waived")):
                found[-1, -1] = (False, line)
                yield PeerAccess(source=source(text, line), claimed="none")
        elif words.lstrip().startswith("Running ") or "_memcpy" in words:
            running = False
        if "Invalid value when checking the pattern at" in words and not wrong:
            wrong = True
            yield Copy(source=source(text, line), via="peer" if running or not seen else "host", result="wrong", pairs="some")
        if not found and ("Peer-to-Peer access capability are required" in words or "waiving test" in words):
            found[-1, -1] = (False, line)
            yield PeerAccess(source=source(text, line), claimed="none")
