"""Prints from /sys/kernel/iommu_groups and /sys/class/iommu -> is an IOMMU in use, and do its groups translate.

In:      `cat` or `grep .` of `iommu_groups/*/type`, `ls /sys/class/iommu`, lists of groups with their devices, `find` of the links.
Out:     Iommu(mode) once for all groups (DMA, DMA-FQ: translating; identity: passthrough), per device where a line names type and device;
         Event iommu_enabled (value: intel, amd, arm or "" from the names dmar0, ivhd0, smmu3).
Unknown: groups of different types give mode unknown: the group of the GPU decides and is not told. An empty directory is off only if
         the listing says so (`total 0`, or a prompt follows); a text that ends there may be cut.
Raises:  nothing.
Source:  Documentation/ABI/testing/sysfs-kernel-iommu_groups; drivers/iommu of Linux 5.11 and later.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Iommu, Line, Text
from linkproof.parse.rules import LINE_MAX, rx, source
from linkproof.parse.spans import bdf

ANCHORS = ("iommu_groups", "/sys/class/iommu", "IOMMU Group ", "IOMMU group: ", "dmar0", "ivhd0", "smmu3", "DMA-FQ")
KEEP = (0, 40)

_TYPES = {"DMA": "translating", "DMA-FQ": "translating", "identity": "passthrough"}
_UNITS = (("intel", r"\bdmar\d{1,3}\b"), ("amd", r"\bivhd\d{1,3}\b"), ("arm", r"\bsmmu3?\.\S"))
_LISTED = r"^(?:\S*[$#] ?)?(?:(?:/sys/class/iommu/)?(?:dmar\d{1,3}|ivhd\d{1,3}|smmu3?\.\S+)[/:@]?\s*)+$|^l\S+ .*(?:dmar|ivhd|smmu)\S* -> "
_GROUPS = r"iommu_groups/\d{1,5}/devices/\S{7,13}|^\s*IOMMU Group \d{1,5}:?\s|^\s*IOMMU group: \d"
_PROMPT = r"^\S*[$#] |^\$ |^# "
_FOLLOW = 40


def _types(text: Text, hits: list[int]) -> Iterator[tuple[Line, str, str]]:
    """(line, type, device) of every group type that is printed."""
    seen: set[int] = set()
    for index in hits:
        line = text.lines[index]
        words = line.text[:LINE_MAX].strip()
        told = rx(r"iommu_groups/\d{1,5}/type:\s?(DMA-FQ|DMA|identity|blocked|unmanaged|auto)\s*$").search(words)
        if told is not None:
            yield line, str(told.group(1)), ""
        elif rx(r"devices/.*iommu_group/type:?\s?(DMA-FQ|DMA|identity)\s*$").search(words) is not None:
            device = bdf(words.rpartition("/iommu_group")[0].rpartition("/")[2])
            yield line, words.replace(":", " ").split()[-1], device
        elif words == "DMA-FQ":
            yield line, words, ""
        elif rx(r"\bcat\b.*iommu_groups?\S{0,40}/type\S*\s*$").search(words) is not None:
            for after in range(index + 1, min(index + 1 + _FOLLOW, len(text.lines))):
                word = text.lines[after].text.strip()
                if word not in _TYPES:
                    break
                if after not in seen and word != "DMA-FQ":  # those are hits themselves
                    seen.add(after)
                    yield text.lines[after], word, ""


def _listing(text: Text, index: int) -> Iterator[Fact]:
    """`ls /sys/class/iommu` and what follows it."""
    line = text.lines[index]
    if rx(r"\bls\b.{0,20} /sys/class/iommu/?\s*$").search(line.text[:LINE_MAX]) is None or index + 1 >= len(text.lines):
        return
    after = text.lines[index + 1]
    if after.text.strip() == "total 0" and index + 2 < len(text.lines) and "->" not in text.lines[index + 2].text:
        yield Iommu(source=source(text, after), mode="off")
    elif rx(_PROMPT).search(after.text[:LINE_MAX]) is not None:
        yield Iommu(source=source(text, line), mode="off")


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    modes: dict[str, Line] = {}
    for line, kind, device in _types(text, hits):
        mode = _TYPES.get(kind, "")
        if device and mode:
            yield Iommu(source=source(text, line), mode=mode, device=device)
        elif mode:
            modes.setdefault(mode, line)
    if len(modes) == 1:
        mode, line = modes.popitem()
        yield Iommu(source=source(text, line), mode=mode)
    elif modes:
        yield Iommu(source=source(text, next(iter(modes.values()))), mode="unknown")
    told: set[str] = set()
    for index in hits:
        line = text.lines[index]
        words = line.text[:LINE_MAX]
        yield from _listing(text, index)
        listed = rx(_LISTED).search(words.strip()) is not None
        makers = [maker for maker, pattern in _UNITS if listed and rx(pattern).search(words) is not None]
        if not makers and rx(_GROUPS).search(words) is not None:
            makers = [""]
        for maker in makers:
            if maker not in told:
                told.add(maker)
                yield Event(source=source(text, line), kind="iommu_enabled", value=maker)
