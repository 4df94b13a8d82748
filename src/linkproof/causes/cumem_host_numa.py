"""NCCL's host memory through the CUDA virtual memory API fails, or differs between ranks."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import Collective, CudaError, NotChecked, Platform, Sign, Stage

CLASS = "comm_software"
PRIOR = -5.2


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    number, said = f.nccl
    if attach := f.event("shm_attach_failed"):
        yield pro(4.2, "attaching to a segment fails: it exists, and this rank cannot map it", attach)
    if failed := f.event("cumem_host_failed"):
        yield pro(4.0, "NCCL says that cuMem host memory does not work", failed)
    if failing := next((e for e in f.all(CudaError) if "transport/shm" in e.where), None):
        yield pro(
            4.5,
            "a CUDA call fails in NCCL's shared-memory transport, which touches CUDA only for cuMem ({name})",
            failing,
            name=failing.name,
        )
    fails = f.first(Collective, transport="shm", result=("error", "hang"))
    others = f.first(Collective, transport=("p2p", "net"), result="ok")
    if fails and others:
        yield pro(2.5, "NCCL fails through shared memory ({result}) and is right over another transport", fails, result=fails.result)
    if numa := f.host("numa_asymmetric"):
        yield pro(3.0, "NUMA nodes or CPUs differ between ranks", numa)
    if denied := f.event("numa_policy_denied"):
        yield pro(2.5, "the container refuses memory policies", denied)
    stuck = f.first(Stage, at=("nccl_init", "first_collective"))
    sandbox = f.first(Platform, kind="sandbox")
    if sandbox and stuck:
        yield pro(4.0, "a sandbox stands between NCCL and the driver's memory calls", sandbox)
    if off := f.setting("cumem_host_off", "cured"):
        yield pro(6.5, "NCCL_CUMEM_HOST_ENABLE=0 ended it", off, decisive=True)
    elif same := f.setting("cumem_host_off", "no_effect"):
        yield con(4.0, "NCCL_CUMEM_HOST_ENABLE=0 changed nothing", same)
    if shm := f.setting("shm_off", "cured"):
        yield pro(2.5 if not f.setting("p2p_off", "cured") else 0.5, "without NCCL's shared-memory transport it runs", shm)
    if number and number < (2, 23) and said:
        yield con(4.0, "NCCL {version} does not use cuMem for host memory", said, version=said.nccl)
    elif number and said and (attach or failed or sandbox or numa):
        yield pro(0.7, "NCCL {version} uses cuMem for host memory by default", said, version=said.nccl)
    if full := f.event("shm_extend_failed", "shm_no_space"):
        yield con(4.0, "/dev/shm ran out of space", full)
    if (size := f.host_number("shm_bytes")) and size[0] <= 128 * 2**20 and not attach:
        yield con(1.5, "/dev/shm has {value} bytes", size[1], value=size[1].value)
