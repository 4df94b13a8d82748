"""One GPU driver version offers or performs peer access wrongly."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, peer_path_bad, peer_path_fine, pro, wrong_data_fact
from linkproof.causes.reading import Reading
from linkproof.model import NotChecked, Sign

CLASS = "fabric"
PRIOR = -4.5


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    yield from peer_path_bad(f, 0.9)
    yield from peer_path_fine(f)
    number, said = f.driver
    if changed := f.changed_driver:
        weight = 3.0 if f.setting("custom_ar_off", "cured") or f.split_bad or f.peer_copy_bad else 1.5
        yield pro(weight, "the driver was changed just before it began", changed)
    if back := f.setting("driver", "cured"):
        yield pro(5.0, "another driver version ended it", back)
    elif same := f.setting("driver", "no_effect"):
        yield con(2.5, "another driver version changed nothing", same)
    ada = f.gpu_named("rtx 40", "4090", "4080", "4070")
    if ada and number and number < (535,) and wrong_data_fact(f):
        yield pro(
            3.0,
            "driver {driver} offers peer access on RTX 40 cards that cannot do it (mended from 535 on)",
            said or ada,
            driver=said.driver if said else "",
        )
    elif ada and f.hw_claims_peer and not f.first_patched and wrong_data_fact(f):
        yield pro(2.0, "peer access is claimed on RTX 40 cards, which have none over PCIe with the stock driver", f.hw_claims_peer)
    elif ada and not number and f.peer_copy_bad and f.peer_copy_bad.result in ("zeros", "wrong", "stale"):
        yield pro(1.5, "RTX 40 cards: early drivers offered peer access that these cards do not have", ada)
    if f.geforce and number[:1] == (545,) and wrong_data_fact(f):
        yield pro(2.3, "driver 545 is known for wrong peer copies on GeForce cards", said or f.geforce)
    elif f.geforce and not ada and wrong_data_fact(f) and not f.iommu_unset and not f.iommu_translating:
        yield pro(0.7, "on GeForce cards peer access hangs on what the driver offers", f.geforce)
    if (mirror := f.pairs("mirror")) and mirror.all_failing:
        yield pro(2.5, "the writer reads its own bytes back and the owner does not have them: the driver mapped something else", mirror)
    elif (stores := f.pairs("stores_only")) and stores.all_failing and not f.first_patched:
        yield pro(2.0, "copies pass and a kernel's own stores or loads are lost: the mapping of this driver is incomplete", stores)
    if f.io_page_fault:
        yield con(2.5, "the IOMMU's page fault explains it without the driver", f.io_page_fault)
    if f.iommu_translating:
        yield con(1.0, "the IOMMU's mode explains it without the driver", f.iommu_translating)
    if f.amd:
        yield con(2.5, "AMD cards: see rocm_p2p_copy_broken", f.amd)
    if not number:
        yield NotChecked("p2p_driver_bug", "the driver version is not known", do="nvidia-smi --query-gpu=name,driver_version --format=csv")
