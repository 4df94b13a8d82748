"""How long a large machine takes to read, and a stored capture to judge: `python bench/host_read.py`. Prints, asserts nothing.

read      16 GPUs, 10 switches, 4,000 PCI functions as files in a temporary folder: all answers, tree, paths, facts
replay    every stored capture of tests/evidence: facts and diagnosis of its answers, median of many rounds
mask      8 MiB of kernel log made fit to leave the machine
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS)]

from evidence.drawn import many  # noqa: E402
from linkproof.collect.bundle import unpack  # noqa: E402
from linkproof.collect.evidence import read_evidence  # noqa: E402
from linkproof.collect.host import Live, Recorded  # noqa: E402
from linkproof.collect.mask import Mask  # noqa: E402
from linkproof.diagnose import diagnose  # noqa: E402
from linkproof.facts import facts_from  # noqa: E402
from linkproof.parse.pci_facts import facts_of  # noqa: E402
from linkproof.parse.pci_tree import tree  # noqa: E402
from linkproof.parse.topology import pairs  # noqa: E402

ROUNDS = 50


def cpu_s(work: Callable[[], object]) -> float:
    t0 = time.process_time()
    work()
    return time.process_time() - t0


def read_large() -> None:
    with TemporaryDirectory() as folder:
        many().write(Path(folder))

        def work() -> None:
            evidence = read_evidence(Live(folder))
            found = tree(evidence.pci.functions)
            pairs(found)
            facts_of(found, evidence.group_types)

        print(f"read     4000 functions: {min(cpu_s(work) for _ in range(3)):.2f} s CPU")


def replay() -> None:
    for path in sorted(TESTS.glob("evidence/*/manifest.json")):
        evidence = read_evidence(Recorded(unpack(path.read_bytes(), path.parent.name)))
        took = statistics.median(cpu_s(lambda evidence=evidence: diagnose(facts_from(evidence)[0], [])) for _ in range(ROUNDS))  # type: ignore[misc]
        print(f"replay   {path.parent.name:32} {took * 1e3:6.2f} ms")


def mask() -> None:
    line = "[   12.345678] nvidia 0000:19:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000c address=0xfc000000 flags=0x0020]\n"
    print(f"mask     8 MiB of kernel log: {cpu_s(lambda: Mask(('gpubox01',), ('alice',)).text(line * (8 * 2**20 // len(line)))):.2f} s")


if __name__ == "__main__":
    read_large()
    replay()
    mask()
