"""Probes some pairs again, before and after a change: the ways that were tried on them, and the control through host memory.

In:      how the devices are reached, what `check` measured, pairs as PCI addresses.
Out:     Proved, by PCI addresses: what was wrong or slow, what was right. A way that could not be tried is in neither.
Unknown: None if a pair's GPUs are not known by number, or other numbers stand at these addresses now.
Raises:  nothing; whatever a GPU does is an outcome.
"""

from __future__ import annotations

from linkproof.checking import Checked
from linkproof.errors import UsageError
from linkproof.measured import MODES, Card
from linkproof.mending import Pair, Proved
from linkproof.probe.plan import Wish
from linkproof.progress import trying
from linkproof.prove import prove
from linkproof.routes import RouteTable, table

TRIED = ("verified", "slow", "corrupt", "hung", "died")
WRONG = ("slow", "corrupt", "hung", "died")


class PairProbe:
    def __init__(self, devices: str, checked: Checked, lang: str) -> None:
        self.devices, self.checked, self.lang = devices, checked, lang

    def __call__(self, pairs: tuple[Pair, ...]) -> Proved | None:
        routes = self.checked.routes
        numbers = _numbers(routes.cards if routes is not None else ())
        if routes is None or not pairs or not {bdf for pair in pairs for bdf in pair} <= set(numbers):
            return None
        asked = tuple((numbers[src], numbers[dst]) for src, dst in pairs)
        try:
            with trying(self.lang) as tell:
                probed = prove(self.devices, Wish(asked, modes_of(routes, asked)), tell)
        except UsageError:  # a GPU has gone, and with it the pair
            return None
        now = _numbers(probed.cards)
        if any(now.get(bdf) != numbers[bdf] for pair in pairs for bdf in pair):
            return None
        return proved(table(probed, self.checked.tree), pairs, numbers)


def _numbers(cards: tuple[Card, ...]) -> dict[str, int]:
    return {c.bdf: c.index for c in cards if c.bdf}


def modes_of(routes: RouteTable, asked: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    """Wrong ones and right ones of these pairs: a step must mend the first and break none of the others. The control is always among them."""
    tried = {mode for (src, dst, mode), cell in routes.cells.items() if (src, dst) in asked and cell.state in TRIED}
    return tuple(m.name for m in MODES.values() if m.scope == "pair" and m.judged and (m.name in tried or m.name == "staged"))


def proved(routes: RouteTable, pairs: tuple[Pair, ...], numbers: dict[str, int]) -> Proved:
    found = [(src, dst, mode, routes.state(numbers[src], numbers[dst], mode)) for src, dst in pairs for mode in MODES]
    return Proved(
        frozenset((src, dst, mode) for src, dst, mode, state in found if state in WRONG),
        frozenset((src, dst, mode) for src, dst, mode, state in found if state == "verified"),
    )
