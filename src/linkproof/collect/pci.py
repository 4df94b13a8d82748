"""The PCI functions of a host, as the kernel shows them under /sys: raw texts and bytes, nothing decoded.

Every function is read for its place and class; only those that a path between GPUs or to a network card can hold (bridges, GPUs,
accelerators, network cards, NVSwitches) are read further. Of virtual functions (a card can have hundreds) only whose they are is read,
and configuration space only where it decides something: the kernel asks the device for each of its 1,024 words.
"""

from __future__ import annotations

import re

from msgspec import Struct, field

from linkproof.collect.host import NOT_RECORDED, Host
from linkproof.model import PCI_DEVICES

# what a function of interest is asked for; absent files stay out of the answer
FILES = (
    "vendor", "device", "subsystem_vendor", "subsystem_device", "revision", "numa_node", "current_link_speed", "current_link_width",
    "max_link_speed", "max_link_width", "resource", "power_state", "sriov_numvfs", "sriov_totalvfs", "aer_dev_correctable", "aer_dev_fatal",
    "aer_dev_nonfatal",
)  # fmt: skip
_INTERESTING = ("0x0604", "0x03", "0x12", "0x02", "0x0680")
_CONFIGURED = ("0x0604", "0x03", "0x12")
_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


class RawFunction(Struct):
    """bdf with domain. path: below /sys/devices, e.g. `pci0000:00/0000:00:1c.0/0000:01:00.0`. texts: FILES that could be read."""

    bdf: str
    path: str
    cls: str
    texts: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # file -> why not
    config: bytes = b""
    driver: str = ""
    iommu_group: str = ""
    vf_of: str = ""


class RawPci(Struct):
    """functions, or why there are none."""

    functions: list[RawFunction]
    why: str = ""


def read_pci(host: Host) -> RawPci:
    """All PCI functions of the host. Never raises; a file that cannot be read is in `refused` with the reason."""
    listed = host.names(PCI_DEVICES)
    if listed.data is None:
        return RawPci([], listed.why)
    functions = []
    for bdf in listed.text.splitlines():
        if not _BDF.fullmatch(bdf):
            continue
        base = f"{PCI_DEVICES}/{bdf}"
        real = host.link(base)
        cls = host.file(f"{base}/class").text.strip().lower()
        function = RawFunction(bdf, real.text.partition("/sys/devices/")[2], cls)
        functions.append(function)
        if cls.startswith(_INTERESTING):
            _more(host, base, function)
    return RawPci(functions)


def _more(host: Host, base: str, function: RawFunction) -> None:
    function.vf_of = _leads_to(host, f"{base}/physfn")
    if function.vf_of:
        return
    for name in FILES:
        answer = host.file(f"{base}/{name}")
        if answer.data is not None:
            function.texts[name] = answer.text.strip()
        elif answer.why not in ("absent", NOT_RECORDED):
            function.refused[name] = answer.why
    if function.cls.startswith(_CONFIGURED):
        config = host.file(f"{base}/config")
        function.config = config.data or b""
        if config.data is None:
            function.refused["config"] = config.why
    function.driver = _leads_to(host, f"{base}/driver")
    function.iommu_group = _leads_to(host, f"{base}/iommu_group")


def _leads_to(host: Host, path: str) -> str:
    return host.link(path).text.rpartition("/")[2]
