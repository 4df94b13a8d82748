"""The same prompts on one device and split over several: do the answers agree, and if not, who lied?

    linkproof.verify("qwen3-0.6b", devices="virtual:4")     gives a Verified (linkproof/verified.py)

    run.py        the caller's side: a child process with a deadline, and its facts      child.py    the process that holds the models
    shapes.py     built-in shapes, cut to fit (no torch)     models.py   the host's copy, the reference, the split
    trace.py      both sides on the same tokens, unit by unit     compare.py  how far apart, and what is allowed
    weights.py    digests on every device     watched.py  the hops, named     judge.py    facts -> Verified (no torch)

This package can be called, so `linkproof.verify` is the function whatever was imported first; torch is loaded in the child only.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linkproof.verify.run import verify as verify

__all__ = ["verify"]


def __getattr__(name: str) -> Any:
    if name == "verify":
        from linkproof.verify.run import verify

        return verify
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from linkproof.verify.run import verify

        return verify(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
