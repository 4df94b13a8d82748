"""GPUs that do not exist, as a torch device: `torch.device("vgpu", i)` on a CPU, with links between them that can be broken.

    fabric = install(4); dispatch_model(model, {...: "vgpu:1"}); with fabric.broken(Fault("zero", pairs=("0->1",))): model.generate(...)

In:      how many devices; `probe.faults.Fault`s, and which tensors they may touch.
Out:     the Fabric, one per process: `hops` lists what went from device to device. Every operation runs on the CPU's kernels, so a model
         gives what it gives on the CPU; mixing two devices raises what torch raises. torch, transformers and accelerate stay as they are.
         Gradients: `torch.autograd.set_multithreading_enabled(False)` around `backward`, for torch has no thread for these devices.
Unknown: torch.compile sees these tensors as objects of a class of its own, not as tensors. Kinds that need time or memory behind the end (hang, slow, reorder, neighbour, atomics_lost) change no bytes here. A copy that
         loses bytes leaves what the memory held: what came to that device last, in that size, else zeros, as a caching allocator would.
Raises:  LinkproofError if this torch cannot have a device made in Python (2.9 can).
Source:  torch.utils.backend_registration: a PrivateUse1 backend in Python, which PyTorch calls experimental: for tests and the demo only.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from linkproof.errors import LinkproofError
from linkproof.probe.devices import U8
from linkproof.probe.faults import Fault, Injector

NAME = "vgpu"
LOGGED = 200_000  # hops
MEMORY_B = 8 << 30  # what a device says it has
TAKES_HOST_INDEX = ("aten::index.Tensor", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_", "aten::set_")


class Hop(NamedTuple):
    src: int
    dst: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    fault: str | None  # the kind that acted, if a byte is wrong for it


class Fabric:
    """The devices, and what lies between them."""

    def __init__(self) -> None:
        self.count = 0
        self.current = 0
        self.hops: deque[Hop] = deque(maxlen=LOGGED)
        self._injector: Injector | None = None
        self._touches: Callable[[torch.Tensor], bool] | None = None
        self._held: dict[tuple[int, int], U8] = {}  # (device, size in bytes): what came there last

    @contextlib.contextmanager
    def broken(self, *faults: Fault, touches: Callable[[torch.Tensor], bool] | None = None, seed: int = 0) -> Iterator[Fabric]:
        """While this lasts, the faults act on hops. touches: only on those of such a tensor (it is given as the CPU sees it)."""
        before = self._injector, self._touches
        self._injector, self._touches = Injector(faults, seed), touches
        try:
            yield self
        finally:
            self._injector, self._touches = before
            self._held.clear()

    def carry(self, sent: torch.Tensor, src: int, dst: int) -> torch.Tensor:
        """What arrives at dst of a tensor that src holds; both as the CPU sees them."""
        fault = None
        if self._injector is not None and sent.numel() and (self._touches is None or self._touches(sent)):
            data: U8 = sent.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
            held = self._held.get((dst, len(data)))
            memory = np.zeros(len(data), np.uint8) if held is None else held.copy()
            fault = self._injector.carry(("push",), src, dst, memory, 0, data)
            self._held[dst, len(data)] = memory
            if fault is not None:
                arrived = torch.empty_like(sent)
                arrived.copy_(torch.from_numpy(memory.copy()).view(sent.dtype).reshape(sent.shape))
                sent = arrived
                fault = None if np.array_equal(memory, data) else fault
        self.hops.append(Hop(src, dst, tuple(sent.shape), sent.dtype, None if fault is None else fault.kind))
        return sent


_FABRIC = Fabric()


def install(count: int = 4) -> Fabric:
    """Make sure that there are `count` devices at least. May be called again."""
    if not _FABRIC.count:
        try:
            from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as setup
        except ImportError:
            raise LinkproofError(
                "no-virtual-devices",
                (f"torch {torch.__version__} cannot have a device made in Python", f"torch {torch.__version__} 不支持用 Python 实现的设备"),
                ("the virtual GPUs are not there; real ones are not affected", "无法使用虚拟 GPU；真实 GPU 不受影响"),
                ("install torch 2.9 or newer", "请安装 torch 2.9 或更新版本"),
            ) from None
        setup(NAME, backend_module=_module(), **_hooks())
        _register()
    _FABRIC.count = max(_FABRIC.count, count)
    return _FABRIC


def _resolved(device: Any) -> torch.device:
    found = torch.device(NAME, device) if isinstance(device, int) else torch.device(device)
    return torch.device(NAME, _FABRIC.current) if found.type == NAME and found.index is None else found


class VirtualTensor(torch.Tensor):
    """Says that it lies on a virtual device; `held` is the CPU tensor that has its data."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device | None = None, requires_grad: bool = False, **_: Any) -> Any:
        """Without a device: a parameter again, as accelerate makes them: `type(old)(value, requires_grad=...)`."""
        if isinstance(held, VirtualTensor):
            held, device = held.held, device or held.device
        if device is None:
            return torch.nn.Parameter(held, requires_grad=requires_grad)
        self = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=device
        )
        self.held = held
        return self.requires_grad_() if requires_grad else self

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.held!r} on {self.device}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        name = func._schema.name
        if name == "aten::copy_":
            return _copy_from(args[1], args[0])
        if name == "aten::_to_copy":
            return _to_copy(func, args[0], kwargs)
        if name == "aten::to":  # torch.inference_mode does not take it apart into _to_copy
            return func.decompose(*args, **kwargs)
        devices, on_host = _places(args, kwargs)
        if len(devices) > 1 or (on_host and devices and name not in TAKES_HOST_INDEX):
            two = [*sorted(map(str, devices)), "cpu"]
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {two[0]} and {two[1]}! (when checking {name})"
            )
        where = next(iter(devices)) if devices else None
        if kwargs.get("device") is not None:
            where, kwargs = _resolved(kwargs["device"]), {**kwargs, "device": torch.device("cpu")}
        known: dict[int, VirtualTensor] = {}
        out = func(*_held(args, known), **_held(kwargs, known))
        if where is None or where.type != NAME:
            return out
        return _on(out, where, known if func._schema.is_mutable else {})  # only an operation in place gives an argument back


