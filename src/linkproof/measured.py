"""What a probe tries and what comes back: modes, cases, outcomes, speeds. Bottom shelf: imports no other room.

Data flow from `gpus[0]` to `gpus[-1]`: for a pair (src, dst). GPUs are numbered as the process sees them (CUDA_VISIBLE_DEVICES), and
`Card` ties the number to UUID and PCI address.
"""

from __future__ import annotations

from msgspec import Struct, field

# ---------------------------------------------------------------- modes


class Mode(Struct, frozen=True):
    """One way for bytes to get from GPU to GPU. Each fails by itself, so each is tried by itself.

    what:    words for a person (a template of the catalogue).
    via:     the word of a `Copy` fact: peer load store ipc host flags; "" for collectives.
    nvidia:  only NVIDIA has it (or only there it is written): elsewhere "not tested", which is not healthy.
    judged:  False: reported, but no verdict hangs on it (atomics: PCIe lacks them).
    scope:   pair | chain (three GPUs) | group (all GPUs at once)
    level:   quick modes run in `check`, deep ones only with `--deep` or when named by `--mode`.
    """

    name: str
    what: str
    via: str
    nvidia: bool = False
    judged: bool = True
    scope: str = "pair"
    level: str = "check"


MODES: dict[str, Mode] = {
    m.name: m
    for m in (
        Mode("staged", "through host memory: the control", "host"),
        Mode("push", "copy engine, sent by the source (what tensor.to does)", "peer"),
        Mode("pull", "copy engine, fetched by the destination", "peer"),
        Mode("store", "kernel stores to the other GPU, 4 bytes at a time", "store"),
        Mode("store16", "kernel stores to the other GPU, 16 bytes at a time", "store"),
        Mode("load", "kernel loads from the other GPU, 4 bytes at a time", "load"),
        Mode("load16", "kernel loads from the other GPU, 16 bytes at a time", "load"),
        Mode("views", "writer and owner see the same bytes after a kernel store", "store"),
        Mode("ipc", "between processes, CUDA IPC handle", "ipc"),
        Mode("ipc_vmm", "between processes, virtual memory handle (expandable segments)", "ipc", nvidia=True),
        Mode("pool", "copy engine, memory of a stream-ordered pool", "peer", nvidia=True),
        Mode("vmm", "copy engine and kernel store, virtual memory API", "peer", nvidia=True),
        Mode("flags", "two resident kernels pass messages with release and acquire flags", "flags", nvidia=True),
        Mode("flags_ipc", "the same between two processes", "flags", nvidia=True),
        Mode("chain", "three GPUs in a row, a staged hop and a direct one, without waiting between", "peer", scope="chain"),
        Mode("atomics", "atomic additions on the other GPU's memory", "store", nvidia=True, judged=False),
        Mode("nccl", "NCCL: send/recv, all-reduce, all-gather, broadcast", "", scope="group"),
        Mode("nccl_diag", "NCCL's own diagnostics (from 2.31)", "", nvidia=True, scope="group"),
        Mode("symm_mem", "torch symmetric memory", "", nvidia=True, scope="group"),
        Mode("nvls", "NVLink multicast (NVLS)", "", nvidia=True, scope="group", level="deep"),
        Mode("vllm_allreduce", "vLLM's own all-reduce", "", nvidia=True, scope="group"),
        Mode("sglang_allreduce", "SGLang's own all-reduce", "", nvidia=True, scope="group"),
    )
}

LOADS = ("alone", "both_ways", "all")  # the pair alone, both its directions at once, every pair of the machine at once
STATES = ("verified", "corrupt", "hung", "died", "refused", "slow", "not_tested")
BAD = ("corrupt", "hung", "died")

# ---------------------------------------------------------------- what is tried


class Case(Struct, frozen=True):
    """One thing to try. gpus: (src, dst), (a, b, c) for a chain, all ranks for a group; (0, 0) is one card with itself.

    arm: of a collective `transport/protocol` (`p2p/LL128`, `shm/default`, `net/Simple`), else "".
    fault: put between on purpose, as `probe.faults` reads it; only the self-test does.
    """

    mode: str
    gpus: tuple[int, ...]
    load: str = "alone"
    arm: str = ""
    fault: str = ""


class Card(Struct, frozen=True):
    """One GPU as the process sees it. bdf: PCI address with domain, lower case, "" if not known. busy: who else uses it, "" nobody.

    multicast: the driver offers NVLink multicast on it; None if that is not known.
    """

    index: int
    name: str
    uuid: str = ""
    bdf: str = ""
    memory_B: int = 0
    capability: str = ""  # "9.0"; AMD: gfx name
    busy: str = ""
    multicast: bool | None = None


