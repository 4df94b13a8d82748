"""Report -> Markdown, fit to be pasted in an issue: whole lines, nothing cut, secrets masked.

In:      a Report, a language, the version that made it.
Out:     str. Cited lines stand in code, so nothing in them acts as Markdown or HTML.
Unknown: an empty section is left out.
Raises:  nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.report.contract import CauseSaid, Cite, Report, SignSaid
from linkproof.report.layout import plain
from linkproof.report.say import Teller
from linkproof.report.words import (
    band,
    class_words,
    consumer_words,
    has_settings,
    leader,
    percent,
    reach_words,
    read_words,
    telling,
    verdict_words,
)


def markdown(report: Report, lang: str, version: str) -> str:
    return "\n".join(_lines(report, Teller(lang), version)) + "\n"


def code(text: str) -> str:
    """A code span that the text cannot end: one backtick more than it holds in a row."""
    run, longest = 0, 0
    for c in text:
        run = run + 1 if c == "`" else 0
        longest = max(longest, run)
    fence = "`" * (longest + 1)
    pad = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _prose(text: str) -> str:
    """Signs quote values of the person's text: these must not become tags, links or mentions. `code` in advice stays."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick without its pair opens no code
        parts = ["\\`".join(parts)]
    for i in range(0, len(parts), 2):
        parts[i] = "".join("\\" + c if c in "<[*_|" else "@\u200b" if c == "@" else c for c in parts[i])
    return "`".join(parts)


def _lines(report: Report, t: Teller, version: str) -> Iterator[str]:
    live = [c for c in report.causes if c.state != "ruled_out"]
    top = leader(report)
    yield f"## {_prose(verdict_words(report, top, t))}"
    if top is not None:
        yield ""
        yield f"{_prose(top.what)} " if top.what else ""
        yield f"({code(top.id)}, {_prose(class_words(top.cls, t))})"
        yield from _cause_signs(t("Why"), [s for s in top.signs if s.speaks_for])
        yield from _cause_signs(t("What speaks against it"), [s for s in top.signs if not s.speaks_for])
        yield from _list(t("What to do now"), top.workaround)
        yield from _list(t("What mends it for good"), top.fix)
    if report.consumers and not has_settings(report):
        yield from ["", reach_words(report, t)]
    elif report.consumers:
        rows = [f"- {name}: {plain([list(consumer_words(c, t))]).strip()}" for name, c in report.consumers.items()]
        yield from ["", f"### {t('For your engine')}", "", *rows]
    yield from _others(t("What else it could be") if top else t("What it could be"), live[1:] if top else live, top)
    yield from _others(t("Often suspected, ruled out here"), [c for c in report.causes if c.state == "ruled_out"], None)
    if report.next:
        yield from ["", f"### {t('What would make it certain')}", ""]
        for number, step in enumerate(report.next, 1):
            command = f" {code(step.command)}" if step.command else ""
            apart = f" ({', '.join(code(i) for i in step.tells_apart)})" if len(step.tells_apart) > 1 else ""
            yield f"{number}. {_prose(step.do)}{command}{apart}"
    yield from _list(t("Worth knowing"), [n.text for n in report.notes])
    yield from _list(t("Not checked"), [f"{n.text}: `{n.do}`" if n.do else n.text for n in report.not_checked])
    yield from _read(report, t, version)


def _place(source: Cite) -> str:
    return code(f"{source.file}:{source.line}" if source.line else source.file)


def _cause_signs(head: str, signs: list[SignSaid]) -> Iterator[str]:
    if not signs:
        return
    yield from ["", f"### {head}", ""]
    for sign in signs:
        yield f"- {code(band(sign))} {_prose(sign.text)}"
        cited = f" {code(sign.source.text)}" if sign.source.text else ""
        yield f"  - {_place(sign.source)}{cited}"


def _others(head: str, causes: list[CauseSaid], top: CauseSaid | None) -> Iterator[str]:
    if not causes:
        return
    yield from ["", f"### {head}", ""]
    for cause in causes:
        share = "" if cause.state == "ruled_out" else f" ({percent(cause.confidence)})"
        yield f"- {_prose(cause.title)}, {code(cause.id)}{share}"
        for sign in telling(cause, top):
            if sign is not None and not (sign.speaks_for and cause.state == "ruled_out"):
                yield f"  - {code(band(sign))} {_prose(sign.text)} ({_place(sign.source)})"


def _list(head: str, items: tuple[str, ...] | list[str]) -> Iterator[str]:
    if items:
        yield from ["", f"### {head}", "", *(f"- {_prose(item)}" for item in items)]


def _read(report: Report, t: Teller, version: str) -> Iterator[str]:
    yield ""
    yield f"linkproof {version}. {read_words(report, t)}"
    if odd := [text.name for text in report.texts if not text.recognised]:
        yield t("Nothing was recognised in: {names}", names=", ".join(map(code, odd)))
    if report.skipped:
        yield t("Not read: {names}", names=", ".join(f"{code(s.name)} ({s.why})" for s in report.skipped))
