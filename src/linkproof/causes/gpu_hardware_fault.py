"""One card is bad (ECC, power)."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import Gpu, KernelLog, NotChecked, Sign

CLASS = "not_comm"
PRIOR = -4.6
# NVIDIA's Xid table: 48 double-bit ECC, 61/62 microcontroller, 63/64 row remap, 92 high single-bit rate, 94/95 contained/uncontained ECC,
# 110 security fault, 140 unrecovered ECC, 171/172 (Blackwell) memory
_ECC_XIDS = ("48", "63", "64", "92", "94", "95", "140", "160", "161", "171", "172")
_CHIP_XIDS = ("61", "62", "110", "136")


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if xid := f.xid(*_ECC_XIDS):
        yield pro(6.0, "Xid {xid}: memory errors of one card", xid, decisive=True, xid=xid.value, stands=True)
    if ecc := f.first(Gpu, fact="ecc_errors") or f.event("ecc_error"):
        yield pro(5.0, "one card counts memory errors ({value})", ecc, value=ecc.value or "?", stands=True)
    if chip := f.xid(*_CHIP_XIDS):
        yield pro(3.5, "Xid {xid}: the card's own controller failed", chip, xid=chip.value)
    if fell := f.xid("79") or f.event("gpu_fell_off"):
        yield pro(2.6, "the GPU fell off the bus (Xid 79)", fell)
    if init := f.event("nvrm_init_failed"):
        yield pro(2.0, "the driver could not start a card", init)
    if ring := f.event("gpu_ring_timeout"):
        yield pro(1.5, "a ring of the card timed out ({value})", ring, value=ring.value)
    if power := f.event("power_event"):
        yield pro(3.0, "power or heat of one card", power)
    if uncorrectable := f.cuda_error(214):
        yield pro(5.5, "CUDA reports an uncorrectable memory error", uncorrectable)
    if swap := f.setting("swap_card", "cured", "changed"):
        yield pro(3.0, "the failure follows the card", swap)
    if f.single_bad and f.single_bad.gpus and not f.input("dtype"):
        yield pro(1.5, "one card fails by itself ({gpus})", f.single_bad, gpus=f.single_bad.gpus)
    if f.self_copy_bad:
        yield pro(4.5, "data that a card sends to itself arrive wrong: no link is in use there", f.self_copy_bad)
    if (control := f.pairs("control_one_gpu")) and control.follows:
        yield pro(4.0, "only with {where} the way through host memory fails as well", control, where=control.where)
    elif (one := f.pairs("one_gpu", "wrong")) and one.follows:
        yield pro(2.0, "only pairs of {where} fail", one, where=one.where)
        if (bits := f.pairs("bits")) and bits.all_failing:
            yield pro(2.0, "single bits are flipped; a link would notice that, memory without ECC does not", bits)
    if (counted := f.pairs("counted")) and counted.all_failing:
        yield con(2.0, "the link of the pairs that fail counts errors", counted)
    if fatal := f.first(KernelLog, fact="aer_fatal"):
        yield con(1.0, "fatal PCIe errors name the link", fatal)
    if gsp := f.xid("119", "120"):
        yield con(1.5, "Xid {xid} is the firmware processor's", gsp, xid=gsp.value)
