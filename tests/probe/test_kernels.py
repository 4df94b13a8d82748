"""What of the real GPUs' house can be tried without a GPU: kernels in Triton's interpreter and as compiled code, torch's fallback, who is busy,
how a descriptor travels, what an error means. The rest runs on a GPU: bench/gpu_devices.py.

Triton decides at its first import whether it interprets. So the kernel tests live here, and run in a child that interprets.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: nothing of real GPUs can be tried")
triton = pytest.importorskip("triton", reason="triton is not installed: no kernel can be tried")

from linkproof.probe.devices import DeviceLost, NotPossible, NotTested  # noqa: E402
from linkproof.probe.gpu import base as gpu_base  # noqa: E402
from linkproof.probe.gpu import cards as gpu_cards  # noqa: E402
from linkproof.probe.gpu import slow_kernels  # noqa: E402
from linkproof.probe.gpu.driver import OUT_OF_MEMORY, DriverError  # noqa: E402
from linkproof.probe.gpu.memory import Door, Memory, fetch  # noqa: E402
from linkproof.probe.payload import Key, words  # noqa: E402

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
KEYS = (Key(0, 0, 0, 0), Key(0xFEDCBA9876543210, 1, 2, 3), Key((1 << 64) - 1, 63, 63, 255))
SPANS = ((0, 1), (0, 16), (1, 1), (7, 12293), (16, 8192), ((1 << 33) + 3, 100))  # first word, words
LAST = (1 << 63) - 1


def wanted(key: Key, first: int, count: int, invert: bool) -> Any:
    w: Any = words(key, first, count)
    return ~w if invert else w


# ---------------------------------------------------------------- kernels, interpreted in a child

if INTERPRETS:
    from linkproof.probe.gpu import kernels

    def compared(memory: Any, at: int, key: Key, first: int, count: int, invert: bool) -> list[int]:
        found = torch.tensor([0, LAST])
        kernels.compare(memory.data_ptr() + 8 * at, found, key.word, first, count, invert)
        return [int(n) for n in found]

    @pytest.mark.parametrize("invert", [False, True])
    @pytest.mark.parametrize("key", KEYS)
    @pytest.mark.parametrize("span", SPANS)
    def test_kernels_make_the_words_of_the_payload_and_nothing_else(
        span: tuple[int, int], key: Key, invert: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kernels, "WORDS_PER_LAUNCH", 9001)
        first, count = span
        for at in (1, 2):  # aligned to 8 and to 16 bytes, or the other way round
            memory = torch.zeros(count + 4, dtype=torch.int64)
            kernels.fill(memory.data_ptr() + 8 * at, key.word, first, count, invert)
            got = memory.numpy().view(np.uint64)
            assert np.array_equal(got[at : at + count], wanted(key, first, count, invert))
            assert not got[:at].any() and not got[at + count :].any()
            assert compared(memory, at, key, first, count, invert) == [0, LAST]

    @pytest.mark.parametrize("bit", [0, 31, 32, 63])
    @pytest.mark.parametrize("span", SPANS)
    def test_one_flipped_bit_is_counted_and_found(span: tuple[int, int], bit: int) -> None:
        first, count = span
        memory = torch.from_numpy(wanted(KEYS[1], first, count, False).view(np.int64).copy())
        for place in sorted({0, count // 2, count - 1}, reverse=True):
            memory[place] ^= -(1 << 63) if bit == 63 else 1 << bit
            assert compared(memory, 0, KEYS[1], first, count, False)[1] == first + place
        assert compared(memory, 0, KEYS[1], first, count, False) == [len({0, count // 2, count - 1}), first]

    def test_wrong_words_behind_the_end_do_not_count() -> None:
        memory = torch.from_numpy(wanted(KEYS[1], 0, 5000, False).view(np.int64).copy())
        memory[4321:] = 0
        assert compared(memory, 0, KEYS[1], 0, 4321, False) == [0, LAST]
        assert compared(memory, 0, KEYS[1], 0, 5000, False) == [5000 - 4321, 4321]

    @pytest.mark.parametrize("width_B", [4, 16])
    @pytest.mark.parametrize("size_B", [1, 3, 4, 15, 16, 17, 255, 4096, 16387, 70001])
    def test_bytes_are_carried_from_and_to_any_address(width_B: int, size_B: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernels, "BYTES_PER_LAUNCH", 1 << 15)
        for to, source in ((0, 0), (4, 4), (1, 1), (1, 2), (4, 8), (3, 15)):
            a, b = torch.randint(0, 256, (size_B + 64,), dtype=torch.uint8), torch.zeros(size_B + 64, dtype=torch.uint8)
            source, to = source - a.data_ptr() % 16 + 16, to - b.data_ptr() % 16 + 16
            kernels.carry(b.data_ptr() + to, a.data_ptr() + source, size_B, width_B)
            assert torch.equal(b[to : to + size_B], a[source : source + size_B])
            assert not b[:to].any() and not b[to + size_B :].any()

    def test_additions_add_up() -> None:
        for times in (0, 1, 1000, 1031):
            word = torch.zeros(2, dtype=torch.int32)
            kernels.add(word.data_ptr(), times)
            assert word.tolist() == [times, 0]

else:

    def test_the_kernels_in_the_interpreter() -> None:
        """The tests above, in a child; pytest fails there too if it finds none."""
        env = {**os.environ, "TRITON_INTERPRET": "1"}
        argv = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "payload or flipped or behind or carried or additions",
            __file__,
        ]
        done = subprocess.run(argv, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    COMPILE = """
