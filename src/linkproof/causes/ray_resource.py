"""Ray cannot place or start workers."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import NotChecked, Sign, Stage

CLASS = "host_config"
PRIOR = -4.8


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    stage = f.first(Stage, at="ray_start")
    if stage:
        yield pro(5.5, "it stops where Ray starts, before any GPU traffic", stage)
    if reg := f.event("ray_register_failed"):
        yield pro(5.0, "a Ray worker could not register", reg)
    if none := f.event("ray_no_resources"):
        yield pro(6.0, "Ray cannot place its workers: {value}", none, value=none.value or "?")
    thread = f.event("thread_create_failed")
    if thread and (reg or f.event("ray_started")):
        yield pro(2.5, "no more threads or processes may be made", thread)
    if held := f.host("gpu_reserved"):
        yield pro(3.5, "the GPU is held by the driver process of Ray", held)
    cpus = f.host_number("cpu_count")
    if cpus and cpus[0] >= 64 and (stage or reg or f.event("ray_started")):
        yield pro(1.0, "Ray starts one worker per CPU: {value}", cpus[1], value=cpus[1].value)
    if (limit := f.host("cpu_limit")) and (stage or f.event("ray_started")):
        yield pro(1.5, "the container's CPU limit", limit)
    if ray := f.event("ray_started"):
        if not stage and f.hang:
            yield pro(0.7, "Ray is in use", ray)
        if f.event("nccl_rings_connected"):
            done = f.event("nccl_rings_connected")
            if done:
                yield con(3.0, "NCCL had connected its ranks: Ray was long done", done)
