"""One rank ran out of host or GPU memory, the others wait."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import NotChecked, Sign

CLASS = "not_comm"
PRIOR = -4.0


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    oom = next((e for e in f.events("host_oom") if e.value != "possible"), None) or f.host("oom_kill")
    maybe = f.event("host_oom", value="possible")
    if maybe and not oom:
        yield pro(3.2, "a worker is gone, and lack of memory is the first of the usual reasons", maybe)
    if oom:
        yield pro(6.0, "a process was killed for lack of host memory", oom, decisive=True)
    killed = f.event("killed")
    if killed and not oom:
        yield pro(4.2, "a process was killed (SIGKILL): most often for lack of memory", killed)
    if gpu := f.event("cuda_oom"):
        yield pro(5.0, "a rank ran out of GPU memory", gpu)
    if died := f.ranks("one_rank_died"):
        by_kill = any(w in died.detail for w in ("-9", "137", "SIGKILL", "oom", "OOM", "memory"))
        yield pro(4.5 if by_kill else 3.0, "one rank died before the others stopped ({detail})", died, detail=died.detail or "?")
    if (late := f.event("collective_timeout", "heartbeat_timeout")) and (oom or killed or f.event("cuda_oom")):
        yield pro(0.7, "the time-out of the others is an echo", late)
    if (actor := f.event("ray_actor_died")) and not oom:
        yield pro(1.5, "a Ray actor died", actor)
    if less := f.setting("mem_less", "cured"):
        yield pro(3.5, "asking for less memory ended it", less)
    if segv := f.event("segfault"):
        yield con(0.7, "a process ended by a fault of its own, not for memory", segv)
    if (bus := f.event("bus_error")) and not oom:
        yield con(1.5, "a bus error: a page of a shared segment could not be backed", bus)
