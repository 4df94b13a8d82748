"""Error counters and link states, read before and after the traffic: what right bytes hide (replays, retrained links, corrected errors).

In:      PCI addresses of the GPUs in the order of their numbers; a root, "/" or a tree of files.
Out:     `read` gives (name, where, value); `compare` the Counters that changed or could not be read.
Unknown: what cannot be read is None, never 0; what a card does not have (no NVLink, no ECC) is left out.
Raises:  nothing. NVML is asked in a child (nvml_counters.py): a sick driver can hang it.
Source:  Linux Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats and dev-kmsg; NVML: nvml.h.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from linkproof import proc
from linkproof.measured import Counter
from linkproof.probe.nvml_counters import NVML, Row, no_nvml

NVML_DEADLINE_S = 15.0
LINES_MAX = 50  # of the kernel log, told
LINES_KEPT = 200  # and looked at on each side
LINE_MAX = 300
KERNEL_LOG_DEADLINE_S = 5.0
AER_FILES = {"AER correctable": "aer_dev_correctable", "AER nonfatal": "aer_dev_nonfatal", "AER fatal": "aer_dev_fatal"}
KERNEL_LOG, WIDTH = "kernel log", "link width"
UNKNOWN_WIDTHS = ("", "0", "63", "255", "Unknown")  # what the kernel shows of a link that is down, or of a device that is gone
_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_TELLING = re.compile(r"\bS?Xid \(|\bAER: |PCIe Bus Error|AMD-Vi|\bDMAR\b")
_OUR_KILL = re.compile(r"\bXid \([^)]*\): 45\b")  # a channel that was removed since its process ended: a test that we killed leaves it
_KIND = re.compile(r"^(\w+) (\d+)$", re.M)


def read(gpus: Sequence[str], root: str = "/", ask_nvml: Callable[[Sequence[str]], list[Row]] | None = None) -> list[Row]:
    """Every counter of these GPUs, of the bridges above them, and where the kernel log stands. ask_nvml: stands in for the child."""
    base = root.rstrip("/")
    chains = {bdf: _chain(base, bdf) for bdf in gpus}
    rows: list[Row] = []
    for bdf in dict.fromkeys(function for chain in chains.values() for function in chain):
        rows += _pci(base, bdf, bdf in chains)
    if any(_text(f"{base}/sys/bus/pci/devices/{bdf}/vendor") in ("0x10de", None) for bdf in gpus):
        rows += ask_nvml(gpus) if ask_nvml else no_nvml(gpus) if base else _nvml_child(gpus)  # another root is a tree of files
    return [*rows, (KERNEL_LOG, "", _kernel_log(f"{base}/dev/kmsg"))]


def compare(before: Sequence[Row], after: Sequence[Row]) -> tuple[Counter, ...]:
    """Those that changed or could not be read, in the order in which they were read."""
    old, new = ({(name, where): value for name, where, value in rows} for rows in (before, after))
    silent = {where for rows in (old, new) for (name, where), value in rows.items() if name == NVML and value is None}
    out = []
    for name, where in dict.fromkeys((*old, *new)):
        if name != NVML and where.partition(" link")[0] in silent:  # its one row says it for all that hang on it
            continue
        counter = _told(name, where, old.get((name, where)), new.get((name, where)))
        if counter is not None:
            out.append(counter)
    return tuple(out)


def worrying(counter: Counter) -> bool:
    """Does it speak of a fault during the traffic? A number that rose, a link that fell back, new lines of the kernel log, and what can no
    longer be read. What could never be read is no fault: it is unknown."""
    if counter.before is None:
        return False
    if counter.after is None:
        return True
    if counter.name == KERNEL_LOG:
        return any(_OUR_KILL.search(line) is None for line in counter.after.splitlines())
    old, new = _number(counter.before), _number(counter.after)
    if old is None or new is None:
        return counter.after != counter.before
    return new < old if counter.name == WIDTH else new > old


def _told(name: str, where: str, old: str | None, new: str | None) -> Counter | None:
    if name == KERNEL_LOG and old is not None and new is not None:
        lines = [line for number, line in _numbered(new) if number > _place(old)]
        return Counter(name, where, "", "\n".join(lines[:LINES_MAX])) if lines else None
    if old is not None and old == new:
        return None
    return Counter(name, where, *(_aer(old, new) if name in AER_FILES else (old, new)))


def _aer(old: str | None, new: str | None) -> tuple[str | None, str | None]:
    """Sums, and which kinds rose: "2" and "5 (BadTLP +3)"."""
    known, kinds = _kinds(old or ""), _kinds(new or "")
    rose = ", ".join(f"{kind} +{n - known.get(kind, 0)}" for kind, n in kinds.items() if old is not None and n > known.get(kind, 0))
    after = f"{sum(kinds.values())} ({rose})" if rose else str(sum(kinds.values()))
    return None if old is None else str(sum(known.values())), None if new is None else after


def _number(value: str) -> int | None:
    word = value.split(" ")[0]
    return int(word) if word.isdigit() else None


# ---------------------------------------------------------------- /sys


def _chain(base: str, bdf: str) -> list[str]:
    """The function and every bridge above it, root port first."""
    real = os.path.realpath(f"{base}/sys/bus/pci/devices/{bdf}")
    above = [part for part in real.split("/") if _BDF.fullmatch(part)]
    return above if bdf in above else [*above, bdf]


def _pci(base: str, bdf: str, is_gpu: bool) -> list[Row]:
    folder = f"{base}/sys/bus/pci/devices/{bdf}"
    texts = {name: _text(f"{folder}/{file}") for name, file in AER_FILES.items()}
    rows: list[Row] = []
    if any(text is not None for text in texts.values()):
        for name, text in texts.items():
            kinds = _kinds(text or "")
            rows.append((name, bdf, "\n".join(f"{kind} {n}" for kind, n in kinds.items()) or None))
    else:  # the kernel does not handle AER here: one thing that is not known, not three
        rows.append(("AER", bdf, None))
    width = _text(f"{folder}/current_link_width")
    if is_gpu or width is not None:  # a bridge that is no PCI Express port has none
        rows.append((WIDTH, bdf, None if width is None or width in UNKNOWN_WIDTHS else width))
    return rows


def _kinds(text: str) -> dict[str, int]:
    """The kinds of an AER file and how often; its total is no kind."""
    return {kind: int(n) for kind, n in _KIND.findall(text) if not kind.startswith("TOTAL_")}


def _text(path: str) -> str | None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(1 << 16).decode("utf-8", "replace").strip()
    except OSError:
        return None


# ---------------------------------------------------------------- kernel log


def _kernel_log(path: str) -> str | None:
    """The number of the last record, and under it the last telling ones, each with its number; None if it may not be read, or not in time."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    last, lines, rest = -1, deque[str](maxlen=LINES_KEPT), b""
    until = time.monotonic() + KERNEL_LOG_DEADLINE_S
    try:
        while time.monotonic() < until:
            try:
                piece = os.read(fd, 1 << 16)  # one record of the device, or a piece of a file
            except BrokenPipeError:  # records were overwritten while we read: the next read goes on behind them
                continue
            except BlockingIOError:
                piece = b""
            if not piece:
                return "\n".join((str(last), *lines))
            *records, rest = (rest + piece).split(b"\n")
            for record in records:
                head, _, words = record.decode("utf-8", "replace").partition(";")
                fields = head.split(",")
                if len(fields) >= 3 and fields[1].isdigit():  # otherwise a property of the device of the record before
                    last = int(fields[1])
                    if _TELLING.search(words):
                        lines.append(f"{last} {words[:LINE_MAX]}")
    except OSError:
        return None
    finally:
        os.close(fd)
    return None


def _place(value: str) -> int:
    return int(value.split("\n", 1)[0])


def _numbered(value: str) -> list[tuple[int, str]]:
    return [(int(number), line) for number, _, line in (row.partition(" ") for row in value.split("\n")[1:])]


# ---------------------------------------------------------------- NVML


def _nvml_child(gpus: Sequence[str]) -> list[Row]:
    argv = (sys.executable, "-m", "linkproof.probe.nvml_counters", *gpus)
    done = proc.run(argv, deadline_s=NVML_DEADLINE_S, env={"PYTHONSAFEPATH": "1"})
    if done.out is None or done.why or done.code != 0:
        return no_nvml(gpus)
    try:
        return msgspec.json.decode(done.out.strip().split(b"\n")[-1], type=list[Row])  # a library may have printed before
    except msgspec.DecodeError:
        return no_nvml(gpus)
