"""The JSON contract of `fix`: plan, apply, persist, rollback, status, reapply. The text (fix_text.py) is made of it, so it cannot say anything else.

In:      the types of mending.py, what each engine may do, a language.
Out:     one of the *Said types; `as_json` its bytes, `schema` the JSON Schema of all of them (shipped as `fix.schema.json`).
Unknown: what could not be read or measured says so: `measured` false, a refusal `not_readable`, a state `not_readable` or `not_known`.
Raises:  nothing.
Source:  this file is the source; a change that takes something away or gives it another meaning is a new `schema` number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Literal

import msgspec
from msgspec import Struct

from linkproof.mending import Change, ChangeStands, ChangeUndone, Line, Pair, Plan, Proved, Sentence, Step, StepDone
from linkproof.model import Consumer
from linkproof.report import fix_words as words
from linkproof.report.contract import ConsumerSaid, published
from linkproof.report.masking import masked
from linkproof.report.pages import page
from linkproof.report.say import Teller

ChangeKind = Literal["config_word", "sysfs_text", "text_file", "symlink", "command"]
StepState = Literal["helped", "in_place", "not_known", "not_needed", "by_hand", "refused", "did_not_help", "did_not_stick", "failed"]
UndoState = Literal["restored", "as_before", "changed_since", "other_device", "failed"]
Stands = Literal["in_force", "waits_for_reboot", "lost", "drifted", "interrupted", "not_readable"]
FOR_A_PERSON = ("by_hand", "refused", "failed")  # what was tried and did not help is no advice


class PairSaid(Struct, frozen=True):
    """PCI addresses, source first; gpus: their numbers, null where no probe tied numbers to addresses."""

    src: str
    dst: str
    gpus: tuple[int, int] | None


class ChangeSaid(Struct, frozen=True):
    """target: PCI address, path or command. text: what is written there, in words."""

    kind: ChangeKind
    target: str
    text: str


class RefusalSaid(Struct, frozen=True):
    """accept: what a person may add to overrule it, "" if nobody may; accepts: what is accepted then."""

    ref: str
    why: str
    accept: str
    accepts: str


class StepSaid(Struct, frozen=True, kw_only=True):
    """number: order. applies: `fix apply` writes it, unless a step before it has helped (`unless`)."""

    number: int
    id: str
    what: str
    finding: str
    finding_title: str
    why: tuple[str, ...]
    applies: bool
    lasts: Literal["until_reboot", "for_good", ""]
    effect: Literal["now", "reboot", "restart", "by_hand"]
    changes: tuple[ChangeSaid, ...]
    risk: tuple[str, ...]
    unsafe_when: tuple[str, ...]
    undo: str
    by_hand: tuple[str, ...]
    refusals: tuple[RefusalSaid, ...]
    pairs: tuple[PairSaid, ...]
    unless: str


class NextSaid(Struct, frozen=True):
    """A command to type, and what for."""

    command: str
    why: str


class PlanSaid(Struct, frozen=True, kw_only=True, tag_field="action", tag="plan"):
    """state: steps (there is something to do), nothing (measured, and nothing to mend), cannot_tell. source: what it was made from.

    consumers: what each engine may do until then. next: what to type."""

    schema: Literal[1] = 1
    state: Literal["steps", "nothing", "cannot_tell"]
    source: Literal["machine", "capture", "simulation"]
    headline: str
    measured: bool
    pairs: tuple[PairSaid, ...]
    steps: tuple[StepSaid, ...]
    notes: tuple[str, ...]
    unread: tuple[str, ...]
    consumers: dict[str, ConsumerSaid]
    hardware: str
    next: tuple[NextSaid, ...]


class StandSaid(Struct, frozen=True, kw_only=True):
    """A change that the journal holds. when: UTC, ISO 8601. former, now: registers in hex with the names of their bits, files in bytes."""

    step: str
    change: ChangeSaid
    when: str
    former: str
    now: str
    state: Stands
    words: str
    why: str


class ResultSaid(Struct, frozen=True, kw_only=True):
    """What became of one step. bad_before, bad_after: `mode GPU0 -> GPU1`, null where it was not probed."""

    id: str
    what: str
    state: StepState
    words: str
    why: tuple[str, ...]
    refusals: tuple[RefusalSaid, ...]
    by_hand: tuple[str, ...]
    bad_before: tuple[str, ...] | None
    bad_after: tuple[str, ...] | None
    changes: tuple[StandSaid, ...]


class AppliedSaid(Struct, frozen=True, kw_only=True, tag_field="action", tag="apply"):
    """results in the order of the plan. check_again: the route table that was kept no longer holds, `linkproof check` makes a new one."""

    schema: Literal[1] = 1
    state: Literal["done", "not_all", "not_known", "nothing"]
    headline: str
    results: tuple[ResultSaid, ...]
    check_again: bool
    notes: tuple[str, ...]
    consumers: dict[str, ConsumerSaid]
    next: tuple[NextSaid, ...]


class PersistedSaid(AppliedSaid, frozen=True, kw_only=True, tag_field="action", tag="persist"):
    """The same of what makes an applied step last over reboots."""


class UndoneSaid(Struct, frozen=True):
    step: str
    change: ChangeSaid
    state: UndoState
    words: str
    why: str


class RolledBackSaid(Struct, frozen=True, kw_only=True, tag_field="action", tag="rollback"):
    """state: back (every former value is there), not_all, nothing (the journal holds no change)."""

    schema: Literal[1] = 1
    state: Literal["back", "not_all", "nothing"]
    headline: str
    changes: tuple[UndoneSaid, ...]
    next: tuple[NextSaid, ...]


class StatusSaid(Struct, frozen=True, kw_only=True, tag_field="action", tag="status"):
    """state: nothing (no change of linkproof is in place), in_force, not_all, not_readable."""

    schema: Literal[1] = 1
    state: Literal["nothing", "in_force", "not_all", "not_readable"]
    headline: str
    changes: tuple[StandSaid, ...]
    notes: tuple[str, ...]
    next: tuple[NextSaid, ...]


class ReappliedSaid(Struct, frozen=True, kw_only=True, tag_field="action", tag="reapply"):
    """state: done (every persisted word stands), refused (nothing was written), not_all, nothing (nothing is persisted). why: in words."""

    schema: Literal[1] = 1
    state: Literal["done", "refused", "not_all", "nothing"]
    headline: str
    why: tuple[str, ...]
    results: tuple[ResultSaid, ...]
    next: tuple[NextSaid, ...]


FixSaid = PlanSaid | AppliedSaid | PersistedSaid | RolledBackSaid | StatusSaid | ReappliedSaid

# ---------------------------------------------------------------- from what is known


class Maker:
    """Turns the words of mending.py into the contract, in one language. numbers: PCI address -> GPU number."""

    def __init__(self, lang: str, numbers: Mapping[str, int]) -> None:
        self.lang, self.t, self.numbers = lang, Teller(lang), numbers

    def said(self, sentence: Sentence | None) -> str:
        return masked(self.t(sentence.text, **sentence.args)) if sentence is not None else ""

    def all_said(self, sentences: Iterable[Sentence]) -> tuple[str, ...]:
        return tuple(self.said(s) for s in sentences)

    def lines(self, lines: Iterable[Line]) -> tuple[str, ...]:
        """As they are to be typed, so nothing in them is masked."""
        return tuple(line if isinstance(line, str) else self.t(line.text, **line.args) for line in lines)

    def pair(self, pair: Pair) -> PairSaid:
        src, dst = (self.numbers.get(bdf) for bdf in pair)
        return PairSaid(*pair, None if src is None or dst is None else (src, dst))

    def change(self, change: Change) -> ChangeSaid:
        kind, target, text = words.change_words(change, self.t)
        return ChangeSaid(kind, masked(target), masked(text))  # type: ignore[arg-type]

    def refusals(self, step: Step | None, accepted: frozenset[str] = frozenset()) -> tuple[RefusalSaid, ...]:
        return tuple(
            RefusalSaid(r.ref, self.said(r.why), f"--i-accept {r.ref}" if r.may_be_accepted else "", words.risk_words(r.ref, self.t))
            for r in (step.refusals if step is not None else ())
            if r.ref not in accepted or not r.may_be_accepted
        )

    def step(self, number: int, step: Step, accepted: frozenset[str] = frozenset()) -> StepSaid:
        refusals = self.refusals(step, accepted)
        return StepSaid(
            number=number,
            id=step.id,
            what=self.said(step.what),
            finding=step.finding,
            finding_title=page(step.finding, self.lang).title if step.finding else "",
            why=self.all_said(step.why),
            applies=bool(step.changes) and not refusals,
            lasts=step.lasts,  # type: ignore[arg-type]
            effect=step.effect,  # type: ignore[arg-type]
            changes=tuple(self.change(c) for c in step.changes),
            risk=self.all_said(step.risk),
            unsafe_when=self.all_said(step.unsafe_when),
            undo=self.said(step.undo),
            by_hand=self.lines(step.by_hand),
            refusals=refusals,
            pairs=tuple(self.pair(p) for p in step.pairs),
            unless=step.unless,
        )

    def plan(
        self,
        plan: Plan,
        source: Literal["machine", "capture", "simulation"],
        consumers: Mapping[str, Consumer],
        unread: Sequence[str] = (),
        next_: Sequence[NextSaid] = (),
        accepted: frozenset[str] = frozenset(),
    ) -> PlanSaid:
        steps = tuple(self.step(n, s, accepted) for n, s in enumerate(plan.steps, 1))
        state: Literal["steps", "nothing", "cannot_tell"] = (
            "steps" if steps else "nothing" if plan.measured and not plan.pairs else "cannot_tell"
        )
        return PlanSaid(
            state=state,
            source=source,
            headline=words.plan_headline(state, steps, len({frozenset(p) for p in plan.pairs}), plan.measured, self.t),
            measured=plan.measured,
            pairs=tuple(self.pair(p) for p in plan.pairs),
            steps=steps,
            notes=self.all_said(plan.notes),
            unread=tuple(unread),
            consumers=consumers_said(consumers),
            hardware=plan.hardware,
            next=tuple(next_),
        )

    def stand(self, c: ChangeStands) -> StandSaid:
        return StandSaid(
            step=c.step,
            change=self.change(c.change),
            when=datetime.fromtimestamp(c.when, timezone.utc).isoformat(timespec="seconds"),
            former=words.value_words(c.change, c.former, self.t),
            now=words.value_words(c.change, c.now, self.t),
            state=c.state,  # type: ignore[arg-type]
            words=words.stands_words(c.state, self.t),
            why=self.said(c.why),
        )

    def result(self, done: StepDone, step: Step | None, standing: Sequence[ChangeStands], accepted: frozenset[str]) -> ResultSaid:
        return ResultSaid(
            id=done.id,
            what=self.said(step.what) if step is not None else "",
            state=done.state,  # type: ignore[arg-type]
            words=words.step_words(done.state, self.t),
            why=self.all_said(done.why),
            refusals=self.refusals(step, accepted) if done.state == "refused" else (),
            by_hand=self.lines(step.by_hand) if step is not None and done.state in FOR_A_PERSON else (),
            bad_before=self._bad(done.before),
            bad_after=self._bad(done.after),
            changes=tuple(self.stand(c) for c in standing if c.step == done.id),
        )

    def _bad(self, proved: Proved | None) -> tuple[str, ...] | None:
        if proved is None:
            return None
        return tuple(f"{mode} {words.pair_words((src, dst), self.pair((src, dst)).gpus)}" for src, dst, mode in sorted(proved.bad))

    def undone(self, c: ChangeUndone) -> UndoneSaid:
        return UndoneSaid(c.step, self.change(c.change), c.state, words.undo_words(c.state, self.t), self.said(c.why))  # type: ignore[arg-type]


def consumers_said(consumers: Mapping[str, Consumer]) -> dict[str, ConsumerSaid]:
    return {name: ConsumerSaid(c.state, c.settings, c.modes) for name, c in consumers.items()}  # type: ignore[arg-type]


# ---------------------------------------------------------------- to JSON


def as_json(said: FixSaid) -> str:
    return msgspec.json.format(msgspec.json.encode(said), indent=2).decode() + "\n"


def schema() -> str:
    """What stands in `fix.schema.json`."""
    return published(FixSaid, "fix")
