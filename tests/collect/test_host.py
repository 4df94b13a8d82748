"""Live, Recorder and Recorded: what a reader asks is answered the same way from a machine, a tree of files and a capture."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from evidence.drawn import DRAWN
from linkproof import proc
from linkproof.collect.evidence import read_evidence
from linkproof.collect.host import FILE_MAX_B, NVML, Answer, Live, Recorded, Recorder
from linkproof.collect.sources import SOURCES


def snapshot(root: Path) -> dict[str, tuple[int, int, int, bytes | str]]:
    """Every file, folder and link below a root: mode, size, time of change, content."""
    out = {}
    for path in sorted(root.rglob("*")):
        s = path.lstat()
        content = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        out[str(path)] = (s.st_mode, s.st_size, s.st_mtime_ns, content)
    return out


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    DRAWN["switches-acs-on"]().write(tmp_path)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text("BOOT_IMAGE=/vmlinuz intel_iommu=on\n")
    return tmp_path


def test_reading_a_machine_changes_nothing_below_its_root(tree: Path) -> None:
    before = snapshot(tree)
    evidence = read_evidence(Live(str(tree)))
    assert len(evidence.pci.functions) == 32 and snapshot(tree) == before


def test_reading_opens_nothing_for_writing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, real = list[tuple[str, int]](), os.open

    def watched(path: Any, flags: int, *args: Any, **more: Any) -> int:
        opened.append((str(path), flags))
        return real(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", watched)
    read_evidence(Live(str(tree)))
    assert len(opened) > 500
    assert not [path for path, flags in opened if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)]


def test_a_capture_answers_as_the_machine_did(tree: Path) -> None:
    recorder = Recorder(Live(str(tree)))
    assert read_evidence(recorder) == read_evidence(Recorded(recorder.log)) == read_evidence(Live(str(tree)))


def test_what_was_never_asked_is_not_recorded_and_not_absent() -> None:
    answers = [Recorded({}).file("/x"), Recorded({}).names("/x"), Recorded({}).link("/x"), Recorded({}).run(("x",))]
    assert [(a.data, a.why) for a in answers] == [(None, "not recorded")] * 4


def test_a_recorder_keeps_each_kind_of_question_apart(tree: Path) -> None:
    recorder = Recorder(Live(str(tree)))
    recorder.file("/proc/cmdline")
    recorder.names("/proc")
    recorder.link("/proc")
    recorder.run(("dmesg", "-T"))
    assert {k: a.why for k, a in recorder.log.items()} == {
        "file /proc/cmdline": "", "names /proc": "", "link /proc": "", "run dmesg -T": "absent",
    }  # fmt: skip


def test_absent_denied_and_failed_are_told_apart(tree: Path) -> None:
    host = Live(str(tree))
    assert host.file("/proc/none").why == host.names("/none").why == host.link("/none").why == "absent"
    assert host.file("/proc/cmdline/x").why == "absent"
    assert host.file("/proc").why == "failed: Is a directory"
    assert host.file("/proc/\0").why.startswith("failed: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root is denied nothing")
def test_a_file_without_rights_is_denied(tree: Path) -> None:
    (tree / "proc/cmdline").chmod(0)
    assert Live(str(tree)).file("/proc/cmdline").why == "denied"


def test_a_refused_file_is_denied_whoever_runs_this(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert Live(str(tree)).file("/proc/cmdline") == Answer(None, "denied")


def test_a_link_that_leads_out_of_the_root_is_not_followed(tmp_path: Path) -> None:
    root, beside = tmp_path / "box", tmp_path / "box2"
    root.mkdir()
    beside.mkdir()
    (beside / "secret").write_text("other machine")
    for name, target in (("absolute", beside / "secret"), ("beside", Path("../box2/secret")), ("folder", Path("../box2"))):
        (root / name).symlink_to(target)
    host = Live(str(root))
    told = [host.file("/absolute"), host.file("/beside"), host.link("/beside"), host.names("/folder"), host.file("/folder/secret")]
    assert [(a.data, a.why) for a in told] == [(None, "failed: leads out of the root")] * 5


def test_a_link_inside_is_said_below_the_root(tree: Path) -> None:
    assert Live(str(tree)).link("/sys/bus/pci/devices/0000:10:01.0").text == "/sys/devices/pci0000:10/0000:10:01.0"


def test_a_pipe_nobody_writes_into_does_not_hold_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "nccl.conf")
    assert Live(str(tmp_path)).file("/nccl.conf") == Answer(b"")


def test_a_long_file_is_cut_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * (FILE_MAX_B + 10))
    (tmp_path / "just").write_bytes(b"x" * FILE_MAX_B)
    long, just = Live(str(tmp_path)).file("/long"), Live(str(tmp_path)).file("/just")
    assert (len(long.data or b""), long.cut) == (FILE_MAX_B, True)
    assert (len(just.data or b""), just.cut) == (FILE_MAX_B, False)


def test_a_tree_of_files_runs_no_command_and_has_no_environment(tree: Path) -> None:
    host = Live(str(tree))
    assert (host.run(("true",)).why, host.file("env:").why, host.file("packages:").why) == ("absent", "absent", "absent")


def test_the_environment_of_this_process_passes_by_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NCCL_DEBUG", "INFO"), ("HF_TOKEN", "hf_x"), ("NCCL_SECRET_KEY", "hunter2"), ("MY_NOTE", "private")):
        monkeypatch.setenv(name, value)
    lines = Live().file("env:").text.splitlines()
    assert "NCCL_DEBUG=INFO" in lines and "NCCL_SECRET_KEY=(masked)" in lines
    assert not [line for line in lines if line.startswith(("HF_TOKEN", "MY_NOTE"))]


def test_packages_are_names_and_versions() -> None:
    lines = Live().file("packages:").text.splitlines()
    assert all(line.count("==") == 1 for line in lines)


def test_a_command_gives_its_output_and_its_exit_code() -> None:
    done = Live().run(("sh", "-c", "echo out; echo err >&2; exit 3"))
    assert (sorted(done.text.split()), done.code, done.why) == (["err", "out"], 3, "")


def test_commands_speak_english() -> None:
    assert Live().run(("sh", "-c", 'echo "$LC_ALL"')).text == "C\n"


def test_a_command_that_is_not_there_is_absent_and_one_that_may_not_run_is_denied(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("echo")
    assert Live().run(("linkproof-no-such-command",)) == Answer(None, "absent")
    assert Live().run((str(plain),)) == Answer(None, "denied")


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_command_that_hangs_ends_with_its_grandchildren_and_keeps_its_words() -> None:
    script = "sleep 300 & echo $!; sh -c 'sleep 300 & echo $!; wait' & echo before; wait"
    t0 = time.monotonic()
    done = Live().run(("sh", "-c", script), deadline_s=1.0)
    assert done.why == "timeout" and "before" in done.text and time.monotonic() - t0 < 5
    pids = [int(word) for word in done.text.split() if word.isdigit()]
    until = time.monotonic() + 5
    while not all(gone(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    assert len(pids) == 2 and all(gone(pid) for pid in pids)


def test_a_grandchild_that_keeps_the_output_open_holds_nobody() -> None:
    t0 = time.monotonic()
    done = Live().run(("sh", "-c", "sleep 300 & echo $!"), deadline_s=30)
    assert done.why == "" and time.monotonic() - t0 < 10
    until = time.monotonic() + 5
    while not gone(int(done.text)) and time.monotonic() < until:
        time.sleep(0.02)
    assert gone(int(done.text))


def test_a_command_that_even_a_kill_does_not_end_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(subprocess.Popen[bytes]):  # what a process inside a sick driver looks like from outside
        def wait(self, timeout: float | None = None) -> int:
            assert timeout is not None, "nobody may wait for it without end"
            raise subprocess.TimeoutExpired("stuck", timeout)

    made = list[Stuck]()

    def popen(*args: Any, **more: Any) -> Stuck:
        made.append(Stuck(*args, **more))
        return made[0]

    real = subprocess.Popen.wait
    monkeypatch.setattr(subprocess, "Popen", popen)
    done = proc.run(("sleep", "300"), deadline_s=0.05)
    assert (done.why, done.code) == ("timeout", -signal.SIGKILL)
    assert real(made[0]) == -signal.SIGKILL


def test_output_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "OUTPUT_MAX_B", 1000)
    done = proc.run(("sh", "-c", "head -c 5000 /dev/zero"), deadline_s=20)
    assert (len(done.out or b""), done.cut) == (1000, True)


def test_a_folder_with_a_module_of_ours_in_it_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("print('not me')")
    monkeypatch.chdir(tmp_path)
    answer = Live().run(NVML, deadline_s=60)
    assert answer.data is not None and (sys.version_info < (3, 11) or "not me" not in answer.text)


def test_sources_have_names_of_their_own_and_deadlines() -> None:
    assert len({s.name for s in SOURCES}) == len({s.what for s in SOURCES}) == len(SOURCES)
    assert all(0 < s.deadline_s <= 10 for s in SOURCES)


def test_a_hung_source_costs_its_deadline_and_no_other_answer(tree: Path) -> None:
    class OneHangs(Live):
        def run(self, argv: tuple[str, ...], deadline_s: float = 5.0) -> Answer:
            return Answer(b"cut", "timeout") if argv == ("nvidia-smi",) else Answer(b"fine")

    evidence = read_evidence(OneHangs(str(tree)))
    by_name = {got.source.name: got.answer for got in evidence.texts}
    assert (by_name["nvidia-smi"].why, by_name["nvidia-smi"].text, by_name["dmesg"].text) == ("timeout", "cut", "fine")
    assert [got.source for got in evidence.texts] == list(SOURCES)
    assert stat.S_ISDIR((tree / "sys").stat().st_mode)


def test_the_users_nccl_file_is_found_where_nccl_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from linkproof.collect.host import USER_CONF, Live

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NCCL_CONF_FILE", raising=False)
    assert Live("/").file(USER_CONF).why == "absent"
    (tmp_path / ".nccl.conf").write_text("NCCL_P2P_DISABLE=1\n", encoding="utf-8")
    assert Live("/").file(USER_CONF).text == "NCCL_P2P_DISABLE=1\n"
    (tmp_path / "other.conf").write_text("NCCL_ALGO=Ring\n", encoding="utf-8")
    monkeypatch.setenv("NCCL_CONF_FILE", str(tmp_path / "other.conf"))
    assert Live("/").file(USER_CONF).text == "NCCL_ALGO=Ring\n"
    assert Live(str(tmp_path)).file(USER_CONF).why == "absent", "another machine's tree has no environment"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(b"dmesg: read kernel buffer failed: Operation not permitted\n", code=1), "denied"),
        (Answer(b"dmesg: klogctl: Operation not permitted\n" + b"[    0.1] a line of the kernel\n" * 50, code=1), ""),
        (Answer(b"[    1.2] app: open: Permission denied\n", code=0), ""),
        (Answer(b"[    1.2] a line of the kernel\n", code=0), ""),
    ],
)
def test_a_command_that_prints_only_its_refusal_is_denied_and_a_log_that_speaks_of_one_is_not(answer: Answer, why: str) -> None:
    machine = DRAWN["switches-acs-on"]()
    machine.commands[("dmesg",)] = answer
    got = next(g.answer for g in read_evidence(machine).texts if g.source.name == "dmesg")
    assert got.why == why and (got.data is None) is bool(why)
