"""The IOMMU was switched off where the machine needs it."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import pro
from linkproof.causes.reading import Reading
from linkproof.model import Iommu, NotChecked, Sign

CLASS = "host_config"
PRIOR = -5.5


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    off = f.first(Iommu, mode="off") or f.setting("iommu_off", "present", "worse", "cured", "changed")
    missing = f.host("cpu_offline") or f.event("cpu_missing")
    many = f.host_number("cpu_count")
    if missing:
        yield pro(4.5 if off else 2.5, "CPUs are missing ({value})", missing, value=missing.value or "?", stands=True)
    if missing and off:
        yield pro(2.5, "the IOMMU is off: without interrupt remapping CPUs beyond 254 cannot be used", off)
    if many and many[0] > 254 and off:
        yield pro(2.5, "the machine has {value} logical CPUs", many[1], value=many[1].value)
    if worse := f.setting("iommu_off", "worse"):
        yield pro(3.0, "switching the IOMMU off made it worse", worse)
