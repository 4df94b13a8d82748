"""`nvidia-smi topo -m` and `nvidia-smi topo -p2p r|w` -> what joins each pair of GPUs, what the driver says of peer access.

In:      the matrix, whole or cut: header with ANSI underline, tabs or spaces, columns out of line, rows missing, no header at all.
Out:     Topo per pair (`NV12` -> NV with 12 links, the old `SOC` -> SYS) and one Topo(pairs="all") when every pair is known and the same;
         PeerAccess with claimed all | some | none over all pairs, and per pair where pairs differ.
Unknown: a cell that is not a known word gives no fact for its pair; without a header only columns that must be GPUs are used;
         `topo -p2p n` and `a` (NVLink, atomics) say nothing of plain peer access and give no PeerAccess.
Raises:  nothing.
Source:  the legends that both commands print under their tables, drivers 367 .. 610.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Fact, Line, PeerAccess, Seen, Text, Topo
from linkproof.parse.rules import LINE_MAX, rx, source
from linkproof.parse.spans import windows, without_ansi

_WORDS = ("PIX", "PXB", "PHB", "NODE", "SYS")
ANCHORS = (
    *(f"{gap}GPU{n}" for gap in ("\t", "  ") for n in (0, 1)),
    *(f"GPU{n}{gap}" for gap in ("\t", "  ", " X ", " GPU") for n in (0, 1)),
    *(f"{gap}{word}" for gap in ("\t", "  ") for word in (*_WORDS, "NV1", "CNS", "GNS", "TNS")),
    "[4mGPU",
)
KEEP = (3, 40)

_PATHS = {**{word: word for word in _WORDS}, "SOC": "SYS"}
_STATUS = ("OK", "CNS", "GNS", "TNS", "NS", "DR", "U")
_WORST = ("NS", "TNS", "GNS", "CNS", "DR", "U", "OK")
_END = ("CPU", "NUMA", "GPU", "Affinity")
_GPUS_MOST = 64


def _path(cell: str) -> str:
    if cell.startswith("NV") and cell[2:].isdigit() and len(cell) < 6:
        return "NV"
    return _PATHS.get(cell, "")


def _links(cell: str) -> int:
    return int(cell[2:]) if _path(cell) == "NV" else 0


def _known(cell: str) -> bool:
    return cell == "X" or cell in _STATUS or _path(cell) != ""


def _gpu(token: str) -> int | None:
    digits = token[3:]
    return int(digits) if token.startswith("GPU") and digits.isdigit() and len(digits) < 4 else None


class _Matrix:
    def __init__(self, first: Line, columns: list[str] | None, kind: str) -> None:
        self.first, self.columns, self.kind = first, columns, kind
        self.rows: dict[int, tuple[Line, list[str]]] = {}

    def add(self, line: Line, number: int, cells: list[str]) -> None:
        if self.columns is not None:
            cells = cells[: len(self.columns)]
        if len(self.rows) < _GPUS_MOST:
            self.rows.setdefault(number, (line, cells))

    def names(self) -> list[int | None]:
        if self.columns is not None:
            return [_gpu(name) for name in self.columns]
        return list(range(max(self.rows, default=-1) + 1))

    def cells(self) -> dict[tuple[int, int], list[tuple[str, Line]]]:
        """Pair (low, high) -> the one or two cells that speak of it."""
        out: dict[tuple[int, int], list[tuple[str, Line]]] = {}
        names = self.names()
        for number, (line, cells) in sorted(self.rows.items()):
            for name, cell in zip(names, cells, strict=False):
                if name is not None and name != number and cell != "X" and _known(cell):
                    out.setdefault((min(number, name), max(number, name)), []).append((cell, line))
        return out

    def gpus(self) -> int:
        return len({*self.rows, *(name for name in self.names() if name is not None)})


def _tokens(line: Line) -> list[str]:
    return without_ansi(line.text[:LINE_MAX]).lstrip(" \t>|#*").split()


def _asked(line: Line) -> str:
    found = rx(r"topo\s+(?:--?[a-z0-9]+\s+)*?-(?:-?p2p|-?p2p_capabilities)\s+([rwnapRWNAP])\b").search(line.text[:400])
    return str(found.group(1)).lower() if found else ""


def _matrices(text: Text, hits: list[int]) -> Iterator[_Matrix]:
    for window in windows(hits, *KEEP, len(text.lines)):
        matrix: _Matrix | None = None
        kind = ""
        for index in window:
            line = text.lines[index]
            tokens = _tokens(line)
            if not tokens:
                continue
            if "topo" in line.text and (asked := _asked(line)):
                kind = asked
            at = next((i for i, token in enumerate(tokens[:5]) if _gpu(token) is not None), -1)
            columns: list[str] = []
            for token in tokens[at:] if at >= 0 else []:
                if token in _END:
                    break
                columns.append(token)
            if len(columns) > 1 and not any(_known(name) for name in columns):
                if matrix is not None:
                    yield matrix
                matrix, kind = _Matrix(line, columns, kind), ""
                continue
            number = _gpu(tokens[at]) if at >= 0 else None
            cells = tokens[at + 1 :]
            if number is not None and cells and _known(cells[0]):
                if matrix is None:
                    matrix, kind = _Matrix(line, None, kind), ""
                matrix.add(line, number, cells)
            elif matrix is not None and matrix.rows and not (matrix.columns and tokens[0] in matrix.columns):
                yield matrix
                matrix = None
        if matrix is not None:
            yield matrix


def _topo(text: Text, matrix: _Matrix) -> Iterator[Fact]:
    found: dict[tuple[int, int], str] = {}
    for pair, cells in matrix.cells().items():
        cell = next((cell for cell, _ in cells if _path(cell)), "")
        if cell:
            found[pair] = _path(cell)
            yield Topo(source=source(text, cells[0][1]), path=found[pair], pairs=f"{pair[0]}-{pair[1]}", links=_links(cell))
    n = matrix.gpus()
    if found and len(found) == n * (n - 1) // 2 and len(set(found.values())) == 1:
        yield Topo(source=source(text, matrix.first), path=next(iter(found.values())), pairs="all")


def _peer_access(text: Text, matrix: _Matrix) -> Iterator[Fact]:
    found: dict[tuple[int, int], str] = {}
    lines: dict[tuple[int, int], Line] = {}
    for pair, cells in matrix.cells().items():
        said = [cell for cell, _ in cells if cell in _STATUS]
        if said:
            found[pair], lines[pair] = min(said, key=_WORST.index), cells[0][1]
    if not found or matrix.kind in ("n", "a"):
        return
    n = matrix.gpus()
    complete, ok = len(found) == n * (n - 1) // 2, [status == "OK" for status in found.values()]
    refused = [status for status in found.values() if status not in ("OK", "U")]
    where = source(text, matrix.first)
    if complete and all(ok):
        yield PeerAccess(source=where, claimed="all", status="OK")
    elif any(ok) and refused:
        yield PeerAccess(source=where, claimed="some", status=max(sorted(set(refused)), key=refused.count))
    elif complete and len(refused) == len(found):
        yield PeerAccess(source=where, claimed="none", status=max(sorted(set(refused)), key=refused.count))
    if not complete or len(set(found.values())) > 1:
        for pair, status in found.items():
            claimed = "all" if status == "OK" else "" if status == "U" else "none"
            yield PeerAccess(source=source(text, lines[pair]), claimed=claimed, status=status, pairs=f"{pair[0]}-{pair[1]}")


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    for matrix in _matrices(text, hits):
        if matrix.rows:
            yield Seen(source=source(text, matrix.first), kind="nvidia-smi topo")
            yield from _topo(text, matrix)
            yield from _peer_access(text, matrix)
