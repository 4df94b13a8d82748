"""torch.distributed at work: collectives given up, ranks that did not come, ranks that call different things.

In:      lines of ProcessGroupNCCL (torch 1.8 to 2.15), of the desync report, of the flight recorder's analysis (`torchfrtrace`), of
         TORCH_DISTRIBUTED_DEBUG=DETAIL and of DDP's check of the model.
Out:     Watchdog, Event collective_timeout, heartbeat_timeout, collective_mismatch; Ranks sizes_differ, one_rank_late.
Unknown: a number that a version does not print is None. Two ranks are compared only inside one process group; where the text names
         groups, a line without one is compared with nobody.
Raises:  nothing.
Source:  torch `csrc/distributed/c10d/ProcessGroupNCCL.cpp`, `ProcessGroupWrapper.cpp`, `TraceUtils.h`, `reducer.cpp`,
         `tools/flight_recorder/components`. The sentence "most likely caused by incorrect usages of collectives" stands in every dump
         and proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from linkproof.model import Event, Fact, Ranks, Source, Text, Watchdog
from linkproof.parse.rules import LINE_MAX, Match, Rule, anchors_of, distinct, run, rx, source

_NUM = r"(\d{1,18})"
_GROUP = r"\[PG (?:ID )?(\d{1,6})\b(?: PG GUID (\S{1,40}))?(?: \([^()]*\))? Rank (\d{1,6})\]"
_WORK = r"Watchdog caught collective operation timeout: Work\w{2,8}\((.*)$"
_LAST = r"(?i)last enqueued NCCL work: (-?\d{1,18})"
_AT = rf"Timeout at NCCL work: {_NUM},"
# Only these ask the same size of every rank; the two ends of a message have two names.
_EVEN = ("ALLREDUCE", "BROADCAST", "REDUCE", "ALLGATHER", "_ALLGATHER_BASE", "REDUCE_SCATTER", "_REDUCE_SCATTER_BASE", "BARRIER")
_TWO_ENDED = ("SEND", "RECV")


def _mismatch(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    aspects = rx(r"differ in the following aspects:\s*(.{1,120})").search(where.text) if m is not None else None
    return Event(source=where, rank=rank, kind="collective_mismatch", value=" ".join(aspects.group(1).split()) if aspects else "")


def _model(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    """`inconsistent 0 params` is what an aborted exchange leaves, and says nothing of the models."""
    if m is None or "0" in (m.group(1), m.group(2)) or m.group(1) == m.group(2):
        return None
    return Ranks(source=where, rank=rank, fact="sizes_differ", detail=f"{m.group(1)} against {m.group(2)} parameters")


def _late(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    return Ranks(source=where, rank=rank, fact="one_rank_late", detail=f"ranks {m.group(1).strip(' ,')}")


_DETAIL = r"inconsistent (\d{1,9}) params"
RULES = (
    Rule("Heartbeat monitor timed out", "", "heartbeat_timeout"),
    Rule("watchdog got stuck for", r"watchdog got stuck for (\d{1,9}) seconds", "heartbeat_timeout"),
    Rule("Received a dump signal due to a collective timeout", "", "collective_timeout"),
    Rule("Detected mismatch between collectives on ranks", "Detected mismatch", _mismatch),
    Rule("params, while rank", rf"Rank \d{{1,6}} has (\d{{1,9}}) params, while rank \d{{1,6}} has {_DETAIL}", _model),
    Rule("are the lagging ranks that caused this timeout", r"ranks \[([\d, ]{1,200})\] are the lagging", _late),
    Rule("but didn't join collective #", r"\[([\d, ]{1,200})\] finished collective #", _late),
    Rule("Not all ranks joining collective", r"[Nn]ot all ranks joining collective.*missing ranks:? \{([\d, ]{1,200})\}", _late),
    Rule("failed to pass monitoredBarrier", r"Ranks ([\d, ]{1,200}) failed to pass monitoredBarrier", _late),
    Rule(
        "Error type: ", r"Error type: (COLLECTIVE_TYPE_MISMATCH|SIZE_OR_SYNTAX_MISMATCH|COLLECTIVE_DTYPE_MISMATCH)", "collective_mismatch"
    ),
    Rule("Input/output mismatch in the collective", "", "collective_mismatch"),
    Rule("Cannot apply desired operation due to shape mismatches", "", "collective_mismatch"),  # accelerate's debug mode
)
ANCHORS = (*anchors_of(RULES), "Watchdog caught collective", "NCCL work: ")
KEEP = (0, 1)


class _Seen(NamedTuple):
    """Where a rank gave up. who: its number inside the group where printed, else the launcher's."""

    group: str
    who: int | None
    launcher: int | None
    number: int


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    yield from distinct(run(RULES, text, hits))
    dogs: dict[tuple[object, ...], Watchdog] = {}
    at: list[tuple[_Seen, Source]] = []
    last: dict[tuple[str, int | None], int] = {}
    for index in hits:
        line = text.lines[index]
        words = line.text[:LINE_MAX]
        found = rx(_GROUP).search(words)
        group = (found.group(2) or found.group(1)) if found is not None else ""
        who = int(found.group(3)) if found is not None else line.rank
        if (work := rx(_WORK).search(words)) is not None and len(dogs) < 2000:
            dog = _watchdog(work.group(1), source(text, line), line.rank if line.rank is not None else _rank(words), group)
            key = (dog.rank, dog.op, dog.seq, dog.numel_in, dog.numel_out)
            if key not in dogs or (group and not dogs[key].group):
                dogs[key] = dog if key not in dogs else _with_group(dogs[key], group)
        if (timeout := rx(_AT).search(words)) is not None and len(at) < 2000:
            at.append((_Seen(group, who, line.rank, int(timeout.group(1))), source(text, line)))
        if (enqueued := rx(_LAST).search(words)) is not None and len(last) < 20_000:
            last[group, who] = int(enqueued.group(1))
    _name_groups(dogs, at)
    for dog in dogs.values():
        yield dog
        yield Event(source=dog.source, rank=dog.rank, kind="collective_timeout", value=dog.op)
    yield from _sizes(list(dogs.values()), named=any("[PG " in text.lines[i].text for i in hits))
    yield from _behind(at, last)


