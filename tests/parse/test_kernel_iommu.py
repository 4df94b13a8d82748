from __future__ import annotations

import pytest
from machine_texts import events, of

from linkproof.model import Iommu, KernelLog


def faults(words: str) -> list[tuple[str, str, int]]:
    return [(fact.device, fact.driver, fact.count) for fact in of(KernelLog, words) if fact.fact == "io_page_fault"]


@pytest.mark.parametrize("words, device, driver", [
    ("[1118468.87] nvidia 0000:0a:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000f address=0x00000000ea13a000 flags=0x0020]", "0000:0a:00.0", "nvidia"),
    ("AMD-Vi: Event logged [IO_PAGE_FAULT device=0A:00.0 domain=0x000f address=0x00000000ea13a000 flags=0x0020]", "0a:00.0", ""),
    ("Jan  1 00:00:01 box kernel: AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:c1:00.0 domain=0x0001 address=0x1 flags=0x0000]", "0000:c1:00.0", ""),
    ("[    4.426] DMAR: [DMA Write NO_PASID] Request device [03:00.0] fault addr 0xfc000000 [fault reason 0x05] PTE Write access is not set", "03:00.0", ""),
    ("kernel: DMAR:[DMA Read] Request device [0000:82:00.0] fault addr fc000000 [fault reason 06] PTE Read access is not set", "0000:82:00.0", ""),
])  # fmt: skip
def test_a_page_fault_names_its_device_in_every_form(words: str, device: str, driver: str) -> None:
    assert faults(words) == [(device, driver, 1)]


def test_faults_of_one_device_are_told_once_and_counted_with_the_suppressed_ones() -> None:
    line = "amdgpu 0000:0c:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0014 address=0xf081000000 flags=0x0020]"
    words = f"[1.0] amd_iommu_report_page_fault: 102 callbacks suppressed\n[1.1] {line}\n[1.2] {line}\n[1.3] {line}"
    assert faults(words) == [("0000:0c:00.0", "amdgpu", 105)]


def test_a_fault_status_without_its_second_line_is_a_fault_of_an_unknown_device() -> None:
    assert faults("DMAR: DRHD: handling fault status reg 2") == [("", "", 1)]


def test_a_fault_of_interrupt_remapping_is_none_of_memory() -> None:
    words = "DMAR: DRHD: handling fault status reg 2\nDMAR: [INTR-REMAP] Request device [f0:1f.7] fault index 0 [fault reason 37] Blocked"
    assert not faults(words)


def test_a_fault_of_the_gpus_own_tables_is_none_of_the_iommu() -> None:
    words = "amdgpu 0000:03:00.0: amdgpu: [gfxhub0] no-retry page fault (src_id:0 ring:24 vmid:8 pasid:32769)"
    assert not faults(words)
    assert ("gpu_vm_fault", "0000:03:00.0") in events(words)


def test_an_smmu_event_is_a_fault_told_once_in_the_form_that_names_the_device() -> None:
    words = """\
arm-smmu-v3 arm-smmu-v3.5.auto: event 0x10 received:
arm-smmu-v3 arm-smmu-v3.5.auto:  0x0002060000000010
arm-smmu-v3 arm-smmu-v3.5.auto: event: F_TRANSLATION client: 0001:06:00.0 sid: 0x20600 ssid: 0x0 iova: 0xff9bc000 ipa: 0x0"""
    assert faults(words) == [("0001:06:00.0", "arm-smmu-v3", 1)]
    assert ("smmu_fault", "0001:06:00.0") in events(words)
    assert faults(words.split("\n")[0]) == [("arm-smmu-v3.5.auto", "arm-smmu-v3", 1)]


def test_an_smmu_that_starts_is_no_fault() -> None:
    words = "arm-smmu-v3 arm-smmu-v3.0.auto: ias 48-bit, oas 48-bit (features 0x001c9fff)"
    assert not faults(words)
    assert ("iommu_enabled", "arm") in events(words)


def modes(words: str) -> list[str]:
    return [fact.mode for fact in of(Iommu, words)]


def test_a_translated_default_alone_proves_nothing() -> None:
    words = "[    1.44] iommu: Default domain type: Translated"
    assert not modes(words)
    assert ("iommu_default_translated", "") in events(words)


@pytest.mark.parametrize("active", [
    "[    1.69] pci 0000:00:1c.0: Adding to iommu group 1",
    "[    0.50] AMD-Vi: Interrupt remapping enabled",
    "[    1.82] DMAR: Intel(R) Virtualization Technology for Directed I/O",
])  # fmt: skip
def test_a_translated_default_with_an_active_iommu_translates(active: str) -> None:
    assert modes("[    1.44] iommu: Default domain type: Translated\n" + active) == ["translating"]


def test_passthrough_and_off_are_read_as_such() -> None:
    assert modes("iommu: Default domain type: Passthrough (set via kernel command line)") == ["passthrough"]
    assert modes("[    0.04] DMAR: IOMMU disabled") == ["off"]
    assert modes("AMD-Vi: Initialized for Passthrough Mode") == ["passthrough"]


def test_older_kernels_say_it_per_device() -> None:
    words = "iommu: Adding device 0000:01:00.0 to group 15\nnvidia 0000:01:00.0: Using iommu direct mapping"
    assert [(fact.mode, fact.device) for fact in of(Iommu, words)] == [("passthrough", "0000:01:00.0")]


def test_an_enabled_iommu_is_named_by_its_maker() -> None:
    assert ("iommu_enabled", "intel") in events("[    0.048] DMAR: IOMMU enabled")
    assert ("iommu_enabled", "amd") in events("pci 0000:00:00.2: AMD-Vi: Found IOMMU cap 0x40")
    assert not [kind for kind, _ in events("AMD-Vi: AMD IOMMUv2 functionality not available on this system") if kind == "iommu_enabled"]
