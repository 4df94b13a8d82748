from __future__ import annotations

import pytest
from machine_texts import of

from linkproof.model import Iommu, Setting


def asked(words: str) -> list[tuple[str, str]]:
    return [(fact.mode, fact.parameter) for fact in of(Iommu, words)]


@pytest.mark.parametrize("words, mode, parameter", [
    ("BOOT_IMAGE=/boot/vmlinuz-5.15 root=/dev/mapper/vg-root ro intel_iommu=on", "translating", "intel_iommu=on"),
    ('GRUB_CMDLINE_LINUX_DEFAULT="quiet amd_iommu=on iommu=pt"', "passthrough", "amd_iommu=on iommu=pt"),
    ("[    0.0] Kernel command line: BOOT_IMAGE=/vmlinuz ro iommu.passthrough=1", "passthrough", "iommu.passthrough=1"),
    ("linux /boot/vmlinuz-6.8 root=UUID=1-2 ro quiet amd_iommu=off", "off", "amd_iommu=off"),
    ("$ cat /proc/cmdline\nroot=/dev/sda1 iommu=off", "off", "iommu=off"),
    ("ro quiet intel_iommu=on,sm_on", "translating", "intel_iommu=on,sm_on"),
    ("intel_iommu=on iommu=pt", "passthrough", "intel_iommu=on iommu=pt"),
    ("BOOT_IMAGE=/vmlinuz root=/dev/sda ro amd_iommu=on", "unknown", "amd_iommu=on"),
])  # fmt: skip
def test_what_the_command_line_asks_of_the_iommu(words: str, mode: str, parameter: str) -> None:
    assert asked(words) == [(mode, parameter)]


@pytest.mark.parametrize("words", ["quiet splash", 'GRUB_CMDLINE_LINUX=""', "BOOT_IMAGE=/vmlinuz root=/dev/sda ro quiet"])
def test_a_command_line_that_says_nothing_of_it_says_none(words: str) -> None:
    assert asked(words) == [("unknown", "none")]


def test_both_lines_of_grub_count_together() -> None:
    assert asked('GRUB_CMDLINE_LINUX_DEFAULT="quiet splash"\nGRUB_CMDLINE_LINUX="iommu=pt"') == [("passthrough", "iommu=pt")]


@pytest.mark.parametrize("words", [
    'Missing "iommu=pt" from kernel command line which can lead to system instablity or hang!',
    "Try to add iommu=pt or amd_iommu=off to GRUB",
    "I had intel_iommu=on before and it was quiet splash all the time",
    '#GRUB_CMDLINE_LINUX="iommu=off"',
    "please run cat /proc/cmdline and tell us",
])  # fmt: skip
def test_prose_and_comments_are_no_command_line(words: str) -> None:
    assert not asked(words)


@pytest.mark.parametrize("words, name", [
    ("BOOT_IMAGE=/vmlinuz ro pci=noacs", "pci=noacs"),
    ("BOOT_IMAGE=/vmlinuz ro pcie_acs_override=downstream,multifunction", "pcie_acs_override=downstream,multifunction"),
    ("BOOT_IMAGE=/vmlinuz ro pci=nommconf,config_acs=x0x00x0@0000:00:1c.0;xx0@0000:00:1d.0", "pci=config_acs=x0x00x0@0000:00:1c.0;xx0@0000:00:1d.0"),
    ("BOOT_IMAGE=/vmlinuz ro pci=disable_acs_redir=0000:00:1c.0", "pci=disable_acs_redir=0000:00:1c.0"),
])  # fmt: skip
def test_what_was_tried_against_acs_is_a_setting(words: str, name: str) -> None:
    assert [(fact.name, fact.effect) for fact in of(Setting, words)] == [(name, "present")]


def test_a_piece_that_speaks_of_acs_only_does_not_say_that_the_iommu_is_not_named() -> None:
    assert not asked("pci=noacs") and [fact.name for fact in of(Setting, "pci=noacs")] == ["pci=noacs"]
    assert not of(Setting, "BOOT_IMAGE=/vmlinuz ro pci=realloc")
