"""CUDA, HIP and driver-API errors in any program's output -> number, name and place.

In:      any line that prints an error by enum name (`cudaErrorIllegalAddress`, `CUDA_ERROR_CONTAINED`, `hipErrorNoDevice`), by
         number (`Error 803:`, `CUDA error 217`, `Cuda failure 2`, `code=46(..)`) or by the words of `cudaGetErrorString`; HSA
         status names and `Memory access fault by GPU node`; CUBLAS and CUDNN status names.
Out:     CudaError once per (number or name, place, rank); the Event that a number implies (`no_cuda_device`, `driver_mismatch`,
         `fabric_not_ready`, `ecc_error`, `nvlink_contained`, `cuda_oom`, `hip_kernel_image`), once per rank.
Unknown: a number or name outside the table keeps what was printed; code is None where only a name is known.
Raises:  nothing. Device-side assertions (710) belong to device_assert.
Source:  cuda_codes; `where` is `file:line` of the check that failed, or the function or call that is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from linkproof.model import CudaError, Event, Fact, Text
from linkproof.parse.cuda_codes import CODES, COMMON_WORDS, code_of_name
from linkproof.parse.rules import LINE_MAX, rx, source

_WORDS = tuple(words for code, (words, _names) in CODES.items() if code not in COMMON_WORDS and code != 710)
ANCHORS = (
    *_WORDS,
    "CUDA error", "Cuda error", "cuda error", "CUDA Error", "CUDART error", "CUDA failure", "Cuda failure", "CUDA runtime error",
    "cuda runtime error", "CUDA driver error", "HIP error", "HIP Error", "HIP failure", "cudaError", "CUDA_ERROR_", "hipError",
    "cudaMalloc failed", "hipMalloc failed", "from cuda", "cudaGetDeviceCount", "CUDA Runtime Error", "CUDA call",
    "HSA_STATUS_ERROR_", "Memory access fault by GPU node", "CUBLAS_STATUS_", "CUDNN_STATUS_",
)  # fmt: skip
KEEP = (0, 2)
_MOST = 200

_NAME = r"\b(cudaError[A-Z]\w{2,60}|CUDA_ERROR_[A-Z][A-Z0-9_]{1,60}|hipError[A-Z]\w{2,60})"
_LIBRARY = r"\b((?:CUBLAS|CUDNN)_STATUS_[A-Z][A-Z_]{2,40}|HSA_STATUS_ERROR_[A-Z][A-Z_]{2,60})"
_FINE = ("STATUS_SUCCESS", "HSA_STATUS_ERROR_EXCEPTION")
_NUMBER = (
    r"(?i:\b(?:cuda|hip)(?:rt)?(?:\s(?:runtime|driver|api))?\s(?:error|failure)(?:\scode)?)[\s:=#(]{1,3}(\d{1,3})(?:[\s:,')]|$)"
    r"|\bcode=(\d{1,3})\((?:cuda|CUDA|hip|<unknown>)"
    r"|\b(?:cuda|hip|cu)[A-Z]\w{2,40}(?:\(\))?.{0,200}?\bError (\d{1,3}):\s"
    r"|\b(?:cuda|hip|cu)[A-Z]\w{2,40}(?:\(\))? returned (\d{1,3})\b"
)
_PLACE = r"([\w.+-]{1,80}\.(?:cuh?|cc|cpp|cxx|h|hpp|inl|hip|rs|go)):(\d{1,7})\b"
_FUNCTION = r"\bin function (\w{1,120})"
_CALL = r"\b((?:cuda|hip|cu|cublas|cudnn)[A-Z]\w{2,60})\("
_CODE_LINE = r"(?:[!=]=\s*|\bcase\s+|\bif\s*\(.{0,80})(?:cudaError|CUDA_ERROR_|hipError|cudaSuccess)"

_EVENTS = {
    100: "no_cuda_device", 34: "driver_mismatch", 35: "driver_mismatch", 36: "driver_mismatch", 222: "driver_mismatch",
    227: "driver_mismatch", 803: "driver_mismatch", 804: "driver_mismatch", 802: "fabric_not_ready", 919: "fabric_not_ready",
    214: "ecc_error", 220: "nvlink_contained", 226: "nvlink_contained",
}  # fmt: skip


def _escaped(words: str) -> str:
    return "".join(c if c.isalnum() or c == " " else "\\" + c for c in words)


@cache
def _by_words() -> tuple[str, dict[str, int], str]:
    """Patterns of all words, longest first (`operation not supported on ..` before `operation not supported`)."""
    codes = {words.lower(): code for code, (words, _names) in CODES.items()}
    longest = sorted(codes, key=len, reverse=True)
    rare = "|".join(_escaped(w) for w in longest if codes[w] not in COMMON_WORDS)
    common = "|".join(_escaped(w) for w in longest if codes[w] in COMMON_WORDS)
    after = (
        r"(?i)(?:\bcuda|\bhip|\bcu(?:init|ctx|mem|device|stream|launch))(?:[^'\"\n]{0,200}?['\":(]\s{0,3}|[^'\"\n]{0,60}\s)(" + common + ")"
    )
    return f"(?i)({rare})", codes, after


def _code_of_words(words: str) -> int | None:
    rare, codes, common = _by_words()
    found = rx(rare).search(words) or rx(common).search(words)
    return codes[found[1].lower()] if found else None


def _error(words: str) -> tuple[str, int | None] | None:
    """Name or words, and number, of the first error in a line."""
    name = rx(_NAME).search(words)
    if name and rx(_CODE_LINE).search(words):
        return None  # source code that handles an error, not an error
    code = code_of_name(name[1]) if name else None
    if code is None:
        code = _code_of_words(words)
    if code is None and (number := rx(_NUMBER).search(words)):
        code = next((int(g) for g in number.groups() if g), None)
        if code == 0:
            return None
    if name:
        return name[1], code
    if code is not None:
        return CODES[code][0] if code in CODES else f"CUDA error {code}", code
    library = rx(_LIBRARY).search(words)
    if library and not library[1].endswith(_FINE):
        return library[1], None
    return ("Memory access fault by GPU node", 700) if "Memory access fault by GPU node" in words else None


def _where(words: str, after: str) -> str:
    if function := rx(_FUNCTION).search(after):  # ggml prints it on the next line
        return str(function[1])
    if place := rx(_PLACE).search(words):
        return f"{place[1]}:{place[2]}"
    call = rx(_FUNCTION).search(words) or rx(_CALL).search(words)
    return call[1] if call else ""


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    seen: set[tuple[str | int, str, int | None]] = set()
    told: set[tuple[str, int | None]] = set()
    for at in hits:
        if len(seen) >= _MOST:
            return
        line = text.lines[at]
        words = line.text[:LINE_MAX]
        error = _error(words)
        if error is None or error[1] == 710:
            continue
        name, code = error
        place = _where(words, text.lines[at + 1].text[:LINE_MAX] if at + 1 < len(text.lines) else "")
        key = (name if code is None else code, place, line.rank)
        if key not in seen:
            seen.add(key)
            yield CudaError(source=source(text, line), rank=line.rank, name=name, code=code, where=place)
        kind = _EVENTS.get(code or 0, "")
        hip = "HIP" in words or "hipError" in words
        before = text.lines[at - 1].text[:LINE_MAX] if at else ""
        if code == 2 and not rx(r"NVLS|[Mm]ulticast").search(before + words):  # a full multicast table is no lack of memory
            kind = "cuda_oom"
        elif hip and code in (98, 200, 209):
            kind = "hip_kernel_image"
        if kind and (kind, line.rank) not in told:
            told.add((kind, line.rank))
            value = str(code) if kind == "ecc_error" else CODES[code][0] if code in CODES else ""
            yield Event(source=source(text, line), rank=line.rank, kind=kind, value=value)
