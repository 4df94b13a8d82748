"""What all rooms speak: texts, facts, signs, diagnoses. Bottom shelf: imports no other room.

A fact says one thing that was printed, measured or told, and where. `None` or "" means "could not be known".
The words of the facts are the words of an observation (`OBSERVATION_WORDS`): a log line, a probe and a person
who answers a question all end in the same fact, so a cause never asks who said it.
"""

from __future__ import annotations

from msgspec import Struct, field

PCI_DEVICES = "/sys/bus/pci/devices"  # a source like a file; its absence is told by this name

# ---------------------------------------------------------------- texts


class Line(Struct, frozen=True, gc=False):
    """One line after cleaning. `no` counts from 1 in the file as given; lines may be missing from a long log."""

    no: int
    text: str
    rank: int | None = None  # from `[rank3]:`, `(Worker_TP3 pid=..)`, ...; None: not said


class Text(Struct, frozen=True):
    """One text of unknown kind: a file, a member of an archive, standard input."""

    name: str
    lines: list[Line]
    total_lines: int = 0  # as in the file; more than len(lines) when a long log was reduced


class Source(Struct, frozen=True):
    """Where a fact comes from. line 0: the whole text. `text` is the line as cleaned, cut to 300 characters."""

    file: str
    line: int = 0
    text: str = ""


# ---------------------------------------------------------------- facts: the words of an observation


class Fact(Struct, frozen=True, kw_only=True):
    source: Source
    rank: int | None = None


class Copy(Fact, frozen=True, kw_only=True):
    """Bytes copied between two GPUs. via: peer host load store ipc. result: ok zeros wrong stale hang error slow.

    Measured only: flags (messages between resident kernels), chain (hops that do not wait for each other), self (a card with itself).
    """

    via: str
    result: str
    pairs: str = "all"  # all | some | "0-1" | first (a tool that tests one pair only)


class Collective(Fact, frozen=True, kw_only=True):
    """engine: nccl rccl custom_allreduce gloo. transport: default p2p shm net nvls. result: ok wrong hang error slow."""

    engine: str
    result: str
    op: str = ""
    transport: str = "default"
    ranks: str = ""


class ModelRun(Fact, frozen=True, kw_only=True):
    """split: none pipeline tensor data. result: ok garbage wrong assert nan hang crash slow."""

    split: str
    result: str
    scope: str = ""  # one_model | every_model
    gpus: str = ""


class Stage(Fact, frozen=True, kw_only=True):
    """at: cuda_init nccl_init first_collective graph_capture inference training ray_start. result: hang error crash slow."""

    at: str
    result: str
    code: str = ""


class Pattern(Fact, frozen=True, kw_only=True):
    fact: str
    value: str = ""


class Setting(Fact, frozen=True, kw_only=True):
    """A switch that was tried or was on. effect: cured no_effect worse changed present. `key`/`value` split NAME=VALUE."""

    name: str
    effect: str
    key: str = ""
    value: str = ""


class KernelLog(Fact, frozen=True, kw_only=True):
    """fact: clean io_page_fault xid sxid aer_corrected aer_fatal link_down. device: BDF in lower case with domain if printed."""

    fact: str
    value: str = ""  # number of an Xid or SXid
    device: str = ""
    driver: str = ""  # kernel driver that the line names: nvidia, amdgpu, pcieport, nvme ...
    count: int = 1


class Iommu(Fact, frozen=True, kw_only=True):
    """mode: translating passthrough off unknown. parameter: what the kernel command line says, "none" if it says nothing."""

    mode: str
    parameter: str = ""
    device: str = ""


class Acs(Fact, frozen=True, kw_only=True):
    """redirect: on off unknown, of one bridge port. kind: root_port upstream_port downstream_port endpoint or "" if not told.

    bits: names of the set bits as lspci prints them (`SrcValid ReqRedir`), "none", or "no capability".
    above: what hangs below the port: gpu (some of the GPUs: the port is on a path between GPUs), every gpu (their traffic turns
           round below it), nic, `gpu nic`, other; "" not told.
    """

    redirect: str
    port: str = ""
    kind: str = ""
    bits: str = ""
    above: str = ""


class PeerAccess(Fact, frozen=True, kw_only=True):
    """claimed: all some none. status as `nvidia-smi topo -p2p` prints it: OK CNS GNS TNS NS."""

    claimed: str = ""
    status: str = ""
    pairs: str = "all"


