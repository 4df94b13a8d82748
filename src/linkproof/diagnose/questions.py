"""What to find out next. Every question is tried on paper: each of its answers is added to the facts and the leading causes are
weighed again; the question expected to tell most (mutual information between answer and cause) comes first.

    P(answer | cause)  ~ how usual the answer is * exp(what it adds to the cause's score)
    gain               = sum over answers of P(answer) * KL(causes given the answer || causes now)     (nats)

So a question is chosen by what it would change here and now, and no table says which question belongs to which cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import exp, log

from linkproof.causes import causes
from linkproof.causes.reading import Reading
from linkproof.diagnose.question_list import QUESTIONS, Question
from linkproof.model import Fact, Next, NotChecked, Sign, Weighed
from linkproof.parse.observations import observations

LEADERS = 6  # so many causes are told apart
REACH = 4.0  # nats below the best: further back a cause is not worth a question
WORTH = 0.03  # nats; a question that tells less is not asked
MOST = 3
FIRST = ("how_split", "one_gpu")  # where nothing is known yet


def answer_facts(question: Question, number: int, reading: Reading) -> list[Fact]:
    """The facts that answer `number` of a question stands for. `{split}` and `{result}` take over how it fails here."""
    run = reading.split_bad
    split = run.split if run else "tensor" if reading.event("engine_tp") else "pipeline"
    result = run.result if run else "crash"
    filled = [
        {key: split if value == "{split}" else result if value == "{result}" else value for key, value in entry.items()}
        for entry in question.answers[number].observations
    ]
    return observations(filled, f"answer: {question.key}")


def open_questions(reading: Reading) -> list[Question]:
    return [q for q in QUESTIONS.values() if not q.answered(reading) and q.applies(reading)]


def _score(weigh: Callable[[Reading], Iterator[Sign | NotChecked]], reading: Reading) -> float:
    return sum(said.weight if said.speaks_for else -said.weight for said in weigh(reading) if isinstance(said, Sign))


def rank(reading: Reading, suspects: frozenset[str], temperature: float, other: float) -> list[tuple[Question, float, tuple[str, ...]]]:
    """Open questions with their gain in nats and the causes they tell apart (of the suspects, if two or more are), best first."""
    scored = sorted(((_score(c.weigh, reading) + c.prior, c) for c in causes()), key=lambda pair: (-pair[0], pair[1].id))[:LEADERS]
    best = scored[0][0]
    live = [c for score, c in scored if best - score < REACH]
    now = [exp((score - best) / temperature) for score, c in scored if best - score < REACH]
    # something else: as likely as now, but never so likely that no question seems worth asking
    now.append(min(exp((other - best) / temperature), sum(now) / 2))
    total = sum(now)
    now = [p / total for p in now]
    out = []
    for question in open_questions(reading):
        given: list[list[float]] = [[] for _ in now]  # per cause: log-weight of each answer
        for number in range(len(question.answers)):
            told = reading.with_facts(answer_facts(question, number, reading))
            for i, cause in enumerate(live):
                given[i].append(_score(cause.weigh, told) / temperature)
            given[-1].append(0.0)
        usual = [answer.usual for answer in question.answers]
        chances = []
        for weights in given:
            top = max(weights)
            shares = [u * exp(w - top) for u, w in zip(usual, weights, strict=True)]
            chances.append([s / sum(shares) for s in shares])
        gain = 0.0
        spread = [0.0] * len(now)
        for a in range(len(question.answers)):
            p_answer = sum(p * c[a] for p, c in zip(now, chances, strict=True))
            for i, (p, c) in enumerate(zip(now, chances, strict=True)):
                part = p * c[a] * log(c[a] / p_answer) if c[a] > 1e-12 else 0.0
                gain += part
                spread[i] += part
        moved = sorted((i for i in range(len(live)) if spread[i] > 0.005), key=lambda i: -spread[i])[:4]
        apart = [live[i].id for i in sorted(moved)]
        spoken = [cause for cause in apart if cause in suspects]
        out.append((question, gain / question.cost, tuple(spoken if len(spoken) > 1 else apart)))
    out.sort(key=lambda row: (-row[1], row[0].key))
    return out


def next_steps(reading: Reading, weighed: list[Weighed], temperature: float, other: float) -> Iterator[Next]:
    """The best next steps, at most MOST of them; none when the leader is confirmed."""
    if weighed and weighed[0].state == "confirmed":
        return
    if not reading.facts:
        for key in FIRST:
            yield Next(text=QUESTIONS[key].text, tells_apart=(), kind="question", key=key, args={"command": QUESTIONS[key].command})
        return
    suspects = frozenset(w.id for w in weighed if w.state != "ruled_out" and any(s.speaks_for for s in w.signs))
    ranked = [row for row in rank(reading, suspects, temperature, other) if row[1] >= WORTH]
    for question, _gain, apart in ranked[:MOST]:
        yield Next(text=question.text, tells_apart=apart, kind="question", key=question.key, args={"command": question.command})
