"""The verifier proves itself, and can fail: a blinded one is found out, and what could not be put in is not called caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import linkproof.self_test
from linkproof.cli import main
from linkproof.measured import Case, Outcome, Wrong
from linkproof.probe import copy_check, kernel_checks
from linkproof.probe.faults import KINDS, parse
from linkproof.probe.payload import classify
from linkproof.probe.setup import Effort, Setup
from linkproof.report.layout import plain
from linkproof.report.links_self_test import self_test_rows
from linkproof.report.say import Teller, catalogue
from linkproof.self_test import EFFORT, TRIALS, Proven, Trial, cases, judged, prove_the_verifier
from linkproof.sim.scenario import load
from linkproof.sim.virtual import Virtual, create
from linkproof.tasks import run_case

SMALL = Effort((256, 8192, 65536 + 16, 1 << 20), rounds_small=3, rounds_big=1, message_rounds=200, message_deadline_s=2.0)
IN_PROCESS = [t for t in TRIALS if t.wants != "hung"]  # that one needs somebody to end it


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def tell(*_: object) -> None:
    """Nobody listens."""


def here(folder: Path, effort: Effort = SMALL, trials: list[Trial] = IN_PROCESS) -> list[Proven]:
    """As `prove_the_verifier`, in this process."""
    create(load("healthy-2xpcie"), folder)
    devices, setup, results = Virtual(folder), Setup(f"sim:{folder}", 77, effort), []
    for trial in trials:
        case, clean = cases(trial, 2)
        outcomes = [o for c in (*clean, case) for o in run_case(devices, c, setup)]
        results.append(judged(trial, outcomes, clean, 0.1))
    return results


def words(results: list[Proven], lang: str = "en") -> str:
    return plain(self_test_rows(results, Teller(lang), 100))


def test_every_fault_that_a_link_can_have_is_put_in() -> None:
    put_in = {parse(t.fault).kind for t in TRIALS if t.fault}
    assert put_in == set(KINDS) - {"atomics_lost"}, "atomics are reported and not judged"
    assert sum(not t.fault for t in TRIALS) == 2 and len({t.words for t in TRIALS}) == len(TRIALS)
    assert all(t.words in catalogue() for t in TRIALS)


def test_on_a_healthy_machine_every_fault_is_named_by_the_processes_of_a_real_check(tmp_path: Path) -> None:
    create(load("healthy-2xpcie"), tmp_path)
    told: list[Case] = []
    results = prove_the_verifier(f"sim:{tmp_path}", 7, lambda done, of, case: told.append(case))
    assert [r.fault for r in results] == [t.words for t in TRIALS] and len(told) == len(TRIALS)
    assert [r.fault for r in results if not r.named] == []
    assert [r.fault for r in results if not r.caught] == [t.words for t in TRIALS if not t.fault]
    assert f"All {len(TRIALS)} were seen and named" in words(results)


def test_one_card_is_proven_with_itself_but_for_one_direction(tmp_path: Path) -> None:
    for trial in TRIALS:
        case, clean = cases(trial, 1)
        assert {i for c in (case, *clean) for i in c.gpus} == {0}
    create(load("healthy-2xpcie"), tmp_path)
    devices, setup = Virtual(tmp_path), Setup(f"sim:{tmp_path}", 77, SMALL)
    trial = next(t for t in TRIALS if t.fault == "zero")
    case, clean = cases(trial, 1)
    assert judged(trial, [o for c in (*clean, case) for o in run_case(devices, c, setup)], clean, 0.1).named


# ---------------------------------------------------------------- it can fail


def blinded(monkeypatch: pytest.MonkeyPatch, seen: Callable[..., tuple[Wrong, ...]]) -> None:
    for room in (copy_check, kernel_checks):
        monkeypatch.setattr(room, "classify", seen)


def test_a_blind_checker_misses_and_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(r.named for r in here(tmp_path, EFFORT)), "with its eyes open"
    blinded(monkeypatch, lambda *_: ())
    results = {r.fault: r for r in here(tmp_path)}
    copies = [t for t in IN_PROCESS if t.fault and t.mode != "flags" and t.wants != "slow"]
    assert len(copies) > 12 and not any(results[t.words].caught or results[t.words].named for t in copies)
    assert results["nothing (copies)"].named, "a blind checker has no false alarms"
    missed = sum(not r.named for r in results.values())
    text = words(list(results.values()))
    assert text.count("MISSED") == missed >= len(copies) and f"{missed} of {len(results)} were missed" in text
    assert "MISSED" not in words(list(results.values()), "zh") and "were missed" not in words(list(results.values()), "zh")


def test_a_checker_that_always_cries_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blinded(monkeypatch, lambda *_: (Wrong("zero", 8, 0),))
    results = {r.fault: r for r in here(tmp_path)}
    assert results["nothing (copies)"].caught and not results["nothing (copies)"].named
    assert not any(results[t.words].named for t in IN_PROCESS if t.mode == "push" and t.wants != "slow"), "the control has the fault too"


def test_one_name_for_everything_is_caught_and_misnamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = classify
    blinded(monkeypatch, lambda *window: tuple(Wrong("garbage", w.bad_B, w.first_B) for w in right(*window)))
    trials = [t for t in IN_PROCESS if t.fault in ("zero", "drop", "stale", "bit", "neighbour")]
    results = here(tmp_path, trials=trials)
    assert len(results) == 5 and all(r.caught and not r.named for r in results) and "caught, misnamed" in words(results)
    assert "All 5 were seen, 5 of them were called something else" in words(results)


@pytest.mark.parametrize("state", ["refused", "not_tested"])
def test_what_could_not_be_put_in_is_not_called_seen(state: str) -> None:
    trial = next(t for t in TRIALS if t.fault == "zero")
    case, clean = cases(trial, 2)
    r = judged(trial, [Outcome(clean[0], "verified"), Outcome(case, state)], clean, 0.1)
    assert not r.caught and not r.named and not r.possible
    assert (
        "could not be put in" in words([r]) and "Nothing was put in, so nothing is proven" in words([r]) and "无法注入" in words([r], "zh")
    )
    named = Proven("zeros", True, True, "zero", 0.1)
    assert "1 were seen and named; 1 could not be put in" in words([named, r])
    alarmed = judged(trial, [Outcome(clean[0], "corrupt", wrong=(Wrong("zero", 8, 0),)), Outcome(case, state)], clean, 0.1)
    assert alarmed.possible and not alarmed.named, "a control that is not clean is a false alarm"


def test_a_fault_that_shows_where_it_is_not_is_not_named() -> None:
    trial = next(t for t in TRIALS if "pairs=" in t.fault)
    case, clean = cases(trial, 2)
    bad = (Wrong("zero", 8, 0),)
    right = [Outcome(clean[0], "verified"), Outcome(clean[1], "verified"), Outcome(case, "corrupt", wrong=bad)]
    assert judged(trial, right, clean, 0.1).named
    assert not judged(trial, [right[0], Outcome(clean[1], "corrupt", wrong=bad), right[2]], clean, 0.1).named


# ---------------------------------------------------------------- the command


def test_the_command_says_0_where_all_is_named_1_where_not_and_3_where_one_could_not_be_tried(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [Proven("zeros", True, True, "zero", 0.1)]
    missed, absent = (
        Proven("one bit flips", False, False, "-", 0.1, "bits"),
        Proven("words tear", False, False, "refused", 0.1, possible=False),
    )
    for results, code in ((named, 0), ([*named, missed], 1), ([*named, absent], 3), ([absent, missed], 1), ([absent], 3)):
        monkeypatch.setattr(linkproof.self_test, "prove_the_verifier", lambda *_, results=results: results)
        assert main(["check", "--self-test", "--sim", "healthy-2xpcie", "--lang", "en"]) == code
        assert ("MISSED" in capsys.readouterr().out) == (missed in results)


def test_links_that_refuse_everything_prove_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--self-test", "--sim", "p2p-refused-geforce", "--lang", "en"]) == 3
    out = capsys.readouterr().out
    assert "nothing is proven" in out and "named  " not in out and "MISSED" not in out


def test_without_a_gpu_the_command_cannot_tell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "")
    assert main(["check", "--self-test", "--lang", "en"]) == 3
    assert "nothing is proven" in capsys.readouterr().out
