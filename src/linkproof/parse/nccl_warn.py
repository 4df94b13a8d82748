"""NCCL and RCCL log, what it says when something fails: every WARN, and what is known of it.

In:      lines with or without their frame. `Last error:` of a framework repeats the bare message, and people paste that alone,
         so a rule looks for the message and takes the frame only to say where.
Out:     NcclWarn for each `NCCL WARN` whether known or not; events; Stage(nccl_init) where the trace lines show the start-up of a
         communicator returning an error. Each fact once per text and rank. The CUDA error of `Cuda failure N '..'` is cuda_error's.
Unknown: a CUDA failure without its number gets it from the words if they are known; without its file it makes no event here, since
         inside or outside a transport is then open.
Raises:  nothing.
Source:  NCCL `src/os/linux.cc`, `src/misc/shmutils.cc`, `src/misc/socket.cc`, `src/transport/*.cc`, `src/bootstrap.cc`, `src/init.cc`,
         `src/include/checks.h`, `src/include/cudawrap.h`, 2.3.5 to 2.30.7; strings of the 2.32.3 library; RCCL `src/init.cc`.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, NcclWarn, Ranks, Source, Stage, Text
from linkproof.parse.cuda_codes import CODES
from linkproof.parse.nccl_line import FILE, TRACE, framed, near, short_file, socket_state
from linkproof.parse.rules import LINE_MAX, Match, Rule, anchors_of, distinct, event, joined, run, rx, source

_CUDA = (
    rf"(?:({FILE}):\d{{1,7}}(?: \(([^()]*)\))? )?(?:[NR]CCL WARN )?(?:C[uU][dD][aA]|H[iI][pP]) failure:? (?:(\d{{1,5}}) )?'([^']{{0,200}})'"
)
_BIND = r"Failed to bind NVLink SHARP \(NVLS\) Multicast memory"
_CODE = r"CUDA error (\d{1,5})\b"
# Not NCCL's own doing where NCCL reports them: the device or driver is not usable, or an earlier kernel of anyone failed.
_NOT_OF_NCCL = frozenset((2, 3, 4, 35, 46, 100, 101, 214, 220, 226, 700, 702, 710, *range(714, 722), 802, 803, 804, 999))


def _code(number: str | None, words: str) -> int | None:
    """NCCL before 2.19 printed the words only."""
    if number:
        return int(number)
    said = [(len(known), code) for code, (known, _names) in CODES.items() if known.lower() in words.lower()]
    return max(said)[1] if said else None


def _extend(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    if m is None or "retrying" in where.text:  # interrupted by a signal, tried again
        return None
    return Event(source=where, rank=rank, kind="shm_extend_failed", value=m.group(1) or "")


def _socket(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    """A call that NCCL tries again says nothing until it has failed often, or in a way that waiting does not cure."""
    assert m is not None
    words = m.group(1) or ""
    state = socket_state(words)
    if "retrying" in words and state not in ("timeout", "unreachable"):
        tries = rx(r"retrying \((\d{1,4})/").search(words)
        if tries is None or int(tries.group(1)) < 5:
            return None
    return Event(source=where, rank=rank, kind="nccl_socket_failed", value=state)


def _differ(m: Match | None, where: Source, rank: int | None) -> Fact | None:
    return Ranks(source=where, rank=rank, fact="hosts_differ", detail=m.group(0)) if m is not None else None


_CALL = r"\bCall to (?:connect|bind|listen|accept|socket|recv|send|poll|getsockname|getsockopt)(?: from \S+| to \S+)? (?:failed|timeout|returned) ?:? ?(.+)"
RULES = (
    # shared memory
    Rule("Error while creating shared memory", r"creating shared memory segment(?: \S+)?(?: \(size (\d{1,20})\))?", "shm_create_failed"),
    Rule("failed to create shared memory file", "", "shm_create_failed"),
    Rule("Unable to allocate shared memory", r"shared memory \((\d{1,20}) bytes\)", "shm_create_failed"),
    Rule("Error while attaching to shared memory", "", "shm_attach_failed"),
    Rule("ailed to extend ", r"ailed to extend \S*(?:/dev/shm|nccl)\S* to (\d{1,20}) bytes", _extend),
    Rule("fallocate failed", r"Call to (?:posix_)?fallocate failed", "shm_extend_failed"),
    Rule("No space left on device", r"(?:fallocate|ftruncate|shm_open|/dev/shm|shared memory|nccl-).*No space left", "shm_no_space"),
    # peers
    Rule("IpcGetMemHandle failed", "", "cuda_ipc_failed"),
    Rule("IpcOpenMemHandle", r"IpcOpenMemHandle(?:\([^()]*\))? ?(?:failed|: )", "cuda_ipc_failed"),
    Rule("failed to open CUDA IPC handle", "", "cuda_ipc_failed"),
    Rule("failed to get CUDA IPC handle", "", "cuda_ipc_failed"),
    Rule("No transport found", r"No transport found(?: for rank (\d{1,6})\S* -> rank (\d{1,6}))?", joined("nccl_no_transport", 1, 2)),
    Rule("has no transport for", r"[Rr]ank (\d{1,6}) has no transport for \w+ peer (\d{1,6})", joined("nccl_no_transport", 1, 2)),
    Rule("Duplicate GPU detected", r"detected(?: : rank (\d{1,6}) and rank (\d{1,6}))?", joined("nccl_duplicate_gpu", 1, 2)),
    Rule("Multiple Ranks are using the same GPU", "", "nccl_duplicate_gpu"),
    # the other side
    Rule("onnect to ", r"(?:[NR]CCL|\bNet :|[sS]ocket\w*:?).*[cC]onnect to \S+ (?:failed|returned) ?:? ?(.+)", _socket),
    Rule("connect returned ", r"[sS]ocket\w*: connect returned (.+)", _socket),
    Rule("Address family not supported by protocol", "", "nccl_no_interface"),
    Rule("PollConnect to ", r"PollConnect to \S+ failed with error (.+)", _socket),
    Rule("exceeded retries", r"socket\w+: exceeded retries", event("nccl_socket_failed", "refused")),
    Rule("exceeded timeouts", r"socket\w+: exceeded timeouts", event("nccl_socket_failed", "timeout")),
    Rule("Call to ", _CALL, _socket),
    Rule("Accept failed", r"(?:ocketTryAccept:|Service thread\]) Accept failed:? ?(.*)", _socket),
    Rule("TryAccept: exceeded error retry", r"retry count (?:after \d{1,9} attempts|\(\d{1,9}\)), (.*)", _socket),
    Rule("error encountered when getting address info", "", event("nccl_socket_failed", "other")),
    Rule("Connection closed by remote peer", r"by remote peer (\S{1,100})", "nccl_remote_exit"),
    Rule("Socket recv failed while polling", "", "nccl_remote_exit"),
    Rule("Could not receive type from localRank", "", "nccl_remote_exit"),
    Rule("truncated : rec", r"truncated : rec\w+ (\d{1,20})\S* bytes instead of (\d{1,20})", joined("nccl_truncated", 1, 2, join="/")),
    Rule("collective mismatch error", "", "collective_mismatch"),
    Rule("Mismatched collective detected", "", "collective_mismatch"),
    Rule("NCCL version", r"Mismatched NCCL version detected|NCCL version mismatch with remote", "nccl_version_mismatch"),
    Rule("NCCL library is", r"NCCL library is (?:too old|not backwards)", "nccl_version_mismatch"),
    Rule("no socket interface found", "", "nccl_no_interface"),
    Rule("NET/Socket : no interface found", "", "nccl_no_interface"),
    Rule("No IP interface found", "", "nccl_no_interface"),
    Rule("o usable listening interface found", "", "nccl_no_interface"),
    Rule("No interface found in the same subnet", "", "nccl_no_interface"),
    Rule("verify NCCL_OOB_NET_IFNAME", r"no device found (?:matching|after excluding)", "nccl_no_interface"),
    Rule("Detected mixed local", r"mixed local \w+ device counts across ranks \(min \d{1,4}, max \d{1,4}\)", _differ),
    Rule("algorithm/protocol available for", r"[nN]o algorithm/protocol available for function (\w{1,40})", "nccl_no_algorithm"),
    # hints
    Rule("HINT: ", r"HINT: .*\bACS\b", "nccl_ib_hint_acs"),
    Rule("HINT: ", r"HINT: .*error .*\bACS\b", event("nccl_hint", "acs")),
    Rule("HINT: ", r"HINT: .*error .*\bGID index", event("nccl_hint", "gid")),
    Rule("HINT: ", r"HINT: .*error .*\bIMEX\b", event("nccl_hint", "imex")),
    Rule("HINT: ", r"HINT: .*error .*peer-mapping", event("nccl_hint", "bar1_peer_mappings")),
    Rule("HINT: ", r"HINT: .*error .*cross-rail", event("nccl_hint", "cross_rail")),
    Rule("HINT: ", r"HINT: .*error .*NICs? on the same \w+ cannot", event("nccl_hint", "same_host_nics")),
    Rule("HINT: ", r"HINT: .*error .*NCCL_IB_TIMEOUT", event("nccl_hint", "ib_timeout")),
    Rule("HINT: ", r"HINT: .*error .*--net host", event("nccl_hint", "container_topology")),
    # RCCL
    Rule('Missing "iommu=pt"', "", "iommu_warning_rccl"),
)  # fmt: skip

_FAILURE = ("uda failure", "UDA failure", "HIP failure", "Hip failure")
ANCHORS = (
    *anchors_of(RULES),
    *_FAILURE,
    "NCCL WARN",
    "Failed to bind NVLink SHARP",
    "transport/nvls.cc:",
    "init.cc:",
    "bootstrap.cc:",
    "Init COMPLETE",
)
KEEP = (2, 2)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    yield from distinct(_all(text, hits))


def _all(text: Text, hits: list[int]) -> Iterator[Fact]:
    yield from run(RULES, text, hits, most=2000)
    started = nvls = False
    for index in hits:
        line = text.lines[index]
        words, where = line.text[:LINE_MAX], source(text, line)
        if "CCL WARN" in words:
            frame = framed(words)
            if frame is not None and frame.level == "WARN" and frame.message:
                yield NcclWarn(source=where, rank=line.rank, message=frame.message[:300], where=frame.where)
        if any(w in words for w in _FAILURE):
            for fact in _cuda(text, index):
                nvls = nvls or fact.kind == "nvls_call_failed"
                yield fact
        if rx(_BIND).search(words):
            nvls = True
            yield from _bind(text, index)
        started = started or "Init COMPLETE" in words
        trace = rx(TRACE).search(words) if ".cc:" in words else None
        if trace is None:
            continue
        file, code = short_file(trace.group(1)), trace.group(2)
        if file.endswith("nvls.cc") and code == "1" and not nvls:  # 1: a CUDA call failed; which one stood on a line we do not have
            nvls = True
            yield Event(source=where, rank=line.rank, kind="nvls_call_failed", value="0")
        if file == "init.cc" and code in ("1", "2", "3", "4", "5", "6") and not started and near(text, index, "[Async thread]", after=3):
            yield Stage(source=where, rank=line.rank, at="nccl_init", result="error")
        if file == "bootstrap.cc" and code in ("2", "3", "6") and near(text, index, "timed out", "exceeded timeouts", before=6):
            yield Event(source=where, rank=line.rank, kind="nccl_bootstrap_timeout")


def _cuda(text: Text, index: int) -> Iterator[Event]:
    line = text.lines[index]
    found = rx(_CUDA).search(line.text[:LINE_MAX])
    if found is None:
        return
    where, rank = source(text, line), line.rank
    file, func = short_file(found.group(1) or ""), found.group(2) or ""
    code = _code(found.group(3), found.group(4))
    if "nvls" in file:
        yield Event(source=where, rank=rank, kind="nvls_call_failed", value=str(code or 0))
    elif func == "ncclCuMemHostAlloc" or (file == "transport/shm.cc" and found.group(3)):  # the number: a driver call, so cuMem
        yield Event(source=where, rank=rank, kind="cumem_host_failed", value=str(code or 0))
    elif file and not file.startswith("transport/") and code not in _NOT_OF_NCCL:
        yield Event(source=where, rank=rank, kind="nccl_cuda_call_failed", value=f"{file} {'?' if code is None else code}")


def _bind(text: Text, index: int) -> Iterator[Fact]:
    """The number may stand on a following line: the message is long and was folded where it was pasted."""
    line = text.lines[index]
    found = next((m for m in (rx(_CODE).search(below.text[:LINE_MAX]) for below in text.lines[index : index + 3]) if m), None)
    yield Event(source=source(text, line), rank=line.rank, kind="nvls_bind_failed", value=found.group(1) if found is not None else "")
