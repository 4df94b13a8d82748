"""One thread's hops: carries tensors from GPU to GPU, takes a digest at both ends, compares them at once or at the end of the forward.

In:      `begin`, then tensors from the ears (`deliver` from accelerate's hooks, `cross` from `.to` and copies), then `settle`, `end`.
         What one hook hands over is `together`: copied first, then read, in one launch for each device; nothing runs in between.
         Where the comparison comes late anyway, what is small is read late as well: at `settle`, one launch for each device.
Out:     the copies; `settle` gives the hops whose ends differ, in order: the first is the first lie, what follows from it is right in itself.
Unknown: a kernel that writes into a tensor behind torch's back (no version is counted up): such a copy would be served again, and a hop
         that is read late would be compared as it was left. If its ends differ then, nobody is accused before the forward has been run
         again, read early and late (`suspect`); if they are alike again by that very writing, what the link did is not seen.
Raises:  LinkFault as the policy says.

A tensor that the hooks send to the same GPU again in one forward (cos and sin go to every layer) is served from the first copy, as long as
nobody has written into source or copy: both have a version. Written into after two have got it: the forward is run again without sharing.
A hop that waits to be read keeps source and copy alive and their versions in mind. Written into before it was read: it cannot be judged
(`unjudged`), the forward is run again, and each hop is read when it is carried from then on. `raise`, `warn` and `observe` always do that.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from linkproof.guard import policy
from linkproof.guard.classify import Damage, by_bytes, by_digest
from linkproof.guard.copies import Link, from_host, is_gpu, on_host, to, transport
from linkproof.guard.digest import content_of, key
from linkproof.guard.hops import Bad, Carried, Hop, Served
from linkproof.guard.metrics import Counts
from linkproof.guard.reader import Reader, Wanted, host_bytes, readable

if TYPE_CHECKING:
    from linkproof.guard.watch import Guard

INDEX_B = 1 << 20  # whole numbers up to that size go through host memory where a comparison comes late
LATE_B = 1 << 20  # hops up to that size can be read late,
LATE_SUM_B = 8 << 20  # and no more of them at once, for their memory is kept
ON_HOST = 4  # tensors whose copies on the host are kept for the next GPU
REMEMBERED = 8  # contents per GPU and size, to tell stale data


class Session:
    def __init__(self, guard: Guard) -> None:
        self.guard, self.mode = guard, guard.mode
        self.counts = Counts()
        self.reader = Reader()
        self.step = -1
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
        self._on_host: dict[int, tuple[weakref.ref[torch.Tensor], int, torch.Tensor, Any]] = {}  # the last tensors that went there
        self._number = 0
        self._unread: list[Carried] = []
        self._together = False
        self._pending: list[Hop] = []
        self._bad: list[Bad] = []
        self._served: dict[tuple[int, Link], Served] = {}
        self._kept: list[Served] = []  # of sources that are gone
        self._earlier: dict[tuple[torch.device, int], deque[int]] = {}

    # ------------------------------------------------ one forward
    def begin(self, step: int, strict: bool, checks: bool, again: bool = False) -> None:
        """again: this forward has been run before. Then each hop is read when it is carried."""
        self.step, self.strict, self.checks = step, strict, checks
        self.late = self.guard.reads_late and checks and not (strict or again)
        self.in_forward, self.shared_written, self._number = True, False, 0
        self._forget()

    def settle(self) -> list[Bad]:
        """Compare what has not been compared. Those of a hop that was read late (`hop.late`) are suspicions yet."""
        self._read_late()
        self._compare()
        self._look_again()
        self.shared_written = any(s.times > 1 and s.written for s in (*self._served.values(), *self._kept))
        bad, self._bad = self._bad, []
        return bad

    def end(self) -> None:
        self.in_forward, self.strict, self.checks, self.retried, self.late = False, True, True, None, False
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
        self._together = False
        self.unjudged, self._late_B = 0, 0
        self._on_host.clear()
        self._late.clear()
        self._again.clear()
        self._withdrawn.clear()
        self.reader.used.clear()
        self._unread.clear()
        self._served.clear()
        self._kept.clear()
        self._pending.clear()
        self._bad.clear()
        self.reader.reset()

    # ------------------------------------------------ from the hooks
    def deliver(self, t: torch.Tensor, dst: torch.device | Link) -> torch.Tensor:
        """What accelerate's hook hands to its module: the tensor on that device, or over that link."""
        if type(dst) is Link:
            link = dst
        elif t.device == dst:
            return t
        elif is_gpu(t.device) and is_gpu(dst):  # type: ignore[arg-type]
            link = self.guard.link(t.device, dst)  # type: ignore[arg-type]
        else:
            return to(t, dst)
        place = id(t), link
        served = self._served.get(place)
        if served is not None and served.serves(t):
            served.times += 1
            self.counts.saved += 1
            return served.copy
        copy = self.cross(t, link)
        if copy is not t and self._may_share(t):
            if served is not None and served.times > 1:
                self._kept.append(served)
            self._served[place] = Served(weakref.ref(t, lambda _: self._drop(place)), t._version, copy)
        return copy

    def _may_share(self, t: torch.Tensor) -> bool:
        if not (self.shares and self.in_forward) or t.is_inference():  # an inference tensor counts no versions
            return False
        return not (t.requires_grad and torch.is_grad_enabled())

    def _drop(self, place: tuple[int, Link]) -> None:
        served = self._served.pop(place, None)
        if served is not None and served.times > 1:
            self._kept.append(served)

    # ------------------------------------------------ one hop
    def cross(self, t: torch.Tensor, link: Link) -> torch.Tensor:
        if t.requires_grad and torch.is_grad_enabled():
            crossed: torch.Tensor = _Cross.apply(t, self.guard, link)  # type: ignore[no-untyped-call]
            return crossed
        return self.carry(t, link)

    def together(self, walk: Callable[..., Any], *args: Any) -> Any:
        """What `walk` carries is read when all of it has been carried."""
        if self._together:
            return walk(*args)
        self._together = True
        try:
            out = walk(*args)
        except BaseException:
            self._unread.clear()
            raise
        finally:
            self._together = False
        if self._unread:
            began = perf_counter()
            self._read()
            self.counts.overhead_s += perf_counter() - began
        return out

    def carry(self, t: torch.Tensor, link: Link, grad: bool = False) -> torch.Tensor:
        """grad: it can be differentiated, and will be kept for that."""
        began, counts = perf_counter(), self.counts
        if t.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise policy.in_capture()
        number = self._number
        self._number += 1
        size_B = t.numel() * t.element_size()
        index = (
            not self.strict
            and self.mode.protects_indices
            and size_B <= INDEX_B
            and not (t.dtype.is_floating_point or t.dtype.is_complex or t.dtype is torch.bool)
        )
        can_read = readable(t, size_B)
        staged = self.mode.changes and (link.staged or self.mode.staged or index or not can_read or link in self._avoided)
        left = perf_counter()
        copy = self._over_host(t, link) if index and not grad else transport(t, link, staged)
        travelled_s = perf_counter() - left
        counts.hops += 1
        counts.size_B += size_B
        counts.staged += staged
        per_link = counts.link(link.name)
        per_link.hops += 1
        per_link.size_B += size_B
        if self.checks and can_read and size_B > 0:
            late = self.late and size_B <= LATE_B and not (grad or t.is_inference() or copy.is_inference())  # these count no versions
            hop = Hop(link, number, key(self.step, number, size_B), size_B, t.dtype, t.shape, staged, late)
            if late:
                self._wait_to_read(Carried(hop, t, copy, (t._version, copy._version)))
            else:
                self._unread.append(Carried(hop, t, copy))
                if not self._together:
                    self._read()
        elif size_B:
            counts.unchecked += 1
        counts.overhead_s += perf_counter() - began - travelled_s
        return copy

    def _over_host(self, t: torch.Tensor, link: Link) -> torch.Tensor:
        """The same tensor mostly goes to one stage after the other: it is brought to the host once."""
        if t.is_inference():
            return transport(t, link, True)
        last = self._on_host.get(id(t))
        if last is None or last[0]() is not t or last[1] != t._version:
            if len(self._on_host) == ON_HOST:
                self._on_host.clear()
            last = self._on_host[id(t)] = (weakref.ref(t), t._version, *on_host(t))
        return from_host(last[2], last[3], link)

    def _wait_to_read(self, c: Carried) -> None:
        if self._late_B + c.hop.size_B > LATE_SUM_B:
            self._read_late()
        self._late.append(c)
        self._late_B += c.hop.size_B
        self.reader.will_read(c.hop.link.src, c.hop.link.dst)

    def _read_late(self) -> None:
        some, self._late, self._late_B = self._late, [], 0
        untouched = [c for c in some if c.untouched]
        self.unjudged += len(some) - len(untouched)
        if untouched:
            self._read_ends(untouched)

    def _look_again(self) -> None:
        """What was right when it was carried and is not right now was written by somebody, and no link did that."""
        wrong = {b.hop.number for b in self._bad}
        for c in self._again:
            if c.hop.number in wrong:
                continue
            if c.untouched:
                self._read_ends([c])
                self.reader.wait()
                hop = self._pending.pop()
                same = self.reader.value(hop.sent) == self.reader.value(hop.arrived)
                self.reader.reset()
                if same:
                    continue
            self._withdrawn.add(c.hop.number)
        self._again.clear()

    def _read(self) -> None:
        """Both ends of what was carried; in `strict` compared as well, and mended in place."""
        carried, self._unread = self._unread, []
        if carried:
            self._read_ends(carried)
        if self._suspected:
            self._again += [
                c._replace(versions=(c.source._version, c.copy._version))
                for c in carried
                if c.hop.number in self._suspected and not (c.source.is_inference() or c.copy.is_inference())
            ]
        if self.strict and carried:
            self._compare()
            if self._bad:
                self._mend(carried)
        elif self.retried is not None:
            for c in carried:
                if c.hop.number in self.retried and c.hop.staged:
                    self.retried[c.hop.number] = self._tried_again(c.hop, c.source, c.copy)

    def _read_ends(self, some: list[Carried]) -> None:
        """In one launch for each device: what left from there and what arrived there."""
        sizes_B, device = [c.hop.size_B for c in some], some[0].hop.link.src
        if not self.reader.has_room(device, *sizes_B):
            self._compare()
            if len(some) > 1 and not self.reader.has_room(device, *sizes_B):
                self._read_ends(some[: len(some) // 2])
                self._read_ends(some[len(some) // 2 :])
                return
        ends: dict[torch.device, list[Wanted]] = {}
        for c in some:
            ends.setdefault(c.hop.link.src, []).append((c.source, c.hop.key, False))
            ends.setdefault(c.hop.link.dst, []).append((c.copy, c.hop.key, True))
        readings = {device: iter(self.reader.read_all(wanted)) for device, wanted in ends.items()}
        for c in some:
            link = c.hop.link
            self._pending.append(c.hop._replace(sent=next(readings[link.src]), arrived=next(readings[link.dst])))

    def _compare(self) -> None:
        if not self._pending:
            return
        self.reader.wait()
        for hop in self._pending:
            sent, arrived = self.reader.value(hop.sent), self.reader.value(hop.arrived)
            place = hop.link.dst, hop.size_B
            earlier = self._earlier.get(place)
            if earlier is None:
                earlier = self._earlier[place] = deque(maxlen=REMEMBERED)
            content = content_of(sent, hop.key)
            if sent != arrived:
                if not hop.late:
                    self.mismatched(hop.link)
                read = hop._replace(sent=sent, arrived=arrived)
                self._bad.append(Bad(read, by_digest(content_of(arrived, hop.key), hop.size_B, earlier)))
            if content not in earlier:
                earlier.append(content)
        self._pending.clear()
        self.reader.reset()

    def _damage(self, hop: Hop, sent: torch.Tensor, arrived: torch.Tensor) -> Damage:
        earlier = self._earlier.get((hop.link.dst, hop.size_B), ())
        a, b = host_bytes(sent), host_bytes(arrived)
        return by_bytes(a, b, [c for c in earlier if c != content_of(self.reader.value(hop.sent), hop.key)])

    # ------------------------------------------------ compared before it is used
    def _mend(self, carried: list[Carried]) -> None:
        bad, self._bad = self._bad, []
        by_number = {c.hop.number: c for c in carried}
        for lie in bad:
            self._mend_one(by_number[lie.hop.number]._replace(hop=lie.hop))

    def _mend_one(self, c: Carried) -> None:
        """The source still lives: what it sends over host memory is written into the copy that is in somebody's hands already."""
        hop = c.hop
        event = self.guard.judged(Bad(hop, self._damage(hop, c.source, c.copy)), self.step)
        if event.action == "raise":
            raise policy.link_lied((event,))
        if event.action == "warn":
            return
        if hop.staged:
            raise policy.host_lied(event)
        self.guard.demote(hop.link)
        with torch.no_grad():
            c.copy.copy_(transport(c.source, hop.link, True))
        for served in self._served.values():
            if served.copy is c.copy:
                served.copy_version = c.copy._version
        self.counts.staged += 1
        self._read_ends([c._replace(hop=hop._replace(staged=True))])
        self._compare()
        if self._bad:
            raise policy.host_lied(self.guard.judged(self._bad.pop(), self.step))
        self.guard.tell(event)

    def _tried_again(self, hop: Hop, t: torch.Tensor, good: torch.Tensor) -> Damage:
        """The forward is being run again: the same tensor over the link that lied, only to see what it does to it."""
        return by_bytes(host_bytes(good), host_bytes(transport(t, hop.link, False)), self._contents_before(hop))

    def _contents_before(self, hop: Hop) -> list[int]:
        return list(self._earlier.get((hop.link.dst, hop.size_B), ()))


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
