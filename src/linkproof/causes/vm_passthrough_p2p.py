"""Inside a guest, peer access is refused, or granted and not real."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, peer_path_bad, peer_path_fine, pro
from linkproof.causes.reading import Reading
from linkproof.model import Collective, NotChecked, Sign, Stage

CLASS = "fabric"
PRIOR = -4.2


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    guest = f.guest
    if not guest:
        if legacy := f.event("nccl_legacy_ipc"):
            yield pro(1.5, "CUDA IPC does not work here, as in WSL", legacy)
        return
    yield from peer_path_bad(f, 0.9)
    yield from peer_path_fine(f, 0.8)
    yield pro(1.5, "the machine is a guest ({kind})", guest, kind=guest.kind)
    trouble = f.peer_copy_bad or f.collective_bad() or f.split_bad or f.first(Stage, at=("nccl_init", "first_collective"))
    if guest.kind == "wsl2" and trouble:
        yield pro(2.5, "WSL2 offers no peer access and no CUDA IPC", trouble)
    elif f.hw_denies_peer:
        yield pro(2.3, "peer access is refused inside the guest", f.hw_denies_peer)
    elif f.hw_claims_peer and f.peer_copy_bad:
        yield pro(2.0, "peer access is claimed inside the guest and the data does not arrive", f.peer_copy_bad)
    if (mirror := f.pairs("mirror")) and mirror.all_failing:
        yield pro(2.0, "the writer reads its own bytes back and the owner does not have them: the guest maps another memory", mirror)
    if (slow := f.first(Collective, result="slow")) and f.hw_denies_peer:
        yield pro(0.7, "without peer access every byte goes through the guest's memory", slow)
    if flat := f.event("nccl_topo_flat"):
        yield con(1.5, "the guest hides the PCIe tree: see vm_topology_missing", flat)
    if bare := f.setting("bare_metal", "no_effect"):
        yield con(3.0, "the same cards fail on bare metal too", bare)
    if f.io_page_fault:
        yield con(2.0, "a page fault of the GPU names the IOMMU", f.io_page_fault)
    if f.cuda_error(802) or f.first(Stage, at="cuda_init", code="802"):
        yield con(2.0, "CUDA does not start at all: NVSwitch fabric first", guest)
    if denied := f.event("nvls_bind_failed", "nvls_call_failed"):
        yield con(2.5, "multicast fails, not plain peer access", denied)
    if f.driver and f.event("driver_mismatch"):
        yield con(2.0, "driver and runtime do not fit", guest)
