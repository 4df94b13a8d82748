"""Memory of every kind taken from the driver or torch, given to another process, opened by it.

In:      a GPU that is current, sizes.
Out:     Memory; bytes for the other process.
Raises:  DriverError, torch's out of memory; NotPossible if the other process or its GPU is not there.
Source:  kinds of devices.py, and "ipc" and "ipc_vmm": memory made to be shared that way.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec
import torch

from linkproof.probe.devices import NotPossible
from linkproof.probe.gpu.driver import Driver, DriverError
from linkproof.probe.gpu.memory import Door, Memory, Shared, fetch


def take(driver: Driver, gpu: int, size_B: int, kind: str) -> Memory:
    size_B = max(size_B, 1)
    if kind == "plain":
        tensor = torch.empty(size_B, dtype=torch.uint8, device=f"cuda:{gpu}")
        memory = Memory(gpu, size_B, tensor.data_ptr(), kind, lambda: None)
        memory.tensor = tensor
        return memory
    if kind == "ipc":
        address = driver.take(size_B)
        return Memory(gpu, size_B, address, kind, lambda: _on(driver, gpu, lambda: driver.give(address)))
    if kind == "pool":
        address = driver.pool_take(gpu, size_B)
        driver.finish()
        return Memory(gpu, size_B, address, kind, lambda: _on(driver, gpu, lambda: driver.pool_give(address)))
    if kind in ("vmm", "ipc_vmm"):
        handle, whole_B = driver.vmm_create(gpu, size_B)
        return _mapped(driver, handle, whole_B, gpu, gpu, size_B)
    raise ValueError(kind)


def _mapped(driver: Driver, handle: int, whole_B: int, owner: int, home: int, size_B: int) -> Memory:
    try:
        address = driver.vmm_map(handle, whole_B, home)
    except DriverError:
        driver.vmm_release(handle)
        raise

    def give() -> None:
        driver.vmm_unmap(address, whole_B)
        driver.vmm_release(handle)

    memory = Memory(owner, size_B, address, "vmm", lambda: _on(driver, home, give), home)
    memory.handle, memory.whole_B = handle, whole_B
    return memory


def _on(driver: Driver, gpu: int, give: Callable[[], None]) -> None:
    """Nothing may still use what is given back, and the driver wants the right context."""
    with torch.cuda.device(gpu):
        driver.enter(gpu)
        driver.finish()
        give()


def share_memory(driver: Driver, memory: Memory, handle: str, uuid: str) -> bytes:
    if handle == "ipc":
        found, offset_B = driver.ipc_get(memory.address_B)
        return msgspec.msgpack.encode(Shared(uuid, memory.size_B, offset_B, found))
    if not memory.whole_B:
        raise ValueError("only memory of the virtual memory API has a handle of that kind")
    memory.door = memory.door or Door(driver.vmm_export(memory.handle))
    return msgspec.msgpack.encode(Shared(uuid, memory.size_B, door=memory.door.name, whole_B=memory.whole_B))


def open_shared(driver: Driver, gpu: int, shared: bytes, handle: str, uuids: list[str]) -> Memory:
    told = msgspec.msgpack.decode(shared, type=Shared)
    if told.uuid not in uuids:
        raise NotPossible("the GPU that owns the memory is not visible to this process")
    owner = uuids.index(told.uuid)
    if handle == "ipc":
        base = driver.ipc_open(told.handle)
        return Memory(owner, told.size_B, base + told.offset_B, "opened", lambda: _on(driver, gpu, lambda: driver.ipc_close(base)), gpu)
    try:
        fd = fetch(told.door)
    except OSError as e:
        raise NotPossible("the other process does not hand out its memory: {error}", error=e.strerror or str(e)) from e
    try:
        imported = driver.vmm_import(fd)
    finally:
        os.close(fd)
    return _mapped(driver, imported, told.whole_B, owner, gpu, told.size_B)
