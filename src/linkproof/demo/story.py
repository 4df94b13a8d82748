"""`linkproof demo`, step by step: healthy, broken, explain, check, guard. Shows what ran; decides whether it came out as it should.

In:      the command line's options (`pause`), a language, where rows go, how wide they may be.
Out:     0 if every step came out as it should; 1 if one did not: then it says which, and what came out.
Unknown: how a GPU of this machine behaves: all devices here are virtual, and it says so.
Raises:  UsageError if torch, transformers or accelerate is missing.
"""

from __future__ import annotations

import json
import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import linkproof
from linkproof import probing
from linkproof.demo import model
from linkproof.demo.model import Stage
from linkproof.report.contract import CauseSaid, Report, report_of
from linkproof.report.layout import Piece, Row, cut, width_of, wrapped
from linkproof.report.machine import machine_report
from linkproof.report.machine_words import proven_words
from linkproof.report.say import Teller
from linkproof.report.words import consumer_words, leader, percent, verdict_words
from linkproof.sim.scenario import load

Show = Callable[[str | Iterable[Row]], None]
Right = dict[bool, tuple[int, ...]]  # drawn by chance or not -> the tokens of the healthy run
AS_IT_SHOULD, NOT_SO = 0, 1
LABEL = 46  # columns that a wound takes


class NotAsItShould(Exception):
    """A step did not show what it is there to show. text: a template."""

    def __init__(self, text: str, **args: object) -> None:
        super().__init__(text)
        self.text, self.given = text, args


def run(options: Namespace, lang: str, show: Show, width: int) -> int:
    began = monotonic()
    page = Page(lang, show, width, _pauses(options.pause, Teller(lang)))
    t = page.t
    page.rows([Piece(t("A Qwen3 on two GPUs, and the link between them loses data"), "title")], indent=0)
    words = t("The GPUs are virtual, the rest is real: torch, transformers, accelerate, linkproof. What you see is what came out.")
    page.rows([Piece(words, "quiet")], indent=0)
    try:
        with page.working(t("loading the model")):
            stage = Stage(lang)
        right = healthy(stage, page)
        log = broken(stage, right, page)
        explained(stage, log, page)
        checked(page)
        guarded(stage, right, page)
    except NotAsItShould as e:
        page.rows([Piece(t("Not as it should be: {what}", what=t(e.text, **e.given)), "bad")])
        page.rows([Piece(t("The demo ends here: what it would show next rests on this step."))])
        return NOT_SO
    page.head(t("The same on your machine"))
    page.ran(
        "$ linkproof check", "$ linkproof fix", "$ linkproof run --guard deferred -- python your_script.py", "$ linkproof explain your.log"
    )
    page.rows([Piece(t("Every step came out as it should; took {s} s", s=f"{monotonic() - began:.0f}"), "good")], indent=0)
    return AS_IT_SHOULD


# ---------------------------------------------------------------- the steps


def healthy(stage: Stage, page: Page) -> Right:
    """Taking the best token each time, and drawing."""
    t = page.t
    page.step(t("While the link is healthy, two GPUs write what one writes"))
    page.ran(
        f'>>> from linkproof.demo.model import Stage, wounds; s = Stage("{page.lang}")', ">>> s.write(s.alone).seen, s.write(s.split).seen"
    )
    with page.working(t("the model writes")):
        alone, split = ([stage.write(m, sampled=sampled) for sampled in (False, True)] for m in (stage.alone, stage.split))
    page.pair(t("prompt"), model.PROMPTS[page.lang])
    page.pair(t("one GPU"), alone[0].seen)
    page.pair(t("two GPUs"), split[0].seen)
    if alone[0].ids != stage.right:
        raise NotAsItShould("the model does not write the text that it was trained on")
    if alone != split:
        raise NotAsItShould("one GPU and two GPUs do not write the same")
    page.note(t("all {n} tokens are the same, also when they are drawn by chance; accelerate has put layers 0-1 on vgpu:0, 2-3 on vgpu:1",
                n=len(stage.right)))  # fmt: skip
    return {False: split[0].ids, True: split[1].ids}


