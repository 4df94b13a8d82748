"""A driver patched to allow peer access on consumer cards lacks settings, or loses some kinds of writes."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, peer_path_bad, peer_path_fine, pro
from linkproof.causes.reading import Reading
from linkproof.model import Copy, Gpu, NotChecked, Sign

CLASS = "fabric"
PRIOR = -6.0


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    patched = f.first(Gpu, fact="patched_driver") or f.event("patched_driver")
    if not patched:
        return
    yield from peer_path_bad(f)
    yield from peer_path_fine(f)
    yield pro(4.5, "the loaded driver is patched to allow peer access", patched, stands=True)
    ok, lost = f.first(Copy, via="peer", result="ok"), f.first(Copy, via=("store", "load"), result=("zeros", "wrong", "stale", "hang"))
    if ok and lost:
        yield pro(3.0, "copies pass and a kernel's own stores or loads are lost: the mapping of this driver is incomplete", lost)
    if f.only_slow:
        yield con(3.0, "the data are right and only slow; a wrong mapping delivers wrong data", f.only_slow)
    if f.io_page_fault:
        yield con(3.5, "a page fault of the GPU names the IOMMU, patched driver or not", f.io_page_fault)
    elif f.iommu_harmless:
        yield pro(1.0, "the IOMMU is out of the way and it fails all the same", f.iommu_harmless)
    if small := f.first(Gpu, fact="bar1_smaller_than_vram"):
        yield pro(1.0, "BAR1 does not cover the memory, which this driver needs", small)
    if shown := f.first(Gpu, fact="display_attached"):
        yield pro(0.8, "a display hangs on the card; the static BAR1 mode needs it headless", shown)
