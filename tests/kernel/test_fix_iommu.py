"""The whole story of an IOMMU that loses peer data, with real DMA in a real Linux: found, mended at run time and for good, taken back.

A device reads one card's memory and writes into another's. The device says that it is done; whether the bytes are there, the processor looks.
"""

from __future__ import annotations

import re
from itertools import permutations
from typing import Any

import pytest

from kernel.conftest import DISK, ENTRY, Told
from kernel.vm import ENGINES

GPUS = tuple(sorted(ENGINES.values()))
BEFORE = "root=/dev/vda1 ro quiet intel_iommu=on"
BOOT_FILE = f"/{ENTRY}"


@pytest.fixture(scope="module")
def first(iommu_boots: dict[str, Told]) -> Told:
    return iommu_boots["iommu"]


@pytest.fixture(scope="module")
def second(iommu_boots: dict[str, Told]) -> Told:
    return iommu_boots["passthrough"]


@pytest.fixture(scope="module")
def third(iommu_boots: dict[str, Told]) -> Told:
    return iommu_boots["back"]


def all_lost(copies: list[dict[str, Any]]) -> bool:
    """Each pair: the device is done, through the processor the bytes are right, and where they should be nothing has changed."""
    assert [(c["src"], c["dst"]) for c in copies] == list(permutations(GPUS, 2))
    return all(c["done"] and c["staged"] and c["poison"] and not c["right"] for c in copies)


def all_right(copies: list[dict[str, Any]]) -> bool:
    assert [(c["src"], c["dst"]) for c in copies] == list(permutations(GPUS, 2))
    return all(c["done"] and c["staged"] and c["right"] for c in copies)


def results(said: Told) -> dict[str, str]:
    return {r["id"]: r["state"] for r in said["results"]}


# ---------------------------------------------------------------- found


def test_the_data_are_lost_while_the_device_says_that_it_is_done(first: Told) -> None:
    assert set(first["types"].values()) == {"DMA-FQ"}
    assert all_lost(first["copies"])


def test_the_kernel_logs_a_write_to_an_address_inside_the_other_cards_memory(first: Told) -> None:
    found = re.findall(r"\[DMA Write[^]]*\] Request device \[([0-9a-f:.]+)\] fault addr (0x[0-9a-f]+)", first["dmesg"])
    assert found
    for device, address in found:
        inside = [gpu for gpu, (start, end) in first["bars"].items() if start <= int(address, 16) <= end]
        assert len(inside) == 1 and inside[0][5:-1] != device[:-1], (device, address)


def test_check_names_the_iommu_and_cites_that_line(first: Told) -> None:
    assert first["found"]["verdict"] == "faulty"
    cause, state, signs = first["found"]["causes"][0]
    assert (cause, state) == ("iommu_translation", "confirmed")
    assert any("fault addr" in sign for sign in signs)


# ---------------------------------------------------------------- mended at run time


def test_apply_tries_the_ports_takes_them_back_and_then_the_groups_help(first: Told) -> None:
    done = results(first["apply"])
    assert done["iommu-identity"] == "helped"
    assert {state for name, state in done.items() if name.startswith("acs-")} <= {"did_not_help", "not_needed"}
    assert done["iommu-passthrough"] == "not_needed"
    assert (first["apply"]["code"], first["apply"]["state"]) == (0, "done"), "what was tried before is no failure"
    assert first["registers_applied"] == {} and not first["files_applied"]


def test_then_the_data_arrive(first: Told) -> None:
    assert set(first["types_applied"].values()) == {"identity"}
    assert all_right(first["copies_applied"])
    assert (first["status"]["code"], {c["state"] for c in first["status"]["changes"]}) == (0, {"in_force"})


def test_rollback_brings_the_groups_and_the_fault_back(first: Told) -> None:
    assert {c["state"] for c in first["rollback"]["changes"]} == {"restored"}
    assert first["types_rolled_back"] == first["types"]
    assert all_lost(first["copies_rolled_back"])


# ---------------------------------------------------------------- mended for good, through the boot loader's entry


def test_the_step_for_good_edits_the_entry_and_says_that_it_waits_for_a_reboot(first: Told) -> None:
    assert results(first["boot"]) == {"iommu-passthrough": "in_place"}
    assert first["options"] == BEFORE
    assert bytes(first["entry"]) == DISK[ENTRY].replace(BEFORE.encode(), f"{BEFORE} iommu=pt".encode())
    assert [(c["change"]["target"], c["state"]) for c in first["boot_status"]["changes"]] == [(BOOT_FILE, "waits_for_reboot")]
    assert first["types_boot"] == first["types"]


def test_booted_with_what_the_entry_says_the_data_arrive_and_status_says_in_force(second: Told) -> None:
    assert second["options"] == f"{BEFORE} iommu=pt" and " iommu=pt" in second["cmdline"]
    assert set(second["types"].values()) == {"identity"}
    assert all_right(second["copies"])
    assert [(c["change"]["target"], c["state"]) for c in second["status"]["changes"]] == [(BOOT_FILE, "in_force")]


def test_rollback_gives_the_entry_its_former_bytes_back(second: Told) -> None:
    assert [(c["change"]["target"], c["state"]) for c in second["rollback"]["changes"]] == [(BOOT_FILE, "restored")]
    assert bytes(second["entry"]) == DISK[ENTRY]
    assert second["status_after"]["state"] == "nothing"


def test_booted_with_that_the_fault_is_back(third: Told) -> None:
    assert third["options"] == BEFORE and "iommu=pt" not in third["cmdline"]
    assert all_lost(third["copies"])
    assert (third["status"]["code"], third["status"]["state"]) == (0, "nothing")
    assert "DMA Write" in third["dmesg"]
