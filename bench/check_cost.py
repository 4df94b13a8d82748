"""What each case of `check` costs on this machine, for the plan (`probe/plan.py`): the wall time of a case in a worker that is already there.

    python bench/check_cost.py [--gpus 0,0]

Effort as `check` takes it for 2, 4 and 8 GPUs. The first case of a worker pays for contexts and kernels, so each is run twice.
"""

from __future__ import annotations

import argparse
import secrets
import time

from linkproof.measured import MODES, Case
from linkproof.probe.plan import effort
from linkproof.probe.setup import Setup
from linkproof.probe.workers.worker import Job, Runner

CARDS = (2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", default="0,0")
    a, b = (int(part) for part in parser.parse_args().gpus.split(","))
    print(f"{'mode':<12}" + "".join(f"{f'{n} GPUs, s':>20}" for n in CARDS) + "   state")
    rows: dict[str, list[str]] = {}
    for cards in CARDS:
        with Runner(Setup("cuda", secrets.randbits(64), effort(False, False, cards))) as runner:
            begun = time.perf_counter()
            runner.cards()
            print(f"start for {cards}: {time.perf_counter() - begun:.2f} s", flush=True)
            cases = [Case(m.name, (a, b)) for m in MODES.values() if m.scope == "pair"]
            cases += [
                Case("chain", (a, b, a)),
                *(Case(how, (a, b) if a != b else (a,), "both_ways") for how in ("staged", "push", "store16")),
            ]
            for case in cases:
                took = []
                states = []
                for _ in range(2):
                    begun = time.perf_counter()
                    states += [o.state + (f" ({o.why} {o.args})" if o.why else "") for o in runner.run([Job(case, 60.0)])]
                    took.append(time.perf_counter() - begun)
                row = rows.setdefault(case.mode + ("" if case.load == "alone" else "/" + case.load), [])
                row.append(f"{took[0]:9.2f} {took[1]:9.2f} ")
                if cards == CARDS[-1]:
                    row.append("   " + "; ".join(dict.fromkeys(states)))
    for name, cells in rows.items():
        print(f"{name:<18}" + "".join(cells))


if __name__ == "__main__":
    main()
