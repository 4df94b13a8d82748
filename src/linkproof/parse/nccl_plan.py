"""What NCCL chooses for a pair of GPUs of one host before any byte goes between them, and why. Pure, not a parser of a text.

In:      the pair's path as NCCL names it, the processor, NCCL's version, the number of GPUs, what the driver says, NVLink, the settings.
Out:     Plan: P2P, SHM or NET. `pair_plans` makes one per pair of a PciTree; where the number of GPUs decides, also one for two alone.
Unknown: what was not read leaves both ways open; the Plan is "unknown" only if they end differently, and says what is missing.
         NCCL before 2.6 decides otherwise; of versions past 2.30 the rule is not known.
Raises:  nothing.
Source:  NCCL 2.6.4 .. 2.30.7, `src/graph/paths.cc` (ncclTopoCheckP2p, ncclGetLevel, ncclTopoCheckNet), `src/transport/shm.cc`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct, field

from linkproof.model import Fact, PeerAccess, Setting, Versions
from linkproof.parse.pci_tree import NVIDIA, PciFunction, PciTree
from linkproof.parse.rules import rx
from linkproof.parse.topology import joined, numbers, pairs, path

OLDEST, NEWEST = (2, 6), (2, 30)
# nearest first, each with the first version whose settings know the word; the order never changed, only words came in between
_ORDER = {
    "LOC": (2, 6), "NVL": (2, 6), "NVB": (2, 8, 3), "C2C": (2, 26, 2), "PIX": (2, 6), "PXB": (2, 6), "P2C": (2, 27, 3), "PXN": (2, 12, 7),
    "PHB": (2, 6), "SYS": (2, 6),
}  # fmt: skip
_FAR = {word: i for i, word in enumerate(_ORDER)}
_LEGACY = ("LOC", "PIX", "PXB", "PHB", "SYS")  # NCCL_P2P_LEVEL as a number; what is above is SYS
# CPUID or lscpu's word. NCCL knows three makers of x86: Hygon is none of them, although its cores are AMD's
_MAKERS = {
    "AuthenticAMD": "amd", "GenuineIntel": "intel", "CentaurHauls": "zhaoxin", "Shanghai": "zhaoxin", "HygonGenuine": "x86",
    "ARM": "arm", "NVIDIA": "arm", "Ampere": "arm", "IBM": "power",
}  # fmt: skip
_SKYLAKE = 0x55  # NCCL takes every Intel model of family 6 below it for a Broadwell


class Why(Struct, frozen=True):
    """A template with its values."""

    text: str
    args: dict[str, str] = field(default_factory=dict)


class Plan(Struct, frozen=True):
    """transport: P2P SHM NET unknown. level: the farthest path that P2P may take, "" if not known."""

    transport: str
    level: str
    why: Why


class PairPlan(Struct, frozen=True):
    """two: the plan of a communicator with only these two GPUs, where it ends differently."""

    a: str
    b: str
    plan: Plan
    two: Plan | None = None


def _note(text: str, **args: str) -> Why:
    return Why(text, args)


def _number(value: str) -> int | None:
    """As strtol with base 0 reads it: what follows the number does not matter."""
    found = rx(r"^\s*([+-]?)(0[xX][0-9a-fA-F]{1,8}|0[0-7]{0,9}|[1-9][0-9]{0,8})").search(value[:64])
    if found is None:
        return None
    digits = str(found.group(2))
    base = 16 if digits[:2].lower() == "0x" else 8 if digits[0] == "0" else 10
    return -int(digits, base) if found.group(1) == "-" else int(digits, base)


def set_level(settings: Mapping[str, str], version: tuple[int, ...]) -> str:
    """The level that NCCL_P2P_DISABLE and NCCL_P2P_LEVEL give; "" if neither acts."""
    if _number(settings.get("NCCL_P2P_DISABLE", "")) == 1:
        return "LOC"
    value = settings.get("NCCL_P2P_LEVEL", "")
    if value in _ORDER and version >= _ORDER[value]:
        return value
    if value[:1].isdigit() and (old := _number(value)) is not None:
        return _LEGACY[min(old, len(_LEGACY) - 1)]
    return ""


def _is_broadwell(cpu_model: str) -> bool | None:
    family, _, model = cpu_model.partition("/")
    if not (family.isdecimal() and model.isdecimal() and len(cpu_model) < 9):
        return None
    return not (int(family) == 6 and int(model) >= _SKYLAKE)


def default_levels(version: tuple[int, ...], cpu_vendor: str, cpu_model: str, gpus_in_node: int) -> set[str]:
    """The default level, or all that are possible with what is known. cpu_model: "FAMILY/MODEL" in decimal; gpus_in_node 0: not known."""
    maker = _MAKERS.get(cpu_vendor.strip(), "")
    if not maker:
        return set().union(*(default_levels(version, known, cpu_model, gpus_in_node) for known in _MAKERS))
    if version >= (2, 23):
        return {"PXB"} if maker != "amd" or gpus_in_node > 2 else {"SYS"} if gpus_in_node else {"SYS", "PXB"}
    if maker == "arm":
        return {"PXB"}
    if maker == "intel" and version < (2, 9):
        newer = "PHB" if version >= (2, 7) else "SYS"
        old = _is_broadwell(cpu_model)
        return {"PXB", newer} if old is None else {"PXB"} if old else {newer}
    if maker == "zhaoxin" and version == (2, 8):
        return {"PXB", "SYS"}
    return {"PXB"} if maker == "intel" or (maker == "zhaoxin" and version >= (2, 8, 4)) else {"SYS"}


def plan(
    path_nccl: str,
    cpu_vendor: str,
    cpu_model: str,
    nccl_version: tuple[int, ...],
    gpus_in_node: int,
    p2p_read: str,
    p2p_write: str,
    nvlink: bool | None,
    settings: Mapping[str, str],
    same_shm: bool = True,
    near_nics: bool = False,
) -> Plan:
    """What NCCL chooses for a pair. p2p_read, p2p_write: the driver's word (OK, CNS ...; "" or U: not known). nvlink None: not read.

    near_nics: both GPUs have a network card on their side of the processor; across it NCCL may take the network if that is faster.
    """
    if nvlink is None:
        without, joined = (
            plan(path_nccl, cpu_vendor, cpu_model, nccl_version, gpus_in_node, p2p_read, p2p_write, known, settings, same_shm, near_nics)
            for known in (False, True)
        )
        return (
            without
            if without.transport == joined.transport
            else Plan("unknown", without.level, _note("NVLink between the two was not read"))
        )
    if len(nccl_version) < 2:
        return Plan("unknown", "", _note("NCCL's version is not known"))
    version = ".".join(map(str, nccl_version))
    if not OLDEST <= nccl_version[:2] <= NEWEST:
        return Plan("unknown", "", _note("the rule is known for NCCL 2.6 to 2.30, not for {version}", version=version))
    way = "NVL" if nvlink else path_nccl
    if way not in _FAR:
        return Plan("unknown", "", _note("the path between the two is not known"))
    if not same_shm:
        return Plan("NET", "", _note("the two see different /dev/shm"))
    forced = set_level(settings, nccl_version)
    levels = {forced} if forced else default_levels(nccl_version, cpu_vendor, cpu_model, gpus_in_node)
    reach = {_FAR[way] <= _FAR[level] for level in levels}
    level = next(iter(levels)) if len(levels) == 1 else ""
    if len(reach) == 2:
        return Plan("unknown", "", _note("{path} is near enough on some processors only, and this one is not known", path=way))
    if reach == {False}:
        made = Plan("SHM", level, _beyond(way, level, forced, settings, cpu_vendor.strip(), version, gpus_in_node))
    else:
        made = _driver(Plan("P2P", level, _within(way, level, forced, version)), p2p_read, p2p_write, nccl_version, way, settings)
    if (
        made.transport in ("P2P", "SHM")
        and near_nics
        and way in ("PHB", "SYS")
        and _number(settings.get("NCCL_NET_DISABLE_INTRA", "")) != 1
    ):
        return Plan("unknown", level, _note("network cards beside both GPUs may be faster than {path}; then NCCL takes NET", path=way))
    if made.transport == "SHM" and _number(settings.get("NCCL_SHM_DISABLE", "")) == 1:
        return Plan("NET", level, _note("P2P is not possible and NCCL_SHM_DISABLE=1 is set"))
    return made


def _within(way: str, level: str, forced: str, version: str) -> Why:
    if way == "NVL":
        return _note("NVLink joins the two")
    if forced:
        return _note("{path} is within {level}, which NCCL_P2P_LEVEL sets", path=way, level=level)
    if not level:
        return _note("{path} is near enough on every processor in NCCL {version}", path=way, version=version)
    return _note("{path} is within {level}, the default of NCCL {version} here", path=way, level=level, version=version)


def _beyond(way: str, level: str, forced: str, settings: Mapping[str, str], cpu: str, version: str, gpus: int) -> Why:
    if forced and _number(settings.get("NCCL_P2P_DISABLE", "")) == 1:
        return _note("NCCL_P2P_DISABLE=1 is set")
    if forced:
        return _note("{path} is beyond {level}, which NCCL_P2P_LEVEL sets", path=way, level=level)
    if not level:
        return _note("{path} is too far on every processor in NCCL {version}", path=way, version=version)
    if _MAKERS.get(cpu) == "amd":
        return _note(
            "{path} is beyond {level}, the default of NCCL {version} on {cpu} for {n} GPUs",
            path=way,
            level=level,
            version=version,
            cpu=cpu,
            n=str(gpus),
        )
    return _note("{path} is beyond {level}, the default of NCCL {version} on {cpu}", path=way, level=level, version=version, cpu=cpu)


def _driver(made: Plan, p2p_read: str, p2p_write: str, version: tuple[int, ...], way: str, settings: Mapping[str, str]) -> Plan:
    """The path is near enough: does the driver agree?"""
    refused = next((said for said in (p2p_read, p2p_write) if said not in ("OK", "U", "")), "")
    ignore = _number(settings.get("NCCL_IGNORE_DISABLED_P2P", "")) or 0
    if not refused:
        if p2p_read == p2p_write == "OK":
            return made
        return Plan("unknown", made.level, _note("{path} is near enough; whether the driver allows P2P was not read", path=way))
    if ignore == 2 and version >= (2, 12, 7):
        text = _note(
            "the driver refuses P2P ({status}); with NCCL_IGNORE_DISABLED_P2P=2 a process that sees one GPU only takes it anyway",
            status=refused,
        )
        return Plan("unknown", made.level, text)
    if way == "NVL" and not ignore and version >= (2, 12, 7):
        return Plan(
            "unknown",
            made.level,
            _note("NVLink joins the two and the driver refuses P2P ({status}): NCCL stops with an error", status=refused),
        )
    # NCCL before 2.19 leaves it to CUDA, which says the same of GPUs that the process sees
    return Plan("SHM", made.level, _note("the driver refuses P2P for the two ({status})", status=refused))


def version_of(text: str) -> tuple[int, ...]:
    """2.27.3 or 2.27.3+cuda12.9; () if it is none."""
    found = rx(r"^(\d{1,3})\.(\d{1,3})(?:\.(\d{1,4}))?(?:\D|$)").search(text[:40])
    return tuple(int(part) for part in found.groups() if part) if found is not None else ()


def _settings(facts: Iterable[Fact]) -> dict[str, str]:
    """NCCL's variables; what the process has goes before what a file sets."""
    set_ = [f for f in facts if isinstance(f, Setting) and f.effect == "present" and f.key.startswith("NCCL_")]
    set_.sort(key=lambda f: f.source.file == "environment")
    return {f.key: f.value for f in set_}