def _rank(words: str) -> int | None:
    found = rx(r"\[Rank (\d{1,6})\] Watchdog").search(words)
    return int(found.group(1)) if found is not None else None


def _watchdog(inner: str, where: Source, rank: int | None, group: str) -> Watchdog:
    def number(name: str) -> int | None:
        found = rx(rf"\b{name}={_NUM}\b").search(inner)
        return int(found.group(1)) if found is not None else None

    op = rx(r"OpType=(\w{1,40})").search(inner)
    return Watchdog(
        source=where,
        rank=rank,
        op=op.group(1) if op is not None else "",
        seq=number("SeqNum"),
        numel_in=number("NumelIn"),
        numel_out=number("NumelOut"),
        timeout_ms=number(r"Timeout\(ms\)"),
        group=group,
    )


def _with_group(dog: Watchdog, group: str) -> Watchdog:
    return Watchdog(
        source=dog.source, rank=dog.rank, op=dog.op, seq=dog.seq, numel_in=dog.numel_in, numel_out=dog.numel_out,
        timeout_ms=dog.timeout_ms, group=group,
    )  # fmt: skip


def _name_groups(dogs: dict[tuple[object, ...], Watchdog], at: list[tuple[_Seen, Source]]) -> None:
    """`[Rank 1] Watchdog caught ..` names no group; `[PG ID 1 PG GUID 2 Rank 1] Timeout at NCCL work: N` of the same process does."""
    groups: dict[tuple[int | None, int], set[str]] = {}
    for seen, _ in at:
        if seen.group:
            groups.setdefault((seen.who if seen.launcher is None else seen.launcher, seen.number), set()).add(seen.group)
    for key, dog in dogs.items():
        names = groups.get((dog.rank, dog.seq), set()) if dog.seq is not None and not dog.group else set()
        if len(names) == 1:
            dogs[key] = _with_group(dog, next(iter(names)))


def _sizes(dogs: list[Watchdog], *, named: bool) -> Iterator[Fact]:
    """Ranks that stopped at the same number of the same group and name another operation or another size."""
    first: dict[tuple[str, int], Watchdog] = {}
    for dog in dogs:
        if dog.seq is None or dog.rank is None or not dog.op or (named and not dog.group) or dog.op in _TWO_ENDED:
            continue
        other = first.setdefault((dog.group, dog.seq), dog)
        if other is dog or other.rank == dog.rank:
            continue
        sizes = dog.op in _EVEN and None not in (other.numel_in, dog.numel_in) and other.numel_in != dog.numel_in
        if other.op != dog.op or sizes:
            detail = f"work {dog.seq}: rank {other.rank} {_call(other)}, rank {dog.rank} {_call(dog)}"
            yield Ranks(source=dog.source, rank=dog.rank, fact="sizes_differ", detail=detail)
            return


def _call(dog: Watchdog) -> str:
    return f"{dog.op} of {dog.numel_in}" if dog.numel_in is not None else dog.op


def _behind(at: list[tuple[_Seen, Source]], last: dict[tuple[str, int | None], int]) -> Iterator[Fact]:
    """A rank whose last enqueued work lies before the one that another rank of the group gave up has never come to it."""
    highest: dict[str, tuple[int, Source]] = {}
    for seen, where in at:
        if seen.group and seen.number > highest.get(seen.group, (-1, where))[0]:
            highest[seen.group] = (seen.number, where)
    late: dict[str, list[int]] = {}
    for (group, who), number in last.items():
        if who is not None and group in highest and number < highest[group][0]:
            late.setdefault(group, []).append(who)
    for group, ranks in late.items():
        shown = ", ".join(map(str, sorted(ranks)[:16]))
        detail = f"rank {shown} of group {group} never came to work {highest[group][0]}"
        yield Ranks(source=highest[group][1], fact="one_rank_late", detail=detail)
