"""What the workers of these tests do: each case's `arm` says how it behaves. The launcher imports this file instead of linkproof.tasks."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from linkproof.measured import Card, Case, Outcome
from linkproof.probe.devices import DeviceLost, NotPossible, NotTested
from linkproof.probe.setup import Setup


class Fake:
    backend = "fake"

    def cards(self) -> list[Card]:
        return [Card(0, "Fake GPU", bdf="0000:01:00.0")]


def make_devices(setup: Setup) -> Fake:
    match setup.devices.removeprefix("sim:"):
        case "hangs":
            time.sleep(3600)
        case "raises":
            raise RuntimeError("no driver")
        case "crashes":
            os.abort()
        case "slow":
            time.sleep(0.2 * (os.getpid() % 3))
    return Fake()


def member_env(case: Case, setup: Setup, member: int, members: int) -> dict[str, str]:
    return {"FAKE_RANK": str(member)}


def run_case(devices: Fake, case: Case, setup: Setup) -> Outcome | list[Outcome]:
    return _behave(case, 0, setup, "")


def run_member(case: Case, setup: Setup, member: int, members: int, folder: str) -> list[Outcome]:
    arm, _, who = case.arm.partition("@")
    if not who or int(who) == member:
        told = _behave(Case(case.mode, case.gpus, case.load, arm), member, setup, folder)
        return [Outcome(case, o.state, o.why, o.args, verified_B=o.verified_B) for o in (told if isinstance(told, list) else [told])]
    if arm in ("exit", "hang", "refused", "killed"):  # the others wait for the one that does not come
        time.sleep(3600)
    return [Outcome(case, "verified", verified_B=5)]


def _behave(case: Case, member: int, setup: Setup, folder: str) -> Outcome | list[Outcome]:
    name, _, value = case.arm.partition(":")
    match name:
        case "":
            return Outcome(case, "verified", verified_B=7)
        case "corrupt":
            return Outcome(case, "corrupt", "wrong")
        case "two":
            return [Outcome(Case(case.mode, pair), "verified") for pair in ((0, 1), (1, 0))]
        case "pid":
            return Outcome(case, "verified", "", {"pid": str(os.getpid()), "env": os.environ.get("FAKE_ENV", "")})
        case "where":
            Path(folder, f"was-here-{member}").touch()
            args = {"folder": folder, "mode": oct(stat.S_IMODE(Path(folder).stat().st_mode)), "rank": os.environ["FAKE_RANK"]}
            return Outcome(case, "slow", "", args)
        case "when":
            began = time.monotonic()
            time.sleep(0.2)
            return Outcome(case, "verified", "", {"began": repr(began), "ended": repr(time.monotonic())})
        case "exit":
            print("last words", flush=True)
            os._exit(int(value or 3))
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "announce":
            Path(value).write_text(str(os.getpid()), encoding="ascii")
            time.sleep(3600)
        case "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            print("still at it", flush=True)
            while True:
                time.sleep(1)
        case "grandchild":
            for new_session in (False, True):
                child = subprocess.Popen(["sleep", "3600"], start_new_session=new_session)
                with Path(value).open("a", encoding="ascii") as file:
                    print(child.pid, file=file)
            time.sleep(3600)
        case "prints":
            line = b"x" * 1023 + b"\n"
            for _ in range(50 * 1024):
                os.write(1, line)
            os.write(2, b"the last line\n")
            os.abort()
        case "garbage":
            for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
                if Path(f"/proc/self/fd/{fd}").is_socket():
                    socket.socket(fileno=os.dup(fd)).send(b"Segmentation fault (core dumped)\n" * 3)
            return Outcome(case, "verified")
        case "memory":
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
            np.ones(1 << 34, dtype=np.uint8)
        case "error":
            raise {"runtime": RuntimeError, "type": TypeError, "lost": DeviceLost, "refused": NotPossible, "untested": NotTested}[value](
                "so it is"
            )
        case "refused":
            raise NotPossible("so it is")
        case "nothing":
            return []
        case "launcher":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(3600)
        case "launcher_once":
            if not Path(value).exists():
                Path(value).touch()
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(3600)
            return Outcome(case, "verified")
    sys.exit(9)
