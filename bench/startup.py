"""How long a person waits before anything is done: `linkproof --version` and `linkproof explain` of a 200-line log, beside bare Python.

Each round runs every command once, so that load on the machine meets all alike; a ratio is taken of the medians of one run.

    python bench/startup.py [--rounds 31] [--python PYTHON] [--linkproof LINKPROOF]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

VERSION_BAR, EXPLAIN_BAR = 4.0, 12.0  # times bare `python -c pass`
LINES = 200


def log_200() -> str:
    """A training log as it is: mostly NCCL INFO, then a failure."""
    rows = ["2.21.5+cuda12.4 NCCL version", "box:1:1 [0] NCCL INFO NCCL version 2.21.5+cuda12.4"]
    for channel in range((LINES - 20) // 3):
        rows.append(f"box:1:77 [0] NCCL INFO Channel {channel:02d}/0 : 0[0] -> 1[1] via P2P/CUMEM")
        rows.append(f"INFO 06-01 12:00:{channel % 60:02d} [loader.py:447] Loading weights took {channel}.10 seconds")
        rows.append(f"box:1:77 [0] NCCL INFO threadThresholds 8/8/64 | 16/8/64 | 512 | {channel}")
    rows += [f"  File /srv/train.py, line {n}, in step" for n in range(LINES - len(rows) - 2)]
    rows.append("/pytorch/aten/src/ATen/native/cuda/Indexing.cu:1422: indexSelectLargeIndex: block: [0,0,0], thread: [0,0,0] "
                "Assertion `srcIndex < srcSelectDimSize` failed.")  # fmt: skip
    rows.append("torch.AcceleratorError: CUDA error: device-side assert triggered")
    return "\n".join(rows) + "\n"


def medians(commands: dict[str, list[str]], rounds: int) -> dict[str, float]:
    """ms each; the first round warms caches and is not counted."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # as installed: with bytecode
    took: dict[str, list[float]] = {name: [] for name in commands}
    for round_no in range(rounds + 1):
        for name, argv in commands.items():
            start = perf_counter()
            subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env, check=False)
            if round_no:
                took[name].append((perf_counter() - start) * 1000)
    return {name: statistics.median(times) for name, times in took.items()}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--rounds", type=int, default=31)
    options.add_argument("--python", default=sys.executable)
    options.add_argument("--linkproof", default=str(Path(sys.executable).with_name("linkproof")))
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "train.log"
        log.write_text(log_200(), encoding="utf-8")
        commands = {
            "python -c pass": [given.python, "-c", "pass"],
            "linkproof --version": [given.linkproof, "--version"],
            f"linkproof explain ({LINES} lines)": [given.linkproof, "explain", str(log)],
        }
        found = medians(commands, given.rounds)
    base = found["python -c pass"]
    print(f"start-up, medians of {given.rounds} rounds, Python {sys.version.split()[0]}")
    print(f"{'':32}{'ms':>8}{'ratio':>8}{'bar':>8}")
    for (name, ms), bar in zip(found.items(), (None, VERSION_BAR, EXPLAIN_BAR), strict=True):
        within = "" if bar is None else f"{bar:>7.0f}x  {'holds' if ms / base <= bar else 'MISSED'}"
        print(f"{name:32}{ms:>8.1f}{ms / base:>7.2f}x{within}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
