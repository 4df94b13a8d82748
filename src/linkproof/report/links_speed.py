"""How fast the links are, as rows: a matrix of one mode, a line for each other way and load, what NCCL reached and by which way.

In:      LinksSaid and a Sheet.
Out:     rows, added to the Sheet. GB is 10^9; a median over links, and the slowest and fastest round of all of them.
Unknown: a pair that was not measured is `-`.
Raises:  nothing.
Source:  bandwidth of a collective is its bus bandwidth, as nccl-tests define it.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from linkproof.measured import LOADS, MODES, Speed
from linkproof.report.layout import Piece
from linkproof.report.links_grid import MARKS, STYLES, grid
from linkproof.report.links_json import GroupSaid, LinksSaid
from linkproof.report.links_words import load_words, size_words
from linkproof.report.say import Teller
from linkproof.report.text import Sheet

MATRIX_MODES = ("push", "pull", "store16", "staged")  # the first that was measured is shown pair by pair


def speed_rows(said: LinksSaid, sheet: Sheet) -> None:
    if not said.speeds:
        return
    t = sheet.t
    alone = {(s.mode, s.src, s.dst): s for s in said.speeds if s.load == "alone"}
    shown = next((m for m in MATRIX_MODES if any(mode == m for mode, _, _ in alone)), "")
    gpus = [c.index for c in said.cards]
    sheet.head(t("Speed, GB/s"))
    if shown and len(gpus) > 1:
        sheet.put(Piece(t("{mode}, each link alone, from the GPU of the row to the GPU of the column", mode=shown), "quiet"))
        cells = [[Piece("") if a == b else _cell(said, alone.get((shown, a, b))) for b in gpus] for a in gpus]
        table = [[Piece(f"GPU{a}"), *row] for a, row in zip(gpus, cells, strict=True)]
        sheet.rows += grid([Piece(""), *(Piece(f"GPU{g}") for g in gpus)], table, sheet.width)
        if any("*" in cell.text for row in cells for cell in row):
            sheet.put(Piece(t("*: slower than it should be, as said above"), "open"))
    _all_ways(said, sheet)


def _all_ways(said: LinksSaid, sheet: Sheet) -> None:
    """A row for each mode, a column for each load: median over links, slowest and fastest round of all of them."""
    t = sheet.t
    loads = [load for load in LOADS if any(s.load == load for s in said.speeds)]
    late = {m: [s.lat_us for s in said.speeds if s.mode == m and s.lat_us is not None] for m in MODES}
    rows = []
    for mode in MODES:
        by_load = [[s for s in said.speeds if s.mode == mode and s.load == load] for load in loads]
        if any(by_load):
            lat = [Piece(f"{median(late[mode]):,.1f}" if late[mode] else "-")] if any(late.values()) else []
            rows.append([Piece(mode), *map(_range, by_load), *lat])
    head = [Piece(""), *(Piece(load_words(load, t), "quiet") for load in loads)]
    sheet.put(Piece(t("each mode, one link: median of all links (slowest-fastest round)"), "quiet"))
    sheet.rows += grid([*head, *([Piece(t("latency, us"), "quiet")] if any(late.values()) else [])], rows, sheet.width)


def _range(found: Sequence[Speed]) -> Piece:
    if not found:
        return Piece("-", "quiet")
    low, high = min(s.bw_spread_GBps[0] for s in found), max(s.bw_spread_GBps[1] for s in found)
    return Piece(f"{median(s.bw_GBps for s in found):,.1f} ({low:,.1f}-{high:,.1f})")


def _cell(said: LinksSaid, speed: Speed | None) -> Piece:
    if speed is None:
        return Piece("-", "quiet")
    slow = any((r.src, r.dst, r.mode, r.state) == (speed.src, speed.dst, speed.mode, "slow") for r in said.routes)
    return Piece(f"{speed.bw_GBps:,.1f}" + ("*" if slow else ""), "open" if slow else "")


def _bus(o: GroupSaid, t: Teller) -> Piece:
    if o.bw_GBps is None:
        return Piece("-")
    return Piece(f"{o.bw_GBps:,.1f}" + (f" ({size_words(o.bw_size_B, t)})" if o.bw_size_B else ""))


def nccl_rows(said: LinksSaid, sheet: Sheet) -> None:
    """One line for each arm: asked for, really used, bus bandwidth and the size of the all-reduces in which it was reached."""
    arms = [g for g in said.groups if g.mode == "nccl" and (g.state not in ("not_tested", "refused") or g.used)]
    if not arms:
        return
    t = sheet.t
    sheet.head(t("NCCL, exact sums on every rank"))
    head = [
        Piece(t("asked for")),
        Piece(""),
        Piece(t("used")),
        Piece(t("bus GB/s")),
        *([Piece(t("operation"))] if any(o.op for o in arms) else []),
    ]
    rows = []
    other = False
    for o in arms:
        asked = o.arm.split("/")[0].lower()
        elsewhere = bool(o.used and asked in ("p2p", "shm", "net") and asked not in o.used.lower())
        other |= elsewhere
        rows.append([
            Piece(o.arm or "default"),
            Piece(MARKS[o.state], STYLES[o.state]),
            Piece((o.used or "?") + ("*" if elsewhere else ""), "open" if elsewhere else ""),
            _bus(o, t),
            Piece(o.op),
        ])  # fmt: skip
    sheet.rows += grid(head, rows, sheet.width)
    if other:
        sheet.put(Piece(t("*: NCCL did not use what it was asked for, so that way was not tested with it"), "open"))
