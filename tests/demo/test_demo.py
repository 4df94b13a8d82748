"""The demo shows what ran: right if it is right, and if a step does not come out as it should it says so and fails."""

from __future__ import annotations

import builtins
import importlib.util
import io
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: the demo has no model")
pytest.importorskip("accelerate", reason="accelerate is not installed: no model can be split")
pytest.importorskip("transformers", reason="transformers is not installed: there is no model")

import torch

import linkproof
from linkproof.demo import model, story, train
from linkproof.demo.model import Stage, Wound
from linkproof.errors import UsageError
from linkproof.guard.watch import guard
from linkproof.probe.faults import Fault
from linkproof.report import layout
from linkproof.report.layout import Row
from linkproof.report.say import Teller

HARMLESS = (Wound("slow, and right", (Fault("slow"),)),)


@pytest.fixture(scope="module")
def stage() -> Stage:
    return Stage("en")


def shown_by(act: Callable[[story.Page], Any], pauses: bool = False) -> str:
    """What a step shows; what it raises comes last."""
    out = io.StringIO()

    def show(rows: str | Iterable[Row]) -> None:
        out.write(rows if isinstance(rows, str) else layout.plain(rows))

    try:
        act(story.Page("en", show, 1000, pauses))
    except story.NotAsItShould as e:
        out.write(f"NOT SO: {e.text}")
    return out.getvalue()


def run(capsys: pytest.CaptureFixture[str], lang: str = "en", pause: bool = False) -> tuple[int, str]:
    def show(rows: str | Iterable[Row]) -> None:
        sys.stdout.write(rows if isinstance(rows, str) else layout.plain(rows))

    code = story.run(Namespace(pause=pause), lang, show, 1000)
    return code, capsys.readouterr().out


# ---------------------------------------------------------------- as it should be


def test_every_step_comes_out_and_each_line_that_it_shows_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys)
    assert code == 0, out
    right = model.TEXTS["en"][len(model.PROMPTS["en"]) :][:70]
    for line in (right, "!!!!!!!!!!", "cards cards", "IndexError: index out of range in self", "probability tensor contains either"):
        assert line in out
    assert "device-side assert triggered" in out and "Cannot tell yet" in out and "the IOMMU rejects or misroutes" in out
    assert out.count("70 of 70 tokens right") == 4 and "vgpu:0 <-> vgpu:1" in out
    assert len(out.splitlines()) < 60
    names: dict[str, Any] = {}
    for line in out.splitlines():
        typed = line.strip()
        if typed.startswith(">>> ") and "linkproof.guard" not in typed:  # that one is tried below
            exec(typed[4:].replace("wounds()]", "wounds()[:1]]"), names)
    assert names["log"].rstrip().endswith("IndexError: index out of range in self")


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_shipped_model_writes_its_whole_paragraph(lang: str) -> None:
    stage = Stage(lang)
    whole = model.encoded(model.TEXTS[lang])[len(stage.prompt) :]
    stage.new = len(whole)
    assert list(stage.write(stage.alone).ids) == whole


def test_the_symptoms_and_the_cure_in_chinese() -> None:
    stage = Stage("zh")
    for wound in model.wounds():
        bare = stage.write(stage.split, wound)
        assert bare.ids != stage.right
        with guard(stage.split):
            assert stage.write(stage.split, wound).ids == stage.right


def test_it_is_small() -> None:
    assert (model.FOLDER / "model.safetensors").stat().st_size < 450_000


def test_token_0_is_the_exclamation_mark_and_every_byte_has_a_token() -> None:
    assert model.decoded([0]) == "!" and model.encoded("!") == [0]
    assert sorted(model.encoded("\0!")) == [0, 33] and model.decoded([33, 200, 65]) == "·�A"


def test_it_loads_no_torch_before_it_runs() -> None:
    code = "import sys, linkproof.demo.story; print('torch' in sys.modules, 'transformers' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 3