class Pairs(Fact, frozen=True, kw_only=True):
    """Of all ordered pairs of GPUs that were measured: which fail, and what stands on their way. what: a key of PAIR_WORDS.

    ill: wrong (or hung, died) | slow. unknown: pairs of which it could not be known. where: the GPU, port or size that is meant.
    """

    what: str
    ill: str = "wrong"
    failing_with: int = 0
    failing_without: int = 0
    passing_with: int = 0
    passing_without: int = 0
    unknown: int = 0
    where: str = ""

    @property
    def all_failing(self) -> bool:
        """Every pair that fails has it."""
        return self.failing_with > 0 and not self.failing_without and not self.unknown

    @property
    def follows(self) -> bool:
        """Every pair that fails has it, no pair that passes has it, and both kinds of pairs are there."""
        return self.all_failing and not self.passing_with and self.passing_without > 0


PAIR_WORDS = {
    "redirects": "a port on the way redirects peer traffic up (ACS)",
    "translating": "the IOMMU translates for one of the two GPUs",
    "crosses_cpu": "the way leads through a host bridge",
    "narrow": "a link on the way runs below its width",
    "counted": "a device on the way counted link errors during the traffic",
    "one_gpu": "the pair touches this GPU, or goes to it, or comes from it",
    "one_pair": "the pair is this one, in both directions",
    "one_direction": "the same two GPUs are right in the other direction",
    "under_load": "right alone, wrong only under load",
    "stores_only": "copies by the copy engine are right, a kernel's own stores or loads are not",
    "flags_only": "copies, stores and loads are right, and flags between resident kernels are not",
    "mirror": "the writer reads its own bytes back, and the owner does not have them",
    "beyond_bar1": "BAR1 of the target does not cover its memory, and only large transfers are wrong, small ones never",
    "bits": "single bits are flipped, and nothing else is wrong",
    "slower_nvlink": "faster than PCIe can be, and slower than other pairs that are so too; where: GB/s of both",
    "control_one_gpu": "the way through host memory fails, and the pair touches this GPU",
}


class Topo(Fact, frozen=True, kw_only=True):
    """path: PIX PXB PHB NODE SYS NV XGMI. pairs: all | some | "0-1". links: how many NVLinks join the two, 0 if none or not told."""

    path: str
    pairs: str = "all"
    links: int = 0


class Platform(Fact, frozen=True, kw_only=True):
    """kind: bare_metal vm container pod sandbox wsl2 windows."""

    kind: str
    note: str = ""


class Changed(Fact, frozen=True, kw_only=True):
    """what: driver kernel bios library hardware image model nothing."""

    what: str
    detail: str = ""


class Gpu(Fact, frozen=True, kw_only=True):
    """One card or one kind of card. `fact` as in OBSERVATION_WORDS, or ""."""

    name: str = ""
    count: int = 0
    fact: str = ""
    value: str = ""


class Host(Fact, frozen=True, kw_only=True):
    fact: str
    value: str = ""


class FabricManager(Fact, frozen=True, kw_only=True):
    state: str


class Network(Fact, frozen=True, kw_only=True):
    fact: str
    value: str = ""


class Versions(Fact, frozen=True, kw_only=True):
    driver: str = ""
    nccl: str = ""
    torch: str = ""
    cuda: str = ""
    rocm: str = ""
    engine: str = ""


class Input(Fact, frozen=True, kw_only=True):
    fact: str
    value: str = ""


class Ranks(Fact, frozen=True, kw_only=True):
    fact: str
    detail: str = ""


# ---------------------------------------------------------------- facts that only a text can give


class DeviceAssert(Fact, frozen=True, kw_only=True):
    """A device-side assertion, once per (file, kernel, expression, rank).

    op: embedding index index_copy gather scatter row_gather take_put masked_scatter multinomial_prob multinomial_isnan
        multinomial_zero_row nll_loss bce_loss assert_async other.
        row_gather: `vectorized_gather_kernel` (torch >= 2.8), which embedding, index_select and x[idx] share.
        gather: `ScatterGatherKernel.cu`, whose lambdas do not say whether it was gather or scatter; scatter: where it is said.
    index, size: the printed value and bound where the build prints them (of the first line).
    """

    file: str
    expression: str
    op: str
    kernel: str = ""
    index: int | None = None
    size: int | None = None
    count: int = 1


