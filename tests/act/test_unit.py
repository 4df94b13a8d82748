"""The systemd unit: what systemd itself says of it, what it must not be given to start, and how paths are written into it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from linkproof import __version__, proc
from linkproof.act.doors import Machine
from linkproof.act.persist import unit
from linkproof.report.say import say

ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="unit not verified: systemd-analyze is not here")
ENV = unit.Program("/usr/bin/env", "-P", ("/usr/bin/env",))


def program(path: Path) -> unit.Program:
    """A program of that name which exists, as systemd wants to see it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/usr/bin/env")
    return unit.Program(str(path), "-P", (str(path), "/usr/bin/env"))


def verified(folder: Path, text: str) -> str:
    """Whatever systemd has to complain of; "" if nothing. Its exit code alone lets unknown keys pass."""
    path = folder / unit.NAME
    path.write_text(text)
    done = subprocess.run([str(ANALYZE), "verify", "--man=no", str(path)], capture_output=True, text=True, check=False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if unit.NAME in line]
    return "\n".join(said) or ("" if done.returncode == 0 else f"exit code {done.returncode}")


# ---------------------------------------------------------------- what systemd says


@needs_systemd
@pytest.mark.parametrize("name", ["python3", "a b/python3", "50%/%n/python3", "机器/python3", "a;b/python3"])
def test_systemd_finds_nothing_to_complain_of(tmp_path: Path, name: str) -> None:
    assert verified(tmp_path, unit.unit_text(program(tmp_path / name))) == ""


@needs_systemd
def test_systemd_finds_nothing_to_complain_of_in_the_unit_for_this_python(tmp_path: Path) -> None:
    assert verified(tmp_path, unit.unit_text(unit.program())) == ""


BROKEN = {
    "a program that is not there": ("/usr/bin/env", "/usr/bin/no-such-python", "not executable"),
    "an unknown key": ("RequiresMountsFor=", "RequiresMountFor=", "RequiresMountFor"),
    "an unknown type": ("Type=oneshot", "Type=oneshoot", "oneshoot"),
    "a name that is no unit": ("docker.service", "docker", "docker"),
    "a specifier that does not exist": ("/usr/bin/env", "/usr/%!/env", "%!"),
}


@needs_systemd
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_unit_is_seen(tmp_path: Path, what: str) -> None:
    before, after, said = BROKEN[what]
    text = unit.unit_text(ENV)
    assert verified(tmp_path, text) == "" and before in text
    assert said in verified(tmp_path, text.replace(before, after))


@needs_systemd
def test_a_percent_sign_that_is_not_doubled_would_be_another_path(tmp_path: Path) -> None:
    """So that the test above is known to fail without the quoting."""
    who = program(tmp_path / "50%n" / "python3")
    assert verified(tmp_path, unit.unit_text(who).replace("%%", "%"))


# ---------------------------------------------------------------- what it says


def test_it_comes_before_what_uses_the_gpus_and_after_what_it_is_loaded_from() -> None:
    lines = unit.unit_text(unit.Program("/opt/a b/py", "-I", ("/opt/a b/py", "/opt/x%y"))).splitlines()
    assert 'RequiresMountsFor="/opt/a b/py" "/opt/x%%y"' in lines
    assert 'ExecStart="/opt/a b/py" -I -m linkproof fix reapply' in lines
    before = next(line for line in lines if line.startswith("Before=")).split()
    assert {"nvidia-fabricmanager.service", "docker.service", "kubelet.service", "slurmd.service"} <= set(before)
    assert "ConditionVirtualization=!container" in lines and "ConditionPathExists=/etc/linkproof/persist.json" in lines


def test_nothing_in_it_takes_the_right_to_write_configuration_space() -> None:
    keys = {line.partition("=")[0] for line in unit.unit_text(ENV).splitlines() if not line.startswith("#")}
    assert not keys & {
        "ProtectKernelTunables",
        "PrivateNetwork",
        "CapabilityBoundingSet",
        "PrivateUsers",
        "DynamicUser",
        "User",
        "ReadOnlyPaths",
    }


