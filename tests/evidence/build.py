"""Draws machines: PCI functions with their places, registers and groups, answered as a kernel's /sys would answer them.

    m = Machine()
    root = m.port("pci0000:00", "0000:00:01.0", acs=0x1D)
    up, downs = m.switch(root, 0x02, ports=2, acs=0x1D)
    m.gpu(downs[0], "0000:04:00.0")

A Machine is a Host; `write` puts the same into a folder. What is not drawn is absent.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from linkproof.collect.host import Answer

DEVICES = "/sys/bus/pci/devices"
NVIDIA, AMD, INTEL, BROADCOM, MELLANOX = 0x10DE, 0x1002, 0x8086, 0x1000, 0x15B3
ROOT, UP, DOWN, ENDPOINT = 4, 5, 6, 0
SIZE_B = 0x400  # enough for every list that is drawn here; a kernel gives 4096


def config(vendor: int, device: int, cls: int, port: int = ENDPOINT, acs: int | None = None, acs_cap: int = 0x5F) -> bytes:
    """Configuration space: header, Express capability at 0x40, AER at 0x100, ACS (if any) at 0x150."""
    out = bytearray(SIZE_B)
    out[0:4] = vendor.to_bytes(2, "little") + device.to_bytes(2, "little")
    out[0x06] = 0x10
    out[0x09:0x0C] = cls.to_bytes(3, "little")
    out[0x0E] = 1 if cls >> 8 == 0x0604 else 0
    out[0x34], out[0x40] = 0x40, 0x10
    out[0x42:0x44] = (port << 4 | 2).to_bytes(2, "little")
    out[0x100:0x104] = (0x0001 | 2 << 16 | (0x150 << 20 if acs is not None else 0)).to_bytes(4, "little")
    if acs is not None:
        out[0x150:0x154] = (0x000D | 1 << 16).to_bytes(4, "little")
        out[0x154:0x158] = acs_cap.to_bytes(2, "little") + acs.to_bytes(2, "little")
    return bytes(out)


@dataclass
class Machine:
    """root: config can be read whole. iommu: type of every group ("DMA-FQ", "identity"); "": there is no IOMMU."""

    root: bool = True
    iommu: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    commands: dict[tuple[str, ...], Answer] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)  # bdf or host bridge -> place below /sys/devices
    numa: int = 0
    groups: int = 0

    def __post_init__(self) -> None:
        self.folders: dict[str, list[str]] = {DEVICES: [], "/sys/class/iommu": ["dmar0"] if self.iommu else []}

    def function(self, parent: str, bdf: str, cls: int, vendor: int, device: int, registers: bytes, **texts: str) -> str:
        above = self.places.get(parent, parent)
        self.places[bdf] = place = f"{above}/{bdf}"
        self.folders[DEVICES].append(bdf)
        self.links[f"{DEVICES}/{bdf}"] = f"/sys/devices/{place}"
        told = {"class": f"0x{cls:06x}", "vendor": f"0x{vendor:04x}", "device": f"0x{device:04x}", "numa_node": str(self.numa), **texts}
        for name, text in told.items():
            self.files[f"{DEVICES}/{bdf}/{name}"] = f"{text}\n".encode()
        self.files[f"{DEVICES}/{bdf}/config"] = registers if self.root else registers[:64]
        if self.iommu:
            self.links[f"{DEVICES}/{bdf}/iommu_group"] = f"/sys/kernel/iommu_groups/{self.groups}"
            self.files[f"/sys/kernel/iommu_groups/{self.groups}/type"] = f"{self.iommu}\n".encode()
            self.groups += 1
        return bdf

    def port(
        self, parent: str, bdf: str, kind: int = ROOT, acs: int | None = None, vendor: int = INTEL, width: int = 16, speed: str = "32.0"
    ) -> str:
        device = 0x352A if kind == ROOT else 0xC030
        registers = config(vendor, device, 0x060400, kind, acs)
        return self.function(parent, bdf, 0x060400, vendor, device, registers, **_link(width, width, speed, speed))

    def switch(self, parent: str, bus: int, ports: int, acs: int | None = None, domain: str = "0000") -> tuple[str, list[str]]:
        """A switch: its upstream port on `bus`, its downstream ports on the next one."""
        up = self.port(parent, f"{domain}:{bus:02x}:00.0", UP, vendor=BROADCOM)
        return up, [self.port(up, f"{domain}:{bus + 1:02x}:{n:02x}.0", DOWN, acs, BROADCOM) for n in range(ports)]

    def gpu(
        self, parent: str, bdf: str, *, vendor: int = NVIDIA, device: int = 0x2330, cls: int = 0x030200, width: int = 16, width_best: int = 16,
        speed: str = "32.0", driver: str = "nvidia",
    ) -> str:  # fmt: skip
        link = _link(width, width_best, speed, "32.0")
        self.function(parent, bdf, cls, vendor, device, config(vendor, device, cls), **link)
        self.links[f"{DEVICES}/{bdf}/driver"] = f"/sys/bus/pci/drivers/{driver}"
        return bdf

    def nic(self, parent: str, bdf: str, cls: int = 0x020700) -> str:
        return self.function(parent, bdf, cls, MELLANOX, 0x1021, config(MELLANOX, 0x1021, cls), **_link(16, 16, "32.0", "32.0"))

    def other(self, parent: str, bdf: str, cls: int = 0x088000, vendor: int = INTEL, device: int = 0x3440) -> str:
        return self.function(parent, bdf, cls, vendor, device, config(vendor, device, cls))

    # -- Host

    def file(self, path: str) -> Answer:
        found = self.files.get(path)
        return Answer(None, "absent") if found is None else Answer(found)

    def names(self, path: str) -> Answer:
        found = self.folders.get(path)
        return Answer(None, "absent") if found is None else Answer("\n".join(sorted(found)).encode())

    def link(self, path: str) -> Answer:
        found = self.links.get(path)
        return Answer(None, "absent") if found is None else Answer(found.encode())

    def run(self, argv: tuple[str, ...], deadline_s: float = 5.0) -> Answer:
        return self.commands.get(argv, Answer(None, "absent"))

    def write(self, at: Path) -> None:
        """The same as files below a folder, with the links a kernel has."""
        for folder in self.folders:
            (at / folder[1:]).mkdir(parents=True, exist_ok=True)
            if folder != DEVICES:
                for name in self.folders[folder]:
                    (at / folder[1:] / name).mkdir()
        for path, target in self.links.items():
            (at / target[1:]).mkdir(parents=True, exist_ok=True)
            if path.count("/") == 5:  # a device
                (at / path[1:]).symlink_to(os.path.relpath(target, os.path.dirname(path)))  # noqa: PTH120
        for path, target in self.links.items():
            if path.count("/") != 5:
                place = self.links[path.rpartition("/")[0]] + "/" + path.rpartition("/")[2]
                (at / place[1:]).symlink_to(os.path.relpath(target, os.path.dirname(place)))  # noqa: PTH120
        for path, data in self.files.items():
            (at / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            (at / path[1:]).write_bytes(data)


def _link(width: int, width_best: int, speed: str, speed_best: str) -> dict[str, str]:
    return {
        "current_link_width": str(width), "max_link_width": str(width_best), "current_link_speed": f"{speed} GT/s PCIe",
        "max_link_speed": f"{speed_best} GT/s PCIe",
    }  # fmt: skip
