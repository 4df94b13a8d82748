"""What only the BIOS can change, in the words of the board's maker. Pure.

In:      a Case; vendor, product and board as DMI names them.
Out:     bios-bar   Above 4G Decoding, Resizable BAR
         bios-acs   ACS off where the register cannot be written
Unknown: menus differ by model and release: each line says where it usually stands. A maker that is not known gets the general names.
Raises:  nothing.
Source:  general knowledge of the makers' menus; they were not looked up model by model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct

from linkproof.act.recipes.case import Case, measured, seen
from linkproof.mending import Sentence, Step
from linkproof.model import Gpu


class Menus(Struct, frozen=True):
    """Where the switches stand: path > switch = value."""

    maker: str
    above4g: str
    rebar: str
    acs: str
    iommu: str


_AMI = (
    "Advanced > PCI Subsystem Settings > Above 4G Decoding = Enabled",
    "Advanced > PCI Subsystem Settings > Re-Size BAR Support = Enabled",
)
_CPU_ACS = "Intel: Socket Configuration > IIO Configuration > PCIe ACS = Disable; AMD: AMD CBS > NBIO Common Options > ACS Enable = Disable"
_CPU_IOMMU = (
    "Intel: Socket Configuration > IIO Configuration > Intel VT for Directed I/O (VT-d); AMD: AMD CBS > NBIO Common Options > IOMMU"
)

MENUS = (  # (parts of the DMI names in lower case, menus); the first that fits
    (("supermicro",), Menus(
        "Supermicro",
        "Advanced > PCIe/PCI/PnP Configuration > Above 4G Decoding = Enabled",
        "Advanced > PCIe/PCI/PnP Configuration > Re-Size BAR Support = Enabled",
        "Intel: Advanced > Chipset Configuration > North Bridge > IIO Configuration > Intel VT for Directed I/O > ACS Control = Disable; "
        "AMD: Advanced > NB Configuration > ACS Enable = Disable",
        "Intel: Advanced > Chipset Configuration > North Bridge > IIO Configuration > Intel VT for Directed I/O; AMD: Advanced > NB Configuration > IOMMU")),
    (("dell",), Menus(
        "Dell",
        "System BIOS > Integrated Devices > Memory Mapped I/O above 4GB = Enabled; Memory Mapped I/O Base = 56TB or 12TB",
        "System BIOS > Integrated Devices > PCIe Resizable BAR = Enabled, where the release has it",
        "System BIOS > Integrated Devices > ACS, where the release has it; else Processor Settings > Virtualization Technology = Disabled",
        "System BIOS > Processor Settings > Virtualization Technology; AMD: Processor Settings > IOMMU Support")),
    (("hewlett", "hpe", "hp "), Menus(
        "HPE",
        "System Utilities > BIOS/Platform Configuration (RBSU) > Memory Options > Memory Mapped I/O above 4 GB, or PCIe 64-bit BAR support = Enabled",
        "System Utilities > RBSU > PCIe Device Configuration > Resizable BAR = Enabled, where the release has it",
        "System Utilities > RBSU > Virtualization Options > Access Control Service = Disabled",
        "System Utilities > RBSU > Virtualization Options > Intel(R) VT-d, or AMD I/O Virtualization Technology")),
    (("lenovo",), Menus(
        "Lenovo",
        "UEFI Setup > System Settings > Devices and I/O Ports > MM Config Base, and PCI 64-Bit Resource Allocation = Enable",
        "UEFI Setup > System Settings > Devices and I/O Ports > Resizable BAR = Enable, where the release has it",
        "Intel: UEFI Setup > System Settings > Devices and I/O Ports > PCIe ACS = Disable, where there; AMD: System Settings > Processors > ACS = Disable",
        "Intel: UEFI Setup > System Settings > Devices and I/O Ports > Intel VT for Directed I/O (VT-d); AMD: System Settings > Processors > IOMMU")),
    (("asrock",), Menus("ASRock Rack", "Advanced > Chipset Configuration > Above 4G Decoding = Enabled",
        "Advanced > Chipset Configuration > Re-Size BAR Support = Enabled", _CPU_ACS, _CPU_IOMMU)),
    (("asus",), Menus("ASUS", _AMI[0], _AMI[1], _CPU_ACS, _CPU_IOMMU)),
    (("giga",), Menus("Gigabyte", "Settings > IO Ports > Above 4G Decoding = Enabled, or Advanced > PCI Subsystem Settings",
        "Settings > IO Ports > Re-Size BAR Support = Enabled", _CPU_ACS, _CPU_IOMMU)),
    (("inspur", "kaytus", "ieit", "aivres"), Menus("Inspur / KAYTUS", "Advanced > PCI Subsystem Settings > Above 4G Decoding = Enabled",
        "Advanced > PCI Subsystem Settings > Resize BAR = Enabled, where the release has it",
        "Processor > IIO Configuration > PCIe ACS = Disable; AMD: AMD CBS > NBIO Common Options > ACS Enable = Disable",
        "Processor > IIO Configuration > Intel VT for Directed I/O (VT-d); AMD: AMD CBS > NBIO Common Options > IOMMU")),
    (("h3c", "new h3c"), Menus("H3C", "Advanced > PCI Subsystem Settings > Above 4G Decoding = Enabled",
        "Advanced > PCI Subsystem Settings > Re-Size BAR Support = Enabled, where the release has it",
        "Socket Configuration > IIO Configuration > PCIe ACS = Disable; AMD: AMD CBS > NBIO Common Options > ACS Enable = Disable",
        "Socket Configuration > IIO Configuration > Intel VT for Directed I/O (VT-d); AMD: AMD CBS > NBIO Common Options > IOMMU")),
    (("xfusion", "huawei"), Menus("xFusion / Huawei", "Advanced > PCI Subsystem Settings > Above 4G Decoding = Enabled",
        "Advanced > PCI Subsystem Settings > Re-Size BAR Support = Enabled, where the release has it",
        "Advanced > Socket Configuration > IIO Configuration > PCIe ACS = Disable",
        "Advanced > Socket Configuration > IIO Configuration > Intel VT for Directed I/O (VT-d); Kunpeng: Advanced > MISC Config > Support Smmu")),
)  # fmt: skip
GENERAL = Menus(
    "", "Above 4G Decoding (also: Memory Mapped I/O above 4GB, MMIOH) = Enabled", "Resizable BAR (also: Re-Size BAR, Smart Access Memory) = Enabled",
    "ACS Control (also: ACS Enable, PCIe ACS) = Disabled", "IOMMU (Intel: VT-d; AMD: AMD CBS > NBIO Common Options > IOMMU; Arm: SMMU)",
)  # fmt: skip


def menus(vendor: str, product: str = "", board: str = "") -> Menus:
    """The system's maker before the board's: a server's menus are its maker's, whoever made the board."""
    for names in (vendor, board, product):
        for parts, found in MENUS:
            if any(part in f"{names.lower()} " for part in parts):
                return found
    return GENERAL


def _menus(case: Case) -> Menus:
    return menus(case.mend.vendor, case.mend.product, case.mend.board)


def iommu_lines(case: Case, value: str) -> tuple[str, ...]:
    """For where nothing else moves the IOMMU. Intel's boards have a second switch that keeps it on."""
    found = _menus(case)
    lines = [f"{found.iommu} = {value}"]
    if value == "Disabled" and case.found.cpu_vendor == "GenuineIntel":
        lines.append("Pre-boot DMA protection = Disabled")
    return _lines(found, lines)


