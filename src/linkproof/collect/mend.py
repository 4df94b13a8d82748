"""What a plan of mending needs beside what `check` reads: who uses the devices, what forbids a change, what the machine is. Judges nothing.

Out:     MendEvidence. All is read here and in one go, so that `collect` keeps it and a plan can be made from a capture.
Unknown: a number or list that could not be read is None, a word "".
Raises:  nothing.
Source:  Linux Documentation/ABI/testing: sysfs-bus-pci, sysfs-devices-removable, sysfs-kernel-iommu_groups, sysfs-devices-system-cpu;
         kernel_lockdown(7), systemd-detect-virt(1), systemctl(1); include/uapi/linux/nsfs.h for the number of the first PID namespace.
"""

from __future__ import annotations

import re

from msgspec import Struct, field, structs

from linkproof.collect.host import NOT_RECORDED, Host, Recorded
from linkproof.model import PCI_DEVICES

GROUPS = "/sys/kernel/iommu_groups"
LOCKDOWN = "/sys/kernel/security/lockdown"
MODPROBE = "/etc/modprobe.d"
UNITS = ("nvidia-fabricmanager",)
UNIT_STATE = ("systemctl", "show", "-p", "LoadState", "-p", "ActiveState")
SHM_SIZE = ("df", "-kP", "/dev/shm")
_DMI = "/sys/class/dmi/id"
_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_FOR_GUESTS = ("vfio", "pciback", "pci-stub")  # parts of the names of drivers that hold a device for a guest
_BRIDGE = "0x0604"
_GPU = ("0x0300", "0x0302", "0x0380", "0x1200")
_FIRST_PID_NAMESPACE = "pid:[4026531836]"
_BOXES = ("docker", "podman", "lxc", "lxc-libvirt", "systemd-nspawn", "rkt", "openvz", "container-other", "pouch", "proot")
_BOX_FILES = ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")
_BOX_GROUP = re.compile(r"/(?:docker|kubepods|lxc|machine\.slice/libpod|containerd)\b|cri-containerd|libpod-")
_VIRTUAL_MAKERS = ("qemu", "kvm", "vmware", "innotek", "xen", "bochs", "parallels")
_MODPROBE_FILES_MAX = 64


class Function(Struct, frozen=True):
    """One PCI function. path: below /sys/devices. vfs: virtual functions in use, None if that could not be read.

    removable: the kernel's word (`removable`: it can be unplugged from outside of the case); "" where the firmware marks nothing, None if it
    could not be read.
    driver: "" if none is bound, None if that could not be read. config: of a bridge above a GPU, as far as it could be read; b"" of others.
    """

    bdf: str
    path: str
    cls: str = ""
    vfs: int | None = 0
    removable: str | None = ""
    driver: str | None = ""
    config: bytes = b""

    @property
    def for_guest(self) -> bool | None:
        """Is it held for a guest? None: not known."""
        return None if self.driver is None else any(part in self.driver for part in _FOR_GUESTS)


class Group(Struct, frozen=True):
    """An IOMMU group: its type, and (device, driver) of each member; members None if they could not be listed. driver: "?" if not readable."""

    type: str
    members: tuple[tuple[str, str], ...] | None


class MendEvidence(Struct, frozen=True):
    """groups: the IOMMU groups of the GPUs, by name. group_of: GPU -> its group. virt: word for a hypervisor below us, "none", or "" not known. container: the sign of one, or "".
    lockdown: none integrity confidentiality, "" not known. cpus: possible ones. units: systemd unit that is installed -> active inactive failed ...
    modprobe: file -> its text. shm_KiB: size of /dev/shm.
    """

    host: Host
    functions: dict[str, Function] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    group_of: dict[str, str] = field(default_factory=dict)
    virt: str = ""
    container: str = ""
    sys_read_only: bool = False
    lockdown: str = ""
    cpus: int | None = None
    arm: bool = False
    cmdline: str = ""
    release: str = ""
    boot_id: str = ""
    vendor: str = ""
    product: str = ""
    board: str = ""
    units: dict[str, str] = field(default_factory=dict)
    modprobe: dict[str, str] = field(default_factory=dict)
    shm_KiB: int | None = None

    def below(self, port: str) -> list[Function]:
        """All functions that hang below a port, at any depth, and those of which nobody could read where they hang."""
        return [f for f in self.functions.values() if f.bdf != port and (not f.path or f"/{port}/" in f"/{f.path}/")]


