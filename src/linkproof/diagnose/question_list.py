"""The questions that can be asked, with what each answer would say in the words of an observation. Data, no logic.

`{split}` and `{result}` in an answer take over how the failure at hand shows. cost: 1 = read a file or remember; 2 = run something;
4 = change something and run again. A question that is already answered, or makes no sense here, is not asked.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from linkproof.causes.reading import Reading
from linkproof.model import (
    Acs,
    Changed,
    Collective,
    Copy,
    DeviceAssert,
    FabricManager,
    Gpu,
    Host,
    IbError,
    Input,
    Iommu,
    KernelLog,
    ModelRun,
    Pattern,
    PeerAccess,
    Platform,
    Ranks,
    Stage,
)

Words = dict[str, str]


class Answer(Struct, frozen=True):
    """usual: how often this is the answer where none of the causes is at work, against the other answers (any scale)."""

    text: str
    observations: tuple[Words, ...]
    usual: float = 1.0


class Question(Struct, frozen=True):
    key: str
    text: str
    answers: tuple[Answer, ...]
    command: str
    answered: Callable[[Reading], bool]
    applies: Callable[[Reading], bool] = lambda f: True
    cost: float = 1.0


COPY_TEST = (
    'python3 -c "import torch as t; a=t.randint(256,(1<<26,),dtype=t.uint8); n=t.cuda.device_count(); '
    "[print(i,'->',j,(d.cpu()!=a).sum().item(),'bytes wrong') for i in range(n) for j in range(n) if i!=j "
    'for s,d in [(a.to(i),(255-a).to(j))] if d.copy_(s) is d]"'
)


def _setting(name: str, text: str, command: str, nature: str, applies: Callable[[Reading], bool], cost: float = 4.0) -> Question:
    """A switch to try: it ends the failure, or changes nothing."""
    return Question(
        key=nature,
        text=text,
        command=command,
        answers=(
            Answer("it runs right with it", ({"check": "setting", "name": name, "effect": "cured"},), 0.05),
            Answer("no difference", ({"check": "setting", "name": name, "effect": "no_effect"},)),
        ),
        answered=lambda f: f.setting(nature, "cured", "no_effect", "changed") is not None,
        applies=applies,
        cost=cost,
    )


def _several(f: Reading) -> bool:
    return f.single_bad is None


def _tensor(f: Reading) -> bool:
    run = f.split_bad
    return (run is not None and run.split == "tensor") or f.event("engine_tp") is not None


def _uses_nccl(f: Reading) -> bool:
    run = f.split_bad
    return (
        (run is not None and run.split in ("tensor", "data"))
        or bool(f.all(Collective))
        or f.event("nccl_error", "nccl_rings_connected") is not None
    )


def _asserts(f: Reading) -> bool:
    return (
        bool(f.all(DeviceAssert))
        or f.event("assert_generic", "index_out_of_range_cpu") is not None
        or f.first(ModelRun, result="assert") is not None
    )


def _nan(f: Reading) -> bool:
    return f.event("prob_tensor", "nan_seen", "garbage_text") is not None or any(r.result in ("nan", "garbage") for r in f.all(ModelRun))


_LIST = (
    Question(
        key="one_gpu",
        text="Is the same model with the same prompt right on one GPU alone?",
        command="CUDA_VISIBLE_DEVICES=0 ...",
        answers=(
            Answer("right on one GPU", ({"check": "model", "split": "none", "result": "ok"},)),
            Answer("wrong text or nan on one GPU too", ({"check": "model", "split": "none", "result": "garbage"},)),
            Answer("an assertion or error on one GPU too", ({"check": "model", "split": "none", "result": "assert"},)),
        ),
        answered=lambda f: f.single_ok is not None or f.single_bad is not None,
        cost=2.0,
    ),
    Question(
        key="how_split",
        text="How does it fail over several GPUs, and how is the model spread over them?",
        command="",
        answers=(
            Answer("layers on several GPUs (device_map): wrong text", ({"check": "model", "split": "pipeline", "result": "garbage"},)),
            Answer("layers on several GPUs (device_map): an assertion", ({"check": "model", "split": "pipeline", "result": "assert"},)),
            Answer("tensor parallel: wrong text", ({"check": "model", "split": "tensor", "result": "garbage"},)),
            Answer("tensor parallel: it hangs", ({"check": "model", "split": "tensor", "result": "hang"},)),
            Answer("data parallel training: wrong numbers", ({"check": "model", "split": "data", "result": "wrong"},)),
            Answer("data parallel training: it hangs", ({"check": "model", "split": "data", "result": "hang"},)),
            Answer("it stops at start with an error", ({"check": "stage", "at": "nccl_init", "result": "error"},)),
        ),
        answered=lambda f: f.split_bad is not None or bool(f.all(Collective)) or bool(f.all(Stage)) or f.single_bad is not None,
    ),
    Question(
        key="other_model",
        text="Do other models fail over the same GPUs too?",
        command="",
        answers=(
            Answer("yes, every model", ({"check": "model", "split": "{split}", "result": "{result}", "scope": "every_model"},)),
            Answer("no, only this one", ({"check": "model", "split": "{split}", "result": "{result}", "scope": "one_model"},)),
        ),
        answered=lambda f: any(r.scope for r in f.all(ModelRun)) or f.setting("other_model") is not None,
        applies=_several,
        cost=2.0,
    ),
    Question(
        key="copy",
        text="Does a copy from each GPU to each other GPU arrive byte for byte?",
        command=COPY_TEST,
        answers=(
            Answer("0 bytes wrong for all pairs", ({"check": "copy", "via": "peer", "result": "ok"},)),
            Answer(
                "bytes are wrong",
                ({"check": "copy", "via": "peer", "result": "wrong"}, {"check": "copy", "via": "host", "result": "ok"}),
                0.02,
            ),
            Answer("it hangs or stops with an error", ({"check": "copy", "via": "peer", "result": "error"},), 0.05),
        ),
        answered=lambda f: any(c.via != "host" for c in f.all(Copy)),
        applies=_several,
        cost=1.5,
    ),
    Question(
        key="iommu",
        text="In which mode does the IOMMU run?",
        command="cat /proc/cmdline; cat /sys/kernel/iommu_groups/*/type | sort | uniq -c",
        answers=(
            Answer("DMA or DMA-FQ: it translates", ({"check": "iommu", "mode": "translating"},)),
            Answer("identity: passthrough", ({"check": "iommu", "mode": "passthrough"},)),
            Answer("no groups: off", ({"check": "iommu", "mode": "off"},)),
        ),
        answered=lambda f: any(i.mode != "unknown" for i in f.all(Iommu)) or f.io_page_fault is not None,
        applies=_several,
    ),
    Question(
        key="acs",
        text="Do the PCIe bridges above the GPUs redirect peer traffic (ReqRedir+ or CmpltRedir+ in ACSCtl)?",
        command="sudo lspci -Dvvv | grep -E '^[0-9a-f]{4}:|ACSCtl'",
        answers=(
            Answer("yes, on a port above a GPU", ({"check": "acs", "redirect": "on"},)),
            Answer("no", ({"check": "acs", "redirect": "off"},)),
        ),
        answered=lambda f: any(a.redirect != "unknown" for a in f.all(Acs)),
        applies=_several,
    ),
    Question(
        key="kernel_log",
        text="What does the kernel log say about the time of the failure?",
        command="sudo dmesg -T | grep -iE 'IO_PAGE_FAULT|DMAR|Xid|AER|fallen|oom|AMD-Vi'",
        answers=(
            Answer("an IO page fault that names a GPU", ({"check": "kernel_log", "fact": "io_page_fault"},), 0.0005),
            Answer("Xid 79 (fallen off the bus)", ({"check": "kernel_log", "fact": "xid", "value": "79"},), 0.003),
            Answer("Xid 48, 63, 64, 94 or 95 (memory)", ({"check": "kernel_log", "fact": "xid", "value": "48"},), 0.001),
            Answer("Xid 119 or 120 (firmware processor)", ({"check": "kernel_log", "fact": "xid", "value": "119"},), 0.0005),
            Answer("a fatal PCIe error", ({"check": "kernel_log", "fact": "aer_fatal"},), 0.001),
            Answer("a process was killed for lack of memory", ({"check": "host", "fact": "oom_kill"},), 0.003),
            Answer("nothing of these", ({"check": "kernel_log", "fact": "clean"},)),
        ),
        answered=lambda f: bool(f.all(KernelLog)) or f.host("oom_kill") is not None,
    ),
    Question(
        key="changed",
        text="What was changed just before it began?",
        command="",
        answers=(
            Answer("the GPU driver", ({"check": "changed_before", "what": "driver"},), 0.2),
            Answer("the engine or a library", ({"check": "changed_before", "what": "library"},), 0.3),
            Answer("the model or its tokenizer", ({"check": "changed_before", "what": "model"},), 0.2),
            Answer("nothing that I know of", ({"check": "changed_before", "what": "nothing"},)),
        ),
        answered=lambda f: bool(f.all(Changed)),
    ),
    Question(
        key="platform",
        text="Where does it run?",
        command="systemd-detect-virt; cat /proc/1/cgroup",
        answers=(
            Answer("directly on the machine", ({"check": "platform", "kind": "bare_metal"},)),
            Answer("in a container or pod", ({"check": "platform", "kind": "container"},)),
            Answer("in a virtual machine", ({"check": "platform", "kind": "vm"},)),
            Answer("in WSL2", ({"check": "platform", "kind": "wsl2"},)),
        ),
        answered=lambda f: bool(f.all(Platform)),
    ),
    Question(
        key="peer_access",
        text="What does the driver say about peer access between the GPUs?",
        command="nvidia-smi topo -p2p r",
        answers=(
            Answer("OK", ({"check": "peer_access", "claimed": "all", "status": "OK"},)),
            Answer("NS, CNS, GNS or TNS: none", ({"check": "peer_access", "claimed": "none", "status": "NS"},)),
        ),
        answered=lambda f: bool(f.all(PeerAccess)) or f.hw_denies_peer is not None,
        applies=_several,
    ),
    Question(
        key="inputs",
        text="Which inputs fail?",
        command="",
        answers=(
            Answer("all", ()),
            Answer("only those above a length", ({"check": "pattern", "fact": "only_long_inputs"},), 0.1),
            Answer("only certain texts", ({"check": "pattern", "fact": "only_some_inputs"},), 0.2),
            Answer("only batches; each prompt alone is right", ({"check": "pattern", "fact": "only_batched"},), 0.1),
        ),
        answered=lambda f: any(p.fact.startswith("only_") and p.fact != "only_some_pairs" for p in f.all(Pattern)),
        applies=lambda f: _asserts(f) or _nan(f) or f.split_bad is not None,
    ),
    Question(
        key="token_ids",
        text="Does the largest token id of the input fit the rows of the embedding?",
        command="print(input_ids.min(), input_ids.max(), model.get_input_embeddings().weight.shape[0])",
        answers=(
            Answer("an id is negative or too large", ({"check": "input", "fact": "token_id_out_of_vocab"},), 0.02),
            Answer(
                "all ids fit",
                ({"check": "input", "fact": "max_token_id", "value": "0"}, {"check": "input", "fact": "vocab_rows", "value": "1"}),
            ),
        ),
        answered=lambda f: any(i.fact in ("token_id_out_of_vocab", "max_token_id", "pad_token_negative") for i in f.all(Input)),
        applies=_asserts,
        cost=1.5,
    ),
    Question(
        key="dtype",
        text="In which number format does the model run?",
        command="",
        answers=(
            Answer("fp16 (half)", ({"check": "input", "fact": "dtype", "value": "fp16"},)),
            Answer("bf16", ({"check": "input", "fact": "dtype", "value": "bf16"},)),
            Answer("fp32", ({"check": "input", "fact": "dtype", "value": "fp32"},)),
        ),
        answered=lambda f: f.input("dtype") is not None,
        applies=_nan,
    ),
    Question(
        key="shm",
        text="How large is /dev/shm where the ranks run (inside the container)?",
        command="df -h /dev/shm",
        answers=(
            Answer("64 MB", ({"check": "host", "fact": "shm_bytes", "value": "67108864"},), 0.3),
            Answer("several GB", ({"check": "host", "fact": "shm_bytes", "value": "8589934592"},)),
        ),
        answered=lambda f: bool(f.all(Host, fact="shm_bytes")),
    ),
    Question(
        key="memlock",
        text="What is the locked-memory limit inside the launched process?",
        command="ulimit -l",
        answers=(
            Answer("a number", ({"check": "host", "fact": "memlock_kib", "value": "65536"},)),
            Answer("unlimited", ({"check": "host", "fact": "memlock_kib", "value": "unlimited"},)),
        ),
        answered=lambda f: bool(f.all(Host, fact="memlock_kib")),
        applies=lambda f: bool(f.all(IbError)) or f.network("rdma_error") is not None,
    ),
    Question(
        key="fabric_manager",
        text="Does Fabric Manager run, in the driver's own version?",
        command="systemctl status nvidia-fabricmanager; nvidia-smi -q | grep -A3 Fabric",
        answers=(
            Answer("it runs", ({"check": "fabric_manager", "state": "running"},)),
            Answer("it is stopped or missing", ({"check": "fabric_manager", "state": "stopped"},), 0.05),
            Answer("another version than the driver", ({"check": "fabric_manager", "state": "version_mismatch"},), 0.03),
            Answer("it was restarted, the GPUs were not reset", ({"check": "fabric_manager", "state": "restarted_without_reset"},), 0.03),
        ),
        answered=lambda f: bool(f.all(FabricManager)),
        applies=lambda f: f.geforce is None,
    ),
    Question(
        key="ranks",
        text="Did one rank stop before the others, and how?",
        command="",
        answers=(
            Answer("one was killed (exit -9, 137)", ({"check": "ranks", "fact": "one_rank_died", "detail": "exit -9"},), 0.03),
            Answer("one comes late: loading, data, saving", ({"check": "ranks", "fact": "one_rank_late"},), 0.03),
            Answer("they ask for different sizes or operations", ({"check": "ranks", "fact": "sizes_differ"},), 0.02),
            Answer("none stands out", ()),
        ),
        answered=lambda f: bool(f.all(Ranks)),
        applies=lambda f: (
            f.hang is not None or f.event("collective_timeout", "nccl_remote_exit", "store_closed", "worker_died") is not None
        ),
        cost=1.5,
    ),
    Question(
        key="hosts",
        text="Several hosts: do they answer ping, and which interface do the ranks use?",
        command="ping -c1 OTHER; ip -br addr; NCCL_DEBUG=INFO ... | grep 'Using \\['",
        answers=(
            Answer("ping answers, connections do not", ({"check": "network", "fact": "ping_ok"},), 0.1),
            Answer("several interfaces, or loopback or docker0 chosen", ({"check": "network", "fact": "several_nics"},), 0.2),
            Answer("one host only", ()),
        ),
        answered=lambda f: f.network("ping_ok", "several_nics") is not None,
        applies=lambda f: (
            f.event("nccl_socket_failed", "gloo_failed", "store_timeout", "nccl_bootstrap_timeout", "nccl_remote_exit") is not None
        ),
    ),
    Question(
        key="gpu_state",
        text="What do the GPUs show while it hangs?",
        command="nvidia-smi",
        answers=(
            Answer("100 % utilisation at little power", ({"check": "gpu", "fact": "utilisation_100_idle_power"},)),
            Answer("0 % utilisation", ({"check": "gpu", "fact": "utilisation_0"},)),
            Answer("another program runs on one of them", ({"check": "gpu", "fact": "other_process"},), 0.05),
        ),
        answered=lambda f: any(g.fact in ("utilisation_100_idle_power", "utilisation_0", "other_process") for g in f.all(Gpu)),
        applies=lambda f: f.hang is not None,
    ),
    Question(
        key="pairs",
        text="Does it fail with every pair of GPUs?",
        command="CUDA_VISIBLE_DEVICES=0,1 ...; CUDA_VISIBLE_DEVICES=0,2 ...",
        answers=(
            Answer("with every pair", ()),
            Answer("only with some", ({"check": "pattern", "fact": "only_some_pairs"},), 0.1),
        ),
        answered=lambda f: f.pattern("only_some_pairs") is not None,
        applies=lambda f: _several(f) and f.gpu_count > 2,
        cost=3.0,
    ),
    _setting(
        "NCCL_P2P_DISABLE=1", "Does it run right with NCCL's peer traffic switched off?", "NCCL_P2P_DISABLE=1 ...", "p2p_off", _uses_nccl
    ),
    _setting(
        "--disable-custom-all-reduce",
        "Does it run right with the engine's own all-reduce switched off?",
        "vllm serve ... --disable-custom-all-reduce",
        "custom_ar_off",
        _tensor,
    ),
    _setting(
        "NCCL_NVLS_ENABLE=0",
        "Does it run right without NVLink multicast?",
        "NCCL_NVLS_ENABLE=0 ...",
        "nvls_off",
        lambda f: f.geforce is None and _uses_nccl(f),
    ),
    _setting(
        "NCCL_CUMEM_HOST_ENABLE=0",
        "Does it run right without cuMem host memory?",
        "NCCL_CUMEM_HOST_ENABLE=0 ...",
        "cumem_host_off",
        _uses_nccl,
    ),
    _setting(
        "another NCCL", "Does it run right with another NCCL release?", "pip install nvidia-nccl-cu12==...", "nccl_version", _uses_nccl
    ),
    _setting("bf16", "Does it run right in bf16 or fp32?", "--dtype bfloat16", "dtype", _nan),
    _setting(
        "ATTENTION_BACKEND",
        "Is it right with another kernel for the same work (attention backend, quantisation kernel)?",
        "VLLM_ATTENTION_BACKEND=... / attn_implementation='eager'",
        "attention_backend",
        _nan,
    ),
    _setting(
        "--shm-size=8g",
        "Does it run with more shared memory?",
        "docker run --shm-size=8g ... (or --ipc=host)",
        "shm_size",
        lambda f: f.boxed is not None,
    ),
    _setting(
        "CUDA_LAUNCH_BLOCKING=1",
        "Is it right when every step is waited for?",
        "CUDA_LAUNCH_BLOCKING=1 ...",
        "launch_blocking",
        lambda f: f.split_bad is not None and f.split_bad.split == "pipeline",
    ),
)

QUESTIONS: dict[str, Question] = {q.key: q for q in _LIST}
