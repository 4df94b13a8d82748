"""The kernel's command line, wherever it is pasted -> what it asks of the IOMMU and of ACS.

In:      /proc/cmdline, `Kernel command line:` in dmesg, GRUB_CMDLINE_LINUX(_DEFAULT)=..., options of a boot entry, a bare piece of it.
Out:     Iommu(mode, parameter): off, passthrough, translating; mode unknown and parameter "none" where it says nothing of the IOMMU;
         Setting(present) for what people try against ACS: pci=noacs, pci=config_acs=, pci=disable_acs_redir=, pcie_acs_override=.
Unknown: `amd_iommu=on` is no kernel option (on is the default) and decides nothing. A line of prose that mentions parameters is none:
         every word of a bare line must be a parameter.
Raises:  nothing.
Source:  Documentation/admin-guide/kernel-parameters.txt of Linux 4.4 .. 6.15.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Fact, Iommu, Line, Setting, Text
from linkproof.parse.rules import LINE_MAX, rx, source

ANCHORS = (
    "BOOT_IMAGE=", "GRUB_CMDLINE_LINUX", "ommand line: ", "/proc/cmdline", "intel_iommu=", "amd_iommu=", "iommu=", "iommu.passthrough=",
    "iommu.strict=", "pci=noacs", "pcie_acs_override", "config_acs=", "disable_acs_redir", "quiet splash", "ro quiet", "rhgb quiet",
    "root=UUID=", "root=/dev/",
)  # fmt: skip
KEEP = (0, 1)

_BARE = ("quiet", "splash", "nosplash", "ro", "rw", "rhgb", "nomodeset", "debug", "single", "noapic", "nolapic", "nosmt", "text", "auto")
_IOMMU_KEYS = ("intel_iommu", "amd_iommu", "iommu", "iommu.passthrough", "iommu.strict")
_KNOWN_KEYS = (*_IOMMU_KEYS, "pci", "pcie_acs_override", "root", "BOOT_IMAGE", "mitigations", "console", "crashkernel", "hugepages")
_WHOLE = r"GRUB_CMDLINE_LINUX|ommand line: |BOOT_IMAGE=|root=(?:UUID=|/dev/)"
_ACS_SETTINGS = ("noacs", "config_acs", "disable_acs_redir")


def _parameters(line: Line, after_command: bool) -> list[str] | None:
    """The words of a command line, or None if this line is not one."""
    words = line.text[:LINE_MAX]
    grub = rx(r"^\s*(?:export )?GRUB_CMDLINE_LINUX(?:_DEFAULT)?=(.*)$").search(words)
    if grub is not None:
        inside = str(grub.group(1)).strip()
        quote = inside[:1] if inside[:1] in ("'", '"') else ""
        inside = inside[1:].partition(quote)[0] if quote == "'" else inside.strip('"')
        return inside.split()
    printed = rx(r"(?:^|[\]:\s])(?:Kernel command|Command) line: (.*)$").search(words)
    if printed is not None:
        return str(printed.group(1)).split()
    boot = rx(r"(?:^|\s)(?:options\s+|linux\s+\S+\s+)?(BOOT_IMAGE=\S.*|root=(?:UUID=|/dev/)\S.*)$").search(words)
    if boot is not None and not words.lstrip().startswith("#"):
        return words[boot.start(1) :].split()
    tokens = words.strip().strip("`'\"").split()
    if tokens and tokens[0] in ("$", ">", "options"):
        tokens = tokens[1:]
    good = tokens and all(token in _BARE or rx(r"^[A-Za-z][A-Za-z0-9_.-]{0,40}=[^\s=][^\s]*$").search(token) for token in tokens)
    if not good:
        return None
    known = any(token.partition("=")[0] in _KNOWN_KEYS for token in tokens) or all(token in _BARE for token in tokens)
    return tokens if after_command or known else None


def _mode(values: dict[str, list[str]]) -> str:
    def has(key: str, *wanted: str) -> bool:
        return any(value in wanted for value in values.get(key, []))

    if has("iommu", "off") or has("intel_iommu", "off") or has("amd_iommu", "off"):
        return "off"
    if has("iommu", "pt") or has("iommu.passthrough", "1", "y", "Y", "on"):
        return "passthrough"
    if has("intel_iommu", "on", "strict") or has("iommu", "nopt", "force", "strict") or has("amd_iommu", "force_enable", "force_isolation"):
        return "translating"
    return "translating" if has("iommu.passthrough", "0") else "unknown"


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    first: Line | None = None
    whole = False
    values: dict[str, list[str]] = {}
    said: list[str] = []
    settings: dict[str, tuple[Line, str, str]] = {}
    candidates = dict.fromkeys(hits, False)
    for index in hits:
        command = rx(r"cat\s+/proc/cmdline\s*$").search(text.lines[index].text[:LINE_MAX])
        if command is not None and index + 1 < len(text.lines):
            candidates[index + 1] = True
    for index, after_command in sorted(candidates.items()):
        line = text.lines[index]
        parameters = _parameters(line, after_command)
        if parameters is None or (not parameters and first is not None):
            continue
        first = first or line
        # a piece that names other parameters only cannot say that the rest names none
        whole = whole or after_command or "quiet" in parameters or rx(_WHOLE).search(line.text[:LINE_MAX]) is not None
        for parameter in parameters[:300]:
            key, _, value = parameter.strip("\"'").partition("=")
            if key in _IOMMU_KEYS:
                values.setdefault(key, []).extend(value.split(","))
                if f"{key}={value}" not in said:
                    said.append(f"{key}={value}")
                    first = line if len(said) == 1 else first
            elif key == "pcie_acs_override":
                settings.setdefault(f"{key}={value}", (line, key, value))
            elif key == "pci":
                for option in value.replace("\\", "").strip("\"'").split(","):
                    if option.partition("=")[0] in _ACS_SETTINGS:
                        settings.setdefault(f"pci={option}", (line, "pci", option))
    if first is not None and (said or whole):
        yield Iommu(source=source(text, first), mode=_mode(values), parameter=" ".join(said[:8]) or "none")
    for name, (line, key, value) in settings.items():
        yield Setting(source=source(text, line), name=name, effect="present", key=key, value=value)
