"""One rank is busy past the timeout of the others."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import NotChecked, Sign, Stage, Watchdog

CLASS = "not_comm"
PRIOR = -4.6


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    timeout = f.event("collective_timeout", "heartbeat_timeout") or f.first(Watchdog)
    if late := f.ranks("one_rank_late"):
        yield pro(5.5, "one rank comes late ({detail})", late, detail=late.detail or "?")
    if timeout:
        dead = f.event("host_oom", "killed", "cuda_oom", "segfault", "gpu_fell_off") or f.ranks("one_rank_died") or f.io_page_fault
        if not dead:
            yield pro(2.2, "a collective was given up after a time-out and no rank died", timeout)
        else:
            yield con(3.5, "a rank died: the others wait for it in vain", dead)
    if longer := next((s for s, _ in f.settings() if s.effect == "cured" and "timeout" in s.name.lower()), None):
        yield pro(5.0, "a longer time-out ended it", longer)
    elif same := next((s for s, _ in f.settings() if s.effect == "no_effect" and "timeout" in s.name.lower()), None):
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
