import pytest

from linkproof.model import Copy, Event, Fact, Gpu, Iommu, Ranks, Versions
from linkproof.parse import read
from linkproof.parse.clean import clean

EDGE = "srcRank=0 srcCudaDev=0 srcNvmlDev=0 dstRank=1 dstCudaDev=0 dstNvmlDev=3 path=PHB handle=CUMEM_POSIX_FD"


def facts(words: str) -> list[Fact]:
    return read(clean("log", words))


def events(words: str) -> dict[str, str]:
    return {f.kind: f.value for f in facts(words) if isinstance(f, Event)}


def test_verified_accesses_are_ok_in_2_31_and_2_32() -> None:
    new = "node1:71 NCCL DIAG [OK] p2p: verified P2P access in both directions between every GPU pair (56 peer accesses)"
    assert events(new) == {"nccl_diag_ok": "56"}
    assert events("node1:71 NCCL DIAG [OK] p2p: 56 directed GPU P2P edges verified (skipped indirect=0)") == {"nccl_diag_ok": "56"}


@pytest.mark.parametrize("words", [
    "[OK] p2p: verified P2P access in both directions between every GPU pair (0 peer accesses)",
    "[INFO] p2p: 12 directed GPU P2P edges verified",
    "[OK] net bw: skipped (single host or no network transport)",
    "=== NCCL Diagnostics ===",
])  # fmt: skip
def test_nothing_tested_or_nothing_said_is_not_ok(words: str) -> None:
    assert "nccl_diag_ok" not in events(f"node1:71 NCCL DIAG {words}")


def test_fewer_than_all_is_a_failure() -> None:
    assert events("node1:71 NCCL DIAG [INFO] p2p: only 54/56 GPU-to-GPU peer accesses passed verification") == {
        "nccl_diag_failed": "54/56 passed"
    }


def test_a_write_that_was_lost_is_a_store_of_zeros_between_the_cards_by_nvmls_number() -> None:
    line = f"node1:71 NCCL DIAG [INFO] p2p: write mismatch {EDGE} expected=0x00000001deadbeef got=0x0000000000000000 verify=0x0000000000000000; check"
    assert events(line) == {"nccl_diag_mismatch": "write 0-3 PHB"}
    assert [(f.via, f.result, f.pairs) for f in facts(line) if isinstance(f, Copy)] == [("store", "zeros", "0-3")]


def test_a_wrong_read_is_a_load() -> None:
    line = f"node1:71 NCCL DIAG [INFO] p2p: read mismatch {EDGE} expected=0x00000001deadbeef got=0xffffffffffffffff; check"
    assert [(f.via, f.result) for f in facts(line) if isinstance(f, Copy)] == [("load", "wrong")]


def test_memory_that_could_not_be_mapped_says_nothing_of_the_bytes() -> None:
    line = f"node1:71 NCCL DIAG [INFO] p2p: peer-memory import failed {EDGE} reason=unhandled cuda error; check CUDA IPC support"
    assert events(line) == {"nccl_diag_failed": "peer-memory import failed: unhandled cuda error"}
    assert not [f for f in facts(line) if isinstance(f, Copy)]


@pytest.mark.parametrize("words, mode", [
    ("passthrough across 8 relevant device(s) on 8/8 ranks in comm 0x1", "passthrough"),
    ("enabled (DMA remapping) on 2 device(s); first rank 0 device 0000:1b:00.0 in comm 0x1", "translating"),
    ("off for 8 relevant device(s) across 8/8 ranks in comm 0x1", "off"),
    ("incomplete for 8 relevant device(s) across 8/8 ranks in comm 0x1", "unknown"),
])  # fmt: skip
def test_the_mode_of_the_iommu_is_read(words: str, mode: str) -> None:
    assert [f.mode for f in facts(f"node1:71 NCCL DIAG IOMMU mode: {words}") if isinstance(f, Iommu)] == [mode]


def test_what_the_passive_part_compares_is_read() -> None:
    lines = (
        "node1:71 NCCL DIAG NVIDIA graphics driver version: 580.65.06 consistent across 8 ranks in comm 0x1\n"
        "node1:71 NCCL DIAG GPU inventory: 8x NVIDIA H200 per node consistent across 8 ranks in comm 0x1\n"
        "node1:71 NCCL DIAG NCCL environment: mismatch across 8 ranks in comm 0x1 for NCCL_ALGO\n"
        "node1:71 NCCL DIAG ECC: no uncorrected volatile errors across 8 ranks in comm 0x1"
    )
    found = facts(lines)
    assert [f.driver for f in found if isinstance(f, Versions)] == ["580.65.06"]
    assert [(f.name, f.count) for f in found if isinstance(f, Gpu)] == [("NVIDIA H200", 8)]
    assert [f.fact for f in found if isinstance(f, Ranks)] == ["hosts_differ"]
    assert not [f for f in found if isinstance(f, Event)]


def test_uncorrected_errors_and_inactive_links_are_events() -> None:
    ecc = "node1:71 NCCL DIAG ECC: uncorrected volatile errors on rank(s) 3 (worst=2) across 8 ranks in comm 0x1"
    link = "node1:71 NCCL DIAG NVLink: inactive link(s) on rank(s) 5 across 8 ranks in comm 0x1"
    assert list(events(ecc)) == ["ecc_error"]
    assert list(events(link)) == ["nvlink_down"]
