"""The records of an `lspci` listing. Not a parser itself: no anchors.

In:      lines of `lspci` in any form, also hex dumps (decoded) and `-mm`.
Out:     one Device per record with what its lines say; the lines about ACS or links that stand without a device.
Unknown: what a record does not say stays empty, 0 or None.
Raises:  nothing.
Source:  pciutils 3.2 .. 3.14 (`lspci.c`, `ls-caps.c`, `ls-ecaps.c`).
"""

from __future__ import annotations

from collections.abc import Iterable

from linkproof.model import Line, Text
from linkproof.parse.pci_config import ACS_BITS, REDIRECT, bit_names, decode, dwords_acs
from linkproof.parse.rules import LINE_MAX, Match, rx

GPU_CLASSES = {"VGA compatible controller": 0x0300, "3D controller": 0x0302, "Display controller": 0x0380,
                "Processing accelerators": 0x1200}  # fmt: skip
_CLASSES = {**GPU_CLASSES, "PCI bridge": 0x0604, "Bridge": 0x0680, "Ethernet controller": 0x0200, "Infiniband controller": 0x0207}
DEVICES_MOST = 8192

_HEAD = (
    r"^[ \t>|]*((?:[0-9a-fA-F]{4,5}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]) "
    r"(?:Class )?([A-Z3][A-Za-z0-9 /()-]+?|[0-9a-fA-F]{4})(?: \[([0-9a-fA-F]{4})\])?: (\S.*)$"
)

_HEAD_MM = (
    r"^[ \t>|]*((?:[0-9a-fA-F]{4,5}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]) "
    r'"([^"]+?)(?: \[([0-9a-fA-F]{4})\])?" "([^"]+)" "([^"]+)"'
)


class Device:
    """One record of a listing."""

    def __init__(self, line: Line, address: str, cls: int, words: str) -> None:
        self.line, self.address, self.cls, self.words = line, address.lower(), cls, words
        ids = rx(r"\[?\b([0-9a-f]{4}):([0-9a-f]{4})\b\]?").search(words)
        self.vendor, self.device = (int(str(ids.group(1)), 16), int(str(ids.group(2)), 16)) if ids is not None else (0, 0)
        self.kind = "root_port" if "Root Port" in words or "GPP Bridge" in words else ""
        self.acs: list[tuple[str, str, Line]] = []  # redirect, bits, line
        self.denied: Line | None = None
        self.capabilities = self.extended = False
        self.buses: tuple[int, int] | None = None
        self.width_best = self.width_now = 0
        self.width_line: Line | None = None
        self.vfio: Line | None = None
        self.bars: dict[int, str] = {}
        self.resizable: dict[int, tuple[int, int, Line]] = {}  # BAR -> size now, largest size (MiB)
        self.hex = bytearray()

    def bus(self) -> int:
        return int(self.address.split(":")[-2], 16)

    def domain(self) -> str:
        return self.address.rsplit(":", 2)[0] if self.address.count(":") == 2 else "0000"

    def is_bridge(self) -> bool:
        return self.cls == 0x0604

    def is_nic(self) -> bool:
        return self.cls in (0x0200, 0x0207)

    def is_gpu(self) -> bool:
        if self.cls not in GPU_CLASSES.values():
            return False
        if self.vendor in (0x10DE, 0x1002) or "NVIDIA" in self.words or "AMD/ATI" in self.words:
            return True
        return "Intel" in self.words and any(word in self.words for word in ("Arc", "Data Center GPU", "Ponte Vecchio"))

    def name(self) -> str:
        words = rx(r"^(.*?)(?: \[[0-9a-f]{4}:[0-9a-f]{4}\])?(?: \(rev [0-9a-f]{2}\))?(?: \(prog-if .*)?$").search(self.words)
        named = str(words.group(1)) if words is not None else self.words
        brackets = [str(found) for found in rx(r"\[([^\]]{3,60})\]").findall(named) if found != "AMD/ATI"]
        if brackets and any(letter.isdigit() for letter in brackets[-1]):  # `[Radeon Graphics]` names no card, the chip before it does
            return brackets[-1]
        named = named.partition(" [Radeon ")[0]
        rest = rx(r"^(?:NVIDIA Corporation|Advanced Micro Devices, Inc\. \[AMD/ATI\]|Intel Corporation) (\S.*)$").search(named)
        told = rest is not None and not str(rest.group(1)).startswith("Device ")
        return str(rest.group(1)) if told and rest is not None else ""


