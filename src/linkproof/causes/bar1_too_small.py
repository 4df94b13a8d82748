"""BAR1 does not cover the card's memory, so peer mappings fail."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, peer_path_bad, peer_path_fine, pro
from linkproof.causes.reading import Reading
from linkproof.model import Gpu, NotChecked, Sign

CLASS = "fabric"
PRIOR = -5.5


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    small, full = f.first(Gpu, fact="bar1_smaller_than_vram"), f.first(Gpu, fact="bar1_covers_vram")
    if full and not small:
        yield con(6.0, "BAR1 covers the whole memory", full)
        return
    cured, buffer = f.setting("rebar", "cured"), f.cuda_error(205)
    beyond = f.pairs("beyond_bar1")
    if not (small or cured or buffer or beyond):
        return
    yield from peer_path_bad(f, 0.8)
    yield from peer_path_fine(f)
    if small:
        mapped = buffer or f.first(Gpu, fact="patched_driver") or f.peer_copy_bad
        yield pro(3.5 if mapped else 1.5, "BAR1 is smaller than the card's memory ({value})", small, value=small.value or "?", stands=True)
    if beyond and beyond.all_failing:
        yield pro(4.5, "only large transfers arrive wrong, and BAR1 of the target does not cover its memory", beyond)
    if buffer:
        yield pro(2.5, "mapping a buffer object failed (error 205): no room left in BAR1", buffer)
    if cured:
        yield pro(5.0, "enlarging BAR1 ended the failure", cured)
    if f.io_page_fault:
        yield con(3.0, "a page fault of the GPU names the IOMMU", f.io_page_fault)
