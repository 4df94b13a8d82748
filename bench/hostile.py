"""Is reading linear, whatever the text? Growing hostile inputs, the time of each size, and the slope between the sizes.

    python bench/hostile.py [--lines 20000]

A slope of 1 is linear: twice the text, twice the time. Above 1.3 counts as too steep.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from math import log
from time import process_time

from linkproof.parse import anchors, read
from linkproof.parse.clean import clean

STEEP = 1.3
STEPS = 4


def _shapes() -> dict[str, Callable[[int], str]]:
    every = list(anchors())
    return {
        "every anchor in turn": lambda n: "\n".join(f"{every[i % len(every)]} {i}" for i in range(n)),
        "one assert, n threads": lambda n: "\n".join(
            f"../aten/src/ATen/native/cuda/Indexing.cu:1093: indexSelectSmallIndex: block: [{i},0,0], thread: [0,0,0] "
            "Assertion `srcIndex < srcSelectDimSize` failed."
            for i in range(n)
        ),
        "NCCL channels": lambda n: "\n".join(
            f"h:{i}:1 [0] NCCL INFO Channel {i:02d}/0 : {i % 8}[0] -> {(i + 1) % 8}[1] via P2P/IPC" for i in range(n)
        ),
        "opened brackets": lambda n: "\n".join("[rank" + "[(<" * 300 for _ in range(n // 20)),
        "escapes and entities": lambda n: "\n".join("\x1b[" * 200 + "&lt;" * 200 for _ in range(n // 20)),
        "topology rows": lambda n: "\tGPU0\tGPU1\n" + "\n".join(f"GPU{i}\t X \tPIX\tSYS" for i in range(n)),
        "tracebacks that never end": lambda n: (
            "Traceback (most recent call last):\n" + "\n".join(f'  File "a.py", line {i}, in f' for i in range(n))
        ),
        "page faults": lambda n: "\n".join(
            f"nvidia 0000:0a:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0 address=0x{i:x} flags=0x0020]" for i in range(n)
        ),
        "printed tensors": lambda n: "\n".join(f"tensor([{i}., 0.], device='cuda:{i % 2}')" for i in range(n)),
        "hex dump": lambda n: "\n".join(["00:1c.0 PCI bridge: x"] + [f"{i * 16 % 4096:02x}: " + "ff " * 16 for i in range(n)]),
        "one line": lambda n: "Assertion ` " * n,
    }


def seconds(make: Callable[[int], str], lines: int) -> float:
    text = make(lines)
    t0 = process_time()
    read(clean("x", text))
    return process_time() - t0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=16_000, help="lines of the largest input")
    most = parser.parse_args().lines
    sizes = [most >> (STEPS - 1 - i) for i in range(STEPS)]
    print(f"{'hostile input':28}" + "".join(f"{n:>9}" for n in sizes) + "   slope   (seconds of CPU by lines)")
    steep = 0
    seconds(lambda n: "\n".join(anchors()), 1)  # compile every pattern once
    for name, make in _shapes().items():
        took = [min(seconds(make, n) for _ in range(2)) for n in sizes]
        slope = log(max(took[-1], 1e-4) / max(took[0], 1e-4)) / log(sizes[-1] / sizes[0])
        steep += slope > STEEP
        print(f"{name:28}" + "".join(f"{t:9.3f}" for t in took) + f"{slope:8.2f}" + ("   TOO STEEP" if slope > STEEP else ""))
    return 1 if steep else 0


if __name__ == "__main__":
    sys.exit(main())
