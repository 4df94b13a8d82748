"""Facts -> Verified: who lied. Pure.

In:      Facts in the order in which they came; the tensor parallel arm, if there was one.
Out:     Verified.
Unknown: what was not reached is in `not_tested`, and then nothing is healthy.
Source:  what each kind of evidence can have been made by, and by nothing else:

    link     the bits at the two ends of a hop differ
    load     the bits of a weight on its device are not the checkpoint's
    kernel   same input bits, same weight bits, another device: another result, further off than correct runs are from each other
    numeric  a result that differs, no further off than that: no cause, and healthy
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from msgspec import structs

from linkproof.verified import (
    NO_NUMBER,
    Agreement,
    BadHop,
    BadUnit,
    Checked,
    Compared,
    Fact,
    Failed,
    Finding,
    Hops,
    NotTested,
    Parting,
    Ranks,
    Spread,
    Subject,
    Tokens,
    Units,
    Verified,
    Weights,
)

F = TypeVar("F", bound=Fact)
RANKS_ROUND = 2.0  # ranks round their parts of a sum before they are added: tensor parallel may be so much further off
NO_MEMORY = ("OutOfMemoryError", "MemoryError")


def judged(facts: Sequence[Fact], ranks: Ranks | None, took_s: float) -> Verified:
    compared, hops, failed = _all(facts, Compared), _all(facts, Hops), _all(facts, Failed)
    spread, weights, units = _last(facts, Spread), _last(facts, Weights), _last(facts, Units)
    checked = _all(facts, Checked)
    if ranks is not None and ranks.parted and spread is not None and ranks.logit_distance is not None:
        ranks = structs.replace(ranks, numeric=ranks.logit_distance <= RANKS_ROUND * spread.logits < NO_NUMBER)
    agreement = tuple(_agreement(facts, compared, arm) for arm in ("greedy", "sampled") if _sides(facts, arm))
    causes = [*_links(hops), *_loads(weights), *_kernels(units, hops, weights), *_ranks(ranks)]
    if not causes:
        causes += _failures(failed)
    if not causes:
        causes += _unexplained(agreement, compared, checked, spread)
    why = _open(facts, ranks)
    verdict = "faulty" if causes else "cannot_tell" if why else "healthy"
    return Verified(
        verdict=verdict,  # type: ignore[arg-type]
        numeric=verdict == "healthy" and not all(c.same_bits for c in compared),
        causes=tuple(causes),
        why=why.text if why and verdict == "cannot_tell" else "",
        why_args=why.args if why and verdict == "cannot_tell" else {},
        subject=_last(facts, Subject),
        agreement=agreement,
        spread=spread,
        compared=tuple(compared),
        checked=tuple(checked),
        weights=weights,
        units=units,
        hops=tuple(hops),
        failed=tuple(failed),
        ranks=ranks,
        not_tested=tuple(_all(facts, NotTested)),
        took_s=took_s,
    )


def far_words(far: float) -> str:
    return "nan" if far >= NO_NUMBER else f"{far:.2g}"


def _all(facts: Sequence[Fact], kind: type[F]) -> list[F]:
    return [f for f in facts if isinstance(f, kind)]


def _last(facts: Sequence[Fact], kind: type[F]) -> F | None:
    found = _all(facts, kind)
    return found[-1] if found else None


# ---------------------------------------------------------------- tokens


def _sides(facts: Sequence[Fact], arm: str) -> tuple[Tokens, Tokens] | None:
    sides = {t.side: t for t in _all(facts, Tokens) if t.arm == arm}
    return (sides["reference"], sides["split"]) if len(sides) == 2 else None


def _agreement(facts: Sequence[Fact], compared: Sequence[Compared], arm: str) -> Agreement:
    found = _sides(facts, arm)
    assert found is not None
    reference, split = found
    gaps = [row for c in compared for row in c.gaps] if arm == "greedy" else []
    total = equal = 0
    partings = []
    for prompt, (want, got) in enumerate(zip(reference.rows, split.rows, strict=True)):
        at = next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), min(len(want), len(got)))
        total, equal = total + len(want), equal + at
        if at < max(len(want), len(got)):
            gap = gaps[prompt][at] if prompt < len(gaps) and at < len(gaps[prompt]) else None
            partings.append(Parting(arm, prompt, at, want[at] if at < len(want) else None, got[at] if at < len(got) else None, gap))
    return Agreement(arm, total, equal, tuple(partings))


# ---------------------------------------------------------------- causes


def _links(hops: Sequence[Hops]) -> Iterator[Finding]:
    by_link: dict[str, list[BadHop]] = {}
    for bad in (b for h in hops for b in h.bad):
        by_link.setdefault(bad.link, []).append(bad)
    for link, bads in by_link.items():
        first = bads[0]
        tensors = ", ".join(dict.fromkeys(b.tensor for b in bads if b.tensor))
        args = {"link": link, "unit": first.unit, "kind": first.kind, "tensors": tensors, "arm": first.arm, "forward": str(first.forward)}
        dst = link.partition(" -> ")[2]
        text = "{link} delivered other bytes than were sent ({kind}): {tensors}, first on the way to {unit}"
        if not tensors:
            text = "{link} delivered other bytes than were sent ({kind}), first on the way to {unit}"
        yield Finding("link", text, args, link=link, device=dst, unit=first.unit, tensor=first.tensor)


def _loads(weights: Weights | None) -> Iterator[Finding]:
    by_device: dict[str, list[str]] = {}
    early = set()
    for bad in weights.bad if weights else ():
        by_device.setdefault(bad.device, []).append(bad.name)
        early |= {bad.device} if bad.before_run else set()
    for device, names in by_device.items():
        args = {"device": device, "name": names[0], "n": str(len(names))}
        if device == "host":
            text = "{n} weights were loaded into host memory otherwise than the checkpoint's files have them, first {name}"
        elif device in early:
            text = "{n} weights on {device} are not the checkpoint's since they were loaded, first {name}"
        else:
            text = "{n} weights on {device} were loaded right and changed while the model ran, first {name}"
        yield Finding("load", text, args, device=device, unit=names[0].rpartition(".")[0], tensor=names[0])


def _kernels(units: Units | None, hops: Sequence[Hops], weights: Weights | None) -> Iterator[Finding]:
    """Not where the unit's weights are wrong or a hop inside it lied; and in later forwards, whose cache cannot be given again, only if no link did."""
    bad_weights = [(b.device, b.name) for b in (weights.bad if weights else ())]
    lied_inside = {b.unit for h in hops for b in h.bad if not b.tensor}
    lied = any(h.bad for h in hops)
    by_device: dict[str, list[BadUnit]] = {}
    for bad in units.bad if units else ():
        spoilt = any(device == bad.device and name.startswith(bad.unit + ".") for device, name in bad_weights)
        if not (spoilt or bad.unit in lied_inside or (bad.forward and (lied or bad_weights))):
            by_device.setdefault(bad.device, []).append(bad)
    for device, bads in by_device.items():
        first = bads[0]
        names = list(dict.fromkeys(b.unit for b in bads))
        args = {
            "device": device,
            "unit": first.unit,
            "n": str(len(names)),
            "far": far_words(first.distance),
            "allowed": f"{first.tolerance:.2g}",
        }
        text = "{device} computes {unit} otherwise than the reference, from the same input and the same weights (off by {far}, {allowed} is allowed)"
        if len(names) > 1:
            text = (
                "{device} computes {n} units otherwise than the reference, from the same input and the same weights,"
                " first {unit} (off by {far}, {allowed} is allowed)"
            )
        yield Finding("kernel", text, args, device=device, unit=first.unit)


