"""What NCCL's own log says it did: an arm that asked for P2P proves nothing if NCCL took another road. And where ranks that hang stand.

In:      the debug file of one rank (NCCL_DEBUG=INFO, subsystems INIT ENV P2P SHM NET TUNING), NCCL 2.3 and later, RCCL.
Out:     transports with the pairs that used them, algorithms and protocols, the last warning, the result of NCCL's own diagnostics; `hung` reads the notes that ranks.Ranks leaves. Needs no torch.
Unknown: a log without such lines gives nothing at all; the caller then says "not tested".
Raises:  nothing.
Source:  NCCL `src/transport/*.cc` (`via`), `src/enqueue.cc` (one TUNING line per collective, by rank 0: from 2.22 by name, in 2.19 to 2.21 by number;
         none before), `src/graph/tuning.cc` (NCCL_PROTO taken); strings of the 2.31.2 and 2.32.3 libraries for the diagnostics.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path

from linkproof.measured import Case, Outcome

Routes = dict[str, set[tuple[int, int]]]
PROTOCOLS = ("LL", "LL128", "Simple")  # in the order of NCCL's numbers
ONE_CARD_FROM = (2, 30)
MANY_CARDS = 4
SAID_MAX = 200
MOVING_S = 5.0

_VIA = re.compile(
    r"(?:Ring|Channel) \d{1,4}(?:/\d{1,4})? ?: (\d{1,5})(?:\[[0-9a-f]{1,12}\])? -> (\d{1,5})(?:\[[0-9a-f]{1,12}\])? "
    r"(?:\[(?:send|receive)\] )?via ((?:P2P|SHM|NET|COLLNET)(?:/(?:direct pointer|[\w().-]+))*|direct shared memory)"
)
_TUNED = re.compile(r"\d Bytes -> Algo (\w{1,20}) proto (\w{1,10})")
_ASKED = re.compile(r"NCCL_PROTO set by environment to (\w{1,10})\s*$", re.M)
_WARN = re.compile(r"NCCL WARN (.{1,400})")
_DIAG = re.compile(r"NCCL DIAG (?:\[?(\w{2,5})\]? )?p2p: (.{1,600})")
_ALL_OK = re.compile(r"verified P2P access .*\((\d{1,9}) peer accesses\)|\b(\d{1,9})(?:/(\d{1,9}))? directed GPU P2P edges verified")
_PART_OK = re.compile(r"only (\d{1,9}/\d{1,9}) GPU-to-GPU peer accesses passed")
_MISMATCH = re.compile(r"(write|read) mismatch.*?expected=(0x[0-9a-f]{1,16}) got=(0x[0-9a-f]{1,16})")


def routes(log: str) -> Routes:
    """Transport -> pairs (sender, receiver) that use it. `P2P/CUMEM`, `SHM/direct`, `NET/Socket`: device numbers and proxies left out."""
    found: Routes = {}
    for sender, receiver, words in _VIA.findall(log):
        found.setdefault(_short(words), set()).add((int(sender), int(receiver)))
    return found


def _short(words: str) -> str:
    if words == "direct shared memory":  # up to 2.12
        return "SHM"
    parts = dict.fromkeys(part for part in words.split("/") if part != "Shared" and not part[0].isdigit())
    return "/".join(parts)


def algorithms(log: str) -> set[str]:
    return {algorithm for algorithm, _ in _TUNED.findall(log) if not algorithm.isdigit()}


def protocols(log: str) -> set[str]:
    """Of the collectives, "LL" "LL128" "Simple". Send and receive choose by size between LL and Simple and say nothing."""
    named = {name.upper(): name for name in PROTOCOLS}
    found = {p for _, p in _TUNED.findall(log)}
    return {PROTOCOLS[int(p)] if p in ("0", "1", "2") else named.get(p.upper(), p) for p in found}


def protocol_taken(log: str) -> str:
    """The one protocol that the environment left it, if it says that it took it."""
    asked = _ASKED.findall(log)
    return str(asked[-1]) if asked else ""


def warning(log: str) -> str:
    found = _WARN.findall(log)
    return str(found[-1]).strip()[:SAID_MAX] if found else ""


def diagnostics(log: str) -> tuple[str, str, dict[str, str]]:
    """(state, why, args) of NCCL's own test of every pair: one wrong word outweighs any success; "verified" with nothing counted is none."""
    lines = _DIAG.findall(log)
    for _, words in lines:
        if (wrong := _MISMATCH.search(words)) is not None:
            return "corrupt", "NCCL's diagnostics: a peer {how} gave {got} instead of {want}", {
                "how": wrong.group(1), "got": wrong.group(3), "want": wrong.group(2)
            }  # fmt: skip
    for _, words in lines:
        if (part := _PART_OK.search(words)) is not None:
            return "corrupt", "NCCL's diagnostics: only {part} accesses between GPUs passed", {"part": part.group(1)}
    failed = [words for _, words in lines if " failed" in words or "unavailable" in words]
    if failed:
        return "refused", "NCCL's diagnostics could not test the links: {said}", {"said": failed[-1].strip()[:SAID_MAX]}
    for mark, words in lines:
        passed = _ALL_OK.search(words)
        if mark == "OK" and passed is not None:
            count, of = passed.group(1) or passed.group(2), passed.group(3)
            if int(count) and of in (None, count):
                return "verified", "", {}
    return "not_tested", "NCCL's diagnostics reported no result", {}


