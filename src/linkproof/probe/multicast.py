"""NVLink multicast is not tried unasked, and never where the environment switches it off. Says why it is left out; touches no GPU.

A multicast object is state of the NVSwitches. A program that is killed while it holds one can leave it behind, and the GPUs then fail for
everybody until the Fabric Manager starts anew; and children that hang are killed here. So mode `nvls` runs with `--deep` or `--mode nvls`.

In:      the environment; Cards.
Out:     a reason (template and values), or None: it may be tried if it was asked for.
Unknown: what the driver offers, where a Card does not say: then the case itself asks.
Raises:  nothing.
Source:  torch `CUDASymmetricMemoryUtils.cpp` (check_env: only "1" counts), NCCL `nvls.cc`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from linkproof.measured import Card, Case, Outcome

MODE = "nvls"
OF_TORCH = "TORCH_SYMM_MEM_DISABLE_MULTICAST=1"
OFF = (OF_TORCH, "NCCL_NVLS_ENABLE=0")


def switched_off(env: Mapping[str, str]) -> str:
    """The setting that does it, "" if none."""
    return next((setting for setting in OFF if env.get(setting.partition("=")[0]) == setting.partition("=")[2]), "")


def absent(case: Case, cards: Sequence[Card], off: str) -> Outcome | None:
    """It cannot be tried here, asked for or not."""
    if off:
        return Outcome(case, "not_tested", "NVLink multicast is switched off here: {setting}", {"setting": off})
    if any(c.multicast is False for c in cards if c.index in case.gpus):
        return Outcome(case, "not_tested", "GPU and driver offer no NVLink multicast")
    return None


def unasked(case: Case) -> Outcome:
    why = (
        "tried only with --deep or --mode nvls: if a program is killed while it uses multicast, "
        "no one may be able to use the GPUs until the Fabric Manager is restarted"
    )
    return Outcome(case, "not_tested", why)