def test_a_virtual_environment_stays_one() -> None:
    who = unit.program()
    assert who.python == sys.executable and os.path.realpath(sys.executable) in who.files
    assert who.safe == ("-P" if sys.version_info >= (3, 11) else "-I")


@pytest.mark.parametrize("safe", ["-I", *(["-P"] if sys.version_info >= (3, 11) else [])])
def test_what_lies_in_the_working_folder_is_not_imported(tmp_path: Path, safe: str) -> None:
    (tmp_path / "linkproof.py").write_text("print('planted')")
    argv = [sys.executable, "-m", "linkproof", "--version"]
    planted = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    kept_out = subprocess.run([argv[0], safe, *argv[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "planted" in planted.stdout and "planted" not in kept_out.stdout


# ---------------------------------------------------------------- what root must not start


def refs(who: unit.Program, out: bytes = f"linkproof {__version__}\n".encode(), code: int = 0) -> dict[str, str]:
    machine = Machine("", run=lambda argv, *, deadline_s: proc.Done(out, "", code))
    return {r.ref: say(r.why.text, r.why.args) for r in unit.unfit(who, machine)}


def test_a_program_of_root_that_runs_is_fit() -> None:
    assert refs(ENV) == {}


def test_a_program_that_others_can_change_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "python3").write_bytes(b"")
    if os.geteuid() == 0:
        os.chown(folder, 1000, 1000)
    path = str(folder / "python3")
    at = unit.others_change(path)
    assert at and path.startswith(at)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can own files here")
def test_folders_that_all_may_write_are_fit_only_with_the_sticky_bit(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "python3").write_bytes(b"")
    for mode, fit in ((0o755, True), (0o1777, True), (0o777, False), (0o775, True)):  # the group is root's: nobody else is in it
        folder.chmod(mode)
        assert (unit.others_change(str(folder / "python3")) == "") is fit, oct(mode)
    os.chown(folder, 0, 12345)  # a group of which nothing is known
    folder.chmod(0o775)
    assert unit.others_change(str(folder / "python3")) == str(folder)
    folder.chmod(0o755)
    os.chown(folder / "python3", 0, 0)
    (folder / "python3").chmod(0o666)
    assert unit.others_change(str(folder / "python3")) == str(folder / "python3")


def test_what_is_not_there_is_not_fit(tmp_path: Path) -> None:
    assert unit.others_change("/usr/bin/no-such-python") == "/usr/bin/no-such-python"


@pytest.mark.parametrize("path", ["/tmp/v/bin/python3", "/var/tmp/x", "/run/user/0/x"])
def test_what_is_gone_at_boot_is_refused(path: str) -> None:
    assert "fleeting" in refs(unit.Program(path, "-P", (path,)))


@pytest.mark.parametrize(
    "path", ["/opt/a'b/py", '/opt/a"b/py', "/opt/a\\b/py", "/opt/$HOME/py", "/opt/a\nExecStart=/bin/sh/py", "/opt/\x1b[31m", "", "py"]
)
def test_a_path_that_systemd_would_read_otherwise_is_refused_and_shown_harmless(path: str) -> None:
    said = refs(unit.Program(path, "-P", (path,)))
    assert list(said) == ["path"] and said["path"].isprintable()


@pytest.mark.parametrize(
    ("out", "code", "said"),
    [
        (b"/usr/bin/python3: No module named linkproof\n", 1, "No module named linkproof"),
        (b"linkproof 0.0.0\n", 0, "0.0.0"),
        (b"", 1, "exit code 1"),
    ],
)
def test_a_program_that_does_not_start_with_an_empty_environment_is_refused(out: bytes, code: int, said: str) -> None:
    assert said in refs(ENV, out, code)["does_not_start"]


def test_this_python_is_really_tried(tmp_path: Path) -> None:
    """linkproof is installed here if it starts without PYTHONPATH, and only then."""
    who = unit.program()
    argv = ["env", "-i", who.python, who.safe, "-m", "linkproof", "--version"]
    installed = subprocess.run(argv, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    assert (unit._tried(who, Machine()) == "") is installed
    bare = unit.Program("/usr/bin/env", "-P", ("/usr/bin/env",))
    assert unit._tried(bare, Machine())  # `env -P -m linkproof` is no linkproof
