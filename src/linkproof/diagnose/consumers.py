"""What each engine may do on this machine, and the settings that move it off a broken way now.

From a route table: an engine has ways in the order in which it is best off. A way names what must be proven (NEEDS) and the settings that
choose it; the first way whose every need is proven is the answer, so a setting is called safe only if the way it leads to was tried as well.
Without a table: what the leading cause reaches.

Source: NCCL `src/graph/paths.cc` (NCCL_P2P_DISABLE, NCCL_P2P_LEVEL reach NCCL's transports only), torch `c10/cuda/PeerToPeerAccess.cpp`
(no switch exists), vLLM 0.33 `cuda_communicator.py`, SGLang 0.5.23 `custom_all_reduce.py`, llama.cpp PR 21910 (GGML_CUDA_P2P), exllamav3
`util/device_copy.py` (EXLLAMA_NO_P2P_COPY; it reads nothing else).
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from linkproof.causes.reading import Reading
from linkproof.measured import BAD, MODES
from linkproof.model import Consumer, Note, Setting, Source, Topo, Weighed
from linkproof.probe.multicast import OF_TORCH
from linkproof.routes import DEFAULT_ARM, RouteTable, proof, worst

_NCCL_ONLY = ("nccl_version_bug", "cumem_host_numa", "nccl_library_conflict", "nccl_env_misconfig", "shm_too_small", "container_isolation")
_OWN_ALL_REDUCE = ("custom_allreduce_bug", "custom_allreduce_gate", "ipc_expandable_segments")
_PEER_PATH = (
    "iommu_translation", "acs_redirect", "p2p_driver_bug", "p2p_patched_driver_config", "bar1_too_small", "p2p_unsupported_platform",
    "rocm_p2p_copy_broken", "vm_passthrough_p2p", "p2p_broken_unattributed",
)  # fmt: skip
_MULTICAST = ("nvls_multicast",)

ENGINES = ("transformers", "torchrun", "vllm", "sglang", "llama.cpp")

# engine -> what keeps it off the peer path; () where no switch exists
_OFF_PEER: dict[str, tuple[str, ...]] = {
    "transformers": (),
    "torchrun": ("NCCL_P2P_DISABLE=1",),
    "vllm": ("NCCL_P2P_DISABLE=1", "--disable-custom-all-reduce", "VLLM_ALLREDUCE_USE_SYMM_MEM=0"),
    "sglang": ("NCCL_P2P_DISABLE=1", "--disable-custom-all-reduce"),
    "llama.cpp": ("unset GGML_CUDA_P2P",),
}


def consumers(leader: Weighed | None, routes: RouteTable | None = None, reading: Reading | None = None) -> dict[str, Consumer]:
    """engine -> Consumer. With a route table: by what was measured. Without: for a cause that reaches some engines and not others; {} where
    all depend on the mend alike."""
    if routes is not None:
        found = measured(routes, _full_nvlink(reading)) if len(routes.cards) > 1 else {}
        return {e: _without_forced(c, routes, reading) if e in _OF_NCCL else c for e, c in found.items()}
    if leader is None or leader.state == "ruled_out":
        return {}
    if leader.id in _PEER_PATH:
        return {e: Consumer("at_risk", _OFF_PEER[e]) for e in ENGINES}
    if leader.id in _OWN_ALL_REDUCE:
        flag = ("--disable-custom-all-reduce",)
        return {e: Consumer("at_risk", flag) if e in ("vllm", "sglang") else Consumer("not_reached") for e in ENGINES}
    if leader.id in _MULTICAST:
        off = ("NCCL_NVLS_ENABLE=0",)
        return {e: Consumer("at_risk", off) if e in ("torchrun", "vllm", "sglang") else Consumer("not_reached") for e in ENGINES}
    if leader.id in _NCCL_ONLY:
        return {e: Consumer("at_risk") if e in ("torchrun", "vllm", "sglang") else Consumer("not_reached") for e in ENGINES}
    return {}


# ---------------------------------------------------------------- from a route table

RIGHT = ("verified", "slow")
_KERNELS = ("store", "store16", "load", "load16", "views", "flags")


class Way(Struct, frozen=True):
    """needs: see `_need`. settings choose this way."""

    needs: tuple[str, ...]
    settings: tuple[str, ...] = ()


# what NCCL goes through, best first; its protocols are arms of their own
_NCCL = (
    Way(("nccl",)),
    Way(("nccl p2p/Simple", "nccl p2p/LL", "copies", "kernels"), ("NCCL_PROTO=^LL128",)),
    Way(("nccl shm",), ("NCCL_P2P_DISABLE=1",)),
    Way(("nccl net",), ("NCCL_P2P_DISABLE=1", "NCCL_SHM_DISABLE=1")),
)
_VLLM_OFF = ("--disable-custom-all-reduce", "VLLM_ALLREDUCE_USE_SYMM_MEM=0")
_SGLANG_OFF = ("--disable-custom-all-reduce",)


def _with_own(own: str, off: tuple[str, ...], *more: str) -> tuple[Way, ...]:
    """NCCL's ways, the first of them with the engine's own all-reduce too."""
    return Way(("nccl", own, *more)), *(Way(way.needs, way.settings + off) for way in _NCCL)


WAYS: dict[str, tuple[Way, ...]] = {
    "transformers": (Way(("push", "store", "chain")),),
    "torchrun": _NCCL,
    "vllm": _with_own("vllm_allreduce", _VLLM_OFF, "multicast"),
    "sglang": _with_own("sglang_allreduce", _SGLANG_OFF),
    "llama.cpp": (Way(("push",)), Way(("staged",), ("unset GGML_CUDA_P2P",))),
    "exllama": (Way(("push",)), Way(("staged",), ("EXLLAMA_NO_P2P_COPY=1",))),
}


def measured(routes: RouteTable, full_nvlink: bool | None) -> dict[str, Consumer]:
    """full_nvlink: NVLink joins every pair; None if not known."""
    return {engine: _consumer(routes, ways, full_nvlink) for engine, ways in WAYS.items()}


def _consumer(routes: RouteTable, ways: tuple[Way, ...], full_nvlink: bool | None) -> Consumer:
    found = [[(mode, state) for need in way.needs for mode, state in _need(routes, need, full_nvlink)] for way in ways]
    worsts = [worst((state for _, state in needs)) for needs in found]
    first = worsts[0]
    if first in RIGHT:
        return Consumer("safe")
    deciding = tuple(dict.fromkeys(mode for mode, state in found[0] if state == first))
    if first == "not_tested":
        return Consumer("unknown", (), deciding)
    proven = next((way for way, state in zip(ways, worsts, strict=True) if state in RIGHT), None)
    if proven is not None:
        return Consumer("safe_with", proven.settings, deciding)
    open_way = next((way for way, state in zip(ways, worsts, strict=True) if state == "not_tested"), None)
    return Consumer("at_risk", open_way.settings if open_way is not None else (), deciding)


def _need(routes: RouteTable, need: str, full_nvlink: bool | None) -> Iterator[tuple[str, str]]:
    """(mode, state) of everything that one need stands for.

    push, store: of every pair; where the driver refuses, the driver itself goes through host memory, and that must be proven.
    chain: hops that do not wait for each other. nccl: the default arm, and no broken kernel access below it where NCCL goes over the peer path.
    multicast: NVLink multicast, where vLLM's all-reduce over torch's symmetric memory uses it. (SGLang's does only if it is asked to.)
    *_allreduce: the engine's own, where the engine would use it: two GPUs, or NVLink between all.
    """
    if need in ("push", "store"):
        for mode in ("push",) if need == "push" else ("store", "store16"):
            yield from ((mode, _or_staged(routes, a, b, mode)) for a, b in routes.pairs)
    elif need == "staged":
        yield need, routes.over_pairs(need)
    elif need == "chain":
        state = worst(c.state for c in routes.chains)
        yield need, routes.over_pairs("staged") if state == "refused" else state
    elif need == "kernels":
        yield from ((mode, state) for mode in (*_KERNELS, "ipc") if (state := routes.over_pairs(mode)) in BAD)
    elif need == "copies":
        yield from ((mode, state) for mode in ("push", "pull") if (state := routes.over_pairs(mode)) in BAD)
    elif need == "nccl":
        yield from _default_arm(routes)
    elif need.startswith("nccl "):
        arm = need.removeprefix("nccl ")
        yield need, routes.group("nccl", arm).state if "/" in arm else routes.transport(arm)
    elif need == "multicast":
        if _vllm_uses_multicast(routes):
            yield "nvls", routes.group("nvls").state
    else:
        yield from _own_all_reduce(routes, need, full_nvlink)


def _or_staged(routes: RouteTable, src: int, dst: int, mode: str) -> str:
    state = routes.state(src, dst, mode)
    return routes.state(src, dst, "staged") if state == "refused" else state


def _default_arm(routes: RouteTable) -> Iterator[tuple[str, str]]:
    cell = routes.group("nccl", DEFAULT_ARM)
    yield "nccl", cell.state
    used = cell.told.transport.upper() if cell.told is not None else ""
    if cell.state in RIGHT and (not used or "P2P" in used):  # right this time, over loads and stores that are known to fail
        yield from _need(routes, "kernels", None)
    if (nvls := routes.group("nvls").state) in BAD:
        yield "nvls", nvls


def _vllm_uses_multicast(routes: RouteTable) -> bool:
    """`_WORLD_SIZES_MULTIMEM` of its `symm_mem.py`: from four GPUs on with 9.0, from six on with newer ones, if every GPU has multicast."""
    least = 4 if all(c.capability == "9.0" for c in routes.cards) else 6
    told = routes.group("nvls").told
    off = told is not None and told.args.get("setting") == OF_TORCH
    return len(routes.cards) >= least and all(c.multicast for c in routes.cards) and not off


def _own_all_reduce(routes: RouteTable, own: str, full_nvlink: bool | None) -> Iterator[tuple[str, str]]:
    if len(routes.cards) > 2 and full_nvlink is False:
        return  # the engine switches it off itself
    if any(routes.state(*p, m) == "refused" for p in routes.pairs for m in ("push", "store16")):
        return  # without peer access it stays off as well
    state = routes.group(own).state
    if state != "not_tested":
        yield own, state
    for mode in (*_KERNELS, "ipc"):
        one = routes.over_pairs(mode)
        if one in BAD or (one == "refused" and mode == "ipc") or (one == "not_tested" and state == "not_tested"):
            yield mode, one


_OF_NCCL = ("torchrun", "vllm", "sglang")


def _without_forced(consumer: Consumer, routes: RouteTable, reading: Reading | None) -> Consumer:
    """NCCL_PROTO is set here to a protocol that was measured to be wrong: it has to go."""
    forced = next((s for s in (reading.all(Setting, key="NCCL_PROTO", effect="present") if reading else ())), None)
    if forced is None or forced.value.startswith("^") or any(s.startswith("NCCL_PROTO=") for s in consumer.settings):
        return consumer
    wrong = tuple(f"nccl p2p/{p}" for p in forced.value.split(",") if routes.group("nccl", f"p2p/{p}").bad)
    if not wrong or consumer.state not in ("safe", "safe_with"):
        return consumer
    return Consumer("safe_with", (*consumer.settings, "unset NCCL_PROTO"), consumer.modes or wrong)


def _full_nvlink(reading: Reading | None) -> bool | None:
    if reading is None or not reading.all(Topo):
        return None
    return reading.first(Topo, path=("NV", "XGMI"), pairs="all") is not None


# ---------------------------------------------------------------- what else a table says


def remarks(routes: RouteTable) -> list[Note]:
    """What a person would otherwise misread in the verdict."""
    found = proof(routes)
    if found.word == "one_gpu":
        return [Note("one GPU: there is no link to another one that could be tested", Source("probe", 0, f"{len(routes.cards)} GPU"))]
    if found.word == "no_p2p":
        count = Source("probe", 0, f"{len(routes.pairs)} pairs")
        return [
            Note(
                "the driver offers no direct way between any two GPUs; everything goes through host memory, which is right and slower",
                count,
            )
        ]
    if found.word == "part":
        shown = ", ".join(found.missing[:4]) + (" ..." if len(found.missing) > 4 else "")
        source = Source("probe", 0, shown)
        return [
            Note("not healthy for certain: {n} routes were not tested ({routes})", source, {"n": str(len(found.missing)), "routes": shown})
        ]
    if any(c.capability.startswith("gfx") for c in routes.cards) or routes.backend == "hip":
        names = ", ".join(m.name for m in MODES.values() if m.nvidia and m.judged and m.scope == "pair")
        return [
            Note(
                "these ways of access are written for NVIDIA only and were not tested: {modes}", Source("probe", 0, "AMD"), {"modes": names}
            )
        ]
    forced = [c for c in routes.groups.values() if c.bad and c.arm.endswith("/LL128") and c not in routes.bad]
    if forced:
        source = Source("probe", 0, f"nccl {forced[0].arm}: {forced[0].state}")
        return [Note("NCCL is right as it chooses by itself, and wrong with NCCL_PROTO=LL128 forced: leave that unset", source)]
    return []
