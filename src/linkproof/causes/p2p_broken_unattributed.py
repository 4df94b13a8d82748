"""The peer path is shown to be broken and nothing given says why."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, peer_path_bad, peer_path_fine, pro
from linkproof.causes.reading import Reading
from linkproof.model import Acs, Gpu, NotChecked, Sign

CLASS = "fabric"
PRIOR = -2.8


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    yield from peer_path_bad(f)
    yield from peer_path_fine(f)
    if f.io_page_fault:
        yield con(5.0, "the IOMMU's page fault says why", f.io_page_fault)
    translating, redirects = f.pairs("translating"), f.pairs("redirects")
    if f.iommu_translating and not (translating and translating.failing_without):
        yield con(1.8, "the IOMMU's mode is a reason", f.iommu_translating)
    if (on := f.first(Acs, redirect="on")) and not (redirects and redirects.failing_without):
        yield con(1.8, "the ACS redirect bits are a reason", on)
    if f.only_slow:
        yield con(2.5, "the data are right and only slow: nothing is broken", f.only_slow)
    if (counted := f.pairs("counted")) and counted.all_failing:
        yield con(2.0, "the link of the pairs that fail counts errors", counted)
    if (one := f.pairs("one_gpu") or f.pairs("one_pair")) and one.follows:
        yield con(1.0, "only pairs of {where} fail: the card, its slot or its link is a reason", one, where=one.where)
    if f.changed_driver:
        yield con(1.5, "the driver change is a reason", f.changed_driver)
    if f.guest:
        yield con(1.5, "the guest is a reason", f.guest)
    if f.hw_denies_peer:
        yield con(2.0, "there is no peer access to be broken", f.hw_denies_peer)
    if f.first_patched:
        yield con(1.5, "the patched driver is a reason", f.first_patched)
    if f.amd:
        yield con(1.5, "AMD cards have reasons of their own", f.amd)
    if f.nvswitch and not f.peer_copy_bad:
        yield con(2.0, "NVSwitch machines lose single links or the fabric, seldom the plain peer path", f.nvswitch)
    if link := f.event("nvlink_down", "gpu_fell_off") or f.first(Gpu, fact="nvlink_errors"):
        yield con(1.5, "a link's own errors are a reason", link)
    if slower := f.event("p2p_slower"):
        yield pro(2.0, "the direct way is slower than the way through the host: {value}", slower, value=slower.value)
    changed = f.first_changed_library
    if changed and "peer" in changed.detail.lower() and f.split_bad:
        yield pro(2.5, "it began with a build that uses peer access", changed)
    if (used := f.event("custom_ar_used")) and f.hang and not f.topo_path("NV"):
        yield pro(1.5, "the engine writes to its peers over PCIe with its own kernels, and it hangs", used)
    elif f.hw_claims_peer and f.peer_copy_bad and f.peer_copy_bad.result in ("zeros", "wrong", "stale"):
        yield pro(0.5, "peer access is claimed and the data does not arrive", f.peer_copy_bad)
