"""NCCL's own diagnostics (2.31 and later) -> what they verified, and what they read wrong.

In:      lines `HOST:PID NCCL DIAG [OK] p2p: ..` of NCCL_RUN_DIAGNOSTICS=1 (active) and of NCCL_RUN_RAS_DIAGNOSTICS=1 (passive comparison
         of ranks: driver, GPUs, ECC, NVLink, IOMMU mode).
Out:     events nccl_diag_ok, nccl_diag_mismatch (+ Copy of eight bytes by a kernel), nccl_diag_failed; Iommu, Versions, Gpu, Ranks, ecc_error,
         nvlink_down.
Unknown: `verified` with no access counted is no success; an IOMMU mode that we do not know is `unknown`.
Raises:  nothing.
Source:  strings of the 2.31.2 and 2.32.3 libraries; NVIDIA's page "Diagnostics" of the NCCL user guide.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Copy, Event, Fact, Gpu, Iommu, Line, Ranks, Seen, Source, Text, Versions
from linkproof.parse.rules import LINE_MAX, distinct, rx, source

_DIAG = r"\bNCCL DIAG (?:\[?(OK|INFO|WARN|ERROR)\]? )?(.*)"
# By NVML's numbers: CUDA's may all be 0, where each process sees one card.
_EDGE = r"srcNvmlDev=(\d{1,4}).{0,60}dstNvmlDev=(\d{1,4})(?:.{0,40}path=(\w{1,8}))?"

ANCHORS = ("NCCL DIAG",)
KEEP = (0, 0)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    yield Seen(source=source(text, text.lines[hits[0]]), kind="NCCL diagnostics")
    yield from distinct(_all(text, hits))


def _all(text: Text, hits: list[int]) -> Iterator[Fact]:
    for index in hits:
        line = text.lines[index]
        found = rx(_DIAG).search(line.text[:LINE_MAX])
        if found is not None:
            mark, message = found.group(1) or "", found.group(2)
            where = source(text, line)
            yield from _p2p(mark, message, line, where) if message.startswith("p2p:") else _ras(message, line, where)


def _p2p(mark: str, message: str, line: Line, where: Source) -> Iterator[Fact]:
    rank = line.rank
    mismatch = rx(r"p2p: (write|read) mismatch (.{0,400}?)expected=(0x[0-9a-f]{1,16}) got=(0x[0-9a-f]{1,16})").search(message)
    if mismatch is not None:
        how, edge, got = mismatch.group(1), rx(_EDGE).search(mismatch.group(2)), mismatch.group(4)
        pair = f"{edge.group(1)}-{edge.group(2)}" if edge is not None else ""
        shown = " ".join(w for w in (how, pair, (edge.group(3) or "") if edge is not None else "") if w)
        yield Event(source=where, rank=rank, kind="nccl_diag_mismatch", value=shown)
        result = "zeros" if not got[2:].strip("0") else "wrong"
        yield Copy(source=where, rank=rank, via="store" if how == "write" else "load", result=result, pairs=pair or "some")
        return
    all_ok = rx(
        r"verified P2P access .*\((\d{1,9}) peer accesses\)|p2p: (?:(\d{1,9})|all|\d{1,9}/(\d{1,9})) directed GPU P2P edges verified"
    ).search(message)
    part = rx(r"only (\d{1,9})/(\d{1,9}) GPU-to-GPU peer accesses passed").search(message)
    if part is not None:
        yield Event(source=where, rank=rank, kind="nccl_diag_failed", value=f"{part.group(1)}/{part.group(2)} passed")
    elif all_ok is not None and mark == "OK":
        count = all_ok.group(1) or all_ok.group(2) or all_ok.group(3) or "?"
        if count.strip("0"):  # nothing tested is no pass
            yield Event(source=where, rank=rank, kind="nccl_diag_ok", value=count)
    else:
        failed = rx(
            r"p2p: ((?:peer-memory import|local CUDA setup|topology check|launch/check|setup) failed|destination buffer unavailable)"
        ).search(message)
        if failed is not None:
            reason = rx(r"reason=([^;]{1,120})").search(message)
            words = failed.group(1) + (f": {reason.group(1)}" if reason is not None else "")
            yield Event(source=where, rank=rank, kind="nccl_diag_failed", value=words)


def _ras(message: str, line: Line, where: Source) -> Iterator[Fact]:
    rank = line.rank
    if (found := rx(r"IOMMU mode: ([\w() ]{1,40}?) (?:for|across|on) \d").search(message)) is not None:
        yield Iommu(source=where, rank=rank, mode=_iommu(found.group(1).lower()))
    if (found := rx(r"graphics driver version: (\d{3}\.\d{1,3}(?:\.\d{1,3})?) ").search(message)) is not None:
        yield Versions(source=where, rank=rank, driver=found.group(1))
    if (found := rx(r"GPU inventory: (\d{1,3})x (.{1,80}?) per node consistent").search(message)) is not None:
        yield Gpu(source=where, rank=rank, name=found.group(2), count=int(found.group(1)))
    if (found := rx(r"^(GPU inventory|[\w ]{1,40}): (?:\w+ )?mismatch across \d.{0,200}").search(message)) is not None:
        yield Ranks(source=where, rank=rank, fact="hosts_differ", detail=found.group(0)[:200])
    if rx(r"ECC: uncorrected volatile errors on rank").search(message) is not None:
        yield Event(source=where, rank=rank, kind="ecc_error", value=message[:120])
    if rx(r"NVLink: inactive link").search(message) is not None:
        yield Event(source=where, rank=rank, kind="nvlink_down", value=message[:120])


def _iommu(words: str) -> str:
    if "passthrough" in words or "identity" in words:
        return "passthrough"
    if "remapping" in words or "translat" in words:
        return "translating"
    return "off" if words in ("off", "disabled") else "unknown"
