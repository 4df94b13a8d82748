"""Logs of inference engines: vLLM, SGLang, TensorRT-LLM, TGI, DeepSpeed, llama.cpp and ollama.

In:      start-up and run lines of any version, configuration dumps (`tensor_parallel_size=2`, `'tp_size': 2`), command lines,
         ggml's device list and aborts.
Out:     Versions (engine, nccl), Event engine_tp, custom_ar_disabled, custom_ar_used, custom_ar_cuda_error, engine_p2p_check,
         shm_broadcast_wait, engine_stalled, worker_died, engine_start_failed, graph_capture, peer_copy_library, quant_kernel,
         ggml_abort; Gpu per model of card with the number of devices listed.
Unknown: `Registering 0 cuda graph addresses` is no use of the engine's all-reduce; advice inside a warning is no setting; what the
         model answered is not read here.
Raises:  nothing.
Source:  vLLM 0.2 .. 0.33 and SGLang 0.2 .. 0.5.23 (custom_all_reduce.py, shm_broadcast.py, parallel_state.py), forks with PCIe
         all-reduce, TensorRT-LLM 0.8 .. 1.1, TGI launcher, ggml-cuda.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Gpu, Line, Source, Text, Versions
from linkproof.parse.rules import LINE_MAX, Make, Match, Rule, anchors_of, event, run, rx, source


def _disabled(found: Match | None, where: Source, rank: int | None) -> Fact:
    words = where.text
    if "PCIe-only" in words:
        why = "pcie_only"
    elif "P2P capability" in words or "P2P test failed" in words or "peer access is not supported" in words:
        why = "no_p2p"
    else:
        why = "world_size" if "world size" in words else "other"
    return Event(source=where, rank=rank, kind="custom_ar_disabled", value=why)


def _engine(found: Match | None, where: Source, rank: int | None) -> Fact | None:
    return Versions(source=where, rank=rank, engine=f"{found[1].lower()} {found[2]}") if found else None


def _named(engine: str) -> Make:
    def make(found: Match | None, where: Source, rank: int | None) -> Fact | None:
        return Versions(source=where, rank=rank, engine=f"{engine} {found[1]}") if found else None

    return make


def _nccl(found: Match | None, where: Source, rank: int | None) -> Fact | None:
    return Versions(source=where, rank=rank, nccl=found[1]) if found else None


_TP = (
    r"(?:tensor[_-](?:model[_-])?parallel[_-]size|\btp[_-]size|\bmp_size|--tp|(?:^|\s)-tp|num[_-]shard)['\"]?"
    r"(?:\s?[=:]\s?|\s{1,4})['\"]?(?:Some\()?(\d{1,4})\b"
)
_V = r"v?(\d{1,4}\.\d{1,4}[\w.+-]{0,40})"
_AR_FILE = r"(?i)(?:custom|quick|vllm|trt_?llm)?_?all_?reduce\w{0,20}\.(?:cuh|cu|hip|h)(?::\d{1,6})?\W{1,4}'?([^'\n]{1,120})"

_TABLE: tuple[tuple[str, str, str | Make], ...] = (
    # versions
    ("LLM engine (v", r"LLM engine \(" + _V + r"\)", _named("vllm")),
    ("vLLM API server version", r"vLLM API server version " + _V, _named("vllm")),
    ("vllm==", r"\b(vllm)==" + _V, _engine),
    ("sglang==", r"\b(sglang)==" + _V, _engine),
    ("sglang[", r"\b(sglang)(?:\[\w+\])?==" + _V, _engine),
    ("TensorRT-LLM version:", r"(TensorRT-LLM) version: " + _V, _engine),
    ("DeepSpeed info: version=", r"(DeepSpeed) info: version=" + _V, _engine),
    ("(version ", r"Listening on \S{1,60} \(version " + _V + r"\)", _named("ollama")),
    ("build: ", r"^build: (\d{1,6} \([0-9a-f]{6,12}\))", _named("llama.cpp")),
    ("is using nccl==", r"is using nccl==(\d{1,2}\.\d{1,3}(?:\.\d{1,3})?)", _nccl),
    # the engine's own all-reduce
    ("Custom allreduce is disabled", r"disabled (?:because|due)", _disabled),
    ("Setup Custom allreduce failed", "", _disabled),
    ("custom AR disabled", "", _disabled),
    ("cuda graph addresses", r"Registering [1-9]\d{0,8} cuda graph addresses", "custom_ar_used"),
    ("All Reduce config: ", "", "custom_ar_used"),
    ("cross_device_reduce_", r"cross_device_reduce_[12]stage", "custom_ar_used"),
    *((a, r"(?i)\bpcie[ _-]?(?:one|two)[ _-]?shot all-?reduce\b.{0,60}(?:dispatch|backend|enabled|shape)", "custom_ar_used")
      for a in ("shot allreduce", "shot AllReduce", "shot all-reduce")),
    ("Failed: Cuda error", r"Cuda error:? \S{0,300}?" + _AR_FILE, "custom_ar_cuda_error"),
    ("P2P access cache", r"\b(generating|reading) GPU P2P access cache", "engine_p2p_check"),
    # waiting, dying, not starting
    ("No available shared memory broadcast block", "", "shm_broadcast_wait"),
    ("No available block found in", r"No available block found in \d{1,4} second", "shm_broadcast_wait"),
    ("RPC call to", r"RPC call to (\w{1,60}) timed out", "engine_stalled"),
    ("Engine iteration timed out", "", event("engine_stalled", "iteration")),
    ("Watchdog timeout", r"Watchdog timeout \(", event("engine_stalled", "watchdog")),
    ("Hang detected on rank", "", event("engine_stalled", "watchdog")),
    ("died unexpectedly", r"(?:Worker proc|RayWorkerProc|ngine core proc) (\S{1,60}) died unexpectedly", "worker_died"),
    ("died, exit code", r"Worker VllmWorkerProcess pid (\d{1,8}) died", "worker_died"),
    ("EngineDeadError", "", "worker_died"),
    ("EngineCore encountered an issue", "", "worker_died"),
    ("Background loop has errored already", "", "worker_died"),
    ("Engine background task failed", "", "worker_died"),
    ("scheduler is dead", r"Rank (\d{1,4}) scheduler is dead", "worker_died"),
    ("Received sigquit from a child process", "", "worker_died"),
    ("Scheduler hit an exception", "", "worker_died"),
    ("MPI_ABORT was invoked", r"MPI_ABORT was invoked on rank (\d{1,6})", "worker_died"),
    ("failed to start", r"\bShard (\d{1,4}) failed to start", "worker_died"),
    (" crashed", r"\bShard (\d{1,4}) crashed", "worker_died"),
    ("Engine core initialization failed", "", "engine_start_failed"),
    ("EngineCore failed to start", "", "engine_start_failed"),
    ("Engine process failed to start", "", "engine_start_failed"),
    ("WorkerProc initialization failed", "", "engine_start_failed"),
    ("Failed core proc(s)", "", "engine_start_failed"),
    ("Executor worker initialization error", "", "engine_start_failed"),
    ("ShardCannotStart", r"^(?:\S+ )?Error: ShardCannotStart", "engine_start_failed"),
    # graphs
    *((a, r"(?i)capturing (?:the model for )?cuda ?graphs?\b", event("graph_capture", "begin"))
      for a in ("apturing CUDA graph", "apturing cudagraph", "apturing cuda graph", "apturing the model for")),
    ("Capture cuda graph begin", "", event("graph_capture", "begin")),
    ("Capture cuda graph failed", "", event("graph_capture", "failed")),
    ("Profiling CUDA graph memory", "", event("graph_capture", "begin")),
    ("Graph capturing finished", "", event("graph_capture", "finished")),
    ("Capture cuda graph end", "", event("graph_capture", "finished")),
    # peers and kernels
    *((a, r"(?i)\b(?:enabling|enabled|using) (?:cuda )?peer(?:[ -]to[ -]peer)? (?:access|cop(?:y|ies))\b", "peer_copy_library")
      for a in ("eer access", "eer Access", "eer-to-peer", "eer cop", "eer to peer")),
    *((a, r"\b[Uu]sing ['\"]?(\w*(?:[Mm]arlin|[Ee]x[Ll]lama|[Mm]achete|DeepGemm|deep_gemm|[Cc]utlass|awq|gptq)\w*)['\"]? "
      r"(?:\w+ ){0,3}(?:kernel|backend|for )", "quant_kernel") for a in ("arlin", "xllama", "xLlama", "achete", "DeepGemm", "utlass")),
    # ggml
    ("GGML_ASSERT", r"GGML_ASSERT\((.{1,160})\) failed", "ggml_abort"),
    *((a, r"\b(ggml[\w.-]{0,60}\.(?:cu|c|cpp|m|h)):\d{1,6}: (?:!?\"?CUDA error|fatal error|ROCm error)", "ggml_abort")
      for a in (": CUDA error", ": !", ": fatal error", ": ROCm error")),
)  # fmt: skip
RULES = tuple(Rule(*row) for row in _TABLE)

_SIZES = ("tensor_parallel_size", "tensor-parallel-size", "tensor_model_parallel_size", "tensor-model-parallel-size", "tp_size", "tp-size",
          "mp_size", "--tp ", "--tp=", "-tp ", "num_shard", "num-shard")  # fmt: skip
_DEVICES = ("compute capability", ", gfx", "using device ", "inference compute")
ANCHORS = (*anchors_of(RULES), *_SIZES, *_DEVICES)
KEEP = (0, 2)

_DEVICE = r"\bDevice (\d{1,3}): (.{2,80}?), (?:compute capability|gfx)"
_MAIN_DEVICE = r"using device (?:CUDA|ROCm)?(\d{1,3}) \((.{2,80}?)\)"
_OLLAMA = r"inference compute\" id=(\S{1,60}) .*?(?:description|name)=\"([^\"]{2,80})\""


def _cards(text: Text, hits: list[int]) -> Iterator[Fact]:
    """One Gpu per model of card; the number is that of different device numbers, however often the list is printed."""
    found: dict[str, tuple[Line, set[str]]] = {}
    for at in hits:
        line = text.lines[at]
        words = line.text[:LINE_MAX]
        if card := rx(_DEVICE).search(words) or rx(_OLLAMA).search(words):
            name = rx(r'description="([^"]{2,80})"').search(words) if "inference compute" in words else None
            found.setdefault(name[1] if name else card[2], (line, set()))[1].add(card[1])
        elif main := rx(_MAIN_DEVICE).search(words):
            found.setdefault(main[2], (line, set()))
    for card_name, (line, numbers) in list(found.items())[:16]:
        yield Gpu(source=source(text, line), rank=line.rank, name=card_name, count=len(numbers))


def _sizes(text: Text, hits: list[int]) -> Iterator[Fact]:
    given: set[str] = set()
    for at in hits:
        line = text.lines[at]
        found = rx(_TP).search(line.text[:LINE_MAX])
        if found and found[1] not in given:
            given.add(found[1])
            yield Event(source=source(text, line), rank=line.rank, kind="engine_tp", value=found[1])


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    seen: set[tuple[object, ...]] = set()
    for fact in (*run(RULES, text, hits, most=100), *_sizes(text, hits), *_cards(text, hits)):
        if isinstance(fact, Event):
            key: tuple[object, ...] = (fact.kind, fact.value, fact.rank)
        elif isinstance(fact, Versions):
            key = (fact.engine, fact.nccl)
        else:
            key = (id(fact),)
        if key not in seen:
            seen.add(key)
            yield fact
