"""`linkproof run`: the command is as it would be without it, and a model that accelerate splits in it writes the right tokens."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from linkproof.errors import UsageError
from linkproof.guard.metrics import Counts, LinkCount, Metrics
from linkproof.report.say import Teller
from linkproof.run import command

NAMES = ("torch", "accelerate", "transformers")
models = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NAMES), reason="torch, accelerate or transformers is missing: no model"
)
MAIN = """
import sys
from argparse import Namespace
from linkproof.errors import LinkproofError
from linkproof.run.command import run
mode, policy, metrics, *cmd = sys.argv[1:]
try:
    sys.exit(run(Namespace(guard=mode, policy=policy, metrics=metrics or None, cmd=cmd), "en"))
except LinkproofError as e:
    print(e.told("en"), file=sys.stderr)
    sys.exit(e.exit_code)
"""
MODEL = Path(command.__file__).parent.parent / "demo"
ON_0 = ("model.embed_tokens", "model.layers.0", "model.layers.1")
ON_1 = ("model.layers.2", "model.layers.3", "model.norm", "model.rotary_emb", "lm_head")
SPLIT = dict.fromkeys(ON_0, "vgpu:0") | dict.fromkeys(ON_1, "vgpu:1")
SCRIPT = f"""
import sys, torch
from transformers import AutoModelForCausalLM
from linkproof.probe.faults import Fault
from linkproof.sim.torch_device import install
torch.set_num_threads(1)
fabric = install(2)
model = AutoModelForCausalLM.from_pretrained({str(MODEL)!r}, device_map={SPLIT!r})
if "again" in sys.argv:
    from accelerate import dispatch_model
    model = dispatch_model(model, model.hf_device_map, main_device="vgpu:0")
ids = torch.tensor([list(b"A model that is split over")]).to("vgpu:0")
with fabric.broken(Fault("zero", pairs=("0->1",))):
    out = model.generate(ids, max_new_tokens=20, do_sample=False).cpu()[0, ids.shape[1]:]
print(bytes(out.tolist()).decode())
"""
RIGHT = " several cards think"
NOTHING = "no model was dispatched over several GPUs"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", "HF_HUB_OFFLINE": "1"}


def argv(*cmd: str, mode: str = "deferred", policy: str = "heal", metrics: str = "") -> list[str]:
    return [sys.executable, "-c", MAIN, mode, policy, metrics, *cmd]


def run(*cmd: str, env: dict[str, str] | None = None, **how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv(*cmd, **how), capture_output=True, text=True, env={**ENV, **(env or {})}, timeout=120)


def python(code: str, *args: str, env: dict[str, str] | None = None, **how: str) -> subprocess.CompletedProcess[str]:
    return run("--", sys.executable, "-c", code, *args, env=env, **how)


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Our own lines."""
    return [line for line in done.stderr.splitlines() if line.startswith("linkproof run: ")]


# ---------------------------------------------------------------- models


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return str(path)


@models
def test_without_it_the_script_writes_wrong_tokens(script: str) -> None:
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=ENV, timeout=120)
    assert done.returncode == 0 and done.stdout != RIGHT + "\n"


@models
def test_the_same_script_writes_the_right_tokens_and_the_metrics_are_kept(script: str, tmp_path: Path) -> None:
    done = run("--", sys.executable, script, metrics=str(tmp_path / "m.prom"))
    assert (done.returncode, done.stdout) == (0, RIGHT + "\n"), done.stderr
    first, second = said(done)
    assert "guard deferred: 20 forwards" in first and "demoted: vgpu:0 -> vgpu:1" in first
    assert "wrong data came over vgpu:0 -> vgpu:1" in second
    text = (tmp_path / "m.prom").read_text()
    assert "linkproof_guard_forwards_total 20\n" in text
    assert 'linkproof_guard_link_demoted{link="vgpu:0 -> vgpu:1"} 1\n' in text


