"""`nvidia-smi` (the table) and `nvidia-smi -L` -> driver, cards, memory, load, processes.

In:      the table of any driver generation (three-line rows; `Driver Version` or `KMD Version`), whole or a few of its lines;
         the list `GPU 0: NAME (UUID: ...)`; the message that a card does not answer.
Out:     Versions, Gpu per kind of card, Gpu facts: display_attached, mig, ecc_errors, utilisation_100_idle_power, utilisation_0,
         mixed_models, other_process; Event gpu_fell_off, mig_present; Platform(windows).
Unknown: `N/A`, `ERR!`, `[Not Supported]` give nothing. An idle machine (no load, no memory in use) is not `utilisation_0`.
         A process counts as foreign only beside ranks: its card also runs what other cards run, and nobody else runs it.
         `NVIDIA-SMI has failed ...` is not read here.
Raises:  nothing.
Source:  nvidia-smi of drivers 367 .. 617.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Gpu, Line, Platform, Seen, Text, Versions
from linkproof.parse.rules import LINE_MAX, Match, rx, source
from linkproof.parse.spans import bdf, windows

ANCHORS = (
    "| NVIDIA-SMI ", "NVIDIA-SMI ", "Driver Version: ", "KMD Version: ", "Persistence-M", "GPU-Util", "MiB |", "MiB /", "|=====",
    ".0 Off |", ".0  On |", ".0 On  |", ".0 On |", "(UUID: GPU-", "(UUID: MIG-", "MIG devices:", "TCC/WDDM", "Driver-Model", "Unable to determine the device handle", "GPU is lost",
)  # fmt: skip
KEEP = (2, 6)

IDLE_POWER = 0.35  # below this part of the power limit a GPU that claims full load only waits (spinning kernel)
LOADED_MIB = 1024  # a card that holds less has no model on it

_CARD = (
    r"(?:^|\|)\s*(\d{1,3})\s+(\S.*?)\s+(On|Off|N/A|WDDM|TCC|MCDM)\s*\|"
    r"\s*([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7])\s+(On|Off|N/A)\s*\|\s*([0-9]{1,12}|Off|N/A|ERR!)"
)
_POWER = r"(\d{1,4})W\s*/\s*(\d{1,4})W"
_MEMORY = r"\b(\d{1,7})MiB\s*/\s*(\d{1,7})MiB"
_LOAD = r"\b(\d{1,3})%\s+(?:Default|E\.|Exclusive|Prohibited)"
_PROCESS = r"^\s*\|\s*(\d{1,3})\s+(?:(?:N/A|\d{1,3})\s+(?:N/A|\d{1,3})\s+)?(\d{1,8})\s+(C|C\+G|M\+C|G)\s+(\S.*?)\s+(?:\d{1,7}MiB|N/A)\s*\|"
_LISTED = r"^\s*GPU (\d{1,3}): (\S.*?) \(UUID: GPU-"
_LOST = r"Unable to determine the device handle for (?:gpu )?GPU|GPU is lost"


class _Card:
    def __init__(self, line: Line, found: Match) -> None:
        self.line, self.load_line = line, line
        self.index, self.name, self.bus = int(found.group(1)), str(found.group(2)), bdf(str(found.group(4)))
        self.display, self.ecc, self.mig = found.group(5) == "On", str(found.group(6)), False
        self.power: int | None = None
        self.limit: int | None = None
        self.used_mib: int | None = None
        self.load: int | None = None

    def more(self, line: Line) -> None:
        """The second and third line of a card's cell."""
        words = line.text[:LINE_MAX]
        if (power := rx(_POWER).search(words)) is not None:
            self.power, self.limit = int(power.group(1)), int(power.group(2))
        if (memory := rx(_MEMORY).search(words)) is not None:
            self.used_mib = int(memory.group(1))
        if (load := rx(_LOAD).search(words)) is not None:
            self.load, self.load_line = int(load.group(1)), line
        if rx(r"\|\s*Enabled\s*\|?\s*$").search(words) is not None:
            self.mig = True

    def spins(self) -> bool:
        known = self.load is not None and self.power is not None and self.limit
        return bool(known and (self.load or 0) >= 90 and (self.power or 0) < IDLE_POWER * (self.limit or 1))


def _cards(text: Text, hits: list[int]) -> list[_Card]:
    """Cards of the last table in the text; two tables of one machine must not double its cards."""
    cards: list[_Card] = []
    for window in windows(hits, 1, 4, len(text.lines)):
        current: _Card | None = None
        for index in window:
            line = text.lines[index]
            words = line.text[:LINE_MAX]
            if "|" not in words:
                current = None
                continue
            found = rx(_CARD).search(words)
            if found is not None:
                current = _Card(line, found)
                if any(card.index == current.index for card in cards):
                    cards = []
                cards.append(current)
            elif current is not None:
                current.more(line)
    return cards


