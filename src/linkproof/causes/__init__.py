"""What can be wrong: one cause = one .py and its pages (<id>.md English, <id>.zh.md Chinese) side by side. Facts in, signs out.

A cause is a module of this folder with

    CLASS: str       fabric | comm_software | host_config | network | not_comm
    PRIOR: float     log of how common it is among failures that reach us, before any evidence (about -5 .. -2.5)
    weigh(f: Reading) -> Iterator[Sign | NotChecked]

A sign's weight is the natural log of how much more often the fact stands beside this cause than beside the others: 0.7 doubles the
odds, 2.3 makes them ten to one, 4.6 a hundred to one. Rooms are walked: a new cause is a new file and its two pages, no list is edited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import NamedTuple

from linkproof.causes.reading import Reading
from linkproof.model import NotChecked, Sign

CLASSES = ("fabric", "comm_software", "host_config", "network", "not_comm")
_NOT_CAUSES = ("reading", "family", "pages")


class Cause(NamedTuple):
    id: str
    cls: str
    prior: float
    weigh: Callable[[Reading], Iterator[Sign | NotChecked]]


@cache
def causes() -> tuple[Cause, ...]:
    """All causes of this folder, by id."""
    found = []
    for info in iter_modules(__path__):
        if info.name not in _NOT_CAUSES:
            module = import_module(f"{__name__}.{info.name}")
            found.append(Cause(info.name, module.CLASS, module.PRIOR, module.weigh))
    return tuple(found)