@models
def test_so_does_a_fork_of_a_python_that_a_shell_starts_and_a_model_that_is_dispatched_again(script: str, tmp_path: Path) -> None:
    outer = tmp_path / "outer.py"
    forks = "child = multiprocessing.get_context('fork').Process(target=runpy.run_path, args=sys.argv[1:2])"
    outer.write_text(
        f"import multiprocessing, runpy, sys\n{forks}\nchild.start()\nchild.join()\nsys.exit(child.exitcode)\n", encoding="utf-8"
    )
    done = run("--", "sh", "-c", f"{sys.executable} {outer} {script} again", mode="strict")
    assert (done.returncode, done.stdout) == (0, RIGHT + "\n"), done.stderr
    assert "guard strict: 20 forwards" in said(done)[0]


@models
def test_the_policy_is_the_one_that_is_asked_for(script: str) -> None:
    done = run("--", sys.executable, script, policy="raise")
    assert done.returncode == 1 and "link-corrupts: vgpu:0 -> vgpu:1 delivered" in done.stderr and not done.stdout
    assert said(done)[-1].endswith("the command ended with exit code 1; `linkproof explain` reads its log")


FAKE = """
def dispatch_model(model, device_map, main_device=None):
    "places it"
    return model
"""
USES_FAKE = """
import accelerate.big_modeling, inspect, sys
from accelerate import dispatch_model
assert dispatch_model is accelerate.big_modeling.dispatch_model
print(list(inspect.signature(dispatch_model).parameters), dispatch_model.__doc__, inspect.getsource(accelerate.big_modeling)[:5])
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """An accelerate of two lines."""
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "__init__.py").write_text("from .big_modeling import dispatch_model\n", encoding="utf-8")
    (tmp_path / "accelerate" / "big_modeling.py").write_text(FAKE, encoding="utf-8")
    return tmp_path


def test_the_wrapped_function_looks_as_before_wherever_it_is_imported_from(fake: Path) -> None:
    done = python(USES_FAKE, env={"PYTHONPATH": str(fake)})
    assert done.stdout == "['model', 'device_map', 'main_device'] places it \ndef \n", done.stderr
    assert NOTHING in said(done)[0]


@models
def test_a_model_on_one_gpu_is_left_alone_and_that_is_said(fake: Path) -> None:
    code = "import torch, accelerate; m = torch.nn.Linear(2, 2); accelerate.dispatch_model(m, {}); print('forward' in m.__dict__)"
    done = python(code, env={"PYTHONPATH": str(fake)})
    assert done.stdout == "False\n" and said(done) == [
        "linkproof run: the model is on one GPU: nothing goes from GPU to GPU, and nothing was guarded"
    ]


def test_a_python_that_has_no_linkproof_is_named(fake: Path) -> None:
    (fake / "linkproof.py").write_text("", encoding="utf-8")  # no package: what is below it cannot be imported
    (fake / "script.py").write_text(USES_FAKE + "print(dispatch_model(7, 8))\n", encoding="utf-8")
    done = run("--", "sh", "-c", f"PYTHONPATH=$PYTHONPATH:{fake} {sys.executable} {fake}/script.py")
    assert done.returncode == 0 and done.stdout.endswith("\n7\n")
    assert said(done) == [
        f"linkproof run: {sys.executable} uses accelerate and has no linkproof: nothing was guarded there; install linkproof for it"
    ]


# ---------------------------------------------------------------- everything else stays


def test_a_program_without_torch_is_as_it_was() -> None:
    code = "import sys; print(sys.argv, sorted(sys.modules)); print('err', file=sys.stderr); sys.exit(3)"
    bare = subprocess.run([sys.executable, "-c", code, "--", "a b", "--lang"], capture_output=True, text=True, env=ENV)
    done = python(code, "--", "a b", "--lang")
    modules = [set(p.stdout.partition("] ")[2].strip("[]\n").replace("'", "").split(", ")) for p in (bare, done)]
    new = {name for name in modules[1] - modules[0] if not name.startswith("importlib")}
    assert {"sitecustomize", "linkproof_run_hook"} <= new <= {"sitecustomize", "linkproof_run_hook", "__future__", "warnings"}
    assert done.stdout.partition("] ")[0] == bare.stdout.partition("] ")[0]
    assert done.returncode == 3 and done.stderr.startswith("err\n") and NOTHING in said(done)[0] and len(said(done)) == 2


@pytest.mark.parametrize("code", ["OWN = 'theirs'", "raise ValueError('theirs')", "import nothing_of_that_name"])
def test_a_sitecustomize_of_the_users_own_still_runs(tmp_path: Path, code: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(code, encoding="utf-8")
    show = "import sys; m = sys.modules.get('sitecustomize'); print(getattr(m, 'OWN', None), getattr(m, '__file__', '')[-24:])"
    env = {**ENV, "PYTHONPATH": str(tmp_path)}
    bare = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, env=env)
    done = subprocess.run(argv("--", sys.executable, "-c", show), capture_output=True, text=True, env=env)
    if code.startswith("OWN"):
        assert done.stdout == bare.stdout and "theirs" in done.stdout
    else:
        line = bare.stderr.splitlines()[1]  # "ValueError: theirs"
        assert line in done.stderr and "Error in sitecustomize" in done.stderr and done.returncode == 0


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_the_exit_code_is_the_commands(code: int) -> None:
    assert run("sh", "-c", f"exit {code}").returncode == code


def test_a_signal_that_ends_it_is_128_more_and_named() -> None:
    done = run("--", "sh", "-c", "kill -9 $$")
    assert done.returncode == 137
    assert "took the hook" in said(done)[0] and "ended by SIGKILL" in said(done)[1]


WAITS = """
import signal, sys, time
def heard(n, frame):
    print("heard", signal.Signals(n).name, flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, heard)
