"""NCCL settings from the environment or a configuration file are harmful."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import IbError, NcclWarn, NotChecked, Setting, Sign, Stage

CLASS = "comm_software"
PRIOR = -4.8
# A value beyond which the setting harms whatever the machine: source, NCCL's documentation of each variable.
_LARGE = {
    "NCCL_BUFFSIZE": 64 * 2**20,
    "NCCL_P2P_NET_CHUNKSIZE": 8 * 2**20,
    "NCCL_MAX_NCHANNELS": 64,
    "NCCL_MIN_NCHANNELS": 64,
    "NCCL_NSOCKS_PERTHREAD": 16,
}
# Undocumented or debugging switches that belong to no production setting.
_LEFTOVER = (
    "NCCL_IB_USE_INLINE", "NCCL_IB_PREPOST_RECEIVE_WORK_REQUESTS", "NCCL_IGNORE_DISABLED_P2P", "NCCL_IB_MERGE_VFS", "NCCL_GRAPH_FILE", "NCCL_TOPO_FILE",
    "NCCL_IB_AR_THRESHOLD", "NCCL_LL_BUFFSIZE", "NCCL_LL128_BUFFSIZE", "NCCL_CROSS_NIC", "NCCL_NET_OVERHEAD", "NCCL_LAUNCH_MODE", "NCCL_CHECKS_DISABLE",
)  # fmt: skip

# Switches that change how data is moved, off by default, and that fail or corrupt on some machines.
_RISKY = ("NCCL_P2P_USE_CUDA_MEMCPY", "NCCL_SHM_USE_CUDA_MEMCPY", "NCCL_P2P_READ_ENABLE", "NCCL_P2P_DIRECT_DISABLE")


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    trouble = f.first(Stage) or f.collective_bad() or f.event("nccl_error", "collective_timeout") or f.first(IbError) or f.split_bad
    if gone := f.setting("env_removed", "cured", "changed"):
        yield pro(6.0, "taking {name} away ended it", gone, name=gone.name)
    planned = next((w for w in f.all(NcclWarn) if w.where.startswith("graph/")), None)
    file = f.setting_key("NCCL_GRAPH_FILE", "NCCL_TOPO_FILE")
    bad_xml = (
        planned
        if planned and (planned.where.startswith("graph/xml") or "XML" in planned.message or "Attribute" in planned.message)
        else None
    )
    if bad_xml and not file:
        yield pro(2.3, "NCCL cannot read its topology or graph: from a file that it was given, or from this platform", bad_xml)
    if planned and file:
        yield pro(4.0, "NCCL stops while it reads its plan, and {name} gives it one", planned, name=file.key)
    for setting in f.all(Setting):
        if setting.effect != "present" or not trouble:
            continue
        limit = _LARGE.get(setting.key)
        if limit is not None and setting.value.isdigit() and len(setting.value) < 16 and int(setting.value) >= limit:
            yield pro(
                4.5, "{name} is far beyond what helps, and its buffers are registered per channel", setting, name=setting.name, stands=True
            )
        elif setting.key in _RISKY and setting.value not in ("0", ""):
            yield pro(
                3.3, "{name} moves data in a way that is off by default and fails on some machines", setting, name=setting.name, stands=True
            )
        elif setting.key in _LEFTOVER:
            yield pro(1.6, "{name} is set: a leftover of tuning or debugging", setting, name=setting.name)
    set_, worse = (next((s for s in f.all(Setting, key="NCCL_PROTO", effect=e)), None) for e in ("present", "worse"))
    if set_ and worse and worse.value in set_.value.split(",") and not set_.value.startswith("^"):
        yield pro(7.5, "{name} is set, and NCCL measured with it is wrong, without it right", worse, name=set_.name, stands=True)
    if forced := f.setting("p2p_forced", "present"):
        yield pro(1.0, "peer access was forced on ({name})", forced, name=forced.name, stands=True)
    reg = f.first(IbError, call=("reg_dmabuf_mr", "reg_mr"))
    if reg and "emory" in reg.errno:
        yield pro(2.3 if reg.call == "reg_dmabuf_mr" else 0.8, "registering memory failed: buffers too large or a limit too low", reg)
    if (hosts := f.ranks("hosts_differ")) and any(w in hosts.detail.lower() for w in ("env", "nccl", "setting", "conf")):
        yield pro(3.0, "settings differ between hosts ({detail})", hosts, detail=hosts.detail)
    if f.io_page_fault:
        yield con(3.0, "a page fault of the GPU names the IOMMU", f.io_page_fault)
