"""The GPU driver's own calls, by ctypes: what torch does not offer, or does in its own way. libcuda for NVIDIA, libamdhip64 for AMD.

In:      numbers of GPUs as the process sees them (the driver honours CUDA_VISIBLE_DEVICES as torch does), addresses, streams as integers.
Out:     integers and bytes. Calls act on the current context: `enter` first. Nothing here waits, but for `finish`.
Unknown: a call that this driver does not have raises DriverError with code 0.
Raises:  DriverError.
Source:  CUDA driver API; HIP runtime API, where the calls have the same arguments unless written otherwise here.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

OUT_OF_MEMORY, ALREADY_ENABLED = 2, 704
HANDLE_B = 64
POSIX_FD = 1
MULTICAST_SUPPORTED = 132  # CU_DEVICE_ATTRIBUTE_...
DEFAULT_KIND = 4  # hipMemcpyDefault: the addresses say where they lie

# name here -> (CUDA, HIP)
_CALLS = {
    "init": ("cuInit", "hipInit"),
    "can_access": ("cuDeviceCanAccessPeer", "hipDeviceCanAccessPeer"),
    "bdf": ("cuDeviceGetPCIBusId", "hipDeviceGetPCIBusId"),
    "uuid": ("cuDeviceGetUuid_v2", "hipDeviceGetUuid"),
    "finish": ("cuCtxSynchronize", "hipDeviceSynchronize"),
    "to_host": ("cuMemcpyDtoHAsync_v2", "hipMemcpyDtoHAsync"),
    "from_host": ("cuMemcpyHtoDAsync_v2", "hipMemcpyHtoDAsync"),
    "take": ("cuMemAlloc_v2", "hipMalloc"),
    "give": ("cuMemFree_v2", "hipFree"),
    "range": ("cuMemGetAddressRange_v2", "hipMemGetAddressRange"),
    "ipc_get": ("cuIpcGetMemHandle", "hipIpcGetMemHandle"),
    "ipc_open": ("cuIpcOpenMemHandle_v2", "hipIpcOpenMemHandle"),
    "ipc_close": ("cuIpcCloseMemHandle", "hipIpcCloseMemHandle"),
}


class DriverError(Exception):
    def __init__(self, call: str, code: int, text: str) -> None:
        super().__init__(f"{call}: {text}")
        self.call, self.code = call, code


class _Bytes16(ctypes.Structure):
    _fields_ = [("data", ctypes.c_ubyte * 16)]


class _Handle(ctypes.Structure):
    _fields_ = [("data", ctypes.c_ubyte * HANDLE_B)]


class _Access(ctypes.Structure):
    """CUmemAccessDesc: who (kind 1: a GPU), and what it may (3: read and write)."""

    _fields_ = [("kind", c_int), ("gpu", c_int), ("flags", c_int)]


class _Memory(ctypes.Structure):
    """CUmemAllocationProp: pinned memory (1) of a GPU (1)."""

    _fields_ = [
        ("type", c_int), ("handles", c_int), ("kind", c_int), ("gpu", c_int), ("win32", c_void_p), ("flags", ctypes.c_ubyte * 8),
    ]  # fmt: skip


class Driver:
    def __init__(self, hip: bool) -> None:
        self.hip = hip
        try:
            self.lib = ctypes.CDLL("libamdhip64.so" if hip else "libcuda.so.1")
        except OSError as e:
            raise DriverError("load", 0, str(e)) from e
        self.contexts: dict[int, c_void_p] = {}
        self.call("init", c_uint(0))

    def call(self, name: str, *args: Any) -> None:
        name = _CALLS[name][self.hip] if name in _CALLS else name
        function = getattr(self.lib, name, None)
        if function is None:
            raise DriverError(name, 0, "this driver does not have it")
        code = function(*args)
        if code:
            raise DriverError(name, code, self.text(code))

    def text(self, code: int) -> str:
        if self.hip:
            self.lib.hipGetErrorString.restype = ctypes.c_char_p
            return str(self.lib.hipGetErrorString(c_int(code)).decode())
        found = ctypes.c_char_p()
        self.lib.cuGetErrorString(c_int(code), byref(found))
        return f"error {code}" if found.value is None else found.value.decode()

    # ------------------------------------------------ GPUs

    def enter(self, gpu: int) -> None:
        """Makes the GPU's primary context, the one that torch uses, current for this thread."""
        if self.hip:
            self.contexts[gpu] = c_void_p(gpu)
            self.call("hipSetDevice", c_int(gpu))
            return
        if gpu not in self.contexts:
            context = c_void_p()
            self.call("cuDevicePrimaryCtxRetain", byref(context), c_int(gpu))
            self.contexts[gpu] = context
        self.call("cuCtxSetCurrent", self.contexts[gpu])

    def finish(self) -> None:
        """Waits for the current context; an error that broke it for good comes back here, every time."""
        self.call("finish")

    def can_access(self, gpu: int, peer: int) -> bool:
        found = c_int()
        self.call("can_access", byref(found), c_int(gpu), c_int(peer))
        return bool(found.value)

    def enable_peer(self, gpu: int, peer: int) -> None:
        """From now on, kernels and copy engines of `gpu` reach the memory of `peer`. The context of `gpu` is current afterwards."""
        self.enter(peer)
        self.enter(gpu)
        try:
            if self.hip:
                self.call("hipDeviceEnablePeerAccess", c_int(peer), c_uint(0))
            else:
                self.call("cuCtxEnablePeerAccess", self.contexts[peer], c_uint(0))
        except DriverError as e:
            if e.code != ALREADY_ENABLED:
                raise

    def multicast(self, gpu: int) -> bool:
        """The GPU and its NVSwitches offer multicast objects. Asks only; NVIDIA."""
        found = c_int()
        self.call("cuDeviceGetAttribute", byref(found), c_int(MULTICAST_SUPPORTED), c_int(gpu))
        return bool(found.value)

    def bdf(self, gpu: int) -> str:
        room = ctypes.create_string_buffer(32)
        self.call("bdf", room, c_int(32), c_int(gpu))
        return room.value.decode().lower()

    def uuid(self, gpu: int) -> str:
        found = _Bytes16()
        self.call("uuid", byref(found), c_int(gpu))
        raw = bytes(found.data)
        if self.hip:  # sixteen characters
            return "GPU-" + raw.decode("ascii", "replace")
        h = raw.hex()
        return f"GPU-{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"

    # ------------------------------------------------ copies

    def copy(self, to: int, source: int, size_B: int, stream: int) -> None:
        if self.hip:
            self.call("hipMemcpyAsync", c_void_p(to), c_void_p(source), c_size_t(size_B), c_int(DEFAULT_KIND), c_void_p(stream))
        else:
            self.call("cuMemcpyAsync", c_ulonglong(to), c_ulonglong(source), c_size_t(size_B), c_void_p(stream))

    def copy_peer(self, to: int, to_gpu: int, source: int, source_gpu: int, size_B: int, stream: int) -> None:
        if self.hip:
            where = (c_void_p(to), c_int(to_gpu), c_void_p(source), c_int(source_gpu))
            self.call("hipMemcpyPeerAsync", *where, c_size_t(size_B), c_void_p(stream))
        else:
            here = (c_ulonglong(to), self.contexts[to_gpu], c_ulonglong(source), self.contexts[source_gpu])
            self.call("cuMemcpyPeerAsync", *here, c_size_t(size_B), c_void_p(stream))

    def to_host(self, host: int, source: int, size_B: int, stream: int) -> None:
        self.call("to_host", c_void_p(host), c_ulonglong(source), c_size_t(size_B), c_void_p(stream))

    def from_host(self, to: int, host: int, size_B: int, stream: int) -> None:
        self.call("from_host", c_ulonglong(to), c_void_p(host), c_size_t(size_B), c_void_p(stream))

    # ------------------------------------------------ memory with a handle for other processes

    def take(self, size_B: int) -> int:
        found = c_ulonglong()
        self.call("take", byref(found), c_size_t(size_B))
        return found.value

    def give(self, address: int) -> None:
        self.call("give", c_ulonglong(address))

    def ipc_get(self, address: int) -> tuple[bytes, int]:
        """A handle opens a whole allocation: (handle, offset of the address in it)."""
        base, size, handle = c_ulonglong(), c_size_t(), _Handle()
        self.call("range", byref(base), byref(size), c_ulonglong(address))
        self.call("ipc_get", byref(handle), c_ulonglong(base.value))
        return bytes(handle.data), address - base.value

    def ipc_open(self, handle: bytes) -> int:
        """Maps it for the current context; flag 1: enable peer access to its owner where needed."""
        found = c_ulonglong()
        self.call("ipc_open", byref(found), _Handle.from_buffer_copy(handle), c_uint(1))
        return found.value

    def ipc_close(self, address: int) -> None:
        self.call("ipc_close", c_ulonglong(address))

    # ------------------------------------------------ stream-ordered pool (NVIDIA)

    def pool_take(self, gpu: int, size_B: int) -> int:
        found = c_ulonglong()
        self.call("cuMemAllocFromPoolAsync", byref(found), c_size_t(size_B), self._pool(gpu), c_void_p(0))
        return found.value

    def pool_give(self, address: int) -> None:
        self.call("cuMemFreeAsync", c_ulonglong(address), c_void_p(0))

    def pool_allow(self, owner: int, gpu: int) -> None:
        self.call("cuMemPoolSetAccess", self._pool(owner), byref(_Access(1, gpu, 3)), c_size_t(1))

    def _pool(self, gpu: int) -> c_void_p:
        pool = c_void_p()
        self.call("cuDeviceGetDefaultMemPool", byref(pool), c_int(gpu))
        return pool

    # ------------------------------------------------ virtual memory API (NVIDIA)

    def vmm_create(self, gpu: int, size_B: int) -> tuple[int, int]:
        """Physical memory that can be handed to other processes as a file descriptor: (its handle, its size in whole granules)."""
        prop = _Memory(1, POSIX_FD, 1, gpu, None)
        granule, handle = c_size_t(), c_ulonglong()
        self.call("cuMemGetAllocationGranularity", byref(granule), byref(prop), c_int(1))
        whole_B = -(-size_B // granule.value) * granule.value
        self.call("cuMemCreate", byref(handle), c_size_t(whole_B), byref(prop), c_ulonglong(0))
        return handle.value, whole_B

    def vmm_map(self, handle: int, whole_B: int, gpu: int) -> int:
        """An address for it, which `gpu` may use."""
        address = c_ulonglong()
        self.call("cuMemAddressReserve", byref(address), c_size_t(whole_B), c_size_t(0), c_ulonglong(0), c_ulonglong(0))
        try:
            self.call("cuMemMap", address, c_size_t(whole_B), c_size_t(0), c_ulonglong(handle), c_ulonglong(0))
        except DriverError:
            self.call("cuMemAddressFree", address, c_size_t(whole_B))
            raise
        try:
            self.vmm_allow(address.value, whole_B, gpu)
        except DriverError:
            self.vmm_unmap(address.value, whole_B)
            raise
        return address.value

    def vmm_allow(self, address: int, whole_B: int, gpu: int) -> None:
        self.call("cuMemSetAccess", c_ulonglong(address), c_size_t(whole_B), byref(_Access(1, gpu, 3)), c_size_t(1))

    def vmm_unmap(self, address: int, whole_B: int) -> None:
        self.call("cuMemUnmap", c_ulonglong(address), c_size_t(whole_B))
        self.call("cuMemAddressFree", c_ulonglong(address), c_size_t(whole_B))

    def vmm_release(self, handle: int) -> None:
        self.call("cuMemRelease", c_ulonglong(handle))

    def vmm_export(self, handle: int) -> int:
        fd = c_int()
        self.call("cuMemExportToShareableHandle", byref(fd), c_ulonglong(handle), c_int(POSIX_FD), c_ulonglong(0))
        return fd.value

    def vmm_import(self, fd: int) -> int:
        handle = c_ulonglong()
        self.call("cuMemImportFromShareableHandle", byref(handle), c_void_p(fd), c_int(POSIX_FD))
        return handle.value
