"""What is wrong in a machine's own settings is said, and what is right stays silent."""

from __future__ import annotations

import pytest

from linkproof.causes.reading import Reading
from linkproof.diagnose.notes import notes
from linkproof.explaining import explain
from linkproof.model import Event, Fact, Iommu, KernelLog, Setting, Source

CMDLINE = Source("/proc/cmdline", 1, "BOOT_IMAGE=/vmlinuz root=/dev/sda1 iommu=pt quiet")


def asked(mode: str, parameter: str) -> Iommu:
    return Iommu(source=CMDLINE, mode=mode, parameter=parameter)


def group(mode: str) -> Iommu:
    kind = {"translating": "DMA-FQ", "passthrough": "identity"}[mode]
    return Iommu(source=Source("/sys/kernel/iommu_groups/14/type", 0, f"0000:01:00.0: {kind}"), mode=mode, device="0000:01:00.0")


def log(mode: str) -> Iommu:
    return Iommu(source=Source("dmesg", 7, "iommu: Default domain type: " + mode), mode=mode)


FAULT = KernelLog(
    source=Source("dmesg", 9, "AMD-Vi: Event logged [IO_PAGE_FAULT"), fact="io_page_fault", driver="nvidia", device="0000:01:00.0"
)
ENABLED = Event(source=Source("dmesg", 3, "AMD-Vi: Interrupt remapping enabled"), kind="iommu_enabled", value="amd")


def said(*facts: Fact) -> str:
    return " | ".join(note.text.format_map(note.args) for note in notes(Reading(facts)))


def variable(key: str, value: str) -> Setting:
    return Setting(source=Source("environment", 1, f"{key}={value}"), name=f"{key}={value}", effect="present", key=key, value=value)


@pytest.mark.parametrize(("name", "value", "words"), [
    ("NCCL_P2P_DISABEL", "1", "NCCL_P2P_DISABLE is meant?"),
    ("NCCL_TURBO_BOOST_MODE", "1", "only a plugin or a framework"),
    ("NCCL_P2P_DISABLE", "true", "only the value 1"),
    ("NCCL_P2P_LEVEL", "node", "ignored without a word"),
    ("NCCL_NET_GDR_LEVEL", "phb", "ignored without a word"),
    ("NCCL_SHM_DISABLE", "true", "reads true as 0"),
    ("NCCL_DEBUG", "VERBOSE", "INFO and WARN are"),
    ("NCCL_P2P_NET_DISABLE", "1", "no release of NCCL"),
])  # fmt: skip
def test_a_variable_that_does_not_act_is_named(name: str, value: str, words: str) -> None:
    assert words in said(variable(name, value))


@pytest.mark.parametrize(("name", "value"), [
    ("NCCL_P2P_DISABLE", "1"), ("NCCL_P2P_LEVEL", "SYS"), ("NCCL_SHM_DISABLE", "1"), ("NCCL_DEBUG", "INFO"), ("NCCL_VERSION", "2.25.1-1"),
    ("NCCL_BLOCKING_WAIT", "1"), ("NCCL_FASTRAK_CTRL_DEV", "eth0"), ("CUDA_P2P_DISABEL", "1"),
])  # fmt: skip
def test_a_variable_that_acts_or_is_anothers_is_not(name: str, value: str) -> None:
    assert said(variable(name, value)) == ""


def test_a_name_that_only_rccl_may_know_is_left_alone_on_its_machine() -> None:
    amd = KernelLog(source=Source("dmesg", 1, ""), fact="clean", driver="amdgpu")
    assert said(amd, variable("NCCL_TURBO_BOOST_MODE", "1")) == ""


def test_a_group_that_translates_against_the_command_line_is_told_with_both_sources() -> None:
    words = said(asked("passthrough", "iommu=pt"), group("translating"))
    assert "disagree" in words and "it translates" in words and "iommu=pt" in words and "iommu_groups/14/type" in words


def test_an_identity_group_against_a_command_line_that_translates_is_told() -> None:
    assert "addresses pass" in said(asked("translating", "intel_iommu=on"), group("passthrough"))


def test_sources_that_agree_are_not_told() -> None:
    assert said(asked("passthrough", "iommu=pt"), group("passthrough")) == ""
    assert said(asked("passthrough", "iommu=pt"), ENABLED) == ""
    assert said(asked("off", "amd_iommu=off")) == ""


def test_a_page_fault_or_an_iommu_that_starts_contradicts_the_option_off() -> None:
    assert "is at work" in said(asked("passthrough", "iommu=pt"), FAULT)
    assert "is at work" in said(asked("off", "intel_iommu=off"), ENABLED)


def test_off_in_the_bios_and_an_iommu_at_work_contradict_each_other() -> None:
    off = Setting(source=Source("told", 0, ""), name="IOMMU off in BIOS", effect="present")
    assert "at work all the same" in said(off, group("translating"))
    assert "at work all the same" in said(off, ENABLED)
    assert said(off) == ""


def test_the_group_type_wins_over_the_command_line_and_over_the_default_of_the_kernel_log() -> None:
    reading = Reading([asked("passthrough", "iommu=pt"), group("translating")])
    assert reading.iommu_translating is not None and reading.iommu_harmless is None
    reading = Reading([asked("translating", "intel_iommu=on"), log("translating"), group("passthrough")])
    assert reading.iommu_translating is None
    assert reading.iommu_harmless == group("passthrough")


def test_a_page_fault_leaves_no_iommu_harmless() -> None:
    assert Reading([asked("passthrough", "iommu=pt"), FAULT]).iommu_harmless is None
    assert Reading([asked("passthrough", "iommu=pt")]).iommu_harmless == asked("passthrough", "iommu=pt")


def test_the_types_as_a_person_pastes_them_win_over_the_command_line() -> None:
    pasted = "$ cat /proc/cmdline\nBOOT_IMAGE=/vmlinuz root=/dev/sda1 iommu=pt quiet\n$ cat /sys/kernel/iommu_groups/14/type\nDMA-FQ\n"
    weighed = {w.id: w for w in explain({"pasted.txt": pasted}, []).causes}
    found = weighed.get("iommu_translation")
    assert found is None or found.state != "ruled_out"
    assert any("disagree" in note.text for note in explain({"pasted.txt": pasted}, []).notes)
