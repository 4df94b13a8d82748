"""The sentences of `verify`: the verdict in one line, what to do about a cause, how the tolerance was set.

In:      parts of a Verified, a Teller.
Out:     one sentence each.
"""

from __future__ import annotations

from collections.abc import Sequence

from linkproof.report.say import Teller
from linkproof.verified import Agreement, Checked, Cut, Finding, Spread, Verified


def headline(v: Verified, t: Teller) -> str:
    if v.verdict == "healthy":
        if v.numeric:
            return t("Healthy: split, it answers as on one device, within what correct runs differ by")
        return t("Healthy: split, it answers as on one device, bit by bit")
    if v.verdict == "cannot_tell":
        args = v.why_args | ({"why": t(v.ranks.why, **v.ranks.why_args)} if "why" in v.why_args and v.ranks else {})
        return t("Cannot tell: {why}", why=t(v.why, **args))
    kinds = {c.kind for c in v.causes}
    if kinds == {"link"}:
        links = ", ".join(c.link for c in v.causes)
        same = bool(v.agreement) and not any(a.partings for a in v.agreement)
        if same:
            return t("Faulty: {links} delivered wrong bytes, although the tokens came out the same this time", links=links)
        if v.weights is None or v.units is None:
            return t("Faulty: {links} delivered wrong bytes", links=links)
        return t("Faulty: {links} delivered wrong bytes; weights and kernels are right", links=links)
    if kinds == {"load"}:
        if not v.hops:
            return t("Faulty: weights are not those of the checkpoint")
        return t("Faulty: weights are not those of the checkpoint; the links carried what they were given")
    if kinds == {"kernel"}:
        return t("Faulty: a device computes otherwise than the reference; weights and links are right")
    if kinds == {"failed"}:
        return t("Faulty: split, it does not run to its end")
    if kinds == {"unexplained"}:
        return t("Faulty: split, it answers otherwise than on one device, and the cause was not caught")
    return t("Faulty, with more than one cause")


def do_words(c: Finding, t: Teller) -> str:
    if c.kind == "link":
        src, _, dst = c.link.partition(" -> ")
        pair = f"{src.rpartition(':')[2]}:{dst.rpartition(':')[2]}"
        if c.link.startswith("vgpu"):
            return t("the link is simulated; `linkproof.guard(model)` would have given the right tokens over it")
        return t(
            "`linkproof check --pair {pair}` for its cause; until it is mended, `linkproof.guard(model)` gives the right tokens", pair=pair
        )
    if c.kind == "load":
        if c.device == "host":
            return t("read the checkpoint again from where it came from: the disk, its cache or host memory is at fault")
        return t("load it again: if the same weight is wrong, look at the file; if another, at the memory of {device} and its way to the host",
                 device=c.device)  # fmt: skip
    if c.kind == "kernel":
        return t("run it with {device} alone and again with another kernel (eager attention, no compiled extensions): a kernel launched on the "
                 "wrong device does this, and so does failing memory of a GPU", device=c.device)  # fmt: skip
    if c.kind == "failed":
        return t("`linkproof explain` reads the full message; `linkproof check` tests every link by itself")
    return t("run it again, with more tokens (--new) and other prompts (--prompt); `linkproof check` tests every link by itself")


def spread_words(spread: Spread, t: Teller) -> str:
    ways = ", ".join(f"{t(name)} {far:.2g}" for name, far in spread.variants.items())
    return t("{allowed} is allowed for logits: four times what correct runs on the reference differ by ({ways}), at least one rounding step",
             allowed=f"{spread.logits:.2g}", ways=ways)  # fmt: skip


def agreement_words(a: Agreement, allowed: float | None, t: Teller) -> str:
    if not a.partings:
        return t("all {n} the same", n=a.tokens)
    p = a.partings[0]
    words = t(
        "{equal} of {n} the same; prompt {prompt} parts at token {token}", equal=a.equal, n=a.tokens, prompt=p.prompt + 1, token=p.token + 1
    )
    if p.gap is not None and allowed is not None:
        if p.gap <= 2 * allowed:
            return words + t(", where two tokens are {gap} apart: rounding can decide", gap=f"{p.gap:.2g}")
        return words + t(", where the first token leads by {gap}: more than rounding", gap=f"{p.gap:.2g}")
    return words


def check_words(check: Checked, t: Teller) -> str:
    if not check.bad:
        return t("{n} times on {devices} devices as on the reference", n=check.places, devices=check.devices)
    first = check.bad[0]
    return t("{bad} of {n} differ from the reference, first at {unit} on {device}", bad=len(check.bad), n=check.places, unit=first.unit,
             device=first.device)  # fmt: skip


def cut_words(cut: Sequence[Cut]) -> str:
    return ", ".join(f"{c.name} {c.was} -> {c.now}" for c in cut)


def size_words(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"
