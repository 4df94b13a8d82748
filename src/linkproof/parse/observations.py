"""observations.yaml -> facts: what a person tried or saw, in fixed words.

In:      YAML, a list of mappings; each has `check` and keys of that check.
Out:     one fact per entry; its source is the entry ("observations.yaml", number of the entry).
Unknown: an unknown check, key or word of a closed list is refused with the list of known ones; open values are kept as given.
Raises:  ObservationError.
"""

from __future__ import annotations

from typing import Any

from linkproof import model
from linkproof.errors import ObservationError
from linkproof.model import Fact, Source
from linkproof.parse.settings import split_setting

# check -> (fact class, {key: closed list of words, or None for open values})
_RESULT_MODEL = ("ok", "garbage", "wrong", "assert", "nan", "hang", "crash", "slow")
OBSERVATION_WORDS: dict[str, tuple[type[Fact], dict[str, tuple[str, ...] | None]]] = {
    "copy": (model.Copy, {
        "via": ("peer", "host", "load", "store", "ipc"),
        "result": ("ok", "zeros", "wrong", "stale", "hang", "error", "slow"), "pairs": None}),
    "collective": (model.Collective, {
        "engine": ("nccl", "rccl", "custom_allreduce", "gloo"),
        "op": ("all_reduce", "all_gather", "all_to_all", "broadcast"),
        "transport": ("default", "p2p", "shm", "net", "nvls"), "ranks": None,
        "result": ("ok", "wrong", "hang", "error", "slow")}),
    "model": (model.ModelRun, {
        "split": ("none", "pipeline", "tensor", "data"), "result": _RESULT_MODEL, "scope": ("one_model", "every_model"), "gpus": None}),
    "stage": (model.Stage, {
        "at": ("cuda_init", "nccl_init", "first_collective", "graph_capture", "inference", "training", "ray_start"),
        "result": ("hang", "error", "crash", "slow"), "code": None}),
    "pattern": (model.Pattern, {
        "fact": ("intermittent", "first_run_after_boot_only", "from_ranks", "from_bytes", "some_sizes", "only_some_pairs",
                 "only_some_inputs", "only_long_inputs", "only_batched", "under_load", "same_last_log_line"), "value": None}),
    "setting": (model.Setting, {"name": None, "effect": ("cured", "no_effect", "worse", "changed", "present")}),
    "kernel_log": (model.KernelLog, {"fact": ("clean", "io_page_fault", "xid", "aer_corrected", "aer_fatal"), "value": None}),
    "iommu": (model.Iommu, {"mode": ("translating", "passthrough", "off", "unknown"), "parameter": None}),
    "acs": (model.Acs, {"redirect": ("on", "off", "unknown")}),
    "peer_access": (model.PeerAccess, {"claimed": ("all", "some", "none"), "status": ("OK", "CNS", "GNS", "TNS", "NS")}),
    "topo": (model.Topo, {"path": ("PIX", "PXB", "PHB", "NODE", "SYS", "NV"), "pairs": None}),
    "platform": (model.Platform, {
        "kind": ("bare_metal", "vm", "container", "pod", "sandbox", "wsl2", "windows"), "note": None}),
    "changed_before": (model.Changed, {
        "what": ("driver", "kernel", "bios", "library", "hardware", "image", "model", "nothing"), "detail": None}),
    "gpu": (model.Gpu, {"name": None, "count": None, "fact": (
        "display_attached", "bar1_smaller_than_vram", "bar1_covers_vram", "patched_driver", "utilisation_100_idle_power", "utilisation_0",
        "mixed_models", "mig", "other_process", "one_per_container", "integrated_visible", "ecc_errors", "nvlink_errors",
        "nvlink_crc"), "value": None}),
    "host": (model.Host, {"fact": (
        "shm_bytes", "memlock_kib", "oom_kill", "cpu_limit", "cpu_count", "cpu_offline", "ld_preload", "fork_after_cuda", "numa_asymmetric",
        "two_nccl_libraries", "nvidia_caps_missing", "gpu_reserved"), "value": None}),
    "fabric_manager": (model.FabricManager, {"state": ("running", "stopped", "version_mismatch", "restarted_without_reset")}),
    "network": (model.Network, {"fact": ("ping_ok", "several_nics", "gid_table_changed", "rdma_error"), "value": None}),
    "versions": (model.Versions, {"driver": None, "nccl": None, "torch": None, "cuda": None, "rocm": None, "engine": None}),
    "input": (model.Input, {"fact": (
        "token_id_out_of_vocab", "max_token_id", "vocab_rows", "position_beyond_max", "longest_sequence", "label_out_of_range",
        "pad_token_negative", "dtype"), "value": None}),
    "ranks": (model.Ranks, {"fact": ("one_rank_died", "sizes_differ", "one_rank_late", "hosts_differ"), "detail": None}),
}  # fmt: skip

