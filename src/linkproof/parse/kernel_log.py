"""Kernel log lines about devices and processes: Xid, SXid, AER, PCIe hot-plug, NVRM, amdgpu, OOM killer, CPU bring-up.

In:      dmesg, journal, syslog with any prefix; single lines, also `Xid 149, NETIR_LINK_DOWN ...` without its frame.
Out:     KernelLog xid, sxid, aer_corrected, aer_fatal, link_down once per device and number, with a count; Events aer_seen,
         nvrm_mismatch, nvrm_init_failed, gpu_fell_off, nvlink_down, ecc_error, power_event, cpu_missing, task_blocked, nmi,
         gpu_vm_fault, gpu_ring_timeout, patched_driver, host_oom; Host(oom_kill); Versions of the loaded module.
Unknown: a severity or a device that is not printed stays "". An Xid number in prose (`no Xid 79`, `see Xid 31`) is none.
         A log without such lines is no clean log: it may be a piece.
Raises:  nothing.
Source:  NVIDIA open kernel modules (`nv.c`, Xid catalogue), Linux 4.4 .. 6.15: pcie/aer.c, pciehp, mm/oom_kill.c, arch/x86/kernel.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Host, KernelLog, Line, Source, Text, Versions
from linkproof.parse.rules import LINE_MAX, Match, Rule, anchors_of, run, rx, source
from linkproof.parse.spans import bdf

_BDF = r"(?:[0-9a-fA-F]{4,5}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]"
_XID = r"\b(S?Xid) \((?:PCI:)?([0-9a-fA-F:.]{7,16})\): (\d{1,5})\b(.*)"
_XID_BARE = r"^\W*(?:\S{1,40}: )?\b(S?Xid)(?: error)?:? (\d{1,5})(?:[,:]|\s*$)(.*)"
_AER = rf"(?:\b([a-z][a-z0-9_-]{{1,30}}) )?({_BDF}): (?:AER: )?PCIe Bus Error: severity=(Correct|Uncorrect)[a-z]+(?:[, ]+\((Non-Fatal|Fatal)\))?"
_AER_HEAD = (
    rf"(?:\b([a-z][a-z0-9_-]{{1,30}}) )?(?:({_BDF}): )?AER: (?:Multiple )?"
    rf"(Correct|Uncorrect)[a-z]+(?: \((Non-Fatal|Fatal)\))? error(?: message)? received(?:: | from )({_BDF})"
)
_DOWN = (
    rf"(?:\b([a-z][a-z0-9_-]{{1,30}}) )?({_BDF})(?::pcie\d{{3}})?: (?:pciehp: )?(?:Slot\([^)]{{1,20}}\): )(?:Link Down|Card not present)"
)
_ECC_XIDS = ("48", "63", "64", "94", "95", "140")
_POWER_XIDS = ("54",)


def _oom(found: Match | None, where: Source, rank: int | None) -> Fact | None:
    return Host(source=where, rank=rank, fact="oom_kill", value=str(found.group(1))) if found is not None else None


def _driver(found: Match | None, where: Source, rank: int | None) -> Fact | None:
    return Versions(source=where, driver=str(found.group(1))) if found is not None else None


_RULES = (
    Rule("Killed process", r"Killed process \d{1,8} \(([^)]+)\)", _oom),
    Rule("oom-kill:", r"oom-kill:constraint=.*\btask=([^,]+)", _oom),
    Rule("Killed process", r"Killed process \d{1,8} \(([^)]+)\)", "host_oom"),
    Rule("NVRM", r"NVRM: loading NVIDIA UNIX .*Kernel Module(?: for \S{1,12})? +(\d{3}\.\d{2,3}(?:\.\d{2})?)", _driver),
    Rule("NVRM", r"NVRM version: NVIDIA UNIX .*Kernel Module(?: for \S{1,12})? +(\d{3}\.\d{2,3}(?:\.\d{2})?)", _driver),
    Rule("-p2p", r"\b(\d{3}\.\d{2,3}(?:\.\d{2})?-p2p)\b", "patched_driver"),
    Rule("GSP", r"(waiting for RPC response from GPU\d{0,4} ?GSP|GSP RPC timeout)", "gsp_timeout"),
    Rule("RmInitAdapter failed", rf"NVRM: (?:GPU ({_BDF}): )?RmInitAdapter failed", "nvrm_init_failed"),
    Rule("rm_init_adapter failed", r"NVRM: rm_init_adapter failed(?:, device (minor number \d{1,3}))?", "nvrm_init_failed"),
    Rule("NVRM", r"NVRM: (BAR\d is 0M @ 0x0 \(PCI:[0-9a-fA-F:.]{7,16}\))", "nvrm_init_failed"),
    Rule("fallen off the bus", r"NVRM: .*fallen off the bus", "gpu_fell_off"),
    Rule("do_boot_cpu failed", r"do_boot_cpu failed\(-?\d{1,4}\) to wakeup (CPU#\d{1,5})", "cpu_missing"),
    Rule("failed to report alive state", r"\b(CPU ?\d{1,5}) failed to report alive state", "cpu_missing"),
    Rule("ot responding", r"smpboot: (CPU ?\d{1,5}):? [Nn]ot responding", "cpu_missing"),
    Rule("possible_cpus limit of", r"NR_CPUS/possible_cpus limit of \d{1,6} (?:almost )?reached\..*?(Processor \d{1,6}/0x[0-9a-f]{1,8})", "cpu_missing"),
    Rule("blocked for more than", r"INFO: task (\S+):\d{1,8} blocked for more than \d{1,5} seconds", "task_blocked"),
    Rule("soft lockup", r"soft lockup - (CPU#\d{1,5} stuck for \d{1,5}s! \[[^\]]+\])", "task_blocked"),
    Rule("NMI received for unknown reason", r"NMI received for unknown reason ([0-9a-f]{2})", "nmi"),
    Rule("PCI system error (SERR)", "", "nmi"),
    Rule("page fault (src_id", rf"amdgpu ({_BDF}): .*page fault \(src_id", "gpu_vm_fault"),
    Rule("amdgpu", r"amdgpu.*\bring (\S{1,30}) timeout", "gpu_ring_timeout"),
    Rule("nvlink", r"(?i)\bnvlink\d{0,2}: .*(link \d{1,2}.{0,40}(?:\bdown|fatal|failed to train).{0,20})", "nvlink_down"),
    Rule("available PCIe bandwidth", rf"({_BDF}: [0-9.]+ Gb/s available PCIe bandwidth, limited by .*)", "link_downgraded"),
)  # fmt: skip
ANCHORS = (
    *anchors_of(_RULES), "Xid", "PCIe Bus Error", "AER: ", "Link Down", "Card not present", "API mismatch", "Surprise Down", "] SDES",
)  # fmt: skip
KEEP = (0, 3)


class _Counted:
    """Facts that are told once with a count: the first line stands for all."""

    def __init__(self) -> None:
        self.first: dict[tuple[str, str, str], tuple[Line, str, int]] = {}

    def add(self, line: Line, fact: str, value: str, device: str, driver: str = "") -> None:
        key = (fact, value, device)
        if key not in self.first and len(self.first) >= 500:
            return
        first, known, count = self.first.get(key, (line, driver, 0))
        self.first[key] = (first, known or driver, count + 1)

    def facts(self, text: Text) -> Iterator[Fact]:
        for (fact, value, device), (line, driver, count) in self.first.items():
            where = source(text, line)
            if fact == "aer_seen":
                yield Event(source=where, kind="aer_seen", value=f"{device} {value}".strip())
            else:
                yield KernelLog(source=where, fact=fact, value=value, device=device, driver=driver, count=count)


def _xid(text: Text, line: Line, words: str, counted: _Counted) -> Iterator[Fact]:
    found = rx(_XID).search(words)
    bare = None if found is not None else rx(_XID_BARE).search(words)
    if found is not None:
        kind, device, number, rest = str(found.group(1)), bdf(str(found.group(2))), str(found.group(3)), str(found.group(4))
    elif bare is not None:
        kind, device, number, rest = str(bare.group(1)), "", str(bare.group(2)), str(bare.group(3))
    else:
        return
    number = number.lstrip("0") or "0"
    if (cause := rx(r"caused by previous Xid (\d{1,4})\b").search(rest)) is not None:  # Xid 45 is the echo on the channels of other cards
        number = str(cause.group(1))
    again = (kind.lower(), number, device) in counted.first
    driver = "nvidia-nvswitch" if kind == "SXid" else "nvidia"
    counted.add(line, kind.lower(), number, device, driver if found is not None else "")
    if again:
        return
    where = source(text, line)
    link = rx(r"(?i)\b(link\(?s?\)? ?\d{1,3})\b").search(rest)
    if "LINK_DOWN" in rest or (kind == "Xid" and number == "74") or (kind == "SXid" and link is not None and ", Fatal" in rest):
        yield Event(source=where, kind="nvlink_down", value=f"{device} {link.group(1) if link is not None else ''}".strip())
    if kind == "Xid" and number in _ECC_XIDS:
        yield Event(source=where, kind="ecc_error", value=f"Xid {number}")
    if kind == "Xid" and number in _POWER_XIDS:
        yield Event(source=where, kind="power_event", value=f"{device} Xid {number}".strip())


def _severity(kind: str, degree: str | None) -> str:
    return "aer_corrected" if kind == "Correct" else "aer_fatal" if degree == "Fatal" else "aer_seen"


def _aer(words: str, line: Line, errors: _Counted, heads: _Counted) -> str:
    """The device that reports, if the line is the first of a report."""
    found = rx(_AER).search(words)
    if found is not None:
        fact = _severity(str(found.group(3)), found.group(4))
        value = "non-fatal" if fact == "aer_seen" else ""
        device = bdf(str(found.group(2)))
        errors.add(line, fact, value, device, str(found.group(1) or ""))
        return device
    head = rx(_AER_HEAD).search(words)
    if head is not None:
        fact = _severity(str(head.group(3)), head.group(4))
        heads.add(line, fact, "non-fatal" if fact == "aer_seen" else "", bdf(str(head.group(5))), str(head.group(1) or ""))
    elif (failed := rx(rf"({_BDF}): AER: (device recovery failed|can't recover)").search(words)) is not None:
        errors.add(line, "aer_seen", str(failed.group(2)), bdf(str(failed.group(1))))
    return ""


def _mismatch(text: Text, index: int) -> Fact:
    """`API mismatch` breaks over up to three lines."""
    words = " ".join(line.text[:400] for line in text.lines[index : index + 3])
    client = rx(r"client has the version (\d{3}[0-9.]{1,10}\d)").search(words)
    module = rx(r"kernel module (?:has the|version) (?:version )?(\d{3}[0-9.]{1,10}\d)").search(words)
    sides = (("client", client), ("kernel module", module))
    value = ", ".join(f"{name} {found.group(1)}" for name, found in sides if found is not None)
    return Event(source=source(text, text.lines[index]), kind="nvrm_mismatch", value=value)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    counted, errors, heads = _Counted(), _Counted(), _Counted()
    last, mismatch = -100, False
    where_down = ""
    for index in hits:
        line = text.lines[index]
        words = line.text[:LINE_MAX]
        if "Xid" in words:
            yield from _xid(text, line, words, counted)
        if "PCIe Bus Error" in words or "AER: " in words:
            device = _aer(words, line, errors, heads)
            if device:
                last, where_down = index, device
        elif (down := rx(_DOWN).search(words)) is not None:
            counted.add(line, "link_down", "", bdf(str(down.group(2))), str(down.group(1) or ""))
        elif rx(r"\[ ?5\] SDES\b|Surprise Down Error").search(words) is not None:
            named = rx(rf"({_BDF}):").search(words)
            device = bdf(str(named.group(1))) if named is not None else where_down if index - last < 5 else ""
            counted.add(line, "link_down", "", device)
        elif "API mismatch" in words and not mismatch:
            mismatch = True
            yield _mismatch(text, index)
    severities = {fact for fact, _, _ in errors.first}
    heads.first = {key: told for key, told in heads.first.items() if key[0] not in severities}  # the same error, told once
    yield from heads.facts(text)
    yield from errors.facts(text)
    yield from counted.facts(text)
    yield from _lines(text, hits)


def _lines(text: Text, hits: list[int]) -> Iterator[Fact]:
    """What one line says by itself; the same words once."""
    told: set[tuple[str, str]] = set()
    for fact in run(_RULES, text, hits):
        if isinstance(fact, Event) and fact.kind == "gpu_fell_off":
            named = rx(r"\b(?:PCI:)?([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)\b").search(fact.source.text)
            fact = Event(source=fact.source, rank=fact.rank, kind=fact.kind, value=bdf(str(named.group(1))) if named is not None else "")
        if isinstance(fact, Event) and fact.kind == "link_downgraded":
            widths = rx(r" x(\d{1,2}) link .*capable of .* x(\d{1,2}) link").search(fact.source.text)
            if widths is None or int(widths.group(1)) >= int(widths.group(2)):
                continue
            device = bdf(fact.value.partition(": ")[0])
            fact = Event(source=fact.source, kind=fact.kind, value=f"{device}: x{widths.group(1)} of x{widths.group(2)}")
        key = (str(getattr(fact, "kind", type(fact).__name__)), str(getattr(fact, "value", getattr(fact, "driver", ""))))
        if key not in told:
            told.add(key)
            yield fact
