"""The weighing itself: verdicts, states, confidences."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkproof.causes import CLASSES, causes
from linkproof.diagnose import SURE, diagnose
from linkproof.diagnose.weigh import confidences
from linkproof.model import Diagnosis
from linkproof.parse.observations import OBSERVATION_WORDS, observations

Words = dict[str, Any]


def told(*entries: Words) -> Diagnosis:
    return diagnose(observations(list(entries)))


def test_nothing_known_is_neither_healthy_nor_anybodys_fault() -> None:
    diagnosis = told()
    assert (diagnosis.verdict, diagnosis.causes) == ("cannot_tell", ())
    assert diagnosis.next, "with nothing known the first questions are asked"


def test_nothing_seen_failing_is_not_healthy_without_measured_data() -> None:
    assert told({"check": "kernel_log", "fact": "clean"}, {"check": "acs", "redirect": "off"}).verdict == "cannot_tell"
    assert told({"check": "copy", "via": "peer", "result": "ok"}).verdict == "cannot_tell", "copies alone do not prove collectives"


def test_measured_copies_and_collectives_are_healthy() -> None:
    diagnosis = told({"check": "copy", "via": "peer", "result": "ok"}, {"check": "collective", "engine": "nccl", "result": "ok"})
    assert diagnosis.verdict == "healthy"


def test_one_failing_run_beside_good_measurements_is_not_healthy() -> None:
    good = ({"check": "copy", "via": "peer", "result": "ok"}, {"check": "collective", "engine": "nccl", "result": "ok"})
    assert told(*good, {"check": "model", "split": "tensor", "result": "garbage"}).verdict != "healthy"


def test_exclamation_marks_alone_accuse_nobody() -> None:
    diagnosis = told({"check": "model", "split": "tensor", "result": "garbage"}, {"check": "gpu", "name": "L4", "count": 2})
    assert diagnosis.verdict == "cannot_tell"
    assert all(w.confidence < SURE for w in diagnosis.causes)


def test_a_page_fault_of_a_gpu_confirms_the_iommu() -> None:
    diagnosis = told({"check": "kernel_log", "fact": "io_page_fault"}, {"check": "copy", "via": "peer", "result": "zeros"})
    assert (diagnosis.causes[0].id, diagnosis.causes[0].state) == ("iommu_translation", "confirmed")
    assert diagnosis.next == (), "a confirmed cause needs no further question"


def test_a_failure_on_one_gpu_rules_the_fabric_out() -> None:
    diagnosis = told({"check": "model", "split": "none", "result": "assert"}, {"check": "iommu", "mode": "translating"})
    assert diagnosis.causes[0].cls != "fabric"
    iommu = next((w for w in diagnosis.causes if w.id == "iommu_translation"), None)
    assert iommu is None or iommu.confidence < 0.1


def test_every_sign_cites_where_it_comes_from() -> None:
    diagnosis = told({"check": "copy", "via": "peer", "result": "zeros"}, {"check": "copy", "via": "host", "result": "ok"})
    signs = [s for w in diagnosis.causes for s in w.signs]
    assert signs and all(s.source.file == "observations.yaml" and s.source.line > 0 for s in signs)


def test_texts_of_signs_take_all_their_arguments() -> None:
    diagnosis = told({"check": "acs", "redirect": "on"}, {"check": "model", "split": "tensor", "result": "hang"})
    assert [s.text.format_map(s.args) for w in diagnosis.causes for s in w.signs]


def test_every_cause_has_a_known_class_and_a_prior_below_nothing() -> None:
    assert len(causes()) >= 54
    for cause in causes():
        assert cause.cls in CLASSES and -8.0 <= cause.prior <= -2.0, cause.id


@given(st.lists(st.floats(-50, 50), max_size=60))
def test_confidences_are_shares_that_leave_room_for_something_else(scores: list[float]) -> None:
    shares = confidences(scores)
    assert all(0.0 <= share <= 1.0 for share in shares) and sum(shares) <= 1.0 + 1e-9
    ranked = sorted(zip(scores, shares, strict=True))
    assert all(low[1] <= high[1] + 1e-12 for low, high in itertools.pairwise(ranked))


def _one_observation() -> st.SearchStrategy[Words]:
    def entry(check: str) -> st.SearchStrategy[Words]:
        keys = OBSERVATION_WORDS[check][1]
        fields = {
            k: st.sampled_from(v) if v else st.sampled_from(["1", "RTX 4090", "NCCL_P2P_DISABLE=1", "0-1", "", "é\n{x}"])
            for k, v in keys.items()
        }
        return st.fixed_dictionaries({"check": st.just(check), **fields})

    return st.sampled_from(sorted(OBSERVATION_WORDS)).flatmap(entry)


@given(st.lists(_one_observation(), max_size=8))
def test_any_observations_give_a_diagnosis_whose_parts_agree(entries: list[Words]) -> None:
    diagnosis = told(*entries)
    assert diagnosis.verdict in ("healthy", "faulty", "cannot_tell")
    live = [w for w in diagnosis.causes if w.state != "ruled_out"]
    assert [w.confidence for w in live] == sorted((w.confidence for w in live), reverse=True)
    assert (diagnosis.verdict == "faulty") == bool(live and live[0].confidence >= SURE)
    for w in diagnosis.causes:
        for sign in w.signs:
            assert sign.text.format_map(sign.args) and sign.weight > 0


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_facts_does_not_change_the_verdict(order: int) -> None:
    entries: list[Words] = [
        {"check": "copy", "via": "peer", "result": "wrong"},
        {"check": "iommu", "mode": "translating"},
        {"check": "acs", "redirect": "on"},
        {"check": "model", "split": "pipeline", "result": "nan"},
    ]
    assert [(w.id, w.score) for w in told(*entries[::order]).causes] == [(w.id, w.score) for w in told(*entries).causes]