_MEANS = (
    "an observation is one mapping with `check` and the keys of that check",
    "一条观察是一个映射：含 `check` 以及该 check 的键",
)
_REQUIRED = {"copy": ("via", "result"), "collective": ("engine", "result"), "model": ("split", "result"), "stage": ("at", "result"),
             "setting": ("name", "effect")}  # fmt: skip
_DEFAULTS: dict[str, dict[str, str]] = {"collective": {"engine": "nccl"}, "iommu": {"mode": "unknown"}, "acs": {"redirect": "unknown"}}


def _refuse(name: str, number: int, what: tuple[str, str], known: str) -> ObservationError:
    return ObservationError(
        "unknown-observation",
        (f"{name}, entry {number}: {what[0]}", f"{name}，第 {number} 条：{what[1]}"),
        _MEANS,
        (f"use one of: {known}", f"请使用以下之一：{known}"),
    )


def _word(value: object) -> str:
    """YAML reads `off` as False and 12.1 as a float; people mean the word."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else str(value)


def observations(data: object, name: str = "observations.yaml") -> list[Fact]:
    """Already loaded YAML or JSON -> facts. `None` (an empty file) is no observations."""
    if data is None:
        return []
    if not isinstance(data, list):
        raise _refuse(name, 0, ("not a list", "不是列表"), "- {check: ..., ...}")
    return [_one(entry, name, number) for number, entry in enumerate(data, 1)]


def _one(entry: object, name: str, number: int) -> Fact:
    checks = ", ".join(OBSERVATION_WORDS)
    if not isinstance(entry, dict) or "check" not in entry:
        raise _refuse(name, number, ("no `check`", "没有 `check`"), checks)
    check = str(entry["check"])
    if check not in OBSERVATION_WORDS:
        raise _refuse(name, number, (f"check {check!r} is not known", f"未知的 check：{check!r}"), checks)
    cls, keys = OBSERVATION_WORDS[check]
    values: dict[str, Any] = dict(_DEFAULTS.get(check, {}))
    for key, value in entry.items():
        if key == "check":
            continue
        if key not in keys:
            raise _refuse(name, number, (f"key {key!r} is not known for {check}", f"{check} 没有键 {key!r}"), ", ".join(keys))
        words, closed = _word(value), keys[key]
        if closed is not None and words not in closed:
            said = (f"{key}: {words!r} is not known for {check}", f"{check} 的 {key} 没有值 {words!r}")
            raise _refuse(name, number, said, ", ".join(closed))
        values[key] = words
    for key in _REQUIRED.get(check, ()):
        if key not in values:
            raise _refuse(name, number, (f"{check} needs {key!r}", f"{check} 缺少 {key!r}"), ", ".join(keys))
    shown = ", ".join(f"{key}: {_word(value)}" for key, value in entry.items() if key != "check")
    source = Source(name, number, f"{check} {{{shown}}}"[:300])
    if check == "gpu":
        digits = str(values.get("count", "") or "0")
        values["count"] = int(digits) if digits.isdigit() and len(digits) < 7 else 0
    if check == "setting":
        values["key"], values["value"] = split_setting(values["name"])
    fact: Fact = cls(source=source, **values)
    return fact
