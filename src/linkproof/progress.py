"""Progress on stderr while a long input is read or links are tried: only in a terminal, only after a second. Imports rich when it first shows."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from linkproof.measured import Case
from linkproof.report.say import Teller

if TYPE_CHECKING:
    from rich.progress import Progress

WAIT_s = 1.0


class Reading:
    """Called with (name, bytes read since the last call); `with` takes the bar away at the end."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._since, self._done_B, self._total_B = monotonic(), 0, _size_B(paths)
        self._bar: Progress | None = None

    def __call__(self, name: str, size_B: int) -> None:
        self._done_B += size_B
        if self._bar is None and monotonic() - self._since < WAIT_s:
            return
        if self._bar is None:
            self._bar = self._start()
        total = self._total_B if self._done_B <= (self._total_B or 0) else None  # an archive holds more than its size
        self._bar.update(self._task, completed=self._done_B, total=total, description=name)

    def _start(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeElapsedColumn())
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = bar.add_task("", total=self._total_B)
        bar.start()
        return bar

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


class Trying:
    """Called with (cases done, of how many, the case that is tried now)."""

    def __init__(self, lang: str) -> None:
        self._t, self._since = Teller(lang), monotonic()
        self._bar: Progress | None = None

    def __call__(self, done: int, of: int, case: Case) -> None:
        if self._bar is None:
            if monotonic() - self._since < WAIT_s or sys.stderr is None or not sys.stderr.isatty():
                return
            self._bar = _bar()
            self._task = self._bar.add_task("", total=of)
            self._bar.start()
        gpus = f"GPU{case.gpus[0]} -> GPU{case.gpus[-1]}" if len(case.gpus) == 2 else self._t("{n} GPUs", n=len(case.gpus))
        self._bar.update(self._task, completed=done, total=of, description=f"{case.mode} {case.arm} {gpus}".replace("  ", " "))

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


@contextmanager
def trying(lang: str) -> Iterator[Trying]:
    bar = Trying(lang)
    try:
        yield bar
    finally:
        bar.stop()


def reading(paths: Sequence[str]) -> Reading | None:
    return Reading(paths) if sys.stderr is not None and sys.stderr.isatty() else None


def _size_B(paths: Sequence[str]) -> int | None:
    """Of plain files; None if something else is among them."""
    total = 0
    for path in paths:
        try:
            status = os.stat(path)  # noqa: PTH116
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        total += status.st_size
    return total or None
