"""The digest tells every change, on the host and on a GPU alike; what happened is named from bytes and from digests."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linkproof.guard import classify
from linkproof.guard.digest import MASK, content, content_of, digest, key, of_zeros
from linkproof.probe.devices import U8
from linkproof.probe.faults import Fault, deliver

pytest.importorskip("torch", reason="torch is not installed: there is no tensor")

import torch

from linkproof.guard import reader
from linkproof.guard.reader import host_bytes

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
SIZES_B = (0, 1, 7, 8, 9, 63, 256, 4096, 4099, 8192, 1 << 17)


def noise(size_B: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, size_B, dtype=np.uint8)


def plainly(data: bytes) -> int:
    """The definition in digest.py, word by word."""
    total = 0
    for i in range(-(-len(data) // 8)):
        z = int.from_bytes(data[8 * i : 8 * i + 8], "little") ^ (i + 1) * 0x9E3779B97F4A7C15 & MASK
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        total += z ^ z >> 31
    return total & MASK


if INTERPRETS:
    from types import SimpleNamespace

    from linkproof.guard import digest_kernel
    from linkproof.guard.copies import Link
    from linkproof.guard.hops import Carried
    from linkproof.guard.policy import MODES
    from linkproof.guard.session import Session

    @pytest.mark.parametrize("most", [1, 3, 1024])
    @pytest.mark.parametrize("size_B", SIZES_B)
    def test_the_kernel_gives_the_number_of_the_host(size_B: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(digest_kernel, "MOST_PROGRAMS", most)
        data = noise(size_B + 16, size_B)
        t = torch.from_numpy(data)
        n = digest_kernel.programs(size_B)
        out = torch.full((4, n + 2), -1, dtype=torch.int64)
        keys = ((0, 0), (8, MASK), (0, 0x0123456789ABCDEF))
        whole, rest = divmod(size_B, 8)
        rows = [(t.data_ptr() + at, out[i].data_ptr() + 8, whole, rest, key_, n) for i, (at, key_) in enumerate(keys)]
        rows.append((t.data_ptr(), out[3].data_ptr() + 8, 0, 0, 5, 1))  # a smaller one in the same launch
        table = torch.from_numpy(np.array(rows, np.uint64).view(np.int64))
        digest_kernel.launch(table.data_ptr(), 4, n, None, 0)
        words = out.numpy().view(np.uint64)
        for i, (at, key_) in enumerate(keys):
            assert int(np.add.reduce(words[i, 1:-1])) & MASK == content(data[at : at + size_B]) + key_ & MASK
        assert (words[:, 0] == MASK).all() and (words[:, -1] == MASK).all()  # and nothing else is written
        assert words[3, 1] == 5 and (words[3, 2:] == MASK).all()

    class Stream:
        waited = 0

        def synchronize(self) -> None:
            Stream.waited += 1

    def on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # the index of a CPU
        monkeypatch.setattr(torch.cuda, "current_stream", Stream)
        monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: 7, raising=False)

    def test_the_reader_of_a_gpu_gives_the_number_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
        """All but the GPU itself: memory of the host, a kernel that is interpreted."""
        on_the_host(monkeypatch)
        monkeypatch.setattr(reader, "RING_WORDS", 64)
        r = reader.Reader()
        r._pin(digest_kernel, pin=False)
        t = torch.from_numpy(noise(4096).copy()).view(torch.bfloat16)
        forms = [t, t[1:], t[3:1001:2], t.reshape(32, 64).t(), t[7], t[:0], t.view(torch.float32), t.view(torch.int64), t[4:9]]
        keys = list(range(99, 99 + len(forms)))
        sizes_B = [x.nbytes for x in forms]
        readings = [r._launch(forms[:5], keys[:5], tuple(sizes_B[:5]))]
        readings += [r._launch([x], keys[5 + i : 6 + i], (x.nbytes,)) for i, x in enumerate(forms[5:])]
        r.wait()
        values = [value for some in readings for value in r.values(some)]
        assert values == [digest(content(host_bytes(x)), 99 + i) for i, x in enumerate(forms)]
        assert Stream.waited and len(set(values)) == len(forms)

    def test_tensors_of_the_same_sizes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
        """What is worked out once for their sizes is used at any place of the ring, for any addresses and keys."""
        on_the_host(monkeypatch)
        r = reader.Reader()
        r._pin(digest_kernel, pin=False)
        for turn in range(3):
            readings, right = [], []
            for i in range(4):
                tensors = [torch.from_numpy(noise(n, 10 * turn + i).copy()) for n in (4096, 40000, 8, 13)]
                keys = [key(turn, i, t.nbytes) for t in tensors]
                readings.append(r._launch(tensors, keys, tuple(t.nbytes for t in tensors)))
                right += [digest(content(host_bytes(t)), k) for t, k in zip(tensors, keys, strict=True)]
            r.wait()
            assert [value for some in readings for value in r.values(some)] == right and len(r._forms) == 1
            r.reset()

    def test_a_full_ring_is_compared_and_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
        """More hops in one hook than there is room for: none is lost, and the one that lied is found."""
        on_the_host(monkeypatch)
        monkeypatch.setattr(reader, "RING_WORDS", 8)
        monkeypatch.setattr(reader.Reader, "read_all", reader.Reader._launch)
        r = reader.Reader()
        r._pin(digest_kernel, pin=False)
        monkeypatch.setattr(reader.Reader, "has_room", lambda self, _, sizes_B: self._next + 2 * len(sizes_B) <= 8)
        s = Session(SimpleNamespace(mode=MODES["observe"]))  # type: ignore[arg-type]
        s.ends.reader, link = r, Link(torch.device("cpu"), torch.device("cpu"))
        tensors = [torch.from_numpy(noise(64, i).copy()) for i in range(11)]
        copies = [t.clone() for t in tensors]
        copies[6][3] ^= 1
        carried = [Carried(link, i, t, c, 64, False) for i, (t, c) in enumerate(zip(tensors, copies, strict=True))]
        s.strict = False
        s._read(carried)
        assert [b.hop.number for b in s.settle()] == [6]

    def test_another_stream_is_waited_for_before_the_number_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
        """What was carried on one stream and is read on another."""
        on_the_host(monkeypatch)
        waited: list[int | None] = []
        monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
        r = reader.Reader()
        r._pin(digest_kernel, pin=False)
        t = torch.ones(8)
        for used in ((), ((None, 7),), ((1, 8),), ((None, 7), (None, 8))):
            r.used = set(used)
            before = len(waited)
            r._launch([t, t], [1, 2], (32, 32))
            assert len(waited) - before == ((None, 8) in r.used)

    def test_numbers_that_never_came_are_not_equal(monkeypatch: pytest.MonkeyPatch) -> None:
        on_the_host(monkeypatch)
        monkeypatch.setattr(digest_kernel, "launch", lambda *_: None)
        r = reader.Reader()
        r._pin(digest_kernel, pin=False)
        t = torch.ones(8)
        assert r.value(r._launch([t], [1], (32,))) != r.value(r._launch([t], [1], (32,)))

else:

    def test_the_kernel_in_the_interpreter() -> None:
        """The tests above, in a child: Triton decides at its first import whether it interprets."""
        pytest.importorskip("triton", reason="triton is not installed: the kernel cannot be tried")
        argv = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "number_of_the_host or never_came or full_ring or told_apart",
            __file__,
        ]
        done = subprocess.run(argv, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    COMPILE = """
