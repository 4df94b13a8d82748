"""NCCL's rings over simulated links: right sums on right links, wrong ones on wrong links, errors and hangs where NCCL has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from msgspec import structs

from linkproof.probe.devices import NotPossible
from linkproof.sim.collective import OPS, Collected, collective
from linkproof.sim.scenario import LinkFault, load
from linkproof.sim.virtual import Virtual, create


def machine(tmp_path: Path, name: str, *faults: LinkFault) -> Virtual:
    s = load(name)
    create(structs.replace(s, faults=faults) if faults else s, tmp_path)
    return Virtual(tmp_path)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("transport", ["default", "p2p", "shm", "net"])
@pytest.mark.parametrize("size_B", [8, 1000, 1 << 20])
def test_every_rank_is_right_on_right_links(tmp_path: Path, op: str, transport: str, size_B: int) -> None:
    v = machine(tmp_path, "acs-redirect-4x4090")
    shown = {"default": "P2P/CUMEM", "p2p": "P2P/CUMEM", "shm": "SHM/direct", "net": "NET/Socket"}[transport]
    assert collective(v, op, transport, "default", size_B, (0, 1, 2, 3)) == Collected((True,) * 4, (), shown)


@pytest.mark.parametrize("op", OPS)
def test_one_bad_link_makes_a_wrong_result(tmp_path: Path, op: str) -> None:
    v = machine(tmp_path, "acs-redirect-4x4090", LinkFault("shift", 16, pairs=("1->2",)))
    got = collective(v, op, "p2p", "Simple", 1 << 16, (0, 1, 2, 3))
    assert 2 in got.wrong and not all(got.ok)
    assert collective(v, op, "shm", "Simple", 1 << 16, (0, 1, 2, 3)).ok == (True,) * 4
    assert collective(v, op, "p2p", "Simple", 1 << 16, (0, 1)).ok == (True, True), "that link is not in use"


def test_torn_lines_spoil_one_protocol_only(tmp_path: Path) -> None:
    v = machine(tmp_path, "ll128-torn")
    ok = {protocol: all(collective(v, "all_reduce", "p2p", protocol, 1 << 16, (0, 1)).ok) for protocol in ("LL", "LL128", "Simple")}
    assert ok == {"LL": True, "LL128": False, "Simple": True}


def test_a_flag_before_its_data_spoils_simple_and_not_ll(tmp_path: Path) -> None:
    v = machine(tmp_path, "healthy-2xpcie", LinkFault("reorder"))
    assert not all(collective(v, "all_reduce", "p2p", "Simple", 1 << 20, (0, 1)).ok)
    assert all(collective(v, "all_reduce", "p2p", "LL", 1 << 20, (0, 1)).ok)


def test_without_peer_access_nccl_takes_shared_memory(tmp_path: Path) -> None:
    assert collective(machine(tmp_path, "p2p-refused-geforce"), "all_reduce", "p2p", "default", 4096, (0, 1)) == Collected(
        (True, True), (), "SHM/direct"
    )


def test_shared_memory_that_does_not_suffice_is_refused_and_peers_work(tmp_path: Path) -> None:
    v = machine(tmp_path, "shm-too-small")
    with pytest.raises(NotPossible):
        collective(v, "all_reduce", "shm", "default", 4096, (0, 1, 2, 3))
    assert all(collective(v, "all_reduce", "default", "default", 4096, (0, 1, 2, 3)).ok)


HANGS = """
import sys
from linkproof.sim.collective import collective
from linkproof.sim.virtual import Virtual
print("begun", flush=True)
print(collective(Virtual(sys.argv[1]), "all_reduce", sys.argv[2], "Simple", 4096, (0, 1)).ok, flush=True)
"""


@pytest.mark.parametrize("name", ["flags-hang-copies-fine", "sm-stores-lost-5090", "private-mirror-2x"])
def test_lost_flags_hang_and_the_host_path_does_not(tmp_path: Path, name: str) -> None:
    machine(tmp_path, name)
    child = subprocess.Popen([sys.executable, "-c", HANGS, str(tmp_path), "p2p"], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "begun\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(1.0)
    finally:
        child.kill()
        child.communicate()
    assert all(collective(Virtual(tmp_path), "all_reduce", "shm", "Simple", 4096, (0, 1)).ok)
