"""A sum over ranks is told from one that is none: never a false alarm from rounding, whatever the type, the order and the number of ranks."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="torch is not installed: there is no tensor")

import torch

from linkproof.guard.ranks import judge as ranks_judge
from linkproof.guard.ranks import sum as ranks_sum
from linkproof.guard.ranks.judge import CODES, Found, Made, compare, minority
from linkproof.guard.ranks.sum import BLOCKS, Sum, judge, project

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def parts_of(ranks: int, numel: int, dtype: torch.dtype, seed: int = 0, spread: float = 0.0) -> list[torch.Tensor]:
    """spread: decades by which the ranks' parts differ in size."""
    random = torch.Generator().manual_seed(seed)
    return [(torch.randn(numel, generator=random) * 10.0 ** (spread * i)).to(dtype) for i in range(ranks)]


def added(parts: list[torch.Tensor], order: list[int] | None = None) -> torch.Tensor:
    """Rounded after each addition: the worst that an adder of this type may do."""
    first, *others = order or range(len(parts))
    total = parts[first].clone()
    for i in others:
        total = total + parts[i]
    return total


def verdict(parts: list[torch.Tensor], results: list[torch.Tensor]) -> Sum:
    put_in = np.stack([project(p) for p in parts])
    return judge(put_in, np.stack([project(r)[0] for r in results]), parts[0].dtype, parts[0].numel())


if INTERPRETS:
    from linkproof.guard.ranks import kernel as ranks_kernel
    from linkproof.guard.ranks import session as ranks_session

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])  # numpy, which interprets, has no bfloat16
    @pytest.mark.parametrize("numel", [1, 9, 64, 1000, 40000])
    def test_the_kernel_gives_the_numbers_of_the_host(numel: int, dtype: torch.dtype) -> None:
        t = parts_of(1, numel, dtype)[0]
        count = 2 * BLOCKS * ranks_kernel.programs(numel)
        out = torch.full((count + 2,), 7.0, dtype=torch.float64)
        ranks_kernel.launch(t.data_ptr(), out.data_ptr() + 8, numel, dtype)
        got = out[1:-1].reshape(BLOCKS, -1, 2).sum(1).T.numpy()
        np.testing.assert_allclose(got, project(t), rtol=1e-12, atol=1e-12 * float(t.double().abs().sum()))
        assert out[0] == out[-1] == 7.0

    def test_the_projector_of_a_gpu_gives_the_numbers_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
        monkeypatch.setattr(ranks_session.Projector, "_triton", lambda self, t: True)
        p = ranks_session.Projector()
        p._kernel, p._ring = ranks_kernel, torch.zeros(1 << 10, dtype=torch.float64)
        tensors = [torch.randn(64), torch.randn(8, 16).t(), torch.randn(3)]
        readings = [p.read(t) for t in tensors]
        for t, reading in zip(tensors, readings, strict=True):
            np.testing.assert_allclose(p.value(reading), project(t), rtol=1e-12, atol=1e-9)
        monkeypatch.setattr(ranks_kernel, "launch", lambda *_: None)
        assert np.isnan(p.value(p.read(tensors[0]))).all()  # numbers that never came are no numbers

else:

    def test_the_kernel_in_the_interpreter() -> None:
        """The tests above, in a child: Triton decides at its first import whether it interprets."""
        pytest.importorskip("triton", reason="triton is not installed: the kernel cannot be tried")
        argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "of_the_host", str(Path(__file__))]
        done = subprocess.run(argv, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "16 passed" in done.stdout, done.stdout + done.stderr

    COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from linkproof.guard.ranks import kernel as k
types = {"at": "i64", "out": "i64", "numel": "i32", "size": "i32", "TYPE": "constexpr", "ALIGN": "constexpr", "LANES": "constexpr"}
for target in (GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)):
    for dtype, kind in k.TYPES.items():
        compile(ASTSource(k.project_block, types, {(4,): kind, (5,): dtype.itemsize, (6,): k.LANES}), target=target)
        print("built")