# ---------------------------------------------------------------- not as it should be


def test_a_fault_that_does_no_harm_ends_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(model, "wounds", lambda: HARMLESS)
    code, out = run(capsys)
    assert code == 1 and "Not as it should be: the right tokens came out all the same" in out
    assert "linkproof check" not in out and "came out as it should" not in out


def test_a_model_that_writes_something_else_ends_it(stage: Stage) -> None:
    with torch.no_grad():
        kept = stage.alone.lm_head.weight.clone()
        stage.alone.lm_head.weight.zero_()
    try:
        assert "NOT SO: the model does not write" in shown_by(lambda page: story.healthy(stage, page))
        with torch.no_grad():
            stage.alone.lm_head.weight.copy_(kept)
        assert "NOT SO" not in shown_by(lambda page: story.healthy(stage, page))
    finally:
        with torch.no_grad():
            stage.alone.lm_head.weight.copy_(kept)


def test_a_split_that_writes_something_else_ends_it(stage: Stage) -> None:
    def both(page: story.Page) -> None:
        stage.split, kept = HalfRight(stage), stage.split
        try:
            story.healthy(stage, page)
        finally:
            stage.split = kept

    assert "NOT SO: one GPU and two GPUs" in shown_by(both)


class HalfRight:
    """Writes what the model writes, but for the last token."""

    def __init__(self, stage: Stage) -> None:
        self.model = stage.split

    def generate(self, ids: Any, **kwargs: Any) -> Any:
        out = self.model.generate(ids, **kwargs).cpu()
        out[0, -1] += 1
        return out


def test_a_run_that_does_not_die_leaves_nothing_to_explain(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    first = model.wounds()[:1]
    monkeypatch.setattr(model, "wounds", lambda: first)
    right = {False: stage.right, True: stage.right}
    assert "NOT SO: no run died" in shown_by(lambda page: story.broken(stage, right, page))


def test_an_explanation_that_does_not_lead_to_the_link_ends_it(stage: Stage) -> None:
    log = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 23.6 GiB\n"
    assert "NOT SO: the path between the GPUs" in shown_by(lambda page: story.explained(stage, log, page))


def test_a_check_that_finds_nothing_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "SCENARIO", "healthy-2xpcie")
    assert "NOT SO: `check` does not find" in shown_by(story.checked)


def test_a_guard_that_mends_nothing_ends_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    right = {False: stage.right, True: stage.right}
    monkeypatch.setattr(linkproof, "guard", lambda m: guard(m, "observe"), raising=False)
    out = shown_by(lambda page: story.guarded(stage, right, page))
    assert "0 of 70 tokens right" in out and "NOT SO: under the guard it writes" in out


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "accelerate" else object())
    with pytest.raises(UsageError) as e:
        Stage("en")
    assert "accelerate" in e.value.what[0] and "torch" not in e.value.what[0]
    assert "pip install 'linkproof[model]'" in e.value.told("zh")


# ---------------------------------------------------------------- around it


def test_pause_waits_between_the_steps_in_a_terminal_and_says_so_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(builtins, "input", asked.append)

    def three(page: story.Page) -> None:
        for words in ("a", "b", "c"):
            page.step(words)

    assert shown_by(three, pauses=True).split() == ["1", "a", "2", "b", "3", "c"] and asked == ["[Enter]"] * 2
    assert not story._pauses(True, Teller("en")) and "--pause" in capsys.readouterr().err
    assert not story._pauses(False, Teller("en")) and not capsys.readouterr().err


def test_training_says_when_the_text_is_not_right(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "STEPS", 2)
    assert train.main(str(tmp_path)) == 1
    assert (tmp_path / "config.json").read_bytes() == (model.FOLDER / "config.json").read_bytes()
    assert abs((tmp_path / "model.safetensors").stat().st_size - (model.FOLDER / "model.safetensors").stat().st_size) < 100