class CudaError(Fact, frozen=True, kw_only=True):
    """A CUDA, HIP or driver-API error. code: number if printed or known from the name, else None. where: file:line or call."""

    name: str  # enum name or the words of the message
    code: int | None = None
    where: str = ""


class Frame(Struct, frozen=True):
    file: str
    line: int
    func: str


class PyError(Fact, frozen=True, kw_only=True):
    """The last line of a Python traceback with its frames, innermost last."""

    type: str
    message: str = ""
    frames: tuple[Frame, ...] = ()


class NcclWarn(Fact, frozen=True, kw_only=True):
    """Any `NCCL WARN` line, also those that no rule knows. where: `transport/nvls.cc` without its line number."""

    message: str
    where: str = ""


class NcclInit(Fact, frozen=True, kw_only=True):
    """state: start complete. `rank` is NCCL's rank."""

    state: str
    nranks: int = 0
    comm: str = ""
    host: str = ""


class NcclPath(Fact, frozen=True, kw_only=True):
    """`Channel 00 : 0[..] -> 1[..] via P2P/IPC`: transport P2P SHM NET COLLNET and what follows it."""

    src: int
    dst: int
    transport: str
    detail: str = ""


class IbError(Fact, frozen=True, kw_only=True):
    """A failing ibverbs call or completion. call: reg_mr reg_dmabuf_mr modify_qp create_qp completion ... errno: number or words."""

    call: str
    errno: str = ""


class Watchdog(Fact, frozen=True, kw_only=True):
    """A collective that the framework gave up on."""

    op: str = ""
    seq: int | None = None
    numel_in: int | None = None
    numel_out: int | None = None
    timeout_ms: int | None = None
    group: str = ""


class Iface(Fact, frozen=True, kw_only=True):
    """The network interface that a library chose. library: nccl gloo."""

    library: str
    name: str
    address: str = ""


class Gid(Fact, frozen=True, kw_only=True):
    index: int
    gid: str
    kind: str = ""  # v1 | v2 | ""


class Event(Fact, frozen=True, kw_only=True):
    """Something known that was printed; `kind` is a key of EVENT_KINDS."""

    kind: str
    value: str = ""


class Seen(Fact, frozen=True, kw_only=True):
    """This text holds a part of this kind (`lspci -vvv`, `NCCL log`, ...); says nothing about health."""

    kind: str


class Unknown(Fact, frozen=True, kw_only=True):
    """A text in which nothing was recognised. Kept, so that a report can say so."""