import json, re
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from linkproof.probe.gpu import kernels as k
def ops(kernel, target, form, pattern, const, **types):
    types |= dict.fromkeys(const, "constexpr")
    order = [a for a in kernel.arg_names if a in types]
    source = ASTSource(kernel, {a: types[a] for a in order}, {(order.index(a),): v for a, v in const.items()})
    return re.findall(pattern, compile(source, target=target).asm[form])
words = dict.fromkeys(("key_low", "key_high", "first_low", "first_high", "count"), "i32") | {"at": "i64"}
lanes = dict(to="i64", source="i64", head="i32", units="i32", tail="i32")
block = dict(INVERT=False, ALIGN=16, BLOCK=2048, LOOPS=1)
side = dict.fromkeys(("mine", "theirs", "mine_flag", "their_flag"), "i64") | {"result": "*i32"}
side |= dict.fromkeys(("begins", "rounds", "count", "key_low", "key_high", "wait_low", "wait_high"), "i32")
out = {}
for arch in (75, 90, 120):
    see = (GPUTarget("cuda", arch, 32), "ptx", r"(?:ld|st|atom)[.](?:\\w+[.])*global[.\\w]*")
    out[f"fill {arch}"] = ops(k.fill_words, *see, block, **words)
    out[f"compare {arch}"] = ops(k.compare_words, *see, block, **words, found="*i64")
    out[f"carry16 {arch}"] = ops(k.carry_lanes, *see, dict(TYPE=k.tl.int32, ALIGN=16, BLOCK=4096), **lanes)
    out[f"carry4 {arch}"] = ops(k.carry_lanes, *see, dict(TYPE=k.tl.int32, ALIGN=4, BLOCK=4096), **lanes)
    see = (*see[:2], r"(?:st|ld)[.][.\\w]*global[.\\w]*|bar.sync")
    out[f"messages {arch}"] = ops(k.pass_messages, *see, dict(LANES=128), **side)
    out[f"add {arch}"] = ops(k.add_ones, GPUTarget("cuda", arch, 32), "ptx", r"atom[.\\w]*|red[.]global[.\\w]*", {}, at="i64", times="i32")
