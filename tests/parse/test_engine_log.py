import pytest

from linkproof.model import EVENT_KINDS, Event, Fact, Gpu, Setting, Versions
from linkproof.parse import read
from linkproof.parse.clean import clean


def facts(words: str) -> list[Fact]:
    return read(clean("log", words))


def events(words: str) -> list[tuple[str, str]]:
    return [(f.kind, f.value) for f in facts(words) if isinstance(f, Event)]


@pytest.mark.parametrize("words, engine", [
    ("INFO 05-01 10:00:00 [core.py:58] Initializing a V1 LLM engine (v0.8.5) with config: model='m'", "vllm 0.8.5"),
    ("INFO 10-01 api_server.py:528] vLLM API server version 0.6.3.post1", "vllm 0.6.3.post1"),
    ("[TensorRT-LLM] TensorRT-LLM version: 0.17.0.post1", "tensorrt-llm 0.17.0.post1"),
    ("[INFO] [logging.py:96] [Rank 0] DeepSpeed info: version=0.14.0, git-hash=unknown", "deepspeed 0.14.0"),
    ("level=INFO source=routes.go:1238 msg=\"Listening on [::]:11434 (version 0.5.7)\"", "ollama 0.5.7"),
    ("build: 4589 (eb7cf15a) with cc (Ubuntu) 11.4.0", "llama.cpp 4589 (eb7cf15a)"),
])  # fmt: skip
def test_engines_say_their_version(words: str, engine: str) -> None:
    assert [f.engine for f in facts(words) if isinstance(f, Versions) and f.engine] == [engine]


def test_vllm_and_sglang_say_which_nccl_they_loaded() -> None:
    words = "INFO pynccl.py:63] vLLM is using nccl==2.20.5\n[2026-04-14 16:08:43 TP0] sglang is using nccl==2.27.5"
    assert [f.nccl for f in facts(words) if isinstance(f, Versions)] == ["2.20.5", "2.27.5"]


@pytest.mark.parametrize("words, size", [
    ("LLM engine (v0.6.0) with config: model='m', tensor_parallel_size=2, pipeline_parallel_size=1", "2"),
    ("server_args=ServerArgs(model_path='m', tp_size=4, stream_interval=1)", "4"),
    ("[t] server_args={'tp_size': 8, 'disable_custom_all_reduce': False}", "8"),
    ("vllm serve m --tensor-parallel-size=8", "8"),
    ("python -m vllm.entrypoints.openai.api_server --model m -tp 2", "2"),
    ("python -m sglang.launch_server --model-path m --tp 4", "4"),
    ("text-generation-launcher --num-shard 2", "2"),
])  # fmt: skip
def test_the_tensor_parallel_size_is_read_from_dumps_and_commands(words: str, size: str) -> None:
    assert ("engine_tp", size) in events(words)


@pytest.mark.parametrize("words", ["the max_tp_size is unknown", "http://host -type 2", "tensor_parallel_size must divide the heads"])
def test_a_size_that_is_not_said_is_not_read(words: str) -> None:
    assert not [k for k, _ in events(words) if k == "engine_tp"]


@pytest.mark.parametrize("words, why", [
    ("Custom allreduce is disabled because it's not supported on more than two PCIe-only GPUs. To silence this warning, specify "
     "disable_custom_all_reduce=True explicitly.", "pcie_only"),
    ("Custom allreduce is disabled because your platform lacks GPU P2P capability or P2P test failed.", "no_p2p"),
    ("Custom allreduce is disabled due to an unsupported world size: 3. Supported world sizes: [2, 4, 6, 8].", "world_size"),
    ("Custom allreduce is disabled because this process group spans across nodes.", "other"),
    ("Setup Custom allreduce failed with CUDART error: peer access is not supported between these two devices. To silence this warning, "
     "specify --disable-custom-all-reduce explicitly.", "no_p2p"),
])  # fmt: skip
def test_why_the_engine_gave_up_its_own_all_reduce(words: str, why: str) -> None:
    found = facts(words)
    assert [f.value for f in found if isinstance(f, Event) and f.kind == "custom_ar_disabled"] == [why]
    assert not [f for f in found if isinstance(f, Setting)]  # advice in a warning is no setting


