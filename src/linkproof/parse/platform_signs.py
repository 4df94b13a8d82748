"""Words that only a guest, a container, a sandbox, WSL or Windows prints -> Platform.

In:      dmesg, lscpu, `systemd-detect-virt`, uname, cgroup files, `ls /.dockerenv`, df, Windows tracebacks.
Out:     Platform, once per kind; `note` says by what.
Unknown: no such word is no sign of bare metal; only the kernel's `on bare hardware` and detect-virt's `none` are. A guest sign of
         Microsoft's hypervisor beside WSL's kernel is WSL.
Raises:  nothing.
Source:  Linux arch/x86/kernel/cpu/hypervisor.c, util-linux lscpu, systemd-detect-virt(1), Docker, Kubernetes, gVisor, WSL kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Fact, Platform, Source, Text
from linkproof.parse.rules import LINE_MAX, Match, Rule, anchors_of, run, rx, source


class _Is:
    """A rule's maker: this kind, for this reason."""

    def __init__(self, kind: str, note: str) -> None:
        self.kind, self.note = kind, note

    def __call__(self, found: Match | None, where: Source, rank: int | None) -> Fact | None:
        note = self.note
        if found is not None and found.groups() and found.group(1):
            note = f"{note}: {found.group(1)}"
        return Platform(source=where, rank=rank, kind=self.kind, note=note)


_RULES = (
    Rule("microsoft-standard-WSL2", "", _Is("wsl2", "kernel of WSL 2")),
    Rule("microsoft-standard", r"\bLinux\b.*microsoft-standard", _Is("wsl2", "kernel of WSL 2")),
    Rule("/usr/lib/wsl/", "", _Is("wsl2", "libraries of WSL")),
    Rule("Hypervisor vendor:", r"Hypervisor vendor:+\s+(\S.*)$", _Is("vm", "lscpu")),
    Rule("Hypervisor detected:", r"Hypervisor detected: (\S.*)$", _Is("vm", "kernel log")),
    Rule("Booting paravirtualized kernel on", r"Booting paravirtualized kernel on bare hardware", _Is("bare_metal", "kernel log")),
    Rule("Booting paravirtualized kernel on", r"Booting paravirtualized kernel on (KVM|Hyper-V|VMware hypervisor|Xen\S*)", _Is("vm", "kernel log")),
    Rule("DMI: ", r"\bDMI: (?:\[?\s*)(QEMU|VMware|innotek|Xen|Google Google Compute Engine|OpenStack|Microsoft Corporation Virtual Machine)", _Is("vm", "DMI")),
    Rule("Starting gVisor", "", _Is("sandbox", "gVisor")),
    Rule("runsc", r"(?:--runtime[= ]|runtimeClassName:\s*|/)runsc\b", _Is("sandbox", "gVisor")),
    Rule("4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016", "", _Is("sandbox", "gVisor")),
    Rule("kubepods", r"^\S*\d{1,3}:[^:]*:\S*/kubepods", _Is("pod", "cgroup")),
    Rule("KUBERNETES_SERVICE_HOST=", "", _Is("pod", "environment")),
    Rule("/var/run/secrets/kubernetes.io", r"\S /var/run/secrets/kubernetes\.io|^/var/run/secrets/kubernetes\.io", _Is("pod", "mounts")),
    Rule("/docker/", r"^\S*\d{1,3}:[^:]*:/docker/[0-9a-f]{12}", _Is("container", "cgroup")),
    Rule("/.dockerenv", r"(?:^|\s)/\.dockerenv\s*$", _Is("container", "/.dockerenv")),
    Rule("overlay", r"^\W{0,3}overlay\s+\d.*\s/\s*$|^overlay (?:on )?/ (?:type )?overlay ", _Is("container", "root on overlay")),
    Rule("shm  ", r"^\W{0,3}shm\s+\d+(?:\.\d+)?[KMGT]?(?:\s[^/]*|.*\s/dev/shm\s*)?$", _Is("container", "a mount named shm")),
    Rule('File "', r'File "[A-Z]:[\\/]', _Is("windows", "paths")),
    Rule("OS: Microsoft Windows", "", _Is("windows", "OS")),
)  # fmt: skip
ANCHORS = (
    *(anchor for anchor in anchors_of(_RULES) if anchor != 'File "'),
    *(f'File "{drive}:' for drive in "CDEFG"),
    "systemd-detect-virt",
)
KEEP = (0, 1)

_DETECTED = {
    **dict.fromkeys(("kvm", "qemu", "vmware", "microsoft", "oracle", "xen", "amazon", "google", "parallels", "bhyve", "apple", "bochs"), "vm"),
    **dict.fromkeys(("docker", "podman", "lxc", "lxc-libvirt", "systemd-nspawn", "rkt", "openvz", "container-other"), "container"),
    "wsl": "wsl2",
    "none": "bare_metal",
}  # fmt: skip


def _detected(text: Text, index: int) -> Platform | None:
    """`systemd-detect-virt` and its one word on the same or the next line."""
    words = text.lines[index].text[:LINE_MAX]
    same = rx(r"systemd-detect-virt(?: -\S+)*\s*[:=>]+\s*([a-z-]{2,20})\s*$").search(words)
    if same is not None:
        word, line = str(same.group(1)), text.lines[index]
    elif rx(r"systemd-detect-virt(?: -\S+)*\s*$").search(words) is not None and index + 1 < len(text.lines):
        line = text.lines[index + 1]
        word = line.text.strip()
    else:
        return None
    kind = _DETECTED.get(word)
    return Platform(source=source(text, line), kind=kind, note=f"systemd-detect-virt: {word}") if kind is not None else None


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    found: dict[str, Platform] = {}
    for fact in run(_RULES, text, hits):
        if isinstance(fact, Platform):
            found.setdefault(fact.kind, fact)
    for index in hits:
        detected = _detected(text, index) if "systemd-detect-virt" in text.lines[index].text else None
        if detected is not None:
            found.setdefault(detected.kind, detected)
    if "wsl2" in found and "vm" in found and "icrosoft" in found["vm"].note:
        del found["vm"]
    yield from found.values()
