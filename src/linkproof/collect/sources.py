"""What is read from a host: one row a source. A new source is one row.

needs_root: without root the source gives less or nothing; then the report says how to read it.
"""

from __future__ import annotations

from typing import NamedTuple

from linkproof.collect.host import NVML, USER_CONF, Answer


class Source(NamedTuple):
    name: str  # as people name it; the name of the text in a capture
    what: str | tuple[str, ...]  # a path, or a command
    deadline_s: float = 4.0
    needs_root: bool = False
    bare: bool = False  # its one word does not say what it is: it is read as `NAME: word`


SOURCES: tuple[Source, ...] = (
    Source("NVML", NVML),
    Source("nvidia-smi", ("nvidia-smi",)),
    Source("nvidia-smi -q", ("nvidia-smi", "-q")),
    Source("nvidia-smi topo -m", ("nvidia-smi", "topo", "-m")),
    Source("nvidia-smi topo -p2p r", ("nvidia-smi", "topo", "-p2p", "r")),
    Source("nvidia-smi topo -p2p w", ("nvidia-smi", "topo", "-p2p", "w")),
    Source("nvidia-smi nvlink -s", ("nvidia-smi", "nvlink", "-s")),
    Source("nvidia-smi nvlink -e", ("nvidia-smi", "nvlink", "-e")),
    Source("rocm-smi --showtopo", ("rocm-smi", "--showtopo")),
    Source("rocm-smi --showproductname", ("rocm-smi", "--showproductname")),
    Source("systemctl status nvidia-fabricmanager", ("systemctl", "status", "--no-pager", "--lines=20", "nvidia-fabricmanager")),
    Source("dmesg", ("dmesg",), needs_root=True),
    Source("/proc/cmdline", "/proc/cmdline"),
    Source("/proc/version", "/proc/version"),
    Source("lscpu", ("lscpu",)),
    Source("systemd-detect-virt", ("systemd-detect-virt",), bare=True),
    Source("df /dev/shm", ("df", "-kP", "/dev/shm")),
    Source("/proc/self/limits", "/proc/self/limits"),
    Source("/proc/self/cgroup", "/proc/self/cgroup"),
    Source("/proc/meminfo", "/proc/meminfo"),
    Source("/proc/driver/nvidia/version", "/proc/driver/nvidia/version"),
    Source("/proc/driver/nvidia/params", "/proc/driver/nvidia/params"),
    Source("/sys/module/nvidia_uvm/parameters/uvm_disable_hmm", "/sys/module/nvidia_uvm/parameters/uvm_disable_hmm", bare=True),
    Source("/etc/nccl.conf", "/etc/nccl.conf"),
    Source("~/.nccl.conf", USER_CONF),
    Source("/sys/kernel/security/lockdown", "/sys/kernel/security/lockdown", bare=True),
    Source("/proc/mounts", "/proc/mounts"),
    Source("ibv_devinfo", ("ibv_devinfo",)),
)


class Got(NamedTuple):
    source: Source
    answer: Answer
