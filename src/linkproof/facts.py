"""From what was read of a host to facts: every text through its parser, the PCI functions and IOMMU groups through theirs. Judges nothing."""

from __future__ import annotations

from linkproof.collect.evidence import Evidence
from linkproof.model import Event, Fact, Iommu, Line, Platform, Source, Text, Unknown, Versions
from linkproof.parse import read
from linkproof.parse.clean import clean
from linkproof.parse.pci_facts import facts_of
from linkproof.parse.pci_tree import PciTree, tree

IOMMU_MAKERS = {"dmar": "intel", "ivhd": "amd", "smmu": "arm"}


def _iommu_without_groups(evidence: Evidence, pci: PciTree, facts: list[Fact]) -> list[Fact]:
    """No GPU has a group: the IOMMU is off for them, if /sys could be read and the functions are there to have groups."""
    if not pci.gpus or evidence.iommus is None or any(g.iommu_group for g in pci.gpus):
        return []
    if evidence.iommus:  # an IOMMU is there and these devices are not behind it
        return []
    guest = any(isinstance(f, Platform) and f.kind in ("vm", "wsl2") for f in facts)
    source = Source("/sys/class/iommu", 0, "empty")
    mode = "unknown" if guest else "off"  # inside a guest the host's IOMMU cannot be seen
    return [Iommu(source=source, mode=mode, device=g.bdf) for g in pci.gpus]


def _text(name: str, words: str) -> Text:
    """What a command printed or a file holds, unprefixed: nothing to undo but colours, which few of them have."""
    if "\x1b" in words or "\r" in words:
        return clean(name, words)
    return Text(name, [Line(number, line.rstrip()) for number, line in enumerate(words.split("\n"), 1)])


def facts_from(evidence: Evidence) -> tuple[list[Fact], PciTree]:
    """Every fact of the evidence, and the PCI tree."""
    facts: list[Fact] = []
    for got in evidence.texts:
        if got.answer.data:
            text = f"{got.source.name}: {got.answer.text}" if got.source.bare else got.answer.text
            facts.extend(f for f in read(_text(got.source.name, text)) if not isinstance(f, Unknown))
    if evidence.environment:
        facts.extend(f for f in read(_text("environment", evidence.environment)) if not isinstance(f, Unknown))
    pci = tree(evidence.pci.functions, evidence.pci.why)
    facts.extend(facts_of(pci, evidence.group_types))
    facts.extend(_iommu_without_groups(evidence, pci, facts))
    for name in evidence.iommus or ():
        maker = next((m for start, m in IOMMU_MAKERS.items() if name.startswith(start)), "")
        facts.append(Event(source=Source("/sys/class/iommu", 0, name), kind="iommu_enabled", value=maker))
        break
    if evidence.versions:
        where = Source("installed packages", 0, ", ".join(f"{k} {v}" for k, v in evidence.versions.items())[:300])
        nccl = next((v for k, v in evidence.versions.items() if k.startswith("nvidia-nccl")), "")
        engine = next((f"{k} {evidence.versions[k]}" for k in ("vllm", "sglang", "tensorrt-llm") if k in evidence.versions), "")
        facts.append(Versions(source=where, nccl=nccl, torch=evidence.versions.get("torch", ""), engine=engine))
    return facts, pci
