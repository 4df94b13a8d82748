"""What a forward does to a cache is undone bit by bit, for every kind of cache layer; what cannot be undone is said to be so."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: there is no cache")
pytest.importorskip("transformers", reason="transformers is not installed: there is no cache")

import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache, cache_utils

from linkproof.guard.undo import CannotUndo, Undo
from linkproof.guard.undo import _noted as kept_notes

WINDOW, SLOTS = 6, 32
kinds: Any = cache_utils
LAYERED = hasattr(kinds, "DynamicLayer")  # since transformers 4.54 a cache has layers
layered = pytest.mark.skipif(not LAYERED, reason="this transformers has caches without layers; tested below as what they are")
unlayered = pytest.mark.skipif(LAYERED, reason="this transformers has caches with layers; tested above")


def kv(tokens: int, seed: int) -> tuple[Any, Any]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, 2, tokens, 4, generator=g), torch.randn(2, 2, tokens, 4, generator=g)


def appended(layer: Any, tokens: int, seed: int) -> Any:
    return layer.update(*kv(tokens, seed))


def recurrent(layer: Any, tokens: int, seed: int) -> Any:
    g = torch.Generator().manual_seed(seed)
    conv = layer.update_conv_state(torch.randn(2, 8, 4, generator=g))
    return conv.clone(), layer.update_recurrent_state(torch.randn(2, 3, 5, generator=g)).clone()


LAYERS: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "dynamic": (lambda: kinds.DynamicLayer(), appended),
    "sliding": (lambda: kinds.DynamicSlidingWindowLayer(WINDOW), appended),
    "static": (lambda: kinds.StaticLayer(SLOTS), appended),
    "static sliding": (lambda: kinds.StaticSlidingWindowLayer(SLOTS, WINDOW), appended),
    "recurrent": (lambda: kinds.LinearAttentionLayer(), recurrent),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(a == b)


@layered
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("before", [0, 1, 4, 9])
@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_the_same_step_gives_the_same_after_a_wrong_one_was_undone(name: str, before: int, tokens: int) -> None:
    new, step = LAYERS[name]
    cache, right = kinds.Cache(layers=[new(), new()]), kinds.Cache(layers=[new(), new()])
    for c in (cache, right):
        for layer in c.layers:
            if before:
                step(layer, before, 0)
    undo = Undo((), {"past_key_values": cache}, ())
    for wrong in (77, 78):  # it can be done more than once
        for layer in cache.layers:
            step(layer, tokens, wrong)
        undo.restore()
        assert name == "recurrent" or int(cache.get_seq_length()) == before
    for i, (mine, theirs) in enumerate(zip(cache.layers, right.layers, strict=True)):
        for seed in (5, 6):
            got, want = step(mine, tokens, seed + i), step(theirs, tokens, seed + i)
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        assert same(vars(mine), vars(theirs))


@layered
def test_a_static_cache_keeps_its_addresses() -> None:
    layer: Any = kinds.StaticLayer(SLOTS)
    appended(layer, 3, 0)
    undo = Undo((), {"past_key_values": kinds.Cache(layers=[layer])}, ())
    addresses = layer.keys.data_ptr(), layer.values.data_ptr(), layer.cumulative_length.data_ptr()
    appended(layer, 1, 1)
    undo.restore()
    assert addresses == (layer.keys.data_ptr(), layer.values.data_ptr(), layer.cumulative_length.data_ptr())


@layered
def test_a_growing_cache_is_not_kept_twice() -> None:
    """Its old tensors may go as soon as the layer has let go of them."""
    layer = kinds.DynamicLayer()
    appended(layer, 3, 0)
    undo = Undo((), {"past_key_values": kinds.Cache(layers=[layer])}, ())
    old = weakref.ref(layer.keys)
    appended(layer, 1, 1)
    assert old() is None
    undo.restore()
    assert layer.get_seq_length() == 3


def test_layers_that_the_forward_added_are_gone_again() -> None:
    cache = DynamicCache()
    undo = Undo((cache,), {}, ())
    cache.update(*kv(3, 0), 0)
    cache.update(*kv(3, 0), 1)
    undo.restore()
    assert len(cache) == 0 and cache.get_seq_length() == 0


@pytest.mark.parametrize("before", [0, 1, 4])
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_whole_growing_cache_gives_the_same_after_a_wrong_step_was_undone(before: int, tokens: int) -> None:
    cache, right = DynamicCache(), DynamicCache()
    for c in (cache, right):
        for i in (0, 2) if before else ():  # layer 1 is skipped
            c.update(*kv(before, 0), i)
    undo = Undo((), {"past_key_values": cache}, ())
    for wrong in (77, 78):
        for i in range(3):
            cache.update(*kv(tokens, wrong), i)
        undo.restore()
        assert cache.get_seq_length() == before
    for seed in (5, 6):
        for i in range(4):
            got, want = cache.update(*kv(tokens, seed + i), i), right.update(*kv(tokens, seed + i), i)
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@unlayered
def test_older_caches_of_other_kinds_are_told() -> None:
    from transformers import Qwen3Config

    config = Qwen3Config(num_hidden_layers=2, head_dim=4, num_key_value_heads=2)
    for kind in (StaticCache, kinds.SlidingWindowCache, kinds.HybridCache):
        config.sliding_window = WINDOW
        with pytest.raises(CannotUndo, match=kind.__name__):
            Undo((), {"past_key_values": kind(config=config, max_batch_size=2, max_cache_len=SLOTS)}, ())


def test_both_halves_of_an_encoder_decoder_cache_are_undone() -> None:
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    cache.self_attention_cache.update(*kv(3, 0), 0)
    undo = Undo((), {"past_key_values": cache}, ())
    cache.self_attention_cache.update(*kv(1, 0), 0)
    cache.cross_attention_cache.update(*kv(5, 0), 0)
    cache.is_updated[0] = True
    undo.restore()
    assert cache.get_seq_length() == 3 and cache.cross_attention_cache.get_seq_length() == 0 and not cache.is_updated


def test_random_numbers_come_again() -> None:
    undo = Undo((), {}, ())
    first = torch.rand(4)
    undo.restore()
    assert torch.equal(torch.rand(4), first)


def test_what_nobody_knows_is_not_put_back_but_told() -> None:
    class Strange:
        pass

    for name in ("past_key_values", "cache_params"):
        with pytest.raises(CannotUndo, match="Strange"):
            Undo((), {name: Strange()}, ())


@layered
def test_a_layer_of_somebody_else_is_told() -> None:
    class Strange:
        pass

    layer: Any = kinds.DynamicSlidingWindowLayer(WINDOW)
    layer.__class__ = type("Own", (kinds.DynamicSlidingWindowLayer,), {})
    layer.secret = Strange()
    with pytest.raises(CannotUndo, match="Strange"):
        Undo((), {"past_key_values": kinds.Cache(layers=[layer])}, ())


def test_older_caches_of_tuples_need_nothing() -> None:
    past = ((torch.ones(1), torch.ones(1)),)
    undo = Undo((), {"past_key_values": past}, ())
    assert not undo.inputs_changed()
    past[0][0].add_(1)
    assert undo.inputs_changed()


@layered
def test_static_lengths_of_one_device_are_noted_together() -> None:
    from linkproof.sim.torch_device import install

    install(4)
    layers: list[Any] = [kinds.StaticLayer(SLOTS) for _ in range(3)]
    for i, layer in enumerate(layers):
        keys, values = kv(2 + i, i)
        layer.update(keys.to("vgpu:1"), values.to("vgpu:1"))
    undo = Undo((), {"past_key_values": kinds.Cache(layers=layers)}, ())
    for layer in layers:
        layer.update(*(x.to("vgpu:1") for x in kv(1, 9)))
    undo.restore()
    assert [int(layer.cumulative_length) for layer in layers] == [2, 3, 4]


def static_cache(tokens: int) -> Any:
    layers: list[Any] = [kinds.StaticLayer(SLOTS) for _ in range(3)]
    for i, layer in enumerate(layers):
        layer.update(*kv(tokens + i, i))
    return kinds.Cache(layers=layers)


def lengths(cache: Any) -> list[int]:
    return [int(layer.cumulative_length) for layer in cache.layers]


@layered
def test_what_was_noted_of_static_layers_is_used_again_only_if_nothing_was_replaced() -> None:
    cache = static_cache(2)
    for before in ([2, 3, 4], [3, 4, 5]):
        undo = Undo((), {"past_key_values": cache}, ())
        noted = kept_notes.get(cache)
        assert noted is not None and noted.holds(cache.layers) and lengths(cache) == before
        for layer in cache.layers:
            layer.update(*kv(1, 9))
        undo.restore()
        assert lengths(cache) == before
        for layer in cache.layers:
            layer.update(*kv(1, 9))
    replaced = cache.layers[1].cumulative_length.clone()  # the same number in another tensor
    cache.layers[1].cumulative_length = replaced
    assert noted is not None and not noted.holds(cache.layers)
    undo = Undo((), {"past_key_values": cache}, ())
    replaced.add_(1)
    undo.restore()
    assert lengths(cache) == [4, 5, 6] and cache.layers[1].cumulative_length is replaced
    cache.layers[2] = kinds.DynamicLayer()
    cache.layers[2].update(*kv(2, 0))
    undo = Undo((), {"past_key_values": cache}, ())
    for layer in cache.layers:
        layer.update(*kv(1, 9))
    undo.restore()
    assert lengths(kinds.Cache(layers=cache.layers[:2])) == [4, 5] and cache.layers[2].get_seq_length() == 2


@layered
def test_nothing_of_a_cache_is_kept_when_it_is_gone() -> None:
    cache = static_cache(2)
    undo = Undo((), {"past_key_values": cache}, ())
    keys = weakref.ref(cache.layers[0].keys)
    del undo, cache
    gc.collect()
    assert keys() is None


@layered
def test_caches_made_by_config_are_known() -> None:
    from transformers import Qwen3Config

    config = Qwen3Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    for cache in (DynamicCache(config=config), StaticCache(config=config, max_cache_len=SLOTS)):
        Undo((), {"past_key_values": cache}, ())
