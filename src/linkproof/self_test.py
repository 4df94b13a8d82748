"""The verifier proves itself: every kind of fault is put between, and must be seen and named; without one nothing may be seen.

In:      how the devices are reached; on one GPU the card with itself is tried.
Out:     a Proven per fault, and two for runs without any.
Unknown: a fault that could not be put in, because this machine does not offer the way that it needs. One direction alone cannot be spoilt on
         one card, so it is not tried there.
Raises:  nothing.
By hand  linkproof check --self-test
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

from msgspec import Struct

from linkproof.measured import Case, Outcome
from linkproof.probe.setup import Effort, KiB, MiB, Setup
from linkproof.probe.workers.worker import Job, Runner
from linkproof.routes import SLOWER_THAN_STAGED

# the largest holds 8 million words: one wrong in a million is seen
EFFORT = Effort(sizes_B=(256, 8 * KiB, 64 * KiB + 16, 2 * MiB, 64 * MiB), rounds_small=4, rounds_big=1, message_rounds=500)
HANG_DEADLINE_S, DEADLINE_S = 4.0, 120.0
ABSENT = {"refused", "not_tested"}
NOTHING_SEEN = {"verified", *ABSENT}


class Proven(Struct, frozen=True):
    """fault: what was put in, in words. caught: something was seen. named: it was called what it is, and nothing was seen elsewhere.
    said: what the checks called it. why: what was expected, if that was not it. Not caught and yet named: nothing was put in or seen.
    possible: this machine offers the way that was to be spoilt; if not, nothing is known of this fault."""

    fault: str
    caught: bool
    named: bool
    said: str
    took_s: float
    why: str = ""
    possible: bool = True


class Trial(Struct, frozen=True):
    """fault: as `probe.faults` reads it, "" for none. wants: a kind of Wrong, or a state."""

    words: str
    fault: str
    wants: str
    mode: str = "push"
    load: str = "alone"


TRIALS = (
    Trial("nothing (copies)", "", "verified"),
    Trial("nothing (flags)", "", "verified", mode="flags"),
    Trial("zeros", "zero", "zero"),
    Trial("nothing arrives", "drop", "untouched"),
    Trial("an earlier transfer arrives again", "stale", "stale"),
    Trial("displaced by 16 bytes", "shift:16", "offset"),
    Trial("displaced by 3 bytes", "shift:3", "offset"),
    Trial("two pages change places", "page_swap", "offset"),
    Trial("the end is missing", "tail", "untouched"),
    Trial("one bit flips", "bit", "bits"),
    Trial("words tear", "torn", "torn", mode="store16"),
    Trial("memory behind the end is overwritten", "neighbour", "overrun"),
    Trial("one word in a million is wrong", "rare", "bits"),
    Trial("only the writer sees its bytes", "mirror", "untouched", mode="views"),
    Trial("a flag comes before its data", "reorder", "reordered", mode="flags"),
    Trial("a transfer never ends", "hang", "hung"),
    Trial("wrong only under load", "bit,only_under_load", "bits", load="both_ways"),
    Trial("one direction is wrong", "zero,pairs=0->1", "zero"),
    Trial("two hundred times slower", "slow:200", "slow"),
)


def prove_the_verifier(devices: str, seed: int, tell: Callable[[int, int, Case], None] = lambda done, of, case: None) -> list[Proven]:
    """() if there is no GPU."""
    with Runner(Setup(devices, seed, EFFORT)) as runner:
        cards = len(runner.cards()[0])
        if not cards:
            return []
        trials = [t for t in TRIALS if cards > 1 or "pairs=" not in t.fault]
        results = []
        for number, trial in enumerate(trials):
            case, clean = cases(trial, cards)
            tell(number, len(trials), case)
            begun = perf_counter()
            deadline_s = HANG_DEADLINE_S if trial.wants == "hung" else DEADLINE_S
            outcomes = list(runner.run([Job(c, deadline_s) for c in (*clean, case)]))
            results.append(judged(trial, outcomes, clean, perf_counter() - begun))
    return results


def cases(trial: Trial, cards: int) -> tuple[Case, tuple[Case, ...]]:
    """Where the fault must show, and cases with the same fault put in where it must not."""
    pair, back = ((0, 1), (1, 0)) if cards > 1 else ((0, 0), (0, 0))
    clean = [Case("staged", pair, fault=trial.fault)]
    if trial.load != "alone":
        clean.append(Case(trial.mode, pair, fault=trial.fault))
        return Case(trial.mode, pair if cards > 1 else (0,), trial.load, fault=trial.fault), tuple(clean)
    if "pairs=" in trial.fault:
        clean.append(Case(trial.mode, back, fault=trial.fault))
    return Case(trial.mode, pair, fault=trial.fault), tuple(clean)


def judged(trial: Trial, outcomes: Sequence[Outcome], clean: Sequence[Case], took_s: float) -> Proven:
    """Was it seen where it is, named as what it is, and nothing seen where it is not?"""
    here = [o for o in outcomes if o.case not in clean]
    elsewhere = [o for o in outcomes if o.case in clean and o.state != "verified"]
    seen = {w.kind for o in here for w in o.wrong} | {o.state for o in here} | {"slow" for o in here if _slow(o, outcomes)}
    found = bool(seen - NOTHING_SEEN)
    named = trial.wants in seen and not elsewhere and (found or not trial.fault)
    words = "; ".join(sorted(seen - {"corrupt", "verified"})) or "-"
    if seen and seen <= ABSENT and all(o.state in ABSENT for o in elsewhere):
        return Proven(trial.words, False, False, words, took_s, possible=False)
    if not trial.fault:  # a false alarm is the worst that a verifier can do
        return Proven(trial.words, found or bool(elsewhere), named and not found, words, took_s, "" if named and not found else "-")
    why = "" if named else f"{elsewhere[0].case.mode} {elsewhere[0].state}" if elsewhere else trial.wants
    return Proven(trial.words, found, named, words, took_s, why)


def _slow(outcome: Outcome, outcomes: Sequence[Outcome]) -> bool:
    """Slower than the control, as the route table would say."""
    control = next((o.speed for o in outcomes if o.case.mode == "staged" and o.speed), None)
    return bool(outcome.speed and control and outcome.speed.bw_GBps < SLOWER_THAN_STAGED * control.bw_GBps)
