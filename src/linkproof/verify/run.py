"""The caller's side of `verify`: one process that holds the models, with a deadline; a second one if the first was killed by what it met.

In:      what `linkproof verify` takes.
Out:     Verified. A crash, a hang or a lost GPU is a Failed in it, beside everything that had been learned before.
Raises:  UsageError and LinkproofError for what the person can mend. Ctrl-C ends the process with the models.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

from linkproof import proc
from linkproof.errors import LinkproofError
from linkproof.probe.workers.endings import last_words, signal_name
from linkproof.probe.workers.wire import Garbage, Gone, Line
from linkproof.verified import Doing, Fact, Failed, Hops, Message, Over, Ranks, Refused, Subject, Verified
from linkproof.verify.judge import judged
from linkproof.verify.task import Task, checked

DEADLINE_S = 3600.0
Tell = Callable[[Doing], None]


def verify(
    model: str,
    *,
    devices: str = "cuda",
    stages: int = 0,
    device_map: str = "even",
    prompts: Sequence[str] = (),
    new: int = 8,
    sample: bool = True,
    seed: int = 0,
    dtype: str = "auto",
    faults: Sequence[str] = (),
    tp: int = 0,
    deadline_s: float = DEADLINE_S,
    tell: Tell = lambda doing: None,
) -> Verified:
    """The same prompts on one device and split; who lied, if they differ.

    model       a folder, a hub id, or one of `linkproof.verify.shapes.SHAPES` (random weights, cut to fit)
    devices     "cuda", "cuda:0,2" or "virtual:4"; stages: of these, 0 for all; device_map: "even", "auto" or a JSON file
    new         tokens that each prompt is answered with; sample: by sampling from `seed` as well as greedily
    faults      on virtual devices, as `zero,pairs=0->1`
    tp          ranks of tensor parallel, 0: none; deadline_s: of each process, in seconds
    """
    begun = time.monotonic()
    task = checked(
        Task(model=model, devices=devices, stages=stages, device_map=device_map, prompts=tuple(prompts), new=new, sample=sample, seed=seed,
             dtype=dtype, faults=tuple(faults))
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="linkproof-verify-") as folder:
        import msgspec

        facts = list(
            _facts(msgspec.structs.replace(task, save=folder if tp and _is_shape(model) else "", ranks=max(1, tp)), deadline_s, tell)
        )
        if _killed_untold(facts):
            again = _facts(msgspec.structs.replace(task, strict=True), deadline_s, tell)
            facts += [f for f in again if isinstance(f, Hops)]
        ranks = _tensor_parallel(task, tp, facts) if tp else None
    return judged(facts, ranks, time.monotonic() - begun)


def _is_shape(model: str) -> bool:
    from linkproof.verify.shapes import SHAPES

    return model in SHAPES


def _killed_untold(facts: Sequence[Fact]) -> bool:
    """Something ended the split model, and no hop was told before."""
    hops = [f for f in facts if isinstance(f, Hops)]
    return any(isinstance(f, Failed) and f.side == "split" for f in facts) and not any(h.bad for h in hops)


# ---------------------------------------------------------------- one process


def _facts(task: Task, deadline_s: float, tell: Tell) -> Iterator[Fact]:
    """Raises LinkproofError if it refused."""
    mark = f"{os.getpid()}-{secrets.token_hex(8)}"
    ours, theirs = socket.socketpair()
    until = time.monotonic() + deadline_s
    doing = Doing(text="", done=0, total=0)
    with tempfile.TemporaryFile() as printed, ours:
        argv = [sys.executable, "-m", "linkproof.verify.child", str(theirs.fileno()), str(os.getpid())]
        child = proc.start(argv, pass_fds=(theirs.fileno(),), env={proc.MARK: mark, **_env(task.model)}, out=printed.fileno())
        theirs.close()
        line = Line(ours)
        ended = Failed(arm=doing.text, side="", error="", text="")
        try:
            line.send(task)
            while True:
                fact = line.receive(Message, max(0.0, until - time.monotonic())).fact
                if isinstance(fact, Over):
                    return
                if isinstance(fact, Refused):
                    error = LinkproofError(fact.ref, fact.what, fact.means, fact.do)
                    error.exit_code = fact.exit_code
                    raise error
                if isinstance(fact, Doing):
                    doing = fact
                    tell(fact)
                yield fact
        except TimeoutError:
            ended = _ended(doing, "Hung", f"no answer after {deadline_s:g} s")
        except (Gone, Garbage):
            with contextlib.suppress(Exception):
                child.wait(10.0)
            code = child.returncode
            how = signal_name(-code) if code is not None and code < 0 else f"exit code {code}"
            printed.seek(0)
            ended = _ended(doing, how, " ".join(last_words(printed.read(1 << 20)).split()))
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            proc.sweep(mark)
            with contextlib.suppress(Exception):
                child.wait(proc.AFTER_KILL_S)
        yield ended


def _env(model: str) -> dict[str, str]:
    """The network is for hub ids only. The folder we stand in is not code."""
    offline = {"HF_HUB_OFFLINE": "1"} if _is_shape(model) or os.path.isdir(model) else {}  # noqa: PTH112
    return {"PYTHONSAFEPATH": "1", **offline}


def _ended(doing: Doing, error: str, text: str) -> Failed:
    """A process that a kill from outside or the kernel's want of memory has ended speaks against nobody."""
    side = "split" if "split" in doing.text and error != "SIGKILL" else "reference"
    return Failed(arm=doing.text, side=side, error=error, text=text)


def _tensor_parallel(task: Task, ranks: int, facts: Sequence[Fact]) -> Ranks:
    from linkproof.verify_ranks import tensor_parallel

    subject = next((f for f in facts if isinstance(f, Subject)), None)
    if subject is None or not subject.folder:
        return _untested(ranks, "the model could not be made")
    if any(heads % ranks for heads in subject.heads):
        return _untested(ranks, "its {heads} heads cannot be divided among {ranks} ranks", heads=" / ".join(map(str, subject.heads)))
    device = "cpu" if task.virtual else "cuda"
    got = tensor_parallel(subject.folder, [list(p) for p in subject.prompts], task.new, ranks, subject.dtype, task.seed, device)
    return Ranks(
        ranks=ranks,
        state=got.state,
        tokens=tuple(map(tuple, got.tokens)),
        logit_distance=got.logit_distance,
        weights_bad=tuple(got.weights_bad),
        odd_rank=got.odd_rank,
        why=got.why_template,
        why_args=got.why_args,
        parted=got.state == "differs" and "distance" in got.why_args,  # the one difference that is told as a distance
    )


def _untested(ranks: int, template: str, /, **args: str) -> Ranks:
    return Ranks(ranks, "not_tested", (), None, (), None, template, {**args, "ranks": str(ranks)})
