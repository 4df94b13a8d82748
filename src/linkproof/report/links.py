"""What the probe found about the links, as rows of text: first what is wrong, then every mode, how fast, what was not tested.

In:      LinksSaid (links_json.py) and a Sheet; engines as the diagnosis has them.
Out:     rows, added to the Sheet. Marks are words: `ok BAD HUNG died slow no -`; colour only repeats them.
Unknown: `-` for what was not tried; a section without content is left out.
Raises:  nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from linkproof.measured import MODES
from linkproof.report.layout import Piece, Row, width_of
from linkproof.report.links_grid import MARKS, STYLES, grid, pad, row_width
from linkproof.report.links_json import FindingSaid, LinksSaid, RouteSaid, SkippedSaid, links_said
from linkproof.report.links_speed import nccl_rows, speed_rows
from linkproof.report.links_words import joined, load_words
from linkproof.report.say import Teller, say
from linkproof.report.text import Sheet

__all__ = ["detail_rows", "found_rows", "links_rows", "links_said"]

FINDINGS, SKIPPED, COUNTERS, NAMED_LINKS = 8, 6, 6, 3  # shown without --all
FEW_GPUS = 4  # up to here each link is a row
FOLDED = 2  # more rows than that with nothing to tell are one


def links_rows(said: LinksSaid, sheet: Sheet) -> None:
    found_rows(said, sheet)
    detail_rows(said, sheet)


def found_rows(said: LinksSaid, sheet: Sheet) -> None:
    """What is wrong, in a line and then each finding."""
    t = sheet.t
    style = {"wrong": "bad", "verified": "good"}.get(said.state, "open")
    sheet.put(Piece(said.headline, style), indent=0)
    if extent := _extent(said, t):
        sheet.put(Piece(extent, "quiet"))
    if not said.cards:  # why there are none is all there is to say
        for note in said.notes:
            sheet.item(note, "!")
    advised: set[str] = set()
    for finding in said.findings[: None if sheet.say_all else FINDINGS]:
        _finding(finding, said, sheet, advised)
    if not sheet.say_all:
        sheet.more(len(said.findings) - FINDINGS)


def detail_rows(said: LinksSaid, sheet: Sheet) -> None:
    """Every mode, speeds, counters, what was not tested."""
    t = sheet.t
    _modes(said, sheet)
    _differences(said, sheet)
    speed_rows(said, sheet)
    nccl_rows(said, sheet)
    _counters(said, sheet)
    _skipped(said, sheet)
    if said.notes and said.cards:
        sheet.head(t("About this measurement"))
        for note in said.notes:
            sheet.item(note, "!")


def _extent(said: LinksSaid, t: Teller) -> str:
    parts = []
    if said.links_total:
        parts.append(t("{n} GPUs, {links} links: one for each direction of each pair", n=len(said.cards), links=said.links_total))
    compared_B = sum(o.verified_B for o in said.outcomes)
    if compared_B:
        parts.append(t("{n} GB compared byte by byte", n=f"{compared_B / 1e9:,.1f}"))
    if said.took_s and said.plan_s:
        parts.append(t("took {took} s (plan: {plan} s)", took=f"{said.took_s:,.1f}", plan=f"{said.plan_s:,.0f}"))
    elif said.took_s:
        parts.append(t("took {took} s", took=f"{said.took_s:,.1f}"))
    if said.backend == "virtual":
        parts.append(t("virtual GPUs: nothing here is about real ones"))
    return joined(parts, t)


# ---------------------------------------------------------------- findings


def _finding(f: FindingSaid, said: LinksSaid, sheet: Sheet, advised: set[str]) -> None:
    """advised: what an earlier finding has said to do already."""
    t = sheet.t
    together = MODES[f.modes[0]].scope == "group"
    sheet.rows.append([])
    mark = f"{MARKS[f.state]}  "
    where = where_words(f.links, said, t, sheet.say_all, together)
    arms = f" ({', '.join(f.arms)})" if f.arms else ""
    words = t("{where}, mode {modes}", where=where, modes=", ".join(f.modes) + arms) if len(f.modes) == 1 else t(
        "{where}, modes {modes}", where=where, modes=", ".join(f.modes))  # fmt: skip
    sheet.put(Piece(mark, STYLES[f.state]), Piece(words, "head"), indent=0, hang=width_of(mark))
    happened = list(f.happened)
    if len(f.links) > 1 and happened:
        happened[0] = t("for example {link}: {what}", link=_link(f.example, t, together), what=happened[0])
    if f.reverse_right:
        happened.append(t("the other direction is not slow") if f.state == "slow" else t("the other direction is right"))
    for line in happened:
        sheet.item(line, indent=4)
    for line in f.means:
        _led(t("means:"), line, sheet)
    for line in f.do:
        if line not in advised:
            _led(t("do:"), line, sheet)
    advised.update(f.do)


def _led(lead: str, words: str, sheet: Sheet) -> None:
    room = max(width_of(sheet.t("means:")), width_of(sheet.t("do:"))) + 2
    sheet.put(Piece(pad(lead, room), "head"), Piece(words), indent=4, hang=4 + room)


def _link(gpus: Sequence[int], t: Teller, together: bool = False) -> str:
    if together or len(set(gpus)) == 1:
        own = sorted(set(gpus))
        return f"GPU{own[0]}" if len(own) == 1 else t("GPUs {gpus} together", gpus=_span(own))
    return " -> ".join(f"GPU{g}" for g in gpus)


def where_words(links: Sequence[tuple[int, ...]], said: LinksSaid, t: Teller, say_all: bool = False, together: bool = False) -> str:
    """The links in as few words as name them: all, all from one GPU, both directions of a pair, or one by one."""
    names = [_link(link, t, together) for link in links]
    if len(names) == 1 or together:
        return _shortly(names, t, say_all)
    found = {link for link in links if len(link) == 2}
    if len(found) == 2 and len(links) == 2 and links[0] == links[1][::-1]:
        return f"GPU{links[0][0]} <-> GPU{links[0][1]}"
    if len(found) == said.links_total and len(found) == len(links) and len(found) > 1:
        return t("all {n} links", n=len(found))
    for gpu in (c.index for c in said.cards):
        others = len(said.cards) - 1
        if others > 1 and len(found) == len(links) == others:
            if all(link[0] == gpu for link in found):
                return t("all links from GPU{n}", n=gpu)
            if all(link[1] == gpu for link in found):
                return t("all links to GPU{n}", n=gpu)
        if others > 1 and len(found) == len(links) == 2 * others and all(gpu in link for link in found):
            return t("all links from and to GPU{n}", n=gpu)
    return _shortly(names, t, say_all)


def _shortly(names: Sequence[str], t: Teller, say_all: bool) -> str:
    if len(names) <= NAMED_LINKS or say_all:
        return ", ".join(names)
    return t("{link} and {n} more", link=names[0], n=len(names) - 1)


def _span(gpus: Sequence[int]) -> str:
    whole = len(gpus) > 2 and list(gpus) == list(range(gpus[0], gpus[-1] + 1))
    return f"{gpus[0]}-{gpus[-1]}" if whole else ", ".join(map(str, gpus))


# ---------------------------------------------------------------- modes


def _modes(said: LinksSaid, sheet: Sheet) -> None:
    """A line for each mode that was tried: how it went on how many links, and what the mode is."""
    t = sheet.t
    lines: list[tuple[str, Row]] = []
    for mode in MODES.values():
        states = _states(mode.name, said)
        if any(state != "not_tested" for state in states):
            lines.append((mode.name, _tally(states, t)))
    if not lines:
        return
    sheet.head(t("Every mode that was tried"))
    first = max(len(name) for name, _ in lines) + 2
    second = max(row_width(row) for _, row in lines) + 2
    shown = {state for name, _ in lines for state in _states(name, said)}
    for name, row in lines:
        template = MODES[name].what
        blank = Piece(" " * (second - row_width(row)))
        hang = min(2 + first + second, sheet.width // 3)
        sheet.put(Piece(f"{name:<{first}}"), *row, blank, Piece(say(template, {}, t.lang), "quiet"), hang=hang)
    _legend(shown - {"not_tested"}, sheet)


def _states(mode: str, said: LinksSaid) -> list[str]:
    if MODES[mode].scope == "pair":
        return [_state(r) for r in said.routes if r.mode == mode and (r.src != r.dst or len(said.cards) == 1)]
    return [g.state for g in said.groups if g.mode == mode]


def _state(r: RouteSaid) -> str:
    """A link that is verified in one load and was not tried in another is neither verified nor untested."""
    return "part" if r.state == "not_tested" and "verified" in r.loads.values() else r.state


def _tally(states: Sequence[str], t: Teller) -> Row:
    """`all ok`, or `ok 11, BAD 1`; worst last, where the eye ends."""
    if len(set(states)) == 1:
        words = t("all {mark}", mark=MARKS[states[0]]) if len(states) > 1 else MARKS[states[0]]
        return [Piece(words, STYLES[states[0]])]
    row: Row = []
    for state in ("verified", "part", "not_tested", "refused", "slow", "died", "hung", "corrupt"):
        if state in states:
            row += [*([Piece(", ")] if row else []), Piece(f"{MARKS[state]} {states.count(state)}", STYLES[state])]
    return row


def _legend(states: set[str], sheet: Sheet) -> None:
    t = sheet.t
    words = {
        "verified": t("ok: every byte right, in every load that was tried"),
        "part": t("part: right where it was tried, not tried under every load"),
        "corrupt": t("BAD: wrong data"),
        "hung": t("HUNG: no end"),
        "died": t("died: the process crashed"),
        "slow": t("slow: right, but slow"),
        "refused": t("no: this machine does not offer it"),
        "not_tested": t("-: not tested"),
        "load": t("*: only under load"),
    }
    if shown := [w for state, w in words.items() if state in states]:
        sheet.put(Piece(joined(shown, t), "quiet"))


# ---------------------------------------------------------------- where links differ


def _differences(said: LinksSaid, sheet: Sheet) -> None:
    """Modes that are not the same on all links: link by link for a few GPUs, one matrix for modes that are alike for many."""
    t = sheet.t
    cells = {(r.mode, r.src, r.dst): r for r in said.routes if r.src != r.dst}
    gpus = [c.index for c in said.cards]
    pairs = [(a, b) for a in gpus for b in gpus if a != b]
    uneven = [m for m in MODES if len({_mark(cells.get((m, *p))).text for p in pairs}) > 1]
    if not uneven:
        return
    sheet.head(t("Where links differ"))
    marks = {_mark(cells.get((m, *p))).text for m in uneven for p in pairs}
    if len(gpus) <= FEW_GPUS:
        table = [[Piece(_link(p, t)), *(_mark(cells.get((m, *p))) for m in uneven)] for p in pairs]
        table = _folded(table, t)
        sheet.rows += grid([Piece(""), *map(Piece, uneven)], table, sheet.width)
    else:
        alike: dict[tuple[str, ...], list[str]] = {}
        for mode in uneven:
            alike.setdefault(tuple(_mark(cells.get((mode, *p))).text for p in pairs), []).append(mode)
        sheet.put(Piece(t("from the GPU of the row to the GPU of the column"), "quiet"))
        for modes in alike.values():
            sheet.put(Piece(", ".join(modes), "head"))
            table = [[Piece(f"GPU{a}"), *(Piece("") if a == b else _mark(cells.get((modes[0], a, b))) for b in gpus)] for a in gpus]
            table = _folded(table, t)
            sheet.rows += grid([Piece(""), *(Piece(f"GPU{g}") for g in gpus)], table, sheet.width)
    _legend({name for name, sign in (("not_tested", "-"), ("load", "*")) if any(sign in mark for mark in marks)}, sheet)


def _folded(table: list[list[Piece]], t: Teller) -> list[list[Piece]]:
    """Rows with nothing to tell become one."""
    ok = Piece(MARKS["verified"], STYLES["verified"])
    right = [row for row in table if all(cell.text in ("", ok.text) for cell in row[1:])]
    if len(right) <= FOLDED:
        return table
    return [*(row for row in table if row not in right), [Piece(t("all others")), *[ok] * (len(table[0]) - 1)]]


def _mark(route: RouteSaid | None) -> Piece:
    if route is None:
        return Piece("-", "quiet")
    state = _state(route)
    return Piece(MARKS[state] + ("*" if route.only_under_load else ""), STYLES[state])


# ---------------------------------------------------------------- counters, what was not tested, engines


def _counters(said: LinksSaid, sheet: Sheet) -> None:
    if not said.counters:
        return
    t = sheet.t
    changed = sorted((c for c in said.counters if c.changed), key=lambda c: not c.worrying)
    lost = [c for c in said.counters if c.changed is None and c.worrying]
    blind = sorted({c.name for c in said.counters if c.changed is None and not c.worrying})
    sheet.head(t("Error counters, before and after the traffic"))
    for c in changed[: None if sheet.say_all else COUNTERS]:
        sheet.item(c.said, "!" if c.worrying else "-")
    if not sheet.say_all:
        sheet.more(len(changed) - COUNTERS)
    for c in lost:
        sheet.item(t("{name}, {where}: could be read before the traffic and not after it", name=c.name, where=c.where), "!")
    if not changed and not lost and not blind:
        sheet.item(t("none of {n} changed", n=len(said.counters)))
    if blind:
        sheet.item(t("could not be read: {names}", names=", ".join(blind)))


def _skipped(said: LinksSaid, sheet: Sheet) -> None:
    t = sheet.t
    for state, head in (("refused", t("Not offered by this machine")), ("not_tested", t("Not tested, so not known"))):
        found = [s for s in said.skipped if s.state == state]
        if not found:
            continue
        sheet.head(head)
        for s in found[: None if sheet.say_all else SKIPPED]:
            sheet.item(_skip_words(s, said, sheet))
        if not sheet.say_all:
            sheet.more(len(found) - SKIPPED)


def _skip_words(s: SkippedSaid, said: LinksSaid, sheet: Sheet) -> str:
    t = sheet.t
    if s.names_itself:
        return s.why
    what = ", ".join(s.modes)
    if s.loads and "alone" not in s.loads:
        loads = t(" and ").join(load_words(load, t) for load in s.loads)
        what = f"{what} ({loads})"
    if s.links:
        what = t("{modes} on {where}", modes=what, where=where_words(s.links, said, t, sheet.say_all))
    if not s.why:
        return what
    return t("{what}: for example, {why}", what=what, why=s.why) if s.example else t("{what}: {why}", what=what, why=s.why)
