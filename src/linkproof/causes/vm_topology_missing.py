"""A guest hides the PCIe tree, so NCCL plans badly."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import Collective, ModelRun, NotChecked, Sign, Topo

CLASS = "host_config"
PRIOR = -4.8


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    flat = f.event("nccl_topo_flat")
    slow = f.first(Collective, result="slow") or f.first(ModelRun, result="slow")
    if flat:
        yield pro(4.0, "the topology shows GPUs directly below the CPU, without links: a guest hides the tree", flat)
    if f.guest and slow:
        yield pro(2.3, "a guest, and everything is right but slow", slow)
    if f.guest and (gdr := f.event("gdr_off")):
        yield pro(2.0, "NCCL takes GPU and network card for too far apart, in a guest", gdr)
    if flat and slow:
        yield pro(1.0, "it is slow and nothing says that it is wrong", slow)
    bad = f.split_bad or f.peer_copy_bad or f.collective_bad()
    if bad:
        yield con(3.0, "something is wrong, not only slow ({result})", bad, result=bad.result)
    if (joined := f.first(Topo, path="NV", pairs="all")) and not slow:
        yield con(2.0, "NVLink joins all GPUs, and nothing is said to be slow: between them nothing takes the hidden tree", joined)
    if f.hw_denies_peer and f.guest:
        yield con(1.5, "peer access is refused inside the guest", f.hw_denies_peer)
    if tree := f.event("nccl_topo_tree"):
        yield con(2.5, "the topology dump shows bridges and links", tree)
