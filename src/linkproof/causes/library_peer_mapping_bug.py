"""A program lets a peer touch memory that it never mapped for that peer."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import WRONG_DATA, Reading
from linkproof.model import Copy, ModelRun, NotChecked, Sign

CLASS = "comm_software"
PRIOR = -5.0


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    crash = f.first(ModelRun, split=("pipeline", "tensor", "data"), result="crash")
    illegal = f.cuda_error(700) or f.cuda_error(719) or f.xid("31")
    if illegal and (crash or f.split_bad) and not f.single_bad:
        yield pro(2.0, "an invalid address, and only with several GPUs", illegal)
    if state := f.cuda_error(704, 705):
        yield pro(
            4.0, "the program switches peer access on or off that it never had, or has already (error {code})", state, code=str(state.code)
        )
    if far := f.event("sanitizer_far"):
        yield pro(4.5, "the address lies {value} bytes away from any allocation: it was never mapped for this GPU", far, value=far.value)
    if crash and f.one_model_only and f.split_ok:
        yield pro(3.3, "one model crashes over several GPUs while another runs over the same links", crash)
    elif crash and f.one_model_only:
        yield pro(1.5, "one model crashes over several GPUs", crash)
    if copy := f.first(Copy, result="ok"):
        yield pro(0.7, "copies between the GPUs are right", copy)
    changed = f.first_changed_library
    if changed and (illegal or crash):
        yield pro(1.5, "it began with another version of the program", changed)
    if back := f.setting("library", "cured"):
        yield pro(1.5, "another version of the program ended it", back)
    if off := f.setting("p2p_off", "cured"):
        yield con(0.5, "switching peer traffic off ended it: mapping or path", off)
    bad = f.peer_copy_bad
    if bad and bad.result in WRONG_DATA:
        yield con(3.5, "plain copies between the GPUs are wrong too", bad)
    if two := f.event("two_devices"):
        yield con(3.0, "torch refused to mix devices: nothing was touched", two)
    if f.io_page_fault:
        yield con(4.0, "a page fault of the GPU names the IOMMU", f.io_page_fault)
    if f.single_bad:
        yield con(3.0, "it fails on one GPU too: no link is in use there", f.single_bad)
