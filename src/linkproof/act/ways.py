"""The bridges above two PCI functions, by the kernel's own paths. Pure.

What may be touched for a pair is what stands above one of the two, and no more.
"""

from __future__ import annotations

import re

from linkproof.collect.mend import MendEvidence
from linkproof.mending import Pair

_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def ports_on_way(mend: MendEvidence, pair: Pair) -> tuple[str, ...]:
    """Every bridge above either of the two, outermost first: what a redirected packet passes. () if one of the two is not there."""
    ports: dict[str, None] = {}
    for bdf in pair:
        function = mend.functions.get(bdf)
        if function is None:
            return ()
        ports.update(dict.fromkeys(part for part in function.path.split("/")[:-1] if _BDF.fullmatch(part)))
    return tuple(ports)
