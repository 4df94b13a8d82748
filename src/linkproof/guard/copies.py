"""How a tensor gets to another GPU, and what of all that is heard (ears.py) is a crossing.

In:      what was called on a tensor, in a thread that is inside a guarded model (`local.session`) or not.
Out:     crossings between two accelerators go to `session.cross`; everything else goes where it always went.
Unknown: copies made in C++ or by `torch.as_tensor(t, device=...)`, gradients of crossings made before the guard was on.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from linkproof.guard.session import Session

HOST_TYPES = ("cpu", "meta")
SCALARS = (bool, int, float, str)


class Local(threading.local):
    session: Session | None = None


local = Local()


class Border(NamedTuple):
    """A border between two stages of a model on one card: where a measurement wants a hop though the device stays the same."""

    device: torch.device
    src: int
    dst: int


class Link:
    """One ordered pair of places. staged: it lied, so it is replaced by host memory. bad: how often it lied."""

    def __init__(self, src: torch.device, dst: torch.device, border: Border | None = None) -> None:
        self.src, self.dst, self.border = src, dst, border
        self.name = f"{src}#{border.src} -> {dst}#{border.dst}" if border else f"{src} -> {dst}"
        self.staged = False
        self.bad = 0

    def back(self) -> tuple[torch.device, torch.device, Border | None]:
        """The way of the gradient."""
        border = self.border
        return self.dst, self.src, None if border is None else Border(border.device, border.dst, border.src)


def is_gpu(device: torch.device) -> bool:
    return device.type not in HOST_TYPES


_known: dict[Any, torch.device] = {}


def resolved(device: Any) -> torch.device:
    """With an index, as torch would take it: a number is one of the accelerator, a name without a number is the current one."""
    found = _known.get(device)
    if found is None:
        parsed, _, _, _ = torch._C._nn._parse_to(device)  # type: ignore[call-overload]
        assert parsed is not None
        if is_gpu(parsed) and parsed.index is None:
            return torch.device(parsed.type, torch.get_device_module(parsed.type).current_device())
        found = _known[device] = parsed
    return found


def transport(t: torch.Tensor, link: Link, staged: bool) -> torch.Tensor:
    """The copy itself; can be differentiated."""
    if not staged:
        return to(t, link.dst, copy=True) if link.border else to(t, link.dst)
    return from_host(on_host(t), link)


_streams: dict[tuple[Any, int], torch.cuda.Stream] = {}


def stream_of(device: torch.device) -> torch.cuda.Stream:
    """The current one of a GPU; torch makes a new object of it at each question."""
    place = device.index, torch._C._cuda_getCurrentRawStream(device.index)
    return _streams.get(place) or _streams.setdefault(place, torch.cuda.current_stream(device))


class OnHost(NamedTuple):
    """A copy in host memory. On CUDA that is pinned and nobody waits here: done says when it is there, for others than the stream it came on."""

    copy: torch.Tensor
    done: Any = None
    stream: Any = None


def on_host(t: torch.Tensor) -> OnHost:
    if t.device.type == "cuda":
        stream = stream_of(t.device)
        host = to(t, "cpu", non_blocking=True)
        return OnHost(host, stream.record_event(), stream)
    return OnHost(t.clone() if t.device.type == "cpu" else t.cpu())


def from_host(host: OnHost, link: Link) -> torch.Tensor:
    if host.done is None:
        return to(host.copy, link.dst)
    if link.dst.type != "cuda":
        host.done.synchronize()
        return to(host.copy, link.dst)
    stream = stream_of(link.dst)
    if stream is not host.stream:
        stream.wait_event(host.done)
    return to(host.copy, link.dst, non_blocking=True)


# ---------------------------------------------------------------- what was heard

to: Callable[..., torch.Tensor] = torch.Tensor.to


def moved(self: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
    """`self.to(*args, **kwargs)`."""
    session = local.session
    if session is None:
        return to(self, *args, **kwargs)
    wanted = args[0] if args else kwargs.get("device", kwargs.get("other"))
    if isinstance(wanted, torch.Tensor):
        wanted = wanted.device
    if wanted is None or not is_gpu(self.device):
        return to(self, *args, **kwargs)
    dst = resolved(wanted)
    if dst == self.device or not is_gpu(dst):
        return to(self, *args, **kwargs)
    here = session.cross(self, session.guard.link(self.device, dst))
    return to(here, *args, **{**kwargs, "copy": False}) if kwargs.get("copy") else to(here, *args, **kwargs)  # dtype, layout: there


def arrived(here: torch.Tensor, value: Any) -> Any:
    """The value, brought to where it will be written if it lies on another GPU."""
    session = local.session
    if session is None or not isinstance(value, torch.Tensor) or value.device == here.device:
        return value
    if not (is_gpu(value.device) and is_gpu(here.device)):
        return value
    return session.cross(value, session.guard.link(value.device, here.device))


def sent(send: Callable[..., Any], tensor: Any, device: Any, non_blocking: bool = False, skip_keys: Any = None) -> Any:
    """send: accelerate's send_to_device."""
    session = local.session
    if session is None:
        return send(tensor, device, non_blocking=non_blocking, skip_keys=skip_keys)
    kind = type(tensor)
    if device is None or ((kind is dict or kind is tuple) and not tensor):
        return tensor
    if type(device) is Border:
        return (_walk if session.gathering else _walk_all)(session, tensor, session.border(device), (), send)
    dst = _known.get(device)
    if dst is None:
        dst = resolved(device)
    if kind is tuple and len(tensor) == 1 and isinstance(tensor[0], torch.Tensor) and tensor[0].device == dst:  # most calls
        return tensor
    skip = (skip_keys,) if isinstance(skip_keys, str) else skip_keys or ()
    if _stays(tensor, dst, skip):
        return tensor
    return (_walk if session.gathering else _walk_all)(session, tensor, dst, skip, send)


