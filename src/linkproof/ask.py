"""Questions in a terminal, one at a time, the most telling first, until one cause is clear. Nothing is asked without a terminal.

In:      a Diagnosis with its `next` questions; a person.
Out:     the Diagnosis with the answers weighed in; the answers as an observations file if asked for.
Unknown: an answer "do not know" adds nothing and is not asked again.
Raises:  UsageError if no terminal is attached, or if the file to write exists already.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import TextIO

from linkproof.errors import UsageError
from linkproof.explaining import explain_more
from linkproof.model import Diagnosis, Fact, Next
from linkproof.report.layout import Piece, plain, wrapped
from linkproof.report.pages import page
from linkproof.report.say import Teller
from linkproof.report.words import percent

CLEAR = 0.9  # a leader this sure needs no more questions
TRIES = 3  # unreadable answers to one question
WIDTH = 80


def ask(diagnosis: Diagnosis, lang: str, read_line: Callable[[], str], write: Callable[[str], object]) -> tuple[Diagnosis, list[Fact]]:
    """read_line: one line with its line end, "" at the end of input. -> the last diagnosis, and the facts that were told."""
    t = Teller(lang)
    told: list[Fact] = []
    asked: set[str] = set()
    while not _clear(diagnosis):
        step = next((n for n in diagnosis.next if n.kind == "question" and n.key and n.key not in asked), None)
        if step is None:
            if asked:
                write(t("Nothing is left to ask that would tell these apart.") + "\n")
            break
        asked.add(step.key)
        number = _one(step, t, read_line, write)
        if number is None:
            break
        if number < 0:
            continue
        facts = _facts(step, number, diagnosis)
        told += facts
        diagnosis = explain_more(diagnosis, facts)
        write(_leader(diagnosis, t) + "\n")
    return diagnosis, told


def _clear(diagnosis: Diagnosis) -> bool:
    live = [c for c in diagnosis.causes if c.state != "ruled_out"]
    return diagnosis.verdict == "healthy" or bool(live and live[0].confidence >= CLEAR)


def _leader(diagnosis: Diagnosis, t: Teller) -> str:
    live = [c for c in diagnosis.causes if c.state != "ruled_out"]
    if not live:
        return t("-> no cause leads yet")
    return t("-> leading now: {title} ({percent})", title=page(live[0].id, t.lang).title, percent=percent(live[0].confidence))


def _one(step: Next, t: Teller, read_line: Callable[[], str], write: Callable[[str], object]) -> int | None:
    """The number of the answer from 0; -1: not known; None: no more questions."""
    from linkproof.diagnose.question_list import QUESTIONS

    question = QUESTIONS[step.key]
    rows = [[], *wrapped([Piece(t(question.text))], WIDTH)]
    if question.command:
        rows.append([Piece(f"   $ {question.command}")])
    answers = [*(t(answer.text) for answer in question.answers), t("I do not know")]
    for number, words in enumerate(answers, 1):
        rows += wrapped([Piece(f"{number}. "), Piece(words)], WIDTH, 3, 6)
    write(plain(rows))
    for _ in range(TRIES):
        write(t("Number (Enter: enough): "))
        line = read_line()
        words = line.strip().lower()
        if not words or words in ("q", "quit"):
            if not line.endswith("\n"):
                write("\n")
            return None
        if words.isascii() and words.isdigit() and len(words) < 4 and 1 <= int(words) <= len(answers):
            number = int(words)
            return -1 if number == len(answers) else number - 1
        write(t("Please type a number from 1 to {n}.", n=len(answers)) + "\n")
    return None


def _facts(step: Next, number: int, diagnosis: Diagnosis) -> list[Fact]:
    from linkproof.causes.reading import Reading
    from linkproof.diagnose.question_list import QUESTIONS
    from linkproof.diagnose.questions import answer_facts

    return answer_facts(QUESTIONS[step.key], number, Reading(diagnosis.facts))


# ---------------------------------------------------------------- the terminal


def ask_in_terminal(diagnosis: Diagnosis, lang: str, known: str | None, save: str | None) -> Diagnosis:
    """Questions go to stderr, so that the report on stdout stays clean; answers come from the terminal even if stdin is a pipe."""
    if save and save != known and os.path.exists(save):  # noqa: PTH110
        raise UsageError(
            "file-exists",
            (f"{save} exists already", f"{save} 已存在"),
            ("nothing was asked and nothing was overwritten", "没有提问，也没有覆盖任何内容"),
            (
                "name another file, or give the same one with --observations to go on with it",
                "请换一个文件名；若要接着写，请同时用 --observations 给出它",
            ),
        )
    keyboard = _keyboard()
    if keyboard is None:
        raise UsageError(
            "no-terminal",
            ("--ask needs a terminal, and none is attached", "--ask 需要终端，但当前没有连接终端"),
            ("nothing was asked", "没有提问"),
            ("run it in a terminal, or give the answers with --observations FILE", "请在终端中运行，或用 --observations 文件 给出观察结果"),
        )
    with keyboard:
        diagnosis, told = ask(diagnosis, lang, keyboard.readline, _to_stderr)
    if save and told:
        _save(save, told, append=save == known)
    return diagnosis


def _to_stderr(words: str) -> None:
    sys.stderr.write(words)
    sys.stderr.flush()


def _keyboard() -> TextIO | None:
    """The terminal to read answers from; the questions must be seen on one too."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    try:
        return open(os.dup(0) if os.isatty(0) else "/dev/tty", encoding="utf-8", errors="replace")  # noqa: PTH123
    except OSError:
        return None


def _save(path: str, told: Iterable[Fact], append: bool) -> None:
    lines = "".join(f"- {_yaml(fact)}\n" for fact in told)
    with open(path, "a" if append else "x", encoding="utf-8") as file:  # noqa: PTH123
        file.write(lines)


def _yaml(fact: Fact) -> str:
    """The fact in the words of an observation, as one flow mapping; JSON strings are YAML."""
    from json import dumps

    from linkproof.parse.observations import OBSERVATION_WORDS

    check, keys = next((check, keys) for check, (cls, keys) in OBSERVATION_WORDS.items() if cls is type(fact))
    values = {key: getattr(fact, key) for key in keys}
    said = {"check": check, **{key: value for key, value in values.items() if value not in ("", 0)}}
    return "{" + ", ".join(f"{key}: {dumps(str(value), ensure_ascii=False)}" for key, value in said.items()) + "}"