def note_path(folder: str, rank: int) -> Path:
    return Path(folder) / f"at.{rank}"


def hung(case: Case, members: int, folder: str, moving_s: float = MOVING_S) -> Outcome:
    """Once the deadline is over: the transfer that did not end, and the ranks that are least far. A gang that began one in the last
    `moving_s` seconds is only slow: that is "not tested"."""
    notes, newest = {}, 0.0
    for rank in range(members):
        with contextlib.suppress(OSError, ValueError):
            path = note_path(folder, rank)
            notes[rank] = json.loads(path.read_text())
            newest = max(newest, path.stat().st_mtime)
    if not notes:
        return Outcome(case, "hung", "no answer; no rank had begun")
    least = min(note["round"] for note in notes.values())
    there = [rank for rank, note in notes.items() if note["round"] == least]
    at = notes[there[0]]
    args = {"op": at["op"], "round": str(least), "rank": ", ".join(map(str, there))}
    if time.time() - newest < moving_s:
        why = "not done in time, but it went on: {op}, transfer {round}"
        return Outcome(case, "not_tested", why, args, (), at["size_B"], least, op=at["op"])
    why = "no answer in {op}, transfer {round}; rank {rank} got no further"
    return Outcome(case, "hung", why, args, (), at["size_B"], least, op=at["op"])


def arms(cards_count: int, nccl: tuple[int, ...] | None, deep: bool) -> list[str]:
    """nccl: None if its version cannot be known beforehand. One card stands for two ranks on it: there is no default that an engine would
    use, and P2P and SHM answer "not tested" before 2.30. Many cards take long to connect: there the
    forced P2P arms and NET wait for `deep`."""
    if cards_count > MANY_CARDS and not deep:
        return ["default/default", "shm/Simple"]
    several = cards_count > 1 or (nccl is not None and nccl >= ONE_CARD_FROM)
    p2p = [f"p2p/{p}" for p in (PROTOCOLS if several else ("Simple",))]
    shm_net = [f"{t}/{p}" for t in ("shm", "net") for p in (PROTOCOLS if deep else ("Simple",))]
    return (["default/default"] if cards_count > 1 else []) + p2p + shm_net


def log_file(folder: str, rank: int) -> Path:
    return Path(folder) / f"nccl.{rank}.log"


def said(folder: str, rank: int) -> str:
    """NCCL's log of a rank so far, "" if there is none."""
    with contextlib.suppress(OSError):
        return log_file(folder, rank).read_text(errors="replace")
    return ""
