"""What `verify` says: the JSON contract, and the text made of it.

In:      a Verified and a language.
Out:     VerifyReport; `as_json` its bytes, `schema` its JSON Schema (shipped as `verify.schema.json`); `text` its rows.
Unknown: what was not compared has no line in the table and stands under "Not tested".
Raises:  nothing.
Source:  this file is the source; a change that takes something away or gives it another meaning is a new `schema` number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec
from msgspec import Struct

from linkproof.report.contract import published
from linkproof.report.layout import Piece, Row, width_of, wrapped
from linkproof.report.say import Teller
from linkproof.report.verify_words import agreement_words, check_words, cut_words, do_words, headline, size_words, spread_words
from linkproof.verified import (
    NO_NUMBER,
    Agreement,
    Checked,
    Compared,
    Failed,
    Finding,
    Hops,
    Ranks,
    Spread,
    Subject,
    Units,
    Verified,
    Weights,
)


class CauseFound(Struct, frozen=True):
    """kind: link (two ends of a hop differ), load (weights on the device differ from the checkpoint), kernel (a device computes otherwise), failed
    (ended with an error), unexplained (wrong, and nothing was caught). What does not apply is ""."""

    kind: Literal["link", "load", "kernel", "failed", "unexplained"]
    text: str
    do: str
    link: str
    device: str
    unit: str
    tensor: str


class VerifyReport(Struct, frozen=True, kw_only=True):
    """The fields after `causes` are the evidence, as in linkproof.verified; null or empty: not reached. took_s in seconds."""

    schema: Literal[1]
    verdict: Literal["healthy", "faulty", "cannot_tell"]
    headline: str
    numeric: bool
    causes: tuple[CauseFound, ...]
    subject: Subject | None
    agreement: tuple[Agreement, ...]
    spread: Spread | None
    compared: tuple[Compared, ...]
    checked: tuple[Checked, ...]
    weights: Weights | None
    units: Units | None
    hops: tuple[Hops, ...]
    failed: tuple[Failed, ...]
    ranks: Ranks | None
    not_tested: tuple[str, ...]
    took_s: float


def verify_report(verified: Verified, lang: str) -> VerifyReport:
    t = Teller(lang)
    v = verified
    return VerifyReport(
        schema=1,
        verdict=v.verdict,
        headline=headline(v, t),
        numeric=v.numeric,
        causes=tuple(_found(c, v.ranks, t) for c in v.causes),
        subject=v.subject,
        agreement=v.agreement,
        spread=v.spread,
        compared=v.compared,
        checked=v.checked,
        weights=v.weights,
        units=v.units,
        hops=v.hops,
        failed=v.failed,
        ranks=v.ranks,
        not_tested=tuple(t(n.text, **n.args) for n in v.not_tested),
        took_s=round(v.took_s, 2),
    )


def _found(c: Finding, ranks: Ranks | None, t: Teller) -> CauseFound:
    what = c.args.get("kind", "")
    args = c.args | ({"kind": t(what)} if what else {})
    if "why" in args and ranks is not None:
        args["why"] = t(ranks.why, **ranks.why_args)
    return CauseFound(c.kind, t(c.text, **args), do_words(c, t), c.link, c.device, c.unit, c.tensor)


def as_json(report: VerifyReport) -> str:
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


def schema() -> str:
    """What stands in `verify.schema.json`."""
    return published(VerifyReport, "verify")


# ---------------------------------------------------------------- text

STYLES = {"healthy": "good", "faulty": "bad", "cannot_tell": "open"}
Line = tuple[str, bool | None, str]  # name, right or wrong or neither, words


def text(report: VerifyReport, lang: str, width: int = 100) -> list[Row]:
    t = Teller(lang)
    rows = wrapped([Piece(report.headline, STYLES[report.verdict])], width)
    rows += _subject(report.subject, t, width)
    for cause in report.causes:
        rows += [[], *wrapped([Piece("! ", "bad"), Piece(cause.text)], width, 0, 2), *wrapped([Piece("→ "), Piece(cause.do)], width, 2, 4)]
    for f in () if any(c.kind == "failed" for c in report.causes) else report.failed:
        name = f.side or "linkproof"
        words = t("{side}, {arm}: ended with {error}: {text}", side=t(name), arm=t(f.arm), error=f.error, text=f.text)
        rows += [[], *wrapped([Piece("! ", "open"), Piece(words)], width, 0, 2)]
    lines = list(_lines(report, t))
    if lines:
        rows += [[], *wrapped([Piece(t("What was compared with one device"), "head")], width)]
        first = max(width_of(name) for name, _, _ in lines) + 2
        for name, right, words in lines:
            mark = {True: Piece("✓ ", "good"), False: Piece("✗ ", "bad"), None: Piece("· ", "quiet")}[right]
            rows += wrapped([mark, Piece(name + " " * (first - width_of(name))), Piece(words)], width, 2, 4 + first)
    if report.spread is not None:
        rows += [[], *wrapped([Piece(spread_words(report.spread, t), "quiet")], width)]
    if report.not_tested:
        rows += [[], *wrapped([Piece(t("Not tested"), "head")], width)]
        for words in report.not_tested:
            rows += wrapped([Piece("- "), Piece(words)], width, 2, 4)
    rows += [[], *wrapped([Piece(t("took {s} s", s=f"{report.took_s:,.0f}"), "quiet")], width)]
    return rows


def _subject(subject: Subject | None, t: Teller, width: int) -> Iterator[Row]:
    if subject is None:
        return
    weights = t("random weights in the shape of {source}", source=subject.source) if subject.random else t("its checkpoint's weights")
    about = f"{subject.model}: {subject.family}, {weights}, {subject.dtype}, {size_words(subject.parameters)}"
    yield from wrapped([Piece(about, "quiet")], width, 2)
    if subject.cut:
        yield from wrapped([Piece(t("cut to fit: {cut}", cut=cut_words(subject.cut)), "open")], width, 2)
    for stage in subject.stages:
        units = stage.units[0] if len(stage.units) == 1 else f"{stage.units[0]} .. {stage.units[-1]} ({len(stage.units)})"
        yield from wrapped([Piece(f"{stage.device}  {units}", "quiet")], width, 2, 4)
    how = (
        t("reference: {device}, layer by layer", device=subject.reference)
        if subject.layered
        else t("reference: {device}", device=subject.reference)
    )
    if subject.virtual:
        how += t("; the devices are simulated, so nothing here speaks of this machine's GPUs")
    yield from wrapped([Piece(how, "quiet")], width, 2)


def _lines(report: VerifyReport, t: Teller) -> Iterator[Line]:
    for a in report.agreement:
        yield t("tokens, {arm}", arm=t(a.arm)), None if a.partings else True, agreement_words(a, _allowed(report), t)
    for c in report.compared:
        allowed = report.spread.logits if report.spread else 0.0
        right = c.logits <= allowed and c.unit is None
        words = (
            t("the same bits")
            if c.same_bits
            else t(
                "off by {far} at most, {allowed} is allowed",
                far="nan" if c.logits >= NO_NUMBER else f"{c.logits:.2g}",
                allowed=f"{allowed:.2g}",
            )
        )
        if c.unit is not None:
            words += t("; first beyond: {unit} on {device}", unit=c.unit, device=c.device)
        yield t("logits, {case}", case=t(c.case)), right, words
    for check in report.checked:
        yield check.what, not check.bad, check_words(check, t)
    if report.weights is not None:
        w = report.weights
        words = t("{n} tensors, {size}, on every device the bits of the checkpoint", n=w.tensors, size=_MB(w.size_B))
        if w.from_files:
            words += t(" ({n} read from its files again)", n=w.from_files)
        if w.bad:
            words = t("{bad} of {n} are not the checkpoint's: {names}", bad=len(w.bad), n=w.tensors, names=_few([b.name for b in w.bad]))
        yield t("weights"), not w.bad, words
    if report.units is not None:
        u = report.units
        words = t("{n} times the same input on both devices gave the same within the spread", n=u.compared)
        if u.bad:
            names = _few([f"{b.unit} ({b.device})" for b in u.bad])
            words = t("{bad} of {n} gave something else from the same input: {names}", bad=len(u.bad), n=u.compared, names=names)
        yield t("kernels"), not u.bad, words
    if report.hops:
        hops, size_B = sum(h.hops for h in report.hops), sum(h.size_B for h in report.hops)
        bad, open_ = sum(h.bad_count for h in report.hops), sum(h.unchecked for h in report.hops)
        words = t("{n} hops, {size}, every one arrived as it was sent", n=hops, size=_MB(size_B))
        if bad:
            words = t("{bad} of {n} hops arrived otherwise than they were sent", bad=bad, n=hops)
        if open_:
            words += t("; {n} could not be looked at", n=open_)
        yield t("links"), None if open_ and not bad else not bad, words
    if report.ranks is not None:
        r = report.ranks
        words = t(r.state) + (f": {t(r.why, **r.why_args)}" if r.why else "") + (t("; rounding can do that") if r.numeric else "")
        yield (
            t("tensor parallel, {n} ranks", n=r.ranks),
            {"agrees": True, "not_tested": None}.get(r.state, None if r.numeric else False),
            words,
        )


def _allowed(report: VerifyReport) -> float | None:
    """What rounding may do to a logit; None once more than rounding was at work."""
    if report.spread is None or any(c.logits > report.spread.logits for c in report.compared) or any(h.bad for h in report.hops):
        return None
    return report.spread.logits


def _MB(size_B: int) -> str:
    return f"{size_B / 1e6:,.1f} MB"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
