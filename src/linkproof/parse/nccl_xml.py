"""NCCL's topology and graph dumps (NCCL_TOPO_DUMP_FILE, NCCL_GRAPH_DUMP_FILE) -> do the cards hang in a tree, and how far must a ring go.

In:      the XML or a piece of it, read tag by tag: no XML library, so nothing in it can be an entity and a cut file is as good as a whole one.
Out:     Event nccl_topo_flat | nccl_topo_tree, Gpu(count), Host(cpu_vendor), Topo (NVLink, XGMI; the farthest step of a ring).
Unknown: a card whose <pci> or <cpu> is cut away counts for neither shape. A card directly below the CPU that has a link width is a board
         without switches, not a guest: neither event.
Raises:  nothing.
Source:  NCCL `src/graph/xml.cc`, `src/graph/topo.cc`, `src/graph/search.cc`, 2.6.4 to 2.30.7; RCCL's <xgmi>.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from linkproof.model import Event, Fact, Gpu, Host, Line, Seen, Text, Topo
from linkproof.parse.nccl_log import PATHS
from linkproof.parse.rules import LINE_MAX, distinct, rx, source

_TAG = r"<(/?)(cpu|pci|gpu|nvlink|xgmi|graph)\b([^<>]*)"
TAGS = 50_000  # a machine of 72 cards has some thousands
_SWITCH = "0x068000"  # class of an NVSwitch

ANCHORS = ("<cpu ", "</cpu>", "<pci ", "</pci>", "<gpu ", "<nvlink ", "<xgmi ", "<graph id=")
KEEP = (0, 0)


class _Shape:
    """Cards by how they hang: behind a bridge, at the CPU with a link, at the CPU without any."""

    def __init__(self) -> None:
        self.depth: int | None = None  # open <pci> below the open <cpu>; None: the <cpu> was cut away
        self.width = self.busid = ""
        self.cards = self.linked = 0
        self.bridged: Line | None = None
        self.direct: Line | None = None
        self.flat: Line | None = None
        self.numa: set[str] = set()


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    first = next((i for i in hits if rx(r"<(?:cpu|pci|gpu|nvlink|xgmi|graph) \w+=").search(text.lines[i].text[:LINE_MAX])), None)
    if first is None:
        return
    yield Seen(source=source(text, text.lines[first]), kind="NCCL topology")
    yield from distinct(_all(text, hits))


def _all(text: Text, hits: list[int]) -> Iterator[Fact]:
    shape, left = _Shape(), TAGS
    for index in hits:
        line = text.lines[index]
        for tag in islice(rx(_TAG).finditer(line.text[:LINE_MAX]), max(0, left)):
            left -= 1
            closing, name, rest = tag.group(1) == "/", tag.group(2), tag.group(3)
            _walk(shape, line, closing, name, rest)
            if not closing:
                yield from _told(text, line, name, rest, shape.busid)
    if shape.cards:
        yield Gpu(source=source(text, text.lines[hits[0]]), count=shape.cards)
    if shape.bridged is not None:
        yield Event(source=source(text, shape.bridged), kind="nccl_topo_tree")
    elif shape.flat is not None and shape.direct is None:
        yield Event(source=source(text, shape.flat), kind="nccl_topo_flat", value="numaid=-1" if shape.numa == {"-1"} else "")


def _attribute(rest: str, name: str) -> str | None:
    found = rx(rf'\b{name}="([^"]{{0,255}})"').search(rest)
    return found.group(1) if found is not None else None


def _walk(shape: _Shape, line: Line, closing: bool, name: str, rest: str) -> None:
    alone = rest.rstrip().endswith("/")
    if name == "cpu":
        shape.depth = None if closing or alone else 0
        numa = _attribute(rest, "numaid")
        if numa is not None:
            shape.numa.add(numa)
    elif name == "pci" and closing:
        shape.depth = max(0, shape.depth - 1) if shape.depth is not None else None
    elif name == "pci" and not alone:
        shape.depth = shape.depth + 1 if shape.depth is not None else None
        shape.width, shape.busid = _attribute(rest, "link_width") or "", _attribute(rest, "busid") or ""
    elif name == "gpu" and not closing and _attribute(rest, "sm") is not None:  # a graph names its cards again, by number only
        shape.cards = min(shape.cards + 1, 4096)
        has_link = bool(shape.width.strip("0"))
        if shape.depth is not None and shape.depth >= 2 and has_link:
            shape.bridged = shape.bridged or line
        elif shape.depth == 1 and has_link:
            shape.direct = shape.direct or line
        elif shape.depth == 1:
            shape.flat = shape.flat or line


def _told(text: Text, line: Line, name: str, rest: str, busid: str) -> Iterator[Fact]:
    where = source(text, line)
    if name == "cpu" and (vendor := _attribute(rest, "vendor")):
        yield Host(source=where, fact="cpu_vendor", value=vendor)
    elif name in ("nvlink", "xgmi") and (_attribute(rest, "count") or "0").strip("0") and _attribute(rest, "target") != busid:
        pairs = "all" if _attribute(rest, "tclass") == _SWITCH else "some"
        yield Topo(source=where, path="NV" if name == "nvlink" else "XGMI", pairs=pairs)
    elif name == "graph":
        path = PATHS.get(_attribute(rest, "typeintra") or "")
        if path:
            yield Topo(source=where, path=path, pairs="some")
