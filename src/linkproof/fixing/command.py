"""The command `fix`: plan, apply, rollback, status, persist, reapply. Wires host, check, plan, engine, probe and report; decides nothing.

Exit codes: plan 0 nothing to mend, 1 there are steps; apply, persist 0 all that was tried helped or is in place, 1 something was refused, failed or was
taken back with nothing in its place; rollback 0 all former values are back, 1 not all; status 0 as it was left, 1 lost, drifted or interrupted;
reapply 0 done, 1 not; 3 cannot tell, of each.

What sends data (workers, numpy) is imported where it is needed: status, rollback and the unit at boot send none.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, NamedTuple

from msgspec import structs

from linkproof import routes_cache
from linkproof.act.apply import apply
from linkproof.act.doors import Machine
from linkproof.act.journal import FOLDER, Journal
from linkproof.act.persist.plan import persist_plan, persisted
from linkproof.act.persist.reapply import reapply
from linkproof.act.plan import plan as planned
from linkproof.act.refusals import refusals_now
from linkproof.act.rollback import rollback
from linkproof.act.status import status
from linkproof.checking import Checked, check
from linkproof.collect.host import Host, Live
from linkproof.collect.mend import read_mend
from linkproof.errors import UsageError
from linkproof.fixing.typed import as_root, known_risks, known_steps, needs_root, pairs_named, refuse_what_does_nothing, repeated
from linkproof.machine import host_of
from linkproof.measured import Probed
from linkproof.mending import ChangeStands, ConfigWord, Pair, Plan, Proved, Sentence, Step, StepDone
from linkproof.model import PCI_DEVICES
from linkproof.progress import trying
from linkproof.report import fix as report
from linkproof.report.fix import FixSaid, Maker, NextSaid
from linkproof.report.fix_text import text
from linkproof.report.fix_words import apply_headline, at_work_words, reapply_headline, rollback_headline, status_headline
from linkproof.report.layout import Row
from linkproof.report.machine_words import unread_words
from linkproof.report.say import Teller

Show = Callable[[str | Iterable[Row]], None]
Probe = Callable[[tuple[Pair, ...]], Proved | None]

ROOT_ONLY = ("apply", "rollback", "persist", "reapply")


class StandIn(NamedTuple):
    """Another machine than the one we run on: its reads, its doors, where its journal lies, what was measured there, how its pairs are probed."""

    host: Host
    machine: Machine
    folder: str = FOLDER
    probed: Probed | None = None
    probe: Probe | None = None


class Found(NamedTuple):
    """A machine as it is read and measured now. stale: why what was measured before does not count, as a sentence."""

    host: Host
    checked: Checked
    source: Literal["machine", "capture", "simulation"]
    stale: Sentence | None = None

    @property
    def measured(self) -> bool:
        return self.checked.routes is not None


def run(options: Namespace, lang: str, show: Show, width: int, stand_in: StandIn | None = None) -> int:
    action = options.action or "plan"
    refuse_what_does_nothing(options, action)
    known_risks(options.accept)
    if action in ROOT_ONLY and stand_in is None and os.geteuid() != 0:
        needs_root(options, action)
    at = stand_in or StandIn(Live("/"), Machine())
    if action == "plan":
        said, code = _plan(options, lang, stand_in)
    elif action == "apply":
        said, code = _apply(options, lang, at, stand_in is None)
    elif action == "rollback":
        said, code = _rollback(options, lang, at)
    elif action == "status":
        said, code = _status(lang, at)
    elif action == "persist":
        said, code = _persist(options, lang, at)
    else:
        said, code = _reapply(lang, at)
    show(report.as_json(said) if options.format == "json" else text(said, lang, width, options.all))
    return code


# ---------------------------------------------------------------- what is there, and what was measured


def gpu_numbers(checked: Checked | None) -> dict[str, int]:
    return {c.bdf: c.index for c in checked.probed.cards if c.bdf} if checked is not None and checked.probed is not None else {}


@contextmanager
def found_for(options: Namespace, lang: str, stand_in: StandIn | None) -> Iterator[Found]:
    """For a plan: nothing is sent, except between the GPUs of a simulated machine."""
    if options.sim is not None:
        from linkproof import probing
        from linkproof.prove import prove

        with probing.machine(options.sim) as (host, devices), trying(lang) as tell:
            yield Found(
                host, check(host, prove(devices, probing.wish(Namespace(mode=[], pair=[], deep=False, force=False)), tell)), "simulation"
            )
    elif options.capture is not None:
        host = host_of(options.capture)
        yield Found(host, check(host), "capture")
    elif stand_in is not None:
        yield Found(stand_in.host, check(stand_in.host, stand_in.probed), "machine")
    else:
        yield _kept(Live("/"))


def _kept(host: Host) -> Found:
    """This machine with the route table that `check` kept, if it still holds."""
    kept = routes_cache.load()
    if kept is None:
        return Found(host, check(host), "machine")
    probed, parts, _ = kept
    checked = check(host, probed)
    if changed := routes_cache.stale(parts, checked.key_parts):
        why = Sentence("since the last `linkproof check` this changed, so it does not count: {part}", {"part": changed[0][0]})
        return Found(host, check(host), "machine", why)
    return Found(host, checked, "machine")


def plan_of(options: Namespace, found: Found) -> Plan:
    made = planned(found.checked, read_mend(found.host), pairs_named(options, found.checked), found.measured, options.iommu_off)
    untold: tuple[Sentence, ...] = (found.stale,) if found.stale is not None else ()
    if found.checked.probed is not None and not found.measured:  # why nothing could be sent
        untold += tuple(Sentence(text, args) for text, args in found.checked.probed.notes)
    return structs.replace(made, notes=(*made.notes, *untold)) if untold else made


# ---------------------------------------------------------------- plan


def _plan(options: Namespace, lang: str, stand_in: StandIn | None) -> tuple[FixSaid, int]:
    with found_for(options, lang, stand_in) as found:
        made = plan_of(options, found)
    checked, t = found.checked, Teller(lang)
    hidden = [u for u in checked.unread if (u.needs_root and u.why == "denied") or u.name == PCI_DEVICES]
    consumers = checked.diagnosis.consumers if made.pairs else {}
    maker = Maker(lang, gpu_numbers(checked))
    said = maker.plan(made, found.source, consumers, unread_words(hidden, t) if found.source != "simulation" else ())
    return structs.replace(said, next=_after_plan(options, said, t)), {"steps": 1, "nothing": 0, "cannot_tell": 3}[said.state]


def _after_plan(options: Namespace, said: report.PlanSaid, t: Teller) -> tuple[NextSaid, ...]:
    if said.source == "simulation":
        return (NextSaid("linkproof fix", t("on a machine with GPUs: the same for it")),)
    out = []
    if not said.measured:
        out.append(NextSaid("linkproof check", t("measures, so that the plan is for pairs that fail and for no others")))
    if any(s.applies for s in said.steps):
        words = " ".join(["fix apply", *repeated(options)])
        command = as_root(words) if said.source == "machine" else f"linkproof {words}"
        out.append(NextSaid(command, t("does it, probes again, and takes back what did not help (as root)")))
    return tuple(out)


# ---------------------------------------------------------------- apply


def _apply(options: Namespace, lang: str, at: StandIn, live: bool) -> tuple[FixSaid, int]:
    t = Teller(lang)
    found = _kept(at.host) if live else Found(at.host, check(at.host, at.probed), "machine")
    if live and not found.measured:
        from linkproof import probing

        _tell(t("no measurement that holds is at hand: `linkproof check` runs first"))
        found = Found(at.host, probing.probed_check(Namespace(sim=None, mode=[], pair=[], deep=False, force=False), lang), "machine")
    made = plan_of(options, found)
    known_steps(options.step, (s.id for s in made.steps))
    chosen = tuple(s for s in made.steps if not options.step or s.id in options.step)
    ids = {s.id for s in chosen}
    # who names a step wants it, whatever became of the one that it would have waited for
    made = structs.replace(made, steps=tuple(s if s.unless in ids else structs.replace(s, unless="") for s in chosen))
    probe = at.probe or _no_probe
    if at.probe is None and live and found.checked.routes is not None:
        from linkproof.fixing.probe import PairProbe

        probe = PairProbe("cuda", found.checked, lang)
    said = _applied(made, frozenset(options.accept), lang, at, found.checked, probe, report.AppliedSaid)
    state_left = said.state == "nothing" and bool(said.results) and all(r.state == "by_hand" for r in said.results)
    if not made.steps:
        return said, 0 if made.measured and not made.pairs else 3
    return said, 1 if said.state == "not_all" or state_left else 3 if said.state == "not_known" else 0


def _no_probe(pairs: tuple[Pair, ...]) -> Proved | None:
    return None


def _applied(
    made: Plan,
    accepted: frozenset[str],
    lang: str,
    at: StandIn,
    checked: Checked | None,
    probe: Probe,
    kind: type[report.AppliedSaid],
) -> report.AppliedSaid:
    t = Teller(lang)
    journal = Journal(at.folder, at.machine)
    done = apply(
        made, at.machine, journal, probe, accepted, lambda step, state: _tell(f"{step.id}: {at_work_words(state, t)}"),
        ask_again=lambda step: refusals_now(step, at.host),
    )  # fmt: skip
    standing = status(at.machine, journal)
    maker, steps = Maker(lang, gpu_numbers(checked)), {s.id: s for s in made.steps}
    state, words = apply_headline([(d.id, d.state) for d in done], t, _outdone(done, steps))
    written = [d.id for d in done if d.state in ("helped", "in_place", "not_known")]
    mended = state == "done" and any(d.state == "helped" for d in done)
    return kind(
        state=state,
        headline=words,
        results=tuple(maker.result(d, steps.get(d.id), standing, accepted) for d in done),
        check_again=bool(written) and checked is not None,
        notes=maker.all_said(made.notes),
        consumers=report.consumers_said(checked.diagnosis.consumers) if checked is not None and made.pairs and not mended else {},
        next=_after_persist(bool(written), t) if kind is report.PersistedSaid else _after_apply([steps[i] for i in written], standing, t),
    )


def _outdone(done: tuple[StepDone, ...], steps: dict[str, Step]) -> set[str]:
    """Steps that were refused or did not help, where a later one has mended all their pairs, or will after a reboot."""
    out = set()
    for n, d in enumerate(done):
        later = {pair for e in done[n + 1 :] if e.state in ("helped", "in_place") for pair in steps[e.id].pairs}
        pairs = set(steps[d.id].pairs)
        if d.state in ("refused", "did_not_help") and pairs and pairs <= later:
            out.add(d.id)
    return out


def _after_apply(written: list[Step], standing: tuple[ChangeStands, ...], t: Teller) -> tuple[NextSaid, ...]:
    out = []
    if any(s.effect == "reboot" for s in written):
        out.append(NextSaid("reboot", t("only then it acts; `linkproof fix status` tells whether it does")))
    if written:
        out.append(NextSaid("linkproof check", t("measures every pair again")))
    if any(s.lasts == "until_reboot" and any(isinstance(c, ConfigWord) for c in s.changes) for s in written):
        out.append(NextSaid("linkproof fix persist", t("a reboot takes these registers back; this sets them again after each boot")))
    if standing:
        out.append(NextSaid("linkproof fix rollback", t("takes everything back")))
    return tuple(structs.replace(n, command=as_root(n.command.removeprefix("linkproof "))) if " fix " in n.command else n for n in out)


def _after_persist(written: bool, t: Teller) -> tuple[NextSaid, ...]:
    return (NextSaid(as_root("fix status"), t("after the next boot: tells whether the registers were set again")),) if written else ()


def _tell(words: str) -> None:
    """Nobody may listen any more (`2>&1 | head`): what is at work goes on all the same."""
    with suppress(OSError, ValueError):
        print(words, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- rollback, status


def _rollback(options: Namespace, lang: str, at: StandIn) -> tuple[FixSaid, int]:
    journal = Journal(at.folder, at.machine)
    known_steps(options.step, (entry.about.step for entry in journal.read()))
    undone = rollback(at.machine, journal, tuple(options.step))
    maker, t = Maker(lang, {}), Teller(lang)
    state, words = rollback_headline([u.state for u in undone], t)
    again = (NextSaid("linkproof check", t("measures every pair as it is now")),) if undone else ()
    return report.RolledBackSaid(state=state, headline=words, changes=tuple(map(maker.undone, undone)), next=again), int(state == "not_all")


def _status(lang: str, at: StandIn) -> tuple[FixSaid, int]:
    """Without root the journal is closed to us: then nothing is known, which is not "nothing is in place"."""
    maker, t, journal = Maker(lang, {}), Teller(lang), Journal(at.folder, at.machine)
    try:
        standing, kept, busy = status(at.machine, journal), persisted(at.machine, journal), journal.busy()
    except UsageError as e:
        if e.ref != "fix-journal-unreadable":
            raise
        headline = t("Cannot tell: the journal of what was changed is not readable")
        why = (e.what[lang == "zh"],)
        again = (NextSaid(as_root("fix status"), t("root may read it")),) if os.geteuid() != 0 else ()
        return report.StatusSaid(state="not_readable", headline=headline, changes=(), notes=why, next=again), 3
    state, words = status_headline([c.state for c in standing], t)
    if kept.state == "wrong" and state in ("in_force", "nothing"):
        state, words = "not_all", t("What is persisted needs a hand: see below")
    notes = maker.all_said(kept.words)
    notes += (t("at work now: {who}", who=busy),) if busy else ()
    notes += (t("the last line of the journal was torn by a crash: it was never relied on"),) if journal.torn_B else ()
    after = (NextSaid(as_root("fix rollback"), t("puts back what there was before, so that one can begin again")),)
    said = report.StatusSaid(
        state=state, headline=words, changes=tuple(map(maker.stand, standing)), notes=notes, next=after if state == "not_all" else ()
    )
    return said, {"not_all": 1, "not_readable": 3}.get(state, 0)


# ---------------------------------------------------------------- persist, reapply


def _persist(options: Namespace, lang: str, at: StandIn) -> tuple[FixSaid, int]:
    journal, accepted = Journal(at.folder, at.machine), frozenset(options.accept)
    made = persist_plan(at.machine, journal, at.host, kernel_parameter=options.kernel_parameter, accepted=accepted)
    said = _applied(made, accepted, lang, at, None, _no_probe, report.PersistedSaid)
    return said, int(said.state == "not_all")


def _reapply(lang: str, at: StandIn) -> tuple[FixSaid, int]:
    journal = Journal(at.folder, at.machine)
    came = reapply(at.machine, journal, at.host)
    maker, steps = Maker(lang, {}), {s.id: s for s in came.steps}
    standing = status(at.machine, journal) if came.done else ()
    results = tuple(maker.result(d, steps.get(d.id), standing, frozenset()) for d in came.done)
    said = report.ReappliedSaid(
        state=came.state,  # type: ignore[arg-type]
        headline=reapply_headline(came.state, maker.t),
        why=maker.all_said(came.why),
        results=results,
        next=(),
    )
    return said, int(came.state in ("refused", "not_all"))
