"""The PCIe link of one device fails."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import Gpu, KernelLog, NotChecked, Sign

CLASS = "fabric"
PRIOR = -4.8


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    fatal = f.first(KernelLog, fact="aer_fatal")
    fell = f.event("gpu_fell_off") or f.xid("79")
    corrected = f.first(KernelLog, fact="aer_corrected")
    if fatal:
        yield pro(5.5, "a fatal PCIe error was logged", fatal, decisive=True, stands=True)
    if fell and (fatal or corrected):
        yield pro(3.0, "the GPU fell off the bus after PCIe errors", fell)
    elif fell:
        yield pro(4.2, "the GPU fell off the bus (Xid 79)", fell, stands=True)
    if down := f.first(KernelLog, fact="link_down"):
        yield pro(4.0, "a PCIe link went down", down, stands=True)
    if corrected and not fatal:
        if fell or f.hang or f.split_bad or f.peer_copy_bad:
            yield pro(1.3, "corrected PCIe errors were logged: the link repeats packets", corrected)
        else:
            yield pro(0.5, "corrected PCIe errors were logged: the link repeats packets", corrected)
    if narrow := f.event("link_downgraded"):
        yield pro(1.5, "a link runs below its width: {value}", narrow, value=narrow.value, stands=True)
    if payload := f.event("payload_mismatch"):
        yield pro(
            2.0,
            "ports on one path are set to different payload sizes ({value}): larger packets are malformed there",
            payload,
            value=payload.value,
            stands=True,
        )
    if replays := f.event("pcie_replays"):
        yield pro(1.0, "a card had to repeat many packets ({value})", replays, value=replays.value)
    if (pairs := f.pattern("only_some_pairs")) and f.setting("p2p_off", "cured"):
        yield pro(1.2, "one pair fails, and only over its direct path", pairs)
    if (counted := f.pairs("counted")) and counted.all_failing:
        weight = 3.5 if counted.follows else 2.0
        yield pro(weight, "a device on the way of every pair that fails counted link errors during the traffic", counted, stands=True)
    if (lanes := f.pairs("narrow")) and lanes.follows:
        yield pro(2.5, "every pair that fails has a link that lost lanes on its way, and no pair that passes has one", lanes)
    if (loaded := f.pairs("under_load", "wrong")) and loaded.all_failing:
        yield pro(1.8, "alone every pair is right, and under load some fail", loaded)
    if (one := f.pairs("one_gpu") or f.pairs("one_pair")) and one.follows:
        yield pro(2.0, "only pairs of {where} fail", one, where=one.where)
    if f.self_copy_bad:
        yield con(3.0, "it fails on one GPU too: no link is in use there", f.self_copy_bad)
    if moved := f.setting("swap_card", "cured", "changed"):
        yield pro(2.0, "moving the card changed it", moved)
    if ecc := f.first(Gpu, fact="ecc_errors"):
        yield con(1.5, "one card counts memory errors: the card rather than its link", ecc)
    if f.io_page_fault:
        yield con(2.0, "a page fault of the GPU names the IOMMU", f.io_page_fault)