def _held(tree: Any, known: dict[int, VirtualTensor]) -> Any:
    """The arguments of an operation as the CPU sees them. known: filled, which tensor holds which."""
    kind = type(tree)
    if kind is VirtualTensor:
        known[id(tree.held)] = tree
        return tree.held
    if kind is tuple or isinstance(tree, list):  # the dispatcher has a list of its own
        return [_held(x, known) for x in tree] if kind is not tuple else tuple(_held(x, known) for x in tree)
    return {k: _held(v, known) for k, v in tree.items()} if kind is dict else tree


def _on(tree: Any, where: torch.device, known: dict[int, VirtualTensor]) -> Any:
    if isinstance(tree, torch.Tensor):
        return known.get(id(tree)) if id(tree) in known else VirtualTensor(tree, where)
    if isinstance(tree, (tuple, list)):
        return type(tree)([_on(x, where, known) for x in tree])
    return tree


def _places(*trees: Any) -> tuple[set[torch.device], bool]:
    """The virtual devices of all tensors in there, and whether one with dimensions lies on the host."""
    devices: set[torch.device] = set()
    on_host = False
    for x in trees:
        if isinstance(x, VirtualTensor):
            devices.add(x.device)
        elif isinstance(x, torch.Tensor):
            on_host = on_host or (x.dim() > 0 and x.device.type == "cpu")
        elif isinstance(x, (tuple, list, dict)):
            more, host = _places(*(x.values() if isinstance(x, dict) else x))
            devices, on_host = devices | more, on_host or host
    return devices, on_host


