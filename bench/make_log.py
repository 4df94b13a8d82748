"""Writes a log of any size as a long multi-GPU job leaves it: NCCL INFO and TRACE, torch and engine lines, kernel messages.

In:      --mb size, --seed, --mix (long: mostly per-collective TRACE lines; busy: every second line is one that parsers want).
Out:     one file; the same arguments give the same bytes. The rare lines that decide a diagnosis are planted at fixed
         fractions of the file (PLANTED), so a benchmark can also check that they were found.
How:     some blocks of 1 MB are made line by line, then written again and again in seeded order with fresh counters.
By hand  python bench/make_log.py --mb 2000 -o long.log
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

BLOCK_B = 1_000_000
BLOCKS = 24  # of each phase
COUNTER = b"@@@@@@@"  # replaced in every written block by seven fresh hex digits

Make = Callable[[random.Random], str]


def _frame(r: random.Random, level: str = "INFO") -> str:
    rank = r.randrange(8)
    return f"node{r.randrange(4):02d}:{4100 + rank}:{4300 + rank * 7} [{rank}] NCCL {level} "


def _comm(r: random.Random) -> str:
    return f"0x55{r.getrandbits(36):09x}0"


def _collective(r: random.Random) -> str:
    op = r.choice(("AllReduce", "AllGather", "ReduceScatter", "Broadcast"))
    return (
        f"{_frame(r)}{op}: opCount @@@@@@@ sendbuff 0x7f{r.getrandbits(40):010x} recvbuff 0x7f{r.getrandbits(40):010x} "
        f"count {r.choice((4096, 8192, 5120, 32768, 151936))} datatype 9 op 0 root 0 comm {_comm(r)} [nranks=8] stream {_comm(r)}"
    )


def _trace(r: random.Random) -> str:
    us = r.random() * 1e6
    return r.choice(
        (
            f"{_frame(r, 'TRACE')}{us:.3f} ncclLaunchKernel channelMask {r.getrandbits(24):x} nWorks {r.randrange(4)} seq @@@@@@@",
            f"{_frame(r, 'TRACE')}{us:.3f} proxyProgress op @@@@@@@ nsteps {r.randrange(64)} done {r.randrange(64)} idle 0",
            f"{_frame(r, 'TRACE')}{us:.3f} ncclGroupEnd depth 0 comm {_comm(r)} nTasks {r.randrange(9)}",
        )
    )


def _channel(r: random.Random) -> str:
    a, c = r.randrange(8), r.randrange(24)
    kind = r.choice(("P2P/CUMEM/read", "P2P/IPC", "P2P/direct pointer", "SHM/direct/direct", "NET/IB/0/GDRDMA"))
    return f"{_frame(r)}Channel {c:02d}/{r.randrange(2)} : {a}[{a}] -> {(a + 1) % 8}[{(a + 1) % 8}] via {kind}"


def _init(r: random.Random) -> str:
    a = r.randrange(8)
    return _frame(r) + r.choice(
        (
            f"Trees [0] {a}/-1/-1->{a - 1}->-1 [1] {a}/-1/-1->{a - 1}->-1",
            f"Ring {r.randrange(24):02d} : {a} -> {(a + 1) % 8} -> {(a + 2) % 8}",
            f"Channel {r.randrange(24):02d}/24 :    0   1   2   3   4   5   6   7",
            "Connected all rings, use ring PXN 0 GDR 1",
            f"P2P Chunksize set to {r.choice((131072, 524288))}",
            f"ncclCommInitRank comm {_comm(r)} rank {a} nranks 8 cudaDev {a} nvmlDev {a} busId {a + 1}b000 commId 0x@@@@@@@ - Init START",
            f"ncclCommInitRank comm {_comm(r)} rank {a} nranks 8 cudaDev {a} nvmlDev {a} busId {a + 1}b000 commId 0x@@@@@@@ - Init COMPLETE",
            f"Bootstrap: Using eth0:10.0.0.{r.randrange(255)}<0>",
            f"NCCL_IB_TIMEOUT set by environment to {r.randrange(14, 24)}.",
            "NVLS multicast support is not available on dev 0",
            f"Setting affinity for GPU {a} to ffff0000,00000000",
        )
    )


def _engine(r: random.Random) -> str:
    clock = f"{r.randrange(24):02d}:{r.randrange(60):02d}:{r.randrange(60):02d}"
    worker = f"(Worker_TP{r.randrange(8)} pid={5000 + r.randrange(8)}) " if r.random() < 0.5 else ""
    return r.choice(
        (
            f"{worker}INFO 11-23 {clock} [loggers.py:{r.randrange(300)}] Engine 000: Avg prompt throughput: {r.random() * 9e3:.1f} tokens/s, "
            f"Avg generation throughput: {r.random() * 900:.1f} tokens/s, Running: {r.randrange(99)} reqs, GPU KV cache usage: 12.5%",
            f'INFO:     10.1.{r.randrange(255)}.{r.randrange(255)}:{r.randrange(65535)} - "POST /v1/chat/completions HTTP/1.1" 200 OK',
            f"{worker}DEBUG 11-23 {clock} [scheduler.py:{r.randrange(900)}] request cmpl-@@@@@@@ finished after {r.randrange(4096)} tokens",
        )
    )


def _torch(r: random.Random) -> str:
    rank = r.randrange(8)
    clock = f"{r.randrange(24):02d}:{r.randrange(60):02d}:{r.randrange(60):02d}.{r.randrange(10**6):06d}"
    return r.choice(
        (
            f"[rank{rank}]:I1123 {clock} {4100 + rank} torch/distributed/c10d/logger.py:{r.randrange(90)}] step 0x@@@@@@@ bucket {r.randrange(40)}",
            f"[rank{rank}]:V1123 {clock} {4100 + rank} torch/_dynamo/guards.py:{r.randrange(3000)}] [__guards] TENSOR_MATCH L['x'] size=[{r.randrange(64)}]",
            f"step {r.randrange(10**6)} | loss {r.random() * 9:.4f} | grad_norm {r.random() * 3:.3f} | lr 1.0e-05 | tok/s {r.randrange(90000)}",
        )
    )


def _kernel(r: random.Random) -> str:
    stamp = f"Nov 23 {r.randrange(24):02d}:{r.randrange(60):02d}:{r.randrange(60):02d} node{r.randrange(4):02d} kernel: [{r.random() * 1e6:13.6f}] "
    return stamp + r.choice(
        (
            f'audit: type=1400 audit(1795430000.{r.randrange(1000):03d}:@@@@@@@): apparmor="ALLOWED" operation="open" profile="containerd"',
            f"docker0: port {r.randrange(9)}(veth{r.getrandbits(28):07x}) entered forwarding state",
            f"nvme nvme{r.randrange(4)}: {r.randrange(64)}/0/0 default/read/poll queues",
            "mce: [Hardware Error]: Machine check events logged @@@@@@@",
            f"IPv6: ADDRCONF(NETDEV_CHANGE): veth{r.getrandbits(28):07x}: link becomes ready",
            f"perf: interrupt took too long ({r.randrange(9999)} > {r.randrange(9999)}), lowering kernel.perf_event_max_sample_rate to 25000",
        )
    )


def _aer(r: random.Random) -> str:
    bdf = f"0000:{r.choice(('40', '80', 'c0'))}:01.1"
    return f"Nov 23 10:11:12 node00 kernel: [{r.random() * 1e6:13.6f}] pcieport {bdf}: " + r.choice(
        (
            "AER: Corrected error message received from 0000:41:00.0",
            "PCIe Bus Error: severity=Correctable, type=Data Link Layer, (Transmitter ID)",
            "  device [1022:1483] error status/mask=00001000/00006000",
            "   [12] Timeout",
        )
    )


# phase -> ((weight, maker), ...). `start` opens the file and comes back at every restart of the job
MIXES: dict[str, dict[str, tuple[tuple[int, Make], ...]]] = {
    "long": {
        "start": ((50, _channel), (20, _init), (10, _engine), (10, _torch), (10, _kernel)),
        "steady": ((420, _collective), (250, _trace), (130, _engine), (100, _torch), (94, _kernel), (5, _channel), (1, _aer)),
    },
    "busy": {
        "start": ((70, _channel), (20, _init), (5, _torch), (5, _kernel)),
        "steady": ((25, _channel), (15, _init), (10, _aer), (20, _collective), (10, _trace), (10, _engine), (10, _torch)),
    },
}
RESTART_EVERY = 400  # blocks

PLANTED: tuple[tuple[float, str], ...] = (
    (0.11, "node00:4101:4307 [1] NCCL INFO P2P is disabled between connected GPUs 1 and 0. You can repress this message with NCCL_IGNORE_DISABLED_P2P=1."),
    (0.37, "Nov 23 10:31:07 node00 kernel: [ 8812.114215] nvidia 0000:41:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0015 address=0x20000000000 flags=0x0030]"),
    (0.52, "node02:4105:4335 [5] transport/p2p.cc:272 NCCL WARN Cuda failure 217 'peer access is not supported between these two devices'"),
    (0.71, "Nov 23 10:31:09 node01 kernel: [ 8814.000911] NVRM: Xid (PCI:0000:81:00): 79, pid=4103, GPU has fallen off the bus."),
    (0.93, "[rank3]:[E1123 10:41:08.201121 ProcessGroupNCCL.cpp:632] [Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=81, "
           "OpType=ALLREDUCE, NumelIn=4096, NumelOut=4096, Timeout(ms)=600000) ran for 600001 milliseconds before timing out."),
    (0.999, "RuntimeError: CUDA error: device-side assert triggered"),
)  # fmt: skip


def _block(r: random.Random, makers: tuple[tuple[int, Make], ...]) -> bytes:
    weights, makes = zip(*makers, strict=True)
    out, size_B = [], 0
    while size_B < BLOCK_B:
        for make in r.choices(makes, weights, k=200):
            line = make(r)
            out.append(line)
            size_B += len(line) + 1
    return ("\n".join(out) + "\n").encode()


def blocks(mb: int, seed: int, mix: str) -> Iterator[bytes]:
    r = random.Random(f"{seed} {mix}")
    made = {phase: [_block(r, makers) for _ in range(BLOCKS if phase == "steady" else 2)] for phase, makers in MIXES[mix].items()}
    want_B, wrote_B, planted, n = mb * 1_000_000, 0, 0, 0
    while wrote_B < want_B:
        block = r.choice(made["start" if n % RESTART_EVERY < 2 else "steady"]).replace(COUNTER, b"%07x" % n)
        if planted < len(PLANTED) and wrote_B >= PLANTED[planted][0] * want_B - len(block):
            block += PLANTED[planted][1].encode() + b"\n"
            planted += 1
        yield block
        wrote_B += len(block)
        n += 1


def write(path: Path, mb: int, seed: int = 1, mix: str = "long") -> None:
    """Whole or not at all: a half-written file never carries the final name."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb", buffering=0) as f:
        for block in blocks(mb, seed, mix):
            f.write(block)
    partial.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mix", choices=sorted(MIXES), default="long")
    parser.add_argument("-o", dest="path", type=Path, required=True)
    given = parser.parse_args()
    write(given.path, given.mb, given.seed, given.mix)
    return 0


if __name__ == "__main__":
    sys.exit(main())
