"""Applies a plan, step by step: asks again whether it may, writes, reads back, probes again, and takes back what did not help.

In:      a Plan; `probe` sends data between pairs and says which arrive (None: it cannot); the risks that a person accepts.
Out:     StepDone per step, in the order of the plan. What is in place is in the journal.
Unknown: pairs that the probe could not try prove nothing: a step whose help is not known stays, as `not_known`.
Raises:  UsageError of the journal, fix-interrupted. On Ctrl-C, or any error of the probe, the step in progress is taken back first.
Source:  mending.py: what each state means.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from linkproof.act.doors import Machine
from linkproof.act.journal import FINAL, Entry, Journal
from linkproof.act.rollback import take_back
from linkproof.act.writing import DidNotStick, Failed, there, write
from linkproof.errors import UsageError
from linkproof.mending import Change, Command, Pair, Plan, Proved, Refusal, Sentence, Step, StepDone

Probe = Callable[[tuple[Pair, ...]], Proved | None]
# told while it works: these, then the state of the step
TOLD = ("measuring", "writing", "measuring_again", "taking_back")
_STANDS = ("helped", "in_place", "not_known", "not_needed")  # the machine is as the step wants it
_UNMEASURED = Refusal("unmeasured", Sentence("the pairs that it is for could not be measured now, so nothing would show whether it helps"))


def apply(
    plan: Plan,
    machine: Machine,
    journal: Journal,
    probe: Probe,
    accepted: frozenset[str],
    tell: Callable[[Step, str], None] = lambda step, words: None,
    *,
    ask_again: Callable[[Step], tuple[Refusal, ...]],
) -> tuple[StepDone, ...]:
    """ask_again: what forbids a step at this moment, asked right before it is written."""
    if not any(step.changes for step in plan.steps):  # nothing is written, no journal either
        return tuple(StepDone(step.id, "by_hand") for step in plan.steps)
    with journal.locked("apply") as entries:
        _nothing_half_done(entries)
        journal.tidy()
        work = _Apply(plan, machine, journal, probe, accepted, tell, ask_again)
        for step in plan.steps:
            done = work.step(step)
            work.done[step.id] = done
            tell(step, done.state)
        return tuple(work.done[step.id] for step in plan.steps)


def _nothing_half_done(entries: tuple[Entry, ...]) -> None:
    if half := ", ".join(dict.fromkeys(e.about.step for e in entries if e.interrupted)):
        raise UsageError(
            "fix-interrupted",
            (
                f"an earlier apply or rollback was cut off in the middle of: {half}",
                f"之前的 apply 或 rollback 在以下步骤中途被中断：{half}",
            ),
            ("what stands there now is not known to be whole; nothing was done", "该步骤现在的状态可能不完整；未做任何改动"),
            (
                "`linkproof fix rollback` puts the former values back, then apply again",
                "先运行 `linkproof fix rollback` 恢复原值，再重新 apply",
            ),
        )


class _Apply:
    def __init__(
        self,
        plan: Plan,
        machine: Machine,
        journal: Journal,
        probe: Probe,
        accepted: frozenset[str],
        tell: Callable[[Step, str], None],
        ask_again: Callable[[Step], tuple[Refusal, ...]],
    ) -> None:
        self.machine, self.journal, self.probe, self.accepted = machine, journal, probe, accepted
        self.tell, self.ask_again = tell, ask_again
        self.done: dict[str, StepDone] = {}
        self.pairs = tuple(dict.fromkeys(chain.from_iterable(step.pairs for step in plan.steps if step.changes)))
        self.measured = False
        self.proved: Proved | None = None  # what is known of the pairs now

    # ------------------------------------------------------------ may it, and must it

    def step(self, step: Step) -> StepDone:
        if not step.changes:
            return StepDone(step.id, "by_hand")
        waits = self._unless(step)
        if waits is not None:
            return waits
        if refused := self._refused(step.refusals):
            return refused_as(step, refused)
        if self._cured(step):
            return StepDone(step.id, "not_needed", (Sentence("an earlier step helped: by now every pair that it is for is right"),))
        try:
            changes = self._needed(step)
        except Failed as e:
            return StepDone(step.id, "failed", e.why)
        if not changes:
            return StepDone(step.id, "not_needed", (Sentence("what it would write is there already"),))
        before = self._baseline(step)
        if step.pairs:
            if before is not None and not before.bad and set(step.pairs) <= {pair[:2] for pair in before.right}:
                return StepDone(step.id, "refused", (Sentence("every pair that it is for was just measured right"),), before)
            if (before is None or not before.bad) and (refused := self._refused((_UNMEASURED,))):
                return refused_as(step, refused, before)
        if refused := self._refused(self.ask_again(step)):
            return refused_as(step, refused, before)
        return self._apply(step, changes, before)

    def _refused(self, refusals: tuple[Refusal, ...]) -> tuple[Refusal, ...]:
        return tuple(r for r in refusals if not (r.may_be_accepted and r.ref in self.accepted))

    def _unless(self, step: Step) -> StepDone | None:
        earlier = self.done.get(step.unless)
        if earlier is None or earlier.state not in _STANDS:
            return None
        if earlier.state in ("helped", "not_needed"):
            return StepDone(
                step.id, "not_needed", (Sentence("{step} is in place: this would be done if it had not helped", {"step": earlier.id}),)
            )
        text = "{step} is in place, and whether it helps is not known yet: this would be done if it does not"
        return StepDone(step.id, "not_needed", (Sentence(text, {"step": earlier.id}),))

    def _cured(self, step: Step) -> bool:
        """An earlier step of this apply helped, and of these pairs none is bad any more."""
        if not step.pairs or step.effect not in ("now", "reboot") or self.proved is None:
            return False
        helped = any(d.state == "helped" for d in self.done.values())
        known = _of(self.proved, step)
        return helped and not known.bad and set(step.pairs) <= {pair[:2] for pair in known.right}

    def _needed(self, step: Step) -> tuple[Change, ...]:
        """Changes whose values are not there yet. If any is written, every program of the step runs: it may read what was written."""
        entries = self.journal.entries()
        missing = tuple(c for c in step.changes if not isinstance(c, Command) and not there(self.machine, c, entries))
        if missing:
            return tuple(c for c in step.changes if isinstance(c, Command) or c in missing)
        return tuple(c for c in step.changes if isinstance(c, Command) and not there(self.machine, c, entries))

    def _baseline(self, step: Step) -> Proved | None:
        if step.pairs and not self.measured:
            self.tell(step, TOLD[0])
            self.proved, self.measured = self.probe(self.pairs), True
        return None if self.proved is None else _of(self.proved, step)

    # ------------------------------------------------------------ doing it

    def _apply(self, step: Step, changes: tuple[Change, ...], before: Proved | None) -> StepDone:
        first = len(self.journal.entries())
        try:
            self.tell(step, TOLD[1])
            for change in changes:
                write(self.machine, self.journal, step.id, step.effect, change)
            done = self._judged(step, before)
            if done.state == "did_not_help":
                return self._back(step, first, done)
        except Failed as e:
            state = "did_not_stick" if isinstance(e, DidNotStick) else "failed"
            return self._back(step, first, StepDone(step.id, state, e.why, before))
        except BaseException:
            self._back(step, first, StepDone(step.id, "failed"))
            raise
        return done

    def _back(self, step: Step, first: int, done: StepDone) -> StepDone:
        """The step in progress, taken back. If that cannot be done whole, it has failed, whatever it was before."""
        try:
            self.tell(step, TOLD[3])
        finally:  # whoever listened may have gone (`| head`)
            undone = take_back(self.machine, self.journal, list(self.journal.entries()[first:]))
        left = [u for u in undone if u.state not in FINAL]
        if not left:
            return done
        why = Sentence("not all of it could be taken back ({n} left): `linkproof fix rollback` tries again", {"n": str(len(left))})
        return StepDone(step.id, "failed", (*done.why, why, *(u.why for u in left if u.why is not None)), done.before, done.after)

    def _judged(self, step: Step, before: Proved | None) -> StepDone:
        if step.effect != "now":
            return StepDone(step.id, "in_place", (), before)
        if not step.pairs:
            return StepDone(step.id, "not_known", (Sentence("no pair of GPUs can show whether it helped"),))
        if before is None or not before.bad:
            return StepDone(step.id, "not_known", (Sentence("the pairs could not be measured before it"),), before)
        self.tell(step, TOLD[2])
        after = self.probe(step.pairs)
        if after is None:
            return StepDone(step.id, "not_known", (Sentence("the pairs could not be measured after it"),), before)
        after = _of(after, step)
        if broken := after.bad & before.right:
            return StepDone(
                step.id, "did_not_help", (Sentence("it broke what was right: {pairs}", {"pairs": _named(broken)}),), before, after
            )
        if before.bad & after.right:
            self._learn(after)
            return StepDone(step.id, "helped", (), before, after)
        if before.bad & after.bad:
            return StepDone(
                step.id, "did_not_help", (Sentence("as bad as before: {pairs}", {"pairs": _named(before.bad & after.bad)}),), before, after
            )
        return StepDone(step.id, "not_known", (Sentence("what was bad could not be measured after it"),), before, after)

    def _learn(self, after: Proved) -> None:
        if self.proved is not None:
            tried = after.bad | after.right
            self.proved = Proved(self.proved.bad - tried | after.bad, self.proved.right - tried | after.right)


def refused_as(step: Step, refused: tuple[Refusal, ...], before: Proved | None = None) -> StepDone:
    return StepDone(step.id, "refused", tuple(r.why for r in refused), before)


def _of(proved: Proved, step: Step) -> Proved:
    pairs = set(step.pairs)
    return Proved(frozenset(b for b in proved.bad if b[:2] in pairs), frozenset(r for r in proved.right if r[:2] in pairs))


def _named(outcomes: frozenset[tuple[str, str, str]]) -> str:
    words = [f"{src} -> {dst} ({mode})" for src, dst, mode in sorted(outcomes)]
    return ", ".join(words[:3]) + (" ..." if len(words) > 3 else "")
