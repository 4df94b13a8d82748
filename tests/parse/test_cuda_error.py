import pytest

from linkproof.model import CudaError, Event, Fact
from linkproof.parse import read
from linkproof.parse.clean import clean
from linkproof.parse.cuda_codes import CODES, code_of_name


def facts(words: str) -> list[Fact]:
    return read(clean("log", words))


def errors(words: str) -> list[CudaError]:
    return [f for f in facts(words) if isinstance(f, CudaError)]


@pytest.mark.parametrize("words, code", [
    ("Failed: Cuda error /x/csrc/custom_all_reduce.cuh:307 'peer access is not supported between these two devices'", 217),
    ("peer access is not supported between these two devices", 217),
    ("Failed: Cuda error custom_all_reduce.cuh:455 'invalid argument'", 1),
    ("CUDA error 401 'the operation cannot be performed in the present state'.", 401),
    ("Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before? Error 803: system has unsupported display driver / "
     "cuda driver combination", 803),
    ("cudaGetDeviceCount returned 802", 802),
    ("RuntimeError: CUDA error: out of memory", 2),
    ("allocating 5000.00 MiB on device 0: cudaMalloc failed: out of memory", 2),
    ("CUDA error at simpleP2P.cu:129 code=46(cudaErrorDevicesUnavailable) \"cudaSetDevice(0)\"", 46),
    ("torch.AcceleratorError: CUDA error: unknown error", 999),
    ("CUDA driver error: unknown error", 999),
    ("CUDA_ERROR_CONTAINED: Invalid access of peer GPU memory over nvlink or a hardware error", 226),
    ("RuntimeError: CUDA error: uncorrectable ECC error encountered", 214),
    ("RuntimeError: CUDA error: uncorrectable NVLink error detected during the execution", 220),
    ("CUDA error: the launch timed out and was terminated", 702),
    ("CUDA error: mapping of buffer object failed", 205),
    ("CUDA error: OS call failed or operation not supported on this OS", 304),
    ("CUDA error: operation not supported", 801),
    ("MPS client failed to connect to the MPS control daemon or the MPS server", 805),
    ("RuntimeError: HIP error: invalid device function", 98),
    ("hipErrorIllegalAddress", 700),
    ("Memory access fault by GPU node-1 (Agent handle: 0x55) on address 0x7f. Reason: Page not present or supervisor privilege.", 700),
    ("CUDA Error: 999", 999),
])  # fmt: skip
def test_every_way_to_print_an_error_gives_its_number(words: str, code: int) -> None:
    (error,) = errors(words)
    assert error.code == code


def test_words_win_over_the_numbers_of_old_runtimes() -> None:
    (error,) = errors("RuntimeError: cuda runtime error (77) : an illegal memory access was encountered at /opt/THCStorage.cu:12")
    assert (error.code, error.where) == (700, "THCStorage.cu:12")


def test_names_of_runtime_driver_and_hip_are_one() -> None:
    assert {code_of_name(n) for n in ("cudaErrorIllegalAddress", "CUDA_ERROR_ILLEGAL_ADDRESS", "hipErrorIllegalAddress")} == {700}
    assert code_of_name("cudaErrorOfTomorrow") is None
    assert CODES[919][1] == "fabricnotready"


def test_the_function_on_the_next_line_is_where_it_failed() -> None:
    (error,) = errors("CUDA error: peer mapping resources exhausted\n  current device: 0, in function ggml_cuda_init at ggml-cuda.cu:336")
    assert (error.code, error.where) == (711, "ggml_cuda_init")


def test_a_library_status_keeps_its_name_without_a_number() -> None:
    (error,) = errors("RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")
    assert (error.name, error.code, error.where) == ("CUBLAS_STATUS_NOT_INITIALIZED", None, "cublasCreate")


@pytest.mark.parametrize("words", [
    "bash: cannot fork: out of memory",
    "ValueError: invalid argument",
    "mount: operation not permitted",
    "if (err != cudaErrorPeerAccessAlreadyEnabled) {",
    "an unknown error occurred while fetching",
    "CUDA Version: 12.4",
    "cudaMemcpy returned 0",
])  # fmt: skip
def test_common_words_without_cuda_and_source_code_are_no_error(words: str) -> None:
    assert not errors(words)


def test_the_same_error_is_given_once_per_rank_and_place() -> None:
    words = ["CUDA error: an illegal memory access was encountered"] * 30 + [
        "[rank1]: CUDA error: an illegal memory access was encountered"
    ]
    assert [e.rank for e in errors("\n".join(words))] == [None, 1]


@pytest.mark.parametrize("words, kind", [
    ("Error 802: system not yet initialized", "fabric_not_ready"),
    ("CUDA driver version is insufficient for CUDA runtime version", "driver_mismatch"),
    ("forward compatibility was attempted on non supported HW", "driver_mismatch"),
    ("no CUDA-capable device is detected", "no_cuda_device"),
    ("CUDA error: uncorrectable ECC error encountered", "ecc_error"),
    ("CUDA_ERROR_CONTAINED", "nvlink_contained"),
    ("CUDA error: out of memory", "cuda_oom"),
    ("HIP error: device kernel image is invalid", "hip_kernel_image"),
])  # fmt: skip
def test_a_number_that_says_more_becomes_an_event(words: str, kind: str) -> None:
    assert [f.kind for f in facts(words) if isinstance(f, Event)] == [kind]


def test_a_full_multicast_table_is_no_lack_of_memory() -> None:
    one = "Failed to bind NVLink SHARP (NVLS) Multicast memory of size 2097152 : CUDA error 2 'out of memory'."
    two = "Failed to bind NVLink SHARP (NVLS) Multicast memory of size 2097152:\nCUDA error 2 'out of memory'."
    for words in (one, two):
        assert "cuda_oom" not in [f.kind for f in facts(words) if isinstance(f, Event)]
        assert [e.code for e in errors(words)] == [2]


def test_an_invalid_image_on_nvidia_is_no_hip_image() -> None:
    assert not [f for f in facts("CUDA error: device kernel image is invalid") if isinstance(f, Event)]
