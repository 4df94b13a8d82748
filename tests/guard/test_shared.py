"""A copy is served again as long as nobody has written into it or its source; small sources are held for it, large ones are not."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: there is no tensor")

import torch

from linkproof.guard import copies, shared
from linkproof.guard.copies import Link, OnHost, from_host
from linkproof.guard.shared import HELD_B, Shared

CPU = torch.device("cpu")


def carried(s: Shared, t: torch.Tensor) -> torch.Tensor:
    copy = t.clone()
    s.add((id(t), CPU), t, copy, t.nbytes)
    return copy


def test_the_same_tensor_gets_the_same_copy_and_another_gets_none() -> None:
    s, t, other = Shared(), torch.ones(4), torch.ones(4)
    copy = carried(s, t)
    assert s.copy_of((id(t), CPU), t) is copy
    assert s.copy_of((id(other), CPU), other) is None and s.copy_of((id(t), torch.device("meta")), t) is None
    s.forget()
    assert s.copy_of((id(t), CPU), t) is None


@pytest.mark.parametrize("end", ["source", "copy"])
@pytest.mark.parametrize("twice", [False, True])
def test_nobody_gets_a_copy_that_was_written_into(end: str, twice: bool) -> None:
    s, t = Shared(), torch.ones(4)
    copy = carried(s, t)
    if twice:
        assert s.copy_of((id(t), CPU), t) is copy
    (copy if end == "copy" else t).add_(1)
    assert s.copy_of((id(t), CPU), t) is None
    assert s.written == (twice and end == "copy")  # two have got what one has written into
    carried(s, t)  # in its place
    assert s.written == (twice and end == "copy")


def test_what_we_have_mended_is_served_again() -> None:
    s, t = Shared(), torch.ones(4)
    copy = carried(s, t)
    copy.copy_(t)
    s.mended(copy)
    assert s.copy_of((id(t), CPU), t) is copy and not s.written


@pytest.mark.parametrize("held", [False, True])
def test_small_sources_are_held_and_large_ones_are_not(held: bool) -> None:
    s, t = Shared(), torch.ones(HELD_B // 4 + (0 if held else 1))
    copy = carried(s, t)
    assert s.copy_of((id(t), CPU), t) is copy
    gone, place = weakref.ref(t), (id(t), CPU)
    del t
    gc.collect()
    assert (gone() is not None) == held
    other = torch.ones(4)
    assert s.copy_of(place, other) is None  # should it get the number of the one that is gone
    copy.add_(1)
    assert s.written  # though its source is gone
    s.forget()
    gc.collect()
    assert gone() is None and not s.written


def test_no_more_is_held_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "HELD_SUM_B", 1000)
    s, tensors = Shared(), [torch.ones(100) for _ in range(10)]
    for t in tensors:
        carried(s, t)
    watched = [weakref.ref(t) for t in tensors]
    tensors.clear()
    del t
    gc.collect()
    assert sum(w() is not None for w in watched) == 3  # the one that goes past the sum is the last


NAMED: dict[str, Any] = {"mask": None, "flag": True, "cache": object()}


def remembered(s: Shared) -> tuple[dict[str, Any], list[torch.Tensor]]:
    cos, sin, ids = torch.ones(2), torch.ones(3), torch.ones(4)
    made = [carried(s, t) for t in (cos, sin, ids)]
    named = {**NAMED, "position_embeddings": (cos, sin), "position_ids": ids}
    out = {**NAMED, "position_embeddings": (made[0], made[1]), "position_ids": made[2]}
    s.remember(named, out, CPU, ("cache",))
    return named, made


@torch.no_grad()
def test_all_names_are_served_at_once_until_one_is_another() -> None:
    s = Shared()
    named, made = remembered(s)
    last = s.again(dict(named), CPU)
    assert last is not None and last.out["position_embeddings"][1] is made[1] and not s.written
    for change in ({"flag": False}, {"position_ids": torch.ones(4)}, {"more": 1}):
        assert s.again({**named, **change}, CPU) is None
    assert s.again({k: v for k, v in named.items() if k != "flag"}, CPU) is None
    assert s.again(named, torch.device("meta")) is None
    with torch.enable_grad():
        assert s.again(named, CPU) is None
    made[2].add_(1)
    assert s.again(named, CPU) is None and s.written


@torch.no_grad()
def test_names_are_not_served_when_a_source_was_written_into_or_something_could_change_unseen() -> None:
    s = Shared()
    named, _ = remembered(s)
    named["position_embeddings"][0].add_(1)
    assert s.again(named, CPU) is None and not s.written
    s.forget()
    for more in (torch.ones(1), [torch.ones(1)], {"a": torch.ones(1)}):  # not carried by us; a list, a dictionary of somebody's
        named = {**NAMED, "more": more}
        s.remember(named, dict(named), CPU, ("cache",))
        assert s.again(named, CPU) is None


@pytest.mark.parametrize("same", [True, False])
def test_another_stream_waits_for_what_is_brought_to_the_host_and_the_same_one_need_not(
    same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[Any] = []
    stream = SimpleNamespace(wait_event=waited.append)
    monkeypatch.setattr(copies, "stream_of", lambda _: stream)
    monkeypatch.setattr(copies, "to", lambda t, dst, non_blocking: (t, dst.type, non_blocking))
    host = OnHost(torch.ones(1), "done", stream if same else SimpleNamespace())
    link: Any = SimpleNamespace(dst=SimpleNamespace(type="cuda"))
    assert from_host(host, link) == (host.copy, "cuda", True)
    assert waited == ([] if same else ["done"])


def test_a_copy_on_the_host_is_waited_for_by_what_is_no_cuda_device() -> None:
    waited: list[int] = []
    host = OnHost(torch.ones(1), SimpleNamespace(synchronize=lambda: waited.append(1)), SimpleNamespace())
    assert torch.equal(from_host(host, Link(CPU, CPU)), host.copy) and waited == [1]
