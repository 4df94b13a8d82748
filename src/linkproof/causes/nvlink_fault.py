"""A bad NVLink or bridge."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import Gpu, KernelLog, NotChecked, Sign

CLASS = "fabric"
PRIOR = -4.8
# NVIDIA's Xid table: 74 NVLink error; 144-150 NVLink/NVSwitch link events of Blackwell; 137 NVLink FLA privilege; 155 NVLink SW define
_XIDS = ("74", "144", "145", "146", "147", "148", "149", "150", "155")


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if xid := f.xid(*_XIDS):
        yield pro(5.0, "Xid {xid}: an NVLink error", xid, decisive=True, xid=xid.value, stands=True)
    if sxid := f.first(KernelLog, fact="sxid"):
        yield pro(3.5, "the NVSwitch logged an SXid {xid}", sxid, xid=sxid.value, stands=True)
    if errors := f.first(Gpu, fact="nvlink_errors"):
        yield pro(4.0, "a link counts errors or recoveries ({value})", errors, value=errors.value or "?", stands=True)
    if crc := f.first(Gpu, fact="nvlink_crc"):
        yield pro(
            0.7,
            "a link counts checksum errors ({value}): such packets are sent again, and it matters from 100 a second on",
            crc,
            value=crc.value or "?",
        )
    if down := f.event("nvlink_down"):
        yield pro(3.0, "a link is down or inactive: {value}", down, value=down.value, stands=True)
        if uneven := f.pairs("slower_nvlink"):
            yield pro(4.0, "some pairs over NVLink are slower than the others ({where})", uneven, where=uneven.where)
    if slow := f.event("slow_gpu_query"):
        yield pro(
            2.5 if f.topo_path("NV") else 1.0,
            "a query of the driver took {value} s: it waits for something on the card or its links",
            slow,
            value=slow.value,
        )
    if contained := f.event("nvlink_contained") or f.cuda_error(220, 226):
        yield pro(3.5, "CUDA reports a failed access over NVLink", contained)
    if down := f.event("nccl_p2p_nvlink_disabled"):
        yield pro(3.5, "NVLink connects these GPUs and the driver allows no peer access over it", down)
    if (pairs := f.pattern("only_some_pairs")) and (off := f.setting("p2p_off", "cured")):
        yield pro(3.2, "one pair fails, and only over its direct path", pairs)
        yield pro(0.5, "switching peer traffic off ended the failure", off)
    elif pairs and f.topo_path("NV"):
        yield pro(1.5, "only some pairs of NVLink GPUs fail", pairs)
    if (one := f.pairs("one_gpu") or f.pairs("one_pair")) and one.follows and f.topo_path("NV"):
        yield pro(2.0, "only pairs of {where} fail", one, where=one.where)
    if f.single_bad:
        yield con(2.0, "it fails on one GPU too: no link is in use there", f.single_bad)