def _per_name(text: Text, named: list[tuple[str, Line]]) -> Iterator[Fact]:
    kinds: dict[str, list[Line]] = {}
    for name, line in named:
        kinds.setdefault(name, []).append(line)
    for name, lines in kinds.items():
        yield Gpu(source=source(text, lines[0]), name=name, count=len(lines))
    if len(kinds) > 1:
        yield Gpu(source=source(text, named[0][1]), fact="mixed_models", value=" + ".join(sorted(kinds)))


def _card_facts(text: Text, cards: list[_Card]) -> Iterator[Fact]:
    yield from _per_name(text, [(card.name, card.line) for card in cards])
    for card in cards:
        where = source(text, card.line)
        if card.display:
            yield Gpu(source=where, name=card.name, count=1, fact="display_attached", value=card.bus)
        if card.ecc.isdigit() and int(card.ecc) > 0:
            yield Gpu(
                source=where, name=card.name, count=1, fact="ecc_errors", value=f"GPU {card.index}: {card.ecc} uncorrectable (volatile)"
            )
        if card.mig:
            yield Gpu(source=where, name=card.name, count=1, fact="mig")
        if card.spins():
            said = f"GPU {card.index}: {card.load}% at {card.power}W of {card.limit}W"
            yield Gpu(source=source(text, card.load_line), name=card.name, count=1, fact="utilisation_100_idle_power", value=said)
    if cards and all(card.load == 0 and (card.used_mib or 0) >= LOADED_MIB for card in cards):
        yield Gpu(
            source=source(text, cards[0].load_line), count=len(cards), fact="utilisation_0", value="memory in use on every card, no load"
        )


def _processes(text: Text, hits: list[int]) -> Iterator[Fact]:
    on: dict[int, dict[str, Line]] = {}
    for index in hits:
        line = text.lines[index]
        found = rx(_PROCESS).search(line.text[:LINE_MAX])
        if found is not None and found.group(3) != "G":
            command = str(found.group(4)).replace("...", "/").rstrip("/").rsplit("/", 1)[-1]
            on.setdefault(int(found.group(1)), {}).setdefault(command, line)
    everywhere: dict[str, int] = {}
    for commands in on.values():
        for command in commands:
            everywhere[command] = everywhere.get(command, 0) + 1
    for card, commands in on.items():
        if not any(everywhere[command] > 1 for command in commands):
            continue
        for command, line in commands.items():
            if everywhere[command] == 1:
                yield Gpu(source=source(text, line), count=1, fact="other_process", value=f"GPU {card}: {command}")


def _line_facts(text: Text, line: Line) -> Iterator[Fact]:
    words, where = line.text[:LINE_MAX], source(text, line)
    head = rx(r"NVIDIA-SMI +\d[0-9.]{2,12} .*?(?:Driver|KMD) Version: *(\d{3}[0-9.]{1,12})").search(words)
    if head is not None:
        yield Seen(source=where, kind="nvidia-smi")
        cuda = rx(r"CUDA (?:UMD )?Version: *(\d{1,2}\.\d{1,2})").search(words)
        yield Versions(source=where, driver=str(head.group(1)), cuda=str(cuda.group(1)) if cuda is not None else "")
    if rx(r"Name +(?:TCC/WDDM|Driver-Model) *\|").search(words) is not None:
        yield Platform(source=where, kind="windows", note="nvidia-smi of a Windows driver")
    if "MIG devices:" in words or "(UUID: MIG-" in words:
        yield Event(source=where, kind="mig_present")
    if rx(_LOST).search(words) is not None:
        address = rx(r"([0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7])").search(words)
        yield Event(source=where, kind="gpu_fell_off", value=bdf(str(address.group(1))) if address is not None else "")


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    seen: set[tuple[str, str]] = set()
    listed: dict[int, tuple[str, Line]] = {}
    for index in hits:
        line = text.lines[index]
        for fact in _line_facts(text, line):
            key = (type(fact).__name__, str(getattr(fact, "value", "")) + str(getattr(fact, "driver", "")))
            if key not in seen:
                seen.add(key)
                yield fact
        found = rx(_LISTED).search(line.text[:LINE_MAX])
        if found is not None:
            listed.setdefault(int(found.group(1)), (str(found.group(2)), line))
    cards = _cards(text, hits)
    if cards:
        yield from _card_facts(text, cards)
    elif listed:
        yield from _per_name(text, list(listed.values()))
    yield from _processes(text, hits)
