"""Each cause, really there, is told as what it is; and what is no cause is told as none."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: no model can be verified")
pytest.importorskip("accelerate", reason="accelerate is not installed: no model can be split")
pytest.importorskip("transformers", reason="transformers is not installed: there is no model")

import torch
from tiny_models import FABRIC, facts_of, spoiled, tiny, verified

from linkproof.probe.faults import Fault
from linkproof.verified import Failed, Finding, Refused, Verified
from linkproof.verify import models, weights
from linkproof.verify.judge import judged
from linkproof.verify.shapes import SHAPES
from linkproof.verify.task import Task

__all__ = ["tiny"]


def only(found: Verified, kind: str) -> Finding:
    """The one cause."""
    assert found.verdict == "faulty" and [c.kind for c in found.causes] == [kind], found.causes
    return found.causes[0]


def bad_checks(found: Verified) -> set[str]:
    return {c.what for c in found.checked if c.bad}


# ---------------------------------------------------------------- nothing wrong


@pytest.mark.parametrize("model", ["tiny-dense", "tiny-tied", "tiny-moe", "tiny-mla"])
def test_a_clean_model_is_healthy(model: str) -> None:
    found = verified(model, sample=model == "tiny-dense")
    assert found.verdict == "healthy" and not found.causes, (found.causes, found.why, found.why_args)
    assert {c.what for c in found.checked} >= {"position_ids", "cos", "sin", "attention_mask", "kv"}
    assert found.weights and found.weights.tensors > 30 and found.units and found.units.compared > 10
    assert all(a.equal == a.tokens for a in found.agreement if a.arm == "greedy")
    assert found.spread and len(found.spread.variants) == 3 and found.spread.logits > 0


def test_another_order_of_sums_is_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled(monkeypatch, lambda model: model.set_attn_implementation("eager"))
    found = verified()
    assert found.verdict == "healthy" and found.numeric
    assert any(c.logits > 0 for c in found.compared)


def test_a_reference_that_holds_one_layer_at_a_time_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "too_large", lambda *_: True)
    found = verified()
    assert found.verdict == "healthy" and found.subject and found.subject.layered


def test_one_device_tells_nothing_of_links() -> None:
    found = verified(devices="virtual:1")
    assert found.verdict == "cannot_tell" and found.why.startswith("nothing was split")
    assert found.weights and not found.weights.bad


# ---------------------------------------------------------------- links


@pytest.mark.parametrize(("fault", "kind"), [("zero", "zeros"), ("stale", "stale"), ("bit:14", "changed"), ("shift:16", "changed")])
def test_a_link_that_spoils_hidden_states_is_named_with_the_first_layer(fault: str, kind: str) -> None:
    """Hidden states are the only thing that goes from 1 to 2."""
    cause = only(verified(faults=(f"{fault},pairs=1->2",)), "link")
    assert (cause.link, cause.unit, cause.tensor) == ("vgpu:1 -> vgpu:2", "model.layers.2", "hidden_states")
    assert kind in (cause.args["kind"], "stale") or fault.startswith("bit")


def test_position_ids_that_lie_are_told_though_the_tokens_are_right() -> None:
    with FABRIC.broken(Fault("zero", pairs=("0->2",)), touches=lambda t: t.dtype == torch.int64):
        found = verified()
    cause = only(found, "link")
    assert (cause.link, cause.unit, cause.tensor) == ("vgpu:0 -> vgpu:2", "model.layers.2", "position_ids")
    assert bad_checks(found) == {"position_ids"} and not found.agreement[0].partings
    assert all(c.logits <= found.spread.logits for c in found.compared if found.spread)


def test_cos_and_sin_that_lie_are_told_by_name() -> None:
    """They go from where they are made, the last device, to every layer."""
    with FABRIC.broken(Fault("bit", value=0, pairs=("3->1",))):
        found = verified()
    cause = only(found, "link")
    assert cause.link == "vgpu:3 -> vgpu:1" and cause.tensor == "cos" and cause.args["tensors"] == "cos, sin"
    assert bad_checks(found) == {"cos", "sin"} and not found.agreement[0].partings


def test_masks_that_lie_are_told_by_name() -> None:
    with FABRIC.broken(Fault("drop", pairs=("0->1",)), touches=lambda t: t.dtype == torch.bool):
        found = verified()
    assert only(found, "link").tensor == "attention_mask" and "attention_mask" in bad_checks(found)


def test_an_answer_spoilt_on_its_way_home_is_no_layers_fault() -> None:
    cause = only(verified(faults=("zero,pairs=3->0",)), "link")
    assert "logits" in cause.args["tensors"]


# ---------------------------------------------------------------- weights and kernels


def test_a_weight_spoilt_after_loading_is_a_weight_and_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled(monkeypatch, lambda model: model.model.layers[2].mlp.up_proj.weight.data[3, 5].fill_(9.0))
    cause = only(verified(), "load")
    assert (cause.device, cause.tensor) == ("vgpu:2", "model.layers.2.mlp.up_proj.weight") and "since they were loaded" in cause.text


def test_a_weight_that_changes_while_the_model_runs_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def later(model: Any) -> None:
        norm = model.model.layers[1].input_layernorm
        norm.register_forward_hook(lambda *_: norm.weight.data.fill_(0.5) and None)

    spoiled(monkeypatch, later)
    cause = only(verified(), "load")
    assert cause.device == "vgpu:1" and "changed while the model ran" in cause.text


def test_a_buffer_counts_as_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled(monkeypatch, lambda model: model.model.rotary_emb.inv_freq.fill_(0.25))
    assert only(verified(), "load").tensor == "model.rotary_emb.inv_freq"


@pytest.mark.parametrize("only_new_tokens", [False, True])
def test_a_device_that_computes_wrongly_is_told_as_such(monkeypatch: pytest.MonkeyPatch, only_new_tokens: bool) -> None:
    def wrong(module: Any, args: Any, out: Any) -> Any:
        return out * 1.5 if out.shape[1] == 1 or not only_new_tokens else out

    spoiled(monkeypatch, lambda model: model.model.layers[2].mlp.register_forward_hook(wrong))
    cause = only(verified(), "kernel")
    assert (cause.device, cause.unit) == ("vgpu:2", "model.layers.2")


def test_a_link_and_a_kernel_are_both_told(monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled(monkeypatch, lambda model: model.model.layers[3].mlp.register_forward_hook(lambda m, a, out: out * 1.5))
    found = verified(faults=("shift:16,pairs=0->1",))
    assert [(c.kind, c.link or c.unit) for c in found.causes] == [("link", "vgpu:0 -> vgpu:1"), ("kernel", "model.layers.3")]


# ---------------------------------------------------------------- errors


def test_a_reference_of_nan_is_nothing_to_compare_with(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = models.host_copy

    def spoilt(*args: Any) -> models.Host:
        host = copy(*args)
        host.model.model.norm.weight.data[0] = float("nan")
        return host

    monkeypatch.setattr(models, "host_copy", spoilt)
    assert verified().verdict == "cannot_tell"


def test_an_error_that_only_the_split_model_has_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise IndexError("index out of range in self")

    spoiled(monkeypatch, lambda model: model.model.layers[2].register_forward_hook(fails))
    found = verified()
    assert only(found, "failed").args["error"] == "IndexError" and found.weights and not found.weights.bad


def test_an_error_that_a_lie_has_caused_is_the_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older models gather cos by position on every device."""

    def gathers(module: Any, args: Any, kwargs: Any) -> None:
        torch.zeros(256)[kwargs["position_ids"].cpu()]

    spoiled(monkeypatch, lambda model: model.model.layers[2].self_attn.register_forward_pre_hook(gathers, with_kwargs=True))
    assert verified().verdict == "healthy"
    with FABRIC.broken(Fault("bit", value=40, pairs=("0->2",)), touches=lambda t: t.dtype == torch.int64):
        found = verified()
    assert only(found, "link").tensor == "position_ids" and found.failed[0].error == "IndexError"
    with FABRIC.broken(Fault("bit", value=40, pairs=("0->2",)), touches=lambda t: t.dtype == torch.int64):
        again = judged(facts_of(strict=True), None, 0.0)
    assert only(again, "link").link == "vgpu:0 -> vgpu:2"  # hop by hop, it is stopped before it is used