try:
    print("ready", *(f.isatty() for f in (sys.stdin, sys.stdout, sys.stderr)), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    time.sleep(0.3)  # a second one would be seen
    sys.exit(9)
"""


@pytest.mark.parametrize(("number", "words", "code"), [(signal.SIGTERM, "heard SIGTERM", 7), (signal.SIGINT, "interrupted", 9)])
def test_a_signal_to_it_alone_is_passed_on(number: int, words: str, code: int) -> None:
    child = subprocess.Popen(
        argv("--", sys.executable, "-c", WAITS), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "ready False False False\n"
    child.send_signal(number)
    out, _ = child.communicate(timeout=30)
    assert out == words + "\n" and child.returncode == code


def test_in_a_terminal_it_has_the_terminal_and_one_ctrl_c_is_one() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background has it ignored
        os.execve(sys.executable, argv("--", sys.executable, "-c", WAITS), ENV)
    seen, until = b"", time.monotonic() + 60
    sent = False
    while time.monotonic() < until:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                seen += os.read(terminal, 4096)
            except OSError:
                break
        if b"ready" in seen and b"\n" in seen and not sent:
            os.write(terminal, b"\x03")
            sent = True
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    text = seen.decode()
    assert "ready True True True" in text and text.count("interrupted") == 1 and code == 9, text


def test_nohup_holds_for_the_command_too() -> None:
    code = "import signal; print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    done = subprocess.run(
        argv("--", sys.executable, "-c", code), capture_output=True, text=True, env=ENV,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert done.stdout == "True True\n"


def test_standard_input_goes_to_the_command() -> None:
    done = subprocess.run(argv("--", "cat"), input="as it is\n", capture_output=True, text=True, env=ENV)
    assert done.stdout == "as it is\n"


def test_what_takes_no_hook_is_told_from_what_has_no_model() -> None:
    assert "took the hook" in said(run("--", sys.executable, "-I", "-c", ""))[0]
    assert NOTHING in said(python("pass"))[0]


# ---------------------------------------------------------------- refused before it starts


@pytest.mark.parametrize(
    ("how", "ref"),
    [
        ({"guard": "fast"}, "no-such-mode"),
        ({"policy": "hope"}, "no-such-policy"),
        ({"cmd": []}, "no-command"),
        ({"cmd": ["--"]}, "no-command"),
        ({"metrics": "/nowhere/at/all"}, "cannot-write"),
    ],
)
def test_what_cannot_be_is_refused_before_it_starts(how: dict[str, Any], ref: str, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    options = Namespace(**{"guard": "deferred", "policy": "heal", "metrics": None, "cmd": ["--", "touch", str(touched)], **how})
    with pytest.raises(UsageError) as e:
        command.run(options, "en")
    assert e.value.ref == ref and e.value.exit_code == 2 and not touched.exists()


@pytest.mark.parametrize(("name", "code"), [("no-such-command-here", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_be_started_ends_as_in_a_shell(name: str, code: int) -> None:
    done = run("--", name)
    assert done.returncode == code and done.stderr.startswith(f"cannot-start: {name}: ") and not said(done)


# ---------------------------------------------------------------- what is said


def heard(folder: Path, *metrics: Metrics, states: tuple[str, ...] = ("guarded",)) -> command.Heard:
    import msgspec

    for i, one in enumerate(metrics):
        (folder / f"{i}.json").write_bytes(msgspec.json.encode([one]))
    for i, state in enumerate(states):
        (folder / f"{i}.state").write_text(state, encoding="utf-8")
    return command.Heard(folder, "deferred", str(folder / "out.prom"))


def test_the_metrics_of_all_processes_are_added_up(tmp_path: Path) -> None:
    one = Metrics("deferred", Counts(forwards=2, hops=3, links={"a": LinkCount(3, 30, 1)}), ("a",))
    two = Metrics("deferred", Counts(forwards=5, hops=7, links={"a": LinkCount(3, 30), "b": LinkCount(4, 40)}), ())
    both = heard(tmp_path, one, two)
    assert both.metrics().counts.forwards == 7 and both.metrics().demoted == ("a",)
    lines = list(command.at_the_end(both, 0, Teller("en")))
    assert "7 forwards, 10 hops" in lines[0] and "wrong data came over a:" in lines[1] and len(lines) == 2
    both.write()
    assert 'linkproof_guard_hops_total{link="a"} 6\n' in (tmp_path / "out.prom").read_text()


def test_the_metrics_file_is_renewed_while_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "EACH_s", 0.01)
    running = heard(tmp_path)
    running.write()
    file = tmp_path / "out.prom"
    assert "linkproof_guard_forwards_total 0\n" in file.read_text()
    with running.written_now_and_then():
        heard(tmp_path, Metrics("deferred", Counts(forwards=2), ()))
        until = time.monotonic() + 20
        while "linkproof_guard_forwards_total 2\n" not in file.read_text() and time.monotonic() < until:
            time.sleep(0.01)
    assert "linkproof_guard_forwards_total 2\n" in file.read_text()


def test_nothing_is_said_of_a_link_that_was_right_or_a_command_that_ended_well(tmp_path: Path) -> None:
    fine = heard(tmp_path, Metrics("deferred", Counts(forwards=1, hops=1, links={"a": LinkCount(1, 8)}), ()))
    assert len(list(command.at_the_end(fine, 0, Teller("en")))) == 1
    assert len(list(command.at_the_end(fine, -signal.SIGINT, Teller("en")))) == 1
    assert len(list(command.at_the_end(fine, 2, Teller("en")))) == 2


def test_no_half_written_file_is_left(tmp_path: Path) -> None:
    heard(tmp_path, Metrics("deferred", Counts(), ())).write()
    assert [p.name for p in tmp_path.glob("*~")] == [] and json.loads((tmp_path / "0.json").read_text())
