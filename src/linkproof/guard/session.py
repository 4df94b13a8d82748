"""One thread's hops: carries tensors from GPU to GPU, takes a digest at both ends, compares them at once or at the end of the forward.

In:      `begin`, then tensors from the ears (`deliver` from accelerate's hooks, `cross` from `.to` and copies), then `settle`, `end`.
         What one hook hands over is gathered (copies.py): copied first, then read, in one launch for each device; nothing runs in between.
         Where the comparison comes late anyway, what is small is read late as well: at `settle`, one launch for each device.
Out:     the copies; `settle` gives the hops whose ends differ, in order: the first is the first lie, what follows from it is right in itself.
Unknown: a kernel that writes into a tensor behind torch's back (no version is counted up): such a copy would be served again, and a hop
         that is read late would be compared as it was left. If its ends differ then, nobody is accused before the forward has been run
         again, read early and late (`suspect`); if they are alike again by that very writing, what the link did is not seen.
Raises:  LinkFault as the policy says.

A tensor that the hooks send to the same GPU again in one forward (cos and sin go to every layer) is served from the first copy (shared.py).
Written into after two have got it: the forward is run again without sharing.
A hop that waits to be read keeps source and copy alive and their versions in mind. Written into before it was read: it cannot be judged
(`unjudged`), the forward is run again, and each hop is read when it is carried from then on. `raise`, `warn` and `observe` always do that.
"""

from __future__ import annotations

import weakref
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from linkproof.guard import policy
from linkproof.guard.classify import Damage, by_bytes, by_digest
from linkproof.guard.copies import Border, Link, OnHost, from_host, is_gpu, on_host, to, transport
from linkproof.guard.digest import content_of, step_key
from linkproof.guard.ends import Ends
from linkproof.guard.hops import Bad, Carried, Hop
from linkproof.guard.metrics import Counts
from linkproof.guard.reader import host_bytes, readable
from linkproof.guard.shared import Shared

if TYPE_CHECKING:
    from linkproof.guard.watch import Guard

INDEX_B = 1 << 20  # whole numbers up to that size go through host memory where a comparison comes late
LATE_B = 1 << 20  # hops up to that size can be read late,
LATE_SUM_B = 8 << 20  # and no more of them at once, for their memory is kept
ON_HOST = 4  # tensors whose copies on the host are kept for the next GPU
PLAIN = {torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.bool}
INDICES = {torch.int64, torch.int32}
STRIDED = torch.strided

_new = tuple.__new__  # of a named tuple: a third of the time that its own takes


