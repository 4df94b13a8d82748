"""Where torch.distributed is listened to: the collectives that a tensor-parallel forward makes.

In:      `hold()` puts the ears in for as long as one guard is on, `release()` takes the last ones out. They do nothing but in a thread that
         is inside a guarded forward (`local.session`), and for the guarded group.
Out:     a `Collective` to `session.through`; everything else goes where it always went.
Unknown: other collectives (reduce_scatter, all_to_all, broadcast), and names that were imported before (`from torch.distributed import
         all_reduce`): they are not heard. A forward in which nothing was heard is told.
Source:  transformers calls `dist.all_reduce` where no gradient is wanted, else DTensor redistributes by `_functional_collectives`.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol

if TYPE_CHECKING:
    from linkproof.guard.ranks.session import RankSession


class Local(threading.local):
    session: RankSession | None = None


local = Local()


class Collective(NamedTuple):
    """source: what this rank puts in. link, host: make it, and give the result. pieces: the ranks' parts of a gathered result."""

    name: str
    source: torch.Tensor
    link: Callable[[], Any]
    host: Callable[[], Any] | None
    result: Callable[[Any], torch.Tensor]
    pieces: Callable[[Any], list[torch.Tensor]] | None = None
    op: str = ""
    in_place: bool = False


class Done:
    """What an asynchronous collective gives back when it went through host memory."""

    def wait(self, *_: Any, **__: Any) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


_ops = {str(op).rsplit(".", 1)[-1].lower(): op for op in (dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.MIN, dist.ReduceOp.PRODUCT)}
_plain: dict[str, Any] = {}


def _op(op: Any) -> str:
    return str(op).rsplit(".", 1)[-1].lower()


def _waited(result: Any) -> torch.Tensor:
    """A functional collective gives a tensor that waits when it is first used."""
    out: torch.Tensor = result.wait() if isinstance(result, funcol.AsyncCollectiveTensor) else result
    return out


def _session(group: Any) -> RankSession | None:
    session = local.session
    return session if session is not None and not session.inside and session.takes(group) else None


def _finished(work: Any) -> Any:
    """An asynchronous one is waited for: its result is read right after it."""
    if work is not None:
        work.wait()
    return work


def _heard_all_reduce(tensor: Any, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False) -> Any:
    inner, session = _plain["all_reduce"], _session(group)
    if session is None:
        return inner(tensor, op, group, async_op)

    def host() -> Any:
        session.channel.all_reduce(tensor, op)
        return Done() if async_op else None

    def link() -> Any:
        return _finished(inner(tensor, op, group, async_op))

    kind = _op(op)
    return session.through(Collective("all_reduce", tensor, link, host if kind in _ops else None, lambda _: tensor, op=kind, in_place=True))


def _heard_all_gather(tensor_list: Any, tensor: Any, group: Any = None, async_op: bool = False) -> Any:
    inner, session = _plain["all_gather"], _session(group)
    if session is None:
        return inner(tensor_list, tensor, group, async_op)

    def host() -> Any:
        with torch.no_grad():
            for to, piece in zip(tensor_list, session.channel.all_gather(tensor), strict=True):
                to.copy_(piece)
        return Done() if async_op else None

    def link() -> Any:
        return _finished(inner(tensor_list, tensor, group, async_op))

    return session.through(Collective("all_gather", tensor, link, host, lambda _: tensor_list[0], lambda _: list(tensor_list)))


def _into(name: str) -> Callable[..., Any]:
    def heard(output_tensor: Any, input_tensor: Any, group: Any = None, async_op: bool = False) -> Any:
        inner, session = _plain[name], _session(group)
        if session is None:
            return inner(output_tensor, input_tensor, group, async_op)

        def host() -> Any:
            pieces = session.channel.all_gather(input_tensor)
            with torch.no_grad():
                output_tensor.copy_(torch.stack(pieces).view_as(output_tensor))
            return Done() if async_op else None

        def link() -> Any:
            return _finished(inner(output_tensor, input_tensor, group, async_op))

        pieces = len(session.channel.ranks)
        return session.through(
            Collective("all_gather", input_tensor, link, host, lambda _: output_tensor, lambda _: list(output_tensor.view(pieces, -1)))
        )

    return heard


def _heard_functional_reduce(self: Any, reduceOp: str, group: Any, tag: str = "") -> Any:
    inner, session = _plain["functional all_reduce"], _session(group)
    if session is None:
        return inner(self, reduceOp, group, tag)

    def host() -> Any:
        out = _waited(self).detach().clone()
        session.channel.all_reduce(out, _ops[kind])
        return out

    kind = reduceOp.lower()
    return session.through(
        Collective("all_reduce", self, lambda: inner(self, reduceOp, group, tag), host if kind in _ops else None, _waited, op=kind)
    )


def _functional_gather(name: str) -> Callable[..., Any]:
    def heard(self: Any, gather_dim: int, group: Any, tag: str = "") -> Any:
        inner, session = _plain[f"functional {name}"], _session(group)
        if session is None:
            return inner(self, gather_dim, group, tag)
        return session.through(
            Collective(
                "all_gather",
                self,
                lambda: inner(self, gather_dim, group, tag),
                lambda: torch.cat(session.channel.all_gather(_waited(self)), gather_dim),
                _waited,
                lambda result: list(_waited(result).chunk(len(session.channel.ranks), gather_dim)),
            )
        )

    return heard


def _ears() -> list[tuple[Any, str, str, Callable[..., Any]]]:
    """(module, name there, name here, ear): those that this torch has."""
    wanted: list[tuple[Any, str, str, Callable[..., Any]]] = [
        (dist, "all_reduce", "all_reduce", _heard_all_reduce),
        (dist, "all_gather", "all_gather", _heard_all_gather),
        (funcol, "all_reduce", "functional all_reduce", _heard_functional_reduce),
    ]
    wanted += [(dist, name, name, _into(name)) for name in ("all_gather_into_tensor", "all_gather_single")]
    wanted += [(funcol, name, f"functional {name}", _functional_gather(name)) for name in ("all_gather_tensor", "all_gather_single")]
    return [ear for ear in wanted if hasattr(ear[0], ear[1])]


_lock = threading.Lock()
_holders = 0


def hold() -> None:
    global _holders
    with _lock:
        _holders += 1
        if _holders > 1:
            return
        for module, name, here, ear in _ears():
            _plain[here] = getattr(module, name)
            setattr(module, name, ear)


def release() -> None:
    global _holders
    with _lock:
        _holders -= 1
        if _holders:
            return
        for module, name, here, _ in _ears():
            setattr(module, name, _plain.pop(here))