# kind -> what a line of this kind says, and no more than that
EVENT_KINDS: dict[str, str] = {
    # python and torch
    "two_devices": "tensors of one operation on two devices; value: the devices",
    "prob_tensor": "sampling met inf, nan or a negative probability",
    "index_out_of_range_cpu": "an embedding or index lookup on the CPU got an index out of range",
    "triton_wrong_device": "a Triton kernel was launched while another device was current",
    "wrong_current_device": "another launcher says that pointer or stream belong to another device than the current one",
    "fork_after_cuda": "CUDA used again in a forked child",
    "assert_generic": "`device-side assert triggered` without the assertion line",
    "cuda_oom": "a GPU allocation failed for lack of memory",
    "host_oom": "a process was killed for lack of host memory",
    "killed": "a process ended by SIGKILL, cause not said; value: rank or pid if printed",
    "segfault": "a process ended by SIGSEGV or SIGABRT",
    "bus_error": "a process ended by SIGBUS",
    "out_of_shm": "a data loader or library says that shared memory ran out",
    "undefined_nccl_symbol": "a library wants an NCCL function that the loaded NCCL does not have; value: the symbol",
    "several_nccl": "more than one NCCL library file or package is named; value: them",
    "mig_name_as_number": "a MIG device name was read as a number",
    "mig_present": "MIG devices are listed",
    "no_cuda_device": "no CUDA device is available to this process",
    "driver_mismatch": "driver, its library and kernel module or runtime versions do not fit; value: words",
    "hip_kernel_image": "a HIP kernel has no image for a device",
    "garbage_text": "generated text is one character or token over and over; value: the character",
    "nan_seen": "NaN in a loss, in logits or in a tensor print",
    "label_error": "a loss function says that a target is out of bounds (CPU form)",
    "vocab_mismatch": "a size mismatch between tokenizer and embedding is printed",
    "seq_too_long": "a message says that the sequence is longer than the model's maximum; value: lengths",
    "mixed_dtype_matmul": "an operation met two dtypes",
    "device_map_used": "code or a print shows a model spread by accelerate's device_map; value: its value or the number of devices",
    "data_parallel_used": "code or a stack shows torch.nn.DataParallel (one process, threads, replicas)",
    "nvml_lost": "NVML or nvidia-smi works no more in this container or process, though the driver runs (device access lost)",
    "engine_stalled": "an engine's own watchdog or call to its workers saw no progress in time; value: the watchdog or the call",
    "ggml_abort": "llama.cpp or ggml ended itself after a failed check; value: file or function",
    # shared memory
    "shm_create_failed": "NCCL could not create a shared-memory segment; value: its size in bytes",
    "shm_attach_failed": "NCCL could not attach to an existing shared-memory segment",
    "shm_extend_failed": "a file under /dev/shm could not be extended or allocated (no space)",
    "shm_no_space": "`No space left on device` at a shared-memory call",
    "cumem_host_failed": "NCCL says that host memory through the CUDA virtual memory API does not work",
    # NCCL
    "nccl_error": "a framework reports an NCCL error; value: system cuda internal usage remote argument",
    "nccl_no_transport": "no transport between two ranks",
    "nccl_duplicate_gpu": "two ranks on one GPU",
    "nccl_p2p_disabled_driver": "the driver says no P2P between two GPUs: NCCL uses shared memory (slow, safe)",
    "nccl_p2p_nvlink_disabled": "NVLink is there and the driver says no P2P over it",
    "nccl_peer_not_possible": "CUDA says that these two devices cannot access each other",
    "nccl_peer_query_failed": "the question whether two devices can access each other failed itself; value: the devices",
    "nccl_network": "NCCL names the network it uses; value: Socket, IB or the name of a plugin",
    "nccl_no_algorithm": "NCCL has no algorithm for an operation under the settings it was given; value: the operation",
    "nccl_hint": "NCCL adds a hint to an error; value: acs gid imex bar1_peer_mappings cross_rail same_host_nics ib_timeout container_topology",
    "nccl_legacy_ipc": "CUDA IPC does not work here (WSL, some containers)",
    "cuda_ipc_failed": "a CUDA IPC handle could not be made or opened",
    "nccl_check_p2p": "NCCL's one-line summary; value: 0 or 1 of isAllDirectP2p (or intraNodeP2pSupport)",
    "nccl_p2p_setting_active": "NCCL says that NCCL_P2P_DISABLE or NCCL_P2P_LEVEL acts; value: name=value",
    "nccl_env": "NCCL says that a variable is set by the environment or a file; value: name=value",
    "nccl_rings_connected": "all rings or trees are connected",
    "nvls_bind_failed": "binding NVLink multicast memory failed; value: CUDA error number",
    "nvls_call_failed": "another call in NCCL's NVLS transport failed; value: CUDA error number or 0",
    "nvls_available": "NCCL says NVLS multicast is available",
    "nvls_unavailable": "NCCL says NVLS multicast is not available",
    "nvls_used": "NCCL uses or tunes NVLS",
    "multicast_failed": "a CUDA multicast call outside NCCL failed",
    "nccl_cuda_call_failed": "a CUDA call failed in NCCL outside of transports; value: file and error number",
    "nccl_socket_failed": "a socket call of NCCL failed; value: refused timeout unreachable closed other",
    "nccl_no_interface": "NCCL found no usable network interface",
    "nccl_remote_exit": "NCCL saw that the other side is gone (usually a consequence)",
    "nccl_truncated": "a message longer than the receiver expected",
    "nccl_version_mismatch": "ranks or libraries with different NCCL versions",
    "nccl_bootstrap_timeout": "a rank waited in vain for the others at start",
    "nccl_ib_hint_acs": "NCCL hints at ACS after an InfiniBand completion error",
    "nccl_diag_ok": "NCCL's own diagnostics verified the peer accesses that it tried",
    "nccl_diag_mismatch": "NCCL's own diagnostics read wrong data",
    "nccl_diag_failed": "NCCL's own diagnostics could not import or map peer memory",
    "nccl_abort": "a rank aborted a communicator (usually a consequence)",
    "nccl_stack": "a native stack stands inside NCCL's host code; value: the function",
    "sanitizer_far": "a memory checker saw an address far outside any allocation; value: bytes to the nearest",
    "gsp_timeout": "the driver waited in vain for the GPU's firmware processor",
    "nccl_topo_flat": "a topology dump in which GPUs hang directly below the CPU without link data (a guest)",
    "nccl_topo_tree": "a topology dump with PCIe bridges and link data",
    "peer_memory_dmabuf": "GPUDirect RDMA module or dma-buf missing or failing",
    "nccl_tests_failed": "nccl-tests ended with wrong values; value: count",
    "nccl_tests_busbw": "bus bandwidth of the largest message; value: GB/s",
    "nccl_tests_average": "average bus bandwidth over all sizes of a run; value: GB/s",
    "gdr_off": "NCCL does not use GPUDirect RDMA for a pair of GPU and network card: too far apart as it sees them",
    "slow_gpu_query": "a query of the driver took very long; value: seconds",
    "nccl_tests_ok": "nccl-tests compared values and found none wrong",
    # frameworks and engines
    "collective_timeout": "a collective was given up after a time-out",
    "heartbeat_timeout": "the NCCL monitor thread saw no heartbeat",
    "collective_mismatch": "a checker says that ranks called different collectives, shapes or orders",
    "busy_work": "a progress line of long work on one rank: tokenising, mapping, loading, saving; value: it",
    "store_timeout": "a rank waited in vain at the rendezvous store (no GPU traffic yet)",
    "store_closed": "the rendezvous store or a peer's connection closed (usually a consequence)",
    "gloo_failed": "gloo could not connect; value: address",
    "gloo_loopback": "gloo uses the loopback address because the host name does not resolve",
    "worker_died": "an engine says that a worker is gone (usually a consequence)",
    "engine_start_failed": "an engine says that start-up failed, see above (usually a consequence)",
    "shm_broadcast_wait": "vLLM waits for its shared-memory message queue: some rank does not answer",
    "custom_ar_cuda_error": "a CUDA error inside an engine's own all-reduce; value: the error's words or number",
    "custom_ar_disabled": "the engine switched its own all-reduce off; value: pcie_only no_p2p world_size other",
    "custom_ar_used": "the engine's own all-reduce is in use (buffers registered, kernel named)",
    "engine_p2p_check": "an engine reads or writes its peer-access cache; value: reading generating",
    "engine_tp": "an engine runs with tensor parallelism; value: the size",
    "graph_capture": "CUDA graph capture or graph memory profiling runs",
    "peer_copy_library": "a program says that it enables or uses peer access",
    "quant_kernel": "a quantised or fused kernel is named; value: it",
    # ray
    "ray_started": "a Ray instance started",
    "ray_register_failed": "a Ray worker could not register or its thread could not be made",
    "ray_no_resources": "Ray cannot place a task or actor; value: what is missing",
    "ray_actor_died": "a Ray actor died (cause may be in the same message)",
    "thread_create_failed": "`Resource temporarily unavailable` at thread or process creation",
    # host and kernel
    "nvrm_mismatch": "the kernel module and the user library of the driver have different versions",
    "nvrm_init_failed": "the driver could not start an adapter",
    "gpu_fell_off": "a GPU fell off the bus; value: BDF",
    "smmu_fault": "an Arm SMMU event or fault; value: device",
    "iommu_enabled": "the kernel says that an IOMMU is on; value: intel amd arm",
    "iommu_default_translated": "`Default domain type: Translated` (also printed with no IOMMU: proves nothing alone)",
    "iommu_default_passthrough": "`Default domain type: Passthrough`",
    "iommu_warning_rccl": "RCCL warns that iommu=pt is missing",
    "aer_seen": "an AER message that is neither corrected nor fatal",
    "vfio_bound": "a device is bound to vfio-pci; value: BDF",
    "nvlink_down": "an NVLink is down, inactive or in recovery; value: which",
    "nvlink_contained": "CUDA reports an access to peer memory that failed over NVLink",
    "fabric_not_ready": "CUDA or NVML says that the fabric or NVSwitch system is not initialised",
    "ecc_error": "an uncorrectable or row-remap ECC event; value: number or words",
    "power_event": "power or thermal event on a card",
    "libvgpu": "a GPU-sharing library is loaded; value: its name",
    "link_downgraded": "a PCIe link runs below its width (or below its speed under load); value: device and what",
    "patched_driver": "a driver module patched for peer access; value: its name",
    "driver_flavour": "which NVIDIA kernel module is loaded; value: closed or open",
    "registry_key": "a switch of the NVIDIA kernel module that bears on peer access; value: NAME=value",
    "uvm_hmm": "heterogeneous memory management of nvidia_uvm; value: on or off",
    "numa_policy_denied": "a memory-policy or mbind call is refused in the container",
    "cpu_missing": "CPUs are offline or could not be brought up; value: which",
    "payload_mismatch": "ports on one path have different MaxPayload; value: them",
    "pcie_replays": "a card counts many replayed PCIe packets; value: device and count",
    "fabric_ready": "NVML says that the fabric state of a card is completed; value: device and state",
    "gpu_vm_fault": "an AMD GPU's own page tables faulted (not the IOMMU); value: device",
    "gpu_ring_timeout": "an AMD GPU's command ring timed out; value: device and ring",
    "task_blocked": "the kernel says that a task hangs in it; value: the task",
    "nmi": "a non-maskable interrupt of unknown reason, or a PCI system error (SERR)",
    "p2p_slower": "P2P measured slower than, or no faster than, staging through the host; value: figures",
}


