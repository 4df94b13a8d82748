"""Which GPUs this process sees, and who else uses them.

In:      the driver, torch's device properties, NVML where it is there.
Out:     Cards. `busy` is "python3 (pid 123), 4.2 GiB"; "" means that nobody is known: NVML is missing, or it names no process but ours.
Unknown: a container may hide the processes of others: memory in use that no process accounts for, from HIDDEN_B on, counts as a hidden process.
         AMD: NVML does not see it, so busy is always "".
Raises:  nothing of its own; the driver's DriverError for an address that cannot be read.
Source:  NVML; asked before this process has a context, so that what is in use is not ours.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from linkproof.measured import Card
from linkproof.probe.gpu.driver import Driver, DriverError

GiB = 1 << 30
HIDDEN_B = 2 * GiB  # what a driver keeps for itself stays below


def busy() -> dict[str, str]:
    """Who uses each GPU, by PCI address; {} if NVML cannot say."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver, wrong version: all mean that nobody can be named
        return {}
    found = {}
    with contextlib.suppress(pynvml.NVMLError):
        for i in range(pynvml.nvmlDeviceGetCount()):
            with contextlib.suppress(pynvml.NVMLError):  # one GPU that does not answer
                bdf, users = _one(pynvml, pynvml.nvmlDeviceGetHandleByIndex(i))
                found[bdf] = users
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlShutdown()
    return found


def _one(nvml: Any, handle: Any) -> tuple[str, str]:
    bdf = nvml.nvmlDeviceGetPciInfo(handle).busId
    bdf = short(bdf.decode() if isinstance(bdf, bytes) else bdf)
    users, sizes_B = [], []
    with contextlib.suppress(nvml.NVMLError):
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            sizes_B.append(process.usedGpuMemory)  # None: the driver does not say
            if not ours(process.pid):
                size = "" if process.usedGpuMemory is None else f", {process.usedGpuMemory / GiB:.1f} GiB"
                users.append(f"{_name(process.pid)} (pid {process.pid}){size}")
    with contextlib.suppress(nvml.NVMLError):
        hidden_B = nvml.nvmlDeviceGetMemoryInfo(handle).used - sum(size or 0 for size in sizes_B)
        if hidden_B >= HIDDEN_B and None not in sizes_B:
            users.append(f"hidden process, {hidden_B / GiB:.1f} GiB")
    return bdf, "; ".join(users)


def short(bdf: str) -> str:
    """NVML writes the domain with eight digits, everybody else with four."""
    domain, _, rest = bdf.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def ours(pid: int) -> bool:
    """This process, its parent, and its siblings if the parent is the same program (the process that starts all workers)."""
    if pid in (os.getpid(), os.getppid()):
        return True
    with contextlib.suppress(OSError):
        return _parent(pid) == os.getppid() and Path(f"/proc/{os.getppid()}/exe").readlink() == Path("/proc/self/exe").readlink()
    return False


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "process"


def cards(driver: Driver, properties: list[Any], used: dict[str, str]) -> list[Card]:
    """properties: torch's, one per GPU."""
    found = []
    for i, p in enumerate(properties):
        bdf = uuid = ""
        with contextlib.suppress(DriverError):
            bdf = driver.bdf(i)
        with contextlib.suppress(DriverError):
            uuid = driver.uuid(i)
        multicast = None
        with contextlib.suppress(DriverError):
            multicast = False if driver.hip else driver.multicast(i)
        capability = p.gcnArchName if driver.hip else f"{p.major}.{p.minor}"
        found.append(Card(i, p.name, uuid, bdf, p.total_memory, capability, used.get(bdf, ""), multicast))
    return found
