"""What the facts say together: the questions that many causes ask. Not a cause itself.

Every answer is the fact that gives it (so that a sign can cite it), or None. None means "not said", never "no".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TypeVar

from linkproof.model import (
    Changed,
    Collective,
    Copy,
    CudaError,
    DeviceAssert,
    Event,
    Fact,
    Gpu,
    Host,
    IbError,
    Input,
    Iommu,
    KernelLog,
    ModelRun,
    NcclInit,
    NcclPath,
    NcclWarn,
    Network,
    Pairs,
    Pattern,
    PeerAccess,
    Platform,
    Ranks,
    Setting,
    Stage,
    Topo,
    Versions,
)
from linkproof.parse.natures import natures

F = TypeVar("F", bound=Fact)

WRONG_DATA = ("zeros", "wrong", "stale")
BAD_MODEL = ("garbage", "wrong", "assert", "nan", "hang", "crash")
_TYPES = ("DMA", "DMA-FQ", "identity")  # a group's type as printed alone
PEER_MODES = ("peer", "load", "store", "ipc")

_FAILURES = (
    "nccl_error", "collective_timeout", "heartbeat_timeout", "worker_died", "engine_start_failed", "assert_generic", "garbage_text", "prob_tensor", "nan_seen",
    "bus_error", "killed", "segfault", "cuda_oom", "store_timeout", "shm_broadcast_wait", "custom_ar_cuda_error", "nccl_socket_failed", "nvls_bind_failed", "engine_stalled", "ggml_abort",
)  # fmt: skip


def _number(words: str) -> float | None:
    digits = "".join(c if c.isdigit() or c == "." else " " for c in words[:40]).split()
    try:
        return float(digits[0]) if digits else None
    except ValueError:
        return None


def version(words: str) -> tuple[int, ...]:
    """`535.54.03` -> (535, 54, 3); "" -> (). Letters end it."""
    out: list[int] = []
    for part in words.strip().lstrip("v").replace("+", ".").split("."):
        digits = ""
        for c in part:
            if not c.isdigit():
                break
            digits += c
        if not digits or len(digits) > 9:
            break
        out.append(int(digits))
    return tuple(out)


class Reading:
    """Facts with an index by type. Cheap to make: one pass."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        self.facts = tuple(facts)
        self._by_type: dict[type[Fact], list[Fact]] = {}
        self._events: dict[str, list[Event]] = {}
        for fact in self.facts:
            self._by_type.setdefault(type(fact), []).append(fact)
            if isinstance(fact, Event):
                self._events.setdefault(fact.kind, []).append(fact)

    def with_facts(self, more: Iterable[Fact]) -> Reading:
        """These facts and some more; the index is shared where nothing changes."""
        told = tuple(more)
        other = Reading(())
        other.facts = self.facts + told
        other._by_type = dict(self._by_type)
        other._events = self._events
        for fact in told:
            other._by_type[type(fact)] = [*other._by_type.get(type(fact), ()), fact]
        return other

    # ------------------------------------------------------------ look-ups

    def all(self, kind: type[F], /, **equals: object) -> list[F]:
        """Facts of this type whose fields equal, or lie in a given tuple."""
        found: list[F] = self._by_type.get(kind, [])  # type: ignore[assignment]
        for name, want in equals.items():
            if isinstance(want, tuple):
                found = [x for x in found if getattr(x, name) in want]
            else:
                found = [x for x in found if getattr(x, name) == want]
        return found

    def first(self, kind: type[F], /, **equals: object) -> F | None:
        found = self.all(kind, **equals)
        return found[0] if found else None

    def event(self, *kinds: str, value: str | tuple[str, ...] | None = None) -> Event | None:
        """The first event of any of these kinds."""
        for kind in kinds:
            for event in self._events.get(kind, ()):
                if value is None or event.value == value or (isinstance(value, tuple) and event.value in value):
                    return event
        return None

    def events(self, *kinds: str) -> list[Event]:
        return [event for kind in kinds for event in self._events.get(kind, ())]

    def cuda_error(self, *codes: int) -> CudaError | None:
        return next((e for e in self.all(CudaError) if e.code in codes), None)

    def asserted(self, *ops: str) -> DeviceAssert | None:
        return self.first(DeviceAssert, op=ops)

    # ------------------------------------------------------------ settings

    @cached_property
    def _settings(self) -> list[tuple[Setting, frozenset[str]]]:
        return [(s, natures(s.name)) for s in self.all(Setting)]

    def setting(self, nature: str, *effects: str) -> Setting | None:
        """The first setting of this nature that had one of these effects."""
        return next((s for s, n in self._settings if nature in n and (not effects or s.effect in effects)), None)

    @cached_property
    def p2p_off_in_vain(self) -> tuple[Setting, float] | None:
        """Switching peer traffic off changed nothing, and how much that says (0..1): a switch that never reached the failing
        program says nothing, one that left another user of the peer path running says little."""
        runs = {r.split for r in self.all(ModelRun, split=("pipeline", "tensor", "data"), result=BAD_MODEL)}
        for setting, nature in self._settings:
            if "p2p_off" not in nature or setting.effect != "no_effect":
                continue
            nccl_only = setting.key.startswith("NCCL_")
            build_flag = setting.key == "GGML_CUDA_NO_PEER_COPY"  # a build option: in the environment nobody reads it
            if build_flag or (nccl_only and runs and runs <= {"pipeline"}):
                continue
            own = "tensor" in runs and nccl_only and self.setting("custom_ar_off") is None and self.event("custom_ar_disabled") is None
            return setting, 0.4 if own else 1.0
        return None

    def setting_only(self, nature: str, *effects: str) -> Setting | None:
        """As `setting`, but of no other nature: nothing else was switched in the same breath."""
        return next((s for s, n in self._settings if n == {nature} and s.effect in effects), None)

    def setting_key(self, *keys: str) -> Setting | None:
        return next((s for s, _ in self._settings if s.key in keys), None)

    # ------------------------------------------------------------ who is on trial

    @cached_property
    def names(self) -> str:
        """All names of cards and engines, lower case, for asking what hardware this is."""
        words = [g.name for g in self.all(Gpu)]
        return " | ".join(words).lower()

    @cached_property
    def amd(self) -> Fact | None:
        for gpu in self.all(Gpu):
            low = gpu.name.lower()
            if any(
                w in low
                for w in ("amd", "radeon", "instinct", "gfx", "rx 5", "rx 6", "rx 7", "rx 9", "mi50", "mi60", "mi100", "mi2", "mi3")
            ):
                return gpu
        found = next((v for v in self.all(Versions) if v.rocm), None) or self.first(Collective, engine="rccl")
        return (
            found
            or next((k for k in self.all(KernelLog) if k.driver == "amdgpu"), None)
            or self.event("iommu_warning_rccl", "hip_kernel_image")
        )

    def gpu_named(self, *words: str) -> Gpu | None:
        return next((g for g in self.all(Gpu) if any(w in g.name.lower() for w in words)), None)

    @cached_property
    def nvswitch(self) -> Gpu | None:
        """A card that sits behind NVSwitch in the machines it is sold in (SXM parts; PCIe and NVL forms excluded)."""
        for gpu in self.all(Gpu):
            low = gpu.name.lower()
            if any(w in low for w in ("pcie", "nvl", "rtx", "max-q")):
                continue
            if any(
                w in low
                for w in ("h100", "h200", "h800", "h20", "b200", "b300", "gb200", "gb300", "a100-sxm", "a100 sxm", "a800-sxm", "gh200")
            ):
                return gpu
            if ("a100" in low or "a800" in low) and gpu.count >= 8:
                return gpu
        return None

    @cached_property
    def gpu_count(self) -> int:
        return max((g.count for g in self.all(Gpu)), default=0)

    @cached_property
    def geforce(self) -> Gpu | None:
        """Consumer cards: NVIDIA's own driver offers them no peer access over PCIe."""
        for gpu in self.all(Gpu):
            low = gpu.name.lower()
            if any(w in low for w in ("pro ", "a6000", "a5000", "a4000", "ada", "quadro", "tesla")):
                continue
            if any(w in low for w in ("geforce", "rtx 20", "rtx 30", "rtx 40", "rtx 50", "gtx", "titan")):
                return gpu
        return None

    @cached_property
    def guest(self) -> Platform | None:
        return self.first(Platform, kind=("vm", "wsl2"))

    @cached_property
    def boxed(self) -> Platform | None:
        return self.first(Platform, kind=("container", "pod", "sandbox"))

    # ------------------------------------------------------------ what failed

    @cached_property
    def single_ok(self) -> Fact | None:
        """Right on one GPU: seen, or told as a switch that ended the failure."""
        return self.first(ModelRun, split="none", result="ok") or self.setting("single_gpu", "cured")

    @cached_property
    def single_bad(self) -> ModelRun | None:
        return self.first(ModelRun, split="none", result=BAD_MODEL)

    @cached_property
    def split_bad(self) -> ModelRun | None:
        return self.first(ModelRun, split=("pipeline", "tensor", "data"), result=BAD_MODEL)

    @cached_property
    def split_ok(self) -> ModelRun | None:
        return self.first(ModelRun, split=("pipeline", "tensor", "data"), result="ok")

    @cached_property
    def one_model_only(self) -> ModelRun | None:
        """This model fails, and the observation says that others do not."""
        found = self.first(ModelRun, scope="one_model", split=("pipeline", "tensor", "data"), result=BAD_MODEL)
        return found or self.first(ModelRun, scope="one_model", result=BAD_MODEL)

    @cached_property
    def every_model(self) -> Fact | None:
        found: Fact | None = self.first(ModelRun, scope="every_model", result=BAD_MODEL)
        return found or self.setting("other_model", "no_effect")

    @cached_property
    def peer_copy_bad(self) -> Copy | None:
        found = self.first(Copy, via=PEER_MODES, result=WRONG_DATA) or self.first(Copy, via=PEER_MODES, result=("hang", "error"))
        if found is not None and found.via == "ipc" and found.result == "error" and self.first(Copy, via="peer", result="ok"):
            return None  # the memory is reached; handing it to another process is refused
        return found

    @cached_property
    def peer_copy_ok(self) -> Copy | None:
        """Every peer copy that was checked was right, over all pairs."""
        if self.peer_copy_bad is not None or self.flags_bad is not None:
            return None
        return self.first(Copy, via=PEER_MODES, result="ok", pairs="all")

    @cached_property
    def host_copy_ok(self) -> Copy | None:
        return self.first(Copy, via="host", result="ok")

    @cached_property
    def host_copy_bad(self) -> Copy | None:
        """The control: through host memory, without any peer path."""
        return self.first(Copy, via="host", result=WRONG_DATA) or self.first(Copy, via="host", result=("hang", "error"))

    @cached_property
    def flags_bad(self) -> Copy | None:
        """Messages between two resident kernels: the flag never came, or came before its data."""
        return self.first(Copy, via="flags", result=("hang", "error", *WRONG_DATA))

    @cached_property
    def self_copy_bad(self) -> Copy | None:
        """A card with itself, no link in use."""
        return self.first(Copy, via="self", result=("hang", "error", *WRONG_DATA))

    @cached_property
    def only_slow(self) -> Copy | None:
        """Direct copies are slow, and nothing that was measured is wrong: that the data are right then speaks against nothing."""
        bad = self.peer_copy_bad or self.flags_bad or self.collective_bad() or self.split_bad
        return None if bad is not None else self.first(Copy, via="peer", result="slow")

    def pairs(self, what: str, *ill: str) -> Pairs | None:
        """Which pairs fail, by what stands on their way."""
        return next((p for p in self.all(Pairs, what=what) if not ill or p.ill in ill), None)

    @cached_property
    def hang(self) -> Fact | None:
        found: Fact | None = self.first(ModelRun, split=("pipeline", "tensor", "data"), result="hang") or self.first(
            Collective, result="hang"
        )
        return found or self.first(Stage, result="hang")

    @cached_property
    def trouble(self) -> Fact | None:
        """Anything that failed at all."""
        found: Fact | None = (
            self.split_bad or self.single_bad or self.peer_copy_bad or self.collective_bad() or self.first(Stage) or self.first(IbError)
        )
        found = found or self.flags_bad
        found = found or self.first(Collective, result="slow") or self.first(Copy, result="slow") or self.first(ModelRun, result="slow")
        return found or self.first(NcclWarn) or self.first(DeviceAssert) or self.event(*_FAILURES)

    @cached_property
    def several_hosts(self) -> Fact | None:
        """Something says that ranks run on more than one host."""
        found: Fact | None = (
            self.first(Network) or self.first(IbError) or self.first(Collective, transport="net") or self.ranks("hosts_differ")
        )
        found = found or self.event(
            "gloo_failed", "gloo_loopback", "nccl_socket_failed", "nccl_no_interface", "store_timeout", "nccl_bootstrap_timeout"
        )
        hosts = {w.host for w in self.all(NcclInit) if w.host}
        return found or (self.first(NcclInit) if len(hosts) > 1 else None)

    @cached_property
    def spinning(self) -> Gpu | None:
        """100 % utilisation at idle power: kernels that wait for a flag that never comes."""
        return self.first(Gpu, fact="utilisation_100_idle_power")

    @cached_property
    def fails_before_traffic(self) -> Fact | None:
        """The failure stands before any byte went between GPUs."""
        found: Fact | None = self.first(Stage, at=("cuda_init", "ray_start"))
        return found or self.event(
            "fork_after_cuda", "undefined_nccl_symbol", "mig_name_as_number", "driver_mismatch", "ray_register_failed"
        )

    @cached_property
    def hw_claims_peer(self) -> PeerAccess | None:
        found = self.first(PeerAccess, claimed="all") or self.first(PeerAccess, claimed="some")
        return found or self.first(PeerAccess, status="OK")

    @cached_property
    def hw_denies_peer(self) -> Fact | None:
        found: Fact | None = self.first(PeerAccess, claimed="none") or self.first(PeerAccess, status=("CNS", "GNS", "TNS", "NS"))
        return found or self.event("nccl_p2p_disabled_driver", "nccl_peer_not_possible") or self.cuda_error(217)

    @cached_property
    def first_patched(self) -> Fact | None:
        return self.first(Gpu, fact="patched_driver") or self.event("patched_driver")

    @cached_property
    def first_changed_library(self) -> Changed | None:
        return self.first(Changed, what="library")

    @cached_property
    def amd_cpu(self) -> Fact | None:
        words = ("amd", "epyc", "threadripper", "ryzen", "authenticamd")
        found: Fact | None = next((h for h in self.all(Host, fact="cpu_vendor") if any(w in h.value.lower() for w in words)), None)
        return found or next((p for p in self.all(Platform) if any(w in p.note.lower() for w in words)), None)

    # ------------------------------------------------------------ the guard on the path

    @cached_property
    def iommu_asked(self) -> Iommu | None:
        """What the kernel command line asks for. It is an intent: an old boot entry or the other maker's option leave it without effect."""
        return next((i for i in self.all(Iommu) if i.parameter not in ("", "none") and i.mode != "unknown"), None)

    @cached_property
    def iommu_seen(self) -> Iommu | None:
        """The mode that was found: a group's type before the kernel log's default. Of several, one that translates."""
        found = [i for i in self.all(Iommu) if i.parameter in ("", "none") and i.mode != "unknown"]
        groups = [
            i for i in found if i.device or "iommu_group" in i.source.file or "iommu_group" in i.source.text or i.source.text in _TYPES
        ]
        several = groups or found
        return next((i for i in several if i.mode == "translating"), several[0] if several else None)

    @cached_property
    def iommu_translating(self) -> Fact | None:
        """What was found decides; where nothing was found, what the command line asks for."""
        if self.iommu_seen is not None:
            return self.iommu_seen if self.iommu_seen.mode == "translating" else None
        return self.first(Iommu, mode="translating")

    @cached_property
    def iommu_harmless(self) -> Fact | None:
        """Passthrough or off, or switching it off changed nothing. A page fault of a GPU shows that it translates, whatever was asked."""
        if self.iommu_translating is not None or self.io_page_fault is not None:
            return None
        found: Fact | None = self.iommu_seen or self.first(Iommu, mode=("passthrough", "off"))
        return found or self.setting("iommu_off", "no_effect") or self.setting("iommu_pt", "no_effect")

    @cached_property
    def iommu_unset(self) -> Iommu | None:
        """The kernel command line is known and asks for nothing: the distribution's default rules."""
        return next((i for i in self.all(Iommu) if i.mode == "unknown" and i.parameter == "none"), None)

    @cached_property
    def io_page_fault(self) -> KernelLog | None:
        """A page fault of a GPU; lines that name another device do not count."""
        cards = [g.value for g in self.all(Gpu) if g.value[:12].count(":")]  # lspci and nvidia-smi give addresses
        for line in self.all(KernelLog, fact="io_page_fault"):
            short = line.device.split(":", 1)[-1] if line.device.count(":") > 1 else line.device
            if cards and short and not line.driver and not any(short in card for card in cards):
                continue  # a DMAR line names no driver; this address is none of the GPUs shown
            if line.driver in ("", "nvidia", "amdgpu", "radeon", "nouveau", "i915", "xe") or "gpu" in line.driver:
                return line
        return None

    @cached_property
    def changed_driver(self) -> Changed | None:
        return self.first(Changed, what="driver")

    @cached_property
    def nccl(self) -> tuple[tuple[int, ...], Versions | None]:
        for v in self.all(Versions):
            if v.nccl:
                return version(v.nccl), v
        return (), None

    @cached_property
    def driver(self) -> tuple[tuple[int, ...], Versions | None]:
        for v in self.all(Versions):
            if v.driver:
                return version(v.driver), v
        return (), None

    def xid(self, *numbers: str) -> KernelLog | None:
        return next((k for k in self.all(KernelLog, fact="xid") if k.value in numbers), None)

    def host(self, fact: str) -> Host | None:
        return self.first(Host, fact=fact)

    def host_number(self, fact: str) -> tuple[float, Host] | None:
        for host in self.all(Host, fact=fact):
            number = _number(host.value)
            if number is not None:
                return number, host
        return None

    def input(self, fact: str) -> Input | None:
        return self.first(Input, fact=fact)

    def input_number(self, fact: str) -> tuple[float, Input] | None:
        for found in self.all(Input, fact=fact):
            number = _number(found.value)
            if number is not None:
                return number, found
        return None

    def pattern(self, *facts: str) -> Pattern | None:
        return self.first(Pattern, fact=facts)

    def ranks(self, *facts: str) -> Ranks | None:
        return self.first(Ranks, fact=facts)

    def network(self, *facts: str) -> Network | None:
        return self.first(Network, fact=facts)

    @cached_property
    def nccl_p2p_path(self) -> NcclPath | None:
        return self.first(NcclPath, transport="P2P")

    @cached_property
    def nccl_shm_path(self) -> NcclPath | None:
        """NCCL went through host memory and, as far as the log shows, through nothing else on this host."""
        return None if self.nccl_p2p_path else self.first(NcclPath, transport="SHM")

    def topo_path(self, *paths: str) -> Topo | None:
        return self.first(Topo, path=paths)

    def collective_bad(self, **equals: object) -> Collective | None:
        return next((c for c in self.all(Collective, **equals) if c.result in ("wrong", "hang", "error")), None)

    def settings(self) -> Iterator[tuple[Setting, frozenset[str]]]:
        yield from self._settings