"""

    def test_the_kernel_compiles_for_every_type_and_both_makes(tmp_path: Path) -> None:
        pytest.importorskip("triton", reason="triton is not installed: the kernel cannot be tried")
        env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout.split() == ["built"] * 8, done.stderr


@settings(max_examples=150, deadline=None)
@given(
    st.integers(2, 16),
    st.sampled_from([1, 7, 8, 64, 257, 4096]),
    st.sampled_from(DTYPES),
    st.integers(0, 1 << 30),
    st.sampled_from([0.0, 0.3, -1.0]),
    st.booleans(),
)
def test_rounding_is_never_taken_for_a_lie(ranks: int, numel: int, dtype: torch.dtype, seed: int, spread: float, cancels: bool) -> None:
    """In any order, and where the parts cancel out: the result is small, and all that is left of it is rounding."""
    parts = parts_of(ranks, numel, dtype, seed, min(spread, 3 / ranks))
    if cancels:
        parts[-1] = -added(parts[:-1])
    order = np.random.default_rng(seed).permutation(ranks).tolist()
    assert verdict(parts, [added(parts), added(parts, order)] + [added(parts)] * (ranks - 2)) == Sum(())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("numel", [64, 4096, 100_000])
def test_a_part_that_is_missing_everywhere_is_named(ranks: int, dtype: torch.dtype, numel: int) -> None:
    parts = parts_of(ranks, numel, dtype)
    lacking = added([p for i, p in enumerate(parts) if i != 1])
    assert verdict(parts, [lacking] * ranks) == Sum(tuple(range(ranks)), 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_wrong_rank_of_two_is_named(dtype: torch.dtype) -> None:
    parts = parts_of(2, 4096, dtype)
    good = added(parts)
    for bad in (torch.zeros_like(good), good.roll(1), good * 1.5, parts[1] * 3):
        assert verdict(parts, [good, bad]).wrong == (1,) and verdict(parts, [bad, good]).wrong == (0,)
    page = good.clone()
    page[512:768] = 0  # one block of sixteen
    assert verdict(parts, [good, page]).wrong == (1,)


def test_what_is_not_finite_is_judged_only_where_it_can_be() -> None:
    parts = parts_of(2, 64, torch.float16)
    good, nan = added(parts), torch.full((64,), float("nan"), dtype=torch.float16)
    assert verdict(parts, [good, nan]).wrong == (1,)
    assert verdict([parts[0], nan], [nan, nan]).wrong is None
    large = [torch.full((64,), 40000.0, dtype=torch.float16)] * 2
    assert verdict(large, [added(large)] * 2).wrong is None and torch.isinf(added(large)).all()  # rightly too large for the type


def test_the_signs_are_the_same_everywhere_and_half_of_them_are_minus() -> None:
    some = ranks_sum.signs(5000, torch.device("cpu"))
    assert some.shape == (BLOCKS, 5000) and abs(float(some.double().mean())) < 0.02
    assert not torch.equal(some[0], some[1]) and set(some.unique().tolist()) == {-1, 1}


# ---------------------------------------------------------------- reports compared


def report(*rows: list[int]) -> Any:
    return np.array([word for row in rows for word in row], np.int64)


PLAIN = Made(11, 0, False, torch.int64, 4)
GATHER = Made(12, 2, False, torch.float32, 4)


def test_results_that_are_equal_are_no_finding() -> None:
    assert compare([PLAIN, GATHER], [report([11, 5, 0], [12, 7, 7, 0, 8, 0]), report([11, 5, 0], [12, 8, 7, 0, 8, 0])]) == []


def test_most_ranks_are_believed_and_two_are_not_told_apart() -> None:
    assert compare([PLAIN], [report([11, 5, 0]), report([11, 6, 1]), report([11, 5, 0])]) == [Found(0, "zeros", (1,), (5, 6, 5))]
    assert compare([PLAIN], [report([11, 5, 0]), report([11, 6, 0])]) == [Found(0, "changed", (), (5, 6))]


def test_a_piece_that_one_rank_got_wrong_is_that_ranks_and_one_that_all_got_wrong_is_its_senders() -> None:
    good, stale = [12, 7, 7, 0, 8, 0], CODES.index("stale")
    assert compare([GATHER], [report(good), report([12, 8, 9, stale, 8, 0])]) == [Found(0, "stale", (1,))]
    assert compare([GATHER], [report([12, 7, 9, 0, 8, 0]), report([12, 8, 9, 0, 8, 0])]) == [Found(0, "changed", (0,))]


def test_other_collectives_are_told_and_nothing_behind_them_is_judged() -> None:
    found = compare([PLAIN, PLAIN], [report([11, 5, 0], [11, 6, 0]), report([11, 5, 0], [13, 9, 0]), report([11, 5, 0], [11, 6, 0])])
    assert found == [Found(1, "order", (1,))]
    assert compare([PLAIN], [report([11, 5, 0]), report([11, 5, 0]), report([11, 5, 0], [11, 6, 0])]) == [Found(1, "order", (2,))]
    assert compare([PLAIN], [report([11, 5, 0]), report([11, 5])])[0].kind == "order"


def test_minority() -> None:
    assert minority([1, 1, 2, 1]) == (2,) and minority([1, 2]) == () and minority([3, 3]) == () and minority([1, 2, 3]) == ()
    assert ranks_judge.CODES[0] == "changed"
