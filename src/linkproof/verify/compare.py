"""How far apart two runs are, and how far apart two correct ones may be.

In:      Runs of the reference and of the split model on the same tokens; Runs of the reference in other ways that are just as right.
Out:     Tolerance; `apart` gives the first unit beyond it; `checks`; `units_by_themselves`.
Unknown: an error smaller than the spread of correct runs cannot be told from rounding.
Source:  a unit's output is compared token by token: length of the difference over length of the reference's (no single large element decides);
         logits by their largest difference, which is what a sampler sees. Positions that are padding are nobody's.
         The tolerance is TIMES the spread that was measured in this very run, at least one rounding step of the type.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from linkproof.verified import NO_NUMBER, BadUnit, Checked, Compared, Place, Spread
from linkproof.verify.trace import Call, Case, Run, Tensors, again

TIMES = 4.0  # two variants are a small sample of all orders in which one may add up
CHECKED = ("position_ids", "cos", "sin", "attention_mask")


# ---------------------------------------------------------------- distances


def relative(got: torch.Tensor, want: torch.Tensor, real: torch.Tensor | None) -> float:
    """Of the worst token. real: [rows, tokens], tokens in the axis before the last."""
    if got.shape != want.shape:
        return NO_NUMBER
    if not got.is_floating_point():
        return 0.0 if torch.equal(got, want) else NO_NUMBER
    a, b = got.float(), want.float()
    length = (a - b).norm(dim=-1) / b.norm(dim=-1).clamp_min(1e-30)
    return _worst(length, (got == want).all(dim=-1), real)


def largest(got: torch.Tensor, want: torch.Tensor, real: torch.Tensor | None) -> float:
    if got.shape != want.shape:
        return NO_NUMBER
    return _worst((got.float() - want.float()).abs().amax(dim=-1), (got == want).all(dim=-1), real)


def _worst(each: torch.Tensor, same: torch.Tensor, real: torch.Tensor | None) -> float:
    each = torch.where(same, torch.zeros_like(each), each)
    if real is not None and real.dim() == 2 and each.dim() >= 2 and each.shape[-1] == real.shape[1]:
        rows = real if each.shape[0] == real.shape[0] else real.any(dim=0, keepdim=True)
        kept = rows.reshape(rows.shape[0], *[1] * (each.dim() - 2), rows.shape[1]).expand(each.shape)
        each = each[kept]
    if not each.numel():
        return 0.0
    worst = float(each.max())
    return min(worst, NO_NUMBER) if worst == worst else NO_NUMBER


def _of_unit(got: Tensors, want: Tensors, real: torch.Tensor) -> float:
    if got.keys() != want.keys():
        return NO_NUMBER
    return max((relative(got[n], want[n], real) for n in want), default=0.0)


def _real(case: Case, forward: int) -> torch.Tensor:
    return case.mask[:, : case.prompt].bool() if forward == 0 else torch.ones(case.ids.shape[0], 1, dtype=torch.bool)


# ---------------------------------------------------------------- what is allowed


class Tolerance:
    """Filled by `correct`: one more right way to compute the same."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.step = torch.finfo(dtype).eps
        self._units: dict[str, float] = defaultdict(float)
        self._kv: dict[int, float] = defaultdict(float)
        self._largest_logit = 0.0
        self.variants: dict[str, float] = defaultdict(float)

    def correct(self, name: str, base: Run, other: Run, case: Case) -> None:
        for i, (one, two) in enumerate(zip(base.forwards, other.forwards, strict=True)):
            for unit in one:
                self._units[unit] = max(self._units[unit], _of_unit(two[unit].out, one[unit].out, _real(case, i)))
        for i, (kv, kv_other) in enumerate(zip(base.kv, other.kv, strict=True)):
            self._kv[i] = max(self._kv[i], *(relative(kv_other[n], kv[n], _kv_real(case, kv[n])) for n in kv), 0.0)
        far, most = _logits_apart(other, base, case)
        self.variants[name] = max(self.variants[name], far)
        self._largest_logit = max(self._largest_logit, most)

    @property
    def logits(self) -> float:
        return max(TIMES * max(self.variants.values(), default=0.0), self.step * self._largest_logit)

    def unit(self, name: str) -> float:
        return max(TIMES * self._units[name], self.step)

    def kv(self, layer: int) -> float:
        return max(TIMES * self._kv[layer], self.step)

    def spread(self) -> Spread:
        return Spread(variants=dict(self.variants), logits=self.logits, units=max(self._units.values(), default=0.0))


