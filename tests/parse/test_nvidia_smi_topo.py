from __future__ import annotations

import pytest
from machine_texts import of

from linkproof.model import PeerAccess, Topo

TABS = "\tGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\n" + "\n".join((
    "GPU0\t X \tNV12\tSYS\tSYS\tPXB\t0-31\t0",
    "GPU1\tNV12\t X \tSYS\tSYS\tPXB\t0-31\t0",
    "GPU2\tSYS\tSYS\t X \tNV12\tSYS\t32-63\t1",
    "GPU3\tSYS\tSYS\tNV12\t X \tSYS\t32-63\t1",
    "NIC0\tPXB\tPXB\tSYS\tSYS\t X \t\t",
))  # fmt: skip
LEGEND = "\n\nLegend:\n\n  X    = Self\n  SYS  = Connection traversing PCIe as well as the SMP interconnect\n  NV#  = Connection traversing a set of # NVLinks"


def paths(words: str) -> dict[str, str]:
    return {fact.pairs: fact.path for fact in of(Topo, words)}


def test_every_pair_gets_its_path_and_any_number_of_links_is_nvlink() -> None:
    assert paths(TABS + LEGEND) == {"0-1": "NV", "0-2": "SYS", "0-3": "SYS", "1-2": "SYS", "1-3": "SYS", "2-3": "NV"}


def test_the_number_of_links_is_kept_and_a_path_over_pcie_has_none() -> None:
    assert {fact.pairs: fact.links for fact in of(Topo, TABS) if fact.path == "NV"} == {"0-1": 12, "2-3": 12}
    assert {fact.links for fact in of(Topo, TABS) if fact.path != "NV"} == {0}


def test_the_column_of_a_network_card_is_no_gpu() -> None:
    assert "0-4" not in paths(TABS)


def test_one_path_for_all_pairs_is_said_once_for_all() -> None:
    words = "        GPU0    GPU1    CPU Affinity\nGPU0     X      PHB     0-13\nGPU1    PHB      X      0-13"
    assert paths(words) == {"0-1": "PHB", "all": "PHB"}


@pytest.mark.parametrize(
    "header", ["\x1b[4m\tGPU0\tGPU1\tCPU Affinity\x1b[0m", "[4m\tGPU0\tGPU1\tCPU Affinity[0m", "GPU0 GPU1 CPU Affinity"]
)
def test_an_underlined_or_squeezed_header_is_still_the_header(header: str) -> None:
    assert paths(header + "\nGPU0 X PIX 0-15\nGPU1 PIX X 0-15") == {"0-1": "PIX", "all": "PIX"}


def test_a_cut_matrix_says_nothing_of_all_pairs() -> None:
    words = "\tGPU0\tGPU1\tGPU2\tGPU3\nGPU0\t X \tPIX\tPIX\tPIX\nGPU1\tPIX\t X \tPIX\tPIX"
    found = paths(words)
    assert "all" not in found and found["1-3"] == "PIX" and "2-3" not in found


def test_rows_without_a_header_name_their_columns_by_the_rows_that_are_there() -> None:
    assert paths("GPU0\t X \tNODE\t0-9\nGPU1\tNODE\t X \t0-9") == {"0-1": "NODE", "all": "NODE"}


def test_an_unknown_cell_is_no_path_and_shifts_no_other() -> None:
    words = "\tGPU0\tGPU1\tGPU2\nGPU0\t X \t??\tSYS\nGPU1\t??\t X \tPIX\nGPU2\tSYS\tPIX\t X "
    assert paths(words) == {"0-2": "SYS", "1-2": "PIX"}


def test_a_list_of_gpus_is_no_matrix() -> None:
    assert not paths("GPU0  NVIDIA H100\nGPU1  NVIDIA H100\nusing  GPU0 and  GPU1 for the SYS tests")


P2P = " \tGPU0\tGPU1\t\n GPU0\tX\t{0}\t\n GPU1\t{0}\tX\t\n\nLegend:\n\n  X    = Self\n  OK   = Status Ok\n  CNS  = Chipset not supported"


def access(words: str) -> list[tuple[str, str, str]]:
    return [(fact.claimed, fact.status, fact.pairs) for fact in of(PeerAccess, words)]


@pytest.mark.parametrize(
    "cell, claimed", [("OK", "all"), ("CNS", "none"), ("GNS", "none"), ("TNS", "none"), ("NS", "none"), ("DR", "none")]
)
def test_the_driver_claims_peer_access_or_says_why_not(cell: str, claimed: str) -> None:
    assert access("$ nvidia-smi topo -p2p r\n" + P2P.format(cell)) == [(claimed, cell, "all")]


def test_an_unknown_status_claims_nothing() -> None:
    assert all(claimed == "" for claimed, _, _ in access(P2P.format("U")))


@pytest.mark.parametrize("letter", ["n", "a"])
def test_nvlink_and_atomics_matrices_say_nothing_of_plain_peer_access(letter: str) -> None:
    assert not access(f"$ nvidia-smi topo -p2p {letter}\n" + P2P.format("NS"))


def test_the_worse_direction_of_a_pair_counts_and_pairs_are_told_apart() -> None:
    words = " \tGPU0\tGPU1\tGPU2\n GPU0\tX\tOK\tOK\n GPU1\tOK\tX\tOK\n GPU2\tOK\tCNS\tX"
    assert access(words) == [("some", "CNS", "all"), ("all", "OK", "0-1"), ("all", "OK", "0-2"), ("none", "CNS", "1-2")]
