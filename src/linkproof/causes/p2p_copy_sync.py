"""Copies between GPUs run in the wrong order (host-staged next to direct)."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import WRONG_DATA, Reading
from linkproof.model import Copy, NotChecked, Sign

CLASS = "comm_software"
PRIOR = -5.0


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    run = f.split_bad
    silent = run if run and run.split == "pipeline" and run.result in ("garbage", "wrong", "nan") else None
    if silent and f.hw_denies_peer and f.single_ok:
        yield pro(5.0, "there is no peer access, so copies are staged, and layers over several GPUs are wrong", silent)
    elif silent and f.hw_denies_peer:
        yield pro(3.0, "there is no peer access, so copies are staged, and layers over several GPUs are wrong", silent)
    if chain := f.first(Copy, via="chain", result=(*WRONG_DATA, "hang")):
        yield pro(6.5, "every single copy is right and a chain of copies is wrong", chain)
    elif right := f.first(Copy, via="chain", result="ok"):
        yield con(3.0, "chains of copies, staged next to direct, are right", right)
    if silent and f.peer_copy_ok:
        yield pro(3.5, "every single copy is right and a chain of copies is wrong", silent)
    if sync := f.setting("sync", "cured") or f.setting("launch_blocking", "cured"):
        yield pro(5.0, "waiting after each step ended it", sync)
    more = f.pattern("from_ranks")
    if silent and more and f.split_ok:
        yield pro(1.0, "two GPUs are right and a chain of three is not", more)
    if silent and f.pattern("intermittent"):
        yield pro(0.8, "it comes and goes", silent)
    bad = f.peer_copy_bad
    if bad and bad.result in WRONG_DATA:
        yield con(3.0, "a single copy is wrong already", bad)
    if f.io_page_fault:
        yield con(4.0, "a page fault of the GPU names the IOMMU", f.io_page_fault)
    if f.single_bad:
        yield con(3.0, "it fails on one GPU too: no link is in use there", f.single_bad)
    if f.one_model_only:
        yield con(1.5, "one model fails, others are right over the same links", f.one_model_only)
