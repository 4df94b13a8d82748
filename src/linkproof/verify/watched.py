"""The hops of a split model, told by name: which unit a tensor was for, and what it is called there.

In:      the split model, its units and where they lie, a guard in `observe` (or `strict`) mode around it.
Out:     `take(arm)`: a Hops of what went since the last call.
Unknown: a tensor that the model's own code moves inside a unit has no name here, only its unit; nor has any in `strict`.
Source:  the guard counts hops in the order in which accelerate's hook moves them: positional arguments, then named ones, each tree in its order.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

from linkproof.guard.policy import Event
from linkproof.guard.watch import Guard
from linkproof.verified import BadHop, Hops

PAIR = ("cos", "sin")
CACHES = ("cache", "past_key_values")  # the argument's name from transformers 5.24 on, and before
SKIPPED = (*CACHES, "past_key_value")


def named_tensors(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """What a module is given, by the names of its own forward; the two of position_embeddings are cos and sin."""
    names = [n for n in inspect.signature(type(module).forward).parameters if n != "self"]
    for i, value in enumerate(args):
        yield from _leaves(names[i] if i < len(names) else f"argument {i}", value)
    for name, value in kwargs.items():
        yield from _leaves(name, value)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if name in SKIPPED:
        return
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, (tuple, list)):
        pair = name == "position_embeddings" and len(value) == 2
        for i, x in enumerate(value):
            yield from _leaves(PAIR[i] if pair else f"{name}.{i}", x)
    elif isinstance(value, dict):
        for key, x in value.items():
            yield from _leaves(f"{name}.{key}", x)


def cache_name(model: Any) -> str:
    """What the model's forward calls its KV cache."""
    return next((name for name in CACHES if name in inspect.signature(type(model).forward).parameters), CACHES[-1])


class Watched:
    def __init__(self, model: Any, units: dict[str, Any], where: dict[str, str], guard: Guard) -> None:
        self._guard = guard
        self._taken = (0, 0, 0, 0)
        self._first_forward = 0
        self._forwards: list[
            tuple[int, list[tuple[int, str, list[str]]]]
        ] = []  # hops before it; per unit: hops before it, its name, what moves
        self._events: list[Event] = []
        model.register_forward_pre_hook(self._begin)
        for name, unit in units.items():
            unit.register_forward_pre_hook(self._ear(name, torch.device(where[name])), with_kwargs=True)

    def _begin(self, *_: Any) -> None:
        self._drain()
        self._forwards.append((self._guard.metrics.counts.hops, []))

    def _ear(self, name: str, device: torch.device) -> Any:
        def hear(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._forwards:
                moving = [n for n, t in named_tensors(module, args, kwargs) if t.device not in (device, torch.device("cpu"))]
                self._forwards[-1][1].append((self._guard.metrics.counts.hops, name, moving))

        return hear

    def _drain(self) -> None:
        """The guard keeps the last thousand."""
        self._events += self._guard.events
        self._guard.events.clear()

    def take(self, arm: str) -> Hops:
        self._drain()
        counts = self._guard.metrics.counts
        now = counts.hops, counts.size_B, counts.unchecked, counts.mismatches
        hops, size_B, unchecked, bad = (a - b for a, b in zip(now, self._taken, strict=True))
        first: dict[tuple[str, str], BadHop] = {}
        for event in self._events:
            told = self._named(event, arm)
            first.setdefault((told.link, told.tensor), told)
        self._taken, self._events = now, []
        self._first_forward = len(self._forwards)
        return Hops(arm=arm, hops=hops, size_B=size_B, unchecked=unchecked, bad_count=bad, bad=tuple(first.values()))

    def _named(self, event: Event, arm: str) -> BadHop:
        unit, tensor = "input", ""
        if 0 <= event.step < len(self._forwards):
            before, units = self._forwards[event.step]
            for i, (hops, name, moving) in enumerate(units):
                end = units[i + 1][0] if i + 1 < len(units) else None
                if before + event.hop >= hops and (end is None or before + event.hop < end):
                    at = before + event.hop - hops
                    last = end is None and at >= len(moving)  # behind the last unit: the answer on its way home
                    unit, tensor = ("output", "logits" if at == len(moving) else "") if last else (name, "".join(moving[at : at + 1]))
        if self._guard.mode.changes:  # what is served from an earlier copy is no hop, so they cannot be counted off
            tensor = ""
        forward = event.step - self._first_forward
        return BadHop(event.link, unit, tensor, event.kind, arm, forward, event.size_B, event.dtype, event.shape)
