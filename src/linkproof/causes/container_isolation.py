"""Each container sees only its own GPU, so peers cannot be mapped."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import WRONG_DATA, Reading
from linkproof.model import Copy, Gpu, NcclPath, NotChecked, Setting, Sign

CLASS = "host_config"
PRIOR = -5.0


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if alone := f.first(Gpu, fact="one_per_container"):
        yield pro(6.0, "each container sees one GPU", alone, stands=True)
        if f.boxed:
            yield pro(0.5, "it runs in a container", f.boxed)
    shown = {s.value: s for s in f.all(Setting) if s.key == "NVIDIA_VISIBLE_DEVICES" and s.value.isdigit()}
    if len(shown) > 1:
        yield pro(4.5, "containers are given one GPU each ({values})", next(iter(shown.values())), values=", ".join(sorted(shown)[:8]))
    ipc = f.event("cuda_ipc_failed")
    if ipc and f.boxed:
        yield pro(3.0, "CUDA IPC fails between processes in containers", ipc)
    elif ipc:
        yield pro(1.0, "a CUDA IPC handle could not be made or opened", ipc)
    if shared := f.first(Copy, via="ipc", result="error"):
        yield pro(2.0, "memory cannot be shared between the processes", shared)
    net = f.first(NcclPath, transport="NET")
    if net and f.boxed and (nv := f.topo_path("NV", "PIX", "PXB")):
        yield pro(
            2.5, "NCCL goes over the network although {path} joins the GPUs: it takes the ranks for different hosts", net, path=nv.path
        )
    if lost := f.event("nvml_lost"):
        yield pro(4.5, "the container lost its GPU devices (cgroup reload)", lost, stands=True)
    if f.peer_copy_bad and f.peer_copy_bad.result in WRONG_DATA:
        yield con(4.0, "copies are made and are wrong: the peers are mapped", f.peer_copy_bad)
