import pytest

from linkproof.model import Event, Fact, NcclWarn, Stage, Versions
from linkproof.parse import read
from linkproof.parse.clean import clean


def facts(words: str) -> list[Fact]:
    return read(clean("log", words))


def errors(words: str) -> list[str]:
    return [f.value for f in facts(words) if isinstance(f, Event) and f.kind == "nccl_error"]


@pytest.mark.parametrize("line, value", [
    ("RuntimeError: NCCL error in: ../torch/lib/c10d/ProcessGroupNCCL.cpp:859, invalid usage, NCCL version 21.0.3", "usage"),
    ("torch.distributed.DistBackendError: NCCL error in: NCCLUtils.hpp:317, unhandled system error (run with NCCL_DEBUG=INFO for details)", "system"),
    ("ncclUnhandledCudaError: Call to CUDA function failed.", "cuda"),
    ("ncclInternalError: Internal check failed.", "internal"),
    ("ncclInvalidUsage: This usually reflects invalid usage of NCCL library.", "usage"),
    ("ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.", "remote"),
    ("RuntimeError: NCCL Error 2: unhandled system error", "system"),
    ("RuntimeError: NCCL Error 5: invalid usage", "usage"),
    ("RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)", "cuda"),
    ("RuntimeError: NCCL error: internal error - please report this issue to the NCCL developers", "internal"),
    ("RuntimeError: NCCL error: remote process exited or there was a network error", "remote"),
    ("cupy_backends.cuda.libs.nccl.NcclError: NCCL_ERROR_INTERNAL_ERROR: internal error", "internal"),
    ("Failed, NCCL error allreduceOp.cpp:308 'unhandled cuda error (run with NCCL_DEBUG=INFO for details)'", "cuda"),
    ("XlaRuntimeError: INTERNAL: NCCL operation ncclGroupEnd() failed: unhandled system error", "system"),
    ("node1: Test NCCL failure common.cu:954 'unhandled cuda error / Cuda failure 1 'invalid argument''", "cuda"),
    ("node1: Test NCCL failure common.cu:1285 'internal error - please report this issue to the NCCL developers'", "internal"),
])  # fmt: skip
def test_the_verdict_is_read_in_every_framework(line: str, value: str) -> None:
    assert errors(line) == [value]


@pytest.mark.parametrize("line", [
    "h:1:2 [0] enqueue.cc:12 NCCL WARN Cuda failure 1 'invalid argument'",
    "ValueError: invalid argument",
    "raise RuntimeError('internal error')",
    "if result == ncclInternalError return",
    "NCCL version 2.20.5, invalid argument names are ignored",
])  # fmt: skip
def test_everybodys_words_are_no_verdict_of_nccl(line: str) -> None:
    assert errors(line) == []


def test_one_failure_in_two_lines_is_one_event_per_rank() -> None:
    two = (
        "NCCL error in: NCCLUtils.hpp:317, unhandled system error, NCCL version 2.21.5\nncclSystemError: System call (e.g. socket) failed."
    )
    assert errors(two) == ["system"]
    assert [f.nccl for f in facts(two) if isinstance(f, Versions)] == ["2.21.5"]
    ranks = "\n".join(f"[rank{r}]: ncclSystemError: System call failed." for r in (0, 1))
    assert errors(ranks) == ["system", "system"]


def test_the_last_error_is_nccls_warning_whatever_it_says() -> None:
    lines = "ncclSystemError: System call (e.g. socket, malloc) failed.\nLast error:\n\nsomething nobody has seen before"
    assert [f.message for f in facts(lines) if isinstance(f, NcclWarn)] == ["something nobody has seen before"]


def test_the_last_error_of_another_program_is_not() -> None:
    assert not [f for f in facts("mysql client\nLast error:\nTable is full") if isinstance(f, NcclWarn)]


def test_xla_quotes_the_last_warning_in_the_same_line() -> None:
    line = (
        "NCCL operation ncclCommInitRank(&comm, nranks, id, rank) failed: unhandled cuda error. "
        "Last NCCL warning(error) log entry (may be unrelated) 'Cuda failure 2 'out of memory''."
    )
    assert [f.message for f in facts(line) if isinstance(f, NcclWarn)] == ["Cuda failure 2 'out of memory'"]
    assert [(f.at, f.result) for f in facts(line) if isinstance(f, Stage)] == [("nccl_init", "error")]


def test_the_frame_above_names_the_stage() -> None:
    frame = '  File "vllm/distributed/pynccl_wrapper.py", line 373, in ncclCommInitRank\n    self.NCCL_CHECK(x)\n'
    last = "RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)"
    assert [f.at for f in facts(frame + last) if isinstance(f, Stage)] == ["nccl_init"]
    assert not [f for f in facts(frame.replace("ncclCommInitRank", "ncclAllReduce") + last) if isinstance(f, Stage)]
