"""Allocator memory that CUDA IPC cannot export is handed to an engine's own all-reduce."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import NotChecked, Sign, Stage

CLASS = "comm_software"
PRIOR = -5.5


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    on = f.setting("expandable", "present")
    error = f.event("custom_ar_cuda_error")
    if gone := f.setting("expandable", "cured"):
        yield pro(6.0, "without expandable segments it runs", gone, decisive=True)
    elif f.setting("expandable", "no_effect"):
        same = f.setting("expandable", "no_effect")
        if same:
            yield con(4.0, "it fails without expandable segments as well", same)
    if on and "false" in on.value.lower():
        yield con(3.0, "expandable segments are off", on)
    elif on:
        yield pro(4.0 if error or f.event("cuda_ipc_failed") else 2.0, "the allocator uses expandable segments", on)
    if error and ("invalid argument" in error.value or error.value == "1"):
        yield pro(3.0, "the engine's own all-reduce fails with `invalid argument` where it exports memory", error)
    if ipc := f.event("cuda_ipc_failed"):
        yield pro(1.5, "a CUDA IPC handle could not be made or opened", ipc)
    if (captured := f.event("graph_capture") or f.first(Stage, at="graph_capture")) and (error or on):
        yield pro(0.7, "it stops where graph buffers are shared with the peers", captured)
    if off := f.setting("custom_ar_off", "cured"):
        yield pro(1.0, "switching the engine's own all-reduce off ended it", off)
    if f.cuda_error(217):
        refused = f.cuda_error(217)
        if refused:
            yield con(3.0, "CUDA says that these devices cannot access each other", refused)
