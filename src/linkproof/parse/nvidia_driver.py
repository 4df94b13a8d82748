"""What the loaded NVIDIA kernel module says of itself: its flavour, whether a fork built it, and its switches that bear on peer access.

In:      `/proc/driver/nvidia/version` and the same words in a kernel log, `/proc/driver/nvidia/params`, `options nvidia NVreg_...`,
         `uvm_disable_hmm` of nvidia_uvm.
Out:     Event driver_flavour (closed, open), patched_driver (builder of a fork), registry_key (`NAME=value`), uvm_hmm (on, off).
         The version itself and a version that ends in `-p2p` are read by `kernel_log`, not here.
Unknown: a module that its user built alone (`root@host`, DKMS) is no patched one. A switch that is not printed gives nothing;
         `RegistryDwords: ""` neither. A line of `options` is what was asked for: only `params` shows what the module took.
Raises:  nothing.
Source:  NVIDIA open kernel modules, `kernel-open/nvidia/nv-procfs.c`, `nv-reg.h`, `nv-p2p`; their forks with peer access over BAR1.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Line, Text
from linkproof.parse.rules import LINE_MAX, rx, source

ANCHORS = (
    "NVRM version:", "NVRM: loading NVIDIA UNIX", "RegistryDwords", "EnableGpuFirmware", "EnableResizableBar", "GrdmaPciTopoCheckOverride",
    "uvm_disable_hmm",
)  # fmt: skip
KEEP = (0, 1)

_MODULE = r"NVRM(?: version)?: (?:loading )?NVIDIA UNIX (Open )?(?:\S{1,12} )?Kernel Module"
_FORK = r"(?i)\(([^()\s]{0,60}(?:aikitoria|tinygrad|tinycorp|geohot|bar1-p2p)[^()\s]{0,60})\)"
_DWORDS = r"\bRegistryDwords(?:PerDevice)?(?:: ?|=)(?:\"([^\"]*)\"|'([^']*)'|([^\s\"']+))"
_OPTION_DWORDS = r"\bNVreg_RegistryDwords(?:PerDevice)?=(?:\"([^\"]*)\"|'([^']*)'|([^\s\"']+))"
_DWORD = r"^\s*(\w{3,40})\s*=\s*(0[xX][0-9a-fA-F]{1,16}|\d{1,20})\s*$"
_SWITCH = r"(?:^\s*|\bNVreg_)(EnableGpuFirmware|EnableResizableBar|GrdmaPciTopoCheckOverride)(?:: ?|=)(\d{1,12})\b"
_HMM = r"\buvm_disable_hmm\s?[:=]\s?([YyNn01])\s*$"
_HMM_ASKED = r"\bcat\s+\S{0,80}/uvm_disable_hmm\s*$"

# registry keys of the resource manager that decide over peer access, in lower case: the driver compares without case
_PEER_KEYS = (
    "forcep2p", "rmforcep2ptype", "rmpciep2ptype", "peermappingoverride", "rmforcestaticbar1", "rmpciep2poverride", "grdmapcitopocheckoverride",
    "rmenableresizablebar", "enableresizablebar", "rmdisablep2p", "rmbar1apertureoverride",
)  # fmt: skip
# a switch with the value that the module has anyhow says nothing
_STOCK = {"EnableGpuFirmware": "18", "EnableResizableBar": "0", "GrdmaPciTopoCheckOverride": "0"}
_MOST = 40


def _keys(words: str) -> Iterator[str]:
    """`NAME=value` of every switch in the line that bears on peer access."""
    for pattern in (_OPTION_DWORDS, _DWORDS):
        found = rx(pattern).search(words)
        if found is None:
            continue
        inside = next((str(group) for group in found.groups() if group is not None), "")
        for piece in inside.replace(",", ";").split(";")[:_MOST]:
            key = rx(_DWORD).search(piece)
            if key is not None and str(key.group(1)).lower() in _PEER_KEYS:
                yield f"{key.group(1)}={key.group(2)}"
        break
    for name, value in rx(_SWITCH).findall(words)[:_MOST]:
        if _STOCK.get(str(name)) != str(value):
            yield f"{name}={value}"


def _hmm(text: Text, index: int) -> str:
    """off if the module's heterogeneous memory management is disabled, on if not, "" if not said."""
    words = text.lines[index].text[:LINE_MAX]
    found = rx(_HMM).search(words)
    if found is not None:
        said = str(found.group(1))
    elif rx(_HMM_ASKED).search(words) is not None and index + 1 < len(text.lines):
        said = text.lines[index + 1].text[:4].strip()
    else:
        return ""
    return "off" if said in ("Y", "y", "1") else "on" if said in ("N", "n", "0") else ""


def _said(text: Text, index: int) -> Iterator[tuple[str, str]]:
    words = text.lines[index].text[:LINE_MAX]
    module = rx(_MODULE).search(words) if "NVRM" in words else None
    if module is not None:
        yield "driver_flavour", "open" if module.group(1) else "closed"
        fork = rx(_FORK).search(words)
        if fork is not None:
            yield "patched_driver", str(fork.group(1))
    for key in _keys(words):
        yield "registry_key", key
    if "uvm_disable_hmm" in words and (state := _hmm(text, index)):
        yield "uvm_hmm", state


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    told: set[tuple[str, str]] = set()
    for index in hits:
        line: Line = text.lines[index]
        for kind, value in _said(text, index):
            if (kind, value) not in told and len(told) < 200:
                told.add((kind, value))
                yield Event(source=source(text, line), rank=line.rank, kind=kind, value=value)
