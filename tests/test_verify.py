"""`linkproof verify` as a person meets it: the child process, its end in every way, the verdict, the words in both languages."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import linkproof.report
from linkproof import proc
from linkproof.errors import LinkproofError, UsageError
from linkproof.report.layout import plain
from linkproof.report.say import Teller
from linkproof.report.verify import as_json, schema, text, verify_report
from linkproof.verified import BadHop, Checked, Compared, Doing, Fact, Failed, Hops, Ranks, Spread, Subject, Tokens, Units, Weights
from linkproof.verify import run
from linkproof.verify.judge import judged
from linkproof.verify.task import Task, checked

HOPS = Hops(arm="batch", hops=10, size_B=100, unchecked=0, bad_count=0, bad=())
BAD_HOP = BadHop("cuda:0 -> cuda:1", "model.layers.4", "cos", "zeros", "batch", 0, 64, "bfloat16", (1, 32))
SUBJECT = Subject(model="m", family="Qwen3ForCausalLM", source="s", random=True, parameters=5, size_B=10, dtype="bfloat16", cut=(), stages=(),
                  reference="cuda:0", layered=False, virtual=False, prompts=((1, 2),), versions={})  # fmt: skip
CLEAN: list[Fact] = [
    SUBJECT,
    Tokens(arm="greedy", side="reference", rows=((1, 2, 3),)),
    Tokens(arm="greedy", side="split", rows=((1, 2, 3),)),
    Spread(variants={"each prompt alone": 0.1}, logits=0.4, units=0.01),
    Compared(case="batch", tokens=9, logits=0.2, same_bits=False, unit=None, device=None, forward=None, gaps=((1.0, 0.3, 2.0),)),
    Checked(what="cos", places=8, devices=2, bad=()),
    Units(compared=4, bad=()),
    Weights(tensors=7, size_B=70, from_files=7, bad=()),
    HOPS,
]


def without(kind: type[Fact], *more: Fact) -> list[Fact]:
    return [*(f for f in CLEAN if not isinstance(f, kind)), *more]


# ---------------------------------------------------------------- the verdict


def test_all_that_was_compared_agrees() -> None:
    found = judged(CLEAN, None, 1.0)
    assert found.verdict == "healthy" and found.numeric and found.agreement[0].equal == 3


@pytest.mark.parametrize("kind", [Spread, Compared, Checked, Weights, Units, Hops])
def test_what_was_not_compared_is_never_healthy(kind: type[Fact]) -> None:
    assert judged(without(kind), None, 1.0).verdict == "cannot_tell"


def test_hops_that_no_digest_saw_prove_nothing() -> None:
    unseen = Hops(arm="batch", hops=10, size_B=100, unchecked=10, bad_count=0, bad=())
    assert judged(without(Hops, unseen), None, 1.0).verdict == "cannot_tell"


@pytest.mark.parametrize(("token", "verdict"), [(1, "healthy"), (0, "faulty")])
def test_tokens_may_part_where_two_are_close_and_nowhere_else(token: int, verdict: str) -> None:
    row = tuple(9 if i == token else n for i, n in enumerate((1, 2, 3)))
    split = [f for f in CLEAN if not (isinstance(f, Tokens) and f.side == "split")]
    found = judged([*split, Tokens(arm="greedy", side="split", rows=(row,))], None, 1.0)
    assert found.verdict == verdict and found.agreement[0].partings[0].token == token
    assert [c.kind for c in found.causes] == ([] if verdict == "healthy" else ["unexplained"])


def test_logits_too_far_off_with_nothing_caught_are_faulty_and_unexplained() -> None:
    far = Compared(case="batch", tokens=9, logits=0.5, same_bits=False, unit=None, device=None, forward=None, gaps=())
    assert [c.kind for c in judged(without(Compared, far), None, 1.0).causes] == ["unexplained"]


def test_an_end_that_the_reference_shares_accuses_nobody() -> None:
    both = [*CLEAN, Failed(arm="greedy", side="reference", error="E", text=""), Failed(arm="greedy", side="split", error="E", text="")]
    assert judged(both, None, 1.0).verdict == "cannot_tell"
    full = [*CLEAN, Failed(arm="greedy", side="split", error="OutOfMemoryError", text="")]
    assert judged(full, None, 1.0).verdict == "cannot_tell"


@pytest.mark.parametrize(
    ("state", "bad", "verdict", "kinds"),
    [
        ("agrees", (), "healthy", []),
        ("not_tested", (), "cannot_tell", []),
        ("differs", (), "faulty", ["unexplained"]),
        ("died", (), "faulty", ["failed"]),
        ("differs", ("1: lm_head.weight",), "faulty", ["load"]),
    ],
)
def test_tensor_parallel_counts(state: str, bad: tuple[str, ...], verdict: str, kinds: list[str]) -> None:
    found = judged(CLEAN, Ranks(2, state, (), None, bad, 1, "so"), 1.0)
    assert found.verdict == verdict and [c.kind for c in found.causes] == kinds


@pytest.mark.parametrize(("far", "verdict"), [(0.5, "healthy"), (1.5, "faulty")])
def test_ranks_may_part_from_one_device_by_rounding_only(far: float, verdict: str) -> None:
    found = judged(CLEAN, Ranks(2, "differs", (), far, (), None, "so", parted=True), 1.0)
    assert found.verdict == verdict


# ---------------------------------------------------------------- the child and its ends

CHILD = """
import os, socket, sys, time
from linkproof.probe.workers.wire import Line
from linkproof.verified import Doing, Message, Over, Weights
from linkproof.verify.task import Task
line = Line(socket.socket(fileno=int(sys.argv[1])))
task = line.receive(Task)
line.send(Message(Weights(tensors=1, size_B=1, from_files=0, bad=())))
line.send(Message(Doing(text="the split model writes", done=1, total=2)))
print("device-side assert triggered", flush=True)
"""


def ended(monkeypatch: pytest.MonkeyPatch, how: str, deadline_s: float = 60.0) -> list[Fact]:
    start = proc.start

    def other(argv: Any, **more: Any) -> Any:
        return start([sys.executable, "-c", CHILD + how, *argv[3:]], **more)

    monkeypatch.setattr(proc, "start", other)
    return list(run._facts(Task(model="m"), deadline_s, lambda doing: None))


@pytest.mark.parametrize(
    ("how", "error", "side"),
    [("os.abort()", "SIGABRT", "split"), ("os._exit(3)", "exit code 3", "split"), ("os.kill(os.getpid(), 9)", "SIGKILL", "reference")],
)
def test_a_process_that_dies_leaves_what_it_had_said(monkeypatch: pytest.MonkeyPatch, how: str, error: str, side: str) -> None:
    weights, _, failed = ended(monkeypatch, how)
    assert isinstance(weights, Weights) and isinstance(failed, Failed)
    assert (failed.error, failed.side, failed.arm) == (error, side, "the split model writes") and "assert triggered" in failed.text


def test_a_process_that_hangs_is_ended_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = ended(monkeypatch, "time.sleep(600)", 3.0)[-1]
    assert isinstance(failed, Failed) and failed.error == "Hung"


def test_a_death_that_no_hop_explains_is_looked_at_again_hop_by_hop(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def facts(task: Task, deadline_s: float, tell: Any) -> list[Fact]:
        asked.append(task.strict)
        bad = Hops(arm="second look", hops=1, size_B=1, unchecked=0, bad_count=1, bad=(BAD_HOP,))
        return [bad] if task.strict else [SUBJECT, HOPS, Failed(arm="the split model writes", side="split", error="SIGABRT", text="")]

    monkeypatch.setattr(run, "_facts", facts)
    found = run.verify("m")
    assert asked == [False, True] and [c.link for c in found.causes] == ["cuda:0 -> cuda:1"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"devices": "tpu"},
        {"devices": "virtual:0"},
        {"devices": "cuda:x"},
        {"faults": ("zero",)},
        {"dtype": "int3"},
        {"devices": "virtual:2", "device_map": "auto"},
        {"devices": "virtual:2", "faults": ("nonsense",)},
        {"stages": 2, "device_map": "x.json"},
        {"new": 0},
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_before_anything_is_loaded(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        checked(Task(model="m", **wrong))


# ---------------------------------------------------------------- the words


def shown(facts: list[Fact], lang: str = "en") -> str:
    return plain(text(verify_report(judged(facts, None, 1.0), lang), lang))


def test_the_report_says_what_was_compared_and_who_lied() -> None:
    lied = Hops(arm="batch", hops=10, size_B=100, unchecked=0, bad_count=2, bad=(BAD_HOP,))
    words = shown(without(Hops, lied))
    assert "cuda:0 -> cuda:1 delivered wrong bytes, although the tokens came out the same" in words
    assert "cos, first on" in words and "model.layers.4" in words and "linkproof check --pair 0:1" in words and "2 of 10 hops" in words


def test_no_name_is_left_open_in_any_sentence() -> None:
    failed = Failed(arm="greedy", side="split", error="IndexError", text="index out of range")
    for lang in ("en", "zh"):
        for facts in (CLEAN, without(Hops, failed), [], [*CLEAN, failed]):
            assert "{" not in shown(facts, lang)


def test_json_follows_its_published_schema() -> None:
    published = Path(linkproof.report.__path__[0]) / "verify.schema.json"
    assert published.read_text(encoding="utf-8") == schema()
    for facts in (CLEAN, []):
        said = json.loads(as_json(verify_report(judged(facts, None, 1.0), "en")))
        jsonschema.validate(said, json.loads(schema()))


def test_result_and_report_load_no_torch() -> None:
    code = "import sys, linkproof.verify.run, linkproof.report.verify, linkproof.verifying; print('torch' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_package_itself_can_be_called() -> None:
    package: Any = importlib.import_module("linkproof.verify")
    with pytest.raises(UsageError):
        package("m", devices="tpu")
    assert package.verify is run.verify


def test_a_newcomer_sees_a_faulty_answer_and_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole command with its child process."""
    pytest.importorskip("torch", reason="torch is not installed: no model can be verified")
    pytest.importorskip("accelerate", reason="accelerate is not installed: no model can be split")
    pytest.importorskip("transformers", reason="transformers is not installed: there is no model")
    from linkproof.verifying import run as command

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the hub is not asked for the name that is none
    out: list[Any] = []
    asked = Namespace(model="ernie-4.5-0.3b", devices="virtual:2", stages=0, device_map="even", prompt=[], new=2, sample=False, seed=0,
                      dtype="auto", fault=["zero,pairs=0->1"], tp=0, timeout=300.0, format="json")  # fmt: skip
    assert command(asked, "en", out.append, 100) == 1
    said = json.loads(out[0])
    assert said["causes"][0]["link"] == "vgpu:0 -> vgpu:1" and said["subject"]["cut"]
    with pytest.raises(LinkproofError, match="no-such-model"):
        command(Namespace(**{**vars(asked), "model": "no-such-model"}), "en", out.append, 100)


def test_every_step_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from linkproof.verifying import _telling

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with _telling("en") as tell:
        tell(Doing(text="the reference", done=2, total=8))
    assert "3/8 the reference" in capsys.readouterr().err
    assert Teller("en")("the reference") == "the reference"
