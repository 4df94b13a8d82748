"""Everything that touches a GPU runs in processes with a deadline: a hang, a crash, a lost GPU are results, and the run goes on.

    caller's process: Runner -> launcher (one; forks, holds deadlines, kills) -> worker (kept from case to case) | gang (one per case)

In:      what the workers are told (Setup); Jobs: a case and its deadline.
Out:     Outcomes as the tests end; a case may tell of several pairs, and then gives several.
Ends:    `close` (or the end of `with`) leaves nothing running and no folder. So does the end of this process, however it comes: the launcher
         sees the socket close, or this process end, and kills what it started. Ctrl-C raises KeyboardInterrupt here as ever.
Unknown: a launcher that was lost is started again, once per case; then the case is `not_tested`.
Raises:  nothing of what happens in a test. RuntimeError if two runs are begun on one Runner.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import IO

from linkproof import proc
from linkproof.measured import Card, Case, Outcome
from linkproof.probe.setup import Setup
from linkproof.probe.workers import endings
from linkproof.probe.workers.gang import AFTER_KILL_S
from linkproof.probe.workers.wire import READY, Answer, Ask, Begin, Garbage, Gone, Job, Line

__all__ = ("Job", "Runner")

TASKS = "linkproof.tasks"
SETUP_S = 60.0  # contexts on eight GPUs take seconds; a sick driver takes for ever
LOAD_S = 180.0  # importing torch from a cold network drive
SPARE_S = 15.0  # a launcher that says nothing so long after the deadlines is lost itself
TRIES = 2
CARDS = Case("cards", ())


class Lost(Exception):
    """The launcher ended, or does not answer."""

    def __init__(self, outcome: Outcome, again: bool) -> None:
        super().__init__(outcome.why)
        self.outcome, self.again = outcome, again


class Runner:
    """tell: called with "begins" or the state, and the case. no_cards: why `cards` found none."""

    def __init__(
        self, setup: Setup, tell: Callable[[str, Case], None] | None = None, *, tasks: str = TASKS, setup_s: float = SETUP_S
    ) -> None:
        self._setup, self._tasks, self._setup_s = setup, tasks, setup_s
        self._tell = tell or (lambda state, case: None)
        self._mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._folder = os.path.join(tempfile.gettempdir(), f"linkproof-{self._mark}")  # noqa: PTH118  made by the launcher, when it is needed
        self._line: Line | None = None
        self._launcher: subprocess.Popen[bytes] | None = None
        self._printed: IO[bytes] | None = None
        self._ready = self._busy = False
        self.no_cards: Outcome | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------ what callers use
    def run(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """One after another."""
        for job in jobs:
            yield from self._serve([job])

    def run_side_by_side(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """All at the same time, each in processes of its own: set up first, then all begin at the same moment. In the order in which they end."""
        yield from self._serve(jobs)

    def cards(self, deadline_s: float = SETUP_S) -> tuple[list[Card], str]:
        """The GPUs as a worker sees them, and the backend; none, with the reason in `no_cards`, if they cannot be asked."""
        self.no_cards = None
        for answer in self._answers([Job(CARDS, deadline_s)], cards=True):
            if answer.outcomes:
                self.no_cards = answer.outcomes[0]
            return list(answer.cards), answer.backend
        return [], ""

    def close(self) -> None:
        """Ends everything. Safe to call twice; broken off half way, the launcher ends the rest by itself."""
        line, launcher, printed = self._line, self._launcher, self._printed
        loading, self._ready, self._busy = not self._ready, False, False
        self._line = self._launcher = self._printed = None
        if line is not None:
            line.sock.close()  # the launcher goes when it sees this
        if launcher is not None:
            if loading:  # it would see that only when torch is there; it has started nothing yet
                launcher.kill()
            try:
                launcher.wait(AFTER_KILL_S + 2.0)
            except subprocess.TimeoutExpired:
                launcher.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    launcher.wait(1.0)
            if launcher.returncode != 0:  # otherwise it has done this
                proc.sweep(self._mark)
                shutil.rmtree(self._folder, ignore_errors=True)
        if printed is not None:
            printed.close()

    # ------------------------------------------------ jobs
    def _serve(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        for job in jobs:
            self._tell("begins", job.case)
        for answer in self._answers(jobs):
            for outcome in answer.outcomes:
                self._tell(outcome.state, outcome.case)
                yield outcome

    def _answers(self, jobs: Sequence[Job], cards: bool = False) -> Iterator[Answer]:
        """One for each job. A launcher that is lost on the way is started again with the jobs that have none yet."""
        if self._busy:
            raise RuntimeError("a Runner does one thing at a time: finish the run that was begun first")
        self._busy = True
        waiting = dict(enumerate(jobs))
        try:
            for attempt in range(1, TRIES + 1):
                numbers = list(waiting)
                try:
                    for answer in self._asked(Ask(tuple(waiting.values()), cards)) if waiting else ():
                        number = numbers[answer.job]
                        del waiting[number]
                        self._busy = bool(waiting)
                        yield answer
                except Lost as lost:
                    self.close()
                    if attempt < TRIES and lost.again:
                        self._busy = True
                        continue
                    for number, job in waiting.items():
                        outcome = Outcome(job.case, lost.outcome.state, lost.outcome.why, lost.outcome.args)
                        yield Answer(number, (outcome,))
                    waiting.clear()
                return
        finally:
            if waiting:  # broken off: whatever still runs must not go on
                self.close()
            self._busy = False

    def _asked(self, ask: Ask) -> Iterator[Answer]:
        line = self._started()
        until = time.monotonic() + self._setup_s + max(job.deadline_s for job in ask.jobs) + 2 * AFTER_KILL_S + SPARE_S
        try:
            line.send(ask)
            for _ in ask.jobs:
                yield line.receive(Answer, max(0.0, until - time.monotonic()))
        except (Gone, Garbage) as e:
            raise self._lost() from e
        except TimeoutError as e:
            raise Lost(Outcome(CARDS, "not_tested", "the process that starts the tests does not answer"), again=False) from e

    # ------------------------------------------------ the launcher
    def _started(self) -> Line:
        if self._line is not None:
            return self._line
        ours, theirs = socket.socketpair()
        try:
            self._line = Line(ours)
            self._printed = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the launcher
            argv = [sys.executable, "-m", "linkproof.probe.workers.launcher", str(theirs.fileno())]
            # OpenBLAS would start threads when numpy is loaded, and a fork has only one; the folder we stand in is not code
            env = {**self._setup.env, proc.MARK: self._mark, "OPENBLAS_NUM_THREADS": "1", "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
            self._launcher = proc.start(argv, pass_fds=(theirs.fileno(),), env=env, out=self._printed.fileno())
            theirs.close()
            self._line.send(Begin(self._setup, self._tasks, self._folder, self._setup_s, os.getpid(), self._mark))
            ready = self._line.receive(Answer, LOAD_S)
            if ready.job != READY:
                raise Garbage("not ready")
            self._ready = True
        except (Gone, Garbage, TimeoutError) as e:
            raise self._lost() from e
        except OSError as e:  # no process or no descriptor can be had
            raise Lost(Outcome(CARDS, "not_tested", "linkproof could not run this test: {error}", {"error": str(e)}), again=True) from e
        finally:
            theirs.close()
        return self._line

    def _lost(self) -> Lost:
        """The launcher is gone: how, and its last words."""
        how, said = "", b""
        if self._launcher is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._launcher.wait(1.0)
                how = endings.signal_name(-code) if code < 0 else f"exit code {code}"
        if self._printed is not None:
            self._printed.seek(0)
            said = self._printed.read(1 << 20)[-(1 << 14) :]
        args = {"how": how or "?", "said": endings.last_words(said)}
        return Lost(Outcome(CARDS, "not_tested", "the process that starts the tests ended ({how})", args), again=True)
