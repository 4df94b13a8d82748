"""What people get wrong, said when the facts at hand hold it. A note never changes a verdict; where it matters for one, the causes know it too.

Source of each: NCCL `src/graph/paths.cc`, `src/misc/param.cc`, release 2.22 (lazy connections) and 2.23 (P2P level on AMD); torch
`c10/cuda/PeerToPeerAccess.cpp`; llama.cpp PR 21910; Linux `drivers/pci/pci.c`; PCIe base specification, ACS control register.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from linkproof.causes.reading import Reading
from linkproof.diagnose import notes_machine
from linkproof.model import Acs, Copy, DeviceAssert, Fact, Iommu, ModelRun, NcclInit, NcclPath, Note, PeerAccess, Setting, Versions


def _note(text: str, fact: Fact, **args: str) -> Note:
    return Note(text, fact.source, args)


def _reach(f: Reading) -> Iterator[Note]:
    """Which settings reach which program."""
    nccl_off = f.setting_key("NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_SHM_DISABLE")
    layers = f.first(ModelRun, split="pipeline")
    if nccl_off and layers:
        yield _note(
            "{key} reaches NCCL only: copies between layers (device_map) never go through NCCL, so it tests nothing there",
            nccl_off,
            key=nccl_off.key,
        )
    engine = next((v for v in f.all(Versions) if any(w in v.engine.lower() for w in ("vllm", "sglang"))), None)
    p2p_off = f.setting_key("NCCL_P2P_DISABLE")
    if p2p_off and (engine or f.event("engine_tp")) and not f.setting("custom_ar_off") and not f.event("custom_ar_disabled"):
        yield _note(
            "NCCL_P2P_DISABLE=1 does not reach the engine's own all-reduce: switch that off as well (--disable-custom-all-reduce)", p2p_off
        )
    for setting in f.all(Setting):
        if setting.key == "GGML_CUDA_P2P":
            yield _note("GGML_CUDA_P2P switches peer access on by its mere presence, whatever its value; unset it", setting)
        elif setting.key == "GGML_CUDA_NO_PEER_COPY" and "-D" not in setting.name:
            yield _note(
                "GGML_CUDA_NO_PEER_COPY is a build option (-DGGML_CUDA_NO_PEER_COPY=ON); in the environment nobody reads it", setting
            )
        elif "pci=noacs" in setting.name or "pcie_acs_override" in setting.name:
            yield _note("{name} clears no ACS bit on a stock kernel", setting, name=setting.name)
        elif "amd_iommu=on" in setting.name:
            yield _note("amd_iommu=on is no kernel option: the AMD IOMMU is on by default, and translates", setting)


def _proof(f: Reading) -> Iterator[Note]:
    """What proves what."""
    done = f.first(NcclInit, state="complete")
    number, said = f.nccl
    if done and not f.all(NcclPath) and (not number or number >= (2, 22)):
        yield _note("Init COMPLETE proves no transport: since NCCL 2.22 connections are made at the first collective", done)
    claim = f.first(PeerAccess, claimed="all") or f.first(PeerAccess, status="OK")
    if claim:
        yield _note("that peer access is claimed (topo -p2p OK, canAccessPeer 1) says nothing about whether the bytes arrive", claim)
    if direct := f.event("nccl_check_p2p"):
        yield _note("isAllDirectP2p is a plan, not a measurement", direct)
    if (first := f.first(Copy, pairs="first")) and first.result == "ok":
        yield _note("simpleP2P tests the first pair of GPUs only, and never checks what a peer wrote", first)
    known = any(i.mode != "unknown" for i in f.all(Iommu))
    if not known and (default := f.event("iommu_default_translated")):
        yield _note("`Default domain type: Translated` is printed without any IOMMU too; the group's type is the fact", default)
    harmless = next((a for a in f.all(Acs, redirect="off") if "SrcValid+" in a.bits), None)
    if harmless:
        yield _note("SrcValid+ alone redirects nothing; ReqRedir, CmpltRedir and EgressCtrl do", harmless)
    if number >= (2, 23) and said and f.amd_cpu and f.gpu_count > 2:
        yield _note("NCCL from 2.23 on AMD hosts takes the peer path across the CPU for two ranks and shared memory for more", said)


def _echo(f: Reading) -> Iterator[Note]:
    """Consequences, and messages that come late."""
    echo = f.event("worker_died", "engine_start_failed", "nccl_remote_exit", "store_closed", "nccl_abort")
    if echo:
        yield _note("this line is an echo: another rank failed before; look for the first error by time", echo)
    if generic := f.event("assert_generic"):
        if not f.all(DeviceAssert):
            yield _note("the assertion itself is missing: it stands higher up in the output of the rank that failed first", generic)
        else:
            yield _note("an assertion is reported at a later call; CUDA_LAUNCH_BLOCKING=1 gives the true place", generic)
    for found in f.all(DeviceAssert):
        if found.index is not None and found.size:
            if found.index >= found.size * 64 or found.index < -64 * found.size:
                yield _note(
                    "index {index} for {size} rows is no slip of software: such values come from corrupted data",
                    found,
                    index=str(found.index),
                    size=str(found.size),
                )
            else:
                yield _note(
                    "index {index} for {size} rows is just outside: a slip of software or input, not corruption",
                    found,
                    index=str(found.index),
                    size=str(found.size),
                )
            break
    if cached := f.event("engine_p2p_check", value="reading"):
        yield _note(
            "the engine read its peer-access verdict from a cache that never expires; delete it after a change of driver, BIOS or cards",
            cached,
        )
    if denied := f.event("nccl_p2p_disabled_driver"):
        yield _note("NCCL falls back to shared memory here: slow and safe", denied)


_RULES: tuple[Callable[[Reading], Iterator[Note]], ...] = (_reach, *notes_machine.RULES, _proof, _echo)
_MOST = 8


def notes(reading: Reading) -> list[Note]:
    """At most `_MOST`, each text once."""
    out: dict[tuple[str, str], Note] = {}
    for rule in _RULES:
        for note in rule(reading):
            out.setdefault((note.text, str(sorted(note.args.items()))), note)
    return list(out.values())[:_MOST]
