"""The JSON contract of `explain`: versioned, sorted, stable. The text forms are made of it, so they cannot say anything else.

In:      a Diagnosis and a language.
Out:     Report; `as_json` its bytes, `schema` its JSON Schema (the one shipped as `explain.schema.json`).
Unknown: what could not be judged stands in `not_checked`, texts in which nothing was recognised have `recognised: false`, texts that
         were not read stand in `skipped`.
Raises:  nothing.
Source:  this file is the source; a change that takes something away or gives it another meaning is a new `schema` number.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from linkproof.model import Diagnosis, Next, Source, Unknown, Weighed
from linkproof.report.masking import masked
from linkproof.report.pages import page
from linkproof.report.say import say


class Cite(Struct, frozen=True):
    """Where it stands. line 0: the text as a whole. Secrets are masked."""

    file: str
    line: int
    text: str


class SignSaid(Struct, frozen=True, rename={"speaks_for": "for"}):
    """weight in nats: 0.7 doubles the odds, 2.3 makes them ten to one. stands: the mechanism itself was seen, failure or not."""

    speaks_for: bool
    weight: Annotated[float, Meta(ge=0)]
    text: str
    source: Cite
    decisive: bool
    stands: bool = False


class CauseSaid(Struct, frozen=True, rename={"cls": "class"}):
    """Best first; ruled-out ones after all others. `what` is one sentence."""

    id: str
    cls: str
    confidence: Annotated[float, Meta(ge=0, le=1)]
    state: Literal["confirmed", "likely", "possible", "ruled_out"]
    title: str
    what: str
    signs: tuple[SignSaid, ...]
    fix: tuple[str, ...]
    workaround: tuple[str, ...]


class NextSaid(Struct, frozen=True):
    """command: what gives the answer, or "" if `do` says it."""

    do: str
    kind: Literal["command", "question"]
    command: str
    tells_apart: tuple[str, ...]


class NotCheckedSaid(Struct, frozen=True):
    cause: str
    text: str
    do: str


class NoteSaid(Struct, frozen=True):
    text: str
    source: Cite


class ConsumerSaid(Struct, frozen=True):
    """What one engine may do. settings: what keeps it off the broken way now, none if there is no switch. at_risk and not_reached come from
    the leading cause. Measured: safe; safe_with the settings, whose way is proven too; at_risk: settings, if any, lead to a way that was not
    proven; unknown: something was not tested. modes: those that decide it, () if a cause does."""

    state: Literal["safe", "safe_with", "at_risk", "unknown", "not_reached"]
    settings: tuple[str, ...]
    modes: tuple[str, ...] = ()


class TextRead(Struct, frozen=True):
    """lines as in the file. recognised: at least one line of it said something that is known."""

    name: str
    lines: int
    recognised: bool


class TextSkipped(Struct, frozen=True):
    name: str
    why: str


class Report(Struct, frozen=True):
    schema: Literal[1]
    verdict: Literal["healthy", "faulty", "cannot_tell"]
    causes: tuple[CauseSaid, ...]
    next: tuple[NextSaid, ...]
    not_checked: tuple[NotCheckedSaid, ...]
    notes: tuple[NoteSaid, ...]
    consumers: dict[str, ConsumerSaid]
    texts: tuple[TextRead, ...]
    skipped: tuple[TextSkipped, ...]


# ---------------------------------------------------------------- from a diagnosis


def report_of(diagnosis: Diagnosis, lang: str) -> Report:
    i = 2 if lang == "zh" else 1
    causes = sorted(diagnosis.causes, key=lambda w: w.state == "ruled_out")  # stable: best first stays
    unread = {fact.source.file for fact in diagnosis.facts if isinstance(fact, Unknown)}
    return Report(
        schema=1,
        verdict=diagnosis.verdict,  # type: ignore[arg-type]
        causes=tuple(cause_said(w, lang) for w in causes),
        next=tuple(_next(n, lang) for n in diagnosis.next),
        not_checked=tuple(NotCheckedSaid(n.cause, masked(say(n.text, n.args, lang)), n.do) for n in diagnosis.not_checked),
        notes=tuple(NoteSaid(masked(say(n.text, n.args, lang)), _cite(n.source)) for n in diagnosis.notes),
        consumers={name: ConsumerSaid(c.state, c.settings, c.modes) for name, c in diagnosis.consumers.items()},  # type: ignore[arg-type]
        texts=tuple(TextRead(masked(name), lines, name not in unread) for name, lines in diagnosis.texts),
        skipped=tuple(TextSkipped(masked(s[0]), s[i]) for s in diagnosis.skipped),
    )


def _cite(source: Source) -> Cite:
    return Cite(masked(source.file), source.line, masked(source.text))


def _next(n: Next, lang: str) -> NextSaid:
    return NextSaid(masked(say(n.text, n.args, lang)), n.kind, n.args.get("command", ""), n.tells_apart)  # type: ignore[arg-type]


def cause_said(w: Weighed, lang: str) -> CauseSaid:
    about = page(w.id, lang)
    out = w.state == "ruled_out"
    signs = tuple(
        SignSaid(s.speaks_for, round(s.weight, 2), masked(say(s.text, s.args, lang)), _cite(s.source), s.decisive, s.stands)
        for s in sorted(w.signs, key=lambda s: (not s.decisive, -s.weight))
    )
    return CauseSaid(
        id=w.id,
        cls=w.cls,
        confidence=w.confidence,
        state=w.state,  # type: ignore[arg-type]
        title=about.title,
        what=about.what,
        signs=signs,
        fix=() if out else about.fix,
        workaround=() if out else about.workaround,
    )


# ---------------------------------------------------------------- to JSON


def as_json(report: Report) -> str:
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


def schema() -> str:
    """What stands in `explain.schema.json`."""
    return published(Report, "explain")


def published(kind: object, command: str) -> str:
    """The schema of what a command prints, the same with every version of msgspec: newer ones take the indent off a docstring."""
    from inspect import cleandoc  # start-up does without it

    words = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"linkproof {command} --format json",
        **msgspec.json.schema(kind),
    }
    for about in (words, *words.get("$defs", {}).values()):
        if "description" in about:
            about["description"] = cleandoc(about["description"])
    return msgspec.json.format(msgspec.json.encode(words), indent=2).decode() + "\n"
