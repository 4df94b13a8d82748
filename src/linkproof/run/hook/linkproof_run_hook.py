"""Inside the command's Python: every model that accelerate dispatches over several GPUs is guarded.

In:      LINKPROOF_GUARD_MODE, LINKPROOF_GUARD_POLICY; LINKPROOF_GUARD_FOLDER, where this process leaves word.
Out:     one file per process there: `PID.state` says what came of it, `PID.json` holds the metrics of its guards, written anew each second
         while they change and at the end.
Unknown: what a process does after os._exit or a kill: the last second of its metrics is missing.
Raises:  into the program: what the guard raises by its policy. Nothing else: without linkproof or without a folder the program runs on.
Source:  accelerate's `big_modeling.dispatch_model` is wrapped as soon as that module is there, and before anybody can take the function out of
         it: `accelerate/__init__`, transformers' `integrations/accelerate.py` and peft's import it from there by name.

Only the standard library, and little of it: this is imported at the start of programs that have nothing to do with models.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing itself is slow to load
if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable
    from typing import Any

    from linkproof.guard.metrics import Metrics
    from linkproof.guard.watch import Guard

WRAPPED = "accelerate.big_modeling"
EACH_s = 1.0
FOLDER, MODE, POLICY = (f"LINKPROOF_GUARD_{name}" for name in ("FOLDER", "MODE", "POLICY"))


def install() -> None:
    if os.environ.get(FOLDER) and os.environ.get(MODE):
        _tell("started")
        sys.meta_path.insert(0, Waiting())


def _tell(state: str, text: str = "") -> None:
    _put(f"{os.getpid()}.state", f"{state} {text}".strip().encode())


def _put(name: str, data: bytes) -> None:
    """Whole or not at all. A folder that is gone belongs to a run that has ended: nobody is left to read it."""
    path = f"{os.environ[FOLDER]}/{name}"
    try:
        with open(path + "~", "wb") as file:  # noqa: PTH123
            file.write(data)
        os.replace(path + "~", path)  # noqa: PTH105
    except OSError:
        pass


class Waiting:
    """A finder that finds nothing itself: it sees to it that `patch` runs right after one module."""

    def find_spec(self, fullname: str, path: Any, target: Any = None, /) -> Any:
        if fullname != WRAPPED:
            return None
        sys.meta_path.remove(self)
        found = (finder.find_spec(fullname, path, target) for finder in list(sys.meta_path) if hasattr(finder, "find_spec"))
        spec: Any = next((s for s in found if s is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                patch(module)

            spec.loader.exec_module = exec_module
        return spec


def patch(module: Any) -> None:
    try:
        import linkproof.guard.policy  # noqa: F401  loads no torch
    except ImportError:
        _tell("no_linkproof", sys.executable)
        return
    import functools

    inner: Callable[..., Any] = module.dispatch_model

    @functools.wraps(inner)
    def dispatch_model(model: Any, *args: Any, **kwargs: Any) -> Any:
        watched.let_go(model)  # dispatched again: accelerate puts its own forward in place of the guard's
        out = inner(model, *args, **kwargs)
        watched.take(out if out is not None else model)
        return out

    module.dispatch_model = dispatch_model


class Watched:
    """The guards of this process, and what they last counted: a model may be gone before its program ends."""

    def __init__(self) -> None:
        self.guards: list[weakref.ref[Guard]] = []
        self.last: dict[int, Metrics] = {}
        self.pid = 0  # whose guards these are; a forked child has its own
        self.lock: Any = None

    def let_go(self, model: Any) -> None:
        for guard in [g() for g in self.guards]:
            if guard is not None and guard._model is model:
                guard.remove()

    def take(self, model: Any) -> None:
        import weakref

        from linkproof.errors import UsageError
        from linkproof.guard import guard as put_on

        try:
            guard: Guard = put_on(model, os.environ[MODE], os.environ.get(POLICY) or "heal")
        except UsageError as e:
            if e.ref != "nothing-to-guard":
                raise
            if self.pid != os.getpid():
                _tell("one_device")
            return
        if self.pid != os.getpid():
            self._begin()
        self.guards.append(weakref.ref(guard))
        _tell("guarded")
        self.write()

    def _begin(self) -> None:
        import atexit
        import threading
        from multiprocessing.util import Finalize

        self.pid, self.guards, self.last, self.lock = os.getpid(), [], {}, threading.Lock()
        atexit.register(self.write)
        Finalize(None, self.write, exitpriority=0)  # a child of multiprocessing ends without atexit
        threading.Thread(target=self._now_and_then, args=(self.pid,), name="linkproof-run", daemon=True).start()

    def _now_and_then(self, pid: int) -> None:
        from time import sleep

        while self.pid == pid:
            sleep(EACH_s)
            self.write()

    def write(self) -> None:
        if self.pid != os.getpid():
            return
        import msgspec

        with self.lock:
            new = {i: g.metrics for i, ref in enumerate(self.guards) if (g := ref()) is not None}
            if any(self.last.get(i) != m for i, m in new.items()):
                self.last.update(new)
                _put(f"{self.pid}.json", msgspec.json.encode(list(self.last.values())))


watched = Watched()
