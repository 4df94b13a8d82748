"""/dev/shm is smaller than the ranks need."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import Collective, Fact, IbError, NotChecked, Platform, Sign, Stage

CLASS = "host_config"
PRIOR = -3.5


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    made, space = f.event("shm_create_failed"), f.event("shm_extend_failed", "shm_no_space", "out_of_shm")
    if space:
        yield pro(6.0, "shared memory ran out of space", space, decisive=True)
    if made:
        yield pro(5.0, "NCCL could not create a shared-memory segment ({size} bytes)", made, size=made.value or "?")
    size = f.host_number("shm_bytes")
    trouble: Fact | None = (
        made or space or f.event("bus_error", "nccl_error", "shm_attach_failed") or f.first(Stage, at=("nccl_init", "first_collective"))
    )
    fails = next((c for c in f.all(Collective, transport="shm", result=("error", "hang"))), None)
    others = f.first(Collective, transport=("p2p", "net"), result="ok")
    if fails and others:
        yield pro(2.5, "NCCL fails through shared memory ({result}) and is right over another transport", fails, result=fails.result)
    trouble = trouble or fails
    if size and size[0] <= 256 * 2**20:
        yield pro(3.5 if trouble else 1.0, "/dev/shm has {value} bytes", size[1], value=size[1].value, stands=True)
    elif size and size[0] >= 2**30:
        yield con(4.5, "/dev/shm has {value} bytes: enough", size[1], value=size[1].value)
    if bus := f.event("bus_error"):
        yield pro(4.2 if f.boxed else 3.0, "a bus error: a page of a shared segment could not be backed", bus)
    elsewhere = f.first(IbError) or f.event("nccl_socket_failed", "nccl_no_interface", "shm_attach_failed", "gloo_failed")
    if (system := f.event("nccl_error", value="system")) and not (made or space or elsewhere):
        yield pro(3.3 if f.boxed else 2.0, "NCCL reports a system error and names no network call", system)
    if f.boxed and trouble and not size:
        small = "no shm" in f.boxed.note.lower() or "without a shm" in f.boxed.note.lower() or "without shm" in f.boxed.note.lower()
        yield pro(2.2 if small else 0.8, "a container gets 64 MiB of /dev/shm unless told otherwise", f.boxed)
    if grown := f.setting("shm_size", "cured"):
        yield pro(6.0, "more shared memory ended it", grown, decisive=True)
    elif same := f.setting("shm_size", "no_effect"):
        yield con(3.5, "more shared memory changed nothing", same)
    if attach := f.event("shm_attach_failed"):
        yield con(2.0, "attaching failed, not creating: the segment is there", attach)
    if f.event("cumem_host_failed") or f.host("numa_asymmetric"):
        cumem = f.event("cumem_host_failed") or f.host("numa_asymmetric")
        if cumem and not space:
            yield con(1.5, "NCCL's cuMem host memory explains it", cumem)
    if f.first(Platform, kind="sandbox"):
        sandbox = f.first(Platform, kind="sandbox")
        if sandbox and not space and not made:
            yield con(1.5, "a sandbox fails in other ways", sandbox)
    if (libvgpu := f.event("libvgpu") or f.host("ld_preload")) and not space and not made:
        yield con(1.5, "a GPU-sharing library stands in between", libvgpu)
    if not size and (made or f.event("bus_error", "nccl_error")):
        yield NotChecked("shm_too_small", "the size of /dev/shm inside the container is not known", do="df -h /dev/shm")
