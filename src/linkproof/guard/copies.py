"""Where torch and accelerate are listened to, and how a tensor gets to another GPU.

In:      `hold()` puts the ears in for as long as one guard is on, `release()` takes the last ones out. They do nothing but in a thread that
         is inside a guarded model (`local.session`).
Out:     crossings between two accelerators go to `session.cross`; everything else goes where it always went.
Unknown: copies made in C++ or by `torch.as_tensor(t, device=...)`, gradients of crossings made before the guard was on.
Source:  accelerate's hooks call `send_to_device`, and that calls `Tensor.to`. The two are listened to, not a TorchFunctionMode: on two cores
         a mode costs 0.9 to 1.3 us on every torch call and attribute (some 3,000 per token), this 0.5 us on `.to` only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
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
        return t.clone() if link.border else to(t, link.dst)
    if link.src.type == link.dst.type == "cuda":
        host = to(t, "cpu", non_blocking=True)  # pinned; whoever reads it must wait for the source's stream
        done = torch.cuda.current_stream(link.src).record_event()
        torch.cuda.current_stream(link.dst).wait_event(done)
        return to(host, link.dst, non_blocking=True)
    host = t.clone() if link.src.type == "cpu" else t.cpu()
    return to(host, link.dst)


# ---------------------------------------------------------------- ears

to: Callable[..., torch.Tensor] = torch.Tensor.to
_copy_: Callable[..., torch.Tensor] = torch.Tensor.copy_
_setitem: Callable[..., None] = torch.Tensor.__setitem__


def _heard_to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    session = local.session
    if session is None or (args and type(args[0]) is torch.dtype and "device" not in kwargs):
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


def _heard_cuda(
    self: torch.Tensor, device: Any = None, non_blocking: bool = False, memory_format: Any = torch.preserve_format
) -> torch.Tensor:
    return _heard_to(self, "cuda" if device is None else device, non_blocking=non_blocking, memory_format=memory_format)


def _heard_type_as(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return _heard_to(self, other.device, other.dtype)


def _arrived(here: torch.Tensor, value: Any) -> Any:
    """The value, brought to where it will be written if it lies on another GPU."""
    session = local.session
    if session is None or not isinstance(value, torch.Tensor) or value.device == here.device:
        return value
    if not (is_gpu(value.device) and is_gpu(here.device)):
        return value
    return session.cross(value, session.guard.link(value.device, here.device))


def _heard_copy_(self: torch.Tensor, src: Any, non_blocking: bool = False) -> torch.Tensor:
    return _copy_(self, _arrived(self, src), non_blocking)


def _heard_setitem(self: torch.Tensor, index: Any, value: Any) -> None:
    _setitem(self, index, _arrived(self, value))


EARS = {
    "to": _heard_to,
    "cuda": _heard_cuda,
    "type_as": _heard_type_as,
    "copy_": _heard_copy_,
    "__setitem__": _heard_setitem,
}
_lock = threading.Lock()
_holders = 0
_send: Callable[..., Any] | None = None


def hold() -> None:
    global _holders, _send
    with _lock:
        _holders += 1
        if _holders > 1:
            return
        for name, ear in EARS.items():
            setattr(torch.Tensor, name, ear)  # over the method that Tensor inherits
        try:
            import accelerate.hooks
        except ImportError:  # a model that is split by hand
            return
        _send = accelerate.hooks.send_to_device
        accelerate.hooks.send_to_device = _heard_send


def release() -> None:
    global _holders, _send
    with _lock:
        _holders -= 1
        if _holders:
            return
        for name in EARS:
            delattr(torch.Tensor, name)
        if _send is not None:
            import accelerate.hooks

            accelerate.hooks.send_to_device, _send = _send, None


def _heard_send(tensor: Any, device: Any, non_blocking: bool = False, skip_keys: Any = None) -> Any:
    session = local.session
    assert _send is not None
    if session is None:
        return _send(tensor, device, non_blocking=non_blocking, skip_keys=skip_keys)
    if isinstance(device, Border):
        return _walk(session, tensor, device, ())
    if device is None:
        return tensor
    dst = device if type(device) is torch.device and device.index is not None else resolved(device)
    skip = (skip_keys,) if isinstance(skip_keys, str) else skip_keys or ()
    return tensor if _stays(tensor, dst, skip) else _walk(session, tensor, dst, skip)


def _stays(tree: Any, dst: torch.device, skip: Any) -> bool:
    """Nothing in there moves: most calls of most tokens, and quicker said than accelerate builds the same tree anew."""
    kind = type(tree)
    if kind is tuple or kind is list:
        return all([_stays(x, dst, skip) for x in tree])  # noqa: C419  a generator costs more than what it could save
    if kind is dict:
        return all([k in skip or _stays(v, dst, skip) for k, v in tree.items()])  # noqa: C419
    return tree is None or kind in SCALARS or (isinstance(tree, torch.Tensor) and tree.device == dst)


def _walk(session: Session, tree: Any, dst: Any, skip: Any) -> Any:
    kind = type(tree)
    if isinstance(tree, torch.Tensor):
        return session.deliver(tree, dst)
    if kind is tuple or kind is list:
        return kind([_walk(session, x, dst, skip) for x in tree])
    if kind is dict:
        return {k: v if k in skip else _walk(session, v, dst, skip) for k, v in tree.items()}
    if tree is None or kind in SCALARS:
        return tree
    if isinstance(dst, Border):
        return type(tree)({k: _walk(session, v, dst, skip) for k, v in tree.items()}) if hasattr(tree, "items") else tree
    assert _send is not None
    return _send(tree, dst, skip_keys=list(skip))  # its leaves come back through Tensor.to
