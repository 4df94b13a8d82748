"""`linkproof check --sim` as a process of its own, and what it leaves behind. Used by the tests of the whole command."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from linkproof import proc
from linkproof.sim.scenario import FOLDER


def start(folder: Path, *argv: str) -> subprocess.Popen[str]:
    """Its temporary files lie in `folder`, which is made; its output in out and err there."""
    (folder / "tmp").mkdir(parents=True)
    env = {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "XDG_CACHE_HOME": str(folder)}
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        return subprocess.Popen([sys.executable, "-m", "linkproof", "check", *argv], stdout=out, stderr=err, env=env, text=True)


def processes_of(pid: int) -> dict[int, str]:
    """What a run with this process id started and still runs: pid -> command."""
    found = {}
    for other in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        try:
            if f"\0{proc.MARK}={pid}-".encode() in b"\0" + Path(f"/proc/{other}/environ").read_bytes():
                found[int(other)] = Path(f"/proc/{other}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def gone_within(wait_s: float, pid: int) -> dict[int, str]:
    """What of it is left after so long; {} as soon as nothing is."""
    until = time.monotonic() + wait_s
    while (there := processes_of(pid)) and time.monotonic() < until:
        time.sleep(0.02)
    return there


def scenario_file(folder: Path, name: str, *changes: tuple[str, str]) -> str:
    """A shipped scenario with some of its text replaced, as a file of the reader's own."""
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)
