"""What a simulated machine is: a TOML file -> Scenario.

In:      a name (`acs-redirect-4x4090`, of `names()`) or the path of a .toml file.
Out:     Scenario; every field that has a sensible default may be left out.
Raises:  UsageError for an unknown name, an unreadable file, a field that is not known or of another kind.
Source:  each scenario names the report that it is modelled on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from linkproof.errors import UsageError
from linkproof.probe.faults import Fault

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

FOLDER = Path(__file__).parent / "scenarios"
GiB, MiB = 1 << 30, 1 << 20
VERDICTS = ("healthy", "faulty", "cannot_tell")


class Words(Struct, frozen=True, forbid_unknown_fields=True):
    en: str
    zh: str


class Expect(Struct, frozen=True, forbid_unknown_fields=True):
    """What `check` must say with traffic. causes: each of these ids is a right first answer; () none may be named."""

    verdict: str
    causes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict {self.verdict!r}: known are {', '.join(VERDICTS)}")


class VirtualGpu(Struct, frozen=True, forbid_unknown_fields=True):
    """place: where its function hangs below /sys/devices, with its host bridge and ports: `pci0000:00/0000:00:01.0/0000:01:00.0`.

    reserved_MiB: what desktop and contexts hold at the start of its memory. iommu: type of its group, "" where there is no IOMMU.
    busy: who else computes on it. width: lanes in use. nvlinks: per link whether it is up.
    """

    name: str
    place: str
    memory_GiB: float
    vendor: str = "nvidia"
    bar1_MiB: int | None = None  # None: as large as the memory
    reserved_MiB: int = 0
    iommu: str = ""
    busy: str = ""
    device: int = 0x2684
    capability: str = ""
    width: int = 16
    nvlinks: tuple[bool, ...] = ()
    replays: int = 0

    @property
    def bdf(self) -> str:
        return self.place.rpartition("/")[2]

    @property
    def memory_B(self) -> int:
        return int(self.memory_GiB * GiB)


class Link(Struct, frozen=True, forbid_unknown_fields=True):
    """One way between two GPUs. bw_GBps, lat_us: direct. claimed: the driver says peer access. status: as NVML names a refusal."""

    kind: str = "pcie4x16"
    bw_GBps: float = 26.0
    lat_us: float = 1.5
    staged_GBps: float = 12.0
    claimed: bool = True
    status: str = "CNS"
    atomics: bool = False


class PairLink(Struct, frozen=True, forbid_unknown_fields=True):
    """Ordered pairs whose link differs from the machine's own."""

    pairs: tuple[str, ...]
    link: Link


class Shared(Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of way that these ordered pairs share when they run at once."""

    pairs: tuple[str, ...]
    bw_GBps: float


class LinkFault(Fault, frozen=True, forbid_unknown_fields=True):
    """counts: counter -> where; rises each time the fault acts. log: a line that the kernel then logs ({bdf}: of the GPU that sends)."""

    counts: dict[str, str] = field(default_factory=dict)
    log: str = ""


class Host(Struct, frozen=True, forbid_unknown_fields=True):
    """acs: control word of each port that has the capability; a port not named has it, all off. no_acs: ports without it.

    flavour: open closed of the NVIDIA module, "" none. packages: `name==version`. root: configuration space can be read whole.
    """

    cpu: str = "intel"
    virt: str = "none"
    container: str = ""
    cmdline: str = "BOOT_IMAGE=/boot/vmlinuz root=/dev/sda2 ro quiet"
    kernel_log: tuple[str, ...] = ()
    driver: str = "580.95.05"
    flavour: str = "open"
    params: tuple[str, ...] = ()
    shm_MiB: int = 64 * 1024
    env: tuple[str, ...] = ()  # NAME=value, of the process that asks
    packages: tuple[str, ...] = ("torch==2.9.0", "nvidia-nccl-cu12==2.27.5")
    fabric_manager: str = ""
    root: bool = True
    acs: dict[str, int] = {}
    no_acs: tuple[str, ...] = ()
    numa: dict[str, int] = {}  # host bridge -> node
    counters: dict[str, int] = {}  # "AER correctable@0000:01:00.0" -> since boot


class Scenario(Struct, frozen=True, forbid_unknown_fields=True):
    """refused: modes of the probe, allocators and handles that this machine refuses. host_GBps: host memory, by all staged ways together."""

    title: Words
    modelled_on: str
    expect: Expect
    gpus: tuple[VirtualGpu, ...]
    link: Link = Link()
    links: tuple[PairLink, ...] = ()
    shared: tuple[Shared, ...] = ()
    faults: tuple[LinkFault, ...] = ()
    refused: tuple[str, ...] = ()
    host_GBps: float = 60.0
    host: Host = field(default_factory=Host)

    def __post_init__(self) -> None:
        if not self.gpus:
            raise ValueError("a machine has at least one GPU")
        if len({g.bdf for g in self.gpus}) != len(self.gpus):
            raise ValueError("two GPUs have one address")
        known = {f"{a}->{b}" for a in range(len(self.gpus)) for b in range(len(self.gpus))}
        groups = [*(one.pairs for one in self.links), *(one.pairs for one in self.shared), *(fault.pairs for fault in self.faults)]
        said = [pair for group in groups for pair in group]
        if wrong := [p for p in said if p not in known]:
            raise ValueError(f"pair {wrong[0]!r}: there are {len(self.gpus)} GPUs, numbered from 0")

    def between(self, src: int, dst: int) -> Link:
        return next((one.link for one in self.links if f"{src}->{dst}" in one.pairs), self.link)


def names() -> list[str]:
    """Every scenario that is shipped."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name_or_path: str) -> Scenario:
    """A shipped scenario by name, or a file."""
    path = Path(name_or_path) if name_or_path.endswith(".toml") or "/" in name_or_path else FOLDER / f"{name_or_path}.toml"
    if not path.is_file():
        known = ", ".join(names())
        raise UsageError(
            "no-such-scenario",
            (f"no scenario is named {name_or_path!r}", f"没有名为 {name_or_path!r} 的场景"),
            ("nothing was simulated", "没有进行任何模拟"),
            (f"name one of: {known}; or a .toml file of your own", f"请指定其中之一：{known}；或您自己的 .toml 文件"),
        )
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return msgspec.convert(table, Scenario)
    except (ValueError, OSError) as e:  # TOMLDecodeError, UnicodeDecodeError and ValidationError are ValueErrors
        raise UsageError(
            "bad-scenario",
            (f"{path}: {e}", f"{path}：{e}"),
            ("nothing was simulated", "没有进行任何模拟"),
            ("compare it with a shipped scenario", "请对照随附的场景文件修改"),
        ) from None
