"""Memory of a GPU, and how another process gets it.

A CUDA IPC handle is 64 bytes that can be written anywhere. Memory of the virtual memory API travels as a file descriptor, which only a Unix
socket can carry: the owner listens, whoever knows its name asks. The name lies in the abstract namespace: nothing is left behind on the disk.

In:      addresses of the driver.
Out:     Memory (a Buffer of devices.py), Shared (what is told to the other process).
Raises:  OSError from `fetch`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import torch
from msgspec import Struct

from linkproof.probe.gpu.driver import DriverError

FETCH_DEADLINE_S = 10.0


class Memory:
    """gpu: whose memory it is; home: the GPU in whose context the address is mapped (another one only if a foreign process owns it).

    tensor: torch's own, for memory from its allocator; handle, whole_B: of the virtual memory API. reached: GPUs that were given access.
    written, read: events of transfers under way that fill it or read it.
    """

    def __init__(self, gpu: int, size_B: int, address_B: int, kind: str, give: Callable[[], None], home: int | None = None) -> None:
        self.gpu, self.size_B, self.address_B, self.kind = gpu, size_B, address_B, kind
        self.home = gpu if home is None else home
        self.tensor: Any = None
        self.handle = self.whole_B = 0
        self.door: Door | None = None
        self.reached = {self.home}
        self.written: Any = None
        self.read: list[Any] = []
        self._give: Callable[[], None] | None = give

    @property
    def under_way(self) -> bool:
        return self.written is not None or bool(self.read)

    def as_tensor(self) -> Any:
        """The bytes as a tensor of torch, whoever allocated them."""
        return self.tensor if self.tensor is not None else torch.as_tensor(self, device=f"cuda:{self.gpu}")

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (self.size_B,), "typestr": "|u1", "data": (self.address_B, False), "version": 2}

    def free(self) -> None:
        """A GPU that is lost has lost its memory too: the driver's complaint changes nothing."""
        with contextlib.suppress(RuntimeError):
            for event in (self.written, *self.read):
                if event is not None:
                    event.synchronize()
        give, self._give = self._give, None
        if give is not None:
            with contextlib.suppress(DriverError):
                give()
        self.tensor = None
        if self.door is not None:
            self.door.close()
            self.door = None


class Shared(Struct, frozen=True):
    """What another process must know. uuid: the owner GPU; the number may differ there. handle: of IPC, or door: where the descriptor is."""

    uuid: str
    size_B: int
    offset_B: int = 0
    handle: bytes = b""
    door: str = ""
    whole_B: int = 0


class Door:
    """Hands a copy of one file descriptor to every process of the same user that asks, until it is closed."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.name = f"linkproof-{secrets.token_hex(16)}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.bind("\0" + self.name)
        self.socket.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                guest, _ = self.socket.accept()
            except OSError:
                return
            with guest, contextlib.suppress(OSError):
                _, uid, _ = struct.unpack("3i", guest.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                if uid == os.getuid():
                    socket.send_fds(guest, [b"."], [self.fd])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self.socket.close()
        os.close(self.fd)


def fetch(door: str) -> int:
    """The descriptor behind a door. Raises OSError if nobody is there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(FETCH_DEADLINE_S)
        asking.connect("\0" + door)
        _, fds, _, _ = socket.recv_fds(asking, 1, 1)
    if not fds:
        raise OSError("no descriptor came")
    return fds[0]
