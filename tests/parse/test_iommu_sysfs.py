from __future__ import annotations

import pytest
from machine_texts import events, of

from linkproof.model import Iommu


def modes(words: str) -> list[tuple[str, str]]:
    return [(fact.mode, fact.device) for fact in of(Iommu, words)]


@pytest.mark.parametrize("kind, mode", [("DMA", "translating"), ("DMA-FQ", "translating"), ("identity", "passthrough")])
def test_the_type_of_the_groups_is_the_mode(kind: str, mode: str) -> None:
    by_grep = "\n".join(f"/sys/kernel/iommu_groups/{n}/type:{kind}" for n in range(3))
    by_cat = "$ cat /sys/kernel/iommu_groups/*/type\n" + f"{kind}\n" * 3
    assert modes(by_grep) == modes(by_cat) == [(mode, "")]


def test_groups_of_different_types_do_not_tell_the_gpus() -> None:
    assert modes("/sys/kernel/iommu_groups/1/type:identity\n/sys/kernel/iommu_groups/2/type:DMA-FQ") == [("unknown", "")]


def test_a_type_read_through_the_device_is_of_that_device() -> None:
    assert modes("/sys/bus/pci/devices/0000:41:00.0/iommu_group/type:DMA-FQ") == [("translating", "0000:41:00.0")]


def test_the_word_identity_elsewhere_is_no_type() -> None:
    assert not modes("$ ls /sys/kernel/iommu_groups\nidentity\nDMA")
    assert not modes("identity matrix and DMA engines")


@pytest.mark.parametrize("name, maker", [("dmar0  dmar1", "intel"), ("ivhd0  ivhd1  ivhd2", "amd"), ("smmu3.0x0000000011000000", "arm")])
def test_a_unit_in_the_list_shows_that_an_iommu_is_on(name: str, maker: str) -> None:
    words = f"$ ls /sys/class/iommu\n{name}"
    assert ("iommu_enabled", maker) in events(words)
    assert not modes(words)


def test_an_empty_list_is_off_only_if_the_listing_says_so() -> None:
    assert modes("$ ls /sys/class/iommu\n$ uname -r\n6.8.0") == [("off", "")]
    assert modes("$ ls -l /sys/class/iommu\ntotal 0\n$ uname -r") == [("off", "")]
    assert not modes("$ ls /sys/class/iommu")
    assert not modes("$ ls -l /sys/class/iommu\ntotal 0\nlrwxrwxrwx 1 root root 0 ivhd0 -> ../../devices/pci0000:00/ivhd0")


def test_a_list_of_groups_shows_that_an_iommu_is_on() -> None:
    assert ("iommu_enabled", "") in events("IOMMU Group 14 01:00.0 VGA compatible controller [0300]: NVIDIA Corporation AD102 [10de:2684]")
    assert not events("what is an IOMMU Group and why")


def test_a_unit_in_prose_is_no_list() -> None:
    assert not events("names like dmar0 (Intel) or ivhd0 (AMD) below /sys/class/iommu tell the maker")
    assert ("iommu_enabled", "amd") in events("lrwxrwxrwx 1 root root 0 Jan 1 ivhd0 -> ../../devices/pci0000:00/0000:00:00.2/iommu/ivhd0")
