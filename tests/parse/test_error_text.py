import pytest

from linkproof.model import EVENT_KINDS, Event
from linkproof.parse import read
from linkproof.parse.clean import clean


def events(words: str) -> list[tuple[str, str]]:
    return [(f.kind, f.value) for f in read(clean("log", words)) if isinstance(f, Event)]


@pytest.mark.parametrize("words, value", [
    ("Expected all tensors to be on the same device, but found at least two devices, cuda:2 and cuda:7!", "cuda:2,cuda:7"),
    ("RuntimeError: Expected all tensors to be on the same device, but got index is on cpu, different from other tensors on cuda:0 (when ..)",
     "cpu,cuda:0"),
    ("Expected tensor for argument #1 'input' to have the same device as tensor for argument #2 'weight'; but device 0 does not equal 1",
     "cuda:0,cuda:1"),
    ("module must have its parameters and buffers on device cuda:0 (device_ids[0]) but found one of them on device: cuda:1", "cuda:0,cuda:1"),
    ("Input and parameter tensors are not at the same device, found input tensor at cuda:1 and parameter tensor at cuda:0", "cuda:1,cuda:0"),
])  # fmt: skip
def test_two_devices_are_named(words: str, value: str) -> None:
    assert events(words) == [("two_devices", value)]


@pytest.mark.parametrize("words, kind, value", [
    ("RuntimeError: probability tensor contains either `inf`, `nan` or element < 0", "prob_tensor", ""),
    ("IndexError: index out of range in self", "index_out_of_range_cpu", ""),
    ("IndexError: index 50257 is out of bounds for dimension 0 with size 50257", "index_out_of_range_cpu", "50257"),
    ("ValueError: Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)", "triton_wrong_device", ""),
    ("ValueError: Array device must be same as the current device: array device = 1 while current = 0", "wrong_current_device", ""),
    ("The device where the array resides (1) is different from the current device (0).", "wrong_current_device", ""),
    ("RuntimeError: Cannot re-initialize CUDA in forked subprocess.", "fork_after_cuda", ""),
    ("ImportError: /x/libtorch_cuda.so: undefined symbol: ncclCommRegister", "undefined_nccl_symbol", "ncclCommRegister"),
    ("ValueError: invalid literal for int() with base 10: 'MIG-0a1b2c3d'", "mig_name_as_number", ""),
    ("  MIG 1g.5gb      Device  0: (UUID: MIG-0a1b2c3d-4e5f-6071)", "mig_present", "MIG-0a1b2c3d-4e5f-6071"),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.", "cuda_oom", ""),
    ("RuntimeError: No CUDA GPUs are available", "no_cuda_device", ""),
    ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040).", "driver_mismatch", "11040"),
    ("Failed to initialize NVML: Driver/library version mismatch", "driver_mismatch", "Driver/library version mismatch"),
    ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "driver_mismatch", "nvidia-smi cannot reach the driver"),
    ("Failed to initialize NVML: Unknown Error", "nvml_lost", ""),
    ("nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.4, please update", "driver_mismatch", "cuda>=12.4"),
    ("NVIDIA X with CUDA capability sm_120 is not compatible with the current PyTorch installation.", "driver_mismatch", "sm_120"),
    ("RuntimeError: CUDA Setup failed despite GPU being available.", "driver_mismatch", "bitsandbytes: CUDA setup failed"),
    ("RuntimeError: expected m1 and m2 to have the same dtype, but got: float != c10::Half", "mixed_dtype_matmul", ""),
    ("RuntimeError: expected scalar type Half but found Float", "mixed_dtype_matmul", ""),
])  # fmt: skip
def test_a_known_message_becomes_its_event(words: str, kind: str, value: str) -> None:
    assert (kind, value) in events(words)
    assert kind in EVENT_KINDS


@pytest.mark.parametrize("words", [
    "ImportError: x.so: undefined symbol: _ZNK3c104cuda",
    "IndexError: index 5 is out of bounds for axis 0 with size 5",
    "  current device: 1, in function ggml_backend_cuda_synchronize at ggml-cuda.cu:2440",
    "Failed to initialize NVML: Success",
    "all tensors are on one device",
    "f.cu:1: k: block: [0,0,0], thread: [0,0,0] Assertion `probability tensor contains either `inf`, `nan` or element < 0` failed.",
])  # fmt: skip
def test_what_only_looks_like_it_gives_nothing(words: str) -> None:
    kinds = {kind for kind, _ in events(words)}
    assert not kinds & {"undefined_nccl_symbol", "index_out_of_range_cpu", "wrong_current_device", "nvml_lost", "driver_mismatch", "two_devices",
                        "prob_tensor"}  # fmt: skip


def test_two_folders_with_an_nccl_are_several() -> None:
    words = "libnccl.so.2 => /usr/local/cuda/lib64/libnccl.so.2\n7f00 /home/u/site-packages/nvidia/nccl/lib/libnccl.so.2"
    assert events(words) == [("several_nccl", "/usr/local/cuda/lib64; /home/u/site-packages/nvidia/nccl/lib")]


def test_two_packages_of_nccl_are_several() -> None:
    assert events("nvidia-nccl-cu12  2.21.5\nnvidia-nccl-cu13  2.27.5") == [("several_nccl", "nvidia-nccl-cu12; nvidia-nccl-cu13")]


def test_a_link_its_target_and_a_plugin_are_one_nccl() -> None:
    words = (
        "libnccl.so.2 => /lib/x86_64-linux-gnu/libnccl.so.2\nlibnccl.so => /usr/lib/x86_64-linux-gnu/libnccl.so\n/opt/amazon/libnccl-net.so"
    )
    assert not events(words)


def test_a_library_path_with_two_nccl_folders_is_several_but_a_plugin_is_not() -> None:
    assert [k for k, _ in events("LD_LIBRARY_PATH=/usr/local/nccl_2.18.3/lib:/opt/nccl/build/lib")] == ["several_nccl"]
    assert not events("LD_LIBRARY_PATH=/usr/local/nccl_2.18.3/lib:/opt/hpcx/nccl_rdma_sharp_plugin/lib")


def test_two_versions_of_the_driver_library_do_not_fit() -> None:
    words = "/usr/local/cuda/compat/libcuda.so.535.54.03\n/usr/lib/x86_64-linux-gnu/libcuda.so.550.90.07"
    assert events(words) == [("driver_mismatch", "libcuda 535.54.03; 550.90.07")]
    assert not events("/a/libcuda.so.550.90.07\n/b/libcuda.so.550.90.07\n/b/libcuda.so.1")
