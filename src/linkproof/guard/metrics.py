"""What the guard has done, as numbers: Python, one log line, Prometheus text. No torch in here.

Each thread counts for itself; `total` adds up. overhead_s is the host's time in digests, comparisons and snapshots, copies left out.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct, field


class LinkCount(Struct):
    hops: int = 0
    size_B: int = 0
    mismatches: int = 0


class Counts(Struct):
    """hops: copies made. saved: copies not made, the same tensor was there already. staged: of the hops, those through host memory.

    unchecked: hops that no digest looked at (not sampled, or a tensor whose bits cannot be read). reruns: forwards run again.
    """

    forwards: int = 0
    hops: int = 0
    size_B: int = 0
    saved: int = 0
    staged: int = 0
    unchecked: int = 0
    mismatches: int = 0
    reruns: int = 0
    overhead_s: float = 0.0
    links: dict[str, LinkCount] = field(default_factory=dict)

    def link(self, name: str) -> LinkCount:
        return self.links.setdefault(name, LinkCount())

    def add(self, other: Counts) -> None:
        for name in NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, theirs in list(other.links.items()):
            mine = self.link(name)
            mine.hops, mine.size_B = mine.hops + theirs.hops, mine.size_B + theirs.size_B
            mine.mismatches += theirs.mismatches


NUMBERS = tuple(name for name in Counts.__struct_fields__ if name != "links")
PER_LINK = LinkCount.__struct_fields__


class Metrics(Struct, frozen=True):
    mode: str
    counts: Counts
    demoted: tuple[str, ...]

    def line(self) -> str:
        c = self.counts
        demoted = ", ".join(self.demoted) or "none"
        return (
            f"guard {self.mode}: {c.forwards} forwards, {c.hops} hops, {c.size_B} bytes, {c.saved} copies saved, {c.staged} staged, "
            f"{c.unchecked} unchecked, {c.mismatches} mismatches, {c.reruns} reruns, demoted: {demoted}, overhead {c.overhead_s:.3f} s"
        )

    def prometheus(self) -> str:
        """Text exposition format: counters since the guard began, one gauge per link."""
        rows: list[str] = []
        for name, help_ in HELP.items():
            unit = {"size_B": "bytes", "overhead_s": "overhead_seconds"}.get(name, name)
            metric = f"linkproof_guard_{unit}_total"
            rows += [f"# HELP {metric} {help_}", f"# TYPE {metric} counter"]
            if name in PER_LINK:
                rows += [f'{metric}{{link="{link}"}} {getattr(count, name)}' for link, count in sorted(self.counts.links.items())]
            else:
                rows.append(f"{metric} {getattr(self.counts, name)}")
        metric = "linkproof_guard_link_demoted"
        rows += [f"# HELP {metric} 1 if the link is replaced by copies through host memory.", f"# TYPE {metric} gauge"]
        rows += [f'{metric}{{link="{link}"}} {int(link in self.demoted)}' for link in sorted(self.counts.links)]
        return "\n".join(rows) + "\n"


HELP = {
    "forwards": "Forwards of the guarded model.",
    "hops": "Tensors copied from GPU to GPU.",
    "size_B": "Bytes copied from GPU to GPU.",
    "saved": "Copies not made because the same tensor was on that GPU already.",
    "staged": "Copies that went through host memory.",
    "unchecked": "Copies that no digest looked at.",
    "mismatches": "Copies that arrived wrong.",
    "reruns": "Forwards that were run again.",
    "overhead_s": "Host time spent by the guard, copies left out.",
}


def total(all_counts: Iterable[Counts]) -> Counts:
    out = Counts()
    for one in all_counts:
        out.add(one)
    return out