@pytest.mark.parametrize("words, kind, value", [
    ("(VllmWorker rank=0 pid=1) INFO custom_all_reduce.py:195] Registering 1120 cuda graph addresses", "custom_ar_used", ""),
    ("All Reduce config: symmetric_memory = 20.01 MB, local_buffer = 2.00 MB, multicast = False", "custom_ar_used", ""),
    ("Using b12x PCIe oneshot allreduce backend", "custom_ar_used", ""),
    ("Failed: Cuda error /w/csrc/custom_all_reduce.cuh:455 'invalid argument'", "custom_ar_cuda_error", "invalid argument"),
    ("INFO custom_all_reduce_utils.py:206] generating GPU P2P access cache in /root/x.json", "engine_p2p_check", "generating"),
    ("INFO custom_all_reduce_utils.py:244] reading GPU P2P access cache from /root/x.json", "engine_p2p_check", "reading"),
    ("INFO shm_broadcast.py:466] No available shared memory broadcast block found in 60 seconds.", "shm_broadcast_wait", ""),
    ("TimeoutError: RPC call to sample_tokens timed out.", "engine_stalled", "sample_tokens"),
    ("Watchdog timeout (self.watchdog_timeout=300)", "engine_stalled", "watchdog"),
    ("ERROR [multiproc_executor.py:231] Worker proc VllmWorker-0 died unexpectedly, shutting down executor.", "worker_died", "VllmWorker-0"),
    ("ERROR multiproc_worker_utils.py:120] Worker VllmWorkerProcess pid 382811 died, exit code: -15", "worker_died", "382811"),
    ("Rank 0 scheduler is dead. Please check if there are relevant logs.", "worker_died", "0"),
    ("ERROR text_generation_launcher: Shard 1 failed to start", "worker_died", "1"),
    ("RuntimeError: Engine core initialization failed. See root cause above.", "engine_start_failed", ""),
    ("Error: ShardCannotStart", "engine_start_failed", ""),
    ("INFO model_runner.py:1028] Capturing the model for CUDA graphs. This may lead to unexpected consequences", "graph_capture", "begin"),
    ("INFO gpu_model_runner.py:1] Profiling CUDA graph memory: PIECEWISE=2 (largest=2)", "graph_capture", "begin"),
    ("Exception: Capture cuda graph failed: x", "graph_capture", "failed"),
    ("INFO Graph capturing finished in 20 secs, took 0.5 GiB", "graph_capture", "finished"),
    ("ggml_cuda_set_peer_access: Enabling Peer Access between Devices 0->1", "peer_copy_library", ""),
    ("INFO gptq_marlin.py:140] Using gptq_marlin kernel", "quant_kernel", "gptq_marlin"),
    ("/x/ggml.c:3000: GGML_ASSERT(n > 0) failed", "ggml_abort", "n > 0"),
    ("/x/ggml/src/ggml-cuda/ggml-cuda.cu:72: CUDA error", "ggml_abort", "ggml-cuda.cu"),
])  # fmt: skip
def test_a_known_line_becomes_its_event(words: str, kind: str, value: str) -> None:
    assert (kind, value) in events(words)
    assert kind in EVENT_KINDS


@pytest.mark.parametrize("words", [
    "Registering 0 cuda graph addresses",
    "    GGML_ASSERT(n > 0);",
    "PCIe oneshot allreduce is disabled",
    "peer access control list",
    "Using default tokenizer backend",
    "the server failed to start in time",
])  # fmt: skip
def test_what_only_resembles_a_line_gives_no_event(words: str) -> None:
    assert not events(words)


def test_the_device_list_counts_cards_of_one_model_however_often_it_is_printed() -> None:
    listing = """ggml_cuda_init: found 3 CUDA devices:
  Device 0: NVIDIA GeForce RTX 3090, compute capability 8.6, VMM: yes
  Device 1: NVIDIA GeForce RTX 3090, compute capability 8.6, VMM: yes
  Device 2: Tesla P40, compute capability 6.1, VMM: yes"""
    assert [(f.name, f.count) for f in facts(listing + "\n" + listing) if isinstance(f, Gpu)] == [
        ("NVIDIA GeForce RTX 3090", 2),
        ("Tesla P40", 1),
    ]


def test_a_main_device_says_a_model_and_no_number() -> None:
    (gpu,) = [f for f in facts("ggml_cuda_set_main_device: using device 0 (NVIDIA GeForce RTX 3090) as main device") if isinstance(f, Gpu)]
    assert (gpu.name, gpu.count) == ("NVIDIA GeForce RTX 3090", 0)


def test_ollama_lists_its_cards() -> None:
    card = 'msg="inference compute" id=GPU-{0} library=cuda variant=v12 compute=8.6 driver=12.8 name="NVIDIA GeForce RTX 3060" total="11.6 GiB"'
    (gpu,) = [f for f in facts(card.format("aa") + "\n" + card.format("bb")) if isinstance(f, Gpu)]
    assert (gpu.name, gpu.count) == ("NVIDIA GeForce RTX 3060", 2)
