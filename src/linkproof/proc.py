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
