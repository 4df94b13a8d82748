"""`linkproof run`: the command as it would run without it, each of its Pythons with the hook, and what the guard did at the end.

In:      a mode and a policy of the guard, a command, a file for the metrics or none.
Out:     the command's exit code, 128 + n if signal n ended it; lines on stderr; Prometheus text in the file, renewed while the command runs.
Unknown: a Python started with -I, -E or -S takes no hook; one that lives on behind the command is not waited for.
Raises:  UsageError for a mode or policy that is none, a command that cannot be started, a file that cannot be written.
Source:  stdin, stdout and stderr are handed down untouched (no pipe: a terminal stays one), so what the command printed is not read here.
         A Ctrl-C goes to all of the terminal's foreground processes; other signals, and an interrupt sent to us alone, are passed on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from linkproof.errors import UsageError
from linkproof.guard import policy
from linkproof.guard.metrics import Metrics, total
from linkproof.report.say import Teller

HOOK = Path(__file__).parent / "hook"
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
FROM_KEYBOARD = (signal.SIGINT, signal.SIGQUIT)
EACH_s = 5.0
NOT_FOUND, NOT_ALLOWED = 127, 126  # as shells say it


def run(options: Namespace, lang: str) -> int:
    """options: guard (mode), policy, metrics (a file or None), cmd (the command, a leading `--` may stand before it)."""
    command = list(options.cmd[1:] if options.cmd[:1] == ["--"] else options.cmd)
    policy.mode_named(options.guard)
    policy.checked(options.policy)
    if not command:
        raise UsageError(
            "no-command",
            ("no command is given", "没有给出要运行的命令"),
            ("nothing was run", "没有运行任何内容"),
            ("`linkproof run --guard deferred -- python your_script.py`", "`linkproof run --guard deferred -- python your_script.py`"),
        )
    with tempfile.TemporaryDirectory(prefix="linkproof-run-", ignore_cleanup_errors=True) as folder:
        heard = Heard(Path(folder), options.guard, options.metrics)
        heard.write()
        env = {
            **os.environ,
            "LINKPROOF_GUARD_MODE": options.guard,
            "LINKPROOF_GUARD_POLICY": options.policy,
            "LINKPROOF_GUARD_FOLDER": folder,
        }
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HOOK), os.environ.get("PYTHONPATH"))))
        with heard.written_now_and_then():
            code = _waited_for(command, env)
        heard.write()
        for words in at_the_end(heard, code, Teller(lang)):
            print(f"linkproof run: {words}", file=sys.stderr)
    return 128 - code if code < 0 else code


# ---------------------------------------------------------------- the command


def _waited_for(command: list[str], env: dict[str, str]) -> int:
    """Its exit code, -n if signal n ended it."""
    pid = 0
    early: list[int] = []

    def pass_on(n: int, _: Any) -> None:
        if not pid:
            early.append(n)
        elif not (n in FROM_KEYBOARD and _in_foreground()):
            _send(pid, n)

    before = {n: signal.getsignal(n) for n in PASSED_ON}
    for n, how in before.items():
        if how is not signal.SIG_IGN:  # nohup: the command is to be deaf to it as well
            signal.signal(n, pass_on)
    try:
        # what Python ignores for itself is not handed down
        pid = os.posix_spawnp(command[0], command, env, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])
        for number in early:
            _send(pid, number)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except OSError as e:
        raise _cannot_start(command[0], e) from None
    finally:
        for n, how in before.items():
            signal.signal(n, how)


def _send(pid: int, n: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, n)


def _in_foreground() -> bool:
    """Then the terminal has sent its signal to the command too."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _cannot_start(name: str, why: OSError) -> UsageError:
    error = UsageError(
        "cannot-start",
        (f"{name}: {why.strerror}", f"{name}：{why.strerror}"),
        ("the command was not run", "命令没有运行"),
        ("give it as you would type it in the shell, behind `--`", "请在 `--` 之后照在 shell 中的写法给出命令"),
    )
    error.exit_code = NOT_FOUND if isinstance(why, FileNotFoundError) else NOT_ALLOWED
    return error


# ---------------------------------------------------------------- what came of it


class Heard:
    """What the hooks have written so far."""

    def __init__(self, folder: Path, mode: str, metrics_file: str | None) -> None:
        self.folder, self.mode, self.file = folder, mode, metrics_file

    def states(self) -> dict[str, set[str]]:
        """started, one_device, no_linkproof, guarded -> what was said with it, of every Python that took the hook."""
        out: dict[str, set[str]] = {}
        for path in self.folder.glob("*.state"):
            state, _, text = path.read_text(encoding="utf-8", errors="replace").partition(" ")
            out.setdefault(state, set()).add(text)
        return out

    def metrics(self) -> Metrics:
        """Of all processes and models together."""
        each = [m for path in self.folder.glob("*.json") for m in msgspec.json.decode(path.read_bytes(), type=list[Metrics])]
        return Metrics(self.mode, total(m.counts for m in each), tuple(sorted({link for m in each for link in m.demoted})))

    def write(self) -> None:
        if self.file is None:
            return
        part = Path(f"{self.file}~")
        try:
            part.write_text(self.metrics().prometheus(), encoding="utf-8")
            part.replace(self.file)
        except OSError as e:
            raise UsageError(
                "cannot-write",
                (f"{self.file}: {e.strerror}", f"{self.file}：{e.strerror}"),
                ("the metrics are not kept", "指标未保存"),
                ("name a file in a folder that you may write to", "请指定一个可写目录中的文件"),
            ) from None

    @contextlib.contextmanager
    def written_now_and_then(self) -> Iterator[None]:
        done = threading.Event()

        def each() -> None:
            while not done.wait(EACH_s):
                with contextlib.suppress(UsageError):  # a full disk is told at the end, if it still is
                    self.write()

        writer = threading.Thread(target=each, daemon=True)
        if self.file is not None:
            writer.start()
        try:
            yield
        finally:
            done.set()
            if self.file is not None:
                writer.join()


def at_the_end(heard: Heard, code: int, t: Teller) -> Iterator[str]:
    states, metrics = heard.states(), heard.metrics()
    if "guarded" in states:
        yield metrics.line()
        lied = ", ".join(name for name, link in sorted(metrics.counts.links.items()) if link.mismatches)
        if lied:
            yield t("wrong data came over {links}: `linkproof check` finds the cause", links=lied)
    for python in sorted(states.get("no_linkproof", ())):
        yield t("{python} uses accelerate and has no linkproof: nothing was guarded there; install linkproof for it", python=python)
    if not states:
        yield t("no Python of this command took the hook (not Python 3.10 or newer, or started with -I, -E or -S): nothing was guarded")
    elif "one_device" in states and "guarded" not in states:
        yield t("the model is on one GPU: nothing goes from GPU to GPU, and nothing was guarded")
    elif set(states) == {"started"}:
        yield t("no model was dispatched over several GPUs by accelerate: nothing was guarded. Of vLLM and SGLang, which move data in their own "
                "ways, `linkproof env --for vllm` tells the safe settings")  # fmt: skip
    if code < 0 and -code != signal.SIGINT:
        yield t("the command was ended by {signal}; `linkproof explain` reads its log", signal=signal.Signals(-code).name)
    elif code > 0:
        yield t("the command ended with exit code {code}; `linkproof explain` reads its log", code=code)
