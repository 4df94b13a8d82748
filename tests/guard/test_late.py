"""Hops that are read at the end of the forward: a lie is found there, and whoever writes into what has crossed accuses nobody."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: no model can be guarded")
pytest.importorskip("accelerate", reason="accelerate is not installed: no model can be split")
pytest.importorskip("transformers", reason="transformers is not installed: there is no model")

import accelerate
import torch
from split_model import FABRIC, split, tokens_of

from linkproof.guard import session as sessions
from linkproof.guard.copies import Link, on_host, transport
from linkproof.guard.hops import Carried
from linkproof.guard.reader import Reader
from linkproof.guard.session import Session
from linkproof.guard.watch import guard
from linkproof.probe.faults import Fault

ZERO = Fault("zero", pairs=("0->1",))
LINK = "vgpu:0 -> vgpu:1"
Write = Callable[[Any], None] | None


class Two(torch.nn.Module):
    """Two layers on two GPUs. after: what is done to what has crossed, by name."""

    def __init__(self, source: Write = None, copy: Write = None, given: Write = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (torch.nn.Linear(4, 4) for _ in range(3))
        self.source, self.copy, self.given = source, copy, given
        self.b.register_forward_hook(self._used)

    def _used(self, module: Any, args: Any, out: Any) -> None:
        if self.copy is not None:
            self.copy(args[0])

    def forward(self, x: Any) -> Any:
        sent = self.a(x)
        out = self.b(sent)
        if self.source is not None:
            self.source(sent)
        if self.given is not None:
            self.given(x)
        return self.c(out)


def by_torch(t: Any) -> None:
    t.add_(1)


def behind_its_back(t: Any) -> None:
    data = t.held.detach().numpy()
    data += 1


def two(**writes: Any) -> Any:
    model = Two(**writes).eval()
    return accelerate.dispatch_model(model, {"a": "vgpu:0", "b": "vgpu:1", "c": "vgpu:1"}, main_device="vgpu:0", force_hooks=True)


def ones() -> torch.Tensor:
    return torch.ones(2, 4).to("vgpu:0")


@pytest.fixture
def right() -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = two()(ones()).cpu()
    return out


@pytest.fixture(scope="module")
def model() -> Any:
    return split()


@pytest.fixture(scope="module")
def healthy(model: Any) -> list[list[int]]:
    return tokens_of(model)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors each call of the reader was given."""
    made: list[int] = []
    read_all = Reader.read_all

    def counted(self: Reader, what: Any, keys: Any, sizes_B: Any) -> Any:
        made.append(len(what))
        return read_all(self, what, keys, sizes_B)

    monkeypatch.setattr(Reader, "read_all", counted)
    return made


# ---------------------------------------------------------------- when it is read


def test_all_of_a_forward_is_read_at_once_on_each_gpu(model: Any, healthy: Any, readings: list[int]) -> None:
    with guard(model) as watch:
        assert tokens_of(model) == healthy
    counts = watch.metrics.counts
    assert len(readings) == 4 * counts.forwards  # four GPUs
    assert counts.hops + 4 * counts.forwards < sum(readings) < 2 * counts.hops  # every copy, and once what has gone to several
    assert not watch.events and counts.reruns == counts.mismatches == counts.unchecked == 0


@pytest.mark.parametrize(
    ("mode", "policy"), [("strict", "heal"), ("observe", "heal"), ("deferred", "raise"), ("deferred", "warn"), ("deferred", lambda e: None)]
)
def test_where_a_suspicion_cannot_be_looked_into_each_hop_is_read_when_it_is_carried(
    model: Any, mode: str, policy: Any, readings: list[int]
) -> None:
    with guard(model, mode, policy) as watch:
        tokens_of(model, new=1)
    assert len(readings) > 4 * watch.metrics.counts.forwards and not watch.reads_late


def test_gradients_and_inference_tensors_are_read_when_they_are_carried(readings: list[int]) -> None:
    chain = two()
    with guard(chain):
        with torch.inference_mode():
            chain(ones())
        assert len(readings) == 4
        chain(ones())
        assert len(readings) == 8
        with torch.no_grad():
            chain(ones())
        assert len(readings) == 10


# ---------------------------------------------------------------- a lie


def test_a_lie_is_found_late_and_said_once(model: Any, healthy: Any) -> None:
    with guard(model) as watch, FABRIC.broken(Fault("zero", pairs=("0->1",), after=4)):
        assert tokens_of(model) == healthy
    counts = watch.metrics.counts
    assert watch.demoted == (LINK,) == tuple({e.link for e in watch.events}) and watch.reads_late
    assert counts.reruns == 1 and counts.mismatches == len(watch.events) and all(e.kind == "zeros" and e.again for e in watch.events)