def read_mend(host: Host) -> MendEvidence:
    functions = _functions(host)
    gpus = sorted(f.bdf for f in functions.values() if f.cls.startswith(_GPU))
    group_of = {bdf: name for bdf in gpus if (name := _leads_to(host, f"{PCI_DEVICES}/{bdf}/iommu_group"))}
    lscpu = host.run(("lscpu",), 4.0).text
    if not lscpu:
        lscpu = host.file("/proc/cpuinfo").text
    vendor, product, board = (host.file(f"{_DMI}/{name}").text.strip() for name in ("sys_vendor", "product_name", "board_name"))
    board_vendor = host.file(f"{_DMI}/board_vendor").text.strip()
    detected = host.run(("systemd-detect-virt",), 4.0).text.strip()
    return MendEvidence(
        host=host,
        functions=functions,
        groups={name: _group(host, name) for name in sorted(set(group_of.values()))},
        group_of=group_of,
        virt=_virt(detected, lscpu, f"{vendor} {product}"),
        container=_container(host, detected),
        sys_read_only=_read_only(host.file("/proc/mounts").text),
        lockdown=_lockdown(host),
        cpus=_count(host.file("/sys/devices/system/cpu/possible").text),
        arm="aarch64" in lscpu or "CPU implementer" in lscpu,
        cmdline=host.file("/proc/cmdline").text.strip(),
        release=host.file("/proc/sys/kernel/osrelease").text.strip(),
        boot_id="" if isinstance(host, Recorded) else host.file("/proc/sys/kernel/random/boot_id").text.strip(),
        vendor=vendor or board_vendor,
        product=product,
        board=f"{board_vendor} {board}".strip(),
        units=_units(host),
        modprobe=_modprobe(host),
        shm_KiB=_shm_KiB(host),
    )


# ---------------------------------------------------------------- PCI


def _leads_to(host: Host, path: str) -> str:
    return host.link(path).text.rpartition("/")[2]


def _word(host: Host, path: str, absent: str) -> str | None:
    """absent: what it means that the file is not there. None: it is there and cannot be read."""
    answer = host.file(path)
    return answer.text.strip() if answer.data is not None else absent if answer.why in ("absent", NOT_RECORDED) else None


def _driver(host: Host, bdf: str) -> str | None:
    bound = host.link(f"{PCI_DEVICES}/{bdf}/driver")
    return bound.text.rpartition("/")[2] if bound.data is not None or bound.why == "absent" else None


def _functions(host: Host) -> dict[str, Function]:
    """Who can lend virtual functions, and what can be unplugged, is asked of endpoints only: a bridge says neither."""
    found = {}
    for bdf in sorted(host.names(PCI_DEVICES).text.splitlines()):  # the plan must not hang on the order in which they are listed
        if not _BDF.fullmatch(bdf):
            continue
        base = f"{PCI_DEVICES}/{bdf}"
        path = host.link(base).text.partition("/sys/devices/")[2]
        cls = host.file(f"{base}/class").text.strip().lower()
        lends, outside = (
            ("0", "") if cls.startswith(_BRIDGE) else (_word(host, f"{base}/sriov_numvfs", "0"), _word(host, f"{base}/removable", ""))
        )
        vfs = None if lends is None else _number(lends)
        found[bdf] = Function(bdf, path, cls, vfs, outside, _driver(host, bdf))
    above_gpus = {part for f in found.values() if f.cls.startswith(_GPU) for part in f.path.split("/")[:-1]}
    for bdf in sorted(above_gpus & found.keys()):
        found[bdf] = structs.replace(found[bdf], config=host.file(f"{PCI_DEVICES}/{bdf}/config").data or b"")
    return found


