"""NCCL's collectives on the simulated machine as one case of the probe. What `probe.collectives.nccl_check` does on a real one, in one process.

In:      Virtual, a Case of mode `nccl` with its arm, what effort.
Out:     Outcome: the first operation and size that is wrong, or all right; transport as NCCL's log would name it.
Raises:  what `collective` raises.
"""

from __future__ import annotations

from time import perf_counter
from typing import cast

from linkproof.measured import Case, Outcome, Wrong
from linkproof.probe.devices import Devices, NotTested
from linkproof.probe.setup import KiB, MiB, Setup
from linkproof.sim.collective import OPS, SHOWN, collective
from linkproof.sim.virtual import Virtual

SIZES_B = (8, 8 * KiB, 256 * KiB, 4 * MiB)
ROUNDS = 3


def run(devices: Devices, case: Case, setup: Setup) -> Outcome:
    if case.mode != "nccl":
        raise NotTested("{mode}: not part of a simulated machine", mode=case.mode)
    begun = perf_counter()
    transport, _, protocol = case.arm.partition("/")
    ranks = list(case.gpus) if len(set(case.gpus)) == len(case.gpus) else list(case.gpus[:1])
    rounds, checked_B, used = 0, 0, ""
    for size_B in SIZES_B:
        for op in OPS:
            for _ in range(ROUNDS):
                result = collective(cast(Virtual, devices), op, transport or "default", protocol or "default", size_B, ranks)
                used = result.transport
                if transport in SHOWN and used != SHOWN[transport]:
                    raise NotTested("NCCL used {transport} instead of {wanted}", transport=used, wanted=SHOWN[transport])
                rounds, checked_B = rounds + 1, checked_B + size_B * len(ranks)
                if result.wrong:
                    why = "{op}: wrong on rank {ranks}"
                    args = {"op": op, "ranks": ", ".join(str(r) for r in result.wrong)}
                    wrong = (Wrong("garbage", size_B, 0),)
                    took_s = perf_counter() - begun
                    return Outcome(case, "corrupt", why, args, wrong, size_B, rounds - 1, rounds, 1, took_s=took_s, transport=used, op=op)
    return Outcome(case, "verified", size_B=SIZES_B[-1], rounds=rounds, verified_B=checked_B, took_s=perf_counter() - begun, transport=used)
