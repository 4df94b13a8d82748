"""linkproof: can the GPUs of this machine pass data to each other, and if not, why?

    check()         sends data between the GPUs, verifies every byte, names the cause
    explain(texts)  names the cause from logs
    guard(model)    keeps a model that is split over GPUs right
    verify(model)   the same prompts on one device and split over several

`import linkproof` loads neither torch nor rich; each of these loads what it needs when it is first used.
"""

from typing import TYPE_CHECKING

from linkproof.version import __version__

__all__ = ["__version__", "check", "explain", "guard", "verify"]

if TYPE_CHECKING:
    from linkproof.explaining import explain
    from linkproof.guard.watch import guard
    from linkproof.probing import check_machine as check
    from linkproof.verify.run import verify


def __getattr__(name: str) -> object:
    if name == "check":
        from linkproof.probing import check_machine

        return check_machine
    if name == "explain":
        from linkproof.explaining import explain

        return explain
    if name == "guard":
        import linkproof.guard as guard  # modules that can be called

        return guard
    if name == "verify":
        import linkproof.verify as verify

        return verify
    raise AttributeError(f"module 'linkproof' has no attribute {name!r}")
