"""Small words that the text and the Markdown form share: the verdict in one line, how strong a sign is, percent, what a class means."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import LEADS
from linkproof.report.contract import CauseSaid, ConsumerSaid, Report, SignSaid
from linkproof.report.layout import Piece
from linkproof.report.say import Teller

STRONG, VERY_STRONG = 1.6, 3.5  # nats: five to one, thirty to one


def band(sign: SignSaid) -> str:
    """`+` hint, `++` strong, `+++` very strong or decisive; `-` the same against."""
    times = 3 if sign.decisive or sign.weight >= VERY_STRONG else 2 if sign.weight >= STRONG else 1
    return ("+" if sign.speaks_for else "-") * times


def percent(share: float) -> str:
    """Never 100 %: something else is always possible."""
    return f"{min(99, round(share * 100))} %" if share >= 0.005 else "< 1 %"


def class_words(cls: str, t: Teller) -> str:
    words = {
        "fabric": t("fabric: the path between GPUs"),
        "comm_software": t("comm_software: the library that talks over the links"),
        "host_config": t("host_config: settings of host, container, driver or launch"),
        "network": t("network: the wire between hosts"),
        "not_comm": t("not_comm: not communication at all"),
    }
    return words.get(cls, cls)


def consumer_words(engine: ConsumerSaid, t: Teller) -> Iterator[Piece]:
    modes = ", ".join(engine.modes)
    settings = "  ".join(f"`{setting}`" for setting in engine.settings)
    if engine.state == "not_reached":
        yield Piece(t("not reached by this"))
    elif engine.state == "safe":
        yield Piece(t("safe: all that it needs was tested and is right"))
    elif engine.state == "safe_with":
        yield Piece(
            t(
                "safe with {settings}: the way that it then takes was tested and is right; bad without: {modes}",
                settings=settings,
                modes=modes,
            )
        )
    elif engine.state == "unknown":
        yield Piece(t("cannot tell: {modes} was not tested", modes=modes))
    elif engine.settings and modes:
        yield Piece(t("at risk (bad: {modes}). Set now: {settings} (that way was not tested)", modes=modes, settings=settings))
    elif engine.settings:
        yield Piece(t("set now: "))
        yield Piece(settings)
    elif modes:
        yield Piece(t("at risk (bad: {modes}), and no setting moves it off: one GPU, or mend the cause", modes=modes))
    else:
        yield Piece(t("at risk, and no setting moves it off: one GPU, or mend the cause"))


def has_settings(report: Report) -> bool:
    """Some engine can be moved off the broken way by a setting, or each was measured; otherwise a table of engines says little."""
    return any(engine.settings or engine.state not in ("at_risk", "not_reached") for engine in report.consumers.values())


def reach_words(report: Report, t: Teller) -> str:
    """Which engines the cause reaches, in one line."""
    reached = [name for name, engine in report.consumers.items() if engine.state == "at_risk"]
    spared = [name for name, engine in report.consumers.items() if engine.state != "at_risk"]
    words = t("Reaches {engines}.", engines=", ".join(reached))
    return f"{words} {t('Does not reach {engines}.', engines=', '.join(spared))}" if spared else words


def leader(report: Report) -> CauseSaid | None:
    """The cause that the report is about, if one stands out at all."""
    top = next((c for c in report.causes if c.state != "ruled_out"), None)
    return top if top is not None and report.verdict != "healthy" and (report.verdict == "faulty" or top.confidence >= LEADS) else None


def telling(cause: CauseSaid, top: CauseSaid | None) -> tuple[SignSaid | None, SignSaid | None]:
    """The strongest sign for and the strongest against a cause, of those that the leading one does not share."""
    shared = {(s.text, s.source) for s in top.signs} if top is not None else set()
    own = [s for s in cause.signs if (s.text, s.source) not in shared]
    return next((s for s in own if s.speaks_for), None), next((s for s in own if not s.speaks_for), None)


def read_words(report: Report, t: Teller) -> str:
    lines = sum(text.lines for text in report.texts)
    texts = t("1 text") if len(report.texts) == 1 else t("{n} texts", n=len(report.texts))
    return t("Read: {texts}, {lines}.", texts=texts, lines=t("1 line") if lines == 1 else t("{n} lines", n=f"{lines:,}"))


def verdict_words(report: Report, top: CauseSaid | None, t: Teller) -> str:
    if report.verdict == "healthy":
        return t("Healthy: the copies and collectives that were measured are right, and nothing given shows a failure")
    if top is None and any(c.state != "ruled_out" for c in report.causes):
        return t("Cannot tell yet: what is given speaks clearly for no cause")
    if top is None:
        return t("Cannot tell: nothing was recognised that speaks for a cause. That is not a sign of health")
    share = percent(top.confidence)
    if report.verdict == "cannot_tell":
        return t("Cannot tell yet. Leading: {title} ({percent})", title=top.title, percent=share)
    if top.state == "confirmed":
        return t("Cause, confirmed: {title} ({percent})", title=top.title, percent=share)
    return t("Likely cause: {title} ({percent})", title=top.title, percent=share)
