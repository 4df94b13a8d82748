"""The whole `check` on every machine that is shipped: verdict, cause, exit code, what each engine may do, and nothing left behind."""

from __future__ import annotations

import json
import re
import subprocess
import time
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from msgspec import Struct

import linkproof
from linkproof.checking import Checked, check
from linkproof.cli import main
from linkproof.measured import BAD, MODES
from linkproof.probe.plan import Wish
from linkproof.prove import prove
from linkproof.report import check_json
from linkproof.report.layout import plain
from linkproof.report.machine import machine_report, text
from linkproof.sim.host import SimHost
from linkproof.sim.scenario import Scenario, load, names
from linkproof.sim.virtual import create
from simulated import processes_of, scenario_file, start

AT_ONCE = 4  # a run mostly waits: for what hangs on purpose
DEADLINE_S = 500.0  # on a machine that does much else; alone it takes a third of that
EXIT = {"healthy": 0, "faulty": 1, "cannot_tell": 3}
COPY_MODES = ("push", "pull", "store", "store16", "load", "load16")


class Run(Struct):
    name: str
    scenario: Scenario
    code: int
    said: dict[str, Any]
    err: str
    left: dict[int, str]
    files_left: list[str]

    @property
    def routes(self) -> dict[tuple[int, int, str], str]:
        return {(r["src"], r["dst"], r["mode"]): r["state"] for r in self.said["links"]["routes"]}

    @property
    def engines(self) -> dict[str, str]:
        return {engine: c["state"] for engine, c in self.said["report"]["consumers"].items()}


