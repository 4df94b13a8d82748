"""Raw PCI functions -> the tree between GPUs: ports with their ACS control, links, NUMA, drivers. Not a parser of a text.

In:      RawFunction-like records: place below /sys/devices, class, texts of the sysfs files, config bytes (64 bytes without root).
Out:     PciTree of PciFunction; every number that was not readable is None, with the reason in `unread`.
Unknown: ACS of a port whose config holds 64 bytes is None ("config: 64 bytes without root"), never "off". Its kind then follows from its
         place: a PCI Express bridge at the host bridge is a root port, below it switches alternate up and down. A port that stands in a
         path but was not listed (a sandbox, a port that went away) is in the tree as a bridge of which nothing is known.
Raises:  nothing.
Source:  PCI Express Base Specification; Linux Documentation/ABI/testing/sysfs-bus-pci.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from msgspec import Struct, field

from linkproof.parse.pci_config import REDIRECT, Config, bit_names, decode, dwords_acs
from linkproof.parse.rules import rx

NVIDIA, AMD = 0x10DE, 0x1002
_GPU = (0x0300, 0x0302, 0x0380, 0x1200)
_CRYPTO = 0x1080  # an AMD processor with graphics shows its security processor beside them; a card does not
_BRIDGE = 0x0604
_BDF = r"^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$"
_HOST_BRIDGE = r"^pci[0-9a-f]{4,8}:[0-9a-f]{2}$"
_DEPTH_MAX = 256  # bus numbers of one domain


class Raw(Protocol):
    bdf: str
    path: str
    cls: str
    texts: dict[str, str]
    refused: dict[str, str]
    config: bytes
    driver: str
    iommu_group: str
    vf_of: str


class PciFunction(Struct):
    """One function. chain: BDFs from the root port down to the parent. acs: control word; None not known or not there (see acs_why)."""

    bdf: str
    host_bridge: str  # `pci0000:00`
    chain: tuple[str, ...]
    cls: int
    vendor: int
    device: int
    kind: str = ""  # root_port upstream_port downstream_port endpoint
    acs: int | None = None
    acs_why: str = ""
    speed_GTps: float | None = None
    width: int | None = None
    speed_best_GTps: float | None = None
    width_best: int | None = None
    numa: int | None = None
    driver: str = ""
    iommu_group: str = ""
    bars_B: tuple[int, ...] = ()
    aer: dict[str, int] = field(default_factory=dict)
    vfs: int = 0
    max_payload_B: int | None = None
    vf_of: str = ""  # the function that lends this one to guests

    @property
    def is_gpu(self) -> bool:
        return self.cls >> 8 in _GPU and self.vendor in (NVIDIA, AMD) and not self.vf_of

    @property
    def is_nic(self) -> bool:
        return self.cls >> 8 in (0x0200, 0x0207) and not self.vf_of

    @property
    def is_bridge(self) -> bool:
        return self.cls >> 8 == _BRIDGE

    @property
    def redirects(self) -> bool | None:
        return None if self.acs is None else bool(self.acs & REDIRECT)

    @property
    def acs_bits(self) -> str:
        return "" if self.acs is None else bit_names(self.acs)


class PciTree(Struct):
    functions: dict[str, PciFunction]
    why: str = ""  # why there is no tree at all

    @property
    def gpus(self) -> list[PciFunction]:
        """The cards that could work together, by address: of one maker (the one with more of them), without graphics of the processor."""
        found = [f for f in self.functions.values() if f.is_gpu and not self._in_processor(f)]
        nvidia = [f for f in found if f.vendor == NVIDIA]
        one_maker = nvidia if 2 * len(nvidia) >= len(found) else [f for f in found if f.vendor != NVIDIA]
        return sorted(one_maker, key=lambda f: f.bdf)

    @property
    def nics(self) -> list[PciFunction]:
        return sorted((f for f in self.functions.values() if f.is_nic), key=lambda f: f.bdf)

    def _in_processor(self, gpu: PciFunction) -> bool:
        slot = gpu.bdf[:-1]
        siblings = (self.functions.get(f"{slot}{number}") for number in range(8))
        return gpu.vendor == AMD and any(f is not None and f.cls >> 8 == _CRYPTO for f in siblings)

    def narrowed(self, function: PciFunction) -> tuple[int, int] | None:
        """Width now and what both ends could do, if less, of the link above a function. A port's own link is judged at what hangs below it:
        a wide slot with a narrower card in it is no fault."""
        if function.kind in ("root_port", "downstream_port") or (function.is_bridge and not function.kind):
            return None
        above = self.functions.get(function.chain[-1]) if function.chain else None
        best = min((w for w in (function.width_best, above.width_best if above else None) if w), default=None)
        return (function.width, best) if function.width and best and function.width < best else None


def _number(text: str, base: int = 10) -> int | None:
    try:
        return int(text[:20], base)
    except ValueError:
        return None


def _speed(text: str) -> float | None:
    found = rx(r"^(\d{1,3}(?:\.\d)?) GT/s").search(text)
    return float(found[1]) if found else None


def _width(text: str) -> int | None:
    number = _number(text)
    return number if number is not None and 1 <= number <= 32 else None


def _bars(resource: str) -> tuple[int, ...]:
    out = []
    for line in resource.splitlines()[:6]:
        parts = line.split()
        start, end = (_number(parts[0], 16), _number(parts[1], 16)) if len(parts) >= 2 else (None, None)
        out.append(end - start + 1 if start and end and end > start else 0)
    return tuple(out)


def _aer(texts: dict[str, str]) -> dict[str, int]:
    """correctable, fatal, nonfatal totals since boot."""
    out = {}
    for kind in ("correctable", "fatal", "nonfatal"):
        found = rx(r"TOTAL_ERR_\w+ (\d{1,18})").search(texts.get(f"aer_dev_{kind}", ""))
        if found:
            out[kind] = int(found[1])
    return out


def _acs(raw: Raw, config: Config | None) -> tuple[int | None, str]:
    if not raw.config:
        return None, raw.refused.get("config", "config not read")
    if len(raw.config) <= 64:
        return None, "config: 64 bytes without root"
    if config is None:
        return None, "no device answers"
    if dwords_acs(config.vendor, config.device):
        return None, "this chipset keeps its ACS registers in its own way"
    if not config.extended:
        return None, "no extended configuration space"
    return (config.acs, "") if config.acs is not None else (None, "no ACS capability")


def _kind(raw: Raw, cls: int, config: Config | None, depth: int) -> str:
    if config is not None and len(raw.config) > 64:
        return config.kind
    if "current_link_width" not in raw.texts:  # only PCI Express functions have that file
        return ""
    if cls >> 8 != _BRIDGE:
        return "endpoint"
    return "upstream_port" if depth % 2 else "downstream_port" if depth else "root_port"


def _place(raw: Raw) -> tuple[str, tuple[str, ...]]:
    """Host bridge and the ports below it. Where host bridges stand one behind the other (Intel VMD), the last one counts."""
    host_bridge, chain = "", list[str]()
    for part in raw.path.split("/"):
        if rx(_HOST_BRIDGE).search(part):
            host_bridge, chain = part, []
        elif host_bridge and part != raw.bdf and rx(_BDF).search(part) and len(chain) < _DEPTH_MAX:
            chain.append(part)
    return host_bridge, tuple(chain)


def _one(raw: Raw) -> PciFunction:
    host_bridge, chain = _place(raw)
    config = decode(raw.config)
    cls = _number(raw.cls, 16) or 0
    acs, why = _acs(raw, config)
    numa = _number(raw.texts.get("numa_node", ""))
    return PciFunction(
        bdf=raw.bdf,
        host_bridge=host_bridge,
        chain=chain,
        cls=cls,
        vendor=_number(raw.texts.get("vendor", ""), 16) or 0,
        device=_number(raw.texts.get("device", ""), 16) or 0,
        kind=_kind(raw, cls, config, len(chain)),
        acs=acs,
        acs_why=why,
        speed_GTps=_speed(raw.texts.get("current_link_speed", "")),
        width=_width(raw.texts.get("current_link_width", "")),
        speed_best_GTps=_speed(raw.texts.get("max_link_speed", "")),
        width_best=_width(raw.texts.get("max_link_width", "")),
        numa=numa if numa is not None and numa >= 0 else None,
        driver=raw.driver,
        iommu_group=raw.iommu_group,
        bars_B=_bars(raw.texts.get("resource", "")),
        aer=_aer(raw.texts),
        vfs=_number(raw.texts.get("sriov_numvfs", "")) or 0,
        max_payload_B=config.max_payload_B if config else None,
        vf_of=raw.vf_of,
    )


def tree(functions: Iterable[Raw], why: str = "") -> PciTree:
    found = {raw.bdf: _one(raw) for raw in functions}
    for f in list(found.values()):
        for depth, bdf in enumerate(f.chain):
            if bdf not in found:
                found[bdf] = PciFunction(bdf, f.host_bridge, f.chain[:depth], _BRIDGE << 8, 0, 0, acs_why="not listed")
    return PciTree(found, why)
