"""Virtual GPUs for the tests of the checks: a machine in a folder, its links as asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import structs

from linkproof.measured import Case, Outcome
from linkproof.probe.setup import Effort, KiB, MiB, Setup
from linkproof.sim.scenario import Link, LinkFault, PairLink, Scenario, load
from linkproof.sim.virtual import Virtual, create
from linkproof.tasks import run_case

SEED = 0x5EED_0123_4567_89AB
EFFORT = Effort((4, 256, 4 * KiB + 16, 64 * KiB, 2 * MiB + 16), rounds_small=3, rounds_big=1, message_rounds=300, message_deadline_s=5.0)


def scenario(
    gpus: int = 2, *faults: LinkFault, refused_pairs: tuple[str, ...] = (), each: dict[str, Any] | None = None, **changed: Any
) -> Scenario:
    """Healthy but for this. refused_pairs: `0->1`, for which the driver offers no peer access. each: what differs of every GPU."""
    s = load("healthy-8xnvlink" if gpus > 2 else "healthy-2xpcie")
    links = (PairLink(refused_pairs, Link(claimed=False)),) if refused_pairs else s.links
    cards = tuple(structs.replace(g, **(each or {})) for g in s.gpus[:gpus])
    return structs.replace(s, gpus=cards, faults=faults, links=links, shared=(), **changed)


def made(folder: Path, gpus: int = 2, *faults: LinkFault, **changed: Any) -> Virtual:
    create(scenario(gpus, *faults, **changed), folder)
    return Virtual(folder)


def setup_of(folder: Path, effort: Effort = EFFORT) -> Setup:
    return Setup(f"sim:{folder}", SEED, effort)


def tried(devices: Virtual, mode: str, *gpus: int, load: str = "alone", fault: str = "", effort: Effort = EFFORT) -> Outcome:
    """One case in this process, as a worker would try it."""
    (outcome,) = run_case(devices, Case(mode, gpus, load, fault=fault), setup_of(devices.folder, effort))
    return outcome


def blocks_left(devices: Virtual) -> list[str]:
    """Memory that nobody gave back."""
    return [path.name for path in devices.folder.glob("[0-9]*-*")]
