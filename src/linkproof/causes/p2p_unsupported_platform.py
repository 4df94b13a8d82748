"""The cards or the route between them offer no peer path, or cannot carry one that was forced."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, peer_path_bad, peer_path_fine, pro
from linkproof.causes.reading import Reading
from linkproof.model import Collective, CudaError, NotChecked, PeerAccess, Sign

CLASS = "fabric"
PRIOR = -4.3


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    yield from peer_path_bad(f, 0.6)
    yield from peer_path_fine(f, 0.7)
    denied = f.hw_denies_peer
    e217 = next(
        (e for e in f.all(CudaError, code=217) if "shm" not in e.where), None
    )  # in NCCL's shared-memory transport it is cumem_host_numa
    engine = f.event("custom_ar_cuda_error")
    if e217 and not engine:
        yield pro(5.5, "CUDA says that these devices cannot access each other", e217, decisive=True)
    elif denied:
        status = denied.status if isinstance(denied, PeerAccess) else ""
        yield pro(2.8, "the driver says that there is no peer access {status}", denied, status=status)
    elif engine and e217:
        yield pro(2.5, "CUDA says that these devices cannot access each other", e217)
    if many := f.cuda_error(711, 60):
        yield pro(6.0, "a card has no room for more peers: eight at most where no NVSwitch joins them", many, decisive=True)
    if bridge := f.event("p2p_bridge_not_allowed"):
        yield pro(4.5, "the kernel says that this host bridge is not allowed for peer DMA", bridge, decisive=True)
    if forced := f.setting("p2p_forced", "present") or f.setting("p2p_forced", "worse"):
        yield pro(1.5, "peer access was forced on ({name})", forced, name=forced.name)
    if f.hw_claims_peer:
        yield con(2.0, "peer access is claimed here; that it fails is another matter", f.hw_claims_peer)
    slow = f.first(Collective, result="slow")
    if denied and slow and f.guest:
        yield con(0.8, "a guest: the refusal is the hypervisor's, not the cards'", f.guest)
    if denied and (wrong := f.split_bad) and wrong.result in ("garbage", "wrong", "nan"):
        yield con(1.5, "without peer access nothing crosses directly; wrong data must come from elsewhere", wrong)
    if f.io_page_fault:
        yield con(2.5, "a page fault of the GPU names the IOMMU", f.io_page_fault)
    if f.amd and not denied:
        yield con(1.0, "AMD cards: see rocm_p2p_copy_broken", f.amd)