def _lines(found: Menus, by_hand: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"BIOS{f' ({found.maker})' if found.maker else ''}: {line}" for line in by_hand)


def _step(case: Case, name: str, what: Sentence, by_hand: tuple[str, ...], risk: tuple[Sentence, ...] = ()) -> Step:
    found = _menus(case)
    board = Sentence(
        "the board says: {vendor} {product} ({board}); menus differ by model and release",
        {"vendor": case.mend.vendor or "?", "product": case.mend.product or "?", "board": case.mend.board or "?"},
    )
    undo = Sentence("set the former values in the BIOS: write them down first")
    lines = _lines(found, by_hand)
    why = (*measured(case.failing), *seen(case.cause))
    return Step(name, what, case.cause.id, why, "", "by_hand", undo, lines, risk=(*risk, board))


def bar(case: Case) -> Iterator[Step]:
    facts = [f.fact for f in case.found.diagnosis.facts if isinstance(f, Gpu)]
    if "bar1_covers_vram" in facts and "bar1_smaller_than_vram" not in facts:
        return
    found = _menus(case)
    what = Sentence("let BAR1 cover the card's memory: Above 4G Decoding and Resizable BAR in the BIOS, CSM off")
    risk = (Sentence("an old card or adapter without 64-bit addresses may no longer be found: keep a way to reset the BIOS"),)
    yield _step(case, "bios-bar", what, (found.above4g, found.rebar, "Boot > CSM (legacy boot) = Disabled"), risk)


def acs(case: Case) -> Iterator[Step]:
    """Where the register itself is refused: with an IOMMU on, Linux sets the bits again, so both switches go together."""
    found = _menus(case)
    what = Sentence("switch ACS off in the BIOS, and the IOMMU with it: with an IOMMU on, Linux sets the bits at each boot")
    risk = (Sentence("guests with PCI passthrough need both: on a host of guests leave them on"),)
    yield _step(case, "bios-acs", what, (found.acs, f"{found.iommu} = Disabled"), risk)
