"""The command line: what it exits with, what goes where, and that it is quiet when it should be."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import tarfile
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from linkproof import __version__
from linkproof.cli import main

IOMMU = "[11.8] nvidia 0000:0a:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000f address=0xea13a000 flags=0x0020]\n"
SEEN = "- {check: model, split: none, result: ok}\n- {check: model, split: pipeline, result: garbage}\n"
HEALTHY = "- {check: copy, via: peer, result: ok, pairs: all}\n- {check: collective, engine: nccl, result: ok}\n"
ENV = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "NO_COLOR", "LINKPROOF"))} | {
    "TERM": "xterm"
}
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    path = tmp_path / "seen.yaml"
    path.write_text(SEEN, encoding="utf-8")
    return path


@pytest.fixture
def dmesg(tmp_path: Path) -> Path:
    path = tmp_path / "dmesg.txt"
    path.write_text(IOMMU, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG", "LINKPROOF_DEBUG"):
        monkeypatch.delenv(name, raising=False)


def _run(*args: str, stdin: str | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    given: dict[str, Any] = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run(
        [sys.executable, "-m", "linkproof", *args],
        capture_output=True, text=True, encoding="utf-8", env={**ENV, **(env or {})}, timeout=60, check=False, **given,
    )  # fmt: skip


def _in_terminal(*args: str, code: str = "", env: dict[str, str] | None = None, columns: int = 90) -> tuple[str, int]:
    """stdin, stdout and stderr are a terminal. -> all that was shown, exit code."""
    argv = [sys.executable, "-c", code, *args] if code else [sys.executable, "-m", "linkproof", *args]
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, env={**ENV, "COLUMNS": str(columns), **(env or {})}, start_new_session=True
    ) as child:
        os.close(theirs)
        shown, until = b"", monotonic() + 60
        while monotonic() < until and select.select([ours], [], [], 60)[0]:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            shown += data
        os.close(ours)
    return shown.decode(errors="replace").replace("\r\n", "\n"), child.returncode


def _without_colour(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


# ---------------------------------------------------------------- exit codes


def test_a_finding_exits_1(dmesg: Path, seen: Path, capsys: Captured) -> None:
    assert main(["explain", str(dmesg), "--observations", str(seen)]) == 1
    assert "iommu_translation" in capsys.readouterr().out


def test_healthy_exits_0(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "ok.yaml").write_text(HEALTHY, encoding="utf-8")
    assert main(["explain", "--observations", str(tmp_path / "ok.yaml")]) == 0
    assert capsys.readouterr().out.startswith("Healthy")


def test_cannot_tell_exits_3(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "a.txt").write_text("the weather is fine\n", encoding="utf-8")
    assert main(["explain", str(tmp_path / "a.txt")]) == 3
    assert "Cannot tell" in capsys.readouterr().out


def test_an_empty_folder_with_observations_is_diagnosed(tmp_path: Path, seen: Path) -> None:
    (tmp_path / "evidence").mkdir()
    assert main(["explain", str(tmp_path / "evidence"), "--observations", str(seen)]) in (1, 3)


def test_an_empty_folder_alone_is_nothing_to_read_and_exits_3(tmp_path: Path, capsys: Captured) -> None:
    assert main(["explain", str(tmp_path)]) == 3
    told = capsys.readouterr()
    assert told.out == "" and "empty-folder" in told.err


@pytest.mark.parametrize(
    ("argv", "ref"),
    [
        (["explain", "/no/such/file"], "no-such-file"),
        (["explain", "--frmat", "json", "x"], "usage"),
        (["explain", "--format", "html", "x"], "usage"),
        (["explain", "--observations", "/no/such/file"], "observations-unreadable"),
        (["explain", "x", "--save-observations", "y"], "save-without-ask"),
        (["causes", "no_such_cause"], "unknown-cause"),
        (["nonsense"], "usage"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_to_do(argv: list[str], ref: str, capsys: Captured) -> None:
    assert main(argv) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"{ref}: ") and "\n  do: " in told.err


def test_an_unknown_word_of_an_observation_exits_2_and_names_the_known_ones(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "seen.yaml").write_text("- {check: model, split: sideways, result: ok}\n", encoding="utf-8")
    assert main(["explain", "--observations", str(tmp_path / "seen.yaml")]) == 2
    assert "pipeline, tensor" in capsys.readouterr().err


def test_no_command_shows_the_help_on_stderr_and_exits_2(capsys: Captured) -> None:
    assert main([]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "explain" in told.err


def test_our_own_fault_exits_4_with_one_line_that_asks_for_a_report(dmesg: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("hf_AbCdEfGhIjKlMnOpQrStUvWx")

    monkeypatch.setattr("linkproof.explaining.explain_inputs", broken)
    assert main(["explain", str(dmesg)]) == 4
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1
    assert "KeyError" in told.err and "report it" in told.err and "AbCdEf" not in told.err and "Traceback" not in told.err


def test_debug_shows_the_traceback_of_our_own_fault(dmesg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("linkproof.explaining.explain_inputs", broken)
    monkeypatch.setenv("LINKPROOF_DEBUG", "1")
    with pytest.raises(KeyError):
        main(["explain", str(dmesg)])


def test_ctrl_c_is_quiet(dmesg: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("linkproof.explaining.explain_inputs", interrupted)
    assert main(["explain", str(dmesg)]) == 130
    told = capsys.readouterr()
    assert told.out + told.err == ""


def test_a_reader_that_goes_away_is_no_error(dmesg: Path, seen: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    argv = [sys.executable, "-m", "linkproof", "explain", str(dmesg), "--observations", str(seen)]
    done = subprocess.run(argv, stdout=theirs, stderr=subprocess.PIPE, text=True, env=ENV, timeout=60, check=False)
    os.close(theirs)
    assert done.stderr == ""


# ---------------------------------------------------------------- what is read


def test_a_pipe_is_read_without_being_asked_for(seen: Path) -> None:
    assert "iommu_translation" in _run("explain", "--observations", str(seen), stdin=IOMMU).stdout
    assert "<stdin>:1" in _run("explain", "-", "--observations", str(seen), stdin=IOMMU).stdout


def test_nothing_named_and_nothing_piped_tells_how(capsys: Captured) -> None:
    done = _run("explain")
    assert done.returncode == 2 and done.stderr.startswith("nothing-given: ")


def test_a_folder_and_an_archive_say_the_same(tmp_path: Path, seen: Path, capsys: Captured) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "dmesg.txt").write_text(IOMMU, encoding="utf-8")
    with tarfile.open(tmp_path / "logs.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "logs" / "dmesg.txt", "dmesg.txt")
    found = []
    for path in ("logs", "logs.tar.gz"):
        assert main(["explain", str(tmp_path / path), "--observations", str(seen), "--format", "json"]) == 1
        found.append([(c["id"], c["confidence"]) for c in json.loads(capsys.readouterr().out)["causes"]])
    assert found[0] == found[1]


def test_an_observation_is_cited_by_its_line(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "seen.yaml").write_text("# what I tried\n\n" + SEEN, encoding="utf-8")
    main(["explain", "--observations", str(tmp_path / "seen.yaml")])
    assert "seen.yaml:4" in capsys.readouterr().out


def test_a_long_log_is_reduced_and_its_lines_keep_their_numbers(tmp_path: Path, seen: Path, capsys: Captured) -> None:
    log = tmp_path / "long.log"
    log.write_text("all is well\n" * 150_000 + IOMMU + "all is well\n" * 10, encoding="utf-8")
    assert main(["explain", str(log), "--observations", str(seen)]) == 1
    said = capsys.readouterr().out
    assert "long.log:150001" in said and "150,011 lines" in said


# ---------------------------------------------------------------- languages and forms


def test_the_version_is_one_line(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"linkproof {__version__}\n"


def test_chinese_comes_from_the_locale_and_lang_overrides_it(dmesg: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    main(["explain", str(dmesg)])
    assert "依据" in capsys.readouterr().out
    main(["explain", str(dmesg), "--lang", "en"])
    assert "依据" not in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["explain", "--help", "--lang", "zh"], ["explain", "--lang=zh", "--help"], ["--lang", "zh", "--help"]])
def test_help_speaks_chinese_too(argv: list[str], capsys: Captured) -> None:
    assert main(argv) == 0
    assert "用法：" in capsys.readouterr().out


@pytest.mark.parametrize(("lang", "words"), [("en", ("actions:", "needs no root (default)")), ("zh", ("操作：", "无需 root"))])
def test_the_help_of_fix_lists_every_action_and_option(lang: str, words: tuple[str, ...], capsys: Captured) -> None:
    assert main(["fix", "--help", "--lang", lang]) == 0
    said = capsys.readouterr().out
    actions = [f"\n  {action} " for action in ("plan", "apply", "status", "rollback", "persist", "reapply")]
    options = ["--from", "--sim", "--pair", "--iommu-off", "--step", "--i-accept", "--kernel-parameter", "--format", "--all"]
    assert [w for w in (*actions, *options, *words) if w not in said] == []


def test_the_help_of_fix_loads_neither_the_engine_nor_anything_heavy() -> None:
    code = "import sys; from linkproof.cli import main; main(['fix', '--help']); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, timeout=60, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "rich", "msgspec", "numpy", "linkproof.fixing", "linkproof.act"}


def test_errors_speak_chinese_too(capsys: Captured) -> None:
    assert main(["explain", "/no/such/file", "--lang", "zh"]) == 2
    assert "怎么办" in capsys.readouterr().err


def test_an_ascii_terminal_still_gets_the_answer(dmesg: Path) -> None:
    done = _run("explain", str(dmesg), "--lang", "zh", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode in (1, 3) and "iommu_translation" in done.stdout


def test_json_goes_to_stdout_and_is_all_that_does(dmesg: Path, seen: Path) -> None:
    done = _run("explain", str(dmesg), "--observations", str(seen), "--format", "json")
    assert done.stderr == "" and json.loads(done.stdout)["verdict"] == "faulty"


def test_markdown_begins_with_the_verdict(dmesg: Path, seen: Path, capsys: Captured) -> None:
    main(["explain", str(dmesg), "--observations", str(seen), "--format", "md"])
    assert capsys.readouterr().out.startswith("## ")


def test_the_catalogue_lists_every_cause_under_its_class(capsys: Captured) -> None:
    from linkproof.causes import CLASSES, causes

    assert main(["causes"]) == 0
    said = capsys.readouterr().out
    assert [cause.id for cause in causes() if f"\n  {cause.id} " not in said] == []
    assert [cls for cls in CLASSES if f"{cls}: " not in said] == []


def test_a_page_is_shown_whole(capsys: Captured) -> None:
    from linkproof.report.pages import HEADINGS

    assert main(["causes", "acs_redirect"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [en for en, _ in HEADINGS if en not in lines] == []
    assert max(map(len, lines)) <= 100


def test_a_mistyped_cause_is_met_with_the_nearest(capsys: Captured) -> None:
    main(["causes", "acs_redirct"])
    assert "acs_redirect" in capsys.readouterr().err


# ---------------------------------------------------------------- terminals


def test_a_terminal_gets_the_words_of_a_pipe_in_colour(dmesg: Path, seen: Path) -> None:
    argv = ["explain", str(dmesg), "--observations", str(seen)]
    shown, code = _in_terminal(*argv, columns=100)
    assert code == 1 and "\x1b[" in shown
    assert [line.rstrip() for line in _without_colour(shown).splitlines()] == _run(*argv).stdout.splitlines()


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colour_is_left_out_where_it_is_not_wanted(env: dict[str, str], dmesg: Path, seen: Path) -> None:
    shown, _ = _in_terminal("explain", str(dmesg), "--observations", str(seen), env=env)
    assert "\x1b" not in shown and "iommu_translation" in shown


def test_a_narrow_terminal_gets_narrow_lines(dmesg: Path, seen: Path) -> None:
    shown, _ = _in_terminal("explain", str(dmesg), "--observations", str(seen), columns=60)
    assert max(len(line) for line in _without_colour(shown).splitlines() if not line.lstrip().startswith("$ ")) <= 60


def test_long_reading_shows_progress_in_a_terminal_and_takes_it_away(dmesg: Path) -> None:
    code = "import sys, linkproof.progress as p; p.WAIT_s = 0; from linkproof.cli import main; sys.exit(main(sys.argv[1:]))"
    shown, _ = _in_terminal("explain", str(dmesg), code=code)
    assert "dmesg.txt" in shown.split("\n")[0] and "bytes" in shown


def test_short_reading_shows_no_progress(dmesg: Path) -> None:
    shown, _ = _in_terminal("explain", str(dmesg))
    assert "bytes" not in shown.splitlines()[0]


def test_nothing_is_shown_on_stderr_in_a_pipe(dmesg: Path) -> None:
    assert _run("explain", str(dmesg)).stderr == ""
