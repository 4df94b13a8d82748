"""The service of NVSwitch machines (`systemctl status nvidia-fabricmanager`, its journal, `ps`) -> does it run.

In:      status blocks, `systemctl is-active`, journal lines of nv-fabricmanager, process lists.
Out:     FabricManager: running, stopped, version_mismatch; a mismatch wins over stopped, `Active:` over journal lines, later over earlier.
Unknown: `activating` and states that are not known give nothing. On a machine without NVSwitch a missing service is normal: this file
         does not know the machine.
Raises:  nothing.
Source:  messages of nvidia-fabricmanager 450 .. 610; systemd.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import FabricManager, Fact, Line, Text
from linkproof.parse.rules import LINE_MAX, rx, source

ANCHORS = ("nvidia-fabricmanager", "nv-fabricmanager", "abric manager", "abric Manager", "FM and driver")
KEEP = (0, 6)

_STATES = {"active": "running", "inactive": "stopped", "failed": "stopped", "unknown": "stopped"}
_MISMATCH = (
    r"[Ff]abric [Mm]anager NVIDIA GPU driver interface version|FM and driver version mismatch|[Ff]abric [Mm]anager version .{0,40}mismatch"
)
_STOPPED = (
    r"Unit nvidia-fabricmanager\.service could not be found|Failed to start (?:NVIDIA [Ff]abric [Mm]anager|nvidia-fabricmanager)"
    r"|nvidia-fabricmanager\.service: (?:Main|Control) process exited, code=exited, status=[1-9]"
    r"|nvidia-fabricmanager\.service: Failed with result|query NVSwitch device information from NVSwitch driver failed"
    r"|[Ff]abric [Mm]anager is not (?:running|active)"
)
_RUNNING = (
    r"Started (?:nvidia-fabricmanager\.service - )?NVIDIA [Ff]abric [Mm]anager|Successfully configured all the available (?:GPUs|NVSwitches)"
    r"|\b\d{2,8} (?:[^\"]* )?/usr/bin/nv-fabricmanager -c"
)


def _state(text: Text, index: int) -> tuple[str, Line, bool]:
    """(state or "", its line, said by systemd's own `Active:` or `is-active`)."""
    line = text.lines[index]
    words = line.text[:LINE_MAX]
    following = text.lines[index + 1 : index + 7]
    if rx(_MISMATCH).search(words) is not None:
        both = words + " " + (following[0].text[:200] if following else "")
        if rx(r"(?:don't|doesn't|does not) match|mismatch").search(both) is not None:
            return "version_mismatch", line, False
    if rx(r"nvidia-fabricmanager(?:\.service)? - ").search(words) is not None:
        for after in following:
            active = rx(r"^\W*Active: (\w{4,12})\b").search(after.text[:200])
            if active is not None:
                return _STATES.get(str(active.group(1)), ""), after, True
    if rx(r"systemctl is-active nvidia-fabricmanager").search(words) is not None and following:
        word = following[0].text.strip()
        return _STATES.get(word, ""), following[0], word in _STATES
    if rx(_STOPPED).search(words) is not None:
        return "stopped", line, False
    return ("running" if rx(_RUNNING).search(words) is not None else ""), line, False


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    best: tuple[int, str, Line] | None = None
    for index in hits:
        state, line, official = _state(text, index)
        if not state:
            continue
        weight = 2 if state == "version_mismatch" else 1 if official else 0
        if best is None or weight >= best[0]:
            best = (weight, state, line)
    if best is not None:
        yield FabricManager(source=source(text, best[2]), state=best[1])
