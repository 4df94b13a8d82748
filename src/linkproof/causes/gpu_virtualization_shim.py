"""A preloaded GPU-sharing library breaks CUDA calls that NCCL makes."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import NotChecked, Sign

CLASS = "host_config"
PRIOR = -5.0


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    lib = f.host("ld_preload") or f.event("libvgpu")
    if not lib:
        return
    trouble = f.trouble
    value = lib.value.lower()
    sharing = any(w in value for w in ("vgpu", "cuda", "gpu", "hami", "rocm"))
    yield pro(
        (5.5 if trouble else 3.0) if sharing else 1.0,
        "a library that stands between the program and CUDA is loaded: {value}",
        lib,
        value=lib.value,
        stands=True,
    )
    if off := f.setting("preload_off", "cured"):
        yield pro(5.0, "without it the program runs", off)
    elif same := f.setting("preload_off", "no_effect"):
        yield con(4.5, "without it the program fails as well", same)
    if f.io_page_fault:
        yield con(4.0, "a page fault of the GPU names the IOMMU", f.io_page_fault)