def test_a_way_over_the_host_that_lies_once_is_named(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0

    def lossy(t: Any, link: Any, staged: bool) -> Any:
        nonlocal seen
        seen += 1
        return transport(t, link, staged) * (0 if seen == 5 else 1)

    monkeypatch.setattr(sessions, "transport", lossy)
    with guard(model, "stage"), pytest.raises(Exception, match="host-path-corrupts"):
        tokens_of(model)


# ---------------------------------------------------------------- somebody writes


@pytest.mark.parametrize("end", ["source", "copy"])
@pytest.mark.parametrize("write", [by_torch, behind_its_back])
def test_what_was_written_into_accuses_nobody(end: str, write: Any, right: Any, caplog: Any) -> None:
    model = two(**{end: write})
    with caplog.at_level(logging.WARNING), torch.no_grad(), guard(model) as watch:
        for _ in range(3):
            assert torch.equal(model(ones()).cpu(), right)
    counts = watch.metrics.counts
    assert not watch.events and not watch.demoted and counts.mismatches == counts.unchecked == 0
    assert counts.reruns == 1 and not watch.reads_late and len(caplog.records) == 1


@pytest.mark.parametrize("end", ["source", "copy"])
@pytest.mark.parametrize("write", [by_torch, behind_its_back])
def test_a_lie_is_found_though_somebody_writes(end: str, write: Any, right: Any) -> None:
    model = two(**{end: write})
    with torch.no_grad(), guard(model) as watch, FABRIC.broken(ZERO):
        for _ in range(2):
            assert torch.equal(model(ones()).cpu(), right)
    assert watch.demoted == (LINK,) and {e.link for e in watch.events} == {LINK} and not watch.reads_late


def test_a_link_that_is_right_is_not_kept_from_use_by_a_withdrawn_suspicion(right: Any) -> None:
    model = two(copy=behind_its_back)
    with torch.no_grad(), guard(model) as watch:
        model(ones())
        before = watch.metrics.counts.staged
        model(ones())
    assert before > 0 and watch.metrics.counts.staged == before


@pytest.mark.parametrize("lies", [False, True])
def test_a_model_that_also_writes_into_its_input_is_not_called_clean(lies: bool, right: Any) -> None:
    """The forward cannot be run again: the hop counts as unchecked, once; then each is read when it is carried."""
    model = two(source=by_torch, given=by_torch)
    with torch.no_grad(), guard(model) as watch:
        assert torch.equal(model(ones()).cpu(), right)
        assert watch.metrics.counts.unchecked == 1 and not watch.reads_late and not watch.events
        with FABRIC.broken(*([ZERO] if lies else [])):
            if lies:
                with pytest.raises(Exception, match="cannot-roll-back"):
                    model(ones())
            else:
                assert torch.equal(model(ones()).cpu(), right)
    assert watch.metrics.counts.unchecked == 1 and bool(watch.demoted) == lies


# ---------------------------------------------------------------- what it may take


@pytest.mark.parametrize("sum_B", [1, 600, 3000])
def test_no_more_memory_is_kept_than_said(model: Any, healthy: Any, sum_B: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "LATE_SUM_B", sum_B)
    most, wait = 0, Session._wait_to_read

    def watched(self: Session, some: list[Carried]) -> None:
        nonlocal most
        wait(self, some)
        most = max(most, sum(x.size_B for x in self._late))

    monkeypatch.setattr(Session, "_wait_to_read", watched)
    for fault, said in ((Fault("zero", pairs=("1->2",), after=2), ("vgpu:1 -> vgpu:2",)), (None, ())):
        with guard(model) as watch, FABRIC.broken(*([fault] if fault else [])):
            assert tokens_of(model) == healthy
        assert watch.demoted == said and watch.metrics.counts.unchecked == 0
    assert most <= sum_B and (most > 0 or sum_B == 1)


def test_large_hops_are_not_kept(model: Any, healthy: Any, readings: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "LATE_B", 0)
    with guard(model) as watch:
        assert tokens_of(model) == healthy
    assert len(readings) > 4 * watch.metrics.counts.forwards and sum(readings) == 2 * watch.metrics.counts.hops


def test_a_ring_that_is_full_loses_no_hop(model: Any, healthy: Any, readings: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    used, reset, read_all = 0, Reader.reset, Reader.read_all

    def emptied(self: Reader) -> None:
        nonlocal used
        used = 0
        reset(self)

    def filled(self: Reader, what: Any, keys: Any, sizes_B: Any) -> Any:
        nonlocal used
        used += len(what)
        assert used <= 6
        return read_all(self, what, keys, sizes_B)

    monkeypatch.setattr(Reader, "reset", emptied)
    monkeypatch.setattr(Reader, "read_all", filled)
    monkeypatch.setattr(Reader, "has_room", lambda self, _, sizes_B: used + 2 * len(sizes_B) <= 6)
    with guard(model) as watch:
        assert tokens_of(model) == healthy
    assert sum(readings) == 2 * watch.metrics.counts.hops and not watch.events
    with guard(model) as watch, FABRIC.broken(Fault("bit", pairs=("2->3",), after=3)):
        assert tokens_of(model) == healthy
    assert watch.demoted == ("vgpu:2 -> vgpu:3",)


# ---------------------------------------------------------------- over the host


def test_positions_are_brought_to_the_host_once_for_all_gpus(model: Any, healthy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    brought: list[torch.Size] = []

    def counted(t: torch.Tensor) -> Any:
        brought.append(t.shape)
        return on_host(t)

    monkeypatch.setattr(sessions, "on_host", counted)
    with guard(model) as watch:
        assert tokens_of(model) == healthy
    assert len(brought) >= watch.metrics.counts.forwards and watch.metrics.counts.staged == 3 * len(brought)


def test_positions_that_are_written_into_are_brought_again(model: Any) -> None:
    with guard(model) as watch, torch.no_grad():
        session = watch.session()
        links = [Link(torch.device("vgpu", 0), torch.device("vgpu", i)) for i in (1, 2, 3)]
        session.begin(0, strict=False, checks=True)
        t = torch.arange(5).to("vgpu:0")
        first = [session.carry(t, link) for link in links[:2]]
        t.add_(1)
        other = session.carry(t, links[2])
        assert all(torch.equal(c.cpu(), torch.arange(5)) for c in first) and torch.equal(other.cpu(), torch.arange(5) + 1)
        assert not session.settle() and session.unjudged == 2
        session.end()
