"""The next step is the one that would change most, and every answer is a valid observation."""

from __future__ import annotations

from typing import Any

import pytest

from linkproof.causes.reading import Reading
from linkproof.diagnose import diagnose
from linkproof.diagnose.question_list import QUESTIONS
from linkproof.diagnose.questions import answer_facts
from linkproof.parse.observations import observations


def keys(*entries: dict[str, Any]) -> list[str]:
    return [step.key for step in diagnose(observations(list(entries))).next]


@pytest.mark.parametrize("key", sorted(QUESTIONS))
def test_every_answer_is_made_of_known_words_and_answers_its_question(key: str) -> None:
    question = QUESTIONS[key]
    assert len(question.answers) >= 2
    said_something = False
    for number, answer in enumerate(question.answers):
        facts = answer_facts(question, number, Reading(()))
        assert len(facts) == len(answer.observations)
        if facts:
            said_something = True
            assert question.answered(Reading(facts)), f"{key}: {answer.text}"
    assert said_something


def test_wrong_text_over_layers_asks_first_whether_copies_arrive() -> None:
    assert keys({"check": "model", "split": "pipeline", "result": "garbage"})[0] == "copy"


def test_a_bare_assertion_on_one_gpu_asks_for_the_token_ids() -> None:
    assert keys({"check": "model", "split": "none", "result": "assert"})[0] == "token_ids"


def test_a_broken_peer_path_asks_for_what_guards_it() -> None:
    asked = keys({"check": "copy", "via": "peer", "result": "zeros"}, {"check": "copy", "via": "host", "result": "ok"})
    assert {"iommu", "acs", "kernel_log"} & set(asked)


def test_what_is_known_is_not_asked_again() -> None:
    known = {"check": "iommu", "mode": "translating"}
    assert "iommu" not in keys({"check": "copy", "via": "peer", "result": "zeros"}, known)


def test_a_question_that_makes_no_sense_here_is_not_asked() -> None:
    assert "token_ids" not in keys({"check": "model", "split": "tensor", "result": "hang"})
    assert "copy" not in keys({"check": "model", "split": "none", "result": "nan"})


def test_a_step_names_the_causes_it_tells_apart() -> None:
    steps = diagnose(
        observations([{"check": "model", "split": "tensor", "result": "hang"}, {"check": "model", "split": "none", "result": "ok"}])
    ).next
    assert steps and all(step.tells_apart for step in steps)
