"""Which parameter for which kernel."""

from __future__ import annotations

import pytest

from linkproof.act.boot import acs_words, iommu_off_words, passthrough_words
from linkproof.act.boot.kernel_words import flags
from linkproof.act.text.words import with_words

ONE = (("0000:16:00.0", 0x2C),)
TWO = (("0000:16:00.0", 0x0C), ("0000:17:00.0", 0x2C))
BOTH_FLAGS = "pci=config_acs=xxx00xx@0000:16:00.0;x0x00xx@0000:17:00.0"
BOTH = "pci=disable_acs_redir=0000:16:00.0;0000:17:00.0"


@pytest.mark.parametrize(
    ("release", "ports", "word"),
    [
        ("4.19.0-27-amd64", ONE, None),
        ("4.20.0", ONE, "pci=disable_acs_redir=0000:16:00.0"),
        ("5.14.0-427.el9.x86_64", TWO, BOTH),
        ("6.10.14", TWO, BOTH),
        ("6.11.0-19-generic", ONE, "pci=config_acs=x0x00xx@0000:16:00.0"),
        ("6.11.0-19-generic", TWO, None),
        ("6.12.22", TWO, None),
        ("6.12.23", TWO, BOTH_FLAGS),
        ("6.13.10", TWO, None),
        ("6.13.11", TWO, BOTH_FLAGS),
        ("6.14.1", TWO, None),
        ("6.14.2", TWO, BOTH_FLAGS),
        ("6.15.0-rc1", TWO, BOTH_FLAGS),
        ("7.0", TWO, BOTH_FLAGS),
        ("", ONE, None),
        ("unknown", ONE, None),
    ],
)
def test_the_parameter_against_acs_is_one_that_works_in_that_kernel(
    release: str, ports: tuple[tuple[str, int], ...], word: str | None
) -> None:
    found = acs_words(ports, release)
    assert found.add == (() if word is None else (word,))
    assert (found.refusal is not None) == (word is None)


def test_flags_are_written_from_bit_6_to_bit_0() -> None:
    assert flags(0x2C) == "x0x00xx"
    assert flags(0x01) == "xxxxxx0"
    assert flags(0x7F) == "0000000"


def test_passthrough_is_asked_for_in_the_words_of_the_architecture() -> None:
    x86, arm = passthrough_words(), passthrough_words(arm=True)
    assert with_words("a iommu=nopt intel_iommu=off", x86.add, x86.remove) == "a iommu=pt intel_iommu=off"
    for asked in ("0", "n", "off"):
        assert with_words(f"a iommu.passthrough={asked}", arm.add, arm.remove) == "a iommu.passthrough=1"
        assert with_words(f"iommu.passthrough={asked} a", x86.add, x86.remove) == "a iommu=pt"


def test_the_iommu_is_switched_off_by_the_makers_own_word_or_not_at_all() -> None:
    intel, amd, other = (iommu_off_words(maker) for maker in ("GenuineIntel", "AuthenticAMD", "CentaurHauls"))
    assert with_words("intel_iommu=on,sm_on ro", intel.add, intel.remove) == "intel_iommu=sm_on,off ro"
    assert (amd.add, other.add) == (("amd_iommu=off",), ("iommu=off",))
    for none in (iommu_off_words("ARM", arm=True), iommu_off_words("")):
        assert none.add == () and none.refusal is not None
