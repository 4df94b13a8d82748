"""What the nesting of a topology file means to NCCL, without linkproof's code: published files, and XML that linkproof wrote."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

NESTINGS = Path(__file__).parent / "nccl_topologies.txt"
Place = tuple[str, tuple[str, ...]]  # NUMA node, switches above, outermost first
Nest = dict[str, Place]


def nestings() -> dict[str, Nest]:
    """The published files: every GPU with its NUMA node and the switches that it is nested in."""
    out: dict[str, Nest] = {}
    for block in NESTINGS.read_text(encoding="utf-8").split("# ")[1:]:
        head, *lines = block.splitlines()
        numa, above = "", list[str]()
        for line in lines:
            depth, words = (len(line) - len(line.lstrip())) // 2, line.split()
            if words[0] == "cpu":
                numa = words[1]
                continue
            above[depth - 1 :] = [words[0]]
            if len(words) > 1 and words[1][:2] in ("03", "12"):
                out.setdefault(head, {})[words[0]] = (numa, tuple(above[:-1]))
    return {name: nest for name, nest in out.items() if len(nest) > 1}


def nccl_class(a: Place, b: Place) -> str:
    """What the nesting of a topology file means to NCCL."""
    if a[1] and b[1] and a[1][0] == b[1][0]:
        return "PIX" if a[1] == b[1] else "PXB"
    return "PHB" if a[0] == b[0] else "SYS"


def gpus_of_xml(xml: str) -> Nest:
    """GPU -> NUMA node and the switches it is nested in, by the rules that NCCL reads a topology file with."""
    out: Nest = {}

    def walk(node: ElementTree.Element, numa: str, above: tuple[str, ...]) -> None:
        for child in node:
            assert child.tag in ("cpu", "pci")
            if child.tag == "cpu":
                int(child.attrib["numaid"])
                walk(child, child.attrib["numaid"], ())
                continue
            assert {"busid", "class", "link_speed", "link_width"} <= child.attrib.keys()
            int(child.attrib["link_width"])
            if child.attrib["class"][:4] in ("0x03", "0x12"):
                out[child.attrib["busid"]] = (numa, above)
            walk(child, numa, (*above, child.attrib["busid"]))

    root = ElementTree.fromstring(xml)
    assert root.tag == "system" and root.attrib["version"] == "1"
    walk(root, "", ())
    return out
