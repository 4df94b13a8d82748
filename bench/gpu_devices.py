"""Does every method of `probe.gpu.cuda.Cuda` do what devices.py promises, on the GPUs that are here? `python bench/gpu_devices.py`. Exit code 1 if not.

With one GPU everything runs from the card to itself, and between two processes on it; with more, from GPU 0 to 1 and back as well.
Each check that can find a fault is also run with the fault present. Prints one line per check, with what it took.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1] / "src")]

from linkproof.probe.devices import HOWS, Buffer, DeviceLost, NotPossible, NotTested  # noqa: E402
from linkproof.probe.gpu.cuda import Cuda  # noqa: E402
from linkproof.probe.payload import Key, payload, poison, words  # noqa: E402

KEY = Key(0xFEDCBA9876543210, 1, 2, 3)
KIB, MIB = 1 << 10, 1 << 20
SIZES_B = (1, 4, 7, 256, 4096 - 16, 4096 + 16, 297 * KIB, 2 * MIB + 16, 9 * MIB + 3)
STARTS_B = ((8192, 8192), (8196, 8196), (8208, 8192), (8195, 8201))
DEADLINE_S = 60.0


def data(gpus: Cuda, gpu: int) -> str:
    count = 3 * MIB + 5
    for key in (KEY, Key(1, 0, 0, 0), Key((1 << 64) - 1, 5, 6, 255)):
        for first, n, invert in ((0, count, False), (0, count, True), (7, 1001, False), (1, 1, True), (count - 3, 3, False)):
            memory = gpus.alloc(gpu, 8 * count)
            gpus.put(memory, 0, np.zeros(8 * count, np.uint8))
            gpus.fill(memory, key.word, first, n, invert)
            want: Any = words(key, first, n)
            got = gpus.get(memory, 0, 8 * count).view(np.uint64)
            assert np.array_equal(got[first : first + n], ~want if invert else want), (key, first, n, invert)
            assert not got[:first].any() and not got[first + n :].any(), "wrote outside"
            assert gpus.wrong(memory, key.word, first, n, invert) == (0, -1)
            assert gpus.wrong(memory, key.word, first, n, not invert) == (n, first)
            for spoilt in {first, first + n // 2, first + n - 1}:
                good = gpus.get(memory, 8 * spoilt, 8)
                for bit in (0, 13, 63):
                    bad = (good.view(np.uint64) ^ np.uint64(1 << bit)).view(np.uint8)
                    gpus.put(memory, 8 * spoilt, bad)
                    assert gpus.wrong(memory, key.word, first, n, invert) == (1, spoilt), (spoilt, bit)
                gpus.put(memory, 8 * spoilt, good)
            memory.free()
    return "fill, wrong; one flipped bit is found at its word"


def host(gpus: Cuda, gpu: int) -> str:
    memory = gpus.alloc(gpu, 40 * MIB)
    for at_B, size_B in ((0, 1), (3, 4097), (5, 33 * MIB + 1)):
        want = payload(KEY, at_B, size_B)
        gpus.put(memory, at_B, want)
        assert np.array_equal(gpus.get(memory, at_B, size_B), want)
    memory.free()
    return "put, get"


def moves(gpus: Cuda, a: int, b: int, kind: str) -> str:
    room = max(SIZES_B) + 4 * 8192
    src, dst = gpus.alloc(a, room, kind), gpus.alloc(b, room, kind)
    good: Any = payload(KEY, 0, room)
    bad: Any = poison(KEY, 0, room)
    gpus.put(src, 0, good)
    n = 0
    for how in HOWS:
        for size_B in SIZES_B:
            for s, d in STARTS_B:
                gpus.put(dst, 0, bad[: size_B + 32768])
                gpus.move(how, src, s, dst, d, size_B, wait=n % 2 == 0)
                gpus.sync()
                want = bad[: size_B + 32768].copy()
                want[d : d + size_B] = good[s : s + size_B]
                got = gpus.get(dst, 0, len(want))
                assert np.array_equal(got, want), (how, size_B, s, d, np.flatnonzero(got != want)[:4])
                n += 1
    src.free()
    dst.free()
    return f"{n} moves, memory of kind {kind}"


def chain(gpus: Cuda, a: int, b: int) -> str:
    size_B = 8 * MIB
    one, two, three = gpus.alloc(a, size_B), gpus.alloc(b, size_B), gpus.alloc(a, size_B)
    for n, hops in enumerate([(x, y) for x in HOWS for y in HOWS]):
        key = Key(9, 0, 1, n)
        gpus.fill(one, key.word, 0, size_B // 8)
        gpus.move(hops[0], one, 0, two, 0, size_B, wait=False)
        gpus.move(hops[1], two, 0, three, 0, size_B, wait=False)
        assert gpus.wrong(three, key.word, 0, size_B // 8) == (0, -1), hops
    for memory in (one, two, three):
        memory.free()
    return "49 chains of two hops, without waiting between"


def kernels(gpus: Cuda, a: int, b: int) -> str:
    memory = gpus.alloc(b, MIB)
    gpus.put(memory, 0, payload(KEY, 0, MIB))
    assert np.array_equal(gpus.look(a, memory, 4100, 12345), payload(KEY, 4100, 12345))
    began = time.perf_counter()
    assert gpus.add(a, memory, 100_000) == 200_000
    took = time.perf_counter() - began
    memory.free()
    return f"look, add (2 x 100,000 additions in {took:.3f} s)"


def messages(gpus: Cuda, a: int, b: int) -> str:
    one, two = gpus.alloc(a, 2 * MIB), gpus.alloc(b, 2 * MIB)
    told = []
    for size_B in (8, 128, 8 * KIB, 100 * KIB):
        rounds = 10_000 if size_B <= 8 * KIB else 1000
        gpus.messages(one, two, 10, size_B, 5.0, KEY.word)
        began = time.perf_counter()
        assert gpus.messages(one, two, rounds, size_B, 20.0, KEY.word) == (rounds, 0), size_B
        took = time.perf_counter() - began
        told.append(f"{size_B} B: {took:.3f} s, {took / rounds * 1e6:.1f} us a round")
        assert took < 1.0 or size_B > 8 * KIB, took
    # nobody on the other side: ends by itself
    gpus.clear_flag(one, 128)
    began = time.perf_counter()
    assert gpus.message_side(one, two, True, 10, 128, 0.3, KEY.word) == (0, 0)
    waited = time.perf_counter() - began
    assert 0.25 < waited < 2.0, waited
    # a flag without its data
    gpus.put(one, 128, np.frombuffer((5).to_bytes(4, "little"), np.uint8))
    gpus.put(one, 0, np.zeros(128, np.uint8))
    assert gpus.message_side(one, two, False, 10, 128, 0.1, KEY.word) == (5, 5)
    one.free()
    two.free()
    return "messages " + "; ".join(told) + f"; alone ends after {waited:.2f} s; 5 flags without data: 5 told"


def timed(gpus: Cuda, a: int, b: int) -> str:
    size_B = 256 * MIB
    pairs: list[tuple[Buffer, Buffer]] = [(gpus.alloc(a, size_B), gpus.alloc(b, size_B)) for _ in range(2)]
    told = []
    for how in HOWS:
        one, held = gpus.timed_s(how, pairs[:1], size_B, 4), gpus.timer.held
        two, held = gpus.timed_s(how, pairs, size_B, 4), held and gpus.timer.held
        small, held = gpus.timed_s(how, pairs[:1], 8, 50) / 50, held and gpus.timer.held
        told.append(
            f"{how} {4 * size_B / one / 1e9:.0f} GB/s, two at once {8 * size_B / two / 1e9:.0f}, 8 B {small * 1e6:.1f} us{'' if held else ', NOT HELD'}"
        )
    for pair in pairs:
        for memory in pair:
            memory.free()
    return "timed_s: " + "; ".join(told)


def starving(gpus: Cuda, gpu: int) -> str:
    for kind in ("plain", "pool", "vmm", "ipc", "ipc_vmm"):
        try:
            gpus.alloc(gpu, 1 << 42, kind)
        except MemoryError:
            continue
        raise AssertionError(f"4 TiB of kind {kind} were given")
    free = gpus.alloc(gpu, MIB)
    gpus.fill(free, KEY.word, 0, 16)
    return "4 TiB are refused as MemoryError, and work goes on"


def without_triton(gpus: Cuda, gpu: int) -> str:
    gpus._kernels, gpus._without = None, "taken away"
    try:
        for kind in ("plain", "vmm"):
            memory, other = gpus.alloc(gpu, 80 * MIB, kind), gpus.alloc(gpu, 80 * MIB)
            gpus.fill(memory, KEY.word, 5, 9 * MIB, True)
            assert np.array_equal(~gpus.get(memory, 8 * 5, 8 * 1000).view(np.uint64), words(KEY, 5, 1000))
            assert gpus.wrong(memory, KEY.word, 5, 9 * MIB, True) == (0, -1)
            gpus.put(memory, 8 * 8_900_000, np.zeros(1, np.uint8))
            assert gpus.wrong(memory, KEY.word, 5, 9 * MIB, True) == (1, 8_900_000)
            gpus.move("push", memory, 0, other, 0, MIB)
            try:
                gpus.move("store", memory, 0, other, 0, MIB)
            except NotTested:
                continue
            raise AssertionError("a kernel ran without Triton")
    finally:
        gpus._without = ""
    return "without Triton: fill and wrong by torch, kernels are not tested"


# ---------------------------------------------------------------- other processes


def child(what: str, folder: str = "", **env: str) -> subprocess.Popen[str]:
    argv = [sys.executable, str(Path(__file__)), "child", what, folder]
    return subprocess.Popen(argv, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, out[-3000:]
    return out.strip().splitlines()[-1]


def said(folder: str, name: str, text: bytes | None = None) -> bytes:
    path = Path(folder) / name
    if text is not None:
        path.with_suffix(".part").write_bytes(text)
        path.with_suffix(".part").rename(path)
        return text
    began = time.monotonic()
    while not path.exists():
        assert time.monotonic() - began < DEADLINE_S, f"no {name}"
        time.sleep(0.001)
    return path.read_bytes()


def two_processes(gpus: Cuda, a: int, b: int, handle: str) -> str:
    size_B, rounds = 4 * MIB, 100
    with TemporaryDirectory() as folder:
        mine = gpus.alloc(b, size_B, handle)
        gpus.fill(mine, KEY.word, 0, size_B // 8, invert=True)
        gpus.clear_flag(mine, 128)
        said(folder, "mine", gpus.share(mine, handle))
        other = child("writer", folder, HANDLE=handle, GPU=str(a), ROUNDS=str(rounds))
        try:
            for how in ("push", "store16", "store"):
                said(folder, f"written-{how}")
                count = size_B // 16
                assert gpus.wrong(mine, Key(7, 0, 0, HOWS.index(how)).word, 0, count) == (0, -1), how
                gpus.fill(mine, KEY.word, 0, size_B // 8, invert=True)
                said(folder, f"judged-{how}", b"-")
            gpus.clear_flag(mine, 128)
            theirs = gpus.open(b, said(folder, "theirs"), handle)
            said(folder, "cleared", b"-")
            said(folder, "ready")
            began = time.perf_counter()
            found = gpus.message_side(mine, theirs, True, rounds, 128, 20.0, KEY.word)
            took = time.perf_counter() - began
            assert found == (rounds, 0), found
            theirs.free()
            said(folder, "closed", b"-")
            ended(other)
        finally:
            other.kill()
        mine.free()
        if handle == "ipc_vmm":
            shared = said(folder, "mine")
            try:
                gpus.open(b, shared, handle)
            except NotPossible as e:
                return f"{handle} between two processes; {rounds} message rounds in {took:.2f} s; closed: {e}"
            raise AssertionError("memory that is gone was opened")
    return f"{handle} between two processes; {rounds} message rounds in {took:.2f} s"


def writer(folder: str) -> str:
    gpus, handle, gpu, rounds = Cuda(), os.environ["HANDLE"], int(os.environ["GPU"]), int(os.environ["ROUNDS"])
    theirs = gpus.open(gpu, said(folder, "mine"), handle)
    source = gpus.alloc(gpu, theirs.size_B)
    for how in ("push", "store16", "store"):
        key, count = Key(7, 0, 0, HOWS.index(how)), theirs.size_B // 16
        gpus.fill(source, key.word, 0, count)
        gpus.move(how, source, 0, theirs, 0, 8 * count)
        said(folder, f"written-{how}", b"-")
        said(folder, f"judged-{how}")
    mine = gpus.alloc(gpu, theirs.size_B, handle)
    gpus.clear_flag(mine, 128)
    said(folder, "theirs", gpus.share(mine, handle))
    said(folder, "cleared")
    said(folder, "ready", b"-")
    found = gpus.message_side(mine, theirs, False, rounds, 128, 20.0, KEY.word)
    assert found == (rounds, 0), found
    theirs.free()
    said(folder, "closed")
    mine.free()
    return "ok"


def busy() -> str:
    """A process that is not ours (its parent is a shell) holds memory; one that is (our own child) does not count."""
    with TemporaryDirectory() as folder:
        ours = child("holder", folder)
        shell = f"exec 2>&1; {sys.executable} {Path(__file__)} child holder {folder}/other & wait"
        (Path(folder) / "other").mkdir()
        other = subprocess.Popen(["sh", "-c", shell], text=True, stdout=subprocess.PIPE)
        try:
            pids = [int(said(place, "holding")) for place in (folder, f"{folder}/other")]
            told = ended(child("cards"))
            assert f"(pid {pids[1]})" in told and f"(pid {pids[0]})" not in told, (pids, told)
        finally:
            for place in (folder, f"{folder}/other"):
                said(place, "enough", b"-")
            ended(ours)
            other.wait(DEADLINE_S)
    assert ended(child("cards")) == "''", "nobody is left"
    return f"busy: {told}"


def holder(folder: str) -> str:
    gpus = Cuda()
    gpus.fill(gpus.alloc(0, 256 * MIB), 1, 0, 16)
    said(folder, "holding", str(os.getpid()).encode())
    said(folder, "enough")
    return "ok"


def cards(folder: str) -> str:
    return repr(Cuda().cards()[0].busy)


def lost(folder: str) -> str:
    gpus = Cuda()
    memory = gpus.alloc(0, MIB)
    gpus.fill(memory, KEY.word, 0, 16)
    memory.address_B = 0x10
    for attempt in (lambda: gpus.fill(memory, KEY.word, 0, 4096), lambda: gpus.alloc(0, MIB, "vmm"), lambda: gpus.alloc(0, MIB)):
        try:
            attempt()
            gpus.sync()
            gpus.get(gpus.alloc(0, 16), 0, 16)
        except DeviceLost as e:
            text = str(e)
        else:
            raise AssertionError("a broken context was not seen")
    return f"a wild store: DeviceLost ({text})"


def expandable(folder: str) -> str:
    gpus = Cuda()
    last = gpus.cards()[-1].index
    moves(gpus, 0, last, "plain")
    try:
        gpus.share(gpus.alloc(0, MIB), "ipc")
    except NotPossible as e:
        return f"expandable segments: all moves right, an IPC handle is refused ({e})"
    return "expandable segments: all moves right, an IPC handle was given"


def blocking(folder: str) -> str:
    gpus = Cuda()
    try:
        gpus.messages(gpus.alloc(0, MIB), gpus.alloc(0, MIB), 10, 128, 1.0, KEY.word)
    except NotTested as e:
        return f"CUDA_LAUNCH_BLOCKING: not tested ({e})"
    raise AssertionError("messages ran")


CHILDREN: dict[str, Callable[[str], str]] = {
    "writer": writer, "holder": holder, "cards": cards, "lost": lost, "expandable": expandable, "blocking": blocking,
}  # fmt: skip


def main() -> int:
    if sys.argv[1:2] == ["child"]:
        print(CHILDREN[sys.argv[2]](sys.argv[3]))
        return 0
    gpus = Cuda()
    for card in gpus.cards():
        print(card)
    last = len(gpus.cards()) - 1
    pairs = [(0, 0)] + [(0, last), (last, 0)] * (last > 0)
    checks: list[tuple[str, Callable[[], str]]] = [("data", lambda: data(gpus, last)), ("host", lambda: host(gpus, last))]
    for a, b in pairs:
        name = f"{a}->{b} "
        checks += [(name + "moves", lambda a=a, b=b, kind=kind: moves(gpus, a, b, kind)) for kind in ("plain", "pool", "vmm", "ipc")]  # type: ignore[misc]
        for way in (chain, kernels, messages, timed):
            checks.append((name + way.__name__, lambda a=a, b=b, way=way: way(gpus, a, b)))  # type: ignore[misc]
        for handle in ("ipc", "ipc_vmm"):
            checks.append((name + handle, lambda a=a, b=b, handle=handle: two_processes(gpus, a, b, handle)))  # type: ignore[misc]
    checks += [
        ("starving", lambda: starving(gpus, 0)),
        ("without", lambda: without_triton(gpus, 0)),
        ("busy", busy),
        ("lost", lambda: ended(child("lost"))),
        ("expandable", lambda: ended(child("expandable", PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True"))),
        ("blocking", lambda: ended(child("blocking", CUDA_LAUNCH_BLOCKING="1"))),
    ]
    bad = 0
    for name, check in checks:
        began = time.perf_counter()
        try:
            text = "ok     " + check()
        except Exception as e:
            bad += 1
            text = f"FAILED {type(e).__name__}: {e}\n{traceback.format_exc()}"
        print(f"{time.perf_counter() - began:6.2f} s  {name:14} {text}", flush=True)
    print(f"{bad} of {len(checks)} checks failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
