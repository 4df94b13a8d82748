"""`rocm-smi --showtopo`, `amd-smi topology`, `rocminfo`, product lists -> AMD links, peer access, cards.

In:      the tables `Link Type between two GPUs` / `LINK TYPE TABLE:`, `Link accessibility between two GPUs` / `ACCESS TABLE:`,
         `Weight between two GPUs` / `WEIGHT TABLE:`; cards by index (GPU0) or by bus address; `Marketing Name`, `Card Series`, gfx names.
Out:     Topo per pair and for all (XGMI, PCIE), PeerAccess, Gpu per kind of card, Gpu(integrated_visible), Gpu(mixed_models).
Unknown: a cell that is not a known word gives nothing; weights are read only where no link type was printed (15: XGMI, 40: PCIE).
Raises:  nothing.
Source:  rocm_smi.py and amd-smi of ROCm 4.x .. 7.x; link weights of the amdkfd driver.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Fact, Gpu, Line, PeerAccess, Seen, Text, Topo
from linkproof.parse.rules import LINE_MAX, rx, source
from linkproof.parse.spans import bdf

_TITLES = {
    "Link Type between two GPUs": "link",
    "LINK TYPE TABLE:": "link",
    "Link accessibility between two GPUs": "access",
    "ACCESS TABLE:": "access",
    "Weight between two GPUs": "weight",
    "WEIGHT TABLE:": "weight",
}
_CARDS = ("Marketing Name:", "Card series:", "Card Series:", "Name:                    gfx", ", gfx")
ANCHORS = (*_TITLES, *_CARDS)
KEEP = (2, 36)

_LINKS = {"XGMI": "XGMI", "PCIE": "PCIE", "PCIe": "PCIE", "PCI": "PCIE"}
_WEIGHTS = {"15": "XGMI", "40": "PCIE"}
_ACCESS = {"True": "OK", "ENABLED": "OK", "False": "NS", "DISABLED": "NS"}
# graphics parts of processors: ROCm lists them as devices of their own
_INTEGRATED = ("gfx902", "gfx909", "gfx90c", "gfx1013", "gfx1033", "gfx1035", "gfx1036", "gfx1037", "gfx1103")
_ROWS_MOST = 64


def _name(token: str) -> str:
    if token.startswith("GPU") and token[3:].isdigit() and len(token) < 7:
        return token[3:]
    return bdf(token) if token.count(":") in (1, 2) and len(token) < 16 else ""


def _table(text: Text, title: int) -> Iterator[tuple[Line, str, str, str]]:
    """(line, row, column, cell) of the table below a title."""
    columns: list[str] = []
    for index in range(title + 1, min(title + 1 + KEEP[1], len(text.lines))):
        line = text.lines[index]
        tokens = line.text[:LINE_MAX].split()
        if not tokens:
            continue
        names = [_name(token) for token in tokens[:_ROWS_MOST]]
        if not columns and all(names):
            columns = names
        elif columns and names[0]:
            for column, cell in zip(columns, tokens[1:], strict=False):
                if column != names[0]:
                    yield line, names[0], column, cell
        elif columns or rx(r"^\W*[A-Z][A-Za-z -]+").search(line.text[:120]):
            return


def _pairs(text: Text, title: int, words: dict[str, str]) -> tuple[dict[tuple[str, str], tuple[str, Line]], int]:
    found: dict[tuple[str, str], tuple[str, Line]] = {}
    names: dict[str, int] = {}
    for line, row, column, cell in _table(text, title):
        a, b = names.setdefault(row, len(names)), names.setdefault(column, len(names))
        pair = (row, column) if a < b else (column, row)
        word = words.get(cell, "")
        if word and (pair not in found or found[pair][0] == "OK"):  # of two answers for a pair the worse one
            found[pair] = (word, line)
    return found, len(names)


def _topo(text: Text, title: int, words: dict[str, str]) -> Iterator[Fact]:
    found, n = _pairs(text, title, words)
    for (a, b), (path, line) in found.items():
        yield Topo(source=source(text, line), path=path, pairs=f"{a}-{b}")
    paths = {path for path, _ in found.values()}
    if len(paths) == 1 and len(found) == n * (n - 1) // 2:
        yield Topo(source=source(text, text.lines[title]), path=paths.pop(), pairs="all")


def _access(text: Text, title: int) -> Iterator[Fact]:
    found, n = _pairs(text, title, _ACCESS)
    if not found:
        return
    said = {status for status, _ in found.values()}
    where = source(text, text.lines[title])
    if len(said) > 1:
        yield PeerAccess(source=where, claimed="some")
        for (a, b), (status, line) in found.items():
            yield PeerAccess(source=source(text, line), claimed="all" if status == "OK" else "none", pairs=f"{a}-{b}")
    elif len(found) == n * (n - 1) // 2:
        yield PeerAccess(source=where, claimed="all" if said == {"OK"} else "none")


def _cards(text: Text, hits: list[int]) -> Iterator[Fact]:
    names: dict[str, list[Line]] = {}
    chips: dict[str, Line] = {}
    chip = ""
    for index in hits:
        line = text.lines[index]
        words = line.text[:LINE_MAX]
        code = rx(r"(?:^\s*Name:\s+|Device \d{1,3}: .*, )(gfx[0-9a-f]{3,4})\b").search(words)
        if code is not None:
            chip = str(code.group(1))
            chips.setdefault(chip, line)
        card = rx(r"GPU\[?\s?\d{1,3}\]?\s*: Card [Ss]eries:\s+(\S.*\S)\s*$").search(words)
        marketing = rx(r"^\s*Marketing Name:\s+(\S.*\S)\s*$").search(words)
        if card is not None:
            names.setdefault(str(card.group(1)), []).append(line)
        elif marketing is not None and chip:
            names.setdefault(str(marketing.group(1)), []).append(line)
        if marketing is not None:
            chip = ""
    for name, lines in names.items():
        yield Gpu(source=source(text, lines[0]), name=name, count=len(lines))
    for code_name, line in chips.items():
        if code_name in _INTEGRATED and len(chips) > 1:
            yield Gpu(source=source(text, line), fact="integrated_visible", value=code_name)
    if len(chips) > 1:
        yield Gpu(source=source(text, next(iter(chips.values()))), fact="mixed_models", value=" + ".join(chips))


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    titles: list[tuple[int, str]] = []
    for index in hits:
        words = text.lines[index].text[:LINE_MAX]
        titles += [(index, kind) for title, kind in _TITLES.items() if title in words][:1]
    if titles:
        yield Seen(source=source(text, text.lines[titles[0][0]]), kind="rocm-smi topology")
    linked = any(kind == "link" for _, kind in titles)
    for index, kind in titles[:200]:
        if kind == "access":
            yield from _access(text, index)
        elif kind == "link" or not linked:
            yield from _topo(text, index, _LINKS if kind == "link" else _WEIGHTS)
    yield from _cards(text, hits)
