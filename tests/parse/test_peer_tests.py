from __future__ import annotations

import pytest
from machine_texts import of

from linkproof.model import Copy, PeerAccess

SIMPLE = """\
[./simpleP2P] - Starting...
Checking GPU(s) for support of peer to peer memory access...
> Peer access from NVIDIA GeForce RTX 4090 (GPU0) -> NVIDIA GeForce RTX 4090 (GPU1) : {0}
> Peer access from NVIDIA GeForce RTX 4090 (GPU1) -> NVIDIA GeForce RTX 4090 (GPU0) : {0}
cudaMemcpyPeer / cudaMemcpy between GPU0 and GPU1: 25.06GB/s
Run kernel on GPU1, taking source data from GPU0 and writing to GPU1...
Run kernel on GPU0, taking source data from GPU1 and writing to GPU0...
Copy data back to host from GPU0 and verify results...
{1}
"""


def copies(words: str) -> list[tuple[str, str, str]]:
    return [(fact.via, fact.result, fact.pairs) for fact in of(Copy, words)]


def test_simple_p2p_that_passes_copied_right_on_its_pair() -> None:
    words = SIMPLE.format("Yes", "Disabling peer access...\nShutting down...\nTest passed")
    assert copies(words) == [("load", "ok", "first")]
    assert [fact.claimed for fact in of(PeerAccess, words)] == ["all"]


@pytest.mark.parametrize("value, result", [("nan", "wrong"), ("1.000000", "wrong"), ("0.000000", "zeros")])
def test_verification_errors_tell_zeros_from_other_wrong_values(value: str, result: str) -> None:
    errors = "\n".join(f"Verification error @ element {n}: val = {value}, ref = {4 * n}.000000" for n in range(1, 4))
    assert copies(SIMPLE.format("Yes", errors + "\nTest failed!")) == [("load", result, "first")]


def test_a_value_that_should_be_zero_does_not_make_zeros() -> None:
    words = "Verification error @ element 0: val = nan, ref = 0.000000\nVerification error @ element 1: val = nan, ref = 4.000000"
    assert copies(words) == [("load", "wrong", "first")]


def test_a_test_that_passed_elsewhere_says_nothing_of_peer_copies() -> None:
    assert not copies("[Vector addition of 50000 elements]\nTest PASSED\nTest passed")


def test_a_waived_test_says_that_no_peer_access_is_offered() -> None:
    words = "Two or more GPUs with Peer-to-Peer access capability are required for ./simpleP2P.\nPeer to Peer access is not available amongst GPUs in the system, waiving test."
    assert [fact.claimed for fact in of(PeerAccess, words)] == ["none"]
    assert not copies(words)


def test_pairs_that_differ_are_told_apart() -> None:
    words = "Device=0 CAN Access Peer Device=1\nDevice=0 CANNOT Access Peer Device=2\nDevice=1 CAN Access Peer Device=0"
    assert [(fact.claimed, fact.pairs) for fact in of(PeerAccess, words)] == [("some", "all"), ("none", "0-2")]


@pytest.mark.parametrize("answer, claimed", [("true", "all"), ("false", "none")])
def test_the_cache_of_an_engine_is_read_without_its_diagonal(answer: str, claimed: str) -> None:
    words = f'{{\n    "0->0": true,\n    "0->1": {answer},\n    "1->0": {answer},\n    "1->1": true\n}}'
    assert [fact.claimed for fact in of(PeerAccess, words)] == [claimed]


def test_nvbandwidth_that_reads_another_pattern_copied_wrong() -> None:
    words = "Running device_to_device_memcpy_read_ce.\n Invalid value when checking the pattern at 0x735f80000000\n Current offset : 200064"
    assert copies(words) == [("peer", "wrong", "some")]


def test_a_wrong_pattern_of_a_host_copy_is_no_peer_copy() -> None:
    words = "Running device_to_device_memcpy_read_ce.\nSUM device_to_device_memcpy_read_ce 96.10\nRunning host_to_device_memcpy_ce.\n Invalid value when checking the pattern at 0x7f"
    assert copies(words) == [("host", "wrong", "some")]


def test_nvbandwidth_waives_where_no_peer_access_is_offered() -> None:
    assert [fact.claimed for fact in of(PeerAccess, "Running device_to_device_memcpy_read_ce.\nWaived:")] == ["none"]
    assert not of(PeerAccess, "Running device_to_device_memcpy_read_ce.\nmemcpy CE GPU(row) -> GPU(column) bandwidth (GB/s)")