def row_of(run: Run, i: int, case: Case) -> Run:
    """One row of a batch, without its padding, as if it had run alone."""
    pad = int((case.mask[i] == 0).sum())
    rows = case.ids.shape[0]

    def cut(t: torch.Tensor, tokens: int, skip: int) -> torch.Tensor:
        if t.dim() and t.shape[0] in (1, rows):
            t = t[min(i, t.shape[0] - 1)][None]
        return t[..., skip:, :] if skip and t.dim() > 2 and t.shape[-2] == tokens else t

    forwards = []
    for n, calls in enumerate(run.forwards):
        skip, tokens = (pad, case.prompt) if n == 0 else (0, 1)
        forwards.append({u: c._replace(out={k: cut(t, tokens, skip) for k, t in c.out.items()}) for u, c in calls.items()})
    logits = [cut(t, t.shape[1], pad if n == 0 else 0) for n, t in enumerate(run.logits)]
    return Run(forwards, logits, [{k: cut(t, t.shape[-2], pad) for k, t in kv.items()} for kv in run.kv])


def first_row(run: Run) -> Run:
    def cut(tensors: Tensors) -> Tensors:
        return {k: t[:1] if t.dim() else t for k, t in tensors.items()}

    return Run(
        [{u: c._replace(out=cut(c.out)) for u, c in calls.items()} for calls in run.forwards],
        [t[:1] for t in run.logits],
        [cut(kv) for kv in run.kv],
    )


def _kv_real(case: Case, kv: torch.Tensor) -> torch.Tensor:
    """A sliding window keeps the last tokens."""
    return case.mask[:, : case.ids.shape[1] - 1].bool()[:, -kv.shape[-2] :]


def _logits_apart(got: Run, want: Run, case: Case) -> tuple[float, float]:
    """Largest difference; largest logit."""
    far = most = 0.0
    for i, (a, b) in enumerate(zip(got.logits, want.logits, strict=True)):
        far = max(far, largest(a, b, _real(case, i)))
        most = max(most, float(b.float().abs().max()))
    return far, most


# ---------------------------------------------------------------- reference and split


def apart(ref: Run, got: Run, case: Case, where: dict[str, str], allowed: Tolerance) -> Compared:
    far, _ = _logits_apart(got, ref, case)
    first = next(((i, u) for i, calls in enumerate(ref.forwards) for u in calls if _beyond(ref, got, i, u, case, allowed)), None)
    tops = [logits[:, -1].float().topk(2).values for logits in ref.logits]
    return Compared(
        case=case.name,
        tokens=int(case.mask.sum()) - case.ids.shape[0],
        logits=far,
        same_bits=far == 0.0 and first is None,
        unit=first and first[1],
        device=first and where[first[1]],
        forward=first and first[0],
        gaps=tuple(tuple(float(top[row, 0] - top[row, 1]) for top in tops) for row in range(case.ids.shape[0])),
    )


def _beyond(ref: Run, got: Run, forward: int, unit: str, case: Case, allowed: Tolerance) -> bool:
    want, have = ref.forwards[forward][unit], got.forwards[forward].get(unit)
    return have is None or _of_unit(have.out, want.out, _real(case, forward)) > allowed.unit(unit)


