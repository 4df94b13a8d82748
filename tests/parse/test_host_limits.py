from __future__ import annotations

import pytest
from machine_texts import of

from linkproof.model import Host, Setting


def host(words: str) -> list[tuple[str, str]]:
    return [(fact.fact, fact.value) for fact in of(Host, words)]


MIB_64 = str(64 << 20)


@pytest.mark.parametrize("words, size", [
    ("Filesystem      Size  Used Avail Use% Mounted on\nshm              64M     0   64M   0% /dev/shm", MIB_64),
    ("Filesystem      Size  Used Avail Use% Mounted on\nshm              64M", MIB_64),
    ("Filesystem     1K-blocks  Used Available Use% Mounted on\ntmpfs              65536     0     65536   0% /dev/shm", MIB_64),
    ("shm                  65536     0     65536   0% /dev/shm", MIB_64),
    ("Filesystem      1B-blocks  Used  Available Use% Mounted on\ntmpfs            67108864     0   67108864   0% /dev/shm", MIB_64),
    ("tmpfs           126G  1.2M  126G   1% /dev/shm", str(126 << 30)),
    ("shm on /dev/shm type tmpfs (rw,nosuid,nodev,noexec,relatime,size=65536k,inode64)", MIB_64),
    ("shm /dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=65536k,inode64 0 0", MIB_64),
    ('            "ShmSize": 67108864,', MIB_64),
    ("    shm_size: '2gb'", str(2 << 30)),
    ("docker run --gpus all --shm-size=1g vllm/vllm-openai", str(1 << 30)),
    ("    --shm-size 16G \\", str(16 << 30)),
])  # fmt: skip
def test_the_size_of_shared_memory_is_read_in_bytes(words: str, size: str) -> None:
    assert host(words) == [("shm_bytes", size)]


@pytest.mark.parametrize("words", [
    "tmpfs            63G  1.2M   63G   1% /run/user/1000",
    "shm              64M     0   64M   0% /var/lib/docker/containers/1/mounts/shm",
    "you may try --shm-size=1g or more",
    "Error while creating shared memory segment /dev/shm/nccl-pZafXL (size 7340384)",
])  # fmt: skip
def test_other_mounts_and_advice_are_no_size(words: str) -> None:
    assert not host(words)


def test_ipc_of_the_host_is_a_setting_when_it_is_used() -> None:
    words = "docker run --ipc=host -e HF_TOKEN=abcdefgh img"
    assert [(fact.name, fact.source.text) for fact in of(Setting, words)] == [("--ipc=host", "docker run --ipc=host -e HF_TOKEN=*** img")]
    assert not of(Setting, "maybe use --ipc=host")


@pytest.mark.parametrize("words, facts", [
    ("max locked memory       (kbytes, -l) 8192\nmax user processes              (-u) 65535", [("memlock_kib", "8192"), ("nproc", "65535")]),
    ("max locked memory           (kbytes, -l) unlimited", [("memlock_kib", "unlimited")]),
    ("$ ulimit -l\n8192", [("memlock_kib", "8192")]),
    ("Max locked memory         65536                65536                bytes     ", [("memlock_kib", "64")]),
    ("CmaTotal:              0 kB\nCmaFree: 0 kB", [("cma_kib", "0")]),
    ("$ cat /sys/fs/cgroup/pids.max\n4096", [("pids_max", "4096")]),
    ("$ cat /sys/fs/cgroup/cpu.max\n200000 100000", [("cpu_limit", "2")]),
    ("CPU(s):                          256\nOff-line CPU(s) list:            255\nVendor ID:   AuthenticAMD",
     [("cpu_count", "256"), ("cpu_offline", "255"), ("cpu_vendor", "AuthenticAMD")]),
    ("ls: cannot access '/dev/nvidia-caps-imex-channels': No such file or directory", [("nvidia_caps_missing", "/dev/nvidia-caps-imex-channels")]),
])  # fmt: skip
def test_limits_and_counts_are_read_from_their_tools(words: str, facts: list[tuple[str, str]]) -> None:
    assert host(words) == facts


@pytest.mark.parametrize("words", [
    "$ ulimit -l\nbash: ulimit: command not found", "open files                      (-n) 1024", "CmaTotal: unknown",
    "$ cat /sys/fs/cgroup/cpu.max\nmax 100000", "NUMA node0 CPU(s): 0-127", "On-line CPU(s) list: 0-127",
])  # fmt: skip
def test_what_is_not_a_limit_gives_nothing(words: str) -> None:
    assert not host(words)


NODES = "node 0 cpus: 0 1 2\nnode 0 size: 128000 MB\nnode 1 cpus:{0}\nnode 1 size: {1} MB"


def test_a_node_with_processors_and_no_memory_is_asymmetric() -> None:
    assert host(NODES.format(" 3 4 5", 0)) == [("numa_asymmetric", "node 1: processors, no memory")]
    assert host(NODES.format("", 96000)) == [("numa_asymmetric", "node 1: memory, no processors")]


def test_full_nodes_and_empty_nodes_are_not_asymmetric() -> None:
    assert not host(NODES.format(" 3 4 5", 128000))
    assert not host(NODES.format("", 0))
