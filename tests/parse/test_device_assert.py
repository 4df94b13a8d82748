import pytest

from linkproof.model import CudaError, DeviceAssert, Event, Fact
from linkproof.parse import read
from linkproof.parse.clean import clean

AT = "/build/aten/src/ATen/native/cuda"
INDEX = '`-sizes[i] <= index && index < sizes[i] && "index out of bounds"`'


def facts(words: str) -> list[Fact]:
    return read(clean("log", words))


def asserts(words: str) -> list[DeviceAssert]:
    return [f for f in facts(words) if isinstance(f, DeviceAssert)]


def line(file: str, kernel: str, expression: str, thread: int = 0) -> str:
    return f"{AT}/{file}: {kernel}: block: [3,0,0], thread: [{thread},0,0] Assertion {expression} failed."


@pytest.mark.parametrize("file, kernel, expression, op", [
    ("IndexKernel.cu:92", "operator()", INDEX, "index"),
    ("IndexKernel.cu:60", "lambda [](int)->auto::operator()(int)->auto", '`index >= -sizes[i] && index < sizes[i] && "index out of bounds"`', "index"),
    ("IndexKernel.cu:180", "operator()", '`index >= 0 && index < n && "index_copy_(): index out of bounds"`', "index_copy"),
    ("IndexKernel.cu:242", "operator()", '`index >= -n && index < n && "cuda_take_put_kernel() index out of bounds"`', "take_put"),
    ("IndexKernel.cu:410", "masked_scatter_size_check", "`totalElements <= srcSize`", "masked_scatter"),
    ("IndexKernelUtils.cu:16", "vectorized_gather_kernel",
     '`ind >=0 && ind < ind_dim_size && "vectorized gather kernel index out of bounds"`', "row_gather"),
    ("Indexing.cu:1093", "indexSelectSmallIndex", "`srcIndex < srcSelectDimSize`", "embedding"),
    ("Indexing.cu:1289", "indexSelectLargeIndex", "`srcIndex < srcSelectDimSize`", "embedding"),
    ("Indexing.cu:707", "indexFuncLargeIndex", "`dstIndex < dstAddDimSize`", "index_copy"),
    ("ScatterGatherKernel.cu:144", "operator()", '`idx_dim >= 0 && idx_dim < index_size && "index out of bounds"`', "gather"),
    ("ScatterGatherKernel.cu:555", "operator()", '`ind >= 0 && ind < n && "vectorized scatter index out of bounds"`', "scatter"),
    ("TensorCompare.cu:112", "_assert_async_cuda_kernel", "`probability tensor contains either `inf`, `nan` or element < 0`", "multinomial_prob"),
    ("TensorCompare.cu:112", "_assert_async_cuda_kernel", "`Expected all lengths to be positive`", "assert_async"),
    ("MultinomialKernel.cu:112", "sampleMultinomialOnce", "`!at::_isnan(val)`", "multinomial_isnan"),
    ("MultinomialKernel.cu:113", "sampleMultinomialOnce", "`val >= zero`", "multinomial_prob"),
    ("MultinomialKernel.cu:200", "binarySearchForMultinomial", "`cumdist[size - 1] > static_cast<scalar_t>(0)`", "multinomial_zero_row"),
    ("Loss.cu:250", "nll_loss_forward_reduce_cuda_kernel_2d", "`t >= 0 && t < n_classes`", "nll_loss"),
    ("Loss.cu:94", "operator()", "`input_val >= zero && input_val <= one`", "bce_loss"),
    ("SomethingNew.cu:1", "shiny_kernel", "`everything == fine`", "other"),
])  # fmt: skip
def test_file_kernel_and_expression_name_the_operation(file: str, kernel: str, expression: str, op: str) -> None:
    (found,) = asserts(line(file, kernel, expression))
    assert (found.op, found.file) == (op, file.split(":")[0])


def test_the_line_number_decides_nothing() -> None:
    ops = {
        asserts(line(f"Loss.cu:{n}", "nll_loss_forward_reduce_cuda_kernel_2d", "`t >= 0 && t < n_classes`"))[0].op for n in (1, 92, 9999)
    }
    assert ops == {"nll_loss"}


def test_threads_of_one_assertion_are_counted_once_per_rank() -> None:
    words = [line("IndexKernel.cu:92", "operator()", INDEX, thread) for thread in range(64)]
    words += ["[rank1]: " + line("IndexKernel.cu:92", "operator()", INDEX, thread) for thread in range(3)]
    found = asserts("\n".join(words))
    assert [(f.rank, f.count, f.source.line) for f in found] == [(None, 64, 1), (1, 3, 65)]


