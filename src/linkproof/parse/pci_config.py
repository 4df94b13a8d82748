"""PCI configuration space in bytes -> identity, bus numbers, port type, ACS control. Not a parser itself: no anchors.

In:      the first 64 .. 4096 bytes of one function, from a hex dump of lspci or from sysfs.
Out:     Config. `acs` is the control word; None where it is not there or not readable; `extended` says whether the list was readable.
Unknown: all zeros or all ones at 0x100 (no extended space, device gone): extended is False. A list that loops ends where it repeats.
Raises:  nothing.
Source:  PCI Express Base Specification 6, 7.6 and 7.7.11; names of the bits as lspci prints them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

ACS_BITS = ("SrcValid", "TransBlk", "ReqRedir", "CmpltRedir", "UpstreamFwd", "EgressCtrl", "DirectTrans")
REDIRECT = 0x2C  # ReqRedir, CmpltRedir, EgressCtrl: SrcValid and the others move no packet to another way
ACS = 0x000D  # number of the extended capability
ACS_CONTROL = 6  # bytes into it, where the control word stands
_CAP_EXPRESS = 0x10
_KINDS = {0: "endpoint", 1: "endpoint", 4: "root_port", 5: "upstream_port", 6: "downstream_port"}


class Config(NamedTuple):
    vendor: int
    device: int
    cls: int  # class and subclass, as in `[0604]`
    kind: str
    secondary: int | None
    subordinate: int | None
    extended: bool
    acs: int | None
    max_payload_B: int | None = None  # as set in Device Control


def dwords_acs(vendor: int, device: int) -> bool:
    """Intel 100 and 200 series chipset root ports: their ACS registers are dwords, the control word is not where lspci looks."""
    if vendor != 0x8086:
        return False
    ranges = ((0xA110, 0xA11F), (0xA167, 0xA16A), (0xA290, 0xA29F), (0xA2E7, 0xA2EE), (0x9D10, 0x9D1B))
    return any(low <= device <= high for low, high in ranges)


def bit_names(control: int) -> str:
    return " ".join(name for n, name in enumerate(ACS_BITS) if control >> n & 1) or "none"


def _u16(config: bytes, at: int) -> int:
    return int.from_bytes(config[at : at + 2], "little")


def _u32(config: bytes, at: int) -> int:
    return int.from_bytes(config[at : at + 4], "little")


def _kind(config: bytes) -> str:
    at, visited = config[0x34] & 0xFC if _u16(config, 0x06) & 0x10 else 0, set[int]()
    while 0x40 <= at < len(config) - 4 and at not in visited:
        visited.add(at)
        if config[at] == _CAP_EXPRESS:
            return _KINDS.get(_u16(config, at + 2) >> 4 & 0xF, "")
        at = config[at + 1] & 0xFC
    return ""


def _payload_B(config: bytes) -> int | None:
    at, visited = config[0x34] & 0xFC if _u16(config, 0x06) & 0x10 else 0, set[int]()
    while 0x40 <= at < len(config) - 10 and at not in visited:
        visited.add(at)
        if config[at] == _CAP_EXPRESS:
            power = _u16(config, at + 8) >> 5 & 0x7
            return 128 << power if power <= 5 else None
        at = config[at + 1] & 0xFC
    return None


def extended(config: bytes, number: int) -> Iterator[int]:
    """Offsets at which extended capabilities of that number begin. A list that loops ends there."""
    at, visited = 0x100, set[int]()
    while 0x100 <= at <= len(config) - 8 and at not in visited:
        visited.add(at)
        head = _u32(config, at)
        if head in (0, 0xFFFFFFFF):
            return
        if head & 0xFFFF == number:
            yield at
        at = head >> 20 & 0xFFC


def _acs(config: bytes) -> int | None:
    at = next(extended(config, ACS), None)
    return None if at is None else _u16(config, at + ACS_CONTROL)


def decode(config: bytes) -> Config | None:
    """None: fewer than 64 bytes, or no device answers."""
    if len(config) < 64 or _u16(config, 0) in (0x0000, 0xFFFF):
        return None
    bridge = config[0x0E] & 0x7F == 1
    readable = len(config) >= 0x200 and _u32(config, 0x100) not in (0, 0xFFFFFFFF)
    return Config(
        vendor=_u16(config, 0),
        device=_u16(config, 2),
        cls=_u16(config, 0x0A),
        kind=_kind(config) if len(config) >= 256 else "",
        secondary=config[0x19] if bridge else None,
        subordinate=config[0x1A] if bridge else None,
        extended=readable,
        acs=_acs(config) if readable and not dwords_acs(_u16(config, 0), _u16(config, 2)) else None,
        max_payload_B=_payload_B(config) if len(config) >= 256 else None,
    )
