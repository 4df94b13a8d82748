"""What `fix` says, as text for a person under stress: what will happen first, then each step with its price, the next command last.

In:      what report/fix.py made.
Out:     Rows. `say_all` shows long lists in full.
Unknown: as there; nothing is said here that is not in the JSON.
Raises:  nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from linkproof.report.contract import ConsumerSaid
from linkproof.report.fix import (
    AppliedSaid,
    ChangeSaid,
    FixSaid,
    NextSaid,
    PairSaid,
    PlanSaid,
    ReappliedSaid,
    RefusalSaid,
    ResultSaid,
    RolledBackSaid,
    StandSaid,
    StatusSaid,
    StepSaid,
)
from linkproof.report.fix_words import effect_words, joined, lasts_words, pair_words
from linkproof.report.layout import Piece, Row, width_of, wrapped
from linkproof.report.say import Teller
from linkproof.report.words import consumer_words

SHOWN, REASONS = 8, 5  # of a long list, of the reasons of a step, without --all
GOOD = ("helped", "in_place", "not_needed", "in_force", "waits_for_reboot", "restored", "as_before", "done", "back", "nothing")
OPEN = ("not_known", "by_hand", "not_readable", "cannot_tell", "refused", "steps")
GUARD = "linkproof run -- CMD"


def style(state: str) -> str:
    return "good" if state in GOOD else "open" if state in OPEN else "bad"


class Page:
    def __init__(self, lang: str, width: int, say_all: bool) -> None:
        self.t, self.width, self.say_all = Teller(lang), max(40, width), say_all
        self.rows: list[Row] = []

    def headline(self, words: str, state: str) -> None:
        self.rows += wrapped([Piece(words, style(state))], self.width)

    def head(self, words: str) -> None:
        self.rows += [[], *wrapped([Piece(words, "head")], self.width)]

    def put(self, words: str, look: str = "", indent: int = 2, hang: int | None = None) -> None:
        self.rows += wrapped([Piece(words, look)], self.width, indent, hang)

    def item(self, words: str, mark: str = "-", indent: int = 2) -> None:
        self.put(f"{mark} {words}", indent=indent, hang=indent + width_of(mark) + 1)

    def command(self, words: str, indent: int, mark: str = "") -> None:
        """Never torn, however wide, so that it can be copied."""
        for line in words.splitlines():
            shown = "".join(c if c.isprintable() else "?" for c in line)
            self.rows.append([Piece(" " * indent), Piece(mark + shown, "code")])

    def fields(self, named: Iterable[tuple[str, Sequence[str]]], indent: int) -> None:
        """`name   text` with the texts below each other; a name without a text is left out."""
        held = [(name, texts) for name, texts in named if any(texts)]
        room = max((width_of(name) for name, _ in held), default=0) + 2
        for name, texts in held:
            for number, words in enumerate(self.few(texts, REASONS if name == self.t("why") else SHOWN)):
                lead = name if number == 0 else ""
                pieces = [Piece(lead + " " * (room - width_of(lead)), "quiet"), Piece(words)]
                self.rows += wrapped(pieces, self.width, indent, indent + room)

    def few(self, texts: Sequence[str], most: int = SHOWN) -> Sequence[str]:
        if self.say_all or len(texts) <= most:
            return texts
        return [*texts[: most - 1], self.t("... and {n} more (--all)", n=len(texts) - most + 1)]

    def by_hand(self, commands: Sequence[str], indent: int) -> None:
        for words in self.few(commands):
            self.command(words, indent)

    def next(self, commands: Sequence[NextSaid]) -> None:
        if commands:
            self.head(self.t("Next"))
            for n in commands:
                self.command(n.command, 2, "$ ")
                self.put(n.why, "quiet", 4)


def text(said: FixSaid, lang: str, width: int = 100, say_all: bool = False) -> list[Row]:
    page = Page(lang, width, say_all)
    page.headline(said.headline, said.state)
    if isinstance(said, PlanSaid):
        _plan(page, said)
    elif isinstance(said, AppliedSaid | ReappliedSaid):
        _applied(page, said)
    elif isinstance(said, StatusSaid):
        _status(page, said)
    else:
        _rolled_back(page, said)
    page.next(said.next)
    return page.rows


# ---------------------------------------------------------------- plan


def _plan(page: Page, said: PlanSaid) -> None:
    t = page.t
    if said.pairs:
        page.put(t("Pairs that it is for: {pairs}", pairs=_pairs(page, said.pairs)), "quiet")
    if said.source == "simulation":
        page.put(t("A simulated machine: nothing here speaks of this computer, and nothing of it can be applied"), "open")
    elif said.source == "capture":
        page.put(t("From a capture: apply on the machine itself"), "open")
    for step in said.steps:
        _step(page, step, said)
    _when(page, said.steps)
    _around(page, said)
    if said.notes:
        page.head(t("Worth knowing"))
        for words in said.notes:
            page.item(words, "!")
    if said.unread:
        page.head(t("Not read"))
        for words in said.unread:
            page.item(words)


def _step(page: Page, step: StepSaid, said: PlanSaid) -> None:
    t = page.t
    lead = f"{step.number}. "
    page.rows.append([])
    page.rows += wrapped([Piece(lead, "head"), Piece(step.what, "head"), Piece(f"  {step.id}", "quiet")], page.width, 0, len(lead))
    finding = f"{step.finding_title}  (`linkproof causes {step.finding}`)" if step.finding_title else ""
    page.fields(
        [
            (t("mends"), [finding]),
            (t("why"), _new(page, step, said)),
            (t("pairs"), [] if step.pairs == said.pairs else [_pairs(page, step.pairs)]),
            (t("only if"), [t("step {id} did not help", id=step.unless)] if step.unless else []),
            (t("writes"), [f"{c.target}  {c.text}" for c in step.changes]),
            (t("lasts"), [joined([w for w in (lasts_words(step.lasts, t), effect_words(step.effect, t)) if w], t)]),
            (t("risk"), step.risk),
            (t("unsafe if"), step.unsafe_when),
            (t("undo"), [step.undo]),
        ],
        3,
    )
    if step.by_hand:
        page.put(t("by hand"), "quiet", 3)
        page.by_hand(step.by_hand, 5)
    _refused(page, step.refusals, 3)


def _new(page: Page, step: StepSaid, said: PlanSaid) -> Sequence[str]:
    """What an earlier step has said already is not said again: a plan is read from top to bottom."""
    for earlier in said.steps[: step.number - 1]:
        if step.why and (again := [w for w in step.why if w in earlier.why]):
            new = [w for w in step.why if w not in again]
            return [page.t("as {step}", step=earlier.id), *new]
    return step.why


def _refused(page: Page, refusals: Sequence[RefusalSaid], indent: int) -> None:
    t = page.t
    for r in refusals:
        page.put(t("REFUSED ({ref}): {why}", ref=r.ref, why=r.why), "bad", indent, indent + 2)
        if r.accept:
            page.put(t("you may overrule it with `{option}`; you then accept: {risk}", option=r.accept, risk=r.accepts), "", indent + 2)


def _when(page: Page, steps: Sequence[StepSaid]) -> None:
    """What is done now, what acts later, what is left to a person."""
    t = page.t
    if not steps:
        return
    can = [s.id for s in steps if s.applies]
    named = [
        (t("at once"), [_if(s, can, t) for s in steps if s.applies and s.effect == "now"]),
        (t("after a reboot"), [_if(s, can, t) for s in steps if s.applies and s.effect == "reboot"]),
        (t("after a restart"), [_if(s, can, t) for s in steps if s.applies and s.effect not in ("now", "reboot")]),
        (t("by a person"), [s.id for s in steps if not s.applies and not s.refusals]),
        (t("refused"), [s.id for s in steps if s.refusals]),
    ]
    page.head(t("When it acts"))
    page.fields([(name, [", ".join(ids)]) for name, ids in named if ids], 2)


def _if(step: StepSaid, can: Sequence[str], t: Teller) -> str:
    return t("{id} (only if {other} did not help)", id=step.id, other=step.unless) if step.unless in can else step.id


def _around(page: Page, said: PlanSaid | AppliedSaid) -> None:
    """Until it is mended, or where it cannot be."""
    if all(engine.state in ("safe", "not_reached") for engine in said.consumers.values()):
        return
    t = page.t
    page.head(t("Until it is mended, or if it cannot be: what each engine may do"))
    engines(page, said.consumers)
    page.put(
        t(
            "`{guard}` watches a model that is split over these GPUs and releases right tokens only; `linkproof env --for ENGINE` prints the"
            " settings",
            guard=GUARD,
        )
    )


def engines(page: Page, consumers: dict[str, ConsumerSaid]) -> None:
    for name, engine in consumers.items():
        page.rows += wrapped([Piece(f"{name:<14}"), *consumer_words(engine, page.t)], page.width, 2, 16)


def _pairs(page: Page, pairs: Sequence[PairSaid]) -> str:
    return ", ".join(page.few(pairs_words(pairs)))


def pairs_words(pairs: Sequence[PairSaid]) -> list[str]:
    """Both directions of a pair in one: `GPU0 <-> GPU1`."""
    there = {(p.src, p.dst) for p in pairs}
    out = []
    for p in pairs:
        both = (p.dst, p.src) in there
        if not both:
            out.append(pair_words((p.src, p.dst), p.gpus))
        elif p.gpus[0] < p.gpus[1] if p.gpus else p.src < p.dst:
            out.append(pair_words((p.src, p.dst), p.gpus).replace("->", "<->"))
    return out


# ---------------------------------------------------------------- apply, persist, reapply


def _applied(page: Page, said: AppliedSaid | ReappliedSaid) -> None:
    t = page.t
    if isinstance(said, ReappliedSaid):
        for words in said.why:
            page.item(words)
    for result in said.results:
        _result(page, result)
    if isinstance(said, AppliedSaid):
        if said.notes:
            page.rows.append([])
            for words in said.notes:
                page.item(words, "!")
        if said.state in ("not_all", "not_known"):
            _around(page, said)
        if said.check_again:
            page.rows.append([])
            page.put(t("What `check` measured before does not hold any more: run `linkproof check` again"), indent=0)


def _result(page: Page, result: ResultSaid) -> None:
    t = page.t
    page.rows.append([])
    page.rows += wrapped(
        [Piece(result.id + ("：" if t.lang == "zh" else ": "), "head"), Piece(result.words, style(result.state))], page.width, 0, 2
    )
    if result.what:
        page.put(result.what, "quiet")
    probed = []
    if result.bad_before is not None:
        probed.append(t("before: {bad}", bad=_listed(result.bad_before, page)))
    if result.bad_after is not None:
        probed.append(t("after: {bad}", bad=_listed(result.bad_after, page)))
    refused = {r.why for r in result.refusals}  # said below, with what may be done about it
    page.fields([(t("why"), [w for w in result.why if w not in refused]), (t("probed"), probed)], 2)
    _values(page, result.changes)
    _refused(page, result.refusals, 2)
    page.by_hand(result.by_hand, 4)


def _listed(bad: Sequence[str], page: Page) -> str:
    if not bad:
        return page.t("nothing bad")
    shown = bad if page.say_all else bad[:4]
    more = page.t(" and {n} more", n=len(bad) - len(shown)) if len(bad) > len(shown) else ""
    return page.t("bad: {routes}", routes=", ".join(shown) + more)


def _values(page: Page, stands: Sequence[StandSaid]) -> None:
    for s in stands:
        page.put(s.change.target, indent=2)
        page.put(f"{s.former} -> {s.now}", indent=4)


# ---------------------------------------------------------------- status, rollback


def _status(page: Page, said: StatusSaid) -> None:
    t = page.t
    step = ""
    for s in said.changes:
        if s.step != step:
            step = s.step
            page.rows.append([])
            page.rows += wrapped(
                [Piece(step, "head"), Piece(f"  {s.when.replace('T', ' ').replace('+00:00', ' UTC')}", "quiet")], page.width
            )
        _state(page, s.change, s.words, s.state, s.why)
        page.fields([(t("former"), [s.former]), (t("now"), [s.now])], 6)
    if said.notes:
        page.rows.append([])
        for words in said.notes:
            page.item(words, "!")


def _rolled_back(page: Page, said: RolledBackSaid) -> None:
    step = ""
    for c in said.changes:
        if c.step != step:
            step = c.step
            page.head(step)
        _state(page, c.change, c.words, c.state, c.why)


def _state(page: Page, change: ChangeSaid, words: str, state: str, why: str) -> None:
    mark = {"good": "✓", "open": "·", "bad": "✗"}[style(state)]
    page.rows += wrapped([Piece(f"{mark} ", style(state)), Piece(f"{change.target}  "), Piece(words, style(state))], page.width, 2, 4)
    if why:
        page.put(why, indent=6)
