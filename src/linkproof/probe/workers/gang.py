"""The processes of one job as the launcher sees them: one worker, or several members in one process group, with a deadline.

    setting up -> ready -> running -> (idle: a worker that can take the next case) | ending -> over

In:      events: what a member says, what it prints, that it ended; the time.
Out:     outcomes, once the phase is idle or over.
Unknown: a member that lives AFTER_KILL_S after its kill is stuck in the driver: the outcome names its pid, and we go on.
Raises:  nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import signal
import socket
import time
from functools import partial

import msgspec

from linkproof.measured import Card, Case, Outcome
from linkproof.probe.workers import endings
from linkproof.probe.workers.endings import End
from linkproof.probe.workers.wire import Garbage, Inbox, Job, Report, Try, decode, frame

AFTER_KILL_S = 5.0
GRACE_S = 2.0  # for the others, once a member has left
PRINTED_MAX_B = 64 * 1024
READ_B = 1 << 16


class Member:
    def __init__(self, number: int, pid: int, sock: socket.socket, printed: int) -> None:
        self.number, self.pid, self.sock, self.printed = number, pid, sock, printed
        self.inbox = Inbox()
        self.output = bytearray()  # the end of what it printed
        self.up = self.done = False
        self.end: End | None = None


class Gang:
    def __init__(self, events: selectors.BaseSelector, job: Job, setup_s: float, folder: str, keep: bool, cards: bool = False) -> None:
        self.events, self.job, self.folder, self.keep = events, job, folder, keep
        self.setup_s, self._ask_cards = setup_s, cards
        self.phase = "setting up"
        self.ends_at = time.monotonic() + setup_s
        self.began_at = time.monotonic()
        self.group = 0
        self.cards: tuple[Card, ...] = ()
        self.backend = ""
        self.setup_failed = False
        self._members: list[Member] = []
        self._told: list[tuple[int, Outcome]] = []
        self._fit = True
        self._took_s = 0.0
        self._stuck: list[int] = []

    @property
    def members(self) -> int:
        return len(self._members)

    @staticmethod
    def not_tried(case: Case) -> Outcome:
        return Outcome(case, "not_tested", "not tried: the GPUs could not be set up twice in a row")

    def add(self, forked: tuple[int, socket.socket, int]) -> None:
        pid, sock, printed = forked
        member = Member(len(self._members), pid, sock, printed)
        self._members.append(member)
        self.group = self.group or pid
        sock.setblocking(False)
        os.set_blocking(printed, False)
        self.events.register(sock, selectors.EVENT_READ, partial(self._hear, member))
        self.events.register(printed, selectors.EVENT_READ, partial(self._print, member))

    def take(self, job: Job, cards: bool) -> None:
        """The next case for a worker that is set up."""
        self.job, self._ask_cards, self._told, self.phase, self._took_s = job, cards, [], "ready", 0.0
        for member in self._members:
            member.done = False
            self._output(member)  # of the last case
            member.output.clear()

    def go(self, at: float) -> None:
        self.phase = "running"
        self.began_at = max(at, time.monotonic())
        self.ends_at = self.began_at + self.job.deadline_s
        for member in self._members:
            with contextlib.suppress(OSError):  # it is gone: its end will be seen
                member.sock.send(frame(Try(self.job.case, at, self._ask_cards)))

    # ------------------------------------------------ events
    def _hear(self, member: Member, _: int = 0) -> bool:
        """Is there possibly more?"""
        try:
            data = member.sock.recv(READ_B)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:  # it ended, or will: SIGCHLD tells how
            self._deaf(member)
            return False
        try:
            for body in member.inbox.feed(data):
                self._reported(member, decode(body, Report))
        except Garbage:
            self._tell(member, endings.unreadable(self.job.case, self._output(member)))
            self._fit = False
            self._deaf(member)
            return False
        return True

    def _deaf(self, member: Member) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self.events.unregister(member.sock)

    def _reported(self, member: Member, report: Report) -> None:
        self._fit = self._fit and report.fit
        if report.outcomes or member.up:
            self.cards, self.backend = report.cards, report.backend
            self._tell(member, *report.outcomes)
        else:
            member.up = True

    def _tell(self, member: Member, *outcomes: Outcome) -> None:
        if not member.done:
            member.done = True
            self._told.extend((member.number, outcome) for outcome in outcomes)

    def _print(self, member: Member, _: int = 0) -> None:
        try:
            data = os.read(member.printed, READ_B)
        except BlockingIOError:
            return
        member.output += data
        del member.output[:-PRINTED_MAX_B]
        if not data:
            self.events.unregister(member.printed)

    def _output(self, member: Member) -> bytes:
        """What is still in the pipe first. A pipe holds 64 KiB, and who prints faster than we read shall not keep us."""
        for _ in range(4):
            if member.printed in self.events.get_map():
                self._print(member)
        return bytes(member.output)

    def look(self) -> None:
        """Which members ended, and how. They stay zombies until `_bury`, so that no other process can get their number."""
        for member in self._members:
            if member.end is None:
                ended = os.waitid(os.P_PID, member.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is not None:
                    by_itself = ended.si_code == os.CLD_EXITED
                    member.end = End(code=ended.si_status) if by_itself else End(signal=ended.si_status)
                    while member.sock in self.events.get_map() and self._hear(member):  # its last report
                        pass

    def fit(self) -> bool:
        """For another case."""
        self.look()
        return self._fit and all(member.end is None for member in self._members)

    # ------------------------------------------------ time
    def advance(self, now: float) -> None:
        if self.phase in ("setting up", "running"):
            for member in self._members:
                if member.end is not None and not member.done:
                    self.setup_failed = self.phase == "setting up"
                    self._fit = False
                    self._tell(member, endings.died(self.job.case, member.end, self._output(member)))
        if self.phase == "setting up":
            self._advance_setup(now)
        elif self.phase == "running":
            self._advance_run(now)
        if self.phase == "ending" and (self.ended() or now >= self.ends_at):
            self._bury()

    def _advance_setup(self, now: float) -> None:
        if any(member.done for member in self._members):
            self._end(now)
        elif all(member.up for member in self._members):
            self.phase, self.ends_at = "ready", math.inf
        elif now >= self.ends_at:
            self.setup_failed = True
            for member in self._members:
                if not member.up:
                    self._tell(member, endings.hung(self.job.case, self.setup_s, self._output(member), setting_up=True))
            self._end(now)

    def _advance_run(self, now: float) -> None:
        if all(member.done for member in self._members):
            self._took_s = now - self.began_at
            if self.keep and self._fit:
                self.phase = "idle"
            else:
                self._end(now)
            return
        left = any(outcome.state in endings.LEFT for _, outcome in self._told)
        if left:
            self.ends_at = min(self.ends_at, now + GRACE_S)
        if now >= self.ends_at:
            for member in self._members:
                if not member.done and not left:
                    self._tell(member, endings.hung(self.job.case, self.job.deadline_s, self._output(member)))
            self._end(now)

    def _end(self, now: float) -> None:
        self.phase = "ending"
        self._took_s = self._took_s or now - self.began_at
        self.ends_at = now + AFTER_KILL_S
        self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.group, signal.SIGKILL)

    def ended(self) -> bool:
        self.look()
        return all(member.end is not None for member in self._members)

    def _bury(self) -> None:
        for member in self._members:
            self._deaf(member)
            with contextlib.suppress(KeyError, ValueError):
                self.events.unregister(member.printed)
            member.sock.close()
            os.close(member.printed)
            if member.end is None:
                self._stuck.append(member.pid)
            else:
                os.waitpid(member.pid, 0)
        self.phase = "over"

    def drop(self) -> None:
        """A worker that ended while it had nothing to do: no case has to do with it."""
        self.kill()
        self._bury()

    # ------------------------------------------------ result
    def outcomes(self) -> tuple[Outcome, ...]:
        told = endings.combined(self._told) if self.members > 1 else [outcome for _, outcome in self._told]
        took_s = self._took_s / max(1, len(told))
        told = [outcome if outcome.took_s else msgspec.structs.replace(outcome, took_s=took_s) for outcome in told]
        return tuple(endings.stuck(outcome, self._stuck) for outcome in told) if self._stuck else tuple(told)
