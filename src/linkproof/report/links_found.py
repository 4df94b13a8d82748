"""Route table -> groups: what is the same on many links is told once. Pure, without words.

In:      a Probed and its RouteTable.
Out:     Group.
Unknown: refused and not tested have groups of their own, by reason.
Raises:  nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct, structs

from linkproof.measured import BAD, LOADS, MODES, Probed
from linkproof.routes import Cell, RouteTable, arm_of

Link = tuple[int, int]
ORDER = (*BAD, "slow")
RIGHT = ("verified", "slow")


class Group(Struct, frozen=True):
    """Cells of one kind. links: as in Case.gpus; cells: the first is the one whose numbers are told.

    counted: a verdict hangs on it. only_under_load: wrong under load, and the same link alone verified.
    """

    state: str
    modes: tuple[str, ...]
    links: tuple[tuple[int, ...], ...]
    arms: tuple[str, ...]
    loads: tuple[str, ...]
    only_under_load: bool
    counted: bool
    cells: tuple[Cell, ...]


def of_pairs(cell: Cell) -> bool:
    return MODES[cell.mode].scope == "pair"


def under_load_only(cell: Cell) -> bool:
    alone = [state for load, state in cell.loads if load == "alone"]
    return cell.state in BAD and bool(alone) and all(state == "verified" for state in alone)


def _load(cell: Cell) -> str:
    return cell.told.case.load if cell.told is not None else "alone"


def _made(cells: list[Cell], under: bool, counted: bool = True) -> Group:
    order = list(MODES)
    modes = sorted({c.mode for c in cells}, key=order.index)
    links = tuple(dict.fromkeys(c.gpus for c in cells))
    arms = tuple(dict.fromkeys(c.arm for c in cells if c.arm))
    loads = tuple(load for load in LOADS if any(_load(c) == load for c in cells))
    return Group(cells[0].state, tuple(modes), links, arms, loads, under, counted, tuple(cells))


# ---------------------------------------------------------------- wrong or slow


def groups(probed: Probed, table: RouteTable) -> list[Group]:
    """First alike over links, then alike over modes. Wrong data before hangs, hangs before crashes, slow last; the control before all."""
    counted = {id(c) for c in table.judged}
    cells = [c for c in (*table.cells.values(), *table.chains, *table.groups.values()) if c.state in ORDER and MODES[c.mode].judged]
    alike: dict[tuple[str, str, str, str, bool, bool], list[Cell]] = {}
    for cell in cells:
        for c in _each(cell, probed):
            alike.setdefault((c.mode, c.state, _kind(c), _why(c), under_load_only(c), id(cell) in counted), []).append(c)
    merged: dict[tuple[object, ...], list[Cell]] = {}
    for (mode, state, kind, why, under, counts), found in alike.items():
        own = "" if of_pairs(found[0]) else mode  # collectives and chains have numbers of their own
        merged.setdefault((state, kind, why, under, counts, own, frozenset(c.gpus for c in found)), []).extend(found)
    made = [_made(found, bool(key[3]), bool(key[4])) for key, found in merged.items()]
    return sorted(made, key=lambda g: (not g.counted, ORDER.index(g.state), g.modes[0] != "staged", -len(g.links)))


def _each(cell: Cell, probed: Probed) -> list[Cell]:
    """A collective that was tried again on fewer GPUs has one cell for all tries: here one for each that went wrong."""
    if MODES[cell.mode].scope != "group":
        return [cell]
    tries = [o for o in probed.outcomes if o.case.mode == cell.mode and arm_of(o.case.arm) == cell.arm and o.state == cell.state]
    return [Cell(o.case.gpus, cell.mode, o.state, o.case.arm, o.why, o.args, o) for o in tries] or [cell]


def _kind(cell: Cell) -> str:
    return cell.told.wrong[0].kind if cell.told is not None and cell.told.wrong else ""


def _why(cell: Cell) -> str:
    """Wrong data of one kind are alike, whatever was said of how many."""
    return "" if cell.state == "corrupt" else cell.why


# ---------------------------------------------------------------- refused, not tested


def skipped_groups(probed: Probed, table: RouteTable) -> list[Group]:
    """By reason. links is () where a reason holds for all there are, or where it names its GPUs itself."""
    by_mode: dict[tuple[str, str, str, str], list[Cell]] = {}
    for c in _skipped(probed, table):
        by_mode.setdefault((c.mode, c.state, c.why, other_args(c)), []).append(c)
    by_reason: dict[tuple[str, str, str, frozenset[tuple[int, ...]], bool], list[Cell]] = {}
    for (_, state, why, args), found in by_mode.items():
        where = frozenset(c.gpus for c in found)
        if set(table.pairs) <= where or "{gpu}" in why or not of_pairs(found[0]):
            where = frozenset()
        under = all(_load(c) != "alone" for c in found)
        by_reason.setdefault((state, why, args, where, under), []).extend(found)
    out = [structs.replace(_made(found, key[4]), links=tuple(sorted(key[3]))) for key, found in by_reason.items()]
    return sorted(out, key=lambda g: (g.state != "refused", -len(g.modes)))


def _skipped(probed: Probed, table: RouteTable) -> Iterable[Cell]:
    """Of pairs every try, since one under load may be missing where the link alone is verified; of the others what the table says."""
    for o in probed.outcomes:
        if MODES[o.case.mode].scope == "pair" and o.state in ("refused", "not_tested"):
            gpus = o.case.gpus
            links = (
                [p for p in table.pairs if set(p) <= set(gpus)] if o.case.load != "alone" and len(set(gpus)) > 1 else [(gpus[0], gpus[-1])]
            )
            for link in links:
                yield Cell(link, o.case.mode, o.state, "", o.why, o.args, o)
    for cell in (*table.chains, *table.groups.values()):
        if cell.state in ("refused", "not_tested"):
            yield cell


def other_args(cell: Cell) -> str:
    """What a reason says besides numbers, GPUs and the mode: equal for those that are told together."""
    own = ("mode", "gpu", "said", "pid")
    return repr(sorted((k, v) for k, v in cell.args.items() if k not in own and not v.replace(",", "").replace(".", "").isdigit()))


def verified_links(table: RouteTable) -> list[Link]:
    """At least one mode verified, none wrong."""
    own: dict[tuple[int, int], list[Cell]] = {}
    for (src, dst, mode), cell in table.cells.items():
        if MODES[mode].judged:
            own.setdefault((src, dst), []).append(cell)
    return [p for p in table.pairs if any(c.state in RIGHT for c in own.get(p, ())) and not any(c.bad for c in own[p])]


def wrong_links(table: RouteTable, modes: Sequence[str] = ()) -> set[Link]:
    return {(s, d) for (s, d, mode), c in table.cells.items() if s != d and c.bad and MODES[mode].judged and (not modes or mode in modes)}
