"""One rank is busy past the timeout of the others."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import ModelRun, NotChecked, PyError, Sign, Stage, Watchdog

CLASS = "not_comm"
PRIOR = -4.6


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    timeout = f.event("collective_timeout", "heartbeat_timeout") or f.first(Watchdog)
    if late := f.ranks("one_rank_late"):
        # in inference no rank loads data: one that comes late there is stuck in something
        stuck = f.first(ModelRun, split="tensor", result="hang") and not f.event("busy_work")
        yield pro(2.2 if stuck else 5.5, "one rank comes late ({detail})", late, detail=late.detail or "?")
    if timeout:
        dead = f.event("host_oom", "killed", "cuda_oom", "segfault", "gpu_fell_off") or f.ranks("one_rank_died") or f.io_page_fault
        if not dead:
            yield pro(2.2, "a collective was given up after a time-out and no rank died", timeout)
        else:
            yield con(3.5, "a rank died: the others wait for it in vain", dead)
    waiting = f.event("store_timeout")
    busy = f.event("busy_work")
    if busy and (timeout or waiting):
        yield pro(2.5, "long work of one rank (data, loading, saving) stands beside the time-out: {value}", busy, value=busy.value)
    barrier = next(
        (e for e in f.all(PyError) if any(fr.func in ("main_process_first", "barrier", "local_main_process_first") for fr in e.frames)),
        None,
    )
    if waiting and barrier:
        yield pro(2.5, "ranks wait at a barrier for the one that prepares something", barrier)
    elif waiting and busy:
        yield pro(1.0, "ranks wait for each other", waiting)
    if longer := f.setting("timeout", "cured"):
        yield pro(5.0, "a longer time-out ended it", longer)
    elif same := f.setting("timeout", "no_effect"):
        yield con(3.0, "a longer time-out changed nothing", same)
    if (training := f.first(Stage, at="training", result="hang")) and timeout:
        yield pro(0.5, "it stops in training, after many good steps", training)
    if f.ranks("sizes_differ"):
        differ = f.ranks("sizes_differ")
        if differ:
            yield con(2.5, "ranks ask for different things", differ)
    if off := f.setting("p2p_off", "cured"):
        yield con(2.5, "a change of transport ended it", off)
    if f.spinning:
        yield con(0.5, "all GPUs spin", f.spinning)