def gathered(hands_over: Callable[..., Any]) -> Callable[..., Any]:
    """What this function sends is read when all of it has been sent."""

    @functools.wraps(hands_over)
    def all_of_it(*args: Any, **kwargs: Any) -> Any:
        session = local.session
        if session is None or session.gathering:
            return hands_over(*args, **kwargs)
        session.gathering = True
        try:
            out = hands_over(*args, **kwargs)
        except BaseException:
            session.drop()
            raise
        finally:
            session.gathering = False
        if session.unread:
            session.take()
        return out

    return all_of_it


def _stays(tree: Any, dst: torch.device, skip: Any) -> bool:
    """Nothing in there moves: most calls of most tokens, and quicker said than accelerate builds the same tree anew."""
    if isinstance(tree, torch.Tensor):
        return tree.device == dst
    kind = type(tree)
    if kind is tuple or kind is list:
        for x in tree:  # noqa: SIM110  a generator costs more than what it could save
            if not _stays(x, dst, skip):
                return False
        return True
    if kind is dict:
        for k, v in tree.items():
            if v is None or v is True or v is False or k in skip:
                continue
            if v.device != dst if type(v) is torch.Tensor else not _stays(v, dst, skip):
                return False
        return True
    return tree is None or kind in SCALARS or left_alone(tree)


def left_alone(x: Any) -> bool:
    """What accelerate gives back as it is, a cache for one: it looks into what can be moved and into containers, and into nothing else."""
    return not (isinstance(x, (tuple, list, Mapping)) or hasattr(x, "to"))


def _walk(session: Session, tree: Any, dst: Any, skip: Any, send: Callable[..., Any]) -> Any:
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind([session.deliver(x, dst) if type(x) is torch.Tensor else _walk(session, x, dst, skip, send) for x in tree])
    if kind is dict:
        out = session.deliver_again(tree, dst)
        if out is not None:
            return out
        out = {}
        for k, v in tree.items():
            if v is None or v is True or v is False or k in skip:
                out[k] = v
            else:
                out[k] = session.deliver(v, dst) if type(v) is torch.Tensor else _walk(session, v, dst, skip, send)
        session.delivered(tree, out, dst, skip)
        return out
    if isinstance(tree, torch.Tensor):
        return session.deliver(tree, dst)
    if tree is None or kind in SCALARS or left_alone(tree):
        return tree
    if isinstance(dst, Link):
        return type(tree)({k: _walk(session, v, dst, skip, send) for k, v in tree.items()}) if hasattr(tree, "items") else tree
    return send(tree, dst, skip_keys=list(skip))  # its leaves come back through Tensor.to


_walk_all = gathered(_walk)
