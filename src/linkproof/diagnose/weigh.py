"""Facts -> Diagnosis: scores, confidences, states, verdict."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp

from linkproof.causes import causes
from linkproof.causes.reading import Reading
from linkproof.diagnose.consumers import consumers, remarks
from linkproof.diagnose.notes import notes
from linkproof.diagnose.questions import next_steps
from linkproof.model import LEADS, Collective, Copy, Diagnosis, Fact, ModelRun, NotChecked, Sign, Stage, Weighed
from linkproof.routes import RouteTable, proof

SURE = 0.5  # from here on a cause is called likely, and the verdict is `faulty`
CONFIRMED = 0.9
POSSIBLE = 0.04
RULED_OUT = 3.0  # nats against, at least, before a cause is said to be ruled out
# what people suspect first, and want to hear about when it is ruled out
SUSPECTS = (
    "iommu_translation",
    "acs_redirect",
    "p2p_broken_unattributed",
    "p2p_driver_bug",
    "nccl_version_bug",
    "custom_allreduce_bug",
    "shm_too_small",
)
NAMED = 0.9  # nats in favour, at least, before a cause is named at all
# Two numbers turn scores into confidences, fitted on recorded failures (`make bench` prints the reliability table).
TEMPERATURE = 0.8
ELSE = -1.0  # score of `something else`


def score_all(reading: Reading) -> list[tuple[str, str, float, list[Sign], list[NotChecked]]]:
    """(id, class, score, signs, not checked) of every cause, unsorted."""
    out = []
    for cause in causes():
        signs: list[Sign] = []
        unknown: list[NotChecked] = []
        score = cause.prior
        for said in cause.weigh(reading):
            if isinstance(said, NotChecked):
                unknown.append(said)
            else:
                score += said.weight if said.speaks_for else -said.weight
                signs.append(said)
        out.append((cause.id, cause.cls, score, signs, unknown))
    return out


def confidences(scores: Iterable[float]) -> list[float]:
    """Softmax over these and `something else`."""
    scaled = [s / TEMPERATURE for s in scores]
    other = ELSE / TEMPERATURE
    top = max([other, *scaled])
    weights = [exp(s - top) for s in scaled]
    total = sum(weights) + exp(other - top)
    return [w / total for w in weights]


def _state(confidence: float, score: float, signs: list[Sign], prior_score: float) -> str:
    against = sum(s.weight for s in signs if not s.speaks_for)
    speaks_for = sum(s.weight for s in signs if s.speaks_for)
    if confidence >= CONFIRMED and any(s.decisive and s.speaks_for for s in signs):
        return "confirmed"
    if confidence >= SURE:
        return "likely"
    if against > speaks_for and score < prior_score:
        return "ruled_out"
    return "possible"


def weigh_all(reading: Reading) -> tuple[list[Weighed], dict[str, list[NotChecked]]]:
    """Every cause that something speaks for or clearly against, best first, with what each could not judge."""
    scored = score_all(reading)
    shares = confidences(s[2] for s in scored)
    priors = {c.id: c.prior for c in causes()}
    weighed = [
        Weighed(
            cid,
            cls,
            round(score, 2),
            round(share, 3),
            _state(share, score, signs, priors[cid]),
            tuple(sorted(signs, key=lambda s: -s.weight)),
        )
        for (cid, cls, score, signs, _), share in zip(scored, shares, strict=True)
        if signs
    ]
    weighed.sort(key=lambda w: (-w.score, w.id))
    return weighed, {cid: unknown for cid, _, _, _, unknown in scored}


def _shown(weighed: list[Weighed]) -> list[Weighed]:
    """What a person needs to see: the live ones, and those that people suspect first and that are ruled out here.

    A cause is not named on less than a doubling or so of its odds (NAMED): naming the fabric because "it fails over several GPUs" sends
    people the wrong way.
    """
    named = [w for w in weighed if w.state != "ruled_out" and sum(s.weight for s in w.signs if s.speaks_for) >= NAMED]
    live = [w for w in named if w.confidence >= POSSIBLE] or named[:3]
    out = [
        w
        for w in weighed
        if w.state == "ruled_out"
        and sum(s.weight for s in w.signs if not s.speaks_for) >= RULED_OUT
        and (w.id in SUSPECTS or any(s.speaks_for for s in w.signs))
    ]
    return live + [w for w in out if w not in live][:6]


def healthy(reading: Reading, routes: RouteTable | None = None) -> bool:
    """Only measured data says healthy, and nothing seen failing: a route table in which every pair is proven in every mode that the machine
    has, and NCCL beside it; without a table, direct copies over all pairs and a collective. Nothing seen is not healthy, and one GPU alone
    has no links that could be."""
    results = (
        [r.result for r in reading.all(ModelRun)] + [r.result for r in reading.all(Copy)] + [r.result for r in reading.all(Collective)]
    )
    bad = any(r != "ok" for r in results) or bool(reading.all(Stage))
    if routes is not None:
        return not bad and proof(routes).word in ("all", "no_p2p")
    return not bad and reading.peer_copy_ok is not None and reading.first(Collective, result="ok") is not None


def diagnose(facts: Iterable[Fact], texts: Iterable[tuple[str, int]] = ()) -> Diagnosis:
    """Weigh every cause on these facts, and find the next question. texts: (name, lines) of what was read, for the report."""
    reading = Reading(facts)
    weighed, unknown = weigh_all(reading)
    return concluded(reading, weighed, unknown, texts)


def concluded(
    reading: Reading,
    weighed: list[Weighed],
    unknown: dict[str, list[NotChecked]],
    texts: Iterable[tuple[str, int]],
    ask: bool = True,
    routes: RouteTable | None = None,
) -> Diagnosis:
    """The diagnosis of causes that are weighed already. ask: look for the next question too, which costs more than all the weighing.
    routes: what was measured, where it was; it then decides what each engine may do, whatever cause leads."""
    shown = _shown(weighed)
    top = shown[0] if shown else None
    sure = top is not None and top.confidence >= SURE
    broken = routes is not None and routes.broken
    verdict = "faulty" if sure or broken else "healthy" if healthy(reading, routes) else "cannot_tell"
    if verdict == "healthy":
        shown = [w for w in shown if w.state == "ruled_out"]
    wanted = [w.id for w in shown if w.state != "ruled_out"][:5]
    return Diagnosis(
        verdict=verdict,
        causes=tuple(shown),
        next=tuple(next_steps(reading, weighed, TEMPERATURE, ELSE)) if ask and verdict != "healthy" else (),
        not_checked=tuple(n for cid in wanted for n in unknown[cid]),
        notes=(*(remarks(routes) if routes is not None else ()), *notes(reading)),
        consumers=consumers(top if top is not None and verdict != "healthy" and top.confidence >= LEADS else None, routes, reading),
        facts=reading.facts,
        texts=tuple(texts),
    )
