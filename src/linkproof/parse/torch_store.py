"""torch's rendezvous store, where ranks wait for each other before any GPU traffic.

In:      lines of TCPStore, `init_process_group` and the elastic rendezvous.
Out:     Event store_timeout (value: who came, `1/2`, or how a connection failed) and store_closed (value: the words).
Unknown: what is not printed is "". The store's own retries (refused, wrong address family) are normal at a start and make no fact.
         A connection that closes says only that the other side is gone; NCCL's and gloo's own sockets are their parsers' business.
Raises:  nothing.
Source:  torch `csrc/distributed/c10d/{TCPStore,socket,ProcessGroupNCCL}.cpp`, `distributed_c10d.py`, `elastic/rendezvous`, 1.8 to 2.15.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Source, Text
from linkproof.parse.nccl_line import socket_state
from linkproof.parse.rules import Match, Rule, anchors_of, distinct, run

_STORE = r"(?:[sS]tore\b|TCPStore|c10d|socket\.cpp|TCPStoreLibUvBackend|DistNetworkError|DistStoreError|DistBackendError|ProcessGroupNCCL)"
_GONE = r"(Connection reset by peer|Connection closed by peer|Broken pipe|Failed to recv, got 0 bytes|recvValue failed|sendBytes failed)"


def _joined(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    value = f"{m.group(1)}/{m.group(2)}" if m.group(1) and m.group(2) else ""
    return Event(source=where, rank=rank, kind="store_timeout", value=value)


def _barrier(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    return Event(source=where, rank=rank, kind="store_timeout", value=f"{m.group(2)}/{m.group(1)}")


def _connect(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    state = socket_state(m.group(1))
    return Event(source=where, rank=rank, kind="store_timeout", value=state) if state in ("timeout", "unreachable") else None


def _closed(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    if m is None or "CCL WARN" in where.text or "gloo" in where.text:  # said by those parsers, in their words
        return None
    return Event(source=where, rank=rank, kind="store_closed", value=m.group(1))


RULES = (
    Rule("waiting for clients", r"Timed out after \d{1,9} seconds waiting for clients(?:\. (\d{1,6})/(\d{1,6}) clients joined)?", _joined),
    Rule("store based barrier", r"Timed out .*store based barrier.*world_size=(\d{1,6}), worker_count=(\d{1,6})", _barrier),
    Rule("Socket Timeout", rf"(?:{_STORE}.*|Error: )Socket Timeout", "store_timeout"),
    Rule("wait timeout after", r"wait timeout after \d{1,12}ms", "store_timeout"),
    Rule("client socket has timed out after", "", "store_timeout"),
    Rule("client socket has failed to connect", r"has failed to connect to .*errno: \d{1,4} - ([^)]{1,80})", _connect),
    Rule("RendezvousTimeoutError", "", "store_timeout"),
    Rule("TCPStore server has shut down", r"TCPStore server has shut down( too early)?", "store_closed"),
    *(
        Rule(word, rf"{_STORE}.*?{_GONE}", _closed)
        for word in ("by peer", "Broken pipe", "got 0 bytes", "recvValue failed", "sendBytes failed")
    ),
)

ANCHORS = anchors_of(RULES)
KEEP = (0, 1)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    yield from distinct(run(RULES, text, hits))
