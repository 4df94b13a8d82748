"""Virtual GPUs do what a probe needs of real ones, in every process of a run, and their links are as faulty as the scenario says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from linkproof.errors import UsageError
from linkproof.measured import Wrong
from linkproof.probe.devices import HOWS, DeviceLost, Devices, NotPossible, NotTested
from linkproof.probe.faults import Fault
from linkproof.probe.faulty import Faulty
from linkproof.probe.payload import Key, classify, payload, poison, words
from linkproof.sim.memory import Block
from linkproof.sim.scenario import LinkFault, load
from linkproof.sim.virtual import Virtual, create

KEY = Key(0xABCDEF0123456789, 0, 1, 3)
LO_B, SIZE_B = 8192, 65536
WHOLE_B = SIZE_B + 2 * LO_B


@pytest.fixture
def healthy(tmp_path: Path) -> Iterator[Virtual]:
    create(load("healthy-2xpcie"), tmp_path)
    v = Virtual(tmp_path)
    yield v
    v.close()


def machine(tmp_path: Path, name: str, *faults: LinkFault, **changed: object) -> Virtual:
    s = load(name)
    create(structs.replace(s, **({"faults": faults} if faults else {}), **changed), tmp_path)
    return Virtual(tmp_path)


def sent(devices: Devices, how: str, src: int = 0, dst: int = 1, key: Key = KEY) -> tuple[Wrong, ...]:
    a, b = devices.alloc(src, WHOLE_B), devices.alloc(dst, WHOLE_B)
    try:
        devices.put(a, 0, payload(key, 0, WHOLE_B))
        devices.put(b, 0, poison(key, 0, WHOLE_B))
        devices.move(how, a, LO_B, b, LO_B, SIZE_B)
        return classify(devices.get(b, 0, WHOLE_B), key, LO_B, LO_B + SIZE_B, 0, b.address_B)
    finally:
        a.free()
        b.free()


@pytest.mark.parametrize("how", HOWS)
def test_a_healthy_link_carries_every_byte_and_no_more(healthy: Virtual, how: str) -> None:
    assert sent(healthy, how) == () and sent(healthy, how, 1, 0) == ()


def test_kernels_make_and_compare_the_words_of_the_payload(healthy: Virtual) -> None:
    block = healthy.alloc(0, 3 << 20)
    healthy.fill(block, KEY.word, 5, 200_000)
    assert np.array_equal(healthy.get(block, 40, 1_600_000).view(np.uint64), words(KEY, 5, 200_000))
    assert healthy.wrong(block, KEY.word, 5, 200_000) == (0, -1)
    healthy.put(block, 8 * 150_000, np.zeros(16, np.uint8))
    assert healthy.wrong(block, KEY.word, 5, 200_000) == (2, 150_000)
    healthy.fill(block, KEY.word, 0, 100, invert=True)
    assert np.array_equal(healthy.get(block, 0, 800), poison(KEY, 0, 800))


def test_memory_ends_and_comes_back(tmp_path: Path) -> None:
    gpu = structs.replace(load("healthy-2xpcie").gpus[0], memory_GiB=0.0625)
    v = machine(tmp_path, "healthy-2xpcie", gpus=(gpu, load("healthy-2xpcie").gpus[1]))
    first, second = v.alloc(0, 30 << 20), v.alloc(0, 30 << 20)
    assert first.address_B + first.size_B <= second.address_B
    with pytest.raises(MemoryError):
        v.alloc(0, 30 << 20)
    first.free()
    assert v.alloc(0, 30 << 20).address_B == 0


def test_an_unplugged_gpu_is_lost_and_the_other_is_not(healthy: Virtual) -> None:
    a, b = healthy.alloc(0, 64), healthy.alloc(1, 64)
    (healthy.folder / "lost-1").touch()
    with pytest.raises(DeviceLost):
        healthy.move("push", a, 0, b, 0, 64)
    with pytest.raises(DeviceLost):
        healthy.sync()
    healthy.put(a, 0, np.zeros(64, np.uint8))


def test_no_peer_access_is_refused_and_the_host_path_works(tmp_path: Path) -> None:
    v = machine(tmp_path, "p2p-refused-geforce")
    assert v.peer_claimed(0, 1) is False and sent(v, "staged") == ()
    with pytest.raises(NotPossible):
        sent(v, "push")


def test_what_only_nvidia_has_is_not_tested_on_amd(tmp_path: Path) -> None:
    v = machine(tmp_path, "amd-2x-mi210")
    a, b = v.alloc(0, 4096), v.alloc(1, 4096)
    with pytest.raises(NotTested):
        v.alloc(0, 64, "pool")
    with pytest.raises(NotTested):
        v.messages(a, b, 1, 128, 1.0, 1)
    assert sent(v, "push") == ()


def test_refused_modes_and_busy_cards_come_from_the_scenario(tmp_path: Path) -> None:
    s = load("healthy-2xpcie")
    v = machine(tmp_path, "healthy-2xpcie", refused=("vmm", "ipc"), gpus=(structs.replace(s.gpus[0], busy="python (pid 4242)"), s.gpus[1]))
    assert [c.busy for c in v.cards()] == ["python (pid 4242)", ""]
    with pytest.raises(NotPossible):
        v.alloc(0, 64, "vmm")
    with pytest.raises(NotPossible):
        v.share(v.alloc(0, 64), "ipc")


# ---------------------------------------------------------------- several processes

OTHER = """
import sys, time
import numpy as np
from linkproof.sim.virtual import Virtual
v = Virtual(sys.argv[1])
theirs = v.open(1, sys.argv[2].encode(), "ipc")
mine = v.alloc(1, 4096)
v.put(mine, 0, np.arange(4096).astype(np.uint8))
v.move("push", mine, 0, theirs, 0, 4096)
print("done", flush=True)
time.sleep(60)
"""


def test_another_process_writes_into_the_memory_and_its_own_comes_back_when_it_is_killed(healthy: Virtual) -> None:
    block = healthy.alloc(0, 4096)
    argv = [sys.executable, "-c", OTHER, str(healthy.folder), healthy.share(block, "ipc").decode()]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "done\n"
        assert np.array_equal(healthy.get(block, 0, 4096), np.arange(4096).astype(np.uint8))
        assert healthy.alloc(1, 64).address_B > 0, "the other process holds the start of GPU 1"
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert healthy.alloc(1, 64).address_B == 0, "what the killed process held is free again"
    assert np.array_equal(healthy.get(block, 0, 4096), np.arange(4096).astype(np.uint8))


def test_memory_that_is_gone_cannot_be_opened(healthy: Virtual) -> None:
    block = healthy.alloc(0, 64)
    handle = healthy.share(block, "ipc")
    block.free()
    with pytest.raises(NotPossible):
        healthy.open(1, handle, "ipc")


def test_a_folder_without_a_machine_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Virtual(tmp_path)


# ---------------------------------------------------------------- faults of links


@pytest.mark.parametrize(
    ("name", "how", "pair", "seen"),
    [
        ("iommu-translating-2xa6000", "push", (0, 1), "untouched"),
        ("iommu-translating-2xa6000", "load16", (0, 1), "zero"),
        ("iommu-translating-2xa6000", "staged", (0, 1), ""),
        ("private-mirror-2x", "store", (1, 0), "untouched"),
        ("private-mirror-2x", "load", (1, 0), "zero"),
        ("sm-stores-lost-5090", "push", (0, 1), ""),
        ("sm-stores-lost-5090", "store16", (0, 1), "untouched"),
        ("one-direction-dead", "push", (1, 0), "untouched"),
        ("one-direction-dead", "push", (0, 1), ""),
        ("link-errors-under-load", "push", (0, 3), ""),
        ("vm-passthrough-p2p-zeros", "pull", (0, 1), "zero"),
        ("staged-broken-container", "staged", (0, 1), "untouched"),
        ("ll128-torn", "store16", (0, 1), ""),
        ("flags-hang-copies-fine", "store", (0, 1), ""),
    ],
)
def test_what_arrives_follows_from_the_scenario(tmp_path: Path, name: str, how: str, pair: tuple[int, int], seen: str) -> None:
    v = machine(tmp_path, name)
    assert [w.kind for w in sent(v, how, *pair)] == ([seen] if seen else [])


def test_errors_come_under_load_only_and_are_counted(tmp_path: Path) -> None:
    v = machine(tmp_path, "link-errors-under-load")
    before = v.counters()
    assert ("AER correctable", "0000:c6:00.0", 9120) in before and ("kernel log", "", 3) in before
    v.loaded = True
    kinds = {w.kind for _ in range(20) for w in sent(v, "push", 0, 3)}
    assert kinds == {"bits"} and sent(v, "push", 0, 1) == ()
    after = {(name, where): value for name, where, value in Virtual(tmp_path).counters()}
    assert after["AER correctable", "0000:c6:00.0"] > 9120 and after["PCIe replay", "GPU 3"] > 1874


def test_the_window_of_a_small_bar_ends_inside_a_large_transfer(tmp_path: Path) -> None:
    v = machine(tmp_path, "bar1-small-256MiB")
    assert sent(v, "push") == ()
    size_B = 24 << 20
    a, b = v.alloc(0, size_B), v.alloc(1, size_B)
    v.fill(a, KEY.word, 0, size_B // 8)
    v.fill(b, KEY.word, 0, size_B // 8, invert=True)
    v.move("push", a, 0, b, 0, size_B)
    bad, first = v.wrong(b, KEY.word, 0, size_B // 8)
    assert b.address_B + first * 8 == 256 << 20 and bad == size_B // 8 - first


def test_the_writer_of_a_private_mirror_sees_its_own_bytes(tmp_path: Path) -> None:
    v = machine(tmp_path, "private-mirror-2x")
    a, b = v.alloc(0, 4096), v.alloc(1, 4096)
    v.put(a, 0, payload(KEY, 0, 4096))
    v.put(b, 0, poison(KEY, 0, 4096))
    v.move("store16", a, 0, b, 0, 4096)
    assert np.array_equal(v.look(0, b, 0, 4096), payload(KEY, 0, 4096)) and np.array_equal(v.get(b, 0, 4096), poison(KEY, 0, 4096))


def test_messages_pass_on_a_healthy_link_and_are_late_or_lost_on_others(tmp_path: Path, healthy: Virtual) -> None:
    def tried(v: Virtual, deadline_s: float = 20.0) -> tuple[int, int]:
        return v.messages(v.alloc(0, 4096), v.alloc(1, 4096), 1000, 128, deadline_s, KEY.word)

    assert tried(healthy) == (1000, 0)
    assert tried(machine(tmp_path / "r", "healthy-2xpcie", LinkFault("reorder"))) == (1000, 1000)
    some = tried(machine(tmp_path / "s", "healthy-2xpcie", LinkFault("reorder", probability=0.1)))
    assert some[0] == 1000 and 100 < some[1] < 300
    assert tried(machine(tmp_path / "h", "flags-hang-copies-fine"), 0.2) == (0, 0)
    assert tried(machine(tmp_path / "d", "sm-stores-lost-5090"), 0.2) == (0, 0)


def test_atomics_hold_where_the_link_has_them_and_are_refused_or_lost_elsewhere(tmp_path: Path, healthy: Virtual) -> None:
    with pytest.raises(NotPossible):
        healthy.add(0, healthy.alloc(1, 64), 100)
    v = machine(tmp_path / "n", "healthy-8xnvlink")
    assert v.add(0, v.alloc(1, 64), 100) == 200
    v = machine(tmp_path / "l", "healthy-8xnvlink", LinkFault("atomics_lost"))
    assert v.add(0, v.alloc(1, 64), 100) == 100 and sent(v, "store") == ()


# ---------------------------------------------------------------- speed


def GBps(v: Virtual, how: str, *pairs: tuple[int, int], size_B: int = 1 << 28) -> float:
    buffers = {gpu: v.alloc(gpu, 64) for pair in pairs for gpu in pair}
    return size_B / v.timed_s(how, [(buffers[a], buffers[b]) for a, b in pairs], size_B, 1) / 1e9


def test_speed_is_that_of_the_link_and_shared_ways_are_shared(tmp_path: Path) -> None:
    v = machine(tmp_path, "acs-redirect-4x4090")
    assert GBps(v, "push", (0, 1)) == pytest.approx(6.2, rel=0.02) and GBps(v, "push", (0, 2)) == pytest.approx(18, rel=0.02)
    assert GBps(v, "staged", (0, 1)) == pytest.approx(11, rel=0.02), "redirected traffic is slower than through the host"
    assert GBps(v, "push", (0, 1), (1, 0)) == pytest.approx(3.1, rel=0.02)
    assert GBps(v, "push", (0, 2), (1, 3)) == pytest.approx(12, rel=0.02)
    assert GBps(v, "push", (0, 1), size_B=4) < 0.01, "a small transfer is all latency"


def test_one_link_less_is_a_quarter_slower_and_a_slow_fault_is_slow(tmp_path: Path) -> None:
    v = machine(tmp_path / "n", "nvlink-one-link-down")
    assert GBps(v, "push", (2, 3)) / GBps(v, "push", (0, 1)) == pytest.approx(0.75, rel=0.03)
    v = machine(tmp_path / "s", "healthy-2xpcie", LinkFault("slow", 10, pairs=("0->1",)))
    assert GBps(v, "push", (1, 0)) / GBps(v, "push", (0, 1)) == pytest.approx(10, rel=0.03)


def test_sixteen_MiB_cost_milliseconds(healthy: Virtual) -> None:
    """Best of several, against a copy of the same size in the same run: the machine that tests is shared."""
    size_B = 16 << 20
    a, b = healthy.alloc(0, size_B), healthy.alloc(1, size_B)
    other = np.ones(size_B, np.uint8)

    def best(function: object, *args: object) -> float:
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            function(*args)  # type: ignore[operator]
            times.append(time.perf_counter() - begun)
        return min(times)

    copy_s = best(np.copyto, b.data, other)
    assert best(healthy.move, "push", a, 0, b, 0, size_B) < 5 * copy_s + 0.005
    assert best(healthy.fill, a, KEY.word, 0, size_B // 8) < 20 * copy_s + 0.02


# ---------------------------------------------------------------- a fault between a check and any devices


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (Fault("zero"), "zero"),
        (Fault("drop"), "untouched"),
        (Fault("shift", 16), "offset"),
        (Fault("page_swap"), "offset"),
        (Fault("tail"), "untouched"),
        (Fault("bit"), "bits"),
        (Fault("neighbour"), "overrun"),
        (Fault("mirror"), "untouched"),
        (Fault("rare", 1e-3), "bits"),
        (Fault("slow"), ""),
        (Fault("zero", modes=("pull",)), ""),
        (Fault("zero", pairs=("1->0",)), ""),
        (Fault("zero", only_under_load=True), ""),
    ],
)
@pytest.mark.parametrize("pair", [(0, 1), (0, 0)])
def test_faulty_devices_deliver_the_fault_on_a_pair_and_on_one_card_with_itself(
    healthy: Virtual, text: Fault, seen: str, pair: tuple[int, int]
) -> None:
    wrong = sent(Faulty(healthy, text), "push", *pair)
    assert ({w.kind for w in wrong} or {""}) == {seen} or wrong[0].kind == seen


def test_faulty_devices_keep_what_went_before(healthy: Virtual) -> None:
    f = Faulty(healthy, Fault("stale"))
    sent(f, "push", key=structs.replace(KEY, round_=1))
    wrong = sent(f, "push", key=structs.replace(KEY, round_=2))
    assert [(w.kind, w.detail) for w in wrong] == [("stale", "round 1")]


def test_faulty_devices_mirror_reorder_lose_and_slow(healthy: Virtual) -> None:
    a, b = healthy.alloc(0, 4096), healthy.alloc(1, 4096)
    f = Faulty(healthy, Fault("mirror"))
    f.put(a, 0, payload(KEY, 0, 4096))
    f.move("store16", a, 0, b, 0, 4096)
    assert np.array_equal(f.look(0, b, 0, 4096), payload(KEY, 0, 4096)) and not f.get(b, 0, 4096).any()
    assert Faulty(healthy, Fault("reorder")).messages(a, b, 100, 128, 5, KEY.word) == (100, 100)
    assert Faulty(healthy, Fault("zero", modes=("push",))).messages(a, b, 100, 128, 5, KEY.word) == (100, 0)
    assert Faulty(healthy, Fault("hang")).messages(a, b, 100, 128, 0.1, KEY.word) == (0, 0)
    slow, quick = Faulty(healthy, Fault("slow", 8)), Faulty(healthy, Fault("zero"))
    assert slow.timed_s("push", [(a, b)], 1 << 20, 10) / quick.timed_s("push", [(a, b)], 1 << 20, 10) == pytest.approx(8, rel=0.05)
    assert Faulty(healthy, Fault("atomics_lost")).add(0, healthy.alloc(0, 64), 50) == 50
    assert Faulty(healthy, Fault("slow")).add(0, healthy.alloc(0, 64), 50) == 100


def test_under_load_is_what_whoever_loads_says(healthy: Virtual) -> None:
    f = Faulty(healthy, Fault("zero", only_under_load=True))
    f.loaded = True
    assert [w.kind for w in sent(f, "push")] == ["zero"]


HANGS = """
import sys
from linkproof.probe.faults import Fault
from linkproof.probe.faulty import Faulty
from linkproof.sim.virtual import Virtual
v = Faulty(Virtual(sys.argv[1]), Fault("hang"))
a, b = v.alloc(0, 64), v.alloc(1, 64)
print("begun", flush=True)
v.move("push", a, 0, b, 0, 64)
print("ended", flush=True)
"""


def test_a_hang_hangs_until_the_process_is_ended(healthy: Virtual) -> None:
    child = subprocess.Popen([sys.executable, "-c", HANGS, str(healthy.folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "begun\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(1.0)
    finally:
        child.kill()
        assert child.communicate()[0] == ""


def test_a_block_is_a_file_that_goes_with_it(healthy: Virtual) -> None:
    block = healthy.alloc(0, 100)
    assert isinstance(block, Block) and block.path.exists()
    block.free()
    assert not block.path.exists()