# ---------------------------------------------------------------- what came back


class Wrong(Struct, frozen=True):
    """Bytes of one kind that are not what was sent.

    kind:   untouched zero stale offset other_pair bits torn overrun bystander garbage reordered
    detail: stale: "round 3"; offset: bytes, signed (where in the source the data stand, seen from where they should be); bits: "14" or
            "3,14"; other_pair: "2->3"; overrun, bystander: bytes behind the end
    grain_B: 4096, 65536 or 2097152 if every run of wrong bytes begins and ends on such a page, else 0
    rate:   wrong words per word looked at
    """

    kind: str
    bad_B: int
    first_B: int
    detail: str = ""
    grain_B: int = 0
    rate: float = 0.0


class Speed(Struct, frozen=True):
    """Of one ordered pair and mode, warm clocks, by the GPU's clock. GBps and us are medians; spread: (slowest, fastest). load as in Case.

    bw_GBps: what the link carries: size_B over the time of one of several transfers in a row, all asked for before the first begins, and so
             large that what a transfer costs whatever its size is 3 % of its time at most (where memory allows).
    lat_us:  the time of one transfer of 8 bytes, of several in a row, each begun when the one before has ended. Neither holds the time that a
             program needs to ask for a transfer.
    """

    src: int
    dst: int
    mode: str
    bw_GBps: float
    bw_spread_GBps: tuple[float, float]
    lat_us: float | None = None
    load: str = "alone"
    size_B: int = 0
    rounds: int = 0


class Outcome(Struct, frozen=True):
    """Of one case. state: one of STATES. why/args: a template of the catalogue for states other than verified, "" else.

    size_B: of the transfer that is told (the first bad one; the largest if all are right). round_: its number. rounds: transfers made.
    bad_rounds: those that arrived wrong. smallest_bad_B, largest_ok_B: sizes, 0 if there are none.
    verified_B: bytes compared in all. `slow` is right data, slower than `against_GBps` by more than it may be.
    transport: what NCCL says it used: "P2P/CUMEM", "SHM", "NET/Socket"; "" if not a collective or not told.
    speed: measured in the same breath, None if not. bw_GBps: of a collective, its bus bandwidth with bw_size_B on each rank; of `slow`, as told.
    """

    case: Case
    state: str
    why: str = ""
    args: dict[str, str] = field(default_factory=dict)
    wrong: tuple[Wrong, ...] = ()
    size_B: int = 0
    round_: int = 0
    rounds: int = 0
    bad_rounds: int = 0
    smallest_bad_B: int = 0
    largest_ok_B: int = 0
    verified_B: int = 0
    took_s: float = 0.0
    bw_GBps: float | None = None
    bw_size_B: int = 0
    against_GBps: float | None = None
    transport: str = ""
    op: str = ""
    speed: Speed | None = None


class Counter(Struct, frozen=True):
    """Something that counts errors or names a link's state, read before and after the traffic. None: could not be read."""

    name: str  # "AER correctable", "PCIe replay", "NVLink CRC", "link width", "kernel log"
    where: str  # BDF, "GPU 0", "GPU 0 link 3"
    before: str | None
    after: str | None


NVLINK_CRC = "NVLink CRC"
# such packets are sent again; the limit is that of DCGM (dcgm_gpu_hardware_limits.h), which asks the driver's makers
CRC_MATTERS_PER_S = 100.0


def risen(counter: Counter) -> bool:
    """A count that is higher than before. What is no number says nothing."""
    before, after = counter.before or "", counter.after or ""
    return before.isdecimal() and after.isdecimal() and len(after) < 20 and int(after) > int(before)


def few_crc(counter: Counter, took_s: float) -> bool:
    """NVLink checksum errors that rose during the traffic, and by less a second than matters. took_s 0: the time is not known, which
    accuses nobody."""
    if counter.name != NVLINK_CRC or not risen(counter):
        return False
    rose = int(counter.after or 0) - int(counter.before or 0)
    return not (took_s > 0 and rose >= CRC_MATTERS_PER_S * took_s)


class Probed(Struct, frozen=True):
    """Everything that one run of the probe found. backend: cuda hip virtual. plan_s: what the plan said it would take."""

    cards: tuple[Card, ...]
    outcomes: tuple[Outcome, ...]
    speeds: tuple[Speed, ...] = ()
    counters: tuple[Counter, ...] = ()
    backend: str = ""
    took_s: float = 0.0
    plan_s: float = 0.0
    key: str = ""  # of the route table
    notes: tuple[tuple[str, dict[str, str]], ...] = ()
