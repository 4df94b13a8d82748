"""What to write on the kernel command line for IOMMU passthrough, for no IOMMU, and against ACS redirects. Pure.

In:      the architecture or maker of the CPU; the ports with the bits to clear, and the kernel's release (`uname -r`).
Out:     KernelWords: words to add, words that ask for the contrary; or a refusal that says why there is no word for it.
Unknown: a distribution may have taken a mend into an older number: the rules go by the number alone, and `notes` says so.
Raises:  nothing.
Source:  Linux kernel-parameters.txt; commits "PCI: Add 'pci=disable_acs_redir=' parameter" (4.20), "PCI: Extend ACS configurability" (6.11),
         "PCI/ACS: Fix 'pci=config_acs=' parameter" (6.15; in the stable releases of 10 April 2025); behaviour seen in real kernels.

`iommu=off`, `intel_iommu=off` and `amd_iommu=off` are no contrary of passthrough: with the IOMMU off nothing translates, and to switch it
on is not what is asked for.
"""

from __future__ import annotations

import re

from msgspec import Struct

from linkproof.mending import Refusal, Sentence
from linkproof.parse.pci_config import REDIRECT

_TRANSLATES = ("iommu.passthrough=0", "iommu.passthrough=n", "iommu.passthrough=off")
_CLEARS, _TAKES_FLAGS = (4, 20, 0), (6, 11, 0)  # first releases with disable_acs_redir, with config_acs
_MENDED = ((6, 12, 23), (6, 13, 11), (6, 14, 2))  # in their series; all from 6.15 on


class KernelWords(Struct, frozen=True):
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    notes: tuple[Sentence, ...] = ()
    refusal: Refusal | None = None


def passthrough_words(arm: bool = False) -> KernelWords:
    add = "iommu.passthrough=1" if arm else "iommu=pt"
    return KernelWords((add,), _TRANSLATES if arm else ("iommu=nopt", *_TRANSLATES))


def iommu_off_words(cpu_vendor: str, arm: bool = False) -> KernelWords:
    """cpu_vendor: as /proc/cpuinfo has it. Makers without a word of their own take `iommu=off`, which all of x86 knows."""
    if arm or not cpu_vendor:
        why = Sentence("the kernel has no parameter that switches the IOMMU of this machine off: passthrough is the most it can do")
        return KernelWords(refusal=Refusal("no_parameter", why))
    key = {"GenuineIntel": "intel_iommu", "AuthenticAMD": "amd_iommu", "HygonGenuine": "amd_iommu"}.get(cpu_vendor, "iommu")
    return KernelWords((f"{key}=off",), (f"{key}=on",) if key == "intel_iommu" else ())


def acs_words(ports: tuple[tuple[str, int], ...], release: str) -> KernelWords:
    """ports: address and the bits of the ACS control word that are to be 0."""
    numbers = re.match(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", release)
    if numbers is None or not ports:
        return _none("the kernel's release ({release}) cannot be read: no parameter is chosen", release)
    version = (int(numbers[1]), int(numbers[2]), int(numbers[3] or 0))
    if version < _CLEARS:
        return _none("Linux {release} has no parameter that clears ACS bits (4.20 is the first)", release)
    if version < _TAKES_FLAGS:
        if any(mask & ~REDIRECT for _, mask in ports):
            return _none("Linux {release} has no parameter for these bits alone (6.11 is the first)", release)
        return _found("pci=disable_acs_redir=" + ";".join(bdf for bdf, _ in ports), ports, release)
    mended = version >= (6, 15, 0) or any(version[:2] == fixed[:2] and version >= fixed for fixed in _MENDED)
    if len(ports) > 1 and not mended:
        text = "in Linux {release} the parameters for ACS do not work for more than one port (mended in 6.12.23, 6.13.11, 6.14.2 and 6.15)"
        return _none(text, release)
    return _found("pci=config_acs=" + ";".join(f"{flags(mask)}@{bdf}" for bdf, mask in ports), ports, release)


def flags(mask: int) -> str:
    """Bits 6 to 0: `0` for those to clear, `x` for those to leave to the firmware."""
    return "".join("0" if mask >> bit & 1 else "x" for bit in range(6, -1, -1))


def _found(word: str, ports: tuple[tuple[str, int], ...], release: str) -> KernelWords:
    notes = [Sentence("read the registers back after the reboot: the kernel's own log line is no proof")]
    if "config_acs" in word:
        notes.append(Sentence("bits that are not named stay as the firmware left them: the kernel's own isolation is off on these ports"))
    elif any(mask != REDIRECT for _, mask in ports):
        notes.append(Sentence("this parameter always clears ReqRedir, CmpltRedir and EgressCtrl together"))
    return KernelWords((word,), (), tuple(notes))


def _none(text: str, release: str) -> KernelWords:
    return KernelWords(refusal=Refusal("no_parameter", Sentence(text, {"release": release or "?"})))