def _mib(size: str) -> int:
    found = rx(r"^(\d{1,6})([KMGT])B?$").search(size)
    return 0 if found is None else int(int(found.group(1)) * {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1 << 20}[str(found.group(2))])


def control_of(words: str) -> tuple[str, str] | None:
    """`ACSCtl: SrcValid+ ReqRedir+ ...` or `ACSCtl: 0x001d ...` -> (redirect, names of set bits)."""
    found = rx(r"ACSCtl:\s*((?:= )?0x[0-9a-fA-F].*|[A-Z][A-Za-z]{4,14}[+-].*)").search(words)
    if found is None:
        return None
    rest = str(found.group(1))
    number = rx(r"^(?:=\s*)?0x([0-9a-fA-F]{1,4})\b").search(rest)
    if number is not None:
        control = int(str(number.group(1)), 16)
        return "on" if control & REDIRECT else "off", bit_names(control)
    state = {str(name): sign == "+" for name, sign in rx(r"([A-Z][A-Za-z]{4,14})([+-])").findall(rest) if name in ACS_BITS}
    names = " ".join(name for name in ACS_BITS if state.get(name)) or "none"
    if any(state.get(name) for name in ("ReqRedir", "CmpltRedir", "EgressCtrl")):
        return "on", names
    return ("off" if "ReqRedir" in state and "CmpltRedir" in state else "unknown"), names if state else ""


def _head(line: Line) -> Device | None:
    words = line.text[:LINE_MAX]
    found: Match | None = rx(_HEAD).search(words)
    if found is not None:
        name, code, rest = str(found.group(2)), found.group(3), str(found.group(4))
    else:
        found = rx(_HEAD_MM).search(words) if '"' in words else None
        if found is None:
            return None
        ids = [rx(r" \[([0-9a-f]{4})\]$").search(str(found.group(n))) for n in (4, 5)]
        both = f" [{':'.join(str(one.group(1)) for one in ids if one is not None)}]" if all(ids) else ""
        name, code = str(found.group(2)), found.group(3)
        rest = " ".join(rx(r"^(.*?)(?: \[[0-9a-f]{4}\])?$").findall(str(found.group(n)))[0] for n in (4, 5)) + both
    if code is None and rx(r"^[0-9a-fA-F]{4}$").search(name) is not None:
        code = name
    return Device(line, str(found.group(1)), int(str(code), 16) if code is not None else _CLASSES.get(name, 0), rest)


def _more(device: Device, line: Line) -> None:
    """A line of a device's record."""
    words = line.text[:LINE_MAX]
    if (row := rx(r"^([0-9a-f]{2,3}): ((?:[0-9a-f]{2} ){0,15}[0-9a-f]{2})\s*$").search(words)) is not None:
        if int(str(row.group(1)), 16) == len(device.hex):
            device.hex += bytes.fromhex(str(row.group(2)))
    elif "ACSCtl" in words:
        if (control := control_of(words)) is not None:
            device.acs.append((*control, line))
    elif "Capabilities:" in words:
        device.capabilities = True
        device.extended = device.extended or rx(r"Capabilities: \[[0-9a-f]{3} v\d").search(words) is not None
        if "<access denied>" in words:
            device.denied = line
        kind = rx(r"Express (?:\(v\d\) )?(Root Port|Upstream Port|Downstream Port|(?:Legacy )?Endpoint)").search(words)
        if kind is not None:
            device.kind = "endpoint" if "Endpoint" in str(kind.group(1)) else str(kind.group(1)).lower().replace(" ", "_")
    elif (buses := rx(r"Bus: primary=[0-9a-f]{2}, secondary=([0-9a-f]{2}), subordinate=([0-9a-f]{2})").search(words)) is not None:
        device.buses = int(str(buses.group(1)), 16), int(str(buses.group(2)), 16)
    elif (best := rx(r"LnkCap:.*Width x(\d{1,2})\b").search(words)) is not None:
        device.width_best = int(best.group(1))
    elif (now := rx(r"LnkSta:.*Width x(\d{1,2})\b").search(words)) is not None:
        device.width_now, device.width_line = int(now.group(1)), line
    elif "Kernel driver in use: vfio-pci" in words:
        device.vfio = line
    elif (bar := rx(r"Region (\d): Memory at .*prefetchable\) .*\[size=(\d{1,4}[KMGT])\]").search(words)) is not None:
        device.bars[int(bar.group(1))] = str(bar.group(2))
    elif (sizes := rx(r"BAR (\d): current size: (\d{1,4}[KMGT]B), supported: ([0-9KMGTB ]+)").search(words)) is not None:
        largest = max(_mib(size) for size in str(sizes.group(3)).split()[:40])
        device.resizable[int(sizes.group(1))] = _mib(str(sizes.group(2))), largest, line


