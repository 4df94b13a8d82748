"""The host around simulated GPUs, answered as a kernel and the usual tools would answer: implements `collect.host.Host`.

In:      a Scenario; the folder of its Virtual, if traffic has run: what the links told then stands in the kernel log and the AER counters.
Out:     Answers. What the scenario does not say is absent, as on a machine without it.
Raises:  nothing.
Source:  layout of configuration space: PCI Express Base Specification 6 (7.5.3, 7.7.11); texts as the tools print them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from linkproof.collect.host import NVML, Answer
from linkproof.model import PCI_DEVICES
from linkproof.sim.scenario import GiB, MiB, Scenario, VirtualGpu
from linkproof.sim.virtual import events

VENDORS = {"nvidia": 0x10DE, "amd": 0x1002}
MAKERS = {"intel": (0x8086, 0x352A, "GenuineIntel", "dmar0"), "amd": (0x1022, 0x14A5, "AuthenticAMD", "ivhd0")}
SWITCH = (0x1000, 0xC030)
ROOT, UP, DOWN, ENDPOINT = 4, 5, 6, 0
CONFIG_B, AER_AT, ACS_AT = 4096, 0x100, 0x150
ACS_ABLE = 0x5F
SPEEDS = {"pcie3": "8.0", "pcie4": "16.0", "pcie5": "32.0", "nvlink": "32.0", "xgmi": "16.0"}
CGROUPS = {"docker": "0::/docker/" + "5f" * 32, "": "0::/user.slice"}


def config(vendor: int, device: int, cls: int, kind: int, acs: int | None = None) -> bytes:
    """Configuration space: header, Express capability at 0x40, AER, and ACS if there is a control word."""
    out = bytearray(CONFIG_B)

    def put(at: int, value: int, size: int) -> None:
        out[at : at + size] = value.to_bytes(size, "little")

    put(0x00, vendor | device << 16, 4)
    put(0x06, 0x10, 2)  # it has a list of capabilities
    put(0x08, cls << 8, 4)
    put(0x0E, cls >> 8 == 0x0604, 1)
    put(0x34, 0x40, 1)
    put(0x40, 0x10 | (kind << 4 | 2) << 16, 4)
    put(0x48, 1 << 5, 2)  # packets of 256 bytes
    put(AER_AT, 0x0001 | 2 << 16 | (0 if acs is None else ACS_AT << 20), 4)
    if acs is not None:
        put(ACS_AT, 0x000D | 1 << 16, 4)
        put(ACS_AT + 4, ACS_ABLE | acs << 16, 4)
    return bytes(out)


class SimHost:
    def __init__(self, scenario: Scenario, folder: str | Path | None = None) -> None:
        self.scenario = scenario
        self._events = events(Path(folder)) if folder is not None else []
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.folders: dict[str, list[str]] = {PCI_DEVICES: []}
        self.commands: dict[tuple[str, ...], Answer] = {}
        for number, gpu in enumerate(scenario.gpus):
            self._gpu(number, gpu)
        self._texts()
        self._boot()
        self._tools()

    # ------------------------------------------------ Host
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

    # ------------------------------------------------ /sys
    def _gpu(self, number: int, gpu: VirtualGpu) -> None:
        parts = gpu.place.split("/")
        maker = MAKERS[self.scenario.host.cpu]
        for depth, bdf in enumerate(parts[1:-1]):
            if bdf not in self.folders[PCI_DEVICES]:
                kind = ROOT if depth == 0 else UP if depth % 2 else DOWN
                vendor, device = maker[:2] if kind == ROOT else SWITCH
                able = kind != UP and bdf not in self.scenario.host.no_acs
                acs = self.scenario.host.acs.get(bdf, 0) if able else None
                self._function("/".join(parts[: depth + 2]), vendor, device, 0x060400, config(vendor, device, 0x060400, kind, acs), 16)
        vendor, cls = VENDORS[gpu.vendor], 0x120000 if gpu.vendor == "amd" else 0x030000
        base = self._function(gpu.place, vendor, gpu.device, cls, config(vendor, gpu.device, cls, ENDPOINT), gpu.width)
        self.links[f"{base}/driver"] = f"/sys/bus/pci/drivers/{'nvidia' if gpu.vendor == 'nvidia' else 'amdgpu'}"
        window = (gpu.bar1_MiB or int(gpu.memory_B / MiB)) * MiB
        start = (number + 1) << 40
        self.files[f"{base}/resource"] = (
            f"0x{0xA0000000:016x} 0x{0xA0FFFFFF:016x} 0x40200\n0x{start:016x} 0x{start + window - 1:016x} 0x14220c\n".encode()
        )
        if gpu.iommu:
            self.links[f"{base}/iommu_group"] = f"/sys/kernel/iommu_groups/{number + 20}"
            self.files[f"/sys/kernel/iommu_groups/{number + 20}/type"] = f"{gpu.iommu}\n".encode()
            self.folders[f"/sys/kernel/iommu_groups/{number + 20}/devices"] = [gpu.bdf]
        self.folders["/sys/class/iommu"] = [maker[3]] if any(g.iommu for g in self.scenario.gpus) else []

    def _function(self, place: str, vendor: int, device: int, cls: int, registers: bytes, width: int) -> str:
        bdf = place.rpartition("/")[2]
        base = f"{PCI_DEVICES}/{bdf}"
        self.folders[PCI_DEVICES].append(bdf)
        self.links[base] = f"/sys/devices/{place}"
        speed = f"{next((s for kind, s in SPEEDS.items() if self.scenario.link.kind.startswith(kind)), '16.0')} GT/s PCIe"
        node = self.scenario.host.numa.get(place.partition("/")[0], -1 if self.scenario.host.virt == "kvm" else 0)
        told = {
            "class": f"0x{cls:06x}", "vendor": f"0x{vendor:04x}", "device": f"0x{device:04x}", "numa_node": str(node),
            "current_link_width": str(width), "max_link_width": "16", "current_link_speed": speed, "max_link_speed": speed,
            "aer_dev_correctable": f"RxErr 0\nTOTAL_ERR_COR {self._counted('AER correctable', bdf)}",
            "aer_dev_nonfatal": f"TOTAL_ERR_NONFATAL {self._counted('AER nonfatal', bdf)}",
            "aer_dev_fatal": f"TOTAL_ERR_FATAL {self._counted('AER fatal', bdf)}",
        }  # fmt: skip
        for name, text in told.items():
            self.files[f"{base}/{name}"] = f"{text}\n".encode()
        self.files[f"{base}/config"] = registers if self.scenario.host.root else registers[:64]
        return base

    def _counted(self, name: str, where: str) -> int:
        return self.scenario.host.counters.get(f"{name}@{where}", 0) + self._events.count((name, where))

    # ------------------------------------------------ texts and tools
    def _texts(self) -> None:
        host = self.scenario.host
        shm_KiB = host.shm_MiB * 1024
        texts = {
            "/proc/cmdline": host.cmdline,
            "/proc/self/cgroup": CGROUPS.get(host.container, CGROUPS[""]),
            "packages:": "\n".join(host.packages),
            "env:": "\n".join(host.env),
        }
        if host.flavour:
            kind = "Open " if host.flavour == "open" else ""
            texts["/proc/driver/nvidia/version"] = f"NVRM version: NVIDIA UNIX {kind}Kernel Module for x86_64  {host.driver}  Release Build"
        if host.params:
            texts["/proc/driver/nvidia/params"] = "\n".join(host.params)
        self.files.update({path: f"{text}\n".encode() for path, text in texts.items()})
        said = {
            ("dmesg",): "\n".join([*host.kernel_log, *(line for kind, line in self._events if kind == "log")]),
            ("lscpu",): f"Architecture: x86_64\nVendor ID:  {MAKERS[host.cpu][2]}",
            ("systemd-detect-virt",): host.container or host.virt,
            ("df", "-kP", "/dev/shm"): "Filesystem     1024-blocks      Used Available Capacity Mounted on\n"
            f"tmpfs {shm_KiB} 0 {shm_KiB} 0% /dev/shm",
        }
        if host.fabric_manager:
            active = host.fabric_manager == "running"
            state = "active (running)" if active else "inactive (dead)"
            said["systemctl", "status", "--no-pager", "--lines=20", "nvidia-fabricmanager"] = (
                f"● nvidia-fabricmanager.service - NVIDIA fabric manager service\n     Active: {state} since Mon 2026-11-02 08:00:00 UTC"
            )
        self.commands.update({argv: Answer(f"{text}\n".encode()) for argv, text in said.items()})

    def _boot(self) -> None:
        """Debian's way: GRUB, whose menu `update-grub` makes from /etc/default/grub."""
        line = " ".join(word for word in self.scenario.host.cmdline.split() if not word.startswith(("root=", "BOOT_IMAGE=", "ro")))
        self.files["/etc/default/grub"] = f'GRUB_DEFAULT=0\nGRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX_DEFAULT="{line}"\n'.encode()
        self.files["/boot/grub/grub.cfg"] = f"menuentry 'Linux' {{\n\tlinux /vmlinuz {self.scenario.host.cmdline}\n}}\n".encode()
        self.files["/proc/sys/kernel/osrelease"] = b"6.8.0-60-generic\n"
        self.folders |= {"/boot": ["grub"], "/boot/grub": ["grub.cfg"], "/usr/sbin": ["update-grub"]}

    def _tools(self) -> None:
        """NVML's JSON; nothing on AMD, as there."""
        s = self.scenario
        if s.gpus[0].vendor != "nvidia":
            self.commands[NVML] = Answer(b'{"error": "NVML Shared Library Not Found"}\n')
            return
        said = {
            "driver": s.host.driver.removesuffix("-p2p"),
            "cuda": 13000,
            "gpus": [_nvml(i, g, s) for i, g in enumerate(s.gpus)],
            "p2p": {word: self._p2p(word) for word in ("read", "write", "atomics")},
            "errors": {},
        }
        self.commands[NVML] = Answer(json.dumps(said).encode() + b"\n")

    def _p2p(self, word: str) -> Mapping[str, str]:
        n = range(len(self.scenario.gpus))
        between = {f"{i}-{j}": self.scenario.between(i, j) for i in n for j in n if i != j}
        return {pair: "OK" if link.claimed and (word != "atomics" or link.atomics) else link.status for pair, link in between.items()}


def _nvml(index: int, gpu: VirtualGpu, scenario: Scenario) -> dict[str, object]:
    out: dict[str, object] = {
        "index": index, "name": gpu.name, "pci": f"0000{gpu.bdf.upper()}", "memory_B": gpu.memory_B,
        "bar1_B": int(gpu.memory_GiB * GiB) if gpu.bar1_MiB is None else gpu.bar1_MiB * MiB, "pcie_width": gpu.width, "pcie_width_max": 16,
        "pcie_replays": gpu.replays, "processes": int(bool(gpu.busy)), "virtualization": int(scenario.host.virt == "kvm"),
    }  # fmt: skip
    if gpu.nvlinks:
        out["nvlinks"] = {str(number): {"active": up} for number, up in enumerate(gpu.nvlinks)}
    return out
