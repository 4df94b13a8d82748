"""Of any hops that are read in one go, those are named whose ends differ, and no others: whoever shares a source, wherever they go."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="torch is not installed: there is no tensor")

import torch

from linkproof.guard.copies import Link
from linkproof.guard.digest import content_of, step_key
from linkproof.guard.ends import Ends
from linkproof.guard.hops import Carried
from linkproof.guard.layout import KEPT, Layouts
from linkproof.sim.torch_device import install

GPUS = 3
SIZES = (1, 8, 9)
HOP = st.tuples(st.integers(0, 3), st.integers(0, GPUS - 1), st.integers(1, 3), st.booleans())  # source, to, numbers passed over, lies


def links() -> list[list[Link]]:
    install(GPUS)
    gpus = [torch.device("vgpu", i) for i in range(GPUS)]
    return [[Link(a, b) for b in gpus] for a in gpus]


def hops(drawn: list[Any], all_links: list[list[Link]], seed: int) -> list[Carried]:
    g = torch.Generator().manual_seed(seed)
    sources = [torch.randint(0, 255, (SIZES[i % len(SIZES)],), generator=g, dtype=torch.uint8).to(f"vgpu:{i % GPUS}") for i in range(4)]
    some, number = [], seed
    for at, to, step, lies in drawn:
        copy = (sources[at].cpu() + lies).to(f"vgpu:{to}")
        number += step
        some.append(Carried(all_links[at % GPUS][to], number, sources[at], copy, sources[at].nbytes, False))
    return some


@given(st.lists(HOP, min_size=1, max_size=12), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_those_that_differ_are_named_and_no_others(drawn: list[Any], seed: int) -> None:
    all_links, ends = links(), Ends()
    for turn in (0, 1, 1):  # the first time, once more in other numbers, and in the same
        some = hops(drawn, all_links, seed + turn)
        layout = ends.read(some, step_key(turn), True)
        lies = ends.compare()
        assert [lie.hop.number for lie in lies] == [c.number for c, d in zip(some, drawn, strict=True) if d[3]]
        for lie in lies:
            assert content_of(lie.hop.sent, lie.hop.key) != lie.content
        assert sum(n for _, n, _ in layout.counts) == len(some) and sum(n for *_, n in layout.counts) == sum(c.size_B for c in some)


def test_what_was_sent_before_is_remembered_for_each_gpu_and_size() -> None:
    all_links, ends = links(), Ends()
    first, second = hops([(0, 1, 1, False)], all_links, 1), hops([(0, 1, 1, False)], all_links, 2)
    for some in (first, second):
        ends.read(some, 5, True)
        assert not ends.compare()
    stale = [second[0]._replace(copy=first[0].copy, number=99)]
    ends.read(stale, 6, True)
    (lie,) = ends.compare()
    assert lie.content in lie.before and len(lie.before) == 2
    assert not ends.before(torch.device("vgpu", 2), first[0].size_B) and not ends.before(torch.device("vgpu", 1), 77)


def test_no_more_layouts_are_kept_than_said() -> None:
    all_links, layouts = links(), Layouts()
    some = hops([(0, 1, 1, False)], all_links, 1)
    kept = layouts.of(some)
    assert layouts.of(some) is kept
    for number in range(KEPT + 5):
        layouts.of([some[0]._replace(number=number)])
    assert len(layouts._known) <= KEPT
