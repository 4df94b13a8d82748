"""What the probe found about the links, as the JSON contract of `check`. The text (links.py) is made of it, so it cannot say anything else.

In:      a Probed and a language.
Out:     LinksSaid: a headline, findings that are grouped over links, every route and every outcome in full.
Unknown: what was not tested stands in `skipped` with its reason and as state `not_tested` in `routes`; it never counts as verified.
Raises:  nothing.
Source:  measured.py has the words of modes, states and kinds.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from linkproof.measured import MODES, Card, Counter, Outcome, Probed, Speed, Wrong, few_crc
from linkproof.probe.counters import worrying
from linkproof.report.links_found import Group, groups, of_pairs, skipped_groups, under_load_only, verified_links, wrong_links
from linkproof.report.links_words import counter_name, counter_words, headline, means, remedies, told, what_happened
from linkproof.report.masking import masked
from linkproof.report.say import Teller, say
from linkproof.routes import Cell, RouteTable, worst
from linkproof.routes import table as route_table

State = Literal["verified", "corrupt", "hung", "died", "refused", "slow", "not_tested"]


class RouteSaid(Struct, frozen=True):
    """One ordered pair (data flow from src to dst) in one mode, worst over all loads. src = dst: one card with itself, which is no link.

    loads: under which it was tried, with the state of each. only_under_load: wrong under load and verified alone.
    """

    src: int
    dst: int
    mode: str
    state: State
    loads: dict[str, State]
    only_under_load: bool
    why: str


class GroupSaid(Struct, frozen=True):
    """Of more than two GPUs, or of all together: chains, collectives. used: the transport that NCCL says it took.

    bw_GBps: bus bandwidth as nccl-tests define it, of all-reduces of bw_size_B on each rank; larger ones can be faster. 0: size not told.
    """

    mode: str
    gpus: tuple[int, ...]
    arm: str
    state: State
    why: str
    used: str
    op: str
    bw_GBps: float | None
    bw_size_B: int


class FindingSaid(Struct, frozen=True):
    """Something wrong or slow, the same on all its links.

    links: (src, dst); (a, b, c) of a chain; all ranks of a collective. arms: of collectives, `transport/protocol`.
    counted: false where no verdict hangs on it.
    happened: sentences, the numbers of the first link. example: that link. reverse_right: one link only, and its other direction is verified.
    """

    state: State
    modes: tuple[str, ...]
    links: tuple[tuple[int, ...], ...]
    arms: tuple[str, ...]
    loads: tuple[str, ...]
    only_under_load: bool
    counted: bool
    reverse_right: bool
    example: tuple[int, ...]
    happened: tuple[str, ...]
    means: tuple[str, ...]
    do: tuple[str, ...]


class SkippedSaid(Struct, frozen=True):
    """refused: the machine cannot do it. not_tested: it was not tried. n: cases with this reason; links: () if all that there are.

    names_itself: `why` names the modes or GPUs. example: it has the numbers of one link, and the others have their own.
    """

    state: Literal["refused", "not_tested"]
    modes: tuple[str, ...]
    links: tuple[tuple[int, ...], ...]
    loads: tuple[str, ...]
    n: int
    why: str
    names_itself: bool
    example: bool


class OutcomeSaid(Struct, frozen=True):
    """As measured. why: in the language of the report. first_bad_round counts from 1, 0: none."""

    mode: str
    gpus: tuple[int, ...]
    load: str
    arm: str
    state: State
    why: str
    wrong: tuple[Wrong, ...]
    size_B: int
    rounds: int
    bad_rounds: int
    first_bad_round: int
    smallest_bad_B: int
    largest_ok_B: int
    verified_B: int
    took_s: float
    bw_GBps: float | None
    against_GBps: float | None
    transport: str
    op: str


class CounterSaid(Struct, frozen=True):
    """Those that changed or could not be read; `changed` is null of the latter. worrying: the change speaks of a fault."""

    name: str
    where: str
    before: str | None
    after: str | None
    changed: bool | None
    worrying: bool
    said: str


class LinksSaid(Struct, frozen=True):
    """state: wrong (something is wrong on a link), verified (every link, in every mode that was tried), partly, no_link (one card), nothing.

    links_total: ordered pairs of the cards. links_verified: at least one mode verified, nothing wrong in any. plan_s: what was expected.
    """

    state: Literal["wrong", "verified", "partly", "no_link", "nothing"]
    headline: str
    links_total: int
    links_tried: int
    links_verified: int
    links_wrong: int
    cards: tuple[Card, ...]
    findings: tuple[FindingSaid, ...]
    routes: tuple[RouteSaid, ...]
    groups: tuple[GroupSaid, ...]
    skipped: tuple[SkippedSaid, ...]
    outcomes: tuple[OutcomeSaid, ...]
    speeds: tuple[Speed, ...]
    counters: tuple[CounterSaid, ...]
    notes: tuple[str, ...]
    backend: str
    took_s: float
    plan_s: float
    key: str


def links_said(probed: Probed, lang: str, table: RouteTable | None = None) -> LinksSaid:
    """table: as `routes.table` makes it; give it where the PCI tree is known, which tells slow links."""
    t = Teller(lang)
    table = route_table(probed) if table is None else table
    found = groups(probed, table)
    state, words = headline(probed, table, found, t)
    order = list(MODES)
    cells = sorted(table.cells.values(), key=lambda c: (order.index(c.mode), c.gpus))
    tried = {(s, d) for (s, d, _), c in table.cells.items() if s != d and c.state != "not_tested"}
    return LinksSaid(
        state=state,
        headline=words,
        links_total=len(table.pairs),
        links_tried=len(tried),
        links_verified=len(verified_links(table)),
        links_wrong=len(wrong_links(table)),
        cards=probed.cards,
        findings=tuple(_finding(g, table, probed, t) for g in found),
        routes=tuple(_route(c, t) for c in cells),
        groups=tuple(_group(c, t) for c in (*table.chains, *table.groups.values())),
        skipped=tuple(_skipped(g, t) for g in skipped_groups(probed, table)),
        outcomes=tuple(_outcome(o, t) for o in probed.outcomes),
        speeds=_speeds(probed),
        counters=tuple(_counter(c, probed.took_s, t) for c in probed.counters),
        notes=tuple(masked(say(text, args, lang)) for text, args in probed.notes),
        backend=probed.backend,
        took_s=round(probed.took_s, 2),
        plan_s=round(probed.plan_s, 2),
        key=probed.key,
    )


def _route(c: Cell, t: Teller) -> RouteSaid:
    loads = {load: worst(state for other, state in c.loads if other == load) for load, _ in c.loads}
    return RouteSaid(c.gpus[0], c.gpus[-1], c.mode, c.state, loads, under_load_only(c), told(c, t))  # type: ignore[arg-type]


def _group(c: Cell, t: Teller) -> GroupSaid:
    o = c.told
    used, op, bw, size_B = (o.transport, o.op, o.bw_GBps, o.bw_size_B) if o is not None else ("", "", None, 0)
    return GroupSaid(c.mode, c.gpus, c.arm, c.state, told(c, t), used, op, bw, size_B)  # type: ignore[arg-type]


def _finding(g: Group, table: RouteTable, probed: Probed, t: Teller) -> FindingSaid:
    return FindingSaid(
        state=g.state,  # type: ignore[arg-type]
        modes=g.modes,
        links=g.links,
        arms=g.arms,
        loads=g.loads,
        only_under_load=g.only_under_load,
        counted=g.counted,
        reverse_right=_reverse_right(g, table),
        example=g.cells[0].gpus,
        happened=tuple(what_happened(g, t)),
        means=tuple(means(g, t)),
        do=tuple(remedies(g, probed, t)),
    )


def _reverse_right(g: Group, table: RouteTable) -> bool:
    """Of a single link that is wrong: the same modes are verified the other way round."""
    if len(g.links) != 1 or len(g.links[0]) != 2 or not of_pairs(g.cells[0]):
        return False
    src, dst = g.links[0]
    return src != dst and all(table.state(dst, src, mode) == "verified" for mode in g.modes)


def _skipped(g: Group, t: Teller) -> SkippedSaid:
    first = g.cells[0]
    gpus = ", ".join(dict.fromkeys(c.args.get("gpu", "") for c in g.cells))
    named = "{mode}" in first.why or "{gpu}" in first.why
    one_of = len({told(c, t, "*", "*") for c in g.cells}) > 1
    return SkippedSaid(g.state, g.modes, g.links, g.loads, len(g.cells), told(first, t, ", ".join(g.modes), gpus), named, one_of)  # type: ignore[arg-type]


def _outcome(o: Outcome, t: Teller) -> OutcomeSaid:
    return OutcomeSaid(
        mode=o.case.mode,
        gpus=o.case.gpus,
        load=o.case.load,
        arm=o.case.arm,
        state=o.state,  # type: ignore[arg-type]
        why=told(o, t),
        wrong=o.wrong,
        size_B=o.size_B,
        rounds=o.rounds,
        bad_rounds=o.bad_rounds,
        first_bad_round=o.round_ + 1 if o.wrong else 0,
        smallest_bad_B=o.smallest_bad_B,
        largest_ok_B=o.largest_ok_B,
        verified_B=o.verified_B,
        took_s=round(o.took_s, 3),
        bw_GBps=o.bw_GBps,
        against_GBps=o.against_GBps,
        transport=o.transport,
        op=o.op,
    )


def _counter(c: Counter, took_s: float, t: Teller) -> CounterSaid:
    changed = None if c.before is None or c.after is None else c.before != c.after
    name, before, after = counter_name(c.name, t), masked_or_none(c.before), masked_or_none(c.after)
    bad = worrying(c) and not few_crc(c, took_s)
    return CounterSaid(name, masked(c.where), before, after, changed, bad, counter_words(c, t) if changed else "")


def masked_or_none(text: str | None) -> str | None:
    return None if text is None else "\n".join(map(masked, text.splitlines()))


def _speeds(probed: Probed) -> tuple[Speed, ...]:
    """Those of the run and those that came with an outcome, each once."""
    every = {(s.mode, s.load, s.src, s.dst): s for s in [o.speed for o in probed.outcomes if o.speed] + list(probed.speeds)}
    return tuple(every.values())