def _ranks(ranks: Ranks | None) -> Iterator[Finding]:
    if ranks is None or ranks.numeric:
        return
    odd = "" if ranks.odd_rank is None else str(ranks.odd_rank)
    args = {"ranks": str(ranks.ranks), "why": ranks.why, "odd": odd, "name": ranks.weights_bad[0] if ranks.weights_bad else ""}
    if ranks.weights_bad:
        yield Finding(
            "load", "tensor parallel: a rank holds other weights than the checkpoint, first {name}", args, tensor=ranks.weights_bad[0]
        )
    elif ranks.state == "died":
        yield Finding("failed", "tensor parallel on {ranks} ranks died: {why}", args)
    elif ranks.state == "differs":
        yield Finding(
            "unexplained",
            "tensor parallel on {ranks} ranks answers otherwise, and rank {odd} is the odd one: {why}"
            if odd
            else "tensor parallel on {ranks} ranks answers otherwise: {why}",
            args,
            device=odd,
        )


def _failures(failed: Sequence[Failed]) -> Iterator[Finding]:
    """Of the split model only, and not for want of memory."""
    found = [f for f in failed if f.side == "split" and f.error not in NO_MEMORY]
    if found and not any(f.side == "reference" for f in failed):
        args = {"arm": found[0].arm, "error": found[0].error, "text": found[0].text}
        text = "the split model ended with {error} ({arm}) where the reference did not, and no link, weight or kernel was caught: {text}"
        yield Finding("failed", text, args)


