"""The driver waits for the GPU's firmware processor."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import pro
from linkproof.causes.reading import Reading
from linkproof.model import NotChecked, Sign

CLASS = "not_comm"
PRIOR = -5.2


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if xid := f.xid("119", "120"):
        yield pro(
            8.0, "Xid {xid}: the driver waited in vain for the GPU's firmware processor", xid, decisive=True, xid=xid.value, stands=True
        )
    if rpc := f.event("gsp_timeout"):
        yield pro(5.0, "the driver waited in vain for the GPU's firmware processor", rpc)
    number, said = f.driver
    if said and (510,) <= number < (525, 105) and f.xid("119", "120"):
        yield pro(0.7, "driver {driver} is one of those before the mending release 525.105", said, driver=said.driver)
