"""The process that forks workers: `python -m linkproof.probe.workers.launcher FD`. It loads what is slow to load once and never touches a GPU.

In:      Begin and then Asks over the socket FD.
Out:     an Answer for each job, whatever became of its processes.
Ends:    when the caller closes the socket or is gone, or by a signal: then every process group that it made is killed, whatever else carries
         the mark of this run too (a grandchild in a session of its own), and the gangs' folder is removed.
         Killed itself, its workers go with it (PR_SET_PDEATHSIG; it has one thread); the caller's Runner sweeps up the rest.
Unknown: a process that not even a kill ends waits inside a sick driver: it is left, and told.
Start    of jobs asked for together: each is set up (contexts made), then waits; when all are ready, or were given up, all get the same moment
         START_AFTER_S ahead on the clock of the machine and sleep until then.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import selectors
import shutil
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable

from linkproof import proc
from linkproof.probe.setup import processes
from linkproof.probe.workers import member
from linkproof.probe.workers.gang import AFTER_KILL_S, Gang
from linkproof.probe.workers.wire import READY, Answer, Ask, Begin, Garbage, Gone, Inbox, Job, Line, decode, frame

START_AFTER_S = 0.02
SETUPS_MAX = 2  # workers in a row that did not come up: then no more are tried
ENDED_BY = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
PRELOADED = ("torch", "triton")


class ParentGone(Exception):
    """Nobody is left to answer to."""


class Launcher:
    def __init__(self, parent: socket.socket, begin: Begin) -> None:
        self.parent, self.begin = parent, begin
        self.events = selectors.DefaultSelector()
        self._inbox, self._outbox = Inbox(), bytearray()
        self._worker: Gang | None = None  # kept from case to case
        self._gangs: dict[int, Gang] = {}  # by the number of the job
        self._together = False
        self._failed_setups = 0
        self._folders = 0
        self._listen()

    def _listen(self) -> None:
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, *ENDED_BY):
            signal.signal(number, lambda *_: None)  # what matters comes through the pipe
        self.events.register(self._wake, selectors.EVENT_READ, self._signalled)
        self.parent.setblocking(False)
        self.events.register(self.parent, selectors.EVENT_READ, self._asked)
        with contextlib.suppress(AttributeError, OSError):  # Linux before 5.3; then the closed socket alone tells
            self.events.register(os.pidfd_open(self.begin.parent), selectors.EVENT_READ, self._orphaned)
        member.tie_to_parent(self.begin.parent, 0)  # from here on the socket and the pidfd tell, and they do not depend on a thread

    # ------------------------------------------------ events
    def serve(self) -> None:
        """Until ParentGone."""
        self._answer(Answer(READY))
        while True:
            ends_at = min((gang.ends_at for gang in self._gangs.values()), default=None)
            wait_s = None if ends_at is None else max(0.0, ends_at - time.monotonic())
            for key, mask in self.events.select(wait_s):
                known = self.events.get_map().get(key.fd)
                if known is not None and known.data == key.data:  # an event before this one may have ended it, and its number be used again
                    handle: Callable[[int], object] = key.data
                    handle(mask)
            self._advance()

    def _signalled(self, _: int) -> None:
        numbers = os.read(self._wake, 4096)
        if any(number in numbers for number in ENDED_BY):
            raise ParentGone
        for gang in self._all():
            gang.look()

    def _orphaned(self, _: int) -> None:
        raise ParentGone

    def _asked(self, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                del self._outbox[: self.parent.send(self._outbox)]
                self._watch_parent()
            if mask & selectors.EVENT_READ:
                if not (data := self.parent.recv(1 << 16)):
                    raise ParentGone
                for body in self._inbox.feed(data):
                    self._start(decode(body, Ask))
        except BlockingIOError:
            return
        except (OSError, Garbage) as e:
            raise ParentGone from e

    def _answer(self, answer: Answer) -> None:
        """Never waits for a caller that does not read: deadlines go on."""
        self._outbox += frame(answer)
        self._watch_parent()

    def _watch_parent(self) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outbox else 0)
        self.events.modify(self.parent, wanted, self._asked)

    # ------------------------------------------------ jobs
    def _start(self, ask: Ask) -> None:
        self._together = len(ask.jobs) > 1
        for number, job in enumerate(ask.jobs):
            many = 1 if ask.cards else processes(job.case, self.begin.setup)
            keep = many == 1 and not self._together
            worker = self._kept() if keep else None
            if worker is not None:
                worker.take(job, ask.cards)
                self._gangs[number] = worker
            elif many == 1 and self._failed_setups >= SETUPS_MAX:
                self._answer(Answer(number, (Gang.not_tried(job.case),)))
            else:
                self._gangs[number] = self._fork(job, many, keep, ask.cards)

    def _kept(self) -> Gang | None:
        """The worker of the last case, if it can take another."""
        worker, self._worker = self._worker, None
        if worker is not None and not worker.fit():
            worker.drop()
            return None
        return worker

    def _fork(self, job: Job, many: int, keep: bool, cards: bool) -> Gang:
        folder = ""
        if many > 1:
            self._folders += 1
            folder = os.path.join(self.begin.folder, str(self._folders))  # noqa: PTH118
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.begin.folder, 0o700)  # noqa: PTH102
            os.mkdir(folder, 0o700)  # noqa: PTH102
        gang = Gang(self.events, job, self.begin.setup_s, folder, keep, cards)
        for number in range(many):
            gang.add(self._forked(gang, number, many))
        return gang

    def _forked(self, gang: Gang, number: int, many: int) -> tuple[int, socket.socket, int]:
        """One fork: its pid, our end of its socket, and of the pipe that holds what it prints."""
        ours, theirs = socket.socketpair()
        printed, output = os.pipe()
        place = member.Place(gang.job.case, number, many, gang.folder, gang.group)
        launcher = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                self._let_go()
                ours.close()
                os.close(printed)
                member.live(theirs, output, self.begin, place, launcher)
                code = 0
            except SystemExit as e:
                code = e.code if isinstance(e.code, int) else 1
            except BaseException as e:
                os.write(2, f"{type(e).__name__}: {e}\n".encode())
            finally:
                os._exit(code)  # neither atexit nor the launcher's loop
        theirs.close()
        os.close(output)
        with contextlib.suppress(OSError):  # the fork did it already, or is gone
            os.setpgid(pid, gang.group or pid)
        return pid, ours, printed

    def _let_go(self) -> None:
        """In a fork: what belongs to the launcher and to other members."""
        for key in tuple(self.events.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            else:
                os.close(key.fd)
        self.events.close()
        signal.set_wakeup_fd(-1)  # asyncio, once something has imported it, does so in every fork too (from Python 3.12)
        os.close(self._waker)

    def _advance(self) -> None:
        now = time.monotonic()
        for gang in self._gangs.values():
            gang.advance(now)
        waiting = [gang for gang in self._gangs.values() if gang.phase == "setting up"]
        ready = [gang for gang in self._gangs.values() if gang.phase == "ready"]
        if ready and not (self._together and waiting):
            at = time.monotonic() + START_AFTER_S if self._together else 0.0
            for gang in ready:
                gang.go(at)
        for number in [number for number, gang in self._gangs.items() if gang.phase in ("idle", "over")]:
            self._ended(number, self._gangs.pop(number))

    def _ended(self, number: int, gang: Gang) -> None:
        if gang.members == 1:
            self._failed_setups = self._failed_setups + 1 if gang.setup_failed else 0
        if gang.phase == "idle":
            self._worker = gang
        if gang.folder:
            shutil.rmtree(gang.folder, ignore_errors=True)
        self._answer(Answer(number, gang.outcomes(), gang.cards, gang.backend))

    def _all(self) -> list[Gang]:
        return [*self._gangs.values(), *([self._worker] if self._worker is not None else [])]

    def end(self) -> None:
        for gang in self._all():
            gang.kill()
        proc.sweep(self.begin.mark)
        until = time.monotonic() + AFTER_KILL_S
        while not all(gang.ended() for gang in self._all()) and time.monotonic() < until:
            select.select([self._wake], [], [], 0.05)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        shutil.rmtree(self.begin.folder, ignore_errors=True)


def main() -> None:
    line = Line(socket.socket(fileno=int(sys.argv[1])))
    try:
        begin = line.receive(Begin)
    except Gone:
        return
    member.tie_to_parent(begin.parent, signal.SIGTERM)  # a caller killed while we import: there is nothing to clean up yet
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # what the caller blocks is not for us
    warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)  # of threads that libraries start when loaded
    for name in (*(() if begin.setup.virtual else PRELOADED), begin.tasks):
        with contextlib.suppress(Exception):  # the worker meets the same and tells it
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # forks share it
    try:
        launcher = Launcher(line.sock, begin)
    except ParentGone:
        return
    try:
        launcher.serve()
    except ParentGone:
        pass
    finally:
        launcher.end()


if __name__ == "__main__":
    main()
