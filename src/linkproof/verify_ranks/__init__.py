"""A model split over ranks by transformers' own tensor parallel, against the same model on one device. This side knows no torch.

    result = tensor_parallel("/models/qwen3-8b", [[1, 2, 3]], new=8, ranks=2, dtype="bfloat16", seed=0, device="cuda")

In:      a local checkpoint folder (a built-in shape is saved to one first), prompts as token ids, how many ranks.
Out:     RanksResult.
Unknown: tensors that the loader renames, merges or converts are compared with no file: their number is told. Whether a distance of the logits
         is more than another order of additions can make is for the caller to judge.
Raises:  nothing of what happens in a rank: a rank that dies, hangs or cannot load is a result, and no process stays behind.

    rank.py     one rank, `python -m linkproof.verify_ranks.rank FOLDER RANK FD`; rank 0 runs the model alone before it joins the others
    shards.py   each rank's part of every tensor against the files
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen

import msgspec
from msgspec import Struct, field

from linkproof import proc

DEADLINE_S = 600.0
GRACE_S = 10.0  # for the others, once a rank has ended
POLL_S = 0.05
PRINTED_B = 4000
RANK = (sys.executable, "-m", "linkproof.verify_ranks.rank")


class RanksResult(Struct, frozen=True):
    """state: agrees, differs, died (or hung), not_tested. tokens: per prompt, as rank 0 generated them.

    logit_distance: the largest difference of any logit from the run on one device, over all steps up to the first other token; infinite for NaN.
    weights_bad: "rank 1: NAME" for each part that is not what the file holds. weights_compared, weights_unknown: tensors of one rank.
    odd_rank: the one that lied, died or holds a bad part, None if there is none or it cannot be told.
    why: in English; why_template and why_args say the same for the catalogue of translations.
    """

    state: str
    tokens: list[list[int]] = field(default_factory=list)
    logit_distance: float | None = None
    weights_bad: list[str] = field(default_factory=list)
    odd_rank: int | None = None
    why: str = ""
    why_template: str = ""
    why_args: dict[str, str] = field(default_factory=dict)
    weights_compared: int = 0
    weights_unknown: int = 0


class RankTask(Struct, frozen=True):
    """What every rank reads from task.json."""

    model: str
    prompts: list[list[int]]
    new: int
    ranks: int
    dtype: str
    seed: int
    device: str
    deadline_s: float


class Lied(Struct, frozen=True):
    """An event of the guard, in both languages."""

    ranks: list[int]
    what: str
    what_zh: str


class RankSaid(Struct, frozen=True):
    """What a rank leaves in said.N.json. error: what ended it; loaded: whether the model had been split by then."""

    rank: int
    tokens: list[list[int]] = field(default_factory=list)
    alone: list[list[int]] | None = None
    logit_distance: float | None = None
    weights_bad: list[str] = field(default_factory=list)
    weights_compared: int = 0
    weights_unknown: int = 0
    lied: list[Lied] = field(default_factory=list)
    error: str = ""
    loaded: bool = False
    gone: bool = False  # the error is that another rank does not answer


def tensor_parallel(
    model_dir: str,
    prompts: list[list[int]],
    new: int,
    ranks: int,
    dtype: str,
    seed: int,
    device: str = "cpu",
    deadline_s: float = DEADLINE_S,
) -> RanksResult:
    """Load, check the weights, generate greedily, compare. model_dir: a local checkpoint folder, no name of a shape or of a hub.

    Shape    prompts: token ids, one batch of one each; `new` tokens are generated for each.   dtype: a name of torch, such as "bfloat16"
    Device   "cpu" (gloo) or "cuda" (NCCL, one GPU per rank)
    Errors   none; deadline_s, in seconds, holds for everything together, loading included
    """
    if ranks < 2:
        return _result("not_tested", "one rank is nothing to compare")
    with tempfile.TemporaryDirectory(prefix="linkproof-ranks-") as folder:
        task = RankTask(str(Path(model_dir).resolve()), prompts, new, ranks, dtype, seed, device, deadline_s)
        (Path(folder) / "task.json").write_bytes(msgspec.json.encode(task))
        codes, hung = _run(task, folder)
        said = [_said(folder, rank) for rank in range(ranks)]
        return _judged(task, said, codes, hung, folder)


def _run(task: RankTask, folder: str) -> tuple[list[int | None], bool]:
    """Exit codes, None for one that had to be ended; whether time was up."""
    mark = uuid.uuid4().hex
    env = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // task.ranks)), proc.MARK: mark}
    if task.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    children: list[Popen[bytes]] = []
    lines: list[socket.socket] = []
    try:
        for rank in range(task.ranks):
            ours, theirs = socket.socketpair()
            lines.append(ours)  # its closing tells the rank to go, should we be killed
            with theirs, (Path(folder) / f"printed.{rank}").open("wb") as out:
                argv = [*RANK, folder, str(rank), str(theirs.fileno())]
                children.append(proc.start(argv, pass_fds=(theirs.fileno(),), env=env, out=out.fileno()))
        ends_at = time.monotonic() + task.deadline_s
        left = False
        while any(child.poll() is None for child in children) and time.monotonic() < ends_at:
            if not left and any(child.poll() is not None for child in children):
                left, ends_at = True, min(ends_at, time.monotonic() + GRACE_S)
            time.sleep(POLL_S)
        codes = [child.poll() for child in children]
        return codes, not left and None in codes
    finally:
        proc.sweep(mark)
        for child in children:
            child.kill()
            child.wait(proc.AFTER_KILL_S)
        for line in lines:
            line.close()


def _said(folder: str, rank: int) -> RankSaid | None:
    try:
        return msgspec.json.decode((Path(folder) / f"said.{rank}.json").read_bytes(), type=RankSaid)
    except (OSError, msgspec.MsgspecError):
        return None


def _last_words(folder: str, rank: int) -> str:
    data = (Path(folder) / f"printed.{rank}").read_bytes()[-PRINTED_B:].decode(errors="replace")
    return next((line.strip() for line in reversed(data.splitlines()) if line.strip()), "")


# ---------------------------------------------------------------- verdict


def _result(state: str, template: str, so_far: RanksResult | None = None, /, odd_rank: int | None = None, **args: object) -> RanksResult:
    values = {name: str(value) for name, value in args.items()}
    said = {"state": state, "odd_rank": odd_rank, "why": template.format_map(values), "why_template": template, "why_args": values}
    return msgspec.structs.replace(so_far or RanksResult(state), **said)


def _judged(task: RankTask, said: Sequence[RankSaid | None], codes: Sequence[int | None], hung: bool, folder: str) -> RanksResult:
    told = [s for s in said if s is not None]
    bad = [f"rank {s.rank}: {name}" for s in told for name in s.weights_bad]
    first = said[0] or RankSaid(0)
    so_far = RanksResult(
        "",
        first.tokens,
        first.logit_distance,
        bad,
        weights_compared=first.weights_compared,
        weights_unknown=first.weights_unknown,
    )
    ended = _ended(said, codes, hung, task, folder, so_far)
    if ended is not None:
        return ended
    lied = next((event for s in told for event in s.lied), None)
    if lied is not None:
        odd = lied.ranks[0] if len(lied.ranks) == 1 else None
        return _result("differs", "a collective went wrong: {what}", so_far, odd_rank=odd, what=lied.what, what_zh=lied.what_zh)
    if bad:
        holders = sorted({s.rank for s in told if s.weights_bad})
        odd = holders[0] if len(holders) == 1 else None
        return _result(
            "differs", "{count} parts are not what the checkpoint holds, first {first}", so_far, odd, count=len(bad), first=bad[0]
        )
    counts = Counter(str(s.tokens) for s in told)
    if len(counts) > 1:
        (most, n), *others = counts.most_common()
        strange = [s.rank for s in told if str(s.tokens) != most]
        odd = strange[0] if len(strange) == 1 and n > others[0][1] else None
        return _result("differs", "the ranks generated different tokens", so_far, odd)
    if first.alone is None:
        return _result("not_tested", "all ranks hold the same, but the model does not run on one device alone to compare with", so_far)
    if first.tokens != first.alone:
        template = "the ranks agree, and generated other tokens than one device did; the logits are up to {distance} apart before that"
        return _result("differs", template, so_far, distance=f"{first.logit_distance:.3g}")
    template = "{compared} tensors of each rank are what the checkpoint holds, {unknown} are in no file as they are loaded"
    return _result("agrees", template, so_far, compared=first.weights_compared, unknown=first.weights_unknown)


def _ended(
    said: Sequence[RankSaid | None], codes: Sequence[int | None], hung: bool, task: RankTask, folder: str, so_far: RanksResult
) -> RanksResult | None:
    """A rank that did not come to its end. Whose error is that others do not answer is not the one."""
    silent = [r for r, s in enumerate(said) if s is None]
    failed = [s for s in said if s is not None and s.error]
    if hung:
        waiting = " ".join(str(r) for r in silent)
        return _result("died", "no answer after {limit} s from rank {ranks}", so_far, limit=f"{task.deadline_s:g}", ranks=waiting)
    fell = [r for r in silent if codes[r] is not None]
    if fell:
        how, odd = codes[fell[0]], fell[0] if len(fell) == 1 else None
        words = _last_words(folder, fell[0])
        if how is not None and how < 0:
            return _result("died", "rank {rank} was ended by signal {signal}", so_far, odd, rank=fell[0], signal=-how)
        return _result("died", "rank {rank} ended with code {code}: {words}", so_far, odd, rank=fell[0], code=how, words=words)
    if any(s is not None and s.lied for s in said):
        return None
    own = [s for s in failed if not s.gone] or failed
    if not own:
        return _result("died", "rank {ranks} was left waiting", so_far, ranks=" ".join(map(str, silent))) if silent else None
    if not any(s.loaded for s in own):
        return _result("not_tested", "the model cannot be split over {ranks} ranks: {error}", so_far, ranks=task.ranks, error=own[0].error)
    if len(own) == task.ranks:  # as a model does that cannot be split like this
        return _result("not_tested", "every rank stopped by itself: {error}", so_far, error=own[0].error)
    odd = own[0].rank if len(own) == 1 else None
    return _result("died", "rank {rank} stopped: {error}", so_far, odd, rank=own[0].rank, error=own[0].error)
