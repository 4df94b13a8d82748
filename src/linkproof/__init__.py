"""linkproof: can the GPUs of this machine pass data to each other, and if not, why?

`import linkproof` loads neither torch nor rich; `linkproof.explain` is loaded when it is first asked for.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["__version__", "explain"]

if TYPE_CHECKING:
    from linkproof.explain import explain


def __getattr__(name: str) -> object:
    if name == "explain":
        from linkproof.explain import explain

        return explain
    raise AttributeError(f"module 'linkproof' has no attribute {name!r}")
