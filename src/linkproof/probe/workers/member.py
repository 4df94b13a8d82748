"""The life of a process that the launcher forked: a worker that takes one case after another, or one member of a gang.

In:      a socket to the launcher, what the run was told, which member of how many; `Try` messages.
Out:     `Report` messages; it never ends by itself once it is set up: the launcher kills the whole group, so nothing that it started stays.
Unknown: an exception is turned into an outcome (endings.py); a crash is seen by the launcher.
Raises:  nothing.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import resource
import signal
import socket
import time
from types import ModuleType
from typing import Any

from msgspec import Struct

from linkproof.measured import Case, Outcome
from linkproof.probe.workers import endings
from linkproof.probe.workers.wire import Begin, Gone, Line, Report, Try

PR_SET_PDEATHSIG = 1
BROKEN = ("hung", "died")  # a test that tells this itself leaves kernels or contexts behind that the next case must not meet
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded before the fork


class Place(Struct, frozen=True):
    """Which process of a job this is. folder: what the members share, "" for a worker. case: of the gang."""

    case: Case
    member: int
    members: int
    folder: str
    group: int  # process group to join, 0: lead a new one


def tie_to_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """This process gets the signal when the thread that started it ends. That thread, not its process: a launcher has only one."""
    _LIBC.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def live(sock: socket.socket, output: int, begin: Begin, place: Place, parent: int) -> None:
    """Runs in the fresh fork. Returns when the launcher has closed its end."""
    os.setpgid(0, place.group)
    tie_to_parent(parent)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash with gigabytes mapped would take longer to write down than to test again
    line = Line(sock)
    try:
        devices, tasks = _set_up(begin, place)
    except Exception as e:
        line.send(Report((endings.failed(place.case, e, setting_up=True)[0],), fit=False))
        _wait(sock)
        return
    try:
        line.send(Report())
        while True:
            line.send(_tried(line.receive(Try), devices, tasks, begin, place))
            gc.collect()  # what a failed case still holds on a GPU
    except Gone:
        return


def _set_up(begin: Begin, place: Place) -> tuple[Any, ModuleType]:
    tasks = importlib.import_module(begin.tasks)
    if place.members == 1:
        return tasks.make_devices(begin.setup), tasks
    os.environ.update(tasks.member_env(place.case, begin.setup, place.member, place.members))
    return None, tasks


def _tried(order: Try, devices: Any, tasks: ModuleType, begin: Begin, place: Place) -> Report:
    if (wait_s := order.at - time.monotonic()) > 0:
        time.sleep(wait_s)
    try:
        if order.cards:
            return Report(cards=tuple(devices.cards()), backend=devices.backend)
        if place.members == 1:
            told = tasks.run_case(devices, order.case, begin.setup)
        else:
            told = tasks.run_member(order.case, begin.setup, place.member, place.members, place.folder)
        outcomes = (told,) if isinstance(told, Outcome) else tuple(told)
        if not outcomes or not all(isinstance(outcome, Outcome) for outcome in outcomes):
            raise TypeError(f"the test of {order.case.mode} gave no outcome")
        return Report(outcomes, fit=not any(outcome.state in BROKEN for outcome in outcomes))
    except Exception as e:
        outcome, fit = endings.failed(order.case, e)
        return Report((outcome,), fit=fit)


def _wait(sock: socket.socket) -> None:
    """Until the launcher has read the report and ends this group: an exit before that would look like a death."""
    while sock.recv(4096):
        pass
