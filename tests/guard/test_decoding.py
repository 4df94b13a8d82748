"""Every way to decode that people use, each with a link that lies: the tokens are those of the healthy run."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: no model can be guarded")
pytest.importorskip("accelerate", reason="accelerate is not installed: no model can be split")
pytest.importorskip("transformers", reason="transformers is not installed: there is no model")

import accelerate
import torch
from safetensors.torch import load_file, save_file
from split_model import FABRIC, GPUS, PROMPT, Chain, device_map, make, split, tokens_of
from transformers import cache_utils

from linkproof.guard.copies import Border
from linkproof.guard.watch import guard
from linkproof.probe.faults import Fault

ZERO = Fault("zero", pairs=("1->2",))
LATE = Fault("zero", pairs=("1->2",), after=2)  # in the middle of decoding
STATIC: dict[str, Any] = {"cache_implementation": "static", "disable_compile": True}
LAYERED = hasattr(cache_utils, "DynamicLayer")  # before, what is not a DynamicCache is compared hop by hop


@pytest.fixture(scope="module")
def model() -> Any:
    return split(2 * GPUS)


@pytest.fixture
def graphs() -> None:
    """None made yet. What the virtual GPUs log would be guarded hop by hop in each of them, for torch.compile looks into their Python."""
    FABRIC.hops.clear()
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def healthy(model: Any) -> list[list[int]]:
    return tokens_of(model)


@pytest.mark.parametrize(
    "how",
    [{"num_beams": 3}, {"num_beams": 2, "do_sample": True}, {"repetition_penalty": 1.3}, {"num_return_sequences": 3, "do_sample": True}],
    ids=str,
)
@pytest.mark.parametrize("mode", ["deferred", "strict"])
def test_beams_and_batches_are_healed(model: Any, how: dict[str, Any], mode: str) -> None:
    two = torch.stack([PROMPT[0], PROMPT[0].flip(0)])
    mask = (torch.arange(8)[None] >= torch.tensor([[3], [0]])).long().to("vgpu:0")
    right = tokens_of(model, prompt=two, attention_mask=mask, **how)
    with guard(model, mode) as watch, FABRIC.broken(Fault("zero", pairs=("0->1", "2->3"), after=9)):
        assert tokens_of(model, prompt=two, attention_mask=mask, **how) == right
    assert set(watch.demoted) == {"vgpu:0 -> vgpu:1", "vgpu:2 -> vgpu:3"}


def test_beam_indices_that_cross_between_two_forwards_are_compared_at_once(model: Any) -> None:
    right = tokens_of(model, num_beams=3)
    with guard(model) as watch, FABRIC.broken(Fault("zero", pairs=("0->3",)), touches=lambda t: t.dtype == torch.int32):
        assert tokens_of(model, num_beams=3) == right
    assert watch.demoted == ("vgpu:0 -> vgpu:3",)


def test_streamed_tokens_are_the_right_ones(model: Any, healthy: Any) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def put(self, value: Any) -> None:
            self.seen += value.cpu().reshape(-1).tolist()

        def end(self) -> None:
            pass

    streamer = Streamer()
    with guard(model), FABRIC.broken(Fault("zero", pairs=("1->2",), after=2)):
        tokens_of(model, streamer=streamer)
    assert streamer.seen[PROMPT.shape[1] :] == healthy[0]


def test_sliding_windows_are_rolled_back() -> None:
    window = split(GPUS, use_sliding_window=True, sliding_window=5, max_window_layers=1)
    ways: list[dict[str, Any]] = [{}, {"cache_implementation": "static"}]
    for how in ways:
        right = tokens_of(window, **how)
        for after in (0, 2):
            with guard(window) as watch, FABRIC.broken(Fault("zero", pairs=("1->2",), after=after)):
                assert tokens_of(window, **how) == right
            assert watch.demoted and watch.metrics.counts.reruns == (LAYERED or not how)


def test_a_cache_that_nobody_knows_makes_it_strict(model: Any, healthy: Any, caplog: Any) -> None:
    from transformers import DynamicCache

    class Odd(DynamicCache):
        def __init__(self) -> None:
            super().__init__()
            self.secret = torch.zeros(1)

    with caplog.at_level(logging.WARNING), guard(model) as watch, FABRIC.broken(ZERO):
        assert tokens_of(model, past_key_values=Odd()) == healthy
    assert watch.metrics.counts.reruns == 0 and watch.demoted and "cannot be put back" in caplog.text


def test_inference_mode_is_guarded_without_sharing() -> None:
    chain = accelerate.dispatch_model(Chain(False, False, False).eval(), {"first": "vgpu:0", "layers": "vgpu:1"}, main_device="vgpu:0")
    with torch.inference_mode():
        x = torch.ones(2, 4).to("vgpu:0")
        right = chain(x)[0].cpu()
        with guard(chain) as watch, FABRIC.broken(Fault("zero", pairs=("0->1",))):
            assert torch.equal(chain(x)[0].cpu(), right)
    assert watch.demoted == ("vgpu:0 -> vgpu:1",) and watch.metrics.counts.saved == 0


@pytest.mark.parametrize("mode", ["deferred", "strict"])
def test_gradients_are_those_of_the_unguarded_model(mode: str) -> None:
    """Wrong data on the way there and on the way back are both mended."""
    ids = PROMPT.to("vgpu:0")
    model = split(GPUS)

    def gradients() -> list[Any]:
        model.zero_grad()
        with torch.autograd.set_multithreading_enabled(False):
            model(ids, labels=ids).loss.backward()
        return [p.grad.cpu() for p in model.parameters()]

    right = gradients()
    for fault in (None, Fault("zero", pairs=("1->2",)), Fault("zero", pairs=("2->1",))):
        with guard(model, mode) as watch, FABRIC.broken(*([fault] if fault else [])):
            got = gradients()
        assert all(torch.equal(a, b) for a, b in zip(got, right, strict=True))
        assert watch.demoted == (() if fault is None else (f"vgpu:{fault.pairs[0][0]} -> vgpu:{fault.pairs[0][3]}",))


def test_several_threads_do_not_mix_what_they_share(model: Any) -> None:
    prompts = [torch.randint(1, 250, (1, 8), generator=torch.Generator().manual_seed(i)) for i in range(4)]
    right = [model.generate(p.to("vgpu:0"), max_new_tokens=6, do_sample=False).cpu() for p in prompts]
    wrong: list[int] = []
    watch = guard(model)

    def serve(i: int) -> None:
        for _ in range(3):
            out = model.generate(prompts[i].to("vgpu:0"), max_new_tokens=6, do_sample=False).cpu()
            if not torch.equal(out, right[i]):
                wrong.append(i)

    with FABRIC.broken(Fault("zero", pairs=("1->2", "0->3"), probability=0.3)):
        threads = [threading.Thread(target=serve, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    watch.remove()
    assert not wrong and set(watch.demoted) == {"vgpu:1 -> vgpu:2", "vgpu:0 -> vgpu:3"}
    assert watch.metrics.counts.forwards == 4 * 3 * 6


def test_a_thread_that_is_not_in_the_model_is_not_listened_to(model: Any) -> None:
    got: list[Any] = []
    with guard(model), FABRIC.broken(Fault("zero")):
        t = threading.Thread(target=lambda: got.append(torch.ones(3, device="vgpu:0").to("vgpu:1").cpu()))
        t.start()
        t.join()
    assert not got[0].any()


def test_what_goes_to_the_host_and_back_passes() -> None:
    chain = Chain(False, False, False).eval()
    accelerate.dispatch_model(
        chain, {"first": "vgpu:0", "layers.0": "vgpu:1", "layers.1": "cpu", "layers.2": "vgpu:1"}, main_device="vgpu:0"
    )
    hook = accelerate.hooks.AlignDevicesHook(execution_device="cpu")
    chain.layers[1].lin = torch.nn.Linear(4, 4)  # on the host for good, not brought to a device for each use
    accelerate.hooks.add_hook_to_module(chain.layers[1], hook)
    x = torch.ones(2, 4).to("vgpu:0")
    with torch.no_grad():
        right = chain(x)[0].cpu()
        with guard(chain) as watch, FABRIC.broken(Fault("zero", pairs=("0->1",))):
            assert torch.equal(chain(x)[0].cpu(), right)
    assert watch.demoted == ("vgpu:0 -> vgpu:1",) and watch.metrics.counts.links.keys() == {"vgpu:0 -> vgpu:1", "vgpu:1 -> vgpu:0"}


@pytest.mark.filterwarnings("ignore:Dynamo does not know")
def test_compiled_callers_are_guarded(graphs: None) -> None:
    """The hooks are breaks in the graph; ours is one more."""
    chain = Chain(False, False).eval()
    accelerate.dispatch_model(chain, {"first": "vgpu:0", "layers.0": "vgpu:1", "layers.1": "vgpu:2"}, main_device="vgpu:0")
    x = torch.ones(2, 4).to("vgpu:0")
    with torch.no_grad():
        right = chain(x)[0].cpu()
        with guard(chain) as watch, FABRIC.broken(Fault("zero", pairs=("0->1",))):
            got = torch.compile(chain, backend="eager")(x)[0].cpu()
    assert torch.equal(got, right) and watch.demoted == ("vgpu:0 -> vgpu:1",)


# ---------------------------------------------------------------- weights of all sorts


class Int4Linear(torch.nn.Module):
    """Two weights in a byte, a scale for each group of 16: as quantised checkpoints store them."""

    GROUP = 16
    packed: torch.Tensor
    scales: torch.Tensor

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.register_buffer("packed", torch.zeros(size_out, size_in // 2, dtype=torch.uint8))
        self.register_buffer("scales", torch.zeros(size_out, size_in // self.GROUP))

    @classmethod
    def of(cls, linear: torch.nn.Linear) -> Int4Linear:
        new = cls(linear.in_features, linear.out_features)
        groups = linear.weight.detach().reshape(linear.out_features, -1, cls.GROUP)
        scales = groups.abs().amax(-1) / 7
        whole = ((groups / scales[..., None]).round() + 8).to(torch.uint8).flatten(1)
        new.packed, new.scales = whole[:, ::2] | whole[:, 1::2] << 4, scales
        return new

    def forward(self, x: Any) -> Any:
        whole = torch.stack([self.packed & 15, self.packed >> 4], -1).flatten(1).to(x.dtype) - 8
        weight = (whole.unflatten(1, (-1, self.GROUP)) * self.scales[..., None]).flatten(1)
        return torch.nn.functional.linear(x, weight)


def quantised(model: Any) -> Any:
    for layer in model.model.layers:
        for part in (layer.mlp, layer.self_attn):
            for name, linear in list(part.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    setattr(part, name, Int4Linear.of(linear))
    return model


@pytest.mark.parametrize("mode", ["deferred", "strict"])
def test_weights_of_four_bits_from_a_stored_shard(mode: str, tmp_path: Path) -> None:
    whole = quantised(make())
    save_file({k: v.contiguous() for k, v in whole.state_dict().items()}, tmp_path / "model.safetensors")
    right = tokens_of(whole, on="cpu")
    stored = quantised(make(seed=1))
    stored.load_state_dict(load_file(tmp_path / "model.safetensors"))
    shards = accelerate.dispatch_model(stored, device_map(), main_device="vgpu:0")
    assert shards.model.layers[1].mlp.up_proj.packed.dtype == torch.uint8 and tokens_of(shards) == right
    with guard(shards, mode) as watch, FABRIC.broken(LATE):
        assert tokens_of(shards) == right
    assert watch.demoted == ("vgpu:1 -> vgpu:2",)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_tensor_whose_bits_are_not_its_memory_goes_through_the_host() -> None:
    """It cannot be compared, so no link is asked to carry it; and it is counted as not looked at."""
    t = torch.quantize_per_tensor(torch.arange(6.0), 0.1, 10, torch.quint8)
    link = Border(torch.device("cpu"), 0, 1)
    whole = make(2)
    whole.hf_device_map = {"model": "stage 0", "lm_head": "stage 1"}
    with guard(whole) as watch:
        got = accelerate.hooks.send_to_device(t, link)
    assert got is not t and torch.equal(got.dequantize(), t.dequantize())
    assert watch.metrics.counts.unchecked == watch.metrics.counts.staged == 1


@pytest.mark.parametrize("mode", ["deferred", "strict"])
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_layers_that_are_loaded_for_each_use(where: str, mode: str, tmp_path: Path) -> None:
    places = device_map() | {"model.layers.1": where, "model.layers.3": where}
    offloaded = accelerate.dispatch_model(make(), places, main_device="vgpu:0", offload_dir=str(tmp_path))
    assert offloaded.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    right = tokens_of(make(), on="cpu")
    assert tokens_of(offloaded) == right
    link = "0->2"  # what is on the host runs on the first GPU
    with guard(offloaded, mode) as watch, FABRIC.broken(Fault("zero", pairs=(link,), after=4)):
        assert tokens_of(offloaded) == right
    assert watch.demoted == ("vgpu:0 -> vgpu:2",)


# ---------------------------------------------------------------- compiled layers


@pytest.mark.filterwarnings("ignore:Dynamo does not know")  # the virtual tensor's own Python
@pytest.mark.parametrize("inside", [True, False], ids=["hooks outside the graph", "hooks break the graph"])
def test_compiled_layers_are_guarded(graphs: None, inside: bool) -> None:
    """`torch.compile`d before accelerate has put its hooks around, or after. A backend that needs no compiler: where the graph breaks is the same."""
    whole = make()
    if inside:
        for layer in whole.model.layers[1:3]:  # at both ends of the link that lies
            layer.forward = torch.compile(layer.forward, backend="eager")
    accelerate.dispatch_model(whole, device_map(), main_device="vgpu:0")
    if not inside:
        for layer in whole.model.layers[1:3]:
            layer.compile(backend="eager")
    right = tokens_of(make(), on="cpu", **STATIC)
    assert tokens_of(whole, **STATIC) == right
    for mode in ("deferred", "strict"):
        with guard(whole, mode) as watch, FABRIC.broken(LATE):
            assert tokens_of(whole, **STATIC) == right
        assert watch.demoted == ("vgpu:1 -> vgpu:2",)
