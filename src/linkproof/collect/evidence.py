"""Everything that is read from one host, in one go: raw texts, the PCI functions, IOMMU group types. Nothing is judged here.

The commands run side by side, each with its own deadline, so the whole takes as long as the slowest of them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from msgspec import Struct

from linkproof.collect.host import Answer, Host, Recorded
from linkproof.collect.pci import RawPci, read_pci
from linkproof.collect.sources import SOURCES, Got, Source

REFUSED = (b"Operation not permitted", b"Permission denied", b"Insufficient Permissions")
REFUSAL_MAX_B = 300  # a refusal is a line or two; a log that speaks of one is longer

GROUPS = "/sys/kernel/iommu_groups"


class Evidence(Struct):
    """texts: what each source gave. group_types: IOMMU group -> type. iommus: names under /sys/class/iommu, None if not readable."""

    texts: list[Got]
    pci: RawPci
    group_types: dict[str, str]
    iommus: list[str] | None
    acpi: list[str] | None
    versions: dict[str, str]  # python package -> version, of the interpreter that runs linkproof
    environment: str = ""


def read_evidence(host: Host) -> Evidence:
    """All of it. Never raises; what could not be read is in the answers with the reason."""
    if isinstance(host, Recorded):  # nothing to wait for
        texts, pci = [Got(s, _one(host, s)) for s in SOURCES], read_pci(host)
    else:
        with ThreadPoolExecutor(max_workers=12) as pool:
            waiting = [(s, pool.submit(_one, host, s)) for s in SOURCES]
            pci = read_pci(host)
            texts = [Got(s, task.result()) for s, task in waiting]
    groups = {f.iommu_group for f in pci.functions if f.iommu_group}
    types = {g: host.file(f"{GROUPS}/{g}/type").text.strip() for g in sorted(groups)}
    iommus, acpi = host.names("/sys/class/iommu"), host.names("/sys/firmware/acpi/tables")
    environment = host.file("env:")
    return Evidence(
        texts=texts,
        pci=pci,
        group_types={g: t for g, t in types.items() if t},
        iommus=iommus.text.split() if iommus.data is not None else None,
        acpi=acpi.text.split() if acpi.data is not None else None,
        versions=_versions(host),
        environment=environment.text,
    )


def _one(host: Host, source: Source) -> Answer:
    """A command that failed and printed only that it may not (`dmesg` of an ordinary user) gave nothing: it is denied, not read."""
    if isinstance(source.what, str):
        return host.file(source.what)
    answer = host.run(source.what, source.deadline_s)
    said = answer.data or b""
    if answer.code and len(said) <= REFUSAL_MAX_B and any(words in said for words in REFUSED):
        return Answer(None, "denied", answer.code, answer.took_s)
    return answer


def _versions(host: Host) -> dict[str, str]:
    lines = host.file("packages:").text.splitlines()
    return dict(line.split("==", 1) for line in lines if "==" in line)