def test_assertions_joined_in_one_line_are_all_counted() -> None:
    (found,) = asserts(" ".join(line("IndexKernel.cu:92", "operator()", INDEX, thread) for thread in range(5)))
    assert found.count == 5


def test_an_old_kernel_with_its_whole_signature() -> None:
    kernel = "void cunn_ClassNLLCriterion_updateOutput_kernel(Dtype *, long *, int) [with Dtype = float, Acctype = float]"
    (found,) = asserts(f"/opt/pytorch/aten/src/THCUNN/ClassNLLCriterion.cu:105: {kernel}: block: [0,0,0], thread: [1,0,0] "
                       "Assertion `t >= 0 && t < n_classes` failed.")  # fmt: skip
    assert (found.kernel, found.op) == ("cunn_ClassNLLCriterion_updateOutput_kernel", "nll_loss")


def test_windows_prints_backslashes_and_no_kernel() -> None:
    (found,) = asserts(rf"C:\a\b\aten\src\ATen\native\cuda\IndexKernel.cu:92: block: [26,0,0], thread: [32,0,0] Assertion {INDEX} failed.")
    assert (found.file, found.kernel, found.op) == ("IndexKernel.cu", "", "index")


def test_a_verbose_build_prints_index_and_size() -> None:
    (found,) = asserts(
        f"[CUDA_KERNEL_ASSERT] {AT}/IndexKernelUtils.cu:16: vectorized_gather_kernel: block: [3,0,0], thread: [0,0,0]: Assertion failed: "
        '`ind >=0 && ind < ind_dim_size && "vectorized gather kernel index out of bounds"`: '
        "Expected 0 <= index < ind_dim_size(151936), but got index = -4620693217682128896"
    )
    assert (found.index, found.size, found.op) == (-4620693217682128896, 151936, "row_gather")


def test_generated_kernels_print_the_bound_in_the_expression() -> None:
    (found,) = asserts("/tmp/torchinductor_u/ab/cab.py:28: unknown: block: [3,0,0], thread: [0,0,0] Assertion "
                       "`index out of bounds: 0 <= tmp7 < 151936` failed.")  # fmt: skip
    assert (found.file, found.kernel, found.size, found.index) == ("cab.py", "", 151936, None)


@pytest.mark.parametrize("quotes", ["``", "`'", "''", "‘’", ""])
def test_quotes_around_the_expression_may_be_any(quotes: str) -> None:
    opening, closing = (quotes[0], quotes[1]) if quotes else ("", "")
    (found,) = asserts(line("Indexing.cu:1", "indexSelectLargeIndex", f"{opening}srcIndex < srcSelectDimSize{closing}"))
    assert found.expression == "srcIndex < srcSelectDimSize"


def test_hip_prints_device_side_assertion() -> None:
    (found,) = asserts(f"{AT}/IndexKernel.hip:92: auto f(const int &)::operator()(int) const: Device-side assertion {INDEX[:-1]}' failed.")
    assert (found.file, found.op) == ("IndexKernel.hip", "index")


def test_a_hip_queue_that_ends_with_an_exception_is_no_certain_assertion() -> None:
    words = ":0:rocdevice.cpp :3020: 58752d us: Callback: Queue 0x7f45 aborting with error : HSA_STATUS_ERROR_EXCEPTION: code: 0x1016"
    found = facts(words)
    assert any(isinstance(f, CudaError) and f.code is None for f in found)
    assert any(isinstance(f, Event) and f.kind == "assert_generic" for f in found)


def test_the_error_without_its_assertion_is_generic() -> None:
    found = facts("RuntimeError: CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`")
    assert [f.code for f in found if isinstance(f, CudaError)] == [710]
    assert [f.kind for f in found if isinstance(f, Event)] == ["assert_generic"]


def test_with_the_assertion_line_it_is_not_generic() -> None:
    found = facts(line("IndexKernel.cu:92", "operator()", INDEX) + "\nRuntimeError: CUDA error: device-side assert triggered")
    assert not [f for f in found if isinstance(f, Event)]
    assert [f.code for f in found if isinstance(f, CudaError)] == [710]


@pytest.mark.parametrize("words", [
    "foo_test.cc:12: main: Assertion `x == 1' failed.",
    "AssertionError: Assertion failed in unit test",
    "python: malloc.c:2617: sysmalloc: Assertion `(old_top == initial_top (av))' failed.",
])  # fmt: skip
def test_an_assertion_of_the_host_is_no_device_assertion(words: str) -> None:
    assert not asserts(words)


def test_a_cut_line_keeps_what_is_there() -> None:
    (found,) = asserts("thread: x block: [1,0,0], thread: [2,0,0] Assertion `srcIndex < srcSelectDim")
    assert (found.file, found.expression) == ("", "srcIndex < srcSelectDim")
