"""What a forward changes, noted before it runs, so that it can be run again as if it had not: the KV cache and the random numbers.

In:      the arguments of the model's forward.
Out:     Undo; `restore` may be called several times. None if something is in there that cannot be put back: then each hop is compared
         before it is used (`strict`).
Unknown: what a model keeps elsewhere (attributes of its own, Python's random) is not known here.
Raises:  nothing.
Source:  transformers' cache layers, by what their `update` does:
             DynamicLayer appends and makes new tensors        its length is noted; putting back cuts
             StaticLayer writes at its length, in place        its length is noted; the same slots are written again
             DynamicSlidingWindowLayer makes new tensors       the old ones are kept until the forward is through: one window a layer
             every other kind (recurrent states, static windows, quantised): its tensors are copied first
         Before transformers 4.54 a cache has no layers: a DynamicCache is two lists of tensors and is cut alike, every other kind cannot be undone.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any

import torch

CACHE, GROWS, STATIC, REPLACED = "Cache", "DynamicLayer", "StaticLayer", "DynamicSlidingWindowLayer"
HOME = "transformers.cache_utils"
SIMPLE = (bool, int, float, str, torch.dtype, torch.device, type, type(None))


class CannotUndo(Exception):
    pass


class Undo:
    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], devices: Iterable[torch.device]) -> None:
        """Raises CannotUndo."""
        self._steps: list[Callable[[], None]] = []
        self._layers: list[tuple[Any, dict[str, Any]]] = []  # with their attributes
        self._inputs: list[tuple[torch.Tensor, int]] = []
        for name, value in [*((None, a) for a in args), *kwargs.items()]:
            self._keep(name, value)
        self._steps.append(_random_state(devices))

    def restore(self) -> None:
        with torch.no_grad():
            for step in self._steps:
                step()
            for layer, state in self._layers:
                for k, v in state.items():
                    setattr(layer, k, _shallow(v))

    def inputs_changed(self) -> bool:
        """The model wrote into what it was given: the same forward cannot be run again."""
        return any(t._version != version for t, version in self._inputs)

    def _keep(self, name: str | None, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            if not value.is_inference():
                self._inputs.append((value, value._version))
        elif _kinds[type(value)] == CACHE:
            self._cache(value)
        elif isinstance(value, (tuple, list)):
            for x in value:  # an older cache is tuples of tensors that a forward replaces
                self._keep(None, x)
        elif not isinstance(value, SIMPLE) and (name or "").startswith(("past", "cache")):
            raise CannotUndo(type(value).__name__)

    def _cache(self, cache: Any) -> None:
        own = {k: _shallow(v) for k, v in vars(cache).items()}
        layers = own.get("layers")
        nested = [v for v in own.values() if _kinds[type(v)] == CACHE]
        if layers is None and type(cache).__module__ == HOME and type(cache).__name__ == "DynamicCache":
            for name in ("key_cache", "value_cache"):
                self._steps.append(_list_cut(cache, name, own.pop(name)))
            layers = []
        if not isinstance(layers, list) and not nested:
            raise CannotUndo(type(cache).__name__)
        if any(isinstance(v, torch.Tensor) for v in own.values()):
            raise CannotUndo(type(cache).__name__)

        def put_back() -> None:
            for k, v in own.items():
                setattr(cache, k, _shallow(v))

        self._steps.append(put_back)
        for other in nested:
            self._cache(other)
        self._all_layers(cache, layers or [])

    def _all_layers(self, cache: Any, layers: list[Any]) -> None:
        """Some forty of them for each token, so what is asked of each is little; of static ones, only whether they are as they were."""
        noted = _noted.get(cache)
        if noted is None or not noted.holds(layers):
            states = [vars(layer).copy() for layer in layers]
            if not _flat(states):
                states = [{k: _shallow(v) for k, v in state.items()} for state in states]
            noted = _Static(layers, states)
            if len(noted.static) < len(layers):
                for layer, state in zip(layers, states, strict=True):
                    if id(layer) not in noted.static:
                        self._layer(layer, _kinds[type(layer)], state)
            elif layers:
                _noted[cache] = noted
        self._steps += [_lengths_of(some) for some in noted.lengths.values()]  # one small copy per device, not one per layer
        self._layers += zip(layers, noted.states, strict=True)

    def _layer(self, layer: Any, kind: str, state: dict[str, Any]) -> None:
        if kind == GROWS:
            keys = state.pop("keys", None)
            values = state.pop("values", None)
            if keys is None:
                state["keys"] = state["values"] = None
            else:
                state_length = keys.shape[-2] if keys.dim() > 1 else 0
                empty = None if keys.dim() > 1 else (keys, values)
                self._steps.append(lambda: _cut(layer, state_length, empty))
        elif kind != REPLACED:
            self._steps += [_copied(t) for t in _tensors(state.values())]


class _Static:
    """Layers and their attributes; of the static ones among them (by id), whose tensors stay the same from token to token, the lengths by device.

    Holds no cache: it is gone when that is.
    """

    def __init__(self, layers: list[Any], states: list[dict[str, Any]]) -> None:
        self.layers, self.states = list(layers), states
        self.static: set[int] = set()
        self.lengths: dict[torch.device, list[torch.Tensor]] = {}
        for layer, state in zip(layers, states, strict=True):
            length = state.get("cumulative_length")
            if _kinds[type(layer)] == STATIC and isinstance(length, torch.Tensor):
                self.static.add(id(layer))
                self.lengths.setdefault(length.device, []).append(length)

    def holds(self, layers: list[Any]) -> bool:
        """Nothing in there has been replaced."""
        if len(layers) != len(self.layers):
            return False
        for layer, known, state in zip(layers, self.layers, self.states, strict=True):
            now = vars(layer)
            if layer is not known or len(now) != len(state) or not all(map(is_, now.values(), state.values())):
                return False
        return True


_noted: weakref.WeakKeyDictionary[Any, _Static] = weakref.WeakKeyDictionary()  # of caches that are static in all their layers


class _Kinds(dict[type, str]):
    """Of each class: CACHE, one of the three kinds of layers above, or nothing."""

    def __missing__(self, cls: type) -> str:
        kind = cls.__name__ if cls.__module__ == HOME and cls.__name__ in (GROWS, STATIC, REPLACED) else ""
        if any(c.__name__ == CACHE and c.__module__ == HOME for c in cls.__mro__):
            kind = CACHE
        self[cls] = kind
        return kind


_kinds = _Kinds()


def _flat(states: list[dict[str, Any]]) -> bool:
    """No list or dictionary in there."""
    kinds = set(map(type, itertools.chain.from_iterable([state.values() for state in states])))
    return not any(issubclass(kind, (dict, list)) for kind in kinds)


def _shallow(value: Any) -> Any:
    return value.copy() if isinstance(value, (dict, list)) else value


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    found = []
    for v in values:
        if isinstance(v, torch.Tensor):
            found.append(v)
        elif isinstance(v, dict):
            found += _tensors(v.values())
        elif isinstance(v, (tuple, list)):
            found += _tensors(v)
        elif not isinstance(v, SIMPLE):
            raise CannotUndo(type(v).__name__)
    return found


def _copied(t: torch.Tensor) -> Callable[[], None]:
    with torch.no_grad():
        before = t.detach().clone()

    def put_back() -> None:
        t.copy_(before)

    return put_back


def _lengths_of(lengths: list[Any]) -> Callable[[], None]:
    before = torch.stack(lengths)

    def put_back() -> None:
        for i, length in enumerate(lengths):
            length.copy_(before[i])

    return put_back


def _cut(layer: Any, length: int, empty: tuple[Any, Any] | None) -> None:
    if empty is not None:
        layer.keys, layer.values = empty
    else:
        layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]


def _list_cut(cache: Any, name: str, before: list[Any]) -> Callable[[], None]:
    """The old tensors are not held, but for the empty ones of layers that were skipped."""
    lengths = [x.shape[-2] if isinstance(x, torch.Tensor) and x.dim() > 1 else x for x in before]

    def put_back() -> None:
        now = zip(lengths, getattr(cache, name), strict=False)
        setattr(cache, name, [x[..., :n, :] if isinstance(n, int) else n for n, x in now])

    return put_back


def _random_state(devices: Iterable[torch.device]) -> Callable[[], None]:
    before = torch.default_generator.get_state()
    gpus = [torch.cuda.default_generators[d.index] for d in devices if d.type == "cuda"]
    offsets = [g.get_offset() for g in gpus]  # the seed stays

    def put_back() -> None:
        torch.default_generator.set_state(before)
        for g, offset in zip(gpus, offsets, strict=True):
            g.set_offset(offset)

    return put_back
