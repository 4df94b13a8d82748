"""`nvidia-smi -q` (whole, `-d`, or a grepped piece) -> BAR1 against memory, ECC, link width, fabric, slow-downs, virtualisation.

In:      sections by indentation with `Key : Value` lines; the indentation may be lost, the headings of the cards may be missing.
Out:     Gpu facts bar1_smaller_than_vram, bar1_covers_vram, ecc_errors, display_attached, mig, grouped over cards that say the same;
         Events link_downgraded, pcie_replays, fabric_not_ready, fabric_ready, power_event; Platform(vm); Versions.
Unknown: `N/A` gives nothing. A link *speed* below the maximum gives nothing (cards idle at the first generation), a width does.
         BAR1 without memory size: 256 MiB and less are smaller than any card's memory, more gives the size alone.
         Virtualization Mode `None` gives nothing: WSL and gVisor say it too.
Raises:  nothing.
Source:  nvidia-smi -q of drivers 384 .. 617.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Gpu, Line, Platform, Seen, Text, Versions
from linkproof.parse.rules import LINE_MAX, rx, source
from linkproof.parse.spans import bdf, windows

ANCHORS = (
    "Attached GPUs", "Product Name  ", "Display Active", "Display Attached", "MIG Mode", "Virtualization Mode", "FB Memory Usage",
    "BAR1 Memory Usage", "ECC Errors", "Remapped Rows", "Retired Pages", "GPU Link Info", "PCIe Generation", "Link Width",
    "Replays Since Reset", "Clocks Event Reasons", "Clocks Throttle Reasons", "HW Slowdown", "HW Power Brake", "CliqueId",
    "Driver Version  ",
)  # fmt: skip
KEEP = (3, 30)

SMALL_BAR1_MIB = 256  # what firmware gives without resizable BAR; no card that computes has so little memory
MANY_CORRECTED = 1000
MANY_REPLAYS = 100
_SLOW = ("HW Slowdown", "HW Thermal Slowdown", "HW Power Brake Slowdown", "HW Power Brake", "SW Thermal Slowdown")


class _Card:
    def __init__(self, bus: str = "") -> None:
        self.bus, self.name = bus, ""
        self.values: dict[str, tuple[str, Line]] = {}  # "Section/Key" -> value; the last section only, sub-sections of ECC both

    def put(self, path: str, value: str, line: Line) -> None:
        if len(self.values) < 1000:
            self.values.setdefault(path, (value, line))

    def mib(self, path: str) -> int | None:
        value = self.values.get(path)
        found = rx(r"^(\d{1,8}) MiB$").search(value[0]) if value else None
        return int(found.group(1)) if found is not None else None

    def lanes(self, path: str) -> int | None:
        value = self.values.get(path)
        found = rx(r"^(\d{1,2})x$").search(value[0]) if value else None
        return int(found.group(1)) if found is not None else None


def _read(text: Text, hits: list[int]) -> Iterator[_Card]:
    """One card per heading; what stands before any heading is a card without an address."""
    for window in windows(hits, *KEEP, len(text.lines)):
        card, stack = _Card(), list[tuple[int, str]]()
        for index in window:
            line = text.lines[index]
            words = line.text[:LINE_MAX].rstrip()
            if not words:
                continue
            heading = rx(r"^\W{0,3}GPU ([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7])$").search(words)
            if heading is not None:
                yield card
                card, stack = _Card(bdf(str(heading.group(1)))), []
                continue
            indent = len(words) - len(words.lstrip())
            pair = rx(r"^\s*([A-Za-z0-9][A-Za-z0-9 /().-]{0,48}?)\s*:\s(?:\s*)(\S.*)$").search(words)
            section = None if pair else rx(r"^\s*([A-Z][A-Za-z0-9 /().-]{1,48})$").search(words)
            while stack and stack[-1][0] >= indent and (section or indent or len(stack) > 1):
                stack.pop()
            if section is not None:
                stack.append((indent, str(section.group(1)).strip()))
            elif pair is not None:
                key, value = str(pair.group(1)), str(pair.group(2)).strip()
                if key == "Total" and stack and stack[-1][1].endswith("Memory Usage") and f"{stack[-1][1]}/Total" in card.values:
                    yield card  # a second card without a heading
                    card = _Card()
                names = [name for _, name in stack[-2:]]
                card.put("/".join([*names[-1:], key]), value, line)
                if len(names) == 2:
                    card.put("/".join([*names, key]), value, line)
                if key == "Product Name":
                    card.name = value
        yield card


def _bar1(card: _Card) -> tuple[str, str, Line] | None:
    bar1, vram = card.mib("BAR1 Memory Usage/Total"), card.mib("FB Memory Usage/Total")
    if bar1 is None or bar1 == 0:
        return None
    line = card.values["BAR1 Memory Usage/Total"][1]
    if vram:
        return "bar1_covers_vram" if bar1 >= vram else "bar1_smaller_than_vram", f"{bar1} MiB of {vram} MiB", line
    return "bar1_smaller_than_vram" if bar1 <= SMALL_BAR1_MIB else "", f"BAR1 {bar1} MiB", line


def _ecc(card: _Card) -> tuple[str, Line] | None:
    """Words for what is wrong, uncorrectable before corrected."""
    corrected: tuple[str, Line] | None = None
    for path, (value, line) in card.values.items():
        section, _, key = path.rpartition("/")
        many = value.isdigit() and len(value) < 16
        bad = "ncorrect" in key or "Double Bit" in section or key in ("Double Bit ECC", "Uncorrectable Error")
        good = not bad and ("orrectable" in key or "Single Bit" in section or key == "Single Bit ECC")
        if (bad and many and int(value) > 0) or (key in ("Remapping Failure Occurred", "SRAM Threshold Exceeded") and value == "Yes"):
            return f"{path}: {value}", line
        if good and many and int(value) >= MANY_CORRECTED and corrected is None:
            corrected = (f"{path}: {value}", line)
    return corrected


def _events(text: Text, card: _Card) -> Iterator[Fact]:
    values = card.values
    now, best = card.lanes("Link Width/Current"), card.lanes("Link Width/Max")
    if now and best and now < best:
        where = source(text, values["Link Width/Current"][1])
        yield Event(source=where, kind="link_downgraded", value=f"{card.bus or '?'}: x{now} of x{best}")
    for key, least in (("Replays Since Reset", MANY_REPLAYS), ("Replay Number Rollovers", 1)):
        for path, (value, line) in values.items():
            if path.rpartition("/")[2] == key and value.isdigit() and len(value) < 16 and int(value) >= least:
                yield Event(source=source(text, line), kind="pcie_replays", value=f"{card.bus or '?'}: {key} {value}")
                break
    slow = {path.rpartition("/")[2]: line for path, (value, line) in values.items() if value == "Active"}
    slow = {key: line for key, line in slow.items() if key in _SLOW}
    if slow:
        line = next(iter(slow.values()))
        yield Event(source=source(text, line), kind="power_event", value=f"{card.bus or '?'}: " + ", ".join(slow))
    state, status = values.get("Fabric/State"), values.get("Fabric/Status")
    if state and state[0] != "N/A":
        bad = state[0] != "Completed" or (status is not None and status[0] not in ("Success", "N/A"))
        said = f"{card.bus or '?'}: {state[0]}" + (f", {status[0]}" if status else "")
        yield Event(source=source(text, state[1]), kind="fabric_not_ready" if bad else "fabric_ready", value=said)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    groups: dict[tuple[str, str, str], list[Line]] = {}
    once: dict[str, Fact] = {}
    for card in _read(text, hits):
        values = card.values
        if not values:
            continue
        yield from _events(text, card)
        if (bar1 := _bar1(card)) is not None:
            groups.setdefault((card.name, bar1[0], bar1[1]), []).append(bar1[2])
        if (ecc := _ecc(card)) is not None:
            groups.setdefault((card.name, "ecc_errors", f"{card.bus} {ecc[0]}".strip()), []).append(ecc[1])
        for path, (value, line) in values.items():
            key = path.rpartition("/")[2]
            where = source(text, line)
            if (key, value) in (("Display Active", "Enabled"), ("Display Attached", "Yes")):
                groups.setdefault((card.name, "display_attached", card.bus), [line])
            elif path == "MIG Mode/Current" and value == "Enabled":
                groups.setdefault((card.name, "mig", ""), []).append(line)
            elif key == "Virtualization Mode" and value in ("Pass-Through", "VGPU"):
                once.setdefault("vm", Platform(source=where, kind="vm", note=f"Virtualization Mode {value}"))
            elif path == "Driver Version" and rx(r"^\d{3}[0-9.]{1,12}$").search(value):
                once.setdefault("driver", Versions(source=where, driver=value))
            elif path == "CUDA Version" and rx(r"^\d{1,2}\.\d{1,2}$").search(value):
                once.setdefault("cuda", Versions(source=where, cuda=value))
            elif key == "Product Name":
                groups.setdefault((value, "", ""), []).append(line)
                once.setdefault("seen", Seen(source=where, kind="nvidia-smi -q"))
    yield from once.values()
    for (name, fact, said), lines in groups.items():
        yield Gpu(source=source(text, lines[0]), name=name, count=len(lines), fact=fact, value=said)
