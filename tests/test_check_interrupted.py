"""Ended at any moment, `check` leaves no process; after Ctrl-C it also says so with 130 and leaves no folder."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from simulated import gone_within, processes_of, start

MOMENTS = 6
GONE_S = 3.0
SEED = random.randrange(1 << 32)


def moments() -> list[float]:
    """From before the first child to the middle of the transfers; printed if a test fails."""
    rng = random.Random(SEED)
    return [round(rng.uniform(0.05, 0.6), 3), *(round(rng.uniform(0.3, 4.0), 3) for _ in range(MOMENTS - 1))]


def interrupted(folder: Path, at_s: float, number: signal.Signals) -> subprocess.Popen[str]:
    child = start(folder, "--sim", "healthy-2xpcie", "--deep")
    time.sleep(at_s)
    assert child.poll() is None, f"over before {at_s} s (seed {SEED}): {(folder / 'err').read_text()}"
    child.send_signal(number)
    return child


@pytest.mark.parametrize("nth", range(MOMENTS))
def test_ctrl_c_ends_everything_and_leaves_nothing(tmp_path: Path, nth: int) -> None:
    at_s = moments()[nth]
    child = interrupted(tmp_path / "run", at_s, signal.SIGINT)
    code = child.wait(GONE_S)
    assert gone_within(GONE_S, child.pid) == {}, f"{at_s} s, seed {SEED}"
    if code == -signal.SIGINT:  # Python itself was not up yet
        assert at_s < 0.3
    else:
        assert code == 130 and (tmp_path / "run" / "out").read_text() == "", f"{at_s} s, seed {SEED}"
        assert "Traceback" not in (tmp_path / "run" / "err").read_text()
    assert list((tmp_path / "run" / "tmp").rglob("*")) == [], f"{at_s} s, seed {SEED}"


@pytest.mark.parametrize("nth", range(MOMENTS))
def test_a_killed_check_takes_its_processes_with_it(tmp_path: Path, nth: int) -> None:
    """Nobody is left who could remove the simulated machine; what the workers shared is gone."""
    at_s = moments()[nth]
    child = interrupted(tmp_path / "run", at_s, signal.SIGKILL)
    assert child.wait(GONE_S) == -signal.SIGKILL
    assert gone_within(GONE_S, child.pid) == {}, f"{at_s} s, seed {SEED}"
    left = {path.name.rsplit("-", 1)[0] for path in (tmp_path / "run" / "tmp").iterdir()}
    assert left <= {"linkproof-sim"}, f"{at_s} s, seed {SEED}"


def test_a_check_that_is_not_interrupted_has_processes_and_a_folder_meanwhile(tmp_path: Path) -> None:
    """So that the tests above look for something that is there."""
    child = start(tmp_path / "run", "--sim", "healthy-2xpcie", "--deep")
    until = time.monotonic() + 10
    while len(processes_of(child.pid)) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    assert len(processes_of(child.pid)) >= 2, "launcher and worker"
    assert [path.name for path in (tmp_path / "run" / "tmp").glob("linkproof-sim-*")]
    child.send_signal(signal.SIGTERM)
    child.wait(GONE_S)
    assert gone_within(GONE_S, child.pid) == {}
