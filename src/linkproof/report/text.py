"""Report -> text for a person, in a terminal or a pipe.

In:      a Report, a language, how wide, whether everything is wanted.
Out:     Rows, in the order in which a person asks: what is it, why, what do I do, what else could it be, what would settle it,
         what did you not look at. `say_all` shows what is otherwise cut, and cited lines in full length.
Unknown: an empty section is left out; what could not be judged has a section of its own.
Raises:  nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from linkproof.report.contract import CauseSaid, Cite, Report, SignSaid
from linkproof.report.layout import Piece, Row, cut, width_of, wrapped
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

SIGNS_FOR, SIGNS_AGAINST, BULLETS, OTHERS, RULED_OUT, STEPS, UNCHECKED = 6, 4, 4, 4, 3, 3, 3  # shown without --all
MEANWHILE = 0.25  # from here on the leader's workaround is worth a try although the verdict is open


class Sheet:
    """A growing text."""

    def __init__(self, report: Report, width: int, t: Teller, say_all: bool, whole_names: bool = False) -> None:
        self.rows: list[Row] = []
        self.width, self.t, self.say_all = width, t, say_all
        self._short = {} if whole_names else short_names(report)

    def head(self, words: str) -> None:
        self.rows += [[], *wrapped([Piece(words, "head")], self.width)]

    def put(self, *pieces: Piece, indent: int = 2, hang: int | None = None) -> None:
        self.rows += wrapped(pieces, self.width, indent, hang)

    def item(self, words: str, mark: str = "-", style: str = "", indent: int = 2) -> None:
        lead = f"{mark} "
        self.put(Piece(lead, style), Piece(words), indent=indent, hang=indent + width_of(lead))

    def command(self, words: str, indent: int) -> None:
        """Never torn, however wide, so that it can be copied."""
        self.rows.append([Piece(" " * indent), Piece(f"$ {words}", "code")])

    def place(self, source: Cite) -> str:
        """`dmesg.txt:412`"""
        name = self._short.get(source.file, source.file)
        return f"{name}:{source.line}" if source.line else name

    def cite(self, source: Cite, indent: int) -> None:
        """Two rows at most, unless everything is wanted."""
        words = f"{self.place(source)}  {source.text}".rstrip()
        rows = wrapped([Piece(words, "cite")], self.width, indent, indent + 2)
        if not self.say_all and len(rows) > 2:
            shown = "".join(piece.text for piece in rows[0][1:])
            rest = cut(words[len(shown) :].lstrip(), self.width - indent - 2)
            rows = [rows[0], [Piece(" " * (indent + 2)), Piece(rest, "cite")]]
        self.rows += rows

    def more(self, left: int, indent: int = 2) -> None:
        if left > 0:
            self.put(Piece(self.t("... and {n} more (--all)", n=left), "quiet"), indent=indent)


def short_names(report: Report) -> dict[str, str]:
    """Path -> its last part, where that is enough to tell the texts apart."""
    cited = {sign.source.file for cause in report.causes for sign in cause.signs}
    names = cited | {text.name for text in report.texts} | {note.source.file for note in report.notes}
    last = {name: name.rstrip("/").rsplit("/", 1)[-1] for name in names}
    ends = list(last.values())
    return {name: end for name, end in last.items() if end and ends.count(end) == 1}


def text(report: Report, lang: str, width: int = 100, say_all: bool = False) -> list[Row]:
    sheet = Sheet(report, max(40, width), Teller(lang), say_all)
    sections(sheet, report)
    _read(sheet, report)
    return sheet.rows


def sections(sheet: Sheet, report: Report) -> None:
    """Everything but what was read."""
    live = [c for c in report.causes if c.state != "ruled_out"]
    top = leader(report)
    _verdict(sheet, report, top)
    if top is not None:
        _why(sheet, top)
        _what_to_do(sheet, report, top)
    _others(sheet, live[1:] if top else live, top)
    _ruled_out(sheet, [c for c in report.causes if c.state == "ruled_out"])
    _next(sheet, report)
    noted(sheet, report)
    _unchecked(sheet, report)


def _verdict(sheet: Sheet, report: Report, top: CauseSaid | None) -> None:
    style = {"faulty": "bad", "healthy": "good"}.get(report.verdict, "open")
    sheet.put(Piece(verdict_words(report, top, sheet.t), style), indent=0)
    if top is None:
        return
    if top.what:
        sheet.put(Piece(top.what))
    sheet.put(Piece(f"{top.id} · {class_words(top.cls, sheet.t)}", "quiet"))


# ---------------------------------------------------------------- why


def _why(sheet: Sheet, cause: CauseSaid) -> None:
    t = sheet.t
    speak = [s for s in cause.signs if s.speaks_for]
    against = [s for s in cause.signs if not s.speaks_for]
    if speak:
        sheet.head(t("Why"))
        _signs(sheet, speak, SIGNS_FOR)
    if against:
        sheet.head(t("What speaks against it"))
        _signs(sheet, against, SIGNS_AGAINST)
    if speak or against:
        sheet.put(Piece(t("+ hint, ++ strong, +++ very strong; - the same, against it"), "quiet"))


def _signs(sheet: Sheet, signs: Sequence[SignSaid], most: int) -> None:
    """Strongest first; signs of one line stand together above it."""
    groups: dict[tuple[str, int, str], list[SignSaid]] = {}
    shown = signs if sheet.say_all else signs[:most]
    for sign in shown:
        groups.setdefault((sign.source.file, sign.source.line, sign.source.text), []).append(sign)
    for group in groups.values():
        for sign in group:
            style = "for" if sign.speaks_for else "against"
            settles = f" ({sheet.t('this alone settles it')})" if sign.decisive else ""
            sheet.item(sign.text + settles, f"{band(sign):<3}", style)
        if group[0].source.file:
            sheet.cite(group[0].source, 8)
    sheet.more(len(signs) - len(shown), 6)


# ---------------------------------------------------------------- what to do


def _what_to_do(sheet: Sheet, report: Report, top: CauseSaid) -> None:
    t = sheet.t
    if report.verdict == "faulty":
        head = t("What to do now")
    elif top.confidence >= MEANWHILE:
        head = t("Worth trying meanwhile: if it is this, it goes away")
    else:
        return
    if has_settings(report):
        sheet.head(head)
        engines(sheet, report)
        if sheet.say_all:
            _bullets(sheet, t("The same in detail"), top.workaround)
    else:
        _bullets(sheet, head, top.workaround)
        if report.consumers:
            sheet.put(Piece(reach_words(report, t)))
    if report.verdict == "faulty":
        _bullets(sheet, t("What mends it for good"), top.fix)
    if top.what:
        sheet.put(Piece(t("In full: `linkproof causes {id}`", id=top.id), "quiet"))


def engines(sheet: Sheet, report: Report) -> None:
    """A line for each: safe, safe with settings, at risk, not known."""
    for name, engine in report.consumers.items():
        sheet.put(Piece(f"{name:<14}"), *consumer_words(engine, sheet.t), hang=16)


def _bullets(sheet: Sheet, head: str, bullets: Sequence[str]) -> None:
    if not bullets:
        return
    sheet.head(head)
    shown = bullets if sheet.say_all else bullets[:BULLETS]
    for words in shown:
        sheet.item(words)
    sheet.more(len(bullets) - len(shown))


# ---------------------------------------------------------------- what else


def _others(sheet: Sheet, causes: Sequence[CauseSaid], top: CauseSaid | None) -> None:
    if not causes:
        return
    t = sheet.t
    sheet.head(t("What else it could be") if top else t("What it could be"))
    shown = causes if sheet.say_all else causes[:OTHERS]
    for cause in shown:
        sheet.put(Piece(f"{percent(cause.confidence):>5}  "), Piece(cause.title), Piece(f"  {cause.id}", "quiet"), hang=9)
        found = [sign for sign in telling(cause, top) if sign is not None]
        for sign in found:
            style = "for" if sign.speaks_for else "against"
            sheet.item(f"{sign.text}  ({sheet.place(sign.source)})", f"{band(sign):<3}", style, 9)
        if not found:
            sheet.put(Piece(t("nothing but what speaks for the first one too"), "quiet"), indent=9)
    sheet.more(len(causes) - len(shown), 9)


def _ruled_out(sheet: Sheet, causes: Sequence[CauseSaid]) -> None:
    if not causes:
        return
    sheet.head(sheet.t("Often suspected, ruled out here"))
    shown = causes if sheet.say_all else causes[:RULED_OUT]
    for cause in shown:
        _, sign = telling(cause, None)
        why = sheet.t("{title}: {reason}", title=cause.title, reason=sign.text) if sign else cause.title
        sheet.item(f"{why}  ({sheet.place(sign.source)})" if sign else why)
    sheet.more(len(causes) - len(shown))


# ---------------------------------------------------------------- what next, and what is missing


def _next(sheet: Sheet, report: Report) -> None:
    if not report.next:
        return
    t = sheet.t
    sheet.head(t("What would make it certain"))
    shown = report.next if sheet.say_all else report.next[:STEPS]
    for number, step in enumerate(shown, 1):
        sheet.item(step.do, f"{number}.")
        if step.command:
            sheet.command(step.command, 5)
        if len(step.tells_apart) > 1:
            sheet.put(Piece(t("tells apart: {causes}", causes=", ".join(step.tells_apart)), "quiet"), indent=5)
    sheet.more(len(report.next) - len(shown))


def noted(sheet: Sheet, report: Report) -> None:
    if report.notes:
        sheet.head(sheet.t("Worth knowing"))
        for note in report.notes:
            sheet.item(note.text, "!")
            if note.source.file:
                sheet.cite(note.source, 4)


def _unchecked(sheet: Sheet, report: Report) -> None:
    if not report.not_checked:
        return
    sheet.head(sheet.t("Not checked"))
    shown = report.not_checked if sheet.say_all else report.not_checked[:UNCHECKED]
    for gap in shown:
        sheet.item(gap.text)
        if gap.do:
            sheet.command(gap.do, 4)
    sheet.more(len(report.not_checked) - len(shown))


def _read(sheet: Sheet, report: Report) -> None:
    t = sheet.t
    most = 1000 if sheet.say_all else 5

    def names(all_names: Sequence[str]) -> str:
        left = len(all_names) - most
        return ", ".join(all_names[:most]) + (" " + t("... and {n} more (--all)", n=left) if left > 0 else "")

    sheet.rows.append([])
    sheet.put(Piece(read_words(report, t), "quiet"), indent=0)
    if odd := [text.name for text in report.texts if not text.recognised]:
        sheet.put(Piece(t("Nothing was recognised in: {names}", names=names(odd))), indent=0)
    if report.skipped:
        skipped = names([f"{s.name} ({s.why})" for s in report.skipped])
        sheet.put(Piece(t("Not read: {names}", names=skipped)), indent=0)
