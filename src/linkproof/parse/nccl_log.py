"""NCCL and RCCL log, what it says when all is well: version, start of communicators, routes, settings, interfaces.

In:      any text with NCCL lines; a few lines of a long log are enough. The shapes of 2.3 to 2.32 differ and are all read here:
         `Ring`/`Channel`, device or bus id or nothing in brackets, `Channel cc/k`, `direct shared memory` or `SHM/..`.
Out:     Seen, Versions, NcclInit, NcclPath, Setting + Event(nccl_env), Iface, Topo, and events; each fact once per text.
Unknown: an interface or value that is not printed is "". A log that ends after `Init COMPLETE` says nothing of the routes
         (since 2.22 connections are made at the first collective), so no fact is made of their absence.
Raises:  nothing.
Source:  NCCL `src/init.cc`, `src/transport/*.cc`, `src/graph/paths.cc`, `src/graph/search.cc`, `src/bootstrap.cc`, `src/misc/socket.cc`,
         2.3.5 to 2.30.7; strings of the 2.31.2 and 2.32.3 libraries; RCCL `src/init.cc`. What fails is in nccl_warn.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from linkproof.model import Event, Fact, Iface, NcclInit, NcclPath, Seen, Setting, Source, Text, Topo, Versions
from linkproof.parse.rules import LINE_MAX, Match, Rule, anchors_of, distinct, joined, run, rx, source

_VIA = (
    r"(?:Ring|Channel) \d{1,4}(?:/\d{1,4})? ?: (\d{1,6})(?:\[[0-9a-fA-F]{1,16}\])? -> (\d{1,6})(?:\[[0-9a-fA-F]{1,16}\])? "
    r"(?:\[(?:send|receive)\] )?via (P2P|SHM|NET|COLLNET|direct shared memory)(?:/(.*))?"
)
_INIT = r"comm (?:0x)?[0-9a-f]{1,16} rank (\d{1,6}) n[rR]anks (\d{1,6})(?:.*commId (0x[0-9a-f]{1,16}))?.*- ?(?:Init )?(START|COMPLETE)\s*$"
_ENV = r"\b((?:NCCL|RCCL)_[A-Z0-9_]{1,60}) (?:was )?set (?:by environment )?to ([^\s,;]{1,200})"
_ADDRESS = r"(?:\[\d{1,3}\])?([A-Za-z][\w.@-]{0,31}):([0-9A-Fa-f.:%\w]{2,64})<\d{1,5}>"
_GRAPH = r"Pattern \d{1,2}, crossNic \d, nChannels \d{1,3}, (?:speed|bw) [\d./]{1,24}, type ([A-Z0-9]{2,4})/"
_MINE = r"\bNCCL (?:INFO|WARN|TRACE) |^[NR]CCL version|\b(?:Ring|Channel) \d{1,4}(?:/\d{1,4})? ?: \d.* via "
# NCCL's words for a path (`topoPathTypeStr`) -> those of nvidia-smi. LOC is one GPU, NET is no path inside a host.
PATHS = {"NVL": "NV", "NVB": "NV", "C2C": "NV", "PIX": "PIX", "PXB": "PXB", "PXN": "PXB", "P2C": "PXB", "PHB": "PHB", "SYS": "SYS"}


def nccl_version(words: str) -> str:
    """`2.18.1` as it is; `21.0.3` and `20.9.9` are 2.10.3 and 2.9.9 as torch 1.8 to 1.11 printed their number codes."""
    parts = [int(p) for p in words.split(".")[:3]]
    if len(parts) == 3 and parts[0] >= 20:
        code = parts[0] * 1000 + parts[1] * 100 + parts[2]
        parts = [code // 10000, code // 100 % 100, code % 100]
    return ".".join(map(str, parts))


def _version(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    kind, number = (m.group(2) or ""), (m.group(3) or "")
    return Versions(
        source=where,
        rank=rank,
        nccl=nccl_version(m.group(1)),
        cuda=number if kind == "cuda" else "",
        rocm=number if kind in ("hip", "rocm") else "",
    )


def _rocm(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    return Versions(source=where, rank=rank, rocm=m.group(1))


def _host(words: str) -> str:
    """The host name of the frame `HOST:PID:TID [DEV]`; "" where it is cut away."""
    found = rx(r"([A-Za-z0-9][\w.-]{0,62}):\d{1,10}:\d{1,10} \[\d{1,4}\]").search(words)
    return found[1] if found else ""


def _init(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    return NcclInit(
        source=where, rank=int(m.group(1)), state=m.group(4).lower(), nranks=int(m.group(2)), comm=m.group(3) or "", host=_host(where.text)
    )


def _path(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    word, detail = m.group(3), (m.group(4) or "").split(" comm 0x", 1)[0].strip()[:80]  # RCCL appends the communicator
    transport = "SHM" if word == "direct shared memory" else word
    return NcclPath(source=where, rank=rank, src=int(m.group(1)), dst=int(m.group(2)), transport=transport, detail=detail)


def _all_direct(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    return Event(source=where, rank=rank, kind="nccl_check_p2p", value=m.group(1))


def _nvls_channels(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    return Event(source=where, rank=rank, kind="nvls_used") if m is not None and m.group(1).strip("0") else None


def _graph(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    path = PATHS.get(m.group(1)) if m is not None else None
    return Topo(source=where, rank=rank, path=path, pairs="some") if path else None


def _network(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    return Event(source=where, rank=rank, kind="nccl_network", value=m.group(1).strip())


def _plugin_setting(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    assert m is not None
    return Setting(source=where, rank=rank, name=f"{m.group(1)}={m.group(2)}", effect="present", key=m.group(1), value=m.group(2))


_DEV = r"dev (\d{1,4})\(?=?[0-9a-f]{0,16}\)? and dev (\d{1,4})"
RULES = (
    Rule("NCCL version", r"\b[NR]CCL version ?:? ?(\d{1,3}\.\d{1,2}\.\d{1,2})(?:\S*?\+(cuda|hip|rocm)(\d{1,3}\.\d{1,3}))?", _version),
    Rule("RCCL version", r"\b[NR]CCL version ?:? ?(\d{1,3}\.\d{1,2}\.\d{1,2})(?:\S*?\+(cuda|hip|rocm)(\d{1,3}\.\d{1,3}))?", _version),
    Rule("ROCm version", r"^ROCm version\s*: ?(\d{1,2}\.\d{1,2}\.\d{1,2})", _rocm),
    Rule(" rank ", _INIT, _init),
    Rule("GPU Direct RDMA Disabled", r"GPU Direct RDMA Disabled", "gdr_off"),
    Rule("environment variable to", r"Setting (NCCL_\w{2,40}) environment variable to (\S{1,200})", _plugin_setting),
    Rule(" via ", _VIA, _path),
    Rule("isAllDirectP2p", r"isAllDirectP2p ([01])\b", _all_direct),
    Rule("intraNodeP2pSupport", r"intraNodeP2pSupport ([01])\b", _all_direct),
    Rule("P2P is disabled between connected GPUs", r"GPUs (\d{1,4}) and (\d{1,4})", joined("nccl_p2p_disabled_driver", 1, 2)),
    Rule("P2P is disabled between NVLINK", r"GPUs (\d{1,4}) and (\d{1,4})", joined("nccl_p2p_nvlink_disabled", 1, 2)),
    Rule("Could not enable P2P between", _DEV, joined("nccl_peer_not_possible", 1, 2)),
    Rule("peer query failed between", _DEV, joined("nccl_peer_query_failed", 1, 2)),
    Rule("Legacy IPC not supported", "", "nccl_legacy_ipc"),
    Rule("cuMem host allocations do not appear to be working", "", "cumem_host_failed"),
    Rule("NVLS multicast support", r"NVLS multicast support is available", "nvls_available"),
    Rule("NVLS multicast support", r"NVLS multicast support is not available", "nvls_unavailable"),
    Rule("NVLS tuning", "", "nvls_used"),
    Rule("Connected NVLS tree", "", "nvls_used"),
    Rule("NVLS comm 0x", "", "nvls_used"),
    Rule("NVLS Creating Multicast group", "", "nvls_used"),
    Rule("nvls channels", r"\b(\d{1,3}) nvls channels", _nvls_channels),
    Rule("Connected all rings", "", "nccl_rings_connected"),
    Rule("Connected all trees", "", "nccl_rings_connected"),
    Rule("Abort START", r"comm 0x[0-9a-f]{1,16}.*Abort START", "nccl_abort"),
    Rule("Abort COMPLETE", r"comm 0x[0-9a-f]{1,16}.*Abort COMPLETE", "nccl_abort"),
    Rule("Using network", r"CCL INFO Using (?:internal )?[nN]etwork ([\w./+ -]{1,40})", _network),
    Rule("nChannels", _GRAPH, _graph),
)  # fmt: skip

# Said by the rules, too wide to look for: a line is found by these instead.
_WIDE = {
    " rank ": ("Init START", "Init COMPLETE", "- COMPLETE"),
    " via ": (" via P2P", " via SHM", " via NET", " via COLLNET", "via direct shared memory"),
    "nChannels": ("crossNic",),
}
_USING = ("Bootstrap : Using", "Bootstrap: Using", "NET/Socket : Using", "NET/IB : Using", "; OOB ")
_SET = ("set by environment to", "NCCL_SOCKET_IFNAME set to", "NCCL_IB_HCA set to", "NCCL_OOB_NET_IFNAME set to", "_PLUGIN set to")
_LOG = (
    "NCCL INFO comm 0x",
    "NCCL INFO NET/",
    "NCCL INFO cudaDriverVersion",
    "NCCL INFO Trees",
    "NCCL INFO Ring ",
    "NCCL INFO Channel ",
    "NCCL WARN",
)

ANCHORS = tuple(dict.fromkeys([*(w for a in anchors_of(RULES) for w in _WIDE.get(a, (a,))), *_USING, *_SET, *_LOG]))
KEEP = (0, 0)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    yield from distinct(_all(text, hits))


def _all(text: Text, hits: list[int]) -> Iterator[Fact]:
    first = next((i for i in hits if rx(_MINE).search(text.lines[i].text[:LINE_MAX])), None)
    if first is not None:
        yield Seen(source=source(text, text.lines[first]), kind="NCCL log")
    yield from run(RULES, text, hits, most=20_000)
    for index in hits:
        line = text.lines[index]
        words = line.text[:LINE_MAX]
        if " set " in words:
            for found in islice(rx(_ENV).finditer(words), 16):
                yield from _setting(found, source(text, line), line.rank)
        if any(w in words for w in _USING):
            for found in islice(rx(_ADDRESS).finditer(words), 64):
                yield Iface(source=source(text, line), rank=line.rank, library="nccl", name=found.group(1), address=found.group(2))


def _setting(found: Match, where: Source, rank: int | None) -> Iterator[Fact]:
    key, value = found.group(1), found.group(2)
    if value.endswith(".") and value[:-1].lstrip("-").isdigit():  # a number is printed with a full stop behind it
        value = value[:-1]
    both = f"{key}={value}"
    yield Setting(source=where, rank=rank, name=both, effect="present", key=key, value=value)
    yield Event(source=where, rank=rank, kind="nccl_env", value=both)
    if key in ("NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL"):
        yield Event(source=where, rank=rank, kind="nccl_p2p_setting_active", value=both)
