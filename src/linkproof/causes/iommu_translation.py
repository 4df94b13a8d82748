"""The IOMMU translates addresses, and the peer address of a GPU is not in its tables."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, peer_path_bad, peer_path_fine, pro
from linkproof.causes.reading import Reading
from linkproof.model import Copy, NotChecked, Sign

CLASS = "fabric"
PRIOR = -4.0


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    yield from peer_path_bad(f)
    yield from peer_path_fine(f)
    if f.io_page_fault:
        yield pro(7.0, "the IOMMU logged a page fault of the GPU: a peer address was refused", f.io_page_fault, decisive=True)
    if smmu := f.event("smmu_fault"):
        yield pro(4.0, "the Arm SMMU logged a fault", smmu)
    suspicion = f.trouble
    if f.iommu_translating:
        yield pro(2.8 if suspicion else 1.0, "the IOMMU translates (no passthrough)", f.iommu_translating, stands=True)
    elif f.iommu_harmless:
        yield con(4.0, "the IOMMU is off or passes addresses through", f.iommu_harmless)
    elif not f.io_page_fault and (told := f.setting("iommu_pt", "present") or f.setting("iommu_off", "present")):
        yield con(2.5, "the IOMMU was set out of the way ({name})", told, name=told.name)
    elif (on := f.event("iommu_enabled")) and suspicion and not f.iommu_unset:
        yield pro(1.4, "the kernel says that an IOMMU is on, and no word of passthrough", on)
    elif f.iommu_unset and suspicion:
        weight = 2.2 if f.amd or f.amd_cpu else 1.2
        yield pro(weight, "the kernel command line asks for no passthrough: the default may translate", f.iommu_unset)
    elif not f.io_page_fault:
        yield NotChecked(
            "iommu_translation", "the IOMMU mode is not known", do="cat /proc/cmdline; cat /sys/kernel/iommu_groups/*/type | sort | uniq -c"
        )
    if crossing := f.pairs("translating"):
        if crossing.follows:
            yield pro(3.0, "every pair that fails has a GPU for which the IOMMU translates, and no pair that passes has one", crossing)
        elif not crossing.unknown and not crossing.failing_with:
            yield con(4.0, "the IOMMU translates for no GPU of the pairs that fail", crossing)
        elif not crossing.unknown and crossing.failing_without:
            yield con(2.5, "pairs for which the IOMMU does not translate fail as well", crossing)
        elif not crossing.unknown and crossing.passing_with:
            yield con(1.5, "the IOMMU translates for other pairs too, and they pass", crossing)
    if off := f.setting("iommu_off", "cured") or f.setting("iommu_pt", "cured"):
        yield pro(5.0, "taking the IOMMU out of the way ended the failure", off)
    if slower := f.event("p2p_slower"):
        yield pro(1.8, "the direct way is slower than the way through the host: {value}", slower, value=slower.value)
    if warned := f.event("iommu_warning_rccl"):
        yield pro(2.5, "RCCL itself warns that iommu=pt is missing", warned)
    if f.amd and f.iommu_unset and f.collective_bad(engine="rccl"):
        yield pro(1.0, "RCCL needs passthrough, and the kernel was not asked for it", f.amd)
    if f.changed_driver and not f.io_page_fault:
        yield con(0.7, "only the driver changed before it began", f.changed_driver)
    if f.guest and not f.io_page_fault and not f.iommu_translating:
        yield con(0.7, "a guest sees little of the host's IOMMU", f.guest)
    slow = f.first(Copy, via="peer", result="slow")
    bad = f.first(Copy, via="peer", result=("wrong", "zeros", "stale"))
    if slow and bad:
        yield pro(0.8, "direct copies are slow as well as wrong: they go up through the root complex", slow)
