"""What the processes of a run say to each other: msgpack messages, each behind a mark and its length, over socket pairs.

    Runner (the caller's process)  <- Begin, Ask / Answer ->  launcher  <- Try / Report ->  member (a worker, or one of a gang)

In:      the structs below, or bytes as they come from a socket.
Out:     frames; whole messages.
Raises:  Garbage: what came is not ours. Gone: the other end is closed.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import TypeVar

import msgspec
from msgspec import Struct

from linkproof.measured import Card, Case, Outcome
from linkproof.probe.setup import Setup

MARK = b"\xf1lp\x01"  # what a library prints on the wrong descriptor does not begin like this
HEAD_B = len(MARK) + 4
MESSAGE_MAX_B = 16 << 20
READY = -1
S = TypeVar("S", bound=Struct)


class Garbage(Exception):
    """Bytes that are no message of ours."""


class Gone(Exception):
    """The process at the other end has closed."""


class Job(Struct, frozen=True):
    """One case and how long it may take, set-up of a fresh worker not counted."""

    case: Case
    deadline_s: float


class Begin(Struct, frozen=True):
    """First word to the launcher. folder: where it may make the gangs' folders (it is made when needed). mark: see proc.MARK."""

    setup: Setup
    tasks: str
    folder: str
    setup_s: float
    parent: int
    mark: str


class Ask(Struct, frozen=True):
    """Several jobs run at the same time and wait for each other before they start. cards: not the case, but which GPUs are there."""

    jobs: tuple[Job, ...]
    cards: bool = False


class Answer(Struct, frozen=True):
    """Of one job of an Ask, by its place there. job READY: the launcher is."""

    job: int
    outcomes: tuple[Outcome, ...] = ()
    cards: tuple[Card, ...] = ()
    backend: str = ""


class Try(Struct, frozen=True):
    """To a member: try this, not before `at` (time.monotonic, one clock for the whole machine)."""

    case: Case
    at: float = 0.0
    cards: bool = False


class Report(Struct, frozen=True):
    """From a member. No outcomes and no cards: it is set up. fit: it may be given another case."""

    outcomes: tuple[Outcome, ...] = ()
    cards: tuple[Card, ...] = ()
    backend: str = ""
    fit: bool = True


def frame(message: Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    if len(body) > MESSAGE_MAX_B:
        raise ValueError(f"a message of {len(body)} bytes")
    return MARK + len(body).to_bytes(4, "little") + body


def decode(body: bytes, kind: type[S]) -> S:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise Garbage(str(e)) from e


class Inbox:
    """Cuts what arrives into messages."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._bytes += data
        while len(self._bytes) >= HEAD_B:
            length = int.from_bytes(self._bytes[len(MARK) : HEAD_B], "little")
            if not self._bytes.startswith(MARK) or length > MESSAGE_MAX_B:
                raise Garbage(repr(bytes(self._bytes[:40])))
            if len(self._bytes) < HEAD_B + length:
                return
            body = bytes(self._bytes[HEAD_B : HEAD_B + length])
            del self._bytes[: HEAD_B + length]
            yield body


class Line:
    """A socket read message by message, waiting: for the two ends that have nothing else to do meanwhile."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._inbox = Inbox()
        self._ready: list[bytes] = []

    def send(self, message: Struct) -> None:
        try:
            self.sock.sendall(frame(message))
        except OSError as e:
            raise Gone(str(e)) from e

    def receive(self, kind: type[S], wait_s: float | None = None) -> S:
        """The next message. Raises Gone, Garbage, TimeoutError."""
        until = None if wait_s is None else time.monotonic() + wait_s
        while not self._ready:
            try:
                self.sock.settimeout(None if until is None else max(0.001, until - time.monotonic()))
                data = self.sock.recv(1 << 16)
            except TimeoutError:
                raise
            except OSError as e:
                raise Gone(str(e)) from e
            if not data:
                raise Gone("closed")
            self._ready.extend(self._inbox.feed(data))
        return decode(self._ready.pop(0), kind)