class Checks:
    """Positions, rotations, masks and KV, of all cases and forwards."""

    def __init__(self) -> None:
        self._places: dict[str, int] = defaultdict(int)
        self._devices: dict[str, set[str]] = defaultdict(set)
        self._bad: dict[str, list[Place]] = defaultdict(list)

    def add(self, ref: Run, got: Run, case: Case, where: dict[str, str], allowed: Tolerance, layers: list[str]) -> None:
        for i, calls in enumerate(ref.forwards):
            for unit, call in calls.items():
                for name, want in call.given.items():
                    what = name.split(".")[0]
                    have = got.forwards[i].get(unit)
                    if what in CHECKED and have is not None and name in have.given:
                        step = 0.0 if _made_alike(calls, got.forwards[i], want) else allowed.step
                        self._compared(what, Place(where[unit], unit, i, case.name), _same(have.given[name], want, step))
        for layer, (unit, kv, kv_got) in enumerate(zip(layers, ref.kv, got.kv, strict=False)):
            if kv:
                far = max(relative(kv_got[n], kv[n], _kv_real(case, kv[n])) if n in kv_got else NO_NUMBER for n in kv)
                self._compared("kv", Place(where[unit], unit, len(ref.forwards) - 1, case.name), far <= allowed.kv(layer))

    def _compared(self, what: str, place: Place, good: bool) -> None:
        self._places[what] += 1
        self._devices[what].add(place.device)
        if not good:
            self._bad[what].append(place)

    def facts(self) -> Iterator[Checked]:
        for what in (*CHECKED, "kv"):
            if self._places[what]:
                yield Checked(what=what, places=self._places[what], devices=len(self._devices[what]), bad=tuple(self._bad[what]))


def _made_alike(calls: dict[str, Call], got: dict[str, Call], want: torch.Tensor) -> bool:
    """The unit that this comes from made the same bits on both sides: then nothing but the same bits may arrive."""
    for unit, call in calls.items():
        for name, made in call.out.items():
            if made.shape == want.shape and torch.equal(made, want):
                other = got[unit].out.get(name) if unit in got else None
                return other is not None and torch.equal(other, want)
    return False


def _same(have: torch.Tensor, want: torch.Tensor, step: float) -> bool:
    """cos and sin may be one rounding step off: another device may have made them. A mask may be written as booleans or as numbers to add."""
    if torch.bool in (have.dtype, want.dtype):
        have, want = (t if t.dtype == torch.bool else t == 0 for t in (have, want))
    if have.shape != want.shape:
        return False
    if torch.equal(have, want) or not want.is_floating_point():
        return torch.equal(have, want)
    return bool(((have.float() - want.float()).abs() <= step).all()) and float(want.abs().max()) <= 4  # in a mask the bits decide


class Found(NamedTuple):
    compared: int
    bad: list[BadUnit]


def units_by_themselves(units: dict[str, Any], got: Run, case: Case, where: dict[str, str], allowed: Tolerance, device: str) -> Found:
    """What each unit was given on its device, through the reference's: a difference here is made by that device or by its weights."""
    bad = []
    calls = got.forwards[0] if got.forwards else {}
    for unit, call in calls.items():
        distance = _of_unit(call.out, again(units[unit], call, device), _real(case, 0))
        if distance > allowed.unit(unit):
            bad.append(BadUnit(unit, where[unit], distance, allowed.unit(unit), 0, case.name))
    return Found(len(calls), bad)


def wrong_while_writing(told: Compared, ref: Run, got: Run, case: Case, where: dict[str, str], allowed: Tolerance) -> list[BadUnit]:
    """All was right up to a later forward, and there the first unit beyond its tolerance was given what the reference was given: its own doing."""
    if not told.forward or told.unit is None:
        return []
    want, have = ref.forwards[told.forward][told.unit], got.forwards[told.forward].get(told.unit)
    if have is None or not _given_alike(want, have, case, told.forward, allowed, told.unit):
        return []
    distance = _of_unit(have.out, want.out, _real(case, told.forward))
    return [BadUnit(told.unit, where[told.unit], distance, allowed.unit(told.unit), told.forward, case.name)]


def _given_alike(want: Call, have: Call, case: Case, forward: int, allowed: Tolerance, unit: str) -> bool:
    return have.given.keys() == want.given.keys() and all(
        relative(have.given[n], t, _real(case, forward)) <= allowed.unit(unit) if t.dim() > 1 else torch.equal(have.given[n], t)
        for n, t in want.given.items()
    )