def _driver_says(facts: Iterable[Fact], command: str, words: str) -> dict[str, str]:
    """Pair, or "all", -> what the driver says of one direction."""
    said: dict[str, str] = {}
    for f in facts:
        if isinstance(f, PeerAccess) and (f.source.file.endswith(command) or f.source.text.startswith(words)) and f.claimed != "some":
            said.setdefault(f.pairs, "OK" if f.claimed == "all" else f.status)
    return said


def _near_nic(gpu: PciFunction, tree: PciTree) -> bool:
    return any(path(gpu, nic).nccl in ("PIX", "PXB") for nic in tree.nics)


def pair_plans(tree: PciTree, facts: Iterable[Fact], cpu_vendor: str = "") -> list[PairPlan]:
    """One per pair of GPUs, in the order of `pairs`, for one communicator over all that the driver has."""
    known = list(facts)
    version = version_of(next((f.nccl for f in known if isinstance(f, Versions) and f.nccl), ""))
    settings, gpus = _settings(known), tree.gpus
    if any(g.vendor != NVIDIA for g in gpus):
        return [PairPlan(p.a, p.b, Plan("unknown", "", _note("RCCL decides for these GPUs, not NCCL"))) for p in pairs(tree)]
    number, nvlinks = numbers(tree), joined(tree, known)
    near = {g.bdf: _near_nic(g, tree) for g in gpus}
    reads, writes = _driver_says(known, " -p2p r", "P2P read:"), _driver_says(known, " -p2p w", "P2P write:")
    out = []
    for p in pairs(tree):
        pair = f"{number[p.a]}-{number[p.b]}" if p.a in number and p.b in number else ""
        read, write = (said.get(pair) or said.get("all", "") if pair else "" for said in (reads, writes))
        near_nics = near[p.a] and near[p.b]
        whole, two = (
            plan(p.nccl, cpu_vendor, "", version, count, read, write, nvlinks[p.a, p.b].nvlink, settings, near_nics=near_nics)
            for count in (len(number), 2)
        )
        out.append(PairPlan(p.a, p.b, whole, two if two.transport != whole.transport else None))
    return out
