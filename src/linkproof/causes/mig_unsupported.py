"""Ranks across MIG slices, or a MIG name where a number is expected."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import pro
from linkproof.causes.reading import Reading
from linkproof.model import Gpu, NotChecked, Sign, Stage

CLASS = "host_config"
PRIOR = -5.5


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if name := f.event("mig_name_as_number"):
        yield pro(8.0, "a MIG device name was read as a number", name, decisive=True)
    trouble = f.first(Stage) or f.split_bad or f.collective_bad() or f.event("nccl_error", "nccl_duplicate_gpu", "engine_start_failed")
    if mig := f.first(Gpu, fact="mig") or f.event("mig_present"):
        yield pro(5.0 if trouble else 1.5, "the GPU is divided by MIG: slices cannot reach each other", mig, stands=True)
    if (s := f.setting_key("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")) and "MIG-" in s.value:
        yield pro(3.5, "MIG slices are selected: {value}", s, value=s.value[:60])
