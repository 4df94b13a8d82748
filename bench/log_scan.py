"""How fast is a long log reduced, against ripgrep with the same literals? Both use one core, in turns, in one run.

In:      a log that `make_log.py` writes (kept in bench/out), the anchors of all parsers.
Out:     a table: wall-clock and processor seconds of whole processes (start-up included), the ratio of each pair, peak memory.
         Above 1.0 the scan is faster than ripgrep. Exits 1 if from 1 GB on the median against any ripgrep is below 1.0 (in less,
         start-up weighs more), if the scan used 200 MB or more, or if a line that was planted in the log is missing.
Fair?    ripgrep gets what it likes best: one big file, warm in memory, output to /dev/null. Its peak memory includes the pages of
         the file that it maps, which are not its own. It counts (-c) or prints (-n) matching lines; the scan keeps first and last
         lines with their context and their numbers, and counts all lines.
By hand  python bench/log_scan.py --mb 2000 --pairs 5 [--mix busy] [--rg PATH ...]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import make_log

MOST_MB = 200
JUDGED_MB = 1000
HERE = Path(__file__).parent


class Took(NamedTuple):
    wall_s: float
    cpu_s: float
    peak_MB: float
    out: str


def scan_once(path: Path) -> None:
    """The child: the real code path, from an open file to the kept lines."""
    from linkproof.collect.scan import CHUNK_B, scan
    from linkproof.parse import anchors

    with path.open("rb", buffering=0) as f:
        found = scan(iter(lambda: f.read(CHUNK_B), b""), anchors())
    kept = {line.data.decode() for line in found.lines}
    told = {
        "lines": found.total_lines,
        "kept": len(found.lines),
        "missing": [line for _, line in make_log.PLANTED if line not in kept],
    }
    print(json.dumps(told))


def run(argv: list[str], *, keep_output: bool = False) -> Took:
    """Pinned to one core. Peak memory as the kernel counts it for this one child."""
    pinned = ["taskset", "-c", str(max(os.sched_getaffinity(0))), *argv] if shutil.which("taskset") else argv
    start = time.perf_counter()
    with subprocess.Popen(pinned, stdout=subprocess.PIPE if keep_output else subprocess.DEVNULL, text=True) as child:
        out = child.stdout.read() if child.stdout is not None else ""
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{argv[0]} ended with {child.returncode}")
    return Took(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6, out)


def row(name: str, runs: list[Took], size_MB: float) -> str:
    wall_s = sorted(took.wall_s for took in runs)
    middle = statistics.median(wall_s)
    cpu_s = statistics.median(took.cpu_s for took in runs)
    peak_MB = max(took.peak_MB for took in runs)
    return f"{name:20} {wall_s[0]:7.3f} {middle:7.3f} {wall_s[-1]:7.3f} {cpu_s:9.3f} {size_MB / middle:8.0f} {peak_MB:9.0f}"


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'unknown'}, {os.cpu_count()} cores, {platform.machine()}"


def compare(path: Path, mix: str, pairs: int, rgs: list[str]) -> bool:
    from linkproof.parse import anchors

    literals = path.with_suffix(".literals")
    literals.write_text("".join(f"{anchor}\n" for anchor in anchors()))
    rivals = {}
    for rg in rgs:
        name = subprocess.run([rg, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
        same = [rg, "-j1", "-F", "-f", str(literals), "--no-heading"]
        rivals[f"ripgrep {name} -c"] = [*same, "-c", str(path)]
        rivals[f"ripgrep {name} -n"] = [*same, "-n", str(path)]
    ours = [sys.executable, __file__, "--child", str(path)]
    size_MB = path.stat().st_size / 1e6
    run(ours), [run(argv) for argv in rivals.values()]  # everything warm
    told = json.loads(run(ours, keep_output=True).out)
    took: dict[str, list[Took]] = {name: [] for name in ("scan", *rivals)}
    pairs_of: dict[str, list[tuple[Took, Took]]] = {name: [] for name in rivals}
    for _ in range(pairs):
        for name, argv in rivals.items():  # ours, theirs, ours, theirs ...
            pair = run(ours), run(argv)
            took["scan"].append(pair[0])
            took[name].append(pair[1])
            pairs_of[name].append(pair)
    matching = subprocess.run(rivals[next(iter(rivals))], capture_output=True, text=True, check=True).stdout.strip()
    print(
        f"mix {mix}: {size_MB:.0f} MB, {told['lines']} lines, {matching} of them with one of {len(anchors())} literals; {told['kept']} kept"
    )
    print(f"{'':20} {'wall-clock seconds':^23} {'cpu s':>9} {'':8} {'peak':>9}")
    print(f"{'':20} {'min':>7} {'median':>7} {'max':>7} {'median':>9} {'MB/s':>8} {'MB':>9}")
    for name, runs in took.items():
        print(row(name, runs, size_MB))
    print("times ripgrep's speed, median and pair by pair, by the clock and by processor time:")
    slowest = float("inf")
    for name, both in pairs_of.items():
        clock = [theirs.wall_s / mine.wall_s for mine, theirs in both]
        busy = [theirs.cpu_s / mine.cpu_s for mine, theirs in both]
        print("   ".join((f"{name:20}", *(f"{statistics.median(r):.2f} ({' '.join(f'{x:.2f}' for x in r)})" for r in (clock, busy)))))
        slowest = min(slowest, statistics.median(clock))
    for line in told["missing"]:
        print(f"MISSING: {line}")
    print(flush=True)
    fast = slowest >= 1 or size_MB < JUDGED_MB
    return not told["missing"] and fast and max(t.peak_MB for t in took["scan"]) < MOST_MB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--mix", choices=sorted(make_log.MIXES), action="append")
    parser.add_argument("--rg", action="append", help="a ripgrep to compare with; may be given again")
    parser.add_argument("--dir", type=Path, default=HERE / "out")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        scan_once(given.child)
        return 0
    rgs = given.rg or ["rg"]
    for rg in rgs:
        if not shutil.which(rg):
            raise SystemExit(f"{rg} is not there: install ripgrep, or name one with --rg PATH")
    mixes = given.mix or ["long", "busy"]
    given.dir.mkdir(parents=True, exist_ok=True)
    used = ", ".join(f"{name} {version(name)}" for name in ("hyperscan", "linkproof"))
    print(f"{date.today()}  {cpu()}  Python {platform.python_version()}, {used}")
    others = "".join(" --rg PATH" for _ in given.rg or [])
    print(f"python bench/log_scan.py --mb {given.mb} --pairs {given.pairs}{''.join(f' --mix {mix}' for mix in mixes)}{others}\n")
    fine = True
    for mix in mixes:
        path = given.dir / f"{mix}-{given.mb}.log"
        if not path.exists():
            make_log.write(path, given.mb, mix=mix)
        fine &= compare(path, mix, given.pairs, rgs)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
