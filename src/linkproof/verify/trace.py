"""A model on given tokens, with everything that its units are given and give kept on the host.

In:      a model, its units; a Case: token ids, padded on the left, of which the last ones are the answer.
Out:     `forced`: a Run, forward by forward: the prompt, then one token each. `again`: what a unit of the reference makes of such an input.
Unknown: what a unit keeps elsewhere than in the KV cache.
Raises:  whatever the model raises.
Source:  accelerate's own hooks: appended to those that move tensors, ours sees what has arrived.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from accelerate.hooks import ModelHook, add_hook_to_module

from linkproof.verify.watched import SKIPPED, cache_name, named_tensors

Tensors = dict[str, torch.Tensor]


class Case(NamedTuple):
    """ids, mask: [rows, prompt + new] on the host; mask is 0 where a row is padded. new: tokens of the answer at the end of each row."""

    name: str
    ids: torch.Tensor
    mask: torch.Tensor
    new: int

    @property
    def prompt(self) -> int:
        return self.ids.shape[1] - self.new

    def row(self, i: int, times: int = 1) -> Case:
        """One row alone, without its padding; times: that often."""
        real = self.mask[i].bool()
        ids = self.ids[i][real].repeat(times, 1)
        return Case(self.name, ids, torch.ones_like(ids), self.new)


class Call(NamedTuple):
    """One unit in one forward, on the host. args, kwargs: as it was called, without the cache; only kept if asked for."""

    given: Tensors
    out: Tensors
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Run(NamedTuple):
    """forwards[i][unit]; logits[i]: [rows, tokens, words]; kv: unit-less, layer by layer, two tensors [rows, heads, tokens, size]."""

    forwards: list[dict[str, Call]]
    logits: list[torch.Tensor]
    kv: list[Tensors]


class Ears:
    """On all units of one model, for good; they keep something only during `forced`."""

    def __init__(self, model: Any, units: dict[str, Any]) -> None:
        self.model, self.units = model, units
        self.kept: dict[str, Call] | None = None
        self.whole = False
        for name, unit in units.items():
            add_hook_to_module(unit, _Ear(self, name), append=True)


class _Ear(ModelHook):  # type: ignore[misc]
    def __init__(self, ears: Ears, name: str) -> None:
        self.ears, self.name = ears, name
        self.call: tuple[Tensors, tuple[Any, ...], dict[str, Any]] = {}, (), {}

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        if self.ears.kept is not None:
            given = {n: on_host(t) for n, t in named_tensors(module, args, kwargs)}
            self.call = (given, _tree(args, on_host), _tree(kwargs, on_host)) if self.ears.whole else (given, (), {})
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        if self.ears.kept is not None:
            given, args, kwargs = self.call
            self.ears.kept[self.name] = Call(given, outputs(output), args, kwargs)
        return output


def on_host(t: torch.Tensor) -> torch.Tensor:
    return t.detach().clone() if t.device.type == "cpu" else t.detach().cpu()


def outputs(output: Any) -> Tensors:
    return {
        str(i): on_host(x) for i, x in enumerate(output if isinstance(output, (tuple, list)) else [output]) if isinstance(x, torch.Tensor)
    }


def _tree(value: Any, moved: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return moved(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_tree(x, moved) for x in value)
    if isinstance(value, dict):
        return {k: None if k in SKIPPED else _tree(v, moved) for k, v in value.items()}
    return value


def forced(ears: Ears, case: Case, device: Any, whole: bool = False) -> Run:
    """whole: keep the arguments of the prompt's forward too, for `again`."""
    run = Run([], [], [])
    positions = (case.mask.cumsum(-1) - 1).clamp_min(0)
    past, name = None, cache_name(ears.model)
    with torch.no_grad():
        for begin, end in _pieces(case):
            ears.kept, ears.whole = {}, whole and begin == 0
            try:
                out = ears.model(
                    input_ids=case.ids[:, begin:end].to(device),
                    attention_mask=case.mask[:, :end].to(device),
                    position_ids=positions[:, begin:end].to(device),
                    use_cache=True,
                    **{name: past},
                )
            finally:
                kept, ears.kept = ears.kept, None
            past = getattr(out, name)
            run.forwards.append(kept)
            run.logits.append(on_host(out.logits))
    run.kv.extend(_kv(past))
    return run


def _pieces(case: Case) -> list[tuple[int, int]]:
    """The prompt at once, then each token of the answer but the last, which nobody reads."""
    return [(0, case.prompt), *((case.prompt + i, case.prompt + i + 1) for i in range(case.new - 1))]


def _kv(cache: Any) -> list[Tensors]:
    layers = getattr(cache, "layers", None)
    if layers is None:  # before transformers 4.54
        pairs: list[Any] = list(zip(getattr(cache, "key_cache", ()), getattr(cache, "value_cache", ()), strict=False))
        return [{"k": on_host(k), "v": on_host(v)} for k, v in pairs]
    return [
        {name[0]: on_host(getattr(layer, name)) for name in ("keys", "values") if isinstance(getattr(layer, name, None), torch.Tensor)}
        for layer in layers
    ]


def again(unit: Any, call: Call, device: str) -> Tensors:
    """The same input through a unit of the reference. The prompt's forward only: nothing was in the cache before it."""
    with torch.no_grad():
        return outputs(unit(*_tree(call.args, lambda t: t.to(device)), **_tree(call.kwargs, lambda t: t.to(device))))