def test_what_the_reference_cannot_do_speaks_against_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(models, "reference", fails)
    facts = facts_of()
    assert [f.side for f in facts if isinstance(f, Failed)] == [""]
    assert judged(facts, None, 0.0).verdict == "cannot_tell"


def test_a_family_that_this_transformers_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny-odd", SHAPES["tiny-dense"].__class__("a test", "no_such_family", {"num_hidden_layers": 1}))
    assert [f.ref for f in facts_of("tiny-odd") if isinstance(f, Refused)] == ["family-unknown"]
    assert [f.ref for f in facts_of("/no/such/folder") if isinstance(f, Refused)] == ["model-unreadable"]


# ---------------------------------------------------------------- a checkpoint


def test_a_checkpoint_is_compared_with_its_own_files(tmp_path: Path) -> None:
    host = models.host_copy(Task(model="tiny-moe", devices="virtual:4"), ["vgpu:0"] * 4)
    host.model.save_pretrained(tmp_path)
    found = verified(str(tmp_path), prompts=("one", "another, longer"))
    assert found.verdict == "healthy" and found.subject and not found.subject.random, (found.causes, found.why_args)
    assert found.weights and 20 < found.weights.from_files < found.weights.tensors  # experts are merged when they are loaded


def test_a_file_that_was_not_read_as_it_stands_is_told(tmp_path: Path) -> None:
    host = models.host_copy(Task(model="tiny-dense", devices="virtual:4"), ["vgpu:0"] * 4)
    host.model.save_pretrained(tmp_path)
    assert not weights.truth(host.model, str(tmp_path)).misread
    host.model.model.norm.weight.data[7] += 1
    right = weights.truth(host.model, str(tmp_path))
    assert right.misread == ("model.norm.weight",)
    assert weights.compare(right, {}, {}).bad[0].device == "host"