# ---------------------------------------------------------------- signs and diagnoses


class Sign(Struct, frozen=True):
    """One reason for or against one cause. weight in nats (natural log of a likelihood ratio), always > 0.

    text: an English template; `args` fills its {names}; the Chinese template stands in the catalogue under the English one.
    decisive: this alone settles the cause if it is true.
    stands: the mechanism itself was seen in place, whether or not anything has failed yet: a risk.
    """

    speaks_for: bool
    weight: float
    text: str
    source: Source
    args: dict[str, str] = field(default_factory=dict)
    decisive: bool = False
    stands: bool = False


class NotChecked(Struct, frozen=True):
    """Something a cause could not judge, and what would let it."""

    cause: str
    text: str
    args: dict[str, str] = field(default_factory=dict)
    do: str = ""  # a command, or "" if the text says it


LEADS = 0.1  # confidence below which no cause is called the leading one, and no engine is said to be at risk from it


class Weighed(Struct, frozen=True):
    """One cause after weighing. score in nats; confidence 0..1 over all causes and `something else`."""

    id: str
    cls: str
    score: float
    confidence: float
    state: str  # confirmed | likely | possible | ruled_out
    signs: tuple[Sign, ...] = ()


class Next(Struct, frozen=True):
    """The next thing to find out. kind: command | question. key: name of the question that --ask uses."""

    text: str
    tells_apart: tuple[str, ...]
    kind: str = "command"
    key: str = ""
    args: dict[str, str] = field(default_factory=dict)


class Note(Struct, frozen=True):
    """Something people get wrong, said because these facts hold it. Never changes a verdict."""

    text: str
    source: Source
    args: dict[str, str] = field(default_factory=dict)


class Consumer(Struct, frozen=True):
    """One engine. settings: what keeps it off the broken way; () if there is none.

    state, from a leading cause: at_risk not_reached. From measurement: safe; safe_with these settings, and the way that they lead to is
    proven too; at_risk (settings, if any, lead to a way that is not proven); unknown (something that it needs was not tested).
    modes: the modes that decide it, bad ones or untested ones; () from a cause.
    """

    state: str
    settings: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()


class Diagnosis(Struct, frozen=True):
    verdict: str  # healthy | faulty | cannot_tell
    causes: tuple[Weighed, ...]
    next: tuple[Next, ...] = ()
    not_checked: tuple[NotChecked, ...] = ()
    notes: tuple[Note, ...] = ()
    consumers: dict[str, Consumer] = field(default_factory=dict)
    facts: tuple[Fact, ...] = ()
    texts: tuple[tuple[str, int], ...] = ()  # name, lines of each text that was read
    skipped: tuple[tuple[str, str, str], ...] = ()  # name, why in English, why in Chinese, of what was not read