amd = (GPUTarget("hip", "gfx942", 64), "amdgcn", r"global_(?:load|store)_\\w+")
out["fill amd"] = ops(k.fill_words, *amd, block, **words)
out["carry16 amd"] = ops(k.carry_lanes, *amd, dict(TYPE=k.tl.int32, ALIGN=16, BLOCK=4096), **lanes)
out["carry4 amd"] = ops(k.carry_lanes, *amd, dict(TYPE=k.tl.int32, ALIGN=4, BLOCK=4096), **lanes)
print(json.dumps(out))
"""

    def test_compiled_kernels_move_as_many_bytes_at_a_time_as_their_mode_says(tmp_path: Path) -> None:
        """Triton compiles without a GPU. 4 bytes must not be joined to 16, 16 must not be split, a flag must be released after its data."""
        env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        ops: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
        for arch in (75, 90, 120):
            assert "st.global.v2.b64" in ops[f"fill {arch}"]
            assert "ld.global.v2.b64" in ops[f"compare {arch}"]
            wide = set(ops[f"carry16 {arch}"]) - {"ld.global.b8", "st.global.b8"}  # the bytes before and behind
            narrow = set(ops[f"carry4 {arch}"]) - {"ld.global.b8", "st.global.b8"}
            assert wide == {"ld.global.v4.b32", "st.global.v4.b32"} and narrow == {"ld.global.b32", "st.global.b32"}
            order = ops[f"messages {arch}"]
            release = order.index("st.release.sys.global.u32")
            assert order[release - 2 : release] == ["st.global.b64", "bar.sync"], order
            assert "ld.acquire.sys.global.u32" in order and "ld.volatile.global.b64" in order
            assert any(".sys" in op for op in ops[f"add {arch}"])
        assert "global_store_dwordx4" in ops["fill amd"] and "global_store_dwordx4" in ops["carry16 amd"]
        assert set(ops["carry4 amd"]) <= {"global_load_dword", "global_store_dword", "global_load_ubyte", "global_store_byte"}

# ---------------------------------------------------------------- without Triton


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("key", KEYS)
def test_torch_alone_makes_and_compares_the_same_words(key: Key, invert: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_kernels, "CHUNK_WORDS", 1000)
    for first, count in SPANS:
        memory = torch.zeros(count, dtype=torch.int64)
        slow_kernels.fill(memory, key.word, first, invert)
        assert np.array_equal(memory.numpy().view(np.uint64), wanted(key, first, count, invert))
        assert slow_kernels.compare(memory, key.word, first, invert) == (0, -1)
        memory[count - 1] ^= 1
        memory[count // 2] ^= 2
        assert slow_kernels.compare(memory, key.word, first, invert) == (len({count - 1, count // 2}), first + count // 2)


# ---------------------------------------------------------------- who is busy


class FakeNvml(types.ModuleType):
    class NVMLError(Exception):
        pass

    def __init__(self, processes: list[tuple[int, int | None]], used_B: int) -> None:
        super().__init__("pynvml")
        self.processes, self.used_B = processes, used_B

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index == 1:
            raise self.NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetPciInfo(self, handle: int) -> Any:
        return types.SimpleNamespace(busId=b"00000000:4B:00.0")

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> Any:
        return [types.SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self.processes]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return types.SimpleNamespace(used=self.used_B)


GiB = 1 << 30


@pytest.mark.parametrize(
    ("processes", "used_B", "told"),
    [
        ([], GiB // 2, ""),
        ([(os.getpid(), 4 * GiB)], 5 * GiB, ""),
        ([(1 << 30, 4 * GiB)], 5 * GiB, f"process (pid {1 << 30}), 4.0 GiB"),
        ([(1 << 30, None)], 60 * GiB, f"process (pid {1 << 30})"),
        ([], 60 * GiB, "hidden process, 60.0 GiB"),
    ],
)
def test_others_on_the_gpu_are_told_and_we_are_not(
    monkeypatch: pytest.MonkeyPatch, processes: list[tuple[int, int | None]], used_B: int, told: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(processes, used_B))
    assert gpu_cards.busy() == {"0000:4b:00.0": told}


def test_without_nvml_nobody_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_cards.busy() == {}


def test_a_child_of_ours_is_ours_and_a_grandchild_is_not_taken_for_one() -> None:
    other = subprocess.Popen(["sleep", "30"])
    try:
        assert gpu_cards.ours(os.getpid()) and gpu_cards.ours(os.getppid())
        assert not gpu_cards.ours(other.pid)
    finally:
        other.kill()
        other.wait()
    code = "import os, sys; from linkproof.probe.gpu.cards import ours; print(ours(int(sys.argv[1])))"
    sibling = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        seen = subprocess.run([sys.executable, "-c", code, str(sibling.pid)], capture_output=True, text=True, check=True)
        assert seen.stdout.strip() == "True"
    finally:
        sibling.communicate(b"\n")


# ---------------------------------------------------------------- between processes


def test_a_descriptor_travels_to_another_process_until_its_door_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("through the door")
    door = Door(os.open(path, os.O_RDONLY))
    code = "import os, sys; from linkproof.probe.gpu.memory import fetch; print(os.pread(fetch(sys.argv[1]), 99, 0).decode())"
    for _ in range(2):
        seen = subprocess.run([sys.executable, "-c", code, door.name], capture_output=True, text=True, check=True)
        assert seen.stdout.strip() == "through the door"
    door.close()
    with pytest.raises(OSError):
        fetch(door.name)


def test_memory_is_given_back_once_and_a_dead_driver_does_not_matter() -> None:
    given = []

    def give() -> None:
        given.append(1)
        raise DriverError("cuMemFree", 700, "an illegal memory access was encountered")

    memory = Memory(0, 16, 4096, "ipc", give)
    memory.free()
    memory.free()
    assert given == [1]


# ---------------------------------------------------------------- errors


class FakeDriver:
    def __init__(self, broken: bool) -> None:
        self.contexts, self.broken = {0: None}, broken

    def enter(self, gpu: int) -> None: ...
    def finish(self) -> None:
        if self.broken:
            raise DriverError("cuCtxSynchronize", 700, "an illegal memory access was encountered")


@pytest.mark.parametrize(
    ("error", "broken", "kind"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), True, DeviceLost),
        (RuntimeError("CUDA error: peer mapping resources exhausted"), False, NotPossible),
        (RuntimeError("Triton Error [CUDA]: out of memory"), False, MemoryError),
        (RuntimeError("The size of tensor a must match"), True, RuntimeError),
        (DriverError("cuMemCreate", OUT_OF_MEMORY, "out of memory"), False, MemoryError),
        (DriverError("cuMemCreate", 801, "operation not supported"), False, NotPossible),
        (DriverError("cuMemCreate", 801, "operation not supported"), True, DeviceLost),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate"), False, MemoryError),
        (triton.runtime.errors.OutOfResources(1, 2, "shared memory"), False, NotTested),
    ],
)
def test_an_error_means_a_lost_gpu_only_if_the_driver_says_so_again(error: Exception, broken: bool, kind: type[Exception]) -> None:
    gpus = gpu_base.Gpus.__new__(gpu_base.Gpus)
    gpus.driver = FakeDriver(broken)  # type: ignore[assignment]
    assert type(gpus.meaning(error)) is kind


def test_importing_starts_nothing_and_no_gpu_is_not_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import linkproof.probe.gpu.cuda, sys, torch; assert not torch.cuda.is_initialized(); assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

    def no() -> None:
        raise RuntimeError("No CUDA GPUs are available")

    monkeypatch.setattr(torch.cuda, "init", no)
    with pytest.raises(NotTested):
        gpu_base.Gpus()