def broken(stage: Stage, right: Right, page: Page) -> str:
    """What the last run that died printed."""
    t = page.t
    page.step(t("The link breaks. No copy reports an error, and what you see depends on what was lost"))
    page.ran(">>> [s.write(s.split, wound).seen for wound in wounds()]")
    log, zeros = "", False
    for wound in model.wounds():
        with page.working(t(wound.what)):
            wrote = stage.write(stage.split, wound)
        page.rows([Piece(t(wound.what))])
        page.rows([Piece("→ ", "quiet"), Piece(cut(wrote.seen.strip(), page.width - 8), "bad")], indent=4)
        if wrote.ids == right[wound.sampled]:
            raise NotAsItShould("the right tokens came out all the same: this fault does no harm")
        log = wrote.log or log
        zeros = zeros or wrote.seen.startswith("!!!!")
    if zeros:
        page.note(t("`!` is token 0 here, as in Qwen's vocabulary: what is left when all logits are equal or not a number"))
    if not log:
        raise NotAsItShould("no run died, so there is no traceback to explain")
    page.note(t("these are the CPU's words; on a GPU an index or probability error reads `CUDA error: device-side assert triggered`"))
    return log


def explained(stage: Stage, log: str, page: Page) -> None:
    t = page.t
    seen: list[dict[str, Any]] = [  # in steps 1 and 2, and of the prompt
        {"check": "model", "split": "none", "result": "ok"},
        {"check": "model", "split": "pipeline", "result": "assert", "gpus": 2},
        {"check": "input", "fact": "max_token_id", "value": max(stage.prompt)},
        {"check": "input", "fact": "vocab_rows", "value": model.VOCAB},
    ]
    page.step(t("`explain` reads the traceback, accuses nobody too early, and asks for what would settle it"))
    page.ran(">>> import linkproof; log = s.write(s.split, wounds()[-1]).log; linkproof.explain(log)")
    first = report_of(linkproof.explain(log), page.lang)
    page.pair(t("from the traceback alone"), verdict_words(first, leader(first), t))
    page.ran(f">>> linkproof.explain(log, {json.dumps(seen)})")
    report = report_of(linkproof.explain(log, seen), page.lang)
    page.pair(t("with what was seen"), _verdict(report, page))
    cause = _first(report)
    if report.verdict == "healthy" or cause is None or cause.cls != "fabric":
        raise NotAsItShould("the path between the GPUs does not come first")
    if report.next:
        page.pair(t("what would tell"), report.next[0].do)


def _first(report: Report) -> CauseSaid | None:
    return next((c for c in report.causes if c.state != "ruled_out"), None)


def _verdict(report: Report, page: Page) -> str:
    """In the words of `explain`, and if nothing leads yet, what comes first all the same."""
    t, cause = page.t, _first(report)
    words = verdict_words(report, leader(report), t)
    if leader(report) is None and cause is not None:
        words += "; " + t("first: {title} ({percent})", title=cause.title, percent=percent(cause.confidence))
    return words


def checked(page: Page) -> None:
    """The machine whose lost writes were the first of `wounds`."""
    t = page.t
    modes = ["push", "staged"]  # what tensor.to does, and the control
    page.step(t("`check` sends data over these links, compares every byte, and names the cause"))
    page.ran(f"$ linkproof check --sim {model.SCENARIO} " + " ".join(f"--mode {m}" for m in modes))
    options = Namespace(sim=model.SCENARIO, pair=[], mode=modes, deep=False, force=False)
    found = probing.probed_check(options, page.lang)  # has a bar of its own
    page.note(t("the machine whose lost writes broke the first run of step 2, simulated: {title}", title=_title(page.lang)))
    said = machine_report(found, page.lang)
    cause = leader(said.report)
    page.rows([Piece(proven_words(said.verdict, t), "bad" if said.verdict == "faulty" else "open")])
    if said.links is not None:
        page.rows([Piece(said.links.headline)])
    page.rows([Piece(verdict_words(said.report, cause, t))])
    if said.verdict != "faulty" or cause is None or cause.id not in load(model.SCENARIO).expect.causes:
        raise NotAsItShould("`check` does not find what is broken on this machine")
    if "transformers" in said.report.consumers:
        page.rows([Piece("transformers  "), *consumer_words(said.report.consumers["transformers"], t)], hang=16)
    page.rows([Piece("→ ", "quiet"), Piece(cause.fix[0])], hang=4)