class Session:
    def __init__(self, guard: Guard) -> None:
        self.guard, self.mode = guard, guard.mode
        self.counts = Counts()
        self.ends = Ends()
        self.step, self._key = -1, step_key(-1)
        self.in_forward = False
        self.strict = True  # outside a forward nothing can be run again
        self.checks = True
        self.shares = guard.mode.changes
        self.retried: dict[int, Damage] | None = None  # hops to try once more over their link, and what that gave
        self.shared_written = False
        self.unjudged = 0  # hops that somebody wrote into before they were read
        self.late = False
        self._late: list[Carried] = []
        self._late_B = 0
        self._suspected: dict[int, Bad] = {}  # by number
        self._avoided: set[Link] = set()  # links of these
        self._again: list[Carried] = []  # these, in the forward that is run again
        self._withdrawn: set[int] = set()
        self._on_host: dict[int, tuple[weakref.ref[torch.Tensor], int, OnHost]] = {}  # the last tensors that went there
        self._number = 0
        self.unread: list[Carried] = []
        self.gathering = False  # somebody will call `take` or `drop`
        self._straight = False  # most hops of a token can be carried in few steps
        self._bad: list[Bad] = []
        self._shared = Shared()
        self._borders: dict[int, tuple[Border, Link]] = {}

    # ------------------------------------------------ one forward
    def begin(self, step: int, strict: bool, checks: bool, again: bool = False) -> None:
        """again: this forward has been run before. Then each hop is read when it is carried."""
        self.step, self.strict, self.checks, self._key = step, strict, checks, step_key(step)
        self.late = self.guard.reads_late and checks and not (strict or again)
        self.in_forward, self.shared_written, self._number = True, False, 0
        self._straight = checks and (strict or self.late) and not self.mode.staged
        self._forget()

    def settle(self) -> list[Bad]:
        """Compare what has not been compared. Those of a hop that was read late (`hop.late`) are suspicions yet."""
        if self._late:
            self._read_late()
        self.shared_written = self._shared.written
        self._shared.forget()  # while the GPUs are still at it
        self._compare()
        if self._again:
            self._look_again()
        bad, self._bad = self._bad, []
        return bad

    def end(self) -> None:
        self.in_forward, self.strict, self.checks, self.retried, self.late = False, True, True, None, False
        self._straight = False
        self.suspect([])
        self._forget()

    def suspect(self, bad: list[Bad]) -> None:
        """The forward will be run again: then these are carried over host memory and read early and late."""
        self._suspected = {b.hop.number: b for b in bad}
        self._avoided = {b.hop.link for b in bad}

    def confirmed(self) -> list[Bad]:
        """Of what was suspected: what was not written by somebody. Asked once, after the forward has been run again."""
        if not self._suspected:
            return []
        if self._withdrawn:
            self.guard.read_early()
        some = [b for n, b in self._suspected.items() if n not in self._withdrawn]
        self.suspect([])
        for b in some:
            self.mismatched(b.hop.link)
        return some

    def mismatched(self, link: Link) -> None:
        self.counts.mismatches += 1
        self.counts.link(link.name).mismatches += 1

    def _forget(self) -> None:
        self.gathering = False
        self.unjudged, self._late_B = 0, 0
        self._on_host.clear()
        self._late.clear()
        self._again.clear()
        self._withdrawn.clear()
        self.unread.clear()
        self._shared.forget()
        self._bad.clear()
        self.ends.forget()

    # ------------------------------------------------ from the hooks
    def border(self, border: Border) -> Link:
        """The link of a border. These live long; to hash one takes longer than all the rest here."""
        known = self._borders.get(id(border))
        if known is None or known[0] is not border:
            known = self._borders[id(border)] = (border, self.guard.link(border.device, border.device, border))
        return known[1]

    def deliver(self, t: torch.Tensor, dst: torch.device | Link) -> torch.Tensor:
        """What accelerate's hook hands to its module: the tensor on that device, or over that link."""
        place = id(t), dst
        copy = self._shared.copy_of(place, t)
        if copy is not None:
            self.counts.saved += 1
            return copy
        if type(dst) is Link:
            link = dst
        elif t.device == dst:
            return t
        elif is_gpu(t.device) and is_gpu(dst):  # type: ignore[arg-type]
            link = self.guard.link(t.device, dst)  # type: ignore[arg-type]
        else:
            return to(t, dst)
        copy = self._quick(t, link) if self._straight else None
        if copy is None:
            copy = self.cross(t, link)
            if copy is t or t.is_inference() or (t.requires_grad and torch.is_grad_enabled()):  # an inference tensor counts no versions
                return copy
        if self.shares and self.in_forward:
            self._shared.add(place, t, copy, t.nbytes)
        return copy

    def deliver_again(self, named: dict[str, Any], dst: torch.device | Link) -> dict[str, Any] | None:
        """All that a hook hands over by name, if it was the same the last time."""
        last = self._shared.again(named, dst)
        if last is None:
            return None
        self.counts.saved += len(last.served)
        return last.out.copy()

    def delivered(self, named: dict[str, Any], out: dict[str, Any], dst: torch.device | Link, skip: Any) -> None:
        self._shared.remember(named, out, dst, skip)

    # ------------------------------------------------ one hop
    def cross(self, t: torch.Tensor, link: Link) -> torch.Tensor:
        if t.requires_grad and torch.is_grad_enabled():
            crossed: torch.Tensor = _Cross.apply(t, self.guard, link)  # type: ignore[no-untyped-call]
            return crossed
        return self.carry(t, link)

    def take(self) -> None:
        """What has been carried in one go: it is read now, or at the end of the forward."""
        began = perf_counter()
        some, self.unread = self.unread, []
        if self.late:
            early = [c for c in some if not c.late]
            if len(early) < len(some):
                self._wait_to_read([c for c in some if c.late] if early else some)
            some = early
        if some:
            self._read(some)
        self.counts.overhead_s += perf_counter() - began

    def drop(self) -> None:
        """What has been carried will not be read: nobody gets it."""
        self._count([(c.link.name, 1, c.size_B) for c in self.unread])
        self.unread.clear()

    def carry(self, t: torch.Tensor, link: Link, grad: bool = False) -> torch.Tensor:
        """grad: it can be differentiated, and will be kept for that."""
        if t.is_cuda and torch.cuda.is_current_stream_capturing():
            raise policy.in_capture()
        number = self._number
        self._number = number + 1
        size_B = t.nbytes if t.layout is torch.strided else t.numel() * t.element_size()
        mode = self.mode
        index = not self.strict and size_B <= INDEX_B and mode.protects_indices and _holds_indices(t.dtype)
        can_read = readable(t, size_B)
        staged = mode.changes and (link.staged or index or mode.staged or not can_read or link in self._avoided)
        copy = self._over_host(t, link) if index and not grad else transport(t, link, staged)
        if staged:
            self.counts.staged += 1
        if not (self.checks and can_read and size_B > 0):
            self._count([(link.name, 1, size_B)])
            self.counts.unchecked += size_B > 0
            return copy
        if self.late and size_B <= LATE_B and not (grad or t.is_inference() or copy.is_inference()):  # these count no versions
            self.unread.append(Carried(link, number, t, copy, size_B, staged, True, t._version, copy._version))
        else:
            self.unread.append(Carried(link, number, t, copy, size_B, staged))
        if not self.gathering:
            self.take()
        return copy

    def _quick(self, t: torch.Tensor, link: Link) -> torch.Tensor | None:
        """`carry` of most hops of a token in fewer steps: small ones over links that have not lied. None: for `carry`."""
        if type(t) is not torch.Tensor or t.layout is not STRIDED:
            return None
        size_B = t.nbytes
        if not 0 < size_B <= LATE_B or t.requires_grad or t.is_inference() or torch.is_inference_mode_enabled():  # these count no versions
            return None
        if link.staged or (self._avoided and link in self._avoided):
            return None
        if not self.unread and t.is_cuda and torch.cuda.is_current_stream_capturing():
            raise policy.in_capture()
        staged = False
        if t.dtype in PLAIN:
            copy = transport(t, link, False)
        elif t.dtype not in INDICES:
            return None
        elif self.late:
            copy, staged = self._over_host(t, link), True
            self.counts.staged += 1
        else:
            copy = transport(t, link, False)
        number = self._number
        self._number = number + 1
        self.unread.append(_new(Carried, (link, number, t, copy, size_B, staged, self.late, t._version, copy._version)))
        if not self.gathering:
            self.take()
        return copy

    def _count(self, hops: list[tuple[str, int, int]]) -> None:
        """Of each link: name, hops, bytes."""
        counts = self.counts
        for name, n, size_B in hops:
            here = counts.links.get(name) or counts.link(name)
            here.hops += n
            here.size_B += size_B
            counts.hops += n
            counts.size_B += size_B

    def _over_host(self, t: torch.Tensor, link: Link) -> torch.Tensor:
        """The same tensor mostly goes to one stage after the other: it is brought to the host once."""
        if t.is_inference():
            return transport(t, link, True)
        last = self._on_host.get(id(t))
        if last is None or last[0]() is not t or last[1] != t._version:
            if len(self._on_host) == ON_HOST:
                self._on_host.clear()
            last = self._on_host[id(t)] = (weakref.ref(t), t._version, on_host(t))
        return from_host(last[2], link)

    def _wait_to_read(self, some: list[Carried]) -> None:
        self._late += some
        self._late_B += sum([c.size_B for c in some])
        if self._late_B > LATE_SUM_B:
            self._read_late()
            return
        for link in {c.link for c in some}:
            if link.src.type == "cuda":
                self.ends.reader.will_read(link.src)
                if link.dst is not link.src:
                    self.ends.reader.will_read(link.dst)

    def _read_late(self) -> None:
        some, self._late, self._late_B = self._late, [], 0
        self._shared.forget_names()
        untouched = [c for c in some if c.untouched]
        if len(untouched) < len(some):
            self.unjudged += len(some) - len(untouched)
            self._count([(c.link.name, 1, c.size_B) for c in some if not c.untouched])
        if untouched:
            self._count(self.ends.read(untouched, self._key, True).counts)

    def _look_again(self) -> None:
        """What was right when it was carried and is not right now was written by somebody, and no link did that."""
        wrong = {b.hop.number for b in self._bad}
        for c in self._again:
            if c.number in wrong:
                continue
            if c.untouched and self.ends.same(c, self._key):
                continue
            self._withdrawn.add(c.number)
        self._again.clear()

    def _read(self, carried: list[Carried]) -> None:
        """Both ends of what was carried; in `strict` compared as well, and mended in place."""
        layout = self.ends.read(carried, self._key, held=self.strict)  # else they may be large, and whoever has them done with them
        self._count(layout.counts)
        if self._suspected:
            self._again += [
                c._replace(source_version=c.source._version, copy_version=c.copy._version)
                for c in carried
                if c.number in self._suspected and not (c.source.is_inference() or c.copy.is_inference())
            ]
        if self.strict:
            self._compare()
            if self._bad:
                self._mend(carried)
        elif self.retried is not None:
            for c in carried:
                if c.number in self.retried and c.staged:
                    self.retried[c.number] = self._tried_again(c)

    def _compare(self) -> None:
        for lie in self.ends.compare():
            if not lie.hop.late:
                self.mismatched(lie.hop.link)
            self._bad.append(Bad(lie.hop, by_digest(lie.content, lie.hop.size_B, lie.before)))

    # ------------------------------------------------ compared before it is used
    def _mend(self, carried: list[Carried]) -> None:
        bad, self._bad = self._bad, []
        by_number = {c.number: c for c in carried}
        for lie in bad:
            self._mend_one(by_number[lie.hop.number], lie.hop)

    def _mend_one(self, c: Carried, hop: Hop) -> None:
        """The source still lives: what it sends over host memory is written into the copy that is in somebody's hands already."""
        event = self.guard.judged(Bad(hop, self._damage(c, hop)), self.step)
        if event.action == "raise":
            raise policy.link_lied((event,))
        if event.action == "warn":
            return
        if hop.staged:
            raise policy.host_lied(event)
        self.guard.demote(hop.link)
        with torch.no_grad():
            c.copy.copy_(transport(c.source, hop.link, True))
        self._shared.mended(c.copy)
        self.counts.staged += 1
        self.ends.read([c._replace(staged=True)], self._key, True)
        self._compare()
        if self._bad:
            raise policy.host_lied(self.guard.judged(self._bad.pop(), self.step))
        self.guard.tell(event)

    def _damage(self, c: Carried, hop: Hop) -> Damage:
        before = self.ends.before(hop.link.dst, hop.size_B, but=content_of(hop.sent, hop.key))
        return by_bytes(host_bytes(c.source), host_bytes(c.copy), before)

    def _tried_again(self, c: Carried) -> Damage:
        """The forward is being run again: the same tensor over the link that lied, only to see what it does to it."""
        before = self.ends.before(c.link.dst, c.size_B)
        return by_bytes(host_bytes(c.copy), host_bytes(transport(c.source, c.link, False)), before)


def _holds_indices(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)


class _Cross(torch.autograd.Function):
    """A crossing that can be differentiated; the gradient goes back under the same guard, compared before it is used."""

    @staticmethod
    def forward(ctx: Any, t: torch.Tensor, guard: Guard, link: Link) -> torch.Tensor:
        ctx.guard, ctx.link = guard, link
        return guard.session().carry(t, link, grad=True)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        guard: Guard = ctx.guard
        return guard.session().cross(grads[0], guard.link(*ctx.link.back())), None, None
