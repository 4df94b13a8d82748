"""InfiniBand and RoCE: failing verbs calls, bad completions, port events, GID tables, GPUDirect modules.

In:      NCCL's lines (`Call to ibv_.. failed with ..`, `Got completion .. with error 12`), those of UCX and perftest for the same calls,
         `ibv_devinfo -v`, `show_gids`, modprobe and kernel lines of nvidia_peermem; with or without NCCL's frame.
Out:     IbError, Gid, Network(gid_table_changed), Event(peer_memory_dmabuf).
Unknown: a call that prints no reason has errno ""; a GID without its RoCE version has kind "".
         A completion with status 0 is a success and makes no fact, nor does a port event that reports no trouble.
Raises:  nothing.
Source:  NCCL `src/misc/ibvwrap.cc`, `src/include/ibvwrap.h`, `src/transport/net_ib*`, 2.3.5 to 2.30.7; ibv_devinfo; MLNX_OFED show_gids.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Gid, IbError, Network, Seen, Source, Text
from linkproof.parse.rules import Match, Rule, anchors_of, distinct, run

_CALL = r"\b(ibv_[a-z_0-9]{2,40})\b(?:\([^()]*\))? (?:call )?failed(?: with)?(?: error)?:? ?(?:(\d{1,3})\b ?)?([A-Za-z][^,(:]{0,80})?"
_POLL = r"Call to (ibv_poll_cq)\(\) returned (-\d{1,4})"
_COMPLETION = r"Got completion\b.*?(?:with (?:error:? |error=|status=)|wc->status=)(?:\([^()]*\)|[A-Za-z_]\w*\()?(\d{1,3})\b"
_ASYNC = r"(?:[Gg]ot (?:non-fatal )?async (?:error )?event|async fatal event)(?: on .{0,200}?)? ?: (.{1,80})"
_TROUBLE = ("error", "fatal", "catastrophic", "port down", "exceeded")
_DEVINFO = r"\bGID\[\s*(\d{1,4})\]:\s*([0-9A-Fa-f:.]{2,45})(?:,\s*(?:RoCE v([12])|IB/RoCE v1))?"
_SHOW = r"^\S{1,64}\s+\d{1,2}\s+(\d{1,4})\s+([0-9A-Fa-f]{4}(?::[0-9A-Fa-f]{4}){7})\s+(?:\d{1,3}(?:\.\d{1,3}){3}\s+)?v([12])\b"


def _call(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    if "CCL INFO" in where.text and "not supported" in where.text:  # NCCL asks for extensions that old libraries lack, and goes on
        return None
    words = (m.group(3) or "").split(" errno ")[0].strip()
    number = m.group(2) or ""
    return IbError(source=where, rank=rank, call=_name(m.group(1)), errno=words or number)


def _name(call: str) -> str:
    """`ibv_reg_mr_iova2` -> `reg_mr`: the same act in its several forms."""
    name = call.removeprefix("ibv_")
    return "reg_mr" if name.startswith("reg_mr") else name


def _poll(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    return IbError(source=where, rank=rank, call="poll_cq", errno=m.group(2))


def _completion(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    status = m.group(1).lstrip("0")
    return IbError(source=where, rank=rank, call="completion", errno=status) if status else None


def _async(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    words = m.group(1).strip()
    if words.lower().startswith("gid table change"):
        return Network(source=where, rank=rank, fact="gid_table_changed")
    return IbError(source=where, rank=rank, call="async_event", errno=words) if any(w in words.lower() for w in _TROUBLE) else None


def _moved(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    return Network(source=where, rank=rank, fact="gid_table_changed")


def _gid(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    kind = m.group(3) or ("1" if "IB/RoCE v1" in m.group(0) else "")
    return Gid(source=where, rank=rank, index=int(m.group(1)), gid=m.group(2).lower(), kind=f"v{kind}" if kind else "")


def _missing(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    """Too far apart (`distance`) is NCCL's choice, no memory to register is a limit: neither is a missing module."""
    if "distance" in where.text or "allocate memory" in where.text:
        return None
    return Event(source=where, rank=rank, kind="peer_memory_dmabuf", value=m.group(0)[:120] if m is not None else "")


_PEER_MODULE = (
    r"(?:modprobe|insmod)\S*: .*nvidia[_-]peermem.*|nvidia[_-]peermem: .*(?:[Uu]nknown symbol|disagrees|Invalid argument|failed).*"
)
RULES = (
    Rule("ibv_", _CALL, _call),
    Rule("ibv_poll_cq", _POLL, _poll),
    Rule("ibv_reg_dmabuf_mr", r"ibv_reg_dmabuf_mr.*failed", _missing),
    Rule("Got completion", _COMPLETION, _completion),
    Rule("async ", _ASYNC, _async),
    Rule("GID table changed", "", _moved),
    Rule("GID[", _DEVINFO, _gid),
    Rule("fe80:0000:", _SHOW, _gid),
    Rule("0000:ffff:", _SHOW, _gid),
    Rule("GPU Direct RDMA Disabled", r"GPU Direct RDMA Disabled for .*", _missing),
    Rule("nvidia_peermem", _PEER_MODULE, _missing),
    Rule("nvidia-peermem", _PEER_MODULE, _missing),
)

# What the rules ask of a line is wider than what a line is found by.
_NARROW = {"async ": ("async event", "async error event", "async fatal event")}
ANCHORS = tuple(dict.fromkeys(w for a in anchors_of(RULES) for w in _NARROW.get(a, (a,))))
KEEP = (0, 1)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    facts = list(distinct(run(RULES, text, hits, most=2000)))
    gid = next((f for f in facts if isinstance(f, Gid)), None)
    if gid is not None:
        yield Seen(source=gid.source, kind="GID table")
    yield from facts
