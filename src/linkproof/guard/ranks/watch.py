"""The guard around a model whose layers are split over ranks (tensor parallel): `linkproof.guard(model)`, on every rank.

In:      a model loaded with tp_plan="auto" under torch.distributed (`guard` sees it by its parameters), or any model that makes collectives
         in its forward (`guard_ranks`), a mode and a policy (policy.py), the same on every rank.
Out:     RankGuard: context manager and plain object; `events` (RankEvent), `metrics`, `demoted`, `remove()`.
Unknown: see ears.py, judge.py and sum.py. If one rank alone raises in its forward, it is not run again: the others wait in
         a collective, and only a GPU's waiting can be left (`rank-gone`); gloo's ends when the process does.
Raises:  UsageError if there is one rank only, or the ranks ask for different guards; LinkFault on every rank alike.
Source:  modes. `deferred`: all collectives of a forward are compared at its end, before anything of it is released; a lie cuts the KV cache back
         and runs the forward again with every collective of this group through host memory (gloo), from then on. `strict`: each collective is
         compared before it is used, and made again over the host from what went in. `stage`, `sampled`, `observe` as in policy.py.
         Ranks that are fed with different tokens cannot be mended from here, since some have released the wrong one: raised, whatever the policy,
         but for `warn` and `observe`.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import logging
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from types import TracebackType
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from linkproof.guard import policy as policies
from linkproof.guard.policy import Event, Policy
from linkproof.guard.ranks import ears as ranks_ears
from linkproof.guard.ranks import words as ranks_words
from linkproof.guard.ranks.channel import Channel
from linkproof.guard.ranks.judge import CODES, Found
from linkproof.guard.ranks.session import AGREED, GENERATED, RankSession, Record, signed
from linkproof.guard.ranks.words import PARTED, RankEvent
from linkproof.guard.watch import EVENTS_KEPT, FIRST_FORWARDS, Guard, _is_prompt, _worth_a_line

log = logging.getLogger("linkproof.guard")
WAIT_S = 300.0
FED = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")


def guard_ranks(
    model: torch.nn.Module, mode: str = "deferred", policy: Policy = "heal", every: int = 16, group: Any = None, wait_s: float = WAIT_S
) -> RankGuard:
    """Guard a model from now on; every rank of the group calls it. group: None is all ranks. wait_s: for a rank that does not answer."""
    return RankGuard(model, mode, policy, every, group, wait_s)


def group_of(model: torch.nn.Module) -> Any:
    """The group whose ranks each hold a part of every layer; None if there is none (sharded for data parallel is another thing)."""
    for mesh in (getattr(model, "_device_mesh", None), *(getattr(p, "device_mesh", None) for p in model.parameters())):
        if mesh is None:
            continue
        names = mesh.mesh_dim_names
        if names and "tp" in names:
            return mesh.get_group("tp")
        if names is None and mesh.ndim == 1:
            return mesh.get_group()
    return None


class RankGuard(Guard):
    def __init__(
        self,
        model: torch.nn.Module,
        mode: str = "deferred",
        policy: Policy = "heal",
        every: int = 16,
        group: Any = None,
        wait_s: float = WAIT_S,
    ) -> None:
        ranks = dist.get_process_group_ranks(group if group is not None else dist.group.WORLD)
        if len(ranks) < 2:
            raise ranks_words.nothing_to_compare()
        self.name = ranks_words.named(ranks)
        channel = Channel(ranks, wait_s)
        super().__init__(model, mode, policy, every)
        self._session = RankSession(self, channel)
        self._counts.append(self._session.counts)
        self._mending: list[tuple[RankEvent, Found]] = []
        self._warned = 0
        self._told_quiet = False
        try:
            self._asked_alike()
        except BaseException:
            self.remove()
            raise

    # ------------------------------------------------ on and off
    def _places(self, model: torch.nn.Module) -> tuple[torch.device, ...]:
        return tuple({p.device for p in model.parameters()})

    def _listen(self) -> None:
        ranks_ears.hold()

    def _deafen(self) -> None:
        ranks_ears.release()

    def __enter__(self) -> RankGuard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    @property
    def demoted(self) -> tuple[str, ...]:
        """The group, once its collectives go through host memory because one lied."""
        return (self.name,) if self._session.staged and not self.mode.staged else ()

    def _asked_alike(self) -> None:
        chosen = self.policy if isinstance(self.policy, str) else "a function"
        text = f"mode={self.mode.name!r}, policy={chosen!r}, every={self.every}"
        rows = self._session.channel.heads([AGREED, 0, zlib.crc32(text.encode())])
        if len({int(row[2]) for row in rows}) > 1:
            raise ranks_words.settings_differ(text)

    # ------------------------------------------------ around generate and forward
    def _covered(self, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """All ranks must have generated the same."""
        session = self._session
        try:
            out = inner(*args, **kwargs)
        except BaseException:
            session.channel.left()
            raise
        if not session.in_forward:
            ids = out if isinstance(out, torch.Tensor) else getattr(out, "sequences", None)
            if isinstance(ids, torch.Tensor):
                session.tell_inputs([ids], GENERATED)
                session.inputs_agree()
        return out

    def _forward(self, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        session = self._session
        if session.in_forward:  # the model calls itself
            return inner(*args, **kwargs)
        before, ranks_ears.local.session = ranks_ears.local.session, session
        try:
            return self._run_ranks(session, inner, args, kwargs)
        finally:
            session.end()
            ranks_ears.local.session = before

    def _run_ranks(self, session: RankSession, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        began = perf_counter()
        step = next(self._steps)
        session.counts.forwards += 1
        checks = not self.mode.sampled or step < FIRST_FORWARDS or step % self.every == 0 or _is_prompt(args, kwargs)
        undo = self._undo(args, kwargs) if checks else None
        strict = checks and (self.mode.strict or (undo is None and self.mode.changes))
        session.begin(step, strict, checks)
        session.tell_inputs(_fed(args, kwargs))
        session.counts.overhead_s += perf_counter() - began
        while True:
            try:
                out = inner(*args, **kwargs)
            except policies.LinkFault:
                raise
            except Exception as e:
                session.channel.left()
                if session.broken:
                    session.broken = False
                    raise session.channel.lost(e) from e
                raise
            began = perf_counter()
            found = session.settle()
            session.counts.overhead_s += perf_counter() - began
            if not found:
                self.mended(session.records)
                self._heard_something(session)
                return out
            if self.judged(found, session, session.records) != "heal":
                return out
            assert undo is not None  # without one, strict
            del out
            if undo.inputs_changed():
                raise policies.cannot_rerun(
                    tuple(event for event, _ in self._mending), ("the model writes into its own inputs", "模型会改写自己的输入")
                )
            session.counts.reruns += 1
            undo.restore()
            session.begin(step, strict, checks)

    def _heard_something(self, session: RankSession) -> None:
        if not session.counts.hops and not self._told_quiet:
            self._told_quiet = True
            log.warning("guard: this forward made no collective that is heard here, so nothing of it was compared")

    # ------------------------------------------------ when the ranks do not hold the same
    def judged(self, found: Sequence[Found], session: RankSession, records: Sequence[Record] = ()) -> str:  # type: ignore[override]
        """What is to be done, the same on every rank. Raises LinkFault. `heal`: the group goes through host memory from now on."""
        events = [self._event(f, session, records) for f in found]
        wanted = [policies.action(self.mode, self.policy, e) for e in events]
        answer = ranks_words.strictest(session.agreed(max(map(ranks_words.code, wanted))))
        if answer == "heal" and events[0].kind in PARTED:
            answer = "raise"
        events = [msgspec.structs.replace(e, action=answer) for e in events]
        session.counts.mismatches += len(events)
        for event in events:
            if event.collective:
                session.counts.link(event.link).mismatches += 1
        with self._lock:
            self.events.extend(events)
        if answer == "raise":
            raise ranks_words.rank_lied(events)
        if answer == "warn":
            for event in events:
                self._warned += 1
                if _worth_a_line(self._warned):
                    self.tell(event, self._warned)
            return answer
        if session.staged:
            raise ranks_words.host_sum_lied(events)
        session.staged = True
        self._mending = list(zip(events, found, strict=True))
        return answer

    def mended(self, records: Sequence[Record]) -> None:
        """The collectives were right over the host, and that tells whose result was not where digests alone could not."""
        mending, self._mending = self._mending, []
        for place, (event, found) in enumerate(mending):
            record = next((r for r in records if r.number == found.number), None)
            better = event
            if (
                place == 0 and not event.ranks and record is not None and found.digests and found.kind in CODES
            ):  # later ones had other inputs
                right = [i for i, d in enumerate(found.digests) if d == signed(record.digests[0])]
                if 0 < len(right) < len(found.digests):
                    odd = tuple(self._session.channel.ranks[i] for i in range(len(found.digests)) if i not in right)
                    better = msgspec.structs.replace(event, ranks=odd)
                    with self._lock:
                        self.events = deque((better if e is event else e for e in self.events), maxlen=EVENTS_KEPT)
            if place == 0:  # one line for a forward: the others are in `events`
                self.tell(better, len(mending))

    def tell(self, event: Event, times: int = 1) -> None:
        """By the first rank; the others know the same."""
        if self._session.channel.me == 0 and isinstance(event, RankEvent):
            done = {"heal": f"mended; {self.name} go through host memory from now on", "warn": "left as it is"}[event.action]
            log.warning("guard: %s; %d of that kind so far: %s" if event.action == "warn" else "guard: %s; %d collectives of this forward: %s",
                        ranks_words.said(event)[0], times, done)  # fmt: skip

    def _event(self, found: Found, session: RankSession, records: Sequence[Record]) -> RankEvent:
        record = next((r for r in records if r.number == found.number), None)
        return RankEvent(
            link=f"{self.name} {record.name}" if record else self.name,
            step=session.step if found.step is None else found.step,
            hop=found.number,
            size_B=record.size_B if record else 0,
            dtype=str(record.made.dtype).removeprefix("torch.") if record else "",
            shape=record.shape if record else (),
            kind=found.kind,
            action="",
            staged=record.staged if record else False,
            ranks=tuple(session.channel.ranks[i] for i in found.odd),
            collective=record.name if record else "",
        )


def _fed(args: Any, kwargs: Any) -> list[torch.Tensor]:
    """What every rank must be fed with alike."""
    given = [*args[:1], *(kwargs.get(name) for name in FED)]
    return [t for t in given if isinstance(t, torch.Tensor)]