def _finished(name: str, folder: Path, pid: int, code: int) -> Run:
    said = json.loads((folder / "out").read_text(encoding="utf-8") or "{}")
    left = [str(path.relative_to(folder)) for path in (folder / "tmp").rglob("*")]
    return Run(name, load(name), code, said, (folder / "err").read_text(encoding="utf-8"), processes_of(pid), left)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Each scenario once, AT_ONCE at a time, those with many GPUs first."""
    base = tmp_path_factory.mktemp("sims")
    waiting = sorted(names(), key=lambda name: -len(load(name).gpus))
    running: dict[str, subprocess.Popen[str]] = {}
    done: dict[str, Run] = {}
    until = time.monotonic() + DEADLINE_S
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            name = waiting.pop(0)
            running[name] = start(base / name, "--sim", name, "--format", "json", "--lang", "en")
        for name, child in list(running.items()):
            if (code := child.poll()) is not None:
                done[name] = _finished(name, base / name, running.pop(name).pid, code)
        if time.monotonic() > until:
            for child in running.values():
                child.kill()
            pytest.fail(f"not done in time: {', '.join([*running, *waiting])}")
        time.sleep(0.05)
    return done


@pytest.fixture(params=names())
def run(request: pytest.FixtureRequest, runs: dict[str, Run]) -> Run:
    return runs[request.param]


def test_the_verdict_and_the_exit_code_are_those_of_the_scenario(run: Run) -> None:
    assert (run.said.get("verdict"), run.code) == (run.scenario.expect.verdict, EXIT[run.scenario.expect.verdict]), run.err
    assert run.said["report"]["verdict"] == run.said["verdict"] and run.err == ""


def test_the_first_cause_is_a_right_one_and_none_is_accused_without_a_fault(run: Run) -> None:
    causes, expected = run.said["report"]["causes"], run.scenario.expect.causes
    if expected:
        assert causes[0]["id"] in expected and causes[0]["confidence"] >= 0.5, [(c["id"], c["confidence"]) for c in causes[:3]]
        assert causes[0]["fix"] or causes[0]["workaround"], "a cause without a way out is of no use"
    else:
        assert all(c["confidence"] < 0.1 for c in causes) and run.said["risks"] == []


def test_the_json_keeps_its_contract(run: Run) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(Path(check_json.__file__).with_name("check.schema.json").read_bytes())
    jsonschema.validate(run.said, schema)


def test_nothing_is_left_behind(run: Run) -> None:
    assert (run.left, run.files_left) == ({}, [])


def test_every_pair_was_tried_in_every_way_or_says_why_not(run: Run) -> None:
    gpus, links = len(run.scenario.gpus), run.said["links"]
    pair_modes = [m.name for m in MODES.values() if m.scope == "pair"]
    assert set(run.routes) == {(*pair, mode) for pair in permutations(range(gpus), 2) for mode in pair_modes}
    assert links["links_total"] == gpus * (gpus - 1) and len(links["cards"]) == gpus
    why = {(r["src"], r["dst"], r["mode"]): r["why"] for r in links["routes"]}
    assert [key for key, state in run.routes.items() if state != "verified" and not why[key]] == []


def test_a_broken_path_never_leaves_an_engine_safe_that_goes_over_it(run: Run) -> None:
    bad = {mode for (_, _, mode), state in run.routes.items() if state in BAD}
    if bad & {"push", "store"}:
        assert run.engines["transformers"] == "at_risk", "no setting moves it off"
        assert run.engines["llama.cpp"] != "safe" or "push" not in bad
    nccl = {g["arm"]: g["state"] for g in run.said["links"]["groups"] if g["mode"] == "nccl"}
    if nccl["default/default"] in BAD:
        assert run.engines["torchrun"] != "safe" and run.engines["vllm"] != "safe"
    for engine, consumer in run.said["report"]["consumers"].items():
        if consumer["state"] == "safe_with":
            assert consumer["settings"], engine
    if run.scenario.expect.verdict == "healthy":
        assert set(run.engines.values()) <= {"safe", "unknown"} and run.engines["transformers"] == "safe"


def test_the_control_is_right_wherever_host_memory_is(run: Run) -> None:
    states = {state for (_, _, mode), state in run.routes.items() if mode == "staged"}
    assert states == ({"corrupt"} if run.name == "staged-broken-container" else {"verified"})


def test_a_scenario_without_a_fault_of_copies_has_none(run: Run) -> None:
    """What is told wrong is what the scenario spoils: no more modes, no more pairs."""
    faults = [f for f in run.scenario.faults if f.kind not in ("slow", "hang", "reorder")]
    spoilt = {(s, d, how) for s, d in permutations(range(len(run.scenario.gpus)), 2) for how in COPY_MODES
              if any(f.may_touch((how,), s, d, True) for f in faults)}  # fmt: skip
    assert {key for key, state in run.routes.items() if state in BAD and key[2] in COPY_MODES} <= spoilt
    if not faults:
        assert run.said["links"]["links_wrong"] == 0 or run.name == "flags-hang-copies-fine"


# ---------------------------------------------------------------- both languages


@pytest.fixture(scope="session", params=["bar1-small-256MiB", "p2p-refused-geforce"])
def checked(request: pytest.FixtureRequest) -> Checked:
    scenario = load(request.param)
    with TemporaryDirectory() as folder:
        create(scenario, folder)
        return check(SimHost(scenario, folder), prove(f"sim:{folder}", Wish()))


def told(checked: Checked, lang: str) -> list[str]:
    return [line.strip() for line in plain(text(machine_report(checked, lang), lang, 100, True)).splitlines() if line.strip()]


def test_the_chinese_text_has_no_english_sentence(checked: Checked) -> None:
    """Lines that are the same in both languages are names, numbers, and what is quoted: files, tools, what was measured."""
    report = machine_report(checked, "en")
    quoted = [sign.source.text for w in checked.diagnosis.causes for sign in w.signs] + [n.source.text for n in checked.diagnosis.notes]
    names = " ".join([*report.gpus, *report.versions, *(u.name for u in report.unread), *MODES, *quoted])
    english = set(told(checked, "en"))
    plainly = [re.sub(r"`[^`]*`|\S*[/_.=]\S*", " ", line) for line in told(checked, "zh") if line in english]
    strange = [line for line in plainly if len([w for w in re.findall(r"[A-Za-z]{3,}", line) if w not in names]) > 1]
    assert strange == []
    assert sum(bool(re.search("[\u4e00-\u9fff]", line)) for line in told(checked, "zh")) > 10


# ---------------------------------------------------------------- what is asked wrongly, and what is only planned


@pytest.mark.parametrize(
    ("argv", "en", "zh"),
    [
        (["--sim", "nowhere"], "healthy-2xpcie", "没有名为"),
        (["--sim", "healthy-2xpcie", "--mode", "telepathy"], "the modes are", "可用的模式有"),
        (["--sim", "healthy-2xpcie", "--pair", "0-1"], "a pair is written 0:1", "写法为 0:1"),
        (["--sim", "healthy-2xpcie", "--pair", "0:7"], "the GPUs are 0, 1", "GPU 编号为 0, 1"),
        (["--sim", "p2p-refused-geforce", "--mode", "staged", "--for", "abacus"], "the engines are", "可用的引擎有"),
        (["--quick", "--deep"], "--deep does nothing beside --quick", "--deep 与 --quick"),
        (["--quick", "--pair", "0:1"], "--pair does nothing", "--pair 与"),
        (["--quick", "--self-test"], "--self-test does nothing", "--self-test 与"),
        (["--sim", "healthy-2xpcie", "--self-test", "--mode", "push"], "--mode does nothing beside --self-test", "--mode 与 --self-test"),
        (["--sim", "healthy-2xpcie", "--plan", "--format", "json"], "--format json does nothing beside --plan", "--format json 与 --plan"),
    ],
)
def test_wrong_usage_is_told_in_both_languages(argv: list[str], en: str, zh: str, capsys: pytest.CaptureFixture[str]) -> None:
    for lang, words in (("en", en), ("zh", zh)):
        assert main(["check", *argv, "--lang", lang]) == 2
        out = capsys.readouterr()
        assert words in out.err and out.out == ""


def test_a_plan_sends_nothing_and_says_what_it_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--sim", "healthy-8xnvlink", "--plan", "--lang", "en"]) == 0
    out = capsys.readouterr().out
    assert "on 8 GPUs" in out and all(mode in out for mode in MODES)


def test_one_engine_decides_the_exit_code_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Copies fail one way; NCCL does not use the copy engine; of vLLM's own ways nothing was tried."""
    own = scenario_file(tmp_path, "one-direction-dead", ('pairs = ["1->0"]', 'pairs = ["1->0"]\nmodes = ["push"]'))
    some = [word for mode in ("nccl", "staged", "push", "store", "store16", "chain") for word in ("--mode", mode)]
    for engine, code in (("transformers", 1), ("torchrun", 0), ("vllm", 3)):
        assert main(["check", "--sim", own, "--for", engine, *some]) == code, engine
    assert main(["check", "--sim", own, *some]) == 1
    capsys.readouterr()


def test_a_scenario_file_is_read_strictly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = scenario_file(tmp_path, "healthy-2xpcie", ("memory_GiB = 45", "memory_TiB = 45"))
    assert main(["check", "--sim", own]) == 2 and "memory_TiB" in capsys.readouterr().err


def test_the_python_function_gives_what_the_command_says() -> None:
    checked = linkproof.check(sim="iommu-translating-2xa6000", modes=["staged", "push"], pairs=[(0, 1)])
    assert isinstance(checked, Checked) and checked.diagnosis.verdict == "faulty" and checked.diagnosis.causes[0].id == "iommu_translation"
    assert checked.routes is not None and checked.routes.state(0, 1, "push") == "corrupt"
    right = linkproof.check(sim="healthy-2xpcie", modes=["staged", "push"])
    assert right.diagnosis.verdict != "faulty" and right.routes is not None and right.routes.state(1, 0, "push") == "verified"
    quick = linkproof.check(quick=True)
    assert quick.diagnosis.verdict != "healthy" and quick.probed is None, "nothing was measured"
