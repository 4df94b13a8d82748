"""The only door to subprocess: argv, a deadline, and the whole process group ends with it. Bottom shelf: imports no other room."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence

from msgspec import Struct

OUTPUT_MAX_B = 8 * 1024 * 1024
AFTER_KILL_S = 1.0
MARK = "LINKPROOF_RUN"  # variable that marks the processes of one run
SWEEPS_MAX = 5


class Done(Struct, frozen=True):
    """out is None if the command could not run; `why` then says absent, denied, timeout or failed."""

    out: bytes | None
    why: str = ""
    code: int = 0
    took_s: float = 0.0
    cut: bool = False


def run(argv: Sequence[str], *, deadline_s: float, env: dict[str, str] | None = None) -> Done:
    """Run a command without a shell, no input, C locale; stdout and stderr together, at most OUTPUT_MAX_B.

    A command that does not end in time is killed with everything it started; what it had printed is kept and `why` is "timeout".
    One that even a kill does not end (it waits inside a sick driver) is left behind: we do not wait for it.
    The output goes to an unlinked file, so a grandchild that keeps a pipe open cannot hold us.
    """
    t0 = time.monotonic()
    surroundings = {**os.environ, "LC_ALL": "C", "NO_COLOR": "1", **(env or {})}
    with tempfile.TemporaryFile() as out:
        try:
            child = subprocess.Popen(
                list(argv), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=surroundings
            )
        except FileNotFoundError:
            return Done(None, "absent")
        except PermissionError:
            return Done(None, "denied")
        except OSError as e:
            return Done(None, f"failed: {e.strerror or e}")
        why = ""
        try:
            child.wait(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            why = "timeout"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=AFTER_KILL_S)
        out.seek(0)
        data = out.read(OUTPUT_MAX_B + 1)
    code = -signal.SIGKILL if child.returncode is None else child.returncode
    return Done(data[:OUTPUT_MAX_B], why, code, time.monotonic() - t0, len(data) > OUTPUT_MAX_B)


def start(argv: Sequence[str], *, pass_fds: Sequence[int], env: dict[str, str], out: int) -> subprocess.Popen[bytes]:
    """A child that lives on, in a session of its own, so that a Ctrl-C in the terminal does not reach it; stdout and stderr go to `out`.

    Who starts it must see to its end: give it a socket whose closing tells it to go, and MARK in `env`, so that `sweep` finds what it left.
    """
    return subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        start_new_session=True,
        pass_fds=tuple(pass_fds),
        env={**os.environ, **env},
    )


def sweep(mark: str) -> int:
    """Kill every process that was started with MARK=mark, whoever its parent is now and whatever its group; how many there were.

    Source: /proc/PID/environ, which keeps what a process was started with. Processes of other users are not seen.
    """
    wanted = f"{MARK}={mark}".encode()
    killed: set[int] = set()
    for _ in range(SWEEPS_MAX):  # one that forks while we look has a child that we have not seen
        found = {pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid != os.getpid() and wanted in _environ(pid)}  # noqa: PTH208
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found - killed:
            break
        killed |= found
    return len(killed)


def _environ(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            return file.read().split(b"\0")
    except OSError:
        return []
