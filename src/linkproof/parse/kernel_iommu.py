"""Kernel log lines of the IOMMU (AMD-Vi, DMAR, Arm SMMU) -> page faults per device, and in which mode it runs.

In:      dmesg, journal, syslog with any prefix; single lines.
Out:     KernelLog(io_page_fault) once per device and driver with the number of lines and of suppressed ones; Event smmu_fault;
         Iommu(mode) and the events iommu_enabled, iommu_default_translated, iommu_default_passthrough.
Unknown: `Default domain type: Translated` alone gives no mode (printed with no IOMMU too): something must show that one is active.
         `DRHD: handling fault status` without its second line gives a fault of an unknown device. Faults of interrupt remapping are
         none of memory. `amdgpu ... page fault (src_id` is a fault of the GPU's own tables and not read here.
Raises:  nothing.
Source:  drivers/iommu of Linux 4.4 .. 6.15: amd/iommu.c, amd/init.c, intel/dmar.c, intel/iommu.c, arm-smmu-v3.c, arm-smmu.c, iommu.c.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Iommu, KernelLog, Line, Text
from linkproof.parse.rules import LINE_MAX, rx, source
from linkproof.parse.spans import bdf

ANCHORS = (
    "IO_PAGE_FAULT", "INVALID_DEVICE_REQUEST", "AMD-Vi:", "AMD IOMMU", "DMAR:", "dmar:", "DRHD: handling fault", "arm-smmu",
    "callbacks suppressed", "Default domain type", "iommu group", "Using iommu d", "dmar_fault",
)  # fmt: skip
KEEP = (0, 1)

_BDF = r"(?:[0-9a-fA-F]{4,5}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]"
_AMD = (
    rf"(?:\b([a-z][a-z0-9_-]{{1,30}}) )?(?:({_BDF}): )?AMD-Vi: Event logged \[(IO_PAGE_FAULT|INVALID_DEVICE_REQUEST)(?: device=({_BDF}))?"
)
_INTEL = rf"\[DMA (?:Read|Write)[^\]]{{0,30}}\] Request device \[({_BDF})\]"
_SUPPRESSED = r"(?:amd_iommu_\w{3,40}|dmar_fault|arm_smmu\w{0,40}): (\d{1,9}) callbacks suppressed"
_SMMU_NAMED = rf"(arm-smmu-v3) ?\S{{0,40}}: event: F_(?:TRANSLATION|PERMISSION|ADDR_SIZE|ACCESS) client: ({_BDF}|\S{{1,40}})"
_SMMU = r"(arm-smmu-v3) (\S{1,40}): event 0x1([0-3]) received|(arm-smmu) (\S{1,40}): Unhandled context fault"
_ACTIVE = (
    ("amd", r"AMD-Vi: (?:Interrupt remapping enabled|Lazy IO/TLB flushing|IOMMU performance counters|Found IOMMU|Extended features)"),
    ("intel", r"DMAR: Intel\(R\) Virtualization Technology for Directed I/O|DMAR: dmar\d{1,3}: Using Queued invalidation"),
    ("arm", r"arm-smmu-v3 \S{1,40}: (?:ias|allocated|option)|arm-smmu \S{1,40}: probing"),
    ("", r"(?:Adding to iommu group|Adding device \S{7,13} to (?:iommu )?group) \d"),
)


class _Faults:
    def __init__(self) -> None:
        self.first: dict[tuple[str, str, str], tuple[Line, int]] = {}  # device, driver, value -> first line, count
        self.waiting = 0  # suppressed before a line that names the device

    def add(self, line: Line, device: str, driver: str, value: str = "") -> None:
        key = (device, driver, value)
        first, count = self.first.get(key, (line, 0))
        if key in self.first or len(self.first) < 500:
            self.first[key] = (first, count + 1 + self.waiting)
        self.waiting = 0


def _faults(text: Text, hits: list[int]) -> Iterator[Fact]:
    faults, smmu, plain = _Faults(), _Faults(), _Faults()
    drhd: Line | None = None
    interrupts = False
    for index in hits:
        line = text.lines[index]
        words = line.text[:LINE_MAX]
        if "Event logged" in words and (amd := rx(_AMD).search(words)) is not None:
            driver, value = str(amd.group(1) or ""), str(amd.group(3))
            driver = driver if driver not in ("pci", "kernel") and amd.group(2) else ""
            faults.add(line, bdf(str(amd.group(2) or amd.group(4) or "")), driver, "" if value == "IO_PAGE_FAULT" else value)
        elif "Request device" in words and (intel := rx(_INTEL).search(words)) is not None:
            faults.add(line, bdf(str(intel.group(1))), "")
        elif "suppressed" in words and (suppressed := rx(_SUPPRESSED).search(words)) is not None:
            faults.waiting += int(suppressed.group(1))
        elif (named := rx(_SMMU_NAMED).search(words)) is not None:
            smmu.add(line, bdf(str(named.group(2))) or str(named.group(2)), "arm-smmu-v3")
        elif (arm := rx(_SMMU).search(words)) is not None:
            plain.add(line, str(arm.group(2) or arm.group(5)), str(arm.group(1) or arm.group(4)))
        elif "DRHD: handling fault status" in words and drhd is None:
            drhd = line
        interrupts = interrupts or "[INTR-REMAP]" in words
    smmu = smmu if smmu.first else plain  # newer kernels print both forms of one event
    if faults.waiting and not faults.first:
        line = text.lines[next(i for i in hits if rx(_SUPPRESSED).search(text.lines[i].text[:LINE_MAX]) is not None)]
        faults.add(line, "", "")
    elif drhd is not None and not interrupts and not faults.first:
        faults.add(drhd, "", "")
    for (device, driver, value), (line, count) in [*faults.first.items(), *smmu.first.items()]:
        where = source(text, line)
        yield KernelLog(source=where, fact="io_page_fault", value=value, device=device, driver=driver, count=count)
        if driver.startswith("arm-smmu"):
            yield Event(source=where, kind="smmu_fault", value=device)


def _mode(text: Text, hits: list[int]) -> Iterator[Fact]:
    translated: Line | None = None
    active: dict[str, Line] = {}
    for index in hits:
        line = text.lines[index]
        words = line.text[:LINE_MAX]
        if "Event logged" in words or "Request device" in words:
            continue  # the bulk of a long log
        where = source(text, line)
        if "Default domain type: Translated" in words:
            translated = translated or line
            yield Event(source=where, kind="iommu_default_translated")
        elif "Default domain type: Passthrough" in words:
            yield Event(source=where, kind="iommu_default_passthrough")
            yield Iommu(source=where, mode="passthrough")
        elif "DMAR: IOMMU disabled" in words or "AMD IOMMU disabled" in words:
            yield Iommu(source=where, mode="off")
        elif "AMD-Vi: Initialized for Passthrough Mode" in words:
            yield Iommu(source=where, mode="passthrough")
        elif "DMAR: IOMMU enabled" in words:
            yield Event(source=where, kind="iommu_enabled", value="intel")
        elif (used := rx(rf"({_BDF}): Using iommu (dma|direct) mapping").search(words)) is not None:
            mode = "translating" if used.group(2) == "dma" else "passthrough"
            yield Iommu(source=where, mode=mode, device=bdf(str(used.group(1))))
        else:
            for maker, pattern in _ACTIVE:
                if maker not in active and rx(pattern).search(words) is not None:
                    active[maker] = line
                    if maker:
                        yield Event(source=where, kind="iommu_enabled", value=maker)
    if translated is not None and active:
        yield Iommu(source=source(text, translated), mode="translating")


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    yield from _faults(text, hits)
    told: set[tuple[str, str]] = set()
    for fact in _mode(text, hits):
        said = fact.mode if isinstance(fact, Iommu) else fact.kind + " " + fact.value if isinstance(fact, Event) else ""
        key = (type(fact).__name__, said)
        if key not in told or (isinstance(fact, Iommu) and fact.device):
            told.add(key)
            yield fact
