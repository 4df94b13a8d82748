"""The guard inside the user's model: every tensor that goes from GPU to GPU is compared at both ends, and right tokens are released only.

    linkproof.guard(model)                       from now on; `.remove()` ends it
    with linkproof.guard(model, mode="strict"):  for a while; also covers copies that the caller's own code makes in there

    watch.py      Guard: what stands around the model's forward and generate
    session.py    one thread's hops: carry, mend                     hops.py     one hop, and what is remembered of it
    shared.py     copies that others may have, too                   ears.py     where torch and accelerate are listened to
    ends.py       both ends of hops, compared                        layout.py   how such hops are read, worked out once
    reader.py     digests, on a GPU by digest_kernel.py
    undo.py       what a forward changes, put back                   copies.py   how a tensor gets to another GPU
    policy.py     modes, policies, events, LinkFault (no torch)      digest.py   the number of a tensor's bits
    metrics.py    counts (no torch)                                  classify.py what is wrong with the bytes

    ranks/        layers that are split over ranks (tensor parallel), each rank calling `linkproof.guard(model)`

This package can be called, so `linkproof.guard` is the function whatever was imported first; only the call loads torch.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linkproof.guard.watch import guard as guard

__all__ = ["guard"]


def __getattr__(name: str) -> Any:
    if name == "guard":
        from linkproof.guard.watch import guard

        return guard
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from linkproof.guard.watch import guard

        return guard(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
