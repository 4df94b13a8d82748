"""Questions are asked in a terminal only, the most telling first, and an answer that is kept counts the same when it is read again."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest

from linkproof.ask import CLEAR, _save, ask
from linkproof.causes.reading import Reading
from linkproof.cli import main
from linkproof.diagnose.question_list import QUESTIONS
from linkproof.diagnose.questions import answer_facts
from linkproof.explaining import explain, explain_inputs
from linkproof.model import Diagnosis, Fact

GARBAGE = ({"check": "model", "split": "none", "result": "ok"}, {"check": "model", "split": "pipeline", "result": "garbage"})
PAGE_FAULT = "[11.8] nvidia 0000:0a:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000f address=0xea13a000 flags=0x0020]"
ENV = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "NO_COLOR"))} | {"TERM": "xterm"}


def _open() -> Diagnosis:
    return explain([], GARBAGE)


def _asked(diagnosis: Diagnosis, lines: list[str], lang: str = "en") -> tuple[Diagnosis, int, str]:
    """The end, how many facts were told, all that was written."""
    said: list[str] = []
    typed = iter(lines)
    end, told = ask(diagnosis, lang, lambda: next(typed, ""), said.append)
    return end, len(told), "".join(said)


def _first_question(diagnosis: Diagnosis) -> str:
    return next(step.key for step in diagnosis.next if step.kind == "question")


def _dont_know(diagnosis: Diagnosis) -> str:
    return f"{len(QUESTIONS[_first_question(diagnosis)].answers) + 1}\n"


# ---------------------------------------------------------------- one conversation


def test_the_most_telling_question_comes_first_with_its_answers() -> None:
    start = _open()
    question = QUESTIONS[_first_question(start)]
    _, _, said = _asked(start, [])
    assert question.text in said and question.command in said
    assert [answer.text for answer in question.answers if answer.text not in said] == []


def test_an_answer_is_weighed_in_and_the_leader_is_told() -> None:
    end, told, said = _asked(_open(), ["1\n"])
    assert told >= 1 and "-> " in said
    assert end.facts != _open().facts


def test_it_asks_until_one_cause_is_clear() -> None:
    diagnosis, told, _ = _asked(_open(), ["1\n"] * 40)
    live = [cause for cause in diagnosis.causes if cause.state != "ruled_out"]
    left = [step for step in diagnosis.next if step.kind == "question"]
    assert told > 1 and (not left or live[0].confidence >= CLEAR or diagnosis.verdict == "healthy")


def test_nothing_is_asked_when_the_cause_is_clear_already() -> None:
    start = explain(PAGE_FAULT, GARBAGE)
    assert start.causes[0].confidence >= CLEAR
    assert _asked(start, ["1\n"])[1:] == (0, "")


@pytest.mark.parametrize("enough", ["\n", "q\n", "Q\n", ""])
def test_an_empty_line_q_or_the_end_of_input_is_enough(enough: str) -> None:
    end, told, said = _asked(_open(), [enough, "1\n"])
    assert told == 0 and said.count("Number") == 1
    assert end == _open()


def test_do_not_know_adds_nothing_and_is_not_asked_again() -> None:
    start = _open()
    text = QUESTIONS[_first_question(start)].text
    end, told, said = _asked(start, [_dont_know(start), "\n"])
    assert told == 0 and end == start and said.count(text) == 1


@pytest.mark.parametrize("wrong", ["x\n", "0\n", "99\n", "-1\n", "²\n", "1.5\n", "9" * 5000 + "\n"])
def test_what_is_no_number_of_an_answer_is_asked_for_again(wrong: str) -> None:
    _, told, said = _asked(_open(), [wrong, "1\n"])
    assert "Please type a number" in said and told >= 1


def test_it_gives_up_on_a_keyboard_that_never_answers_right() -> None:
    assert _asked(_open(), ["x\n"] * 100)[1] == 0


def test_questions_are_asked_in_chinese() -> None:
    _, _, said = _asked(_open(), ["1\n"], "zh")
    assert "编号" in said and "-> 目前" in said


# ---------------------------------------------------------------- the terminal


def _talk(argv: list[str], answers: list[str], cwd: Path, stdin: int | None = None) -> tuple[str, str, int]:
    """-> what the terminal showed, stdout, exit code. Each answer is typed when the prompt for it is there."""
    ours, theirs = pty.openpty()
    out = cwd / "stdout.txt"
    with out.open("wb") as stdout, subprocess.Popen(
        [sys.executable, "-m", "linkproof", *argv], stdin=stdin if stdin is not None else theirs, stdout=stdout, stderr=theirs,
        env=ENV, cwd=cwd, start_new_session=True,
    ) as child:  # fmt: skip
        os.close(theirs)
        shown, typed, until = "", iter(answers), monotonic() + 60
        while monotonic() < until and select.select([ours], [], [], 60)[0]:
            try:
                data = os.read(ours, 65536)
            except OSError:
                break
            shown += data.decode(errors="replace")
            if shown.endswith("Number (Enter: enough): "):
                os.write(ours, next(typed, "\n").encode())
        os.close(ours)
    return shown, out.read_text(encoding="utf-8"), child.returncode


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    path = tmp_path / "seen.yaml"
    path.write_text("- {check: model, split: none, result: ok}\n- {check: model, split: pipeline, result: garbage}\n", encoding="utf-8")
    return path


def test_a_conversation_in_a_terminal_ends_with_the_report_on_stdout(tmp_path: Path, seen: Path) -> None:
    shown, out, code = _talk(["explain", "--observations", str(seen), "--ask"], ["1\n", "\n"], tmp_path)
    assert shown.count("Number (Enter: enough)") == 2 and "-> " in shown
    assert "Number (Enter" not in out and "Read: " in out and code in (0, 1, 3)


def test_kept_answers_give_the_same_diagnosis_when_they_are_read_again(tmp_path: Path, seen: Path) -> None:
    kept = tmp_path / "kept.yaml"
    _talk(["explain", "--observations", str(seen), "--ask", "--save-observations", str(kept)], ["2\n", "1\n", "\n"], tmp_path)
    both = tmp_path / "both.yaml"
    both.write_text(seen.read_text() + kept.read_text(), encoding="utf-8")
    _, out, _ = _talk(["explain", "--observations", str(seen), "--ask", "--format", "json"], ["2\n", "1\n", "\n"], tmp_path)
    again = explain_inputs([], observations_file=str(both))
    assert again.causes and f'"confidence": {again.causes[0].confidence}' in out


def test_answers_are_added_to_the_file_they_go_on_with(tmp_path: Path, seen: Path) -> None:
    before = seen.read_text()
    _talk(["explain", "--observations", str(seen), "--ask", "--save-observations", str(seen)], ["1\n", "\n"], tmp_path)
    assert seen.read_text().startswith(before) and len(seen.read_text()) > len(before)
    assert explain_inputs([], observations_file=str(seen)).facts


def test_another_file_is_never_overwritten(tmp_path: Path, seen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("precious", encoding="utf-8")
    argv = ["explain", "--observations", str(seen), "--ask", "--save-observations", str(tmp_path / "mine.yaml")]
    assert main(argv) == 2
    assert (tmp_path / "mine.yaml").read_text() == "precious"
    assert "file-exists" in capsys.readouterr().err


def test_without_a_terminal_nothing_is_asked(tmp_path: Path, seen: Path) -> None:
    argv = [sys.executable, "-m", "linkproof", "explain", "--observations", str(seen), "--ask"]
    done = subprocess.run(argv, input="1\n", capture_output=True, text=True, env=ENV, timeout=60, check=False, start_new_session=True)
    assert done.returncode == 2 and done.stderr.startswith("no-terminal: ") and "Number" not in done.stderr


@pytest.mark.parametrize(("key", "number"), [(key, number) for key, q in QUESTIONS.items() for number in range(len(q.answers))])
def test_every_answer_can_be_kept_and_read_again(key: str, number: int, tmp_path: Path) -> None:
    told = answer_facts(QUESTIONS[key], number, Reading(_open().facts))
    kept = tmp_path / "kept.yaml"
    _save(str(kept), told, append=False)
    again = explain_inputs([], observations_file=str(kept)).facts if told else ()
    assert [_words(fact) for fact in again] == [_words(fact) for fact in told]


def _words(fact: Fact) -> tuple[object, ...]:
    """All but where it was said."""
    return (type(fact), *(getattr(fact, name) for name in fact.__struct_fields__ if name != "source"))