def _group(host: Host, name: str) -> Group:
    members = host.names(f"{GROUPS}/{name}/devices")
    kind = host.file(f"{GROUPS}/{name}/type").text.strip()
    if members.data is None:
        return Group(kind, None)
    drivers = ((bdf, _driver(host, bdf)) for bdf in sorted(members.text.splitlines()))
    return Group(kind, tuple((bdf, "?" if driver is None else driver) for bdf, driver in drivers))


# ---------------------------------------------------------------- what the machine is


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _count(ranges: str) -> int | None:
    """`0-127,256-383` -> 256."""
    total = 0
    for part in ranges.strip().split(","):
        first, dash, last = part.partition("-")
        low, high = _number(first), _number(last if dash else first)
        if low is None or high is None or high < low:
            return None
        total += high - low + 1
    return total


def _virt(detected: str, lscpu: str, dmi: str) -> str:
    """systemd-detect-virt tells a Xen dom0 from a guest, and names the container first where both are there. What it prints when it fails is
    no word. Without it only an x86 processor tells: it has a flag for it, and an Arm one has none."""
    if detected == "none":
        return "none"
    if re.fullmatch(r"[a-z0-9-]+", detected) and detected not in (*_BOXES, "wsl"):
        return detected
    told = False
    for line in lscpu.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "Hypervisor vendor":
            return value.strip() or "unknown"
        if name.strip() in ("flags", "Flags"):
            if "hypervisor" in value.split():
                return "unknown"
            told = told or "sse2" in value.split()
    made = next((word for word in _VIRTUAL_MAKERS if word in dmi.lower()), "")
    return made or ("none" if told else "")


def _container(host: Host, detected: str) -> str:
    if detected in _BOXES:
        return f"systemd-detect-virt: {detected}"
    namespace = host.link("/proc/self/ns/pid").text.rpartition("/")[2]
    if namespace.startswith("pid:[") and namespace != _FIRST_PID_NAMESPACE:
        return "/proc/self/ns/pid"
    for path in _BOX_FILES:
        if host.file(path).data is not None:
            return path
    return "/proc/self/cgroup" if _BOX_GROUP.search(host.file("/proc/self/cgroup").text) else ""


def _read_only(mounts: str) -> bool:
    rows = [line.split() for line in mounts.splitlines()]
    of_sys = [row[3].split(",") for row in rows if len(row) > 3 and row[1] == "/sys"]
    return bool(of_sys) and "ro" in of_sys[-1]  # a later mount lies over an earlier one


def _lockdown(host: Host) -> str:
    """The word in brackets: `none [integrity] confidentiality`. Where securityfs is not mounted, what the command line asks for."""
    said = re.search(r"\[(\w+)\]", host.file(LOCKDOWN).text)
    if said:
        return said[1]
    asked = re.search(r"(?:^|\s)lockdown=(integrity|confidentiality)\b", host.file("/proc/cmdline").text)
    return asked[1] if asked else ""


def _units(host: Host) -> dict[str, str]:
    """Not `is-active`: it says inactive of a unit that is not installed."""
    found = {}
    for unit in UNITS:
        said = dict(line.partition("=")[::2] for line in host.run((*UNIT_STATE, unit), 4.0).text.splitlines())
        if said.get("LoadState") == "loaded" and said.get("ActiveState"):
            found[unit] = said["ActiveState"]
    return found


def _modprobe(host: Host) -> dict[str, str]:
    names = [name for name in host.names(MODPROBE).text.splitlines() if name.endswith(".conf")]
    return {f"{MODPROBE}/{name}": host.file(f"{MODPROBE}/{name}").text for name in names[:_MODPROBE_FILES_MAX]}


def _shm_KiB(host: Host) -> int | None:
    rows = [line.split() for line in host.run(SHM_SIZE, 4.0).text.splitlines()]
    return next((_number(row[1]) for row in rows if len(row) >= 6 and row[5] == "/dev/shm"), None)