import contextlib
import json
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from linkproof.guard import digest_kernel as k
types = {"table": "i64", "BLOCK": "constexpr", "ROW": "constexpr"}
out = {}
for name, target in (("90", GPUTarget("cuda", 90, 32)), ("amd", GPUTarget("hip", "gfx942", 64))):
    asm = compile(ASTSource(k.sum_words, types, {(1,): k.BLOCK, (2,): k.ROW}), target=target).asm
    out[name] = asm["ptx" if name == "90" else "amdgcn"]
print(json.dumps(out))
"""

    def test_the_kernel_compiles_for_both_makes_and_needs_no_atomics(tmp_path: Path) -> None:
        pytest.importorskip("triton", reason="triton is not installed: the kernel cannot be tried")
        env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        asm: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
        assert "st.global.b64" in asm["90"] and "atom." not in asm["90"]
        assert "global_store_dwordx2" in asm["amd"] and "global_atomic" not in asm["amd"]


# ---------------------------------------------------------------- the number

BYTES = st.binary(min_size=1, max_size=400)


@given(BYTES)
def test_it_is_what_its_definition_says(data: bytes) -> None:
    assert content(np.frombuffer(data, np.uint8)) == plainly(data)


@pytest.mark.parametrize("size_B", SIZES_B)
def test_chunks_make_no_difference(size_B: int) -> None:
    data = noise(size_B)
    assert content(data) == plainly(data.tobytes())


@given(BYTES, st.data())
@settings(max_examples=300)
def test_any_flip_swap_roll_or_cut_changes_it(data: bytes, draw: st.DataObject) -> None:
    x = np.frombuffer(data, np.uint8)
    before, n = content(x), len(x)
    i, j = (draw.draw(st.integers(0, n - 1)) for _ in range(2))
    flipped, swapped, cut = x.copy(), x.copy(), x.copy()
    flipped[i] ^= 1 << draw.draw(st.integers(0, 7))
    swapped[[i, j]] = x[[j, i]]
    cut[i:] = 0
    rolled = np.roll(x, draw.draw(st.integers(1, n)))
    for y in (flipped, swapped, cut, rolled, np.zeros_like(x)):
        assert (content(y) == before) == np.array_equal(x, y)


@given(st.integers(0, 63), st.integers(1, 60), st.integers(0, 3))
def test_the_same_bit_of_two_words_does_not_cancel(bit: int, words: int, seed: int) -> None:
    """Weights alone would miss bit 63: 2**63 times two odd numbers is nothing modulo 2**64."""
    x = noise(8 * (words + 1), seed)
    y = x.copy()
    view = y.view(np.uint64)
    view[0] ^= np.uint64(1 << bit)
    view[words] ^= np.uint64(1 << bit)
    assert content(x) != content(y)


def test_words_and_pages_that_change_places_change_it() -> None:
    x = noise(3 * 4096)
    for page in (8, 16, 256, 4096):
        y = x.copy()
        y[:page], y[page : 2 * page] = x[page : 2 * page], x[:page]
        assert content(x) != content(y)
    assert content(x) != content(x[::-1].copy())


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 20), st.integers(0, 1 << 33))
def test_another_step_hop_or_size_is_another_number(step: int, hop: int, size_B: int) -> None:
    keys = {key(step, hop, size_B), key(step + 1, hop, size_B), key(step, hop + 1, size_B), key(step, hop, size_B + 1)}
    assert len(keys) == 4
    for k in keys:
        assert content_of(digest(of_zeros(64), k), k) == of_zeros(64)


@pytest.mark.parametrize("size_B", SIZES_B)
def test_zeros_are_never_zero(size_B: int) -> None:
    assert digest(of_zeros(size_B), key(0, 0, size_B)) != 0
    assert digest(0, 0) != 0 != digest(1, MASK)
    assert size_B == 0 or of_zeros(size_B) != 0


# ---------------------------------------------------------------- tensors

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int64, torch.bool]
DTYPES += [torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_of_any_tensor_are_read_in_logical_order(dtype: Any) -> None:
    raw = torch.from_numpy(noise(6 * 10 * dtype.itemsize) & 1)
    t = raw.view(dtype).reshape(6, 10)
    for view in (t, t.t(), t[::2, 1:9:3], t[2, 3], t[:0], t.unsqueeze(0).expand(2, 6, 10)):
        assert host_bytes(view).tobytes() == view.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert content(host_bytes(view)) == content(host_bytes(view.clone(memory_format=torch.contiguous_format)))


def test_nan_is_a_pattern_like_any_other() -> None:
    a, b = torch.full((9,), float("nan")), torch.full((9,), float("nan"))
    assert content(host_bytes(a)) == content(host_bytes(b))
    b.view(torch.int32)[3] ^= 1  # another NaN
    assert content(host_bytes(a)) != content(host_bytes(b))


# ---------------------------------------------------------------- what happened

SENT, BEFORE = noise(16384, 1), noise(16384, 2)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault("zero"), "zeros"),
        (Fault("stale"), "stale"),
        (Fault("shift", 16), "shifted"),
        (Fault("shift", -2), "shifted"),
        (Fault("shift", 512), "shifted"),
        (Fault("page_swap"), "pages"),
        (Fault("tail"), "tail"),
        (Fault("tail", 100), "tail"),
        (Fault("bit"), "bits"),
        (Fault("rare", 1e-2), "bits"),
    ],
    ids=str,
)
def test_each_way_to_lie_has_its_name(fault: Fault, kind: str) -> None:
    for seed in range(5):
        memory = noise(len(SENT), 9)
        deliver(fault, memory, 0, SENT, BEFORE, np.random.default_rng(seed))
        damage = classify.by_bytes(SENT, memory, [content(BEFORE)])
        assert damage.kind == kind
        assert damage.bad_B == int((memory != SENT).sum()) and damage.first_bad_B == int(np.flatnonzero(memory != SENT)[0])


def test_noise_is_garbage_and_what_is_right_is_nothing() -> None:
    assert classify.by_bytes(SENT, noise(len(SENT), 7), []).kind == "garbage"
    assert classify.by_bytes(SENT, SENT.copy(), []).bad_B == 0


def test_digests_alone_tell_zeros_and_stale_data() -> None:
    assert classify.by_digest(of_zeros(64), 64, []).kind == "zeros"
    assert classify.by_digest(content(BEFORE), len(BEFORE), [content(BEFORE)]).kind == "stale"
    assert classify.by_digest(content(BEFORE), len(BEFORE), []).kind == "changed"