def _sent(src: torch.Tensor, to: torch.device) -> torch.Tensor:
    """The data of src, as they arrive at a device."""
    if not isinstance(src, VirtualTensor):
        return src
    if to.type != NAME or to == src.device:
        return src.held
    return _FABRIC.carry(src.held, src.device.index, to.index)


def _to_copy(func: Any, src: VirtualTensor, kwargs: Any) -> torch.Tensor:
    to = _resolved(kwargs.get("device") or src.device)
    out: torch.Tensor = func(_sent(src, to), **{**kwargs, "device": torch.device("cpu") if to.type == NAME else to})
    return VirtualTensor(out, to) if to.type == NAME else out


def _copy_from(src: torch.Tensor, dst: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    (dst.held if isinstance(dst, VirtualTensor) else dst).copy_(_sent(src, dst.device))
    return dst


def _register() -> None:
    """Where the Python key is off, as inside `torch.tensor(..., device="vgpu:1")`, these are what is called."""

    def empty(
        size: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None, memory_format: Any = None
    ) -> Any:
        form = memory_format or torch.contiguous_format
        return VirtualTensor(torch.empty(size, dtype=dtype or torch.get_default_dtype(), memory_format=form), _resolved(device or NAME))

    def strided(size: Any, stride: Any, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> Any:
        return VirtualTensor(torch.empty_strided(size, stride, dtype=dtype or torch.get_default_dtype()), _resolved(device or NAME))

    def counted(like: Any) -> Any:
        """Else torch makes an empty tensor and has it grow, which a wrapper cannot."""

        def make(*args: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> Any:
            return VirtualTensor(like(*args, dtype=dtype), _resolved(device or NAME))

        return make

    made: dict[str, Any] = {"empty.memory_format": empty, "empty_strided": strided, "_copy_from": _copy_from}
    made |= {f"arange{form}": counted(torch.arange) for form in ("", ".start", ".start_step")}
    made |= {f"eye{form}": counted(torch.eye) for form in ("", ".m")}
    for op, function in made.items():
        torch.library.impl(f"aten::{op}", "privateuseone")(function)


def _module() -> Any:
    """`torch.vgpu`: what torch and accelerate ask of a device's module."""

    class Module:
        def is_available(self) -> bool:
            return True

        is_initialized = is_bf16_supported = is_available

        def _is_in_bad_fork(self) -> bool:
            return False

        def current_device(self) -> int:
            return _FABRIC.current

        def set_device(self, device: Any) -> None:
            _FABRIC.current = _resolved(device).index

        def device_count(self) -> int:
            return _FABRIC.count

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.float16, torch.bfloat16]

        def mem_get_info(self, device: Any = None) -> tuple[int, int]:
            return MEMORY_B, MEMORY_B

        def manual_seed_all(self, seed: int) -> None:  # random numbers are the CPU's
            pass

        manual_seed = manual_seed_all

        def synchronize(self, device: Any = None) -> None:
            pass

        def empty_cache(self) -> None:
            pass

    return Module()


def _hooks() -> Any:
    class Hooks(torch._C._acc.PrivateUse1Hooks):
        def is_available(self) -> bool:
            return True

        def has_primary_context(self, dev_id: int) -> bool:
            return True

        def is_built(self) -> bool:
            return True

    class Guard(torch._C._acc.DeviceGuard):
        """Seen by torch once an instance of it lives."""

        def type_(self) -> Any:
            return torch._C._autograd.DeviceType.PrivateUse1

        def exchangeDevice(self, device: torch.device) -> torch.device:
            before = self.getDevice()
            self.setDevice(device)
            return before

        def getDevice(self) -> torch.device:
            return torch.device(NAME, _FABRIC.current)

        def setDevice(self, device: torch.device) -> None:
            _FABRIC.current = device.index

        uncheckedSetDevice = setDevice

        def deviceCount(self) -> int:
            return _FABRIC.count

    return {"hook": Hooks(), "device_guard": Guard()}
