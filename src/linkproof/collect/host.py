"""One root: every reader goes through a Host, so every machine can be replayed.

    Live("/")       this machine; reads only, never writes; each command ends at its deadline
    Recorder(host)  passes everything on and keeps what came back
    Recorded(log)   gives the same answers again: from a capture

A reader asks for a file, a folder's names, where a link leads, or a command's output, and gets an Answer: what it was, or why not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from linkproof import proc
from linkproof.collect.mask import environment

FILE_MAX_B = 8 * 1024 * 1024
NAMES_MAX = 200_000
NVML = ("linkproof-nvml",)
USER_CONF = "nccl.conf:user"  # $NCCL_CONF_FILE, or ~/.nccl.conf
OUTSIDE = "leads out of the root"
NOT_RECORDED = "not recorded"
PACKAGES = (
    "torch", "transformers", "accelerate", "vllm", "sglang", "deepspeed", "nvidia-nccl-cu11", "nvidia-nccl-cu12", "nvidia-nccl-cu13", "triton",
    "flash-attn", "bitsandbytes", "ray", "tensorrt-llm",
)  # fmt: skip


class Answer(Struct, frozen=True):
    """data is None if there is nothing; `why` says why: absent, denied, timeout, failed: ..., not recorded."""

    data: bytes | None
    why: str = ""
    code: int = 0  # exit code of a command
    took_s: float = 0.0
    cut: bool = False

    @property
    def text(self) -> str:
        return "" if self.data is None else self.data.decode("utf-8", "replace")


class Host(Protocol):
    def file(self, path: str) -> Answer: ...
    def names(self, path: str) -> Answer: ...
    def link(self, path: str) -> Answer: ...
    def run(self, argv: tuple[str, ...], deadline_s: float = 5.0) -> Answer: ...


def _read(path: str) -> bytes:
    """At most one byte more than FILE_MAX_B. Does not wait for whoever may write into a pipe."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        data = os.read(fd, 65536)
        while data and len(data) <= FILE_MAX_B and (more := os.read(fd, FILE_MAX_B + 1 - len(data))):  # /proc gives pages one by one
            data += more
    finally:
        os.close(fd)
    return data


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "absent"
    return "denied" if isinstance(error, PermissionError) else f"failed: {error.strerror or error}"


class Live:
    """The machine at `root`. Commands run only at "/": another root is a tree of files."""

    def __init__(self, root: str = "/") -> None:
        self.root = root.rstrip("/")
        self._real = os.path.realpath(self.root) if self.root else ""

    def file(self, path: str) -> Answer:
        """A file, or what is no file: `env:` (allowed variables of this process), `packages:` (versions that it would load); `USER_CONF`."""
        if path in ("env:", "packages:"):
            return self._own(path)
        if path == USER_CONF:  # as NCCL looks for it
            path = "" if self.root else os.environ.get("NCCL_CONF_FILE") or os.path.expanduser("~/.nccl.conf")  # noqa: PTH111
            if not path:
                return Answer(None, "absent")
        try:
            self._inside(path)
            data = _read(self.root + path)
        except OSError as e:
            return Answer(None, _why(e))
        except ValueError as e:
            return Answer(None, f"failed: {e}")
        return Answer(data[:FILE_MAX_B], cut=len(data) > FILE_MAX_B)

    def _inside(self, path: str) -> None:
        """An absolute link in a tree of files leads to the machine that we run on: that is not the machine asked for."""
        if self.root:
            real = os.path.realpath(self.root + path)
            if real != self._real and not real.startswith(self._real + "/"):
                raise ValueError(OUTSIDE)

    def _own(self, path: str) -> Answer:
        if self.root:
            return Answer(None, "absent")
        if path == "env:":
            return Answer(environment(os.environ).encode("utf-8", "replace"))
        from importlib.metadata import PackageNotFoundError, version

        found = []
        for name in PACKAGES:
            try:
                found.append(f"{name}=={version(name)}")
            except PackageNotFoundError:
                continue
        return Answer("\n".join(found).encode())

    def names(self, path: str) -> Answer:
        try:
            self._inside(path)
            found = sorted(os.listdir(self.root + path))  # noqa: PTH208  names, not paths
        except OSError as e:
            return Answer(None, _why(e))
        except ValueError as e:
            return Answer(None, f"failed: {e}")
        return Answer("\n".join(found[:NAMES_MAX]).encode("utf-8", "surrogateescape"), cut=len(found) > NAMES_MAX)

    def link(self, path: str) -> Answer:
        """Where a path really is, below the root: `/sys/bus/pci/devices/X` -> `/sys/devices/pci0000:00/...`."""
        full = self.root + path
        if not os.path.lexists(full):
            return Answer(None, "absent")
        try:
            self._inside(path)
        except ValueError as e:
            return Answer(None, f"failed: {e}")
        real = os.path.realpath(full)
        return Answer(real[len(self._real) :].encode("utf-8", "surrogateescape"))

    def run(self, argv: tuple[str, ...], deadline_s: float = 5.0) -> Answer:
        if self.root:
            return Answer(None, "absent")
        env = {}
        if argv == NVML:  # our own child: a sick driver can hang NVML
            argv, env = (sys.executable, "-m", "linkproof.collect.nvml"), {"PYTHONSAFEPATH": "1"}  # the folder we stand in is not code
        done = proc.run(argv, deadline_s=deadline_s, env=env)
        return Answer(done.out, done.why, done.code, done.took_s, done.cut)


def key(kind: str, what: str | tuple[str, ...]) -> str:
    return f"{kind} {what if isinstance(what, str) else ' '.join(what)}"


class Recorder:
    """Keeps every answer that passes."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.log: dict[str, Answer] = {}

    def _keep(self, name: str, answer: Answer) -> Answer:
        self.log[name] = answer
        return answer

    def file(self, path: str) -> Answer:
        return self._keep(key("file", path), self.host.file(path))

    def names(self, path: str) -> Answer:
        return self._keep(key("names", path), self.host.names(path))

    def link(self, path: str) -> Answer:
        return self._keep(key("link", path), self.host.link(path))

    def run(self, argv: tuple[str, ...], deadline_s: float = 5.0) -> Answer:
        return self._keep(key("run", argv), self.host.run(argv, deadline_s))


class Recorded:
    """Answers as they were. What was never asked then is `not recorded`, which is not `absent`."""

    def __init__(self, log: Mapping[str, Answer]) -> None:
        self.log = log

    def _give(self, name: str) -> Answer:
        return self.log.get(name, Answer(None, NOT_RECORDED))

    def file(self, path: str) -> Answer:
        return self._give(key("file", path))

    def names(self, path: str) -> Answer:
        return self._give(key("names", path))

    def link(self, path: str) -> Answer:
        return self._give(key("link", path))

    def run(self, argv: tuple[str, ...], deadline_s: float = 5.0) -> Answer:
        return self._give(key("run", argv))
