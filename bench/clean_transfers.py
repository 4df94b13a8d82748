"""No false alarm: many transfers over paths that are right, in every way of moving and of many sizes, every byte verified.

    python bench/clean_transfers.py [--transfers 100000] [--gpus 0,0] [--sim SCENARIO]

Prints transfers, bytes, alarms and time per way. Exit code 1 if anything was called wrong.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time

from linkproof.measured import Case
from linkproof.probe.devices import HOWS
from linkproof.probe.setup import Effort, KiB, MiB, Setup
from linkproof.tasks import make_devices, run_case

SIZES_B = (4, 256, 4 * KiB - 16, 4 * KiB + 16, 8 * KiB, 64 * KiB + 16, 297 * KiB, 2 * MiB + 16, 16 * MiB)
SMALL = 7  # of these are up to 1 MiB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transfers", type=int, default=100_000)
    parser.add_argument("--gpus", default="0,0")
    parser.add_argument("--sim")
    options = parser.parse_args()
    src, dst = (int(part) for part in options.gpus.split(","))
    each = options.transfers // len(HOWS)
    big = max(1, each // 200)
    effort = Effort(sizes_B=SIZES_B, rounds_small=-(-(each - 2 * big) // SMALL), rounds_big=big)
    alarms = total = total_B = 0
    with tempfile.TemporaryDirectory() as folder:
        place = "cuda"
        if options.sim:
            from linkproof.sim.scenario import load
            from linkproof.sim.virtual import create

            create(load(options.sim), folder)
            place = f"sim:{folder}"
        setup = Setup(place, secrets.randbits(64), effort)
        devices = make_devices(setup)
        for how in HOWS:
            begun = time.perf_counter()
            (outcome,) = run_case(devices, Case(how, (src, dst)), setup)
            took_s = time.perf_counter() - begun
            alarms, total, total_B = alarms + outcome.bad_rounds, total + outcome.rounds, total_B + outcome.verified_B
            print(
                f"{how:<8} {outcome.state:<10} {outcome.rounds:>8,} transfers {outcome.verified_B / 1e9:>8.1f} GB {took_s:>7.1f} s",
                flush=True,
            )
        devices.close()
    print(f"{total:,} transfers, {total_B / 1e9:.1f} GB compared, {alarms} alarms")
    return 1 if alarms or total < options.transfers else 0


if __name__ == "__main__":
    sys.exit(main())
