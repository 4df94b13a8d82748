"""What every worker of a run is told, and which cases need how many processes. Data only: it travels between processes as msgpack."""

from __future__ import annotations

from msgspec import Struct

from linkproof.measured import MODES, Case

KiB, MiB = 1 << 10, 1 << 20
# 4 B (a token id), cos/sin of one token, a page and its neighbours, hidden state, logits, allocator granules, big
SIZES_B = (
    4, 8, 256, 1 * KiB, 4 * KiB - 16, 4 * KiB, 4 * KiB + 16, 8 * KiB, 64 * KiB - 16, 64 * KiB, 64 * KiB + 16, 297 * KiB, 1 * MiB,
    2 * MiB - 16, 2 * MiB, 2 * MiB + 16, 16 * MiB, 256 * MiB,
)  # fmt: skip
OWN_PROCESSES = ("ipc", "ipc_vmm", "flags_ipc")  # modes that need a process per GPU


class Effort(Struct, frozen=True):
    """How hard to look. rounds_small: transfers of up to 1 MiB; sweep: touch addresses spread over all memory (`--deep`)."""

    sizes_B: tuple[int, ...] = SIZES_B
    rounds_small: int = 12
    rounds_big: int = 3
    message_rounds: int = 10_000
    message_deadline_s: float = 5.0
    sweep: bool = False


class Setup(Struct, frozen=True):
    """devices: "cuda", or "sim:FOLDER" (where the virtual machine's memory lies). seed: 64 random bits of this run."""

    devices: str
    seed: int
    effort: Effort = Effort()
    env: dict[str, str] = {}

    @property
    def virtual(self) -> bool:
        return self.devices.startswith("sim:")


def processes(case: Case, setup: Setup) -> int:
    """How many processes a case takes: 1 shares a worker with other cases, more make a gang of their own."""
    own = case.mode in OWN_PROCESSES or MODES[case.mode].scope == "group"
    if setup.virtual and case.mode not in ("ipc", "ipc_vmm"):
        own = False  # a simulated machine plays all sides in one process
    return len(case.gpus) if own else 1
