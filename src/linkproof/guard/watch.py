"""The guard around a model that is split over several GPUs: `linkproof.guard(model)`.

In:      a model on two accelerator devices or more (dispatched by accelerate, or split by hand), a mode and a policy (policy.py).
Out:     Guard: context manager and plain object; `events`, `metrics`, `demoted`, `remove()`.
Unknown: what a model keeps outside its KV cache; copies that a call from outside `forward` and `generate` makes (`with` covers those).
         accelerate's `dispatch_model`, called again, puts its own forward in place of ours: guard the model after it.
Raises:  UsageError if there is nothing to guard; LinkFault as the policy says, or if nothing helps.
Source:  the forward is compared at its own end, not a step later: one wait per forward, and no token leaves that a lie has touched. A step's
         lag would save that wait and hand out each token before it is known to be right, unless streamers and stop checks lag as well.

A forward that was lied to is run again with the links that lied going through host memory: KV cache cut back, random numbers as before.
Where the cache cannot be put back (undo.py), that forward is compared hop by hop, as in `strict`.
With the policy `heal` small hops are read at the end of the forward (session.py). What they say is a suspicion until the forward, run again
in any case, has confirmed it; a model that writes into what crosses is noticed by that, accuses nobody, and is read at each hop afterwards.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import msgspec
import torch

from linkproof.errors import UsageError
from linkproof.guard import policy as policies
from linkproof.guard.classify import Damage
from linkproof.guard.copies import Border, Link, is_gpu, local
from linkproof.guard.ears import hold, release
from linkproof.guard.hops import Bad
from linkproof.guard.metrics import Counts, Metrics, total
from linkproof.guard.policy import Event, Policy
from linkproof.guard.session import Session
from linkproof.guard.undo import CannotUndo, Undo

log = logging.getLogger("linkproof.guard")
FIRST_FORWARDS = 16  # of `sampled`, all of them compared
EVENTS_KEPT = 1000


def guard(model: torch.nn.Module, mode: str = "deferred", policy: Policy = "heal", every: int = 16) -> Guard:
    """Guard a model from now on. every: of `sampled`, each k-th forward is compared. Split over ranks: each of them calls this (ranks/)."""
    if any(
        hasattr(p, "device_mesh") or hasattr(p, "_device_mesh") for p in (model, *model.parameters())
    ):  # only then torch.distributed is needed
        from linkproof.guard.ranks import watch as ranks

        group = ranks.group_of(model)
        if group is not None:
            return ranks.guard_ranks(model, mode, policy, every, group)
    return Guard(model, mode, policy, every)


class Guard:
    def __init__(self, model: torch.nn.Module, mode: str = "deferred", policy: Policy = "heal", every: int = 16) -> None:
        self.mode, self.policy, self.every = policies.mode_named(mode), policies.checked(policy), max(1, every)
        self.devices = self._places(model)
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._links: dict[tuple[torch.device, torch.device, Border | None], Link] = {}
        self._counts: list[Counts] = []
        self._gone = Counts()  # of threads that have ended
        self._lock = threading.Lock()
        self._local = threading.local()
        self._steps = itertools.count()
        self._before: list[Session | None] = []
        self._told_strict = False
        self.reads_late = self.mode.changes and not self.mode.strict and policy == "heal"
        self._on = True
        _not_compiled()
        self._listen()
        self._model = model
        self._inner: dict[str, tuple[Any, Any]] = {}  # name: (ours, what stood there or None)
        self._wrap("forward", self._forward)
        if hasattr(model, "generate"):
            self._wrap("generate", self._covered)

    # ------------------------------------------------ on and off
    def __enter__(self) -> Guard:
        self._before.append(local.session)
        local.session = self.session()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        local.session = self._before.pop()
        self.remove()

    def remove(self) -> None:
        """As it was before. May be called twice."""
        if not self._on:
            return
        self._on = False
        for name, (ours, before) in self._inner.items():
            if self._model.__dict__.get(name) is ours:  # else somebody has put something around us: then we let everything through
                if before is None:
                    delattr(self._model, name)
                else:
                    setattr(self._model, name, before)
        self._deafen()
        if self.metrics.counts.forwards:
            log.info("%s", self.metrics.line())

    def _places(self, model: torch.nn.Module) -> tuple[torch.device, ...]:
        return _devices(model)

    def _listen(self) -> None:
        hold()

    def _deafen(self) -> None:
        release()

    def _wrap(self, name: str, through: Callable[..., Any]) -> None:
        inner, before = getattr(self._model, name), self._model.__dict__.get(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return through(inner, args, kwargs) if self._on else inner(*args, **kwargs)

        ours = torch.compiler.disable(functools.update_wrapper(call, inner), recursive=False)  # type: ignore[no-untyped-call]
        self._inner[name] = ours, before
        setattr(self._model, name, ours)

    # ------------------------------------------------ what is known
    @property
    def metrics(self) -> Metrics:
        with self._lock:
            return Metrics(self.mode.name, total([self._gone, *self._counts]), self.demoted)

    @property
    def demoted(self) -> tuple[str, ...]:
        """Links that lied and are replaced by host memory."""
        return tuple(sorted(link.name for link in list(self._links.values()) if link.staged))

    def link(self, src: torch.device, dst: torch.device, border: Border | None = None) -> Link:
        found = self._links.get((src, dst, border))
        return found or self._links.setdefault((src, dst, border), Link(src, dst, border))

    def session(self) -> Session:
        """This thread's."""
        found: Session | None = getattr(self._local, "session", None)
        if found is None:
            found = self._local.session = Session(self)
            with self._lock:
                self._counts.append(found.counts)
            weakref.finalize(found, _fold, weakref.ref(self), found.counts).atexit = False
        return found

    def fold(self, counts: Counts) -> None:
        """Its thread has ended."""
        with self._lock:
            self._counts = [c for c in self._counts if c is not counts]
            self._gone.add(counts)

    # ------------------------------------------------ around generate and forward
    def _covered(self, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What is copied between forwards (beams, inputs) is compared before it is used."""
        before, local.session = local.session, self.session()
        try:
            return inner(*args, **kwargs)
        finally:
            local.session = before

    def _forward(self, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        session = self.session()
        if session.in_forward:  # the model calls itself
            return inner(*args, **kwargs)
        if any(d.type == "cuda" for d in self.devices) and torch.cuda.is_current_stream_capturing():
            raise policies.in_capture()
        before, local.session = local.session, session
        try:
            return self._run(session, inner, args, kwargs)
        finally:
            session.end()
            local.session = before

    def _run(self, session: Session, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        began = perf_counter()
        step = next(self._steps)
        session.counts.forwards += 1
        checks = not self.mode.sampled or step < FIRST_FORWARDS or step % self.every == 0 or _is_prompt(args, kwargs)
        undo = self._undo(args, kwargs) if checks or session.shares else None
        strict = checks and (self.mode.strict or (undo is None and self.mode.changes))
        if undo is None:
            session.shares = False
        session.counts.overhead_s += perf_counter() - began
        first: list[Event] = []
        again = False
        while True:
            session.begin(step, strict, checks, again)
            error: Exception | None = None
            out = None
            try:
                out = inner(*args, **kwargs)
            except policies.LinkFault:
                raise
            except Exception as e:  # an index out of range, a NaN in a sampler: perhaps because a link lied
                error = e
            began = perf_counter()
            try:
                bad = session.settle()
            except Exception:  # a GPU that is lost answers nothing: what it died of is the news
                if error is not None:
                    raise error from None
                raise
            session.counts.overhead_s += perf_counter() - began
            confirmed = session.confirmed()
            if confirmed:
                self._judge(confirmed, step, first)
            if first and session.retried is not None:
                self._learned(first, session.retried)
                first = []
            suspects = [b for b in bad if b.hop.late]
            if suspects and undo is not None and undo.inputs_changed():  # there will be no second look
                for b in suspects:
                    session.mismatched(b.hop.link)
                suspects = []
            bad = [b for b in bad if b not in suspects]
            again = (self._judge(bad, step, first) if bad else False) or bool(suspects)
            if session.unjudged:
                self.read_early()
                if not again and not session.shared_written and undo is not None and undo.inputs_changed():
                    session.counts.unchecked += session.unjudged
                    log.warning(
                        "guard: forward %d writes into its inputs and cannot be run again: %d hops unchecked", step, session.unjudged
                    )
                else:
                    again = True
            if not again and not (session.shared_written and undo is not None):
                if error is not None:
                    raise error
                return out
            assert undo is not None
            again = True
            del out
            if undo.inputs_changed():
                raise policies.cannot_rerun(tuple(first), ("the model writes into its own inputs", "模型会改写自己的输入"))
            if session.shared_written:
                session.shares = False
                log.warning("guard: this model writes into tensors that it was given; each layer gets a copy of its own from now on")
            session.counts.reruns += 1
            session.retried = {b.hop.number: b.damage for b in (*bad, *suspects) if not b.hop.staged}
            session.suspect(suspects)
            undo.restore()

    def _undo(self, args: Any, kwargs: Any) -> Undo | None:
        if not self.mode.changes:
            return None
        try:
            return Undo(args, kwargs, self.devices)
        except CannotUndo as e:
            if not self._told_strict and not self.mode.strict:
                self._told_strict = True
                log.warning("guard: %s cannot be put back, so each hop is compared before it is used (strict)", str(e))
            return None

    # ------------------------------------------------ when a link lied
    def judged(self, bad: Bad, step: int) -> Event:
        hop, damage = bad
        event = Event(
            link=hop.link.name,
            step=step,
            hop=hop.number,
            size_B=hop.size_B,
            dtype=str(hop.dtype).removeprefix("torch."),
            shape=tuple(hop.shape),
            kind=damage.kind,
            action="",
            staged=hop.staged,
            bad_B=damage.bad_B,
            first_bad_B=damage.first_bad_B,
        )
        event = msgspec.structs.replace(event, action=policies.action(self.mode, self.policy, event))
        hop.link.bad += 1
        with self._lock:
            self.events.append(event)
        if event.action == "warn" and _worth_a_line(hop.link.bad):
            self.tell(event, hop.link.bad)
        return event

    def _judge(self, bad: list[Bad], step: int, healed: list[Event]) -> bool:
        """Whether the forward is to be run again. Raises LinkFault. healed: the events of it, added."""
        events = [self.judged(b, step) for b in bad]
        told = [e for e in events if e.action == "raise"]
        if told:
            raise policies.link_lied(tuple(told))
        healed += [e for e in events if e.action == "heal"]
        for b, event in zip(bad, events, strict=True):
            if event.action == "heal":
                if b.hop.staged:
                    raise policies.host_lied(event)
                self.demote(b.hop.link)
        return bool(healed)

    def _learned(self, events: list[Event], again: dict[int, Damage]) -> None:
        """What the link did when it was tried once more says more than two digests can."""
        for event in events:
            damage = again.get(event.hop)
            if damage is None:
                continue
            better = msgspec.structs.replace(event, again=bool(damage.bad_B))
            if damage.bad_B:
                kind = damage.kind if event.kind == "changed" else event.kind
                better = msgspec.structs.replace(better, kind=kind, bad_B=damage.bad_B, first_bad_B=damage.first_bad_B)
            with self._lock:
                self.events = deque((better if e is event else e for e in self.events), maxlen=EVENTS_KEPT)
            self.tell(better)

    def read_early(self) -> None:
        """This model, or somebody beside it, writes into what crosses."""
        if self.reads_late:
            self.reads_late = False
            log.warning("guard: what crosses is written into in this model; each hop is read when it is carried from now on")

    def demote(self, link: Link) -> None:
        link.staged = True

    def tell(self, event: Event, times: int = 1) -> None:
        done = {
            "heal": "mended; this link goes through host memory from now on",
            "warn": "left as it is",
        }.get(event.action, event.action)
        log.warning(
            "guard: %s delivered a %s tensor %s wrong (%s; %d bytes, forward %d, hop %d, %d so far): %s",
            *(event.link, event.dtype, list(event.shape), event.kind, event.size_B, event.step, event.hop, times, done),
        )


@functools.cache
def _not_compiled() -> None:
    """What we do is no part of anybody's graph, but for ears.py; what is called from here may be compiled. accelerate loads torch._dynamo, too."""
    from torch._dynamo import trace_rules

    for file in Path(__file__).parent.glob("*.py"):
        if file.stem not in ("__init__", "ears"):
            trace_rules.add(f"{__package__}.{file.stem}")


def _fold(guard: weakref.ref[Guard], counts: Counts) -> None:
    alive = guard()
    if alive is not None:
        alive.fold(counts)


def _worth_a_line(times: int) -> bool:
    return str(times).strip("0") == "1"  # 1, 10, 100 ...


def _is_prompt(args: Any, kwargs: Any) -> bool:
    """More than one token a sequence."""
    tokens = kwargs.get("input_ids")
    if tokens is None:
        tokens = kwargs.get("inputs_embeds", args[0] if args else None)
    return isinstance(tokens, torch.Tensor) and tokens.dim() > 1 and tokens.shape[1] > 1


def _devices(model: torch.nn.Module) -> tuple[torch.device, ...]:
    """The accelerators that the model is on. Raises UsageError if there is no way between two places."""
    places = {str(p) for p in getattr(model, "hf_device_map", {}).values()} - {"cpu", "disk", "meta"}
    found = {t.device for t in itertools.chain(model.parameters(), model.buffers()) if is_gpu(t.device)}
    if len(places) < 2 and len(found) < 2:
        raise UsageError(
            "nothing-to-guard",
            (f"the model is on {', '.join(map(str, found)) or 'no GPU'} only", f"模型只在 {', '.join(map(str, found)) or 'CPU'} 上"),
            ("nothing goes from GPU to GPU, so no link can harm it", "没有 GPU 之间的传输，链路不会影响它"),
            (
                'load it with device_map="auto" over several GPUs',
                '请用 device_map="auto" 把模型分布到多块 GPU 上',
            ),
        )
    return tuple(sorted(found, key=str))
