"""linkproof: can the GPUs of this machine pass data to each other, and if not, why?

`import linkproof` loads neither torch nor rich; `linkproof.explain` and `linkproof.guard` load what they need when they are first used.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["__version__", "explain", "guard"]

if TYPE_CHECKING:
    from linkproof.explain import explain
    from linkproof.guard.watch import guard


def __getattr__(name: str) -> object:
    if name == "explain":
        from linkproof.explain import explain

        globals()["explain"] = explain  # the import above has put the module there
        return explain
    if name == "guard":
        import linkproof.guard as module  # a module that can be called

        return module
    raise AttributeError(f"module 'linkproof' has no attribute {name!r}")
