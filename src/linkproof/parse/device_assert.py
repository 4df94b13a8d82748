"""Device-side assertions of CUDA and HIP kernels -> which lookup, loss or sampling step met a bad value.

In:      `PATH/File.cu:LINE: kernel: block: [..], thread: [..] Assertion `expr` failed.`; old kernels print their whole signature
         (`void f(T *, long) [with T = float]`); Windows prints backslashes and no kernel; builds with verbose assertions print
         `[CUDA_KERNEL_ASSERT] .. Assertion failed: `expr`: Expected 0 <= index < size(N), but got index = V`; generated kernels
         name a .py file; HIP prints `Device-side assertion `expr' failed.`, or only ends its queue with HSA_STATUS_ERROR_EXCEPTION.
         A paste may have several assertions in one line.
Out:     DeviceAssert once per (file, kernel, expression, rank) with a count; CudaError 710 once per rank; `assert_generic` once per
         rank where the text says that an assertion fired and holds no assertion line.
Unknown: a file, kernel or expression that the table does not know is op "other"; a missing file or kernel is "".
Raises:  nothing.
Source:  aten/src/ATen/native/cuda (torch 1.0 .. 2.15) and THC/THCUNN before it; matched by file, kernel and expression, never by
         line number (it drifts with every release).
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import CudaError, DeviceAssert, Event, Fact, Line, Source, Text
from linkproof.parse.rules import LINE_MAX, rx, source

_GENERIC = ("device-side assert triggered", "cudaErrorAssert", "hipErrorAssert", "CUDA_ERROR_ASSERT", "HSA_STATUS_ERROR_EXCEPTION")
_NAMES = {"hipErrorAssert": "hipErrorAssert", "HSA_STATUS_ERROR_EXCEPTION": "HSA_STATUS_ERROR_EXCEPTION"}
ANCHORS = ("Assertion `", "Assertion failed", "thread: [", "Device-side assertion", *_GENERIC)
KEEP = (0, 1)

_QUOTES = "`'\"‘’“”´"
_HEAD = r"^(?:.*[\s/\\(\[\"'`>|])?([\w.+-]{1,120}\.(?:cuh?|hip|hpp|h|inl|cpp|cc|cxx|py))[:(](\d{1,7})\)?\s*:\s*(.*)$"
_EXPECTED = r"\((-?\d{1,20})\).{0,80}got \w{1,40} = (-?\d{1,20})"
_BOUND = r"index out of bounds: 0 <= .{1,200} < (\d{1,18})$"

# file without its suffix, in lower case -> op, where the file alone says it
_BY_FILE = {
    "indexkernelutils": "row_gather",
    "scattergatherkernel": "gather",
    "embedding": "embedding",
    "embeddingbag": "embedding",
    "lookuptable": "embedding",
    "classnllcriterion": "nll_loss",
    "spatialclassnllcriterion": "nll_loss",
    "nllloss2d": "nll_loss",
    "bcecriterion": "bce_loss",
    "indexkernel": "index",
    "tensorcompare": "assert_async",
}


def _op(file: str, kernel: str, expression: str) -> str:
    """Expression and kernel say more than the file: one file holds several operations."""
    stem = file.rsplit(".", 1)[0].lower()
    text, name = expression.lower(), kernel.lower()
    if "probability tensor contains" in text:
        return "multinomial_prob"
    if "index_copy" in text:
        return "index_copy"
    if "take_put" in text:
        return "take_put"
    if "totalelements <= srcsize" in text or "masked_scatter" in name:
        return "masked_scatter"
    if "vectorized gather" in text or "vectorized_gather" in name:
        return "row_gather"
    if "multinomial" in stem or "multinomial" in name or stem == "thctensorrandom":
        if "isnan" in text or "isinf" in text:
            return "multinomial_isnan"
        return "multinomial_zero_row" if "cumdist" in text or "acczero" in text or "sum >" in text else "multinomial_prob"
    if "srcselectdimsize" in text or "indexselect" in name:
        return "embedding"
    if "dstadddimsize" in text or "dstcopydimsize" in text or "dstfilldimsize" in text or name.startswith(("indexadd", "indexcopy")):
        return "index_copy"
    if "n_classes" in text or "nll_loss" in name or "nllcriterion" in name:
        return "nll_loss"
    if "input_val >= zero" in text or "input_val <= one" in text:
        return "bce_loss"
    if "scatter" in text or ("scatter" in name and "gather" not in name):
        return "scatter"
    if "index_size" in text or "scatter_gather" in name or "gatherkernel" in name or "thctensorscattergather" in stem:
        return "gather"
    known = _BY_FILE.get(stem)
    if known:
        return known
    return "index" if "index out of bounds" in text or "sizes[i]" in text else "other"


def _kernel(words: str) -> str:
    """`void f<float>(T *, long) [with T = float]` -> f; a lambda stays `operator()`."""
    words = words.strip().rstrip(":").strip()
    if "operator()" in words:
        return "operator()"
    words = words.split(" [with ", 1)[0].split("(anonymous namespace)::")[-1]
    name = words.split("(", 1)[0].split("<", 1)[0].split()
    return name[-1].rsplit("::", 1)[-1][:120] if name and name[-1] != "unknown" else ""


def _expression(tail: str) -> str:
    """What stands between `Assertion` and `failed`, without its outer quotes (a web page may have eaten them)."""
    verbose = tail.startswith(" failed:")
    body = tail[len(" failed:") :] if verbose else tail
    found = rx(r"^\s*(.*[`'\"’”])\s*:\s*Expected" if verbose else r"^\s*(.*)\s+failed\b").search(body)
    text = (found[1] if found else body).strip().rstrip(":")
    if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        return str(text[1:-1])[:300]
    return str(text).strip("`´‘’“”")[:300]


class _Seen:
    """One assertion while it is counted."""

    __slots__ = ("count", "fact")

    def __init__(self, fact: DeviceAssert) -> None:
        self.fact, self.count = fact, 0


def _one(head: str, tail: str, where: Source, rank: int | None) -> DeviceAssert | None:
    expression = _expression(tail)
    if not expression:
        return None
    found = rx(_HEAD).search(head)
    file, kernel = (found[1], _kernel(found[3])) if found else ("", "")
    index = size = None
    if values := rx(_EXPECTED).search(tail):
        size, index = int(values[1]), int(values[2])
    elif bound := rx(_BOUND).search(expression):
        size = int(bound[1])
    return DeviceAssert(
        source=where, rank=rank, file=file, kernel=kernel, expression=expression, op=_op(file, kernel, expression), index=index, size=size
    )


def _pieces(words: str) -> list[str]:
    """One assertion each; lines of several threads may have been joined by whatever copied them."""
    if words.count("Assertion") < 2:
        return [words]
    return [piece + "failed." for piece in words.split("failed.") if "ssertion" in piece]


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    seen: dict[tuple[str, str, str, int | None], _Seen] = {}
    quick: dict[tuple[str, str, int | None], _Seen | None] = {}  # thousands of lines differ in block and thread only
    generic: dict[int | None, tuple[Line, str]] = {}
    told: set[tuple[str, int | None]] = set()  # files named where the error is reported
    for at in hits:
        line = text.lines[at]
        words = line.text[:LINE_MAX]
        for phrase in _GENERIC:
            if phrase in words and line.rank not in generic:
                generic[line.rank] = (line, _NAMES.get(phrase, "cudaErrorAssert"))
        if (placed := rx(r"device-side assert triggered at (\S{1,300}\.cuh?):\d{1,6}").search(words)) is not None and (
            placed[1],
            line.rank,
        ) not in told:
            told.add((placed[1], line.rank))
            op = _op(placed[1].replace("\\", "/").rsplit("/", 1)[-1], "", "")
            if op not in ("other", ""):
                yield DeviceAssert(source=source(text, line), rank=line.rank, file=placed[1].rsplit("/", 1)[-1], expression="", op=op)
        if "ssertion" not in words:
            continue
        for piece in _pieces(words):
            mark = piece.rfind("Assertion")
            rocm = mark < 0
            mark = piece.rfind("Device-side assertion") if rocm else mark
            if mark < 0:
                continue
            block = piece.rfind("block: [", 0, mark)
            if block < 0 and not rocm:
                continue  # an assertion of the host (gtest, assert.h), not of a kernel
            head, tail = piece[: mark if block < 0 else block], piece[mark + (21 if rocm else 9) :]
            key = (head, tail, line.rank)
            if key not in quick:
                fact = _one(head, tail, source(text, line), line.rank)
                quick[key] = seen.setdefault((fact.file, fact.kernel, fact.expression, line.rank), _Seen(fact)) if fact else None
            counted = quick[key]
            if counted is not None:
                counted.count += 1
    for entry in seen.values():
        fact = entry.fact
        yield DeviceAssert(
            source=fact.source, rank=fact.rank, file=fact.file, kernel=fact.kernel, expression=fact.expression, op=fact.op,
            index=fact.index, size=fact.size, count=entry.count,
        )  # fmt: skip
    for rank, (line, name) in generic.items():
        where = source(text, line)
        # a trap ends a HIP queue with HSA_STATUS_ERROR_EXCEPTION; an assertion is its usual reason, not its only one
        yield CudaError(source=where, rank=rank, name=name, code=None if name.startswith("HSA") else 710)
        if not seen:
            yield Event(source=where, rank=rank, kind="assert_generic")
