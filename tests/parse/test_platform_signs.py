from __future__ import annotations

import pytest
from machine_texts import of

from linkproof.model import Platform


def kinds(words: str) -> list[str]:
    return [fact.kind for fact in of(Platform, words)]


@pytest.mark.parametrize("words, kind", [
    ("Hypervisor vendor:               KVM", "vm"),
    ("[    0.000000] Hypervisor detected: KVM", "vm"),
    ("[    0.00] DMI: QEMU Standard PC (Q35 + ICH9, 2009), BIOS 1.16", "vm"),
    ("$ systemd-detect-virt\nkvm", "vm"),
    ("$ systemd-detect-virt\nnone", "bare_metal"),
    ("$ systemd-detect-virt\ndocker", "container"),
    ("[    0.01] Booting paravirtualized kernel on bare hardware", "bare_metal"),
    ("[    0.000000] Starting gVisor...", "sandbox"),
    ("docker run --runtime=runsc img", "sandbox"),
    ("Linux box 5.15.90.1-microsoft-standard-WSL2 #1 SMP x86_64", "wsl2"),
    ("0::/kubepods.slice/kubepods-burstable.slice/x", "pod"),
    ("12:memory:/docker/0123456789abcdef", "container"),
    ("overlay         1.8T  1.1T  600G  65% /", "container"),
    ("shm              64M     0   64M   0% /dev/shm", "container"),
    ('  File "C:\\\\Users\\\\me\\\\run.py", line 3, in <module>', "windows"),
])  # fmt: skip
def test_a_word_that_only_one_platform_prints_names_it(words: str, kind: str) -> None:
    assert kinds(words) == [kind]


def test_microsofts_hypervisor_below_wsl_is_wsl() -> None:
    assert kinds("Linux box 5.15.90.1-microsoft-standard-WSL2 #1 SMP\nHypervisor vendor: Microsoft\nVirtualization type: full") == ["wsl2"]
    assert kinds("Hypervisor vendor: Microsoft") == ["vm"]


@pytest.mark.parametrize("words", [
    "ls: cannot access '/.dockerenv': No such file or directory",
    "overlay  1.8T  1.1T  600G  65% /var/lib/docker/overlay2/abc/merged",
    "shm  64M  0  64M  0% /var/lib/docker/containers/1/mounts/shm",
    "tmpfs           126G  1.2M  126G   1% /dev/shm",
    "Virtualization: AMD-V",
    "[    0.00] DMI: Supermicro Super Server/H12SSL-i, BIOS 2.4",
    "we could try gVisor or docker on WSL one day",
    "kernel: Hypervisor mode is available",
])  # fmt: skip
def test_words_of_the_host_and_prose_name_no_platform(words: str) -> None:
    assert not kinds(words)
