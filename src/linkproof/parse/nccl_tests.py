"""nccl-tests and rccl-tests -> were the values right, on which cards, from which size on were they wrong.

In:      the output of `all_reduce_perf` and its sisters: header, device lines, rows, summary; any part may be missing.
Out:     Gpu per kind of card; per run one Collective ok | wrong | error and Event nccl_tests_ok | nccl_tests_failed;
         Pattern from_bytes | some_sizes where rows are wrong next to rows that are right.
Unknown: a run with `validation: 0` or only `N/A` has compared nothing and is no success, though the tool prints `0 OK`;
         a run that is cut before its summary is no success either. Old tools print a deviation (`error`), not a count: the summary decides.
Raises:  nothing.
Source:  nccl-tests `src/common.cu`, `src/util.cu`, `src/common.h`, first version to 2.19.6; rccl-tests.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Collective, Event, Fact, Gpu, Line, Pattern, Seen, Text
from linkproof.parse.rules import LINE_MAX, rx, source

_DEVICE = r"#\s+Rank\s+(\d{1,6})\b.*\bdevice\s+\d{1,3}\s+\[[0-9a-fA-Fx:.]{2,20}\]\s+(\S.{0,80})$"
_SUMMARY = r"# Out of bounds values\s*: (\d{1,18})\b"
_FAILED = r"Test (NCCL|CUDA|HIP) failure \S{1,300}:\d{1,7} '(.{0,400})'"
_ROW = r"^\s*(\d{1,16})\s+\d{1,16}\s+(?:u?int(?:8|32|64)|half|float|double|bfloat16|f(?:p?8|loat8)\w{0,12}|char)\s"
_NAME = r"\b(all_reduce|all_gather|alltoallv?|broadcast|reduce_scatter|reduce|sendrecv|gather|scatter|hypercube)_perf\b"
_OPS = {"alltoall": "all_to_all", "alltoallv": "all_to_all"}
_WRONG = r"^(?:N/A|\d{1,18}|\d(?:\.\d{1,8})?e[+-]\d{1,3})$"
ROWS = 200  # lines that are looked at below a header

ANCHORS = (
    "# Using devices", "# nThread", "#   Rank", "#  Rank", "# Out of bounds values", "# Avg bus bandwidth", "# Collective test starting", "#wrong", "algbw", "# nccl-tests version",
    "# rccl-tests", "Test NCCL failure", "Test CUDA failure", "Test HIP failure", "all_reduce_perf", "all_gather_perf", "alltoall_perf",
    "broadcast_perf", "reduce_scatter_perf", "sendrecv_perf",
)  # fmt: skip
KEEP = (0, 60)


class _Run:
    """What is known of one run while its lines go by."""

    def __init__(self) -> None:
        self.cards: dict[str, int] = {}
        self.card_line: Line | None = None
        self.op = ""
        self.transport = "default"
        self.compared: bool | None = None  # None: not said
        self.wrong: list[tuple[int, bool]] = []  # size in bytes, wrong?
        self.first_bad: Line | None = None
        self.said = False
        self.stopped: Line | None = None  # `^C` below a header without rows
        self.busbw_GBps: list[tuple[int, float, Line]] = []  # size in bytes

    @property
    def empty(self) -> bool:
        return not (self.cards or self.wrong or self.said)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    if any(rx(_SUMMARY + "|" + _FAILED + "|" + _DEVICE).search(text.lines[i].text[:LINE_MAX]) for i in hits):
        yield Seen(source=source(text, text.lines[hits[0]]), kind="nccl-tests")
    engine = "rccl" if any(rx(r"rccl|AMD |common\.cu\.cpp|hipify").search(text.lines[i].text[:LINE_MAX]) for i in hits) else "nccl"
    run, done = _Run(), -1
    for index in hits:
        line = text.lines[index]
        words = line.text[:LINE_MAX]
        if words.startswith(("# nThread", "# nccl-tests version", "# Collective test starting")) and run.said:
            yield from _cards(text, run)
            run = _Run()
        _about(run, words, line)
        if "busbw" in words and ("#wrong" in words or "error" in words) and index > done:
            done = _rows(run, text, index)
            _stopped(run, text, index)
        if (average := rx(r"# Avg bus bandwidth\s*: ([\d.]{1,12})").search(words)) is not None:
            yield Event(source=source(text, line), rank=line.rank, kind="nccl_tests_average", value=f"{float(average[1]):g}")
        if (summary := rx(_SUMMARY).search(words)) is not None:
            yield from _summary(run, text, line, int(summary.group(1)), engine)
        if rx(_FAILED).search(words) is not None:
            run.said = True
            where = source(text, line)
            yield Collective(
                source=where, rank=line.rank, engine=engine, result="error", op=run.op, transport=run.transport, ranks=_ranks(run)
            )
    if not run.said and not run.wrong and run.stopped is not None:
        yield Collective(
            source=source(text, run.stopped), engine=engine, result="hang", op=run.op, transport=run.transport, ranks=_ranks(run)
        )
    yield from _speed(text, run)
    if not run.said and any(bad for _, bad in run.wrong) and run.first_bad is not None:  # cut before its summary, wrong already
        yield from _summary(run, text, run.first_bad, 0, engine)
    yield from _cards(text, run)


def _about(run: _Run, words: str, line: Line) -> None:
    if (card := rx(_DEVICE).search(words)) is not None and len(run.cards) < 64:
        name = card.group(2).strip()
        run.cards[name] = run.cards.get(name, 0) + 1
        run.card_line = run.card_line or line
    if (name_ := rx(_NAME).search(words)) is not None:
        run.op = _OPS.get(name_.group(1), name_.group(1))
        if "NCCL_P2P_DISABLE=1" in words:
            run.transport = "net" if "NCCL_SHM_DISABLE=1" in words else "shm"
    if (validation := rx(r"# nThread.*validation: ?([01])\b").search(words)) is not None:
        run.compared = validation.group(1) == "1"


def _rows(run: _Run, text: Text, header: int) -> int:
    """Rows below a header with `#wrong`. Cells are found from the right, since left ones may be blank and a time stamp may follow."""
    names = text.lines[header].text[:LINE_MAX].split()
    names = names[1:] if names[:1] == ["#"] else names
    from_right = [len(names) - i for i, name in enumerate(names) if name == "#wrong"]
    last = header
    for last in range(header + 1, min(header + 1 + ROWS, len(text.lines))):
        line = text.lines[last]
        words = line.text[:LINE_MAX]
        if "Out of bounds" in words or "#wrong" in words:
            return last - 1
        size = rx(_ROW).search(words)
        if size is None:
            continue
        cells = words.split()[: len(names)]
        if (
            speed := rx(r"(?:sum|prod|max|min|none|avg|mulsum)\s+-?\d+\s+[\d.]{1,12}\s+[\d.]{1,9}\s+([\d.]{1,9})\s").search(words)
        ) is not None:
            run.busbw_GBps.append((int(size.group(1)), float(speed.group(1)), line))
        counts = [cells[-n] for n in from_right if n <= len(cells)]
        if not counts or not all(rx(_WRONG).search(c) for c in counts):
            continue
        if run.compared is None or "N/A" not in counts:
            run.compared = any(c != "N/A" for c in counts)
        bad = any(c != "N/A" and float(c) > 0 for c in counts)
        run.wrong.append((int(size.group(1)), bad))
        run.first_bad = run.first_bad or (line if bad else None)
    return last


def _stopped(run: _Run, text: Text, header: int) -> None:
    """A run that a person broke off before its first row: it hung."""
    for line in text.lines[header + 1 : header + 40]:
        if rx(_ROW).search(line.text[:LINE_MAX]) is not None:
            return
        if line.text.strip() in ("^C", "^C^C") or "Interrupted" in line.text[:200]:
            run.stopped = line
            return


def _speed(text: Text, run: _Run) -> Iterator[Fact]:
    """The bus bandwidth of the largest message, where it is large enough to mean the link and not the start."""
    large = [row for row in run.busbw_GBps if row[0] >= 64 << 20]
    if large:
        _, speed, line = max(large, key=lambda row: row[0])
        yield Event(source=source(text, line), rank=line.rank, kind="nccl_tests_busbw", value=f"{speed:g}")


def _summary(run: _Run, text: Text, line: Line, count: int, engine: str) -> Iterator[Fact]:
    run.said = True
    rows_wrong = sum(bad for _, bad in run.wrong)
    if run.compared is False and not count and not rows_wrong:
        return
    wrong = bool(count or rows_wrong)
    where = source(text, line)
    result = "wrong" if wrong else "ok"
    yield Collective(source=where, rank=line.rank, engine=engine, result=result, op=run.op, transport=run.transport, ranks=_ranks(run))
    if not wrong:
        yield Event(source=where, rank=line.rank, kind="nccl_tests_ok")
        return
    yield Event(source=where, rank=line.rank, kind="nccl_tests_failed", value=str(count or rows_wrong))
    good, bad = [s for s, w in run.wrong if not w], [s for s, w in run.wrong if w]
    if good and bad and run.first_bad is not None:
        fact = "from_bytes" if max(good) < min(bad) else "some_sizes"
        yield Pattern(source=source(text, run.first_bad), fact=fact, value=str(min(bad)) if fact == "from_bytes" else "")


def _ranks(run: _Run) -> str:
    return str(sum(run.cards.values())) if run.cards else ""


def _cards(text: Text, run: _Run) -> Iterator[Fact]:
    for name, count in run.cards.items():
        if run.card_line is not None:
            yield Gpu(source=source(text, run.card_line), name=name, count=count)
