"""How ranks compare notes: a gloo group of their own, over the host. Nothing goes over the links that are on trial.

In:      the ranks of the guarded group; words (int64) of each.
Out:     everybody's words, the same on every rank, so that all decide alike; sums and gathers by way of host memory.
Unknown: which rank is gone where the job's store is gone as well (mostly rank 0 keeps it).
Raises:  LinkFault ("rank-gone") once a rank does not answer for wait_s, or at once where its connection broke.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import re
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from linkproof.guard.ranks.words import rank_gone

I64 = NDArray[np.int64]
HEAD_W = 8
FIRST_W = 512  # words of a whole report; grows to what is needed
SIGN_S = 3.0
POLL_S = 0.2
SPIN_S = 0.01

_all_reduce, _all_gather = dist.all_reduce, dist.all_gather  # before anybody puts ears on them


_number = itertools.count()
_groups: dict[tuple[int, ...], tuple[Any, Any]] = {}  # ranks: the job's group, ours


def _host_group(ranks: Sequence[int]) -> None:
    """One for the life of the job: a second group of the same ranks would meet at the addresses that the first has left in the store."""
    world, group = _groups.get(tuple(ranks), (None, None))
    if world is not dist.group.WORLD:
        group = dist.new_group(list(ranks), backend="gloo", use_local_synchronization=True)
        _groups[tuple(ranks)] = dist.group.WORLD, group


@atexit.register
def _leave() -> None:
    """Nobody else may hold it: a gloo group whose threads are still there when the interpreter is gone ends the process with an abort."""
    for _, group in _groups.values():
        with contextlib.suppress(Exception):  # the job's end has destroyed it
            dist.destroy_process_group(group)
    _groups.clear()


class Channel:
    def __init__(self, ranks: Sequence[int], wait_s: float) -> None:
        self.ranks, self.wait_s = list(ranks), wait_s
        self.me = self.ranks.index(dist.get_rank())
        _host_group(self.ranks)
        self._width = FIRST_W
        self._store: Any = dist.distributed_c10d._get_default_store()
        self._name = f"linkproof/{','.join(map(str, self.ranks))}/{next(_number)}"  # every rank counts alike
        self.step = 0
        self._store.set(f"{self._name}/place/{self.me}", self._place())

    @property
    def group(self) -> Any:
        return _groups[tuple(self.ranks)][1]

    # ------------------------------------------------ words
    def start(self, words: Sequence[int]) -> Callable[[], I64]:
        """HEAD_W words of every rank. Sent now; the function waits for them: [ranks, HEAD_W]."""
        sent = torch.zeros(HEAD_W, dtype=torch.int64)
        sent[: len(words)] = torch.tensor(words, dtype=torch.int64)
        out = torch.empty(len(self.ranks), HEAD_W, dtype=torch.int64)
        with self._gone():
            work = _all_gather(list(out), sent, group=self.group, async_op=True)

        def wait() -> I64:
            with self._gone():
                self._wait(work)
            heard: I64 = out.numpy()
            return heard

        return wait

    def heads(self, words: Sequence[int]) -> I64:
        return self.start(words)()

    def reports(self, words: I64) -> list[I64]:
        """As many words as each rank has; one exchange, but where somebody's report has grown."""
        while True:
            sent = np.zeros(self._width, np.int64)
            sent[0] = len(words)
            fits = words[: self._width - 1]
            sent[1 : 1 + len(fits)] = fits
            out = torch.empty(len(self.ranks), self._width, dtype=torch.int64)
            with self._gone():
                self._wait(_all_gather(list(out), torch.from_numpy(sent), group=self.group, async_op=True))
            rows: I64 = out.numpy()
            most = int(rows[:, 0].max())
            if most < self._width:
                return [row[1 : 1 + int(row[0])] for row in rows]
            self._width = 1 << most.bit_length()

    # ------------------------------------------------ tensors
    def all_reduce(self, t: torch.Tensor, op: Any) -> None:
        """In place."""
        host = t.detach().to("cpu", copy=True).contiguous()
        with self._gone():
            self._wait(_all_reduce(host, op, group=self.group, async_op=True))
        with torch.no_grad():
            t.copy_(host)

    def all_gather(self, t: torch.Tensor) -> list[torch.Tensor]:
        """On t's device."""
        host = t.detach().cpu().contiguous()
        out = [torch.empty_like(host) for _ in self.ranks]
        with self._gone():
            self._wait(_all_gather(out, host, group=self.group, async_op=True))
        return [o.to(t.device) for o in out]

    def _wait(self, work: Any) -> None:
        work.wait(timedelta(seconds=self.wait_s))

    # ------------------------------------------------ who is there
    def wait_for(self, done: Callable[[], bool]) -> None:
        """Until the GPU is through. A collective that waits for a rank that is gone would keep us for hours."""
        began = time.monotonic()
        while not done():
            waited = time.monotonic() - began
            if waited > SPIN_S:
                time.sleep(0.0005 if waited < POLL_S else POLL_S)
            if waited > POLL_S and (failed := self._failed()):
                raise rank_gone(failed, "it has left the forward by an error of its own")
            if waited > self.wait_s:
                raise self.lost(f"the GPU has waited {waited:.0f} s for a collective")

    def left(self) -> None:
        """This rank leaves the forward by an error of its own: tell those who wait."""
        with contextlib.suppress(Exception):  # no store, nobody to tell
            self._store.set(f"{self._name}/failed/{self.step}/{self.me}", "1")

    def lost(self, error: BaseException | str) -> Exception:
        """gloo begins with the place in its source and ends with advice."""
        text = re.sub(r"^\[\S+:\d+\] ", "", str(error).splitlines()[0]) if str(error) else type(error).__name__
        return rank_gone(self._silent(), text.split(". ")[0][:200])

    def _failed(self) -> list[int]:
        with contextlib.suppress(Exception):
            return [
                rank for i, rank in enumerate(self.ranks) if i != self.me and self._store.check([f"{self._name}/failed/{self.step}/{i}"])
            ]
        return []

    def _silent(self) -> list[int]:
        """Whose process is gone, where this machine can see it; else who does not answer: all who find the channel broken sign in the job's store."""
        others = set(range(len(self.ranks))) - {self.me}
        missing = set(others)
        ends_at = time.monotonic() + SIGN_S
        with contextlib.suppress(Exception):  # the store went with its rank
            self._store.set(f"{self._name}/here/{self.me}", "1")
            while missing and time.monotonic() < ends_at:
                dead = [i for i in others if self._dead(self._store.get(f"{self._name}/place/{i}").decode())]
                if dead:
                    missing = set(dead)
                    break
                missing -= {i for i in missing if self._store.check([f"{self._name}/here/{i}"])}
                time.sleep(0.05)
            return [self.ranks[i] for i in sorted(missing)]
        return []

    @staticmethod
    def _place() -> str:
        """A process as others on this machine see it; "" where they cannot."""
        with contextlib.suppress(OSError):
            return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()} {os.getpid()}"
        return ""

    def _dead(self, place: str) -> bool:
        """Seen to be dead; False for one on another machine."""
        *where, pid = place.split(" ")
        if not pid or where != self._place().split(" ")[:-1]:
            return False
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True

    @contextlib.contextmanager
    def _gone(self) -> Any:
        try:
            yield
        except RuntimeError as e:  # gloo: connection closed, or nobody came in time
            raise self.lost(e) from e
