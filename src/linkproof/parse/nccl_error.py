"""An NCCL error as a framework reports it: torch.distributed, vLLM's pynccl, TensorRT-LLM, CuPy, XLA, torch.cuda.nccl, nccl-tests.

In:      any line that carries NCCL's own words for a result (`unhandled system error`, `ncclRemoteError: ..`, `NCCL_ERROR_..`,
         `NCCL Error 2`); the words are the same in all frameworks, the rest of the line is not.
Out:     Event(nccl_error, value system | cuda | internal | argument | usage | remote), once per value and rank;
         NcclWarn for the message behind `Last error:`; Stage(nccl_init) where the call that failed is named ncclCommInitRank.
Unknown: without such a word there is no event; a call that is not named makes no Stage.
Raises:  nothing.
Source:  NCCL `ncclGetErrorString` (`src/init.cc`); torch `csrc/distributed/c10d/NCCLUtils.cpp`; CuPy `cuda/libs/nccl`; XLA.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, NcclWarn, Stage, Text
from linkproof.parse.nccl_line import near
from linkproof.parse.rules import LINE_MAX, distinct, rx, source

_BY_NUMBER = {"1": "cuda", "2": "system", "3": "internal", "4": "argument", "5": "usage", "6": "remote"}
# NCCL's alone: no other word is needed in the line.
_OWN = {
    "unhandled system error": "system", "unhandled cuda error": "cuda", "unhandled hip error": "cuda",
    "remote process exited or there was a network error": "remote",
    "internal error - please report this issue to the nccl": "internal", "internal error - please report this issue to the rccl": "internal",
}  # fmt: skip
_ENUM = {
    "systemerror": "system", "unhandledcudaerror": "cuda", "internalerror": "internal", "invalidargument": "argument",
    "invalidusage": "usage", "remoteerror": "remote",
}  # fmt: skip
# Everybody's words: only behind `NCCL error` and the like, and the first of them in the line.
_SHARED = {"internal error": "internal", "invalid usage": "usage", "invalid argument": "argument"}
_WORDS = {**_OWN, **_SHARED}

_PHRASE = "unhandled (?:system|cuda|hip) error|remote process exited or there was a network error"
_LINE = (
    rf"(?i)({_PHRASE}|internal error - please report this issue to the [nr]ccl)"
    r"|\bnccl(SystemError|UnhandledCudaError|InternalError|InvalidArgument|InvalidUsage|RemoteError)\s?:"
    r"|\bNCCL_ERROR_(SYSTEM_ERROR|UNHANDLED_CUDA_ERROR|INTERNAL_ERROR|INVALID_ARGUMENT|INVALID_USAGE|REMOTE_ERROR)\b"
    r"|\b[nr]ccl error (\d)\b"
    rf"|\b[nr]ccl (?:error|failure|operation|call)\b.*?({_PHRASE}|internal error|invalid usage|invalid argument)"
)
_INIT = "ncclCommInitRank"

ANCHORS = (
    "unhandled system error", "unhandled cuda error", "unhandled hip error", "remote process exited or there was a network error",
    "internal error - please report this issue to the", "ncclSystemError", "ncclUnhandledCudaError", "ncclInternalError", "ncclInvalidArgument",
    "ncclInvalidUsage", "ncclRemoteError", "NCCL_ERROR_", "NCCL error", "NCCL Error", "NCCL failure", "NCCL operation", "Last error:",
    "Last NCCL warning",
)  # fmt: skip
KEEP = (4, 3)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    yield from distinct(_all(text, hits))


def _all(text: Text, hits: list[int]) -> Iterator[Fact]:
    for index in hits:
        line = text.lines[index]
        words = line.text[:LINE_MAX]
        where = source(text, line)
        value = _result(words)
        if value:
            yield Event(source=where, rank=line.rank, kind="nccl_error", value=value)
            if near(text, index, _INIT, before=4):  # the Python frame, or the call in the same line
                yield Stage(source=where, rank=line.rank, at="nccl_init", result="error")
        if "Last error:" in words or "Last NCCL warning" in words:
            yield from _last_error(text, index)


def _result(words: str) -> str:
    if any(w in words for w in ("NCCL WARN ", "NCCL INFO ", "NCCL DIAG ")):  # NCCL's own log has no such verdict, but it has these words
        return ""
    found = rx(_LINE).search(words)
    if found is None:
        return ""
    own, enum, cupy, number, shared = found.groups()
    if number:
        return _BY_NUMBER.get(number, "")
    if enum or cupy:
        return _ENUM[(enum or cupy.replace("_", "")).lower()]
    return _WORDS[(own or shared).lower()]


def _last_error(text: Text, index: int) -> Iterator[Fact]:
    """`Last error:` of torch: the last WARN of NCCL stands on the next line that is not empty, without its frame."""
    line = text.lines[index]
    inline = rx(r"Last NCCL warning\(error\) log entry \(may be unrelated\) '(.*)'").search(line.text[:LINE_MAX])
    if inline is not None:
        yield NcclWarn(source=source(text, line), rank=line.rank, message=inline.group(1)[:300])
        return
    if not near(text, index, "nccl", "NCCL", before=2):
        return
    for candidate in text.lines[index + 1 : index + 3]:
        message = candidate.text[:LINE_MAX].strip()
        if message and not message.startswith(("Traceback", "Exception raised from", "frame #")):
            yield NcclWarn(source=source(text, candidate), rank=candidate.rank, message=message[:300])
            return
