"""The guard around a model: what it copies and what not, what it says, where it stays out of the way, where it refuses."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import gc
import logging
import re
import subprocess
import sys
import threading
import weakref
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: no model can be guarded")
pytest.importorskip("accelerate", reason="accelerate is not installed: no model can be split")
pytest.importorskip("transformers", reason="transformers is not installed: there is no model")

import accelerate
import torch
from split_model import FABRIC, GPUS, PROMPT, Chain, make, split, tokens_of

from linkproof.errors import UsageError
from linkproof.guard import copies, ears
from linkproof.guard.copies import Border
from linkproof.guard.policy import Event, LinkFault
from linkproof.guard.watch import guard
from linkproof.probe.faults import Fault

ZERO = Fault("zero", pairs=("1->2",))


@pytest.fixture(scope="module")
def model() -> Any:
    return split(2 * GPUS)


@pytest.fixture(scope="module")
def healthy(model: Any) -> list[list[int]]:
    return tokens_of(model)


def hops_of(run: Any) -> int:
    FABRIC.hops.clear()
    run()
    return len(FABRIC.hops)


# ---------------------------------------------------------------- what is copied


def test_what_goes_to_every_layer_goes_to_every_gpu_once(model: Any, healthy: Any) -> None:
    bare = hops_of(lambda: tokens_of(model))
    with guard(model, "strict") as watch:
        assert hops_of(lambda: tokens_of(model)) == watch.metrics.counts.hops
    counts = watch.metrics.counts
    assert counts.hops + counts.saved == bare
    single = split(GPUS)  # one layer a GPU: nothing goes to the same one twice
    assert counts.forwards == 4 and counts.saved and counts.hops == hops_of(lambda: tokens_of(single))


@pytest.mark.parametrize("mode", ["deferred", "strict"])
@pytest.mark.parametrize(
    ("writes", "between", "reruns"),
    [
        ((False, False, False, False), False, 0),
        ((True, False, False, False), False, 0),  # the only holder writes: the next gets a new copy
        ((False, False, True, False), False, 1),  # two layers hold it by then: the forward is run again without sharing
        ((False, False, False, True), False, 1),
        ((False, False, False, False), True, 0),  # the source changes
    ],
)
def test_writing_into_what_one_was_given_is_seen_by_nobody_else(mode: str, writes: tuple[bool, ...], between: bool, reruns: int) -> None:
    def built() -> Any:
        chain = Chain(*writes).eval()
        chain.between = (lambda scale: scale.add_(1)) if between else None
        return accelerate.dispatch_model(chain, {"first": "vgpu:0"} | {f"layers.{i}": "vgpu:1" for i in range(4)}, main_device="vgpu:0")

    x = torch.ones(2, 4).to("vgpu:0")
    bare, chain = built(), built()
    with torch.no_grad(), guard(chain, mode) as watch:
        for _ in range(2):
            for got, want in zip(chain(x), bare(x), strict=True):
                assert torch.equal(got.cpu(), want.cpu())
    late = mode == "deferred" and (any(writes) or between)  # what is read at the end of the forward cannot be judged then
    assert watch.metrics.counts.reruns == max(reruns, late) and not watch.events


def test_copies_in_model_code_are_heard_whatever_they_are_called(model: Any) -> None:
    a, b = torch.device("vgpu:0"), torch.device("vgpu:1")
    x = torch.arange(6.0, device=a)
    out = torch.zeros(6, device=b)

    def written(out: Any) -> Any:
        out[:6] = x
        return out

    ways = [
        lambda: x.to(b),
        lambda: x.to("vgpu:1"),
        lambda: x.to(1),
        lambda: x.to(device=b),
        lambda: x.to(b, torch.float64),
        lambda: x.to(b, copy=True),
        lambda: x.to(out),
        lambda: x.to(device=b, dtype=torch.bfloat16, non_blocking=True),
        lambda: x.type_as(out),
        lambda: out.copy_(x),
        lambda: written(out),
    ]
    quiet = [
        lambda: x.to(a),
        lambda: x.to(torch.float64),
        lambda: x.cpu(),
        lambda: x.to("cpu"),
        lambda: torch.ones(3).to(b),
        lambda: x.to(x),
    ]
    with FABRIC.broken(Fault("zero")), guard(model, "strict") as watch:
        for n, way in enumerate(ways, 1):
            link = watch.link(a, b)
            link.staged = False
            got = way()
            assert torch.equal(got.cpu().float(), torch.arange(6.0)) and got.device == b, n
            assert len(watch.events) == n
            out.zero_()
        hops = watch.metrics.counts.hops
        for way in quiet:
            way()
        assert watch.metrics.counts.hops == hops
    with FABRIC.broken(Fault("zero")):
        assert not x.to(b).cpu().any()  # nobody listens any more


def test_tensors_of_every_form_cross(model: Any) -> None:
    base = torch.arange(24.0, device="vgpu:0").reshape(4, 6)
    with guard(model, "strict") as watch:
        for t in (base, base.t(), base[1:3, ::2], base[0, 0], base[:0], base[0:1].expand(5, 6), base.bool(), base.bfloat16()):
            assert torch.equal(t.to("vgpu:1").cpu(), t.cpu()) and t.to("vgpu:1").stride() == t.cpu().clone().stride()
    assert watch.metrics.counts.unchecked == 0


# ---------------------------------------------------------------- what happens when a link lies


def test_an_error_that_a_lie_has_caused_is_not_raised() -> None:
    class Picky(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = torch.nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            if not x.cpu().any():
                raise IndexError("index out of range in self")
            return self.lin(x)

    def built(device: str = "vgpu:1") -> Any:
        torch.manual_seed(0)
        seq = torch.nn.Sequential(torch.nn.Linear(4, 4), Picky())
        return accelerate.dispatch_model(seq, {"0": "vgpu:0", "1": device}, main_device="vgpu:0")

    x, two = torch.ones(2, 4).to("vgpu:0"), built()
    with torch.no_grad():
        right = two(x).cpu()
        with FABRIC.broken(Fault("zero", pairs=("0->1",))):
            with pytest.raises(IndexError):
                two(x)
            with guard(two) as watch:
                assert torch.equal(two(x).cpu(), right)
        assert watch.demoted == ("vgpu:0 -> vgpu:1",)
        two[0].bias.zero_()
        with guard(two) as watch, pytest.raises(IndexError):  # the model's own errors are its own
            two(torch.zeros(2, 4).to("vgpu:0"))
        assert not watch.events


@pytest.mark.parametrize("mode", ["deferred", "strict"])
def test_policies(model: Any, healthy: Any, mode: str) -> None:
    with guard(model, mode, policy="raise") as watch, FABRIC.broken(ZERO), pytest.raises(LinkFault) as raised:
        tokens_of(model)
    assert (
        raised.value.ref == "link-corrupts" and raised.value.events[0].link == "vgpu:1 -> vgpu:2" and raised.value.events[0].kind == "zeros"
    )
    for lang in ("en", "zh"):
        assert "vgpu:1 -> vgpu:2" in raised.value.told(lang) and raised.value.told(lang).count("\n") == 2

    with FABRIC.broken(ZERO):
        wrong = tokens_of(model)
    assert wrong != healthy
    with guard(model, mode, policy="warn") as watch, FABRIC.broken(ZERO):
        assert tokens_of(model) == wrong
    assert len(watch.events) == 4 and not watch.demoted

    asked: list[Event] = []

    def decide(event: Event) -> str | None:
        asked.append(event)
        return "warn" if event.step < 2 else None

    with guard(model, mode, policy=decide) as watch, FABRIC.broken(ZERO):
        tokens_of(model)
    assert [e.action for e in watch.events] == ["warn", "warn", "heal"] and len(asked) == 3 and watch.demoted


def test_a_host_path_that_lies_too_stops_everything(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = copies.to

    def lying(t: Any, *args: Any, **kwargs: Any) -> Any:
        out = honest(t, *args, **kwargs)
        return out * 0 if t.device.type == "cpu" and out.device.type == "vgpu" and out.is_floating_point() else out

    monkeypatch.setattr(copies, "to", lying)
    for mode in ("strict", "deferred", "stage"):
        with guard(model, mode), FABRIC.broken(ZERO), pytest.raises(LinkFault) as raised:
            tokens_of(model)
        assert raised.value.ref == "host-path-corrupts"


def test_a_model_that_writes_into_its_input_is_not_run_again_but_told() -> None:
    class Eats(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            x.add_(1)
            return self.b(self.a(x))

    model = accelerate.dispatch_model(Eats(), {"a": "vgpu:0", "b": "vgpu:1"}, main_device="vgpu:0")
    for mode, fails in (("deferred", True), ("strict", False)):
        with torch.no_grad(), guard(model, mode) as watch, FABRIC.broken(Fault("zero", pairs=("0->1",))):
            if fails:
                with pytest.raises(LinkFault, match="cannot-roll-back"):
                    model(torch.ones(1, 4).to("vgpu:0"))
            else:
                model(torch.ones(1, 4).to("vgpu:0"))
        assert watch.demoted


def test_what_happened_is_told_in_full(model: Any, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING), guard(model) as watch, FABRIC.broken(Fault("shift", 8, pairs=("1->2",), after=1)):
        tokens_of(model)
    (event,) = watch.events
    assert (event.link, event.kind, event.step, event.shape, event.again) == ("vgpu:1 -> vgpu:2", "shifted", 1, (1, 1, 64), True)
    assert event.size_B == 256 and event.bad_B and event.first_bad_B is not None
    assert len(caplog.records) == 1 and "shifted" in caplog.text and "vgpu:1 -> vgpu:2" in caplog.text


def test_a_lie_that_does_not_come_again_is_told_as_such(model: Any) -> None:
    with guard(model) as watch, FABRIC.broken(Fault("stale", pairs=("1->2",), probability=0.4), seed=2):
        tokens_of(model, new=8)
    assert watch.events[0].kind in ("stale", "zeros") and watch.events[0].again is not None


# ---------------------------------------------------------------- modes


def test_sampled_looks_at_prompts_the_first_forwards_and_every_kth(model: Any) -> None:
    with guard(model, "sampled", every=10) as watch:
        tokens_of(model, new=25)
        first, each = watch.metrics.counts.unchecked, watch.metrics.counts.hops // 25
        tokens_of(model, new=2)
    assert first == (25 - 16 - 1) * each  # forwards 16 to 24, of which 20 is looked at
    assert watch.metrics.counts.unchecked == first + each * 1  # a prompt is, what follows is not
    with guard(model, "sampled", every=10) as watch:
        tokens_of(model, new=18)
        with FABRIC.broken(Fault("bit", pairs=("1->2",))):
            tokens_of(model, new=1)
    assert watch.demoted == ("vgpu:1 -> vgpu:2",)


def test_stage_uses_no_link_at_all(model: Any, healthy: Any) -> None:
    with guard(model, "stage") as watch, FABRIC.broken(Fault("zero")):
        assert hops_of(lambda: tokens_of(model)) == 0
        assert tokens_of(model) == healthy
    assert watch.metrics.counts.staged == watch.metrics.counts.hops > 0 and not watch.events


# ---------------------------------------------------------------- on and off


def test_it_comes_and_goes_without_a_trace(model: Any, healthy: Any) -> None:
    before = {k: v for k, v in model.__dict__.items() if k in ("forward", "generate")}, accelerate.hooks.send_to_device, torch.Tensor.to
    one = guard(model)
    two = guard(model, "strict")
    assert tokens_of(model) == healthy and one.metrics.counts.forwards and two.metrics.counts.forwards
    one.remove()
    one.remove()
    two.remove()
    tokens_of(model)
    for name in ears.EARS:
        assert name not in torch.Tensor.__dict__
    two_left = {k: v for k, v in model.__dict__.items() if k in ("forward", "generate")}
    assert accelerate.hooks.send_to_device is before[1] and torch.Tensor.to is before[2]
    assert two_left.keys() <= {"forward", "generate"} and tokens_of(model) == healthy


def test_a_guard_that_nobody_holds_is_no_leak() -> None:
    small = split(GPUS)
    watch = guard(small)
    tokens_of(small, new=1)
    watch.remove()
    gone = weakref.ref(watch)
    del watch
    gc.collect()
    assert gone() is None


def test_one_device_is_nothing_to_guard() -> None:
    with pytest.raises(UsageError, match="nothing-to-guard"):
        guard(make(1))
    with pytest.raises(UsageError, match="no-such-mode"):
        guard(split(GPUS), "lazy")
    with pytest.raises(UsageError, match="no-such-policy"):
        guard(split(GPUS), policy="shrug")


def test_a_captured_graph_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = guard(model)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    watch.devices = (torch.device("cuda", 0), torch.device("cuda", 1))
    with pytest.raises(LinkFault, match="guard-in-graph-capture"):
        model(PROMPT.to("vgpu:0"))
    monkeypatch.undo()
    watch.remove()


def test_borders_on_one_card_are_hops() -> None:
    """For measurements: the stages of a model on one device."""
    model = make(2)
    model.hf_device_map = {"model": "stage 0", "lm_head": "stage 1"}
    with guard(model, "strict") as watch:
        t, link = torch.arange(5.0), Border(torch.device("cpu"), 0, 1)
        tree = accelerate.hooks.send_to_device({"a": t, "b": (t, 3, None)}, link)
        assert torch.equal(tree["a"], t) and tree["a"] is not t
    assert watch.metrics.counts.links.keys() == {"cpu#0 -> cpu#1"} and watch.metrics.counts.hops == 2


# ---------------------------------------------------------------- metrics


def test_metrics_as_object_line_and_prometheus_text(model: Any, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, "linkproof.guard"), guard(model) as watch, FABRIC.broken(ZERO):
        tokens_of(model)
    metrics = watch.metrics
    assert metrics.counts.mismatches == metrics.counts.reruns == 1 and metrics.counts.overhead_s > 0
    assert metrics.line() in caplog.text and "demoted: vgpu:1 -> vgpu:2" in metrics.line()
    text = metrics.prometheus()
    assert 'linkproof_guard_mismatches_total{link="vgpu:1 -> vgpu:2"} 1' in text
    assert 'linkproof_guard_link_demoted{link="vgpu:1 -> vgpu:2"} 1' in text and 'link_demoted{link="vgpu:0 -> vgpu:1"} 0' in text
    for line in text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+(\{link="[^"]+"\})? [0-9.e+-]+', line), line


def test_metrics_of_threads_that_have_ended_are_kept(model: Any) -> None:
    with guard(model) as watch:
        for _ in range(2):
            t = threading.Thread(target=tokens_of, args=(model,))
            t.start()
            t.join()
        gc.collect()
    assert watch.metrics.counts.forwards == 8


def test_twenty_thousand_clean_hops_raise_no_alarm(model: Any) -> None:
    """bench/guard.py does more."""
    with guard(model) as watch, torch.no_grad():
        session = watch.session()
        link = watch.link(torch.device("vgpu:0"), torch.device("vgpu:1"))
        t = torch.randn(1, 1, 64).bfloat16().to("vgpu:0")
        for step in range(200):
            session.begin(step, strict=False, checks=True)
            for _ in range(100):
                session.carry(t, link)
            assert session.settle() == []
        session.end()
    assert watch.metrics.counts.hops == 20_000 and not watch.events


def test_importing_the_package_loads_no_torch_and_it_stays_callable() -> None:
    code = "import sys, linkproof.guard as g; assert callable(g) and 'torch' not in sys.modules; import linkproof.guard.policy; assert callable(g)"
    subprocess.run([sys.executable, "-c", code], check=True)