def _from_bytes(device: Device) -> None:
    """What the text form did not say and the hex dump does."""
    config = decode(bytes(device.hex))
    if config is None:
        return
    device.vendor, device.device, device.cls = config.vendor, config.device, config.cls
    device.kind = config.kind or device.kind
    device.capabilities, device.extended = True, device.extended or config.extended
    if config.secondary is not None and config.subordinate is not None:
        device.buses = device.buses or (config.secondary, config.subordinate)
    if config.acs is not None and not device.acs:
        device.acs.append(("on" if config.acs & REDIRECT else "off", bit_names(config.acs), device.line))


def devices(text: Text, runs: Iterable[range]) -> tuple[list[Device], list[Line]]:
    """Records, and lines about ACS or links that stand without a device."""
    found: list[Device] = []
    loose: list[Line] = []
    for window in runs:
        device: Device | None = None
        for index in window:
            line = text.lines[index]
            head = _head(line)
            if head is not None and len(found) < DEVICES_MOST:
                device = head
                found.append(device)
            elif device is not None:
                _more(device, line)
            elif "ACSCtl" in line.text or "LnkSta:" in line.text:
                loose.append(line)
    for device in found:
        if len(device.acs) > 1:  # several control lines under one device: a grep's output below another list
            loose += [line for _, _, line in device.acs]
            device.acs = []
        if device.hex:
            _from_bytes(device)
        if device.is_bridge() and (dwords_acs(device.vendor, device.device) or misread(device.words)):
            device.acs = [("unknown", "", line) for _, _, line in device.acs]
    return found, loose


def misread(words: str) -> bool:
    return "PCI Express Root Port" in words and any(chip in words for chip in ("Sunrise Point", "100 Series/C230", "200 Series PCH"))


class Tree:
    """Counts of GPUs, NICs and anything by domain and bus: what hangs below a port, from its bus numbers."""

    def __init__(self, found: list[Device]) -> None:
        self._sums: dict[str, tuple[list[int], list[int], list[int]]] = {}
        everyone = {device.address: device for device in found}.values()  # a listing pasted twice is one machine
        self.gpus = sum(device.is_gpu() for device in everyone)
        for device in everyone:
            counts = self._sums.setdefault(device.domain(), ([0] * 257, [0] * 257, [0] * 257))
            for sums, one in zip(counts, (device.is_gpu(), device.is_nic(), True), strict=True):
                sums[device.bus() + 1] += one
        for counts in self._sums.values():
            for sums in counts:
                for bus in range(256):
                    sums[bus + 1] += sums[bus]

    def below(self, port: Device) -> str:
        """Words of model.Acs.above."""
        if port.buses is None or port.buses[0] > port.buses[1] or port.domain() not in self._sums:
            return ""
        gpus, nics, any_device = (sums[port.buses[1] + 1] - sums[port.buses[0]] for sums in self._sums[port.domain()])
        if gpus == self.gpus and gpus > 1:
            return "every gpu nic" if nics else "every gpu"
        if gpus or nics:
            return " ".join(word for word, there in (("gpu", gpus), ("nic", nics)) if there)
        return "other" if any_device else ""
