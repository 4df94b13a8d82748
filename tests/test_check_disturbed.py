"""What happens to a machine while it is checked is a result of the pairs that it concerns; the run goes on, and nothing is called healthy."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from itertools import permutations
from pathlib import Path

import pytest
from msgspec import structs

from linkproof.checking import check
from linkproof.cli import main
from linkproof.measured import MODES, Case, Outcome, Probed
from linkproof.probe.plan import Wish
from linkproof.prove import prove
from linkproof.routes import table
from linkproof.sim.host import SimHost
from linkproof.sim.scenario import LinkFault, Scenario, load
from linkproof.sim.virtual import create
from simulated import processes_of, scenario_file

SOME = ("staged", "push", "store16", "views", "flags", "chain", "ipc", "nccl")
Said = dict[str, object]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def machine(folder: Path, gpus: int, *faults: LinkFault) -> Scenario:
    s = load("healthy-8xnvlink")
    s = structs.replace(s, gpus=s.gpus[:gpus], faults=faults, shared=())
    create(s, folder)
    return s


def after(outcomes: tuple[Outcome, ...], first: Case) -> list[Outcome]:
    """From this case on."""
    at = next(i for i, o in enumerate(outcomes) if (o.case.mode, o.case.gpus) == (first.mode, first.gpus))
    return list(outcomes[at:])


def test_a_gpu_that_is_unplugged_takes_its_own_pairs_and_no_others(tmp_path: Path) -> None:
    scenario = machine(tmp_path, 3)
    first = Case("store16", (0, 1))

    def tell(done: int, of: int, case: Case) -> None:
        if case == first:
            (tmp_path / "lost-1").touch()

    probed = prove(f"sim:{tmp_path}", Wish(modes=SOME), tell)
    assert all(o.state == "verified" for o in probed.outcomes if o.case.mode in ("staged", "push") and o.case.load == "alone")
    later = after(probed.outcomes, first)
    assert len(later) > 20
    for o in later:
        if 1 in o.case.gpus:
            assert o.state in ("died", "not_tested"), o
        else:
            assert o.state == "verified", o
    assert {o.state for o in later if o.case.mode in ("store16", "views", "flags") and 1 in o.case.gpus} == {"died"}
    diagnosis = check(SimHost(scenario, tmp_path), probed).diagnosis
    assert diagnosis.verdict != "healthy" and "safe" not in {c.state for e, c in diagnosis.consumers.items() if e != "llama.cpp"}
    assert not processes_of(os.getpid())


def test_a_worker_that_is_killed_is_told_of_one_case_and_the_next_have_a_new_one(tmp_path: Path) -> None:
    """The third case hangs; while it does, somebody kills its process."""
    machine(tmp_path, 3, LinkFault("hang", modes=("push",), pairs=("0->2",)))
    killed: list[int] = []

    def kill() -> None:
        for pid, command in processes_of(os.getpid()).items():
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if "launcher" in command and parent != os.getpid():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    def tell(done: int, of: int, case: Case) -> None:
        if case == Case("push", (0, 2)):
            threading.Timer(1.0, kill).start()

    begun = time.monotonic()
    probed = prove(f"sim:{tmp_path}", Wish(modes=("push",), pairs=((0, 1), (0, 2), (2, 1), (1, 0))), tell)
    alone = {o.case.gpus: o for o in probed.outcomes if o.case.load == "alone"}
    assert len(killed) == 1 and time.monotonic() - begun < 60
    assert alone[0, 2].state == "not_tested" and "killed from outside" in alone[0, 2].why, "no link can do that"
    assert {pair: o.state for pair, o in alone.items() if pair != (0, 2)} == dict.fromkeys(((0, 1), (1, 0), (2, 1)), "verified")
    assert table(probed).state(0, 2, "push") != "verified" and not processes_of(os.getpid())


def states(said: dict[str, list[dict[str, str]]]) -> set[str]:
    return {r["state"] for r in said["routes"]}


def run_sim(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, Said, dict[str, list[dict[str, str]]]]:
    code = main(["check", *argv, "--format", "json", "--lang", "en"])
    said = json.loads(capsys.readouterr().out)
    return code, said, said["links"]


def test_a_card_without_memory_is_not_tested_and_not_healthy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = scenario_file(tmp_path, "healthy-2xpcie", ("memory_GiB = 45", "memory_GiB = 0.002"))
    code, said, links = run_sim(capsys, "--sim", own)
    copies = [r for r in links["routes"] if r["mode"] in ("push", "pull", "store", "load", "staged", "ipc", "views")]
    assert code == 3 and said["verdict"] == "cannot_tell" and {r["state"] for r in copies} == {"not_tested"}
    assert all("memory" in r["why"] for r in copies) and said["report"]["consumers"]["transformers"]["state"] == "unknown"  # type: ignore[index]


BUSY = ("memory_GiB = 45\ndevice = 0x26b9\niommu = \"identity\"\n\n[link]", "memory_GiB = 45\ndevice = 0x26b9\niommu = \"identity\"\nbusy = \"python (pid 4242)\"\n\n[link]")  # fmt: skip


def test_a_card_in_use_is_left_alone_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = scenario_file(tmp_path, "healthy-2xpcie", BUSY)
    code, said, links = run_sim(capsys, "--sim", own)
    assert code == 3 and said["verdict"] == "cannot_tell"
    assert {r["state"] for r in links["routes"] if r["src"] != r["dst"]} <= {"not_tested"}
    assert "python (pid 4242)" in json.dumps(links["skipped"]) and "--force" in json.dumps(links["skipped"])
    code, said, links = run_sim(capsys, "--sim", own, "--force")
    assert (code, said["verdict"]) == (0, "healthy") and "4242" not in json.dumps(links["skipped"])


def test_part_of_the_modes_is_no_proof_of_health(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, links = run_sim(capsys, "--sim", "healthy-2xpcie", "--mode", "push")
    assert code == 3 and said["verdict"] == "cannot_tell" and states(links) == {"verified"}
    code, said, links = run_sim(capsys, "--sim", "vm-passthrough-p2p-zeros", "--mode", "push", "--mode", "staged", "--pair", "0:1")
    assert code == 1 and said["verdict"] == "faulty", "one wrong pair is enough for a fault"


def test_every_mode_of_a_right_machine_is_right_under_every_load(tmp_path: Path) -> None:
    """Three GPUs, all modes: the arms of the disturbed runs above without any disturbance."""
    machine(tmp_path, 3)
    probed: Probed = prove(f"sim:{tmp_path}", Wish())
    routes = table(probed)
    judged = [m.name for m in MODES.values() if m.scope == "pair" and m.judged]
    assert {routes.state(*pair, mode) for pair in permutations(range(3), 2) for mode in judged} == {"verified"}
    assert {o.case.load for o in probed.outcomes} == {"alone", "both_ways", "all"}