def _title(lang: str) -> str:
    title = load(model.SCENARIO).title
    return title.zh if lang == "zh" else title.en


def guarded(stage: Stage, right: Right, page: Page) -> None:
    t = page.t
    page.step(t("`guard` compares both ends of every copy: the same broken links, and the right tokens"))
    page.ran(">>> with linkproof.guard(s.split): [s.write(s.split, wound).seen for wound in wounds()]")
    told: list[str] = []
    for wound in model.wounds():
        with page.working(t(wound.what)), _guard_log() as lines, linkproof.guard(stage.split) as watch:
            wrote = stage.write(stage.split, wound)
        wanted = right[wound.sampled]
        same = sum(a == b for a, b in zip(wrote.ids, wanted, strict=False))
        named = " <-> ".join(watch.demoted[0].split(" -> ")) if len(watch.demoted) == 2 else "".join(watch.demoted)
        words = t("{right} of {all} tokens right", right=same, all=len(wanted))
        page.pair(t(wound.what), f"{words}  {named}", "good" if wrote.ids == wanted else "bad", LABEL)
        if wrote.ids != wanted:
            raise NotAsItShould("under the guard it writes: {seen}", seen=wrote.seen)
        told = told or lines
    if told:
        page.rows([Piece(cut(told[0], page.width - 4), "cite")], indent=4)
    page.note(
        t(
            "behind it: the links that were caught, which go through host memory from then on; inside a forward whole numbers go that way from the start"
        )
    )


# ---------------------------------------------------------------- how it is shown


@contextmanager
def _guard_log() -> Iterator[list[str]]:
    """What the guard logs meanwhile, instead of on stderr."""
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    log, kept = logging.getLogger("linkproof.guard"), Kept()
    log.addHandler(kept)
    log.propagate = False
    try:
        yield lines
    finally:
        log.removeHandler(kept)
        log.propagate = True


def _pauses(wanted: bool, t: Teller) -> bool:
    if wanted and not (sys.stdin.isatty() and sys.stdout.isatty()):
        print(t("--pause waits for a key in a terminal only: going on without"), file=sys.stderr)
        return False
    return wanted


class Page:
    """Rows go out as soon as they are known."""

    def __init__(self, lang: str, show: Show, width: int, pauses: bool) -> None:
        self.lang, self.t, self._show, self.width, self._pauses = lang, Teller(lang), show, max(60, width), pauses
        self._steps = 0

    def rows(self, pieces: list[Piece], indent: int = 2, hang: int | None = None) -> None:
        self._show(wrapped(pieces, self.width, indent, hang))
        sys.stdout.flush()

    def head(self, words: str) -> None:
        self._show([[]])
        self.rows([Piece(words, "head")], indent=0, hang=3)

    def step(self, words: str) -> None:
        if self._pauses and self._steps:
            with suppress(EOFError):
                input(self.t("[Enter]"))
        self._steps += 1
        self.head(f"{self._steps}  {words}")

    def ran(self, *lines: str) -> None:
        for line in lines:
            self.rows([Piece(line, "code")], hang=6)

    def pair(self, label: str, words: str, style: str = "", column: int = 26) -> None:
        gap = max(2, column - width_of(label))
        self.rows([Piece(label + " " * gap, "quiet"), Piece(words, style)], hang=4)

    def note(self, words: str) -> None:
        self.rows([Piece(f"({words})", "quiet")], hang=3)

    @contextmanager
    def working(self, words: str) -> Iterator[None]:
        """On stderr, and only in a terminal."""
        if not sys.stderr.isatty():
            yield
            return
        from rich.console import Console

        with Console(stderr=True).status(words):
            yield
