"""Where torch and accelerate are listened to while a guard is on.

In:      `hold()` puts the ears in for as long as one guard is on, `release()` takes the last ones out.
Out:     what could be a crossing goes to copies.py, everything else where it always went.
Unknown: what a graph does that was compiled before the guard came.
Source:  accelerate's hooks call `send_to_device`, and that calls `Tensor.to`. These are listened to, not a TorchFunctionMode: on two cores
         a mode costs 0.9 to 1.3 us on every torch call and attribute (some 3,000 per token), this 0.5 us on `.to` only.
         torch.compile looks into this file, and into no other of this folder (watch.py): a change of dtype or a `.to` to where the tensor is
         stays part of the user's graph, a crossing breaks it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch

from linkproof.guard.copies import arrived, gathered, moved, sent, to

_copy_: Callable[..., torch.Tensor] = torch.Tensor.copy_
_setitem: Callable[..., None] = torch.Tensor.__setitem__
is_compiling = torch.compiler.is_compiling


def _heard_to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if args and type(args[0]) is torch.dtype and "device" not in kwargs:
        return to(self, *args, **kwargs)
    if is_compiling() and _stays(self, args[0] if args else kwargs.get("device", kwargs.get("other"))):
        return to(self, *args, **kwargs)
    return moved(self, args, kwargs)


def _stays(t: torch.Tensor, wanted: Any) -> bool:
    """While a graph is made: what is certain to go nowhere."""
    if wanted is None:
        return True
    if isinstance(wanted, torch.Tensor):
        return wanted.device == t.device
    return isinstance(wanted, (str, torch.device)) and torch.device(wanted) == t.device


def _heard_cuda(
    self: torch.Tensor, device: Any = None, non_blocking: bool = False, memory_format: Any = torch.preserve_format
) -> torch.Tensor:
    return _heard_to(self, "cuda" if device is None else device, non_blocking=non_blocking, memory_format=memory_format)


def _heard_type_as(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return _heard_to(self, other.device, other.dtype)


def _heard_copy_(self: torch.Tensor, src: Any, non_blocking: bool = False) -> torch.Tensor:
    if is_compiling() and _stays(self, src):
        return _copy_(self, src, non_blocking)
    return _copy_(self, arrived(self, src), non_blocking)


def _heard_setitem(self: torch.Tensor, index: Any, value: Any) -> None:
    if is_compiling() and not (isinstance(value, torch.Tensor) and value.device != self.device):
        return _setitem(self, index, value)
    return _setitem(self, index, arrived(self, value))


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
_pre_forward: Callable[..., Any] | None = None


def hold() -> None:
    global _holders, _send, _pre_forward
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
        accelerate.hooks.send_to_device = functools.partial(sent, _send)
        _pre_forward = accelerate.hooks.AlignDevicesHook.pre_forward
        # it sends positional arguments, then the named ones: both are read in one go
        accelerate.hooks.AlignDevicesHook.pre_forward = gathered(_pre_forward)


def release() -> None:
    global _holders, _send, _pre_forward
    with _lock:
        _holders -= 1
        if _holders:
            return
        for name in EARS:
            delattr(torch.Tensor, name)
        if _send is not None:
            import accelerate.hooks

            accelerate.hooks.send_to_device, _send = _send, None
            accelerate.hooks.AlignDevicesHook.pre_forward, _pre_forward = _pre_forward, None
