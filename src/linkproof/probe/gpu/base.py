"""What every call on a real GPU needs: the right current device, access to another GPU's memory, Triton if it is there, errors told in our words.

In:      numbers of GPUs as torch sees them.
Out:     `Gpus`, on which cuda.py builds. Making one starts CUDA; a context is made only on GPUs that are used.
Unknown: why Triton cannot build a kernel: its own words are kept.
Raises:  NotTested without a GPU; what `told` makes of an error: DeviceLost if the driver, asked again, says that a context is broken.
Source:  devices.py.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch

from linkproof.measured import Card
from linkproof.probe.devices import Buffer, DeviceLost, NotPossible, NotTested
from linkproof.probe.gpu import cards as gpu_cards
from linkproof.probe.gpu.driver import OUT_OF_MEMORY, Driver, DriverError
from linkproof.probe.gpu.memory import Memory

HOST_B = 16 << 20  # of the pinned buffer between host and GPU
ALL = TypeVar("ALL", bound=Callable[..., Any])


def told(method: ALL) -> ALL:
    """What torch, Triton and the driver raise, in the words of devices.py."""

    @functools.wraps(method)
    def call(self: Gpus, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except (NotPossible, DeviceLost, MemoryError):
            raise
        except Exception as e:
            raise self.meaning(e) from e

    return cast(ALL, call)


class Gpus:
    loaded = False

    def __init__(self) -> None:
        self.hip = torch.version.hip is not None
        self.backend = "hip" if self.hip else "cuda"
        used = {} if self.hip else gpu_cards.busy()
        try:
            torch.cuda.init()
            self.driver = Driver(self.hip)
            count = torch.cuda.device_count()
        except (RuntimeError, AssertionError, DriverError) as e:
            raise NotTested("PyTorch cannot use a GPU here: {error}", error=_line(e)) from e
        self._cards = gpu_cards.cards(self.driver, [torch.cuda.get_device_properties(i) for i in range(count)], used)
        self._host: torch.Tensor | None = None
        self._under_way: list[Memory] = []
        self._kernels: Any = None
        self._without = ""  # why there are no Triton kernels

    def cards(self) -> list[Card]:
        return list(self._cards)

    @contextmanager
    def on(self, gpu: int) -> Iterator[None]:
        """The GPU is the current one, for torch and for the driver."""
        with torch.cuda.device(gpu):
            self.driver.enter(gpu)
            yield

    def reach(self, gpu: int, memory: Memory) -> None:
        """From now on `gpu` may use this memory. Raises NotPossible if the driver does not offer it: it would go through the host, unasked."""
        if gpu in memory.reached:
            return
        if not self.driver.can_access(gpu, memory.gpu):
            raise NotPossible("the driver offers no peer access from GPU {a} to GPU {b}", a=str(gpu), b=str(memory.gpu))
        with self.on(gpu):
            self.driver.enable_peer(gpu, memory.gpu)
        if memory.kind == "pool":
            self.driver.pool_allow(memory.gpu, gpu)
        elif memory.whole_B:
            self.driver.vmm_allow(memory.address_B, memory.whole_B, gpu)
        elif memory.tensor is not None and not torch_takes_whole_allocations():
            self._torch_lets(gpu, memory.gpu)
        memory.reached.add(gpu)

    def _torch_lets(self, gpu: int, owner: int) -> None:
        """torch's allocators of virtual memory give peer access when torch first copies between two GPUs: a byte, both ways."""
        one, two = (torch.zeros(1, dtype=torch.uint8, device=f"cuda:{i}") for i in (gpu, owner))
        one.copy_(two)
        two.copy_(one)

    def triton(self, gpu: int) -> Any:
        """The kernels, or NotTested."""
        if self._triton(gpu) is None:
            raise NotTested("Triton cannot build kernels here: {error}", error=self._without)
        return self._kernels

    def _triton(self, gpu: int) -> Any:
        """The kernels if Triton can build one, tried once, on this GPU."""
        if self._kernels is None and not self._without:
            try:
                from linkproof.probe.gpu import kernels

                with self.on(gpu):
                    word = torch.zeros(2, dtype=torch.int64, device=f"cuda:{gpu}")
                    kernels.fill(word.data_ptr(), 1, 0, 2, False)
                    torch.cuda.current_stream().synchronize()
                self._kernels = kernels
            except Exception as e:  # no Triton, no C compiler, a GPU it does not know: whatever it is, there are no kernels
                meaning = self.meaning(e)
                if isinstance(meaning, (DeviceLost, MemoryError)):
                    raise meaning from e
                self._without = _line(e)
        return self._kernels

    @told
    def sync(self) -> None:
        for memory in self._under_way:
            for event in (memory.written, *memory.read):
                if event is not None:
                    event.synchronize()
            memory.written, memory.read = None, []
        self._under_way.clear()

    def _settled(self, buffer: Buffer) -> Memory:
        memory = cast(Memory, buffer)
        if memory.under_way:
            self.sync()
        return memory

    def _pinned(self) -> torch.Tensor:
        if self._host is None:
            self._host = torch.empty(HOST_B, dtype=torch.uint8, pin_memory=True)
        return self._host

    def _stream(self) -> int:
        return int(torch.cuda.current_stream().cuda_stream)

    def _nvidia_only(self) -> None:
        if self.hip:
            raise NotTested("tried on NVIDIA only, this is an AMD GPU")

    def meaning(self, e: Exception) -> Exception:
        """What an error of torch, Triton or the driver is to the caller. A broken context says so at every call: asked, not guessed."""
        if isinstance(e, torch.cuda.OutOfMemoryError) or (isinstance(e, DriverError) and e.code == OUT_OF_MEMORY):
            return MemoryError(_line(e))
        text = str(e)
        if not isinstance(e, DriverError) and not any(word in text for word in ("CUDA error", "HIP error", "driver error", "Triton Error")):
            if type(e).__module__.split(".")[0] == "triton":
                return NotTested("Triton cannot build kernels here: {error}", error=_line(e))
            return e
        for gpu in list(self.driver.contexts):
            try:
                self.driver.enter(gpu)
                self.driver.finish()
            except DriverError as broken:
                return DeviceLost(f"GPU {gpu}: {_line(broken)}")
        return MemoryError(_line(e)) if "out of memory" in text else NotPossible("the driver refused: {error}", error=_line(e))


def torch_takes_whole_allocations() -> bool:
    """False: torch's allocator is one whose memory peers do not reach by themselves (expandable segments, stream-ordered pools)."""
    settings = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "") + os.environ.get("PYTORCH_ALLOC_CONF", "")
    return "expandable_segments:True" not in settings and torch.cuda.get_allocator_backend() == "native"


def _line(e: BaseException) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0][:200]