def _unexplained(
    agreement: Sequence[Agreement], compared: Sequence[Compared], checked: Sequence[Checked], spread: Spread | None
) -> Iterator[Finding]:
    """The answers differ by more than correct runs do, and nothing was caught that explains it."""
    if spread is None or spread.logits >= NO_NUMBER:
        return
    allowed = spread.logits
    for c in compared:
        if c.logits > allowed or c.unit is not None:
            args = {
                "case": c.case,
                "far": far_words(c.logits),
                "allowed": f"{allowed:.3g}",
                "unit": c.unit or "-",
                "device": c.device or "-",
            }
            text = "the split model's logits are off by {far} ({allowed} is allowed), first at {unit} on {device}: no cause was caught"
            yield Finding("unexplained", text, args, device=c.device or "", unit=c.unit or "")
            return
    for check in checked:
        if check.bad:
            args = {"what": check.what, "unit": check.bad[0].unit, "device": check.bad[0].device}
            text = "{what} differs from the reference at {unit} on {device}, though no hop was caught with it"
            yield Finding("unexplained", text, args, device=check.bad[0].device, unit=check.bad[0].unit, tensor=check.what)
            return
    exact = bool(compared) and all(c.same_bits for c in compared)
    for a in agreement:
        for p in a.partings:
            if exact or (p.gap is not None and p.gap > 2 * allowed):
                args = {"arm": a.arm, "prompt": str(p.prompt + 1), "token": str(p.token + 1)}
                text = "{arm} answers part at token {token} of prompt {prompt}, and on the same tokens both sides agree: it does not happen every time"
                yield Finding("unexplained", text, args)
                return


# ---------------------------------------------------------------- what keeps it from being healthy


def _open(facts: Sequence[Fact], ranks: Ranks | None) -> NotTested | None:
    """The first thing that would have to be known and is not."""
    failed = _all(facts, Failed)
    if failed:
        f = failed[0]
        return _not("{side} ended with {error} ({arm}): {text}", side=f.side or "linkproof", error=f.error, arm=f.arm, text=f.text)
    if split := next((n for n in _all(facts, NotTested) if n.text.startswith("nothing was split")), None):
        return split
    spread = _last(facts, Spread)
    if spread is not None and max(spread.logits, spread.units) >= NO_NUMBER:
        return _not("the reference itself gives nan or infinite numbers: there is nothing to compare with")
    hops = _all(facts, Hops)
    if not sum(h.hops - h.unchecked for h in hops):
        return _not("no tensor was seen to go from device to device")
    wanted: tuple[tuple[type[Fact], str], ...] = (
        (Spread, "tolerance"), (Compared, "logits"), (Checked, "position_ids, cos, sin, mask, kv"), (Weights, "weights"), (Units, "units"),
    )  # fmt: skip
    for kind, what in wanted:
        if not _all(facts, kind):
            return _not("this was not compared: {what}", what=what)
    if ranks is not None and ranks.state == "not_tested":
        return _not("tensor parallel was not tested: {why}", why=ranks.why)
    return None


def _not(template: str, /, **args: str) -> NotTested:
    return NotTested(text=template, args=args)
