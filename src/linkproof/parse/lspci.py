"""`lspci` in any form (`-vvv`, `-nn`, `-mm`, `-xxxx`, grepped) and `setpci ... ECAP_ACS` -> ports with ACS, GPUs, link widths.

In:      whole dumps with or without domains, single devices, lines of a grep without their device, hex dumps, setpci read-outs.
Out:     Acs per port that has the capability, and per port above a GPU that has none; Gpu per GPU function (value: address, size of
         BAR1), bar1_* facts where the card names its possible sizes; Events link_downgraded (GPUs; width, not speed), vfio_bound;
         Host(nvswitch); Platform(vm) where emulated devices are listed.
Unknown: `<access denied>` and a cut line give redirect unknown, as do Intel chipset ports whose ACS registers lspci misreads.
         SrcValid alone redirects nothing. Sticky error bits (UESta, CESta) give nothing. A write by setpci is no state.
Raises:  nothing.
Source:  pciutils 3.2 .. 3.14 (`ls-ecaps.c`, `setpci.c`); the ids of vendors and classes in pci.ids.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Acs, Event, Fact, Gpu, Host, Line, Platform, Seen, Text
from linkproof.parse.pci_config import REDIRECT, bit_names
from linkproof.parse.pci_listing import GPU_CLASSES, Device, Tree, control_of, devices, misread
from linkproof.parse.rules import LINE_MAX, rx, source
from linkproof.parse.spans import windows

ANCHORS = (
    "ACSCtl", "ECAP_ACS", "(ecap 000d", "setpci", "<access denied>", "LnkSta:", "LnkCap:", "vfio-pci", "Resizable BAR", "NVSwitch",
    *(f"{name}{end}" for name in (*GPU_CLASSES, "PCI bridge", "Ethernet controller", "Infiniband controller") for end in (": ", " [")),
    "Class 0604", "Class 0300", "Class 0302", "Bridge: NVIDIA", "Bridge [0680]: NVIDIA", " 0604: ", " 0300: ", " 0302: ",
)  # fmt: skip
KEEP = (120, 270)  # a device of `-xxxx` is 257 lines

_NVSWITCH = r"NVSwitch|(?:10de:|NVIDIA Corporation Device )(?:1ac1|1ac2|1af1|22a3)\b"
_EMULATED = ("QEMU", "VMware SVGA", "VirtualBox", "Hyper-V virtual", "Parallels Virtual")


def _ports(text: Text, found: list[Device]) -> Iterator[Fact]:
    told: set[tuple[str, str]] = set()
    tree = Tree(found)
    for device in found:
        below = tree.below(device) if device.is_bridge() else ""
        for redirect, bits, line in device.acs:
            if (device.address, redirect) not in told:
                told.add((device.address, redirect))
                where = source(text, line)
                yield Acs(source=where, redirect=redirect, port=device.address, kind=device.kind, bits=bits, above=below)
        plain = device.capabilities and device.extended and device.denied is None and not device.acs
        if plain and device.kind in ("root_port", "downstream_port") and "gpu" in below and not misread(device.words):
            yield Acs(
                source=source(text, device.line), redirect="off", port=device.address, kind=device.kind, bits="no capability", above=below
            )
    if not any(device.acs for device in found):
        denied = next((d for d in found if d.denied is not None and d.is_bridge()), None) or next((d for d in found if d.denied), None)
        if denied is not None and denied.denied is not None:
            port = denied.address if denied.is_bridge() else ""
            yield Acs(source=source(text, denied.denied), redirect="unknown", port=port, kind=denied.kind)


def _gpus(text: Text, found: list[Device]) -> Iterator[Fact]:
    told: set[str] = set()
    for device in found:
        if not device.is_gpu() or device.address in told:
            continue
        told.add(device.address)
        where, name = source(text, device.line), device.name()
        number = 1 if device.vendor == 0x10DE or "NVIDIA" in device.words else 0
        size = f" BAR{number} {device.bars[number]}" if number in device.bars else ""
        yield Gpu(source=where, name=name, count=1, value=device.address + size)
        if number in device.resizable:
            now, largest, line = device.resizable[number]
            fact = "bar1_smaller_than_vram" if now < largest else "bar1_covers_vram"
            yield Gpu(source=source(text, line), name=name, count=1, fact=fact, value=f"{now} MiB of {largest} MiB possible")
        if device.width_line is not None and 0 < device.width_now < device.width_best <= 32:
            value = f"{device.address}: x{device.width_now} of x{device.width_best}"
            yield Event(source=source(text, device.width_line), kind="link_downgraded", value=value)


def _loose(text: Text, loose: list[Line], listed: bool) -> Iterator[Fact]:
    for line in loose[:500]:
        control = control_of(line.text[:LINE_MAX])
        if control is not None:
            yield Acs(source=source(text, line), redirect=control[0], bits=control[1])
        elif not listed and rx(r"LnkSta:.*Width x\d{1,2} \(downgraded\)").search(line.text[:LINE_MAX]) is not None:
            yield Event(source=source(text, line), kind="link_downgraded", value="?: " + line.text.strip()[:80])


def _setpci(text: Text, index: int) -> Iterator[Fact]:
    line = text.lines[index]
    words = line.text[:LINE_MAX]
    verbose = rx(r"([0-9a-fA-F:.]{7,13}) \(ecap 000d @([0-9a-f]{3})\) @([0-9a-f]{3}) = ([0-9a-f]{4})\b").search(words)
    port = rx(r"-s\s*([0-9a-fA-F:]{2,10}\.[0-7])|\b((?:[0-9a-fA-F]{4,5}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7])\b").search(words)
    address = next((str(group).lower() for group in port.groups() if group is not None), "") if port is not None else ""
    value = ""
    if verbose is not None:
        at_control = int(str(verbose.group(3)), 16) == int(str(verbose.group(2)), 16) + 6
        address, value = str(verbose.group(1)).lower(), str(verbose.group(4)) if at_control else ""
    elif (same := rx(r"ECAP_ACS\+(?:0x)?0?6\.[wW](?:\s*[:]\s*|\s+=\s*|\s+)(?:0x)?([0-9a-fA-F]{4})\b").search(words)) is not None:
        value = str(same.group(1))
    elif rx(r"setpci\b.*ECAP_ACS\+(?:0x)?0?6\.[wW]\s*$").search(words) is not None and index + 1 < len(text.lines):
        after = rx(r"^\s*([0-9a-f]{4})\s*$").search(text.lines[index + 1].text[:80])
        value = str(after.group(1)) if after is not None else ""
    if rx(r"setpci\b.*\bf2a\.w").search(words) is not None:  # where PLX switches keep the control word, as NVIDIA's old advice reads it
        yield from _bare_words(text, index)
    if value:
        control = int(value, 16)
        yield Acs(source=source(text, line), redirect="on" if control & REDIRECT else "off", port=address, bits=bit_names(control))


def _bare_words(text: Text, index: int) -> Iterator[Fact]:
    """Control words below a loop over ports, one a line, no addresses: on if any port redirects."""
    below = []
    for line in text.lines[index + 1 : index + 130]:
        word = rx(r"^\s*([0-9a-f]{4})\s*$").search(line.text[:80])
        if word is not None:
            below.append((int(word[1], 16), line))
        elif below:
            break
    if below:
        control, line = max(below, key=lambda one: bool(one[0] & REDIRECT))
        yield Acs(source=source(text, line), redirect="on" if control & REDIRECT else "off", bits=bit_names(control))


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    found, loose = devices(text, windows(hits, *KEEP, len(text.lines)))
    if found:
        yield Seen(source=source(text, found[0].line), kind="lspci")
    yield from _ports(text, found)
    yield from _gpus(text, found)
    yield from _loose(text, loose, bool(found))
    for index in hits:
        if "ECAP_ACS" in text.lines[index].text or "f2a.w" in text.lines[index].text or "(ecap 000d" in text.lines[index].text:
            yield from _setpci(text, index)
    for device in found:
        if device.vfio is not None:
            yield Event(source=source(text, device.vfio), kind="vfio_bound", value=device.address)
    switches = [d for d in found if d.cls == 0x0680 and rx(_NVSWITCH).search(d.words) is not None]
    if switches:
        yield Host(source=source(text, switches[0].line), fact="nvswitch", value=str(len({d.address for d in switches})))
    emulated = next((d for d in found if any(word in d.words for word in _EMULATED)), None)
    if emulated is not None:
        yield Platform(source=source(text, emulated.line), kind="vm", note="emulated devices in lspci")
