"""gloo: ranks that cannot connect, the loopback address, messages of the wrong length.

In:      lines of gloo inside torch (`connectFullMesh failed`, `pair.cc: connect [..]`, `Unable to resolve hostname`).
Out:     Event gloo_failed (value: the address without its port), gloo_loopback, collective_timeout, collective_mismatch, store_closed; Iface.
Unknown: an address that is not printed is "". The count of connected peers is no failure.
Raises:  nothing.
Source:  gloo `transport/tcp/{pair,device,unbound_buffer}.cc`, `rendezvous/context.cc`; torch `ProcessGroupGloo.cpp`.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Iface, Source, Text
from linkproof.parse.rules import LINE_MAX, Match, Rule, anchors_of, distinct, run, rx, source

_REMOTE = r"remote=\[([0-9A-Fa-f.:%\w]{2,64})\]"
_CONNECT = r"(?:gloo|pair\.cc).*\bconnect(?:ing)? \[([0-9A-Fa-f.:%\w]{2,64})\]:\d{1,5}: (?:Connection refused|Connection timed out|No route|Network is unreach)"


def _device(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    return Iface(source=where, rank=rank, library="gloo", name=m.group(1))


RULES = (
    Rule("Using the loopback address as fallback", "", "gloo_loopback"),
    Rule("pair.cc", _CONNECT, "gloo_failed"),
    Rule("Unable to find address for", r"gloo|device\.cc|ifa != nullptr", "gloo_failed"),
    Rule("Unable to find address for", r"Unable to find address for: ([\w.@-]{1,32})", _device),
    Rule("Unable to find interface for", r"Unable to find interface for: \[?([0-9A-Fa-f.:%\w]{2,64})\]?", "gloo_failed"),
    Rule("for recv operation to complete", r"Timed out waiting \d{1,12}ms for (recv) operation", "collective_timeout"),
    Rule("for send operation to complete", r"Timed out waiting \d{1,12}ms for (send) operation", "collective_timeout"),
    Rule("Application timeout caused pair closure", "", "collective_timeout"),
    Rule("op.preamble.length", r"op\.preamble\.length <= op\.nbytes\. (\d{1,20} vs \d{1,20})", "collective_mismatch"),
    Rule("Connection closed by peer [", r"(?:gloo|pair\.cc).*(Connection closed by peer)", "store_closed"),
    Rule("Connection reset by peer", r"(?:gloo|pair\.cc).*(Connection reset by peer)", "store_closed"),
)
ANCHORS = (*anchors_of(RULES), "connectFullMesh failed", "timed out connecting: SO_ERROR")
KEEP = (0, 2)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    facts = list(distinct(_all(text, hits)))
    told = any(isinstance(f, Event) and f.kind == "gloo_failed" and f.value for f in facts)
    for fact in facts:
        if not (told and isinstance(fact, Event) and fact.kind == "gloo_failed" and not fact.value):
            yield fact


def _all(text: Text, hits: list[int]) -> Iterator[Fact]:
    yield from run(RULES, text, hits)
    for index in hits:
        line = text.lines[index]
        if "connectFullMesh failed" in line.text or "timed out connecting: SO_ERROR" in line.text:
            yield Event(source=source(text, line), rank=line.rank, kind="gloo_failed", value=_address(text, index))


def _address(text: Text, index: int) -> str:
    """The message is long and often folded: the address may stand one or two lines below."""
    for line in text.lines[index : index + 3]:
        found = rx(_REMOTE).search(line.text[:LINE_MAX])
        if found is not None:
            return str(found.group(1))
    return ""
