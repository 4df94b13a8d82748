"""`nvidia-smi nvlink -s` and `-e` -> NVLinks that are down, and error counters above zero.

In:      `GPU 0: NAME (UUID: ...)` and below it `Link 0: 25 GB/s`, `Link 1: <inactive>`, `Link 0: Replay Errors: 0`, or a part of that.
Out:     Event nvlink_down per GPU with inactive links beside active ones, here or on another GPU of the list; Gpu(nvlink_errors) per GPU,
         Gpu(nvlink_crc) of its checksum errors: such packets are sent again.
         The value of nvlink_down ends in ", the same on every GPU" where nobody stands out: bridges for a part of the links look so too.
Unknown: a list without one active link says nothing (no bridge is fitted). Counters of corrected symbols and bit error rates are no
         errors: links of Hopper and later always have some.
Raises:  nothing.
Source:  nvidia-smi nvlink of drivers 384 .. 610.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Gpu, Line, Seen, Text
from linkproof.parse.rules import LINE_MAX, rx, source
from linkproof.parse.spans import windows

ANCHORS = (
    "all links are inActive",
    *(f"Link {n}:" for n in range(18)),
    "<inactive>",
    "Replay Errors: ",
    "Recovery Errors: ",
    "CRC Errors: ",
)
KEEP = (2, 16)

_CARD = r"^\s*GPU (\d{1,3}):(?: (\S.*?))?(?: \(UUID: |\s*$)"
_STATE = r"^\s*Link (\d{1,2}): (<inactive>|(\d{1,4}(?:\.\d{1,4})?) GB/s)\s*$"
_COUNTER = r"^\s*(?:Link (\d{1,2}): )?([A-Za-z][A-Za-z -]{3,40}?(?:[Ee]rrors?|events))\s*: (\d{1,18})\s*$"
_CORRECTED = ("symbol", "fec", "raw", "successful")


class _Links:
    def __init__(self, name: str, line: Line | None) -> None:
        self.name, self.line = name, line
        self.active: list[int] = []
        self.inactive: list[tuple[int, Line]] = []
        self.errors: dict[str, list[tuple[str, Line]]] = {}


def _read(text: Text, hits: list[int]) -> dict[int, _Links]:
    cards: dict[int, _Links] = {}
    current, link = -1, ""
    for index in (index for window in windows(hits, *KEEP, len(text.lines)) for index in window):
        line = text.lines[index]
        words = line.text[:LINE_MAX]
        card = rx(_CARD).search(words)
        if card is not None:
            current, link = int(card.group(1)), ""
            cards.setdefault(current, _Links(str(card.group(2) or ""), line))
            continue
        state = rx(_STATE).search(words)
        if state is not None:
            links = cards.setdefault(current, _Links("", None))
            speed = state.group(3)
            if speed is not None and float(str(speed)) > 0:
                links.active.append(int(state.group(1)))
            else:
                links.inactive.append((int(state.group(1)), line))
            continue
        heading = rx(r"^\s*Link (\d{1,2}):\s*$").search(words)
        if heading is not None:
            link = str(heading.group(1))
            continue
        counter = rx(_COUNTER).search(words)
        if counter is not None and (counter.group(1) is not None or link):
            what, count = str(counter.group(2)), int(counter.group(3))
            if count > 0 and not any(word in what.lower() for word in _CORRECTED):
                links = cards.setdefault(current, _Links("", None))
                fact = "nvlink_crc" if "crc" in what.lower() else "nvlink_errors"
                links.errors.setdefault(fact, []).append((f"link {counter.group(1) or link}: {what} {count}", line))
    return cards


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    for index in hits:
        line = text.lines[index]
        if "all links are inActive" in line.text[:LINE_MAX]:
            yield Event(source=source(text, line), kind="nvlink_down", value="all links")
            break
    cards = _read(text, hits)
    linked = {number: links for number, links in cards.items() if links.active or links.inactive}
    if linked:
        first = next(iter(linked.values()))
        line = first.line if first.line is not None else text.lines[hits[0]]
        yield Seen(source=source(text, line), kind="nvidia-smi nvlink")
    if any(links.active for links in linked.values()):
        everyone = len({(len(links.active), len(links.inactive)) for links in linked.values()}) == 1 and len(linked) > 1
        for number, links in linked.items():
            if not links.inactive:
                continue
            which = "all links" if not links.active else "links " + ",".join(str(n) for n, _ in links.inactive[:20])
            card = f"GPU {number} " if number >= 0 else ""
            value = f"{card}{which} inactive, {len(links.active)} active" + (", the same on every GPU" if everyone else "")
            yield Event(source=source(text, links.inactive[0][1]), kind="nvlink_down", value=value)
    for number, links in cards.items():
        card = f"GPU {number} " if number >= 0 else ""
        for fact, errors in links.errors.items():
            said = card + "; ".join(words for words, _ in errors[:4])
            yield Gpu(source=source(text, errors[0][1]), name=links.name, count=1, fact=fact, value=said)
