"""Do making and comparing the payload run at memory speed? `python bench/fill_verify.py [--sizes-mib 1024 4096] [--sweep] [--out FILE]`.

One GPU. In every round, one after the other on one stream, each between two events, with the host running ahead:

    copy     device-to-device copy of torch, size bytes read and size bytes written
    fill     kernel writes size bytes of payload
    compare  kernel reads size bytes and finds none wrong

ratio = (2 * size / (fill + compare)) / (2 * size / copy), of the medians. --sweep tries other block sizes and prints the best first.
The last comparison of each run has three words spoilt and must tell so, or the numbers mean nothing: then the exit code is 1.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[1] / "src")]

from linkproof.probe.gpu.cuda import NONE_WRONG, Cuda  # noqa: E402
from linkproof.probe.payload import Key  # noqa: E402

MIB, ROUNDS, WARM = 1 << 20, 40, 5
KEY = Key(0x1234567890ABCDEF, 0, 0, 7).word


def timed_s(steps: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of every step in every round, by the GPU's clock."""
    marks: list[list[torch.cuda.Event]] = []
    for _ in range(WARM + rounds):
        marks.append([torch.cuda.Event(enable_timing=True) for _ in range(len(steps) + 1)])
        marks[-1][0].record()
        for step, mark in zip(steps, marks[-1][1:], strict=True):
            step()
            mark.record()
    torch.cuda.synchronize()
    return [[row[i].elapsed_time(row[i + 1]) / 1e3 for row in marks[WARM:]] for i in range(len(steps))]


def measure(gpus: Cuda, size_B: int, say: Callable[[str], None]) -> bool:
    a, b = gpus.alloc(0, size_B), gpus.alloc(0, size_B)
    count = size_B // 8
    gpus.fill(a, KEY, 0, count)
    steps: list[Callable[[], Any]] = [
        lambda: b.tensor.copy_(a.tensor),
        lambda: gpus.launch_fill(a, KEY, 0, count),
        lambda: gpus.launch_compare(a, KEY, 0, count),
    ]
    copy, fill, compare = timed_s(steps, ROUNDS)
    t_copy, t_fill, t_compare = median(copy), median(fill), median(compare)
    for name, times, moved_B in (("copy", copy, 2 * size_B), ("fill", fill, size_B), ("compare", compare, size_B)):
        low, high = moved_B / max(times) / 1e12, moved_B / min(times) / 1e12
        say(
            f"{size_B // MIB:6} MiB  {name:8}{median(times) * 1e6:9.1f} us{moved_B / median(times) / 1e12:7.3f} TB/s  ({low:.3f} .. {high:.3f})"
        )
    say(f"{size_B // MIB:6} MiB  ratio {t_copy / (t_fill + t_compare):.3f} of the copy's bandwidth (bar 0.900)")
    began = time.perf_counter()
    gpus.fill(a, KEY, 0, count)
    clean = gpus.wrong(a, KEY, 0, count)
    whole = time.perf_counter() - began
    spoilt = (1, count // 2, count - 1)
    for word in spoilt:
        gpus.put(a, 8 * word, ~gpus.get(a, 8 * word, 8))
    found, copied = gpus.wrong(a, KEY, 0, count), gpus.wrong(b, KEY, 0, count)
    say(
        f"{size_B // MIB:6} MiB  fill() + wrong() with launch and wait: {whole * 1e6:.1f} us; clean {clean}, copy {copied}, 3 spoilt {found}"
    )
    a.free()
    b.free()
    return clean == copied == (0, -1) and found == (3, 1)


def sweep(gpus: Cuda, say: Callable[[str], None]) -> None:
    kernels = gpus.triton(0)
    size_B = 1024 * MIB
    a = gpus.alloc(0, size_B)
    gpus.fill(a, KEY, 0, size_B // 8)
    found = torch.tensor(NONE_WRONG, device="cuda:0")
    shapes = [
        {"BLOCK": block, "LOOPS": loops, "num_warps": warps}
        for block in (1024, 2048, 4096, 8192)
        for loops in (1, 2, 4, 8)
        for warps in (4, 8)
        if 8 <= block // (32 * warps) <= 32
    ]
    for name, run in (
        ("fill", lambda shape: kernels.fill(a.address_B, KEY, 0, size_B // 8, False, shape)),
        ("compare", lambda shape: kernels.compare(a.address_B, found, KEY, 0, size_B // 8, False, shape)),
    ):
        times = timed_s([lambda shape=shape, run=run: run(shape) for shape in shapes], 15)  # type: ignore[misc]
        for took, shape in sorted(((median(t), s) for t, s in zip(times, shapes, strict=True)), key=lambda pair: pair[0])[:12]:
            say(f"  sweep {name:8}{took * 1e6:8.1f} us {size_B / took / 1e12:.3f} TB/s  {shape}")
    say(f"  sweep compare found {found.tolist()}")
    a.free()


def main() -> int:
    parse = argparse.ArgumentParser()
    parse.add_argument("--sizes-mib", type=int, nargs="+", default=[1024, 4096])
    parse.add_argument("--sweep", action="store_true")
    parse.add_argument("--out", default="")
    args = parse.parse_args()
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    gpus = Cuda()
    card = gpus.cards()[0]
    import triton

    sizes = " ".join(map(str, args.sizes_mib))
    say(f"{time.strftime('%Y-%m-%d')}  python bench/fill_verify.py --sizes-mib {sizes}{' --sweep' * args.sweep}")
    say(f"{card.name}, {card.memory_B / 2**30:.0f} GiB; torch {torch.__version__}, triton {triton.__version__}, numpy {np.__version__}")
    right = [measure(gpus, size * MIB, say) for size in args.sizes_mib]
    if args.sweep:
        sweep(gpus, say)
    if args.out:
        Path(args.out).write_text("\n".join(lines) + "\n")
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
