from __future__ import annotations

import pytest
from machine_texts import events, of

from linkproof.model import Gpu, Platform, Versions


def query(bus: str = "00000000:01:00.0", *, bar1: int = 32768, width: int = 16, mode: str = "None", fabric: str = "N/A", brake: str = "Not Active",
          display: str = "Disabled", uncorrected: int = 0, corrected: int = 0, replays: int = 0) -> str:  # fmt: skip
    return f"""
GPU {bus}
    Product Name                          : NVIDIA GeForce RTX 4090
    Display Mode                          : Enabled
    Display Active                        : {display}
    MIG Mode
        Current                           : Disabled
        Pending                           : N/A
    GPU Virtualization Mode
        Virtualization Mode               : {mode}
    PCI
        Bus Id                            : {bus}
        GPU Link Info
            PCIe Generation
                Max                       : 4
                Current                   : 1
            Link Width
                Max                       : 16x
                Current                   : {width}x
        Replays Since Reset               : {replays}
        Replay Number Rollovers           : 0
    Clocks Event Reasons
        SW Power Cap                      : Active
        HW Slowdown                       : Not Active
            HW Power Brake Slowdown       : {brake}
    FB Memory Usage
        Total                             : 24564 MiB
        Used                              : 1 MiB
    BAR1 Memory Usage
        Total                             : {bar1} MiB
        Used                              : 1 MiB
    ECC Errors
        Volatile
            SRAM Uncorrectable            : 0
            DRAM Correctable              : {corrected}
        Aggregate
            DRAM Uncorrectable            : {uncorrected}
    Fabric
        State                             : {fabric}
        Status                            : {"Success" if fabric == "Completed" else "N/A"}
"""


def facts(words: str) -> list[tuple[str, str]]:
    return [(fact.fact, fact.value) for fact in of(Gpu, words) if fact.fact]


def test_bar1_smaller_than_the_memory_is_told_with_both_figures() -> None:
    assert facts(query(bar1=256)) == [("bar1_smaller_than_vram", "256 MiB of 24564 MiB")]


def test_bar1_as_large_as_the_memory_covers_it() -> None:
    assert facts(query(bar1=32768)) == [("bar1_covers_vram", "32768 MiB of 24564 MiB")]


def test_a_grepped_piece_of_256_mib_is_smaller_than_any_memory() -> None:
    assert facts("    BAR1 Memory Usage\n        Total                             : 256 MiB\n        Used : 1 MiB") == [
        ("bar1_smaller_than_vram", "BAR1 256 MiB")
    ]
    assert not facts("    BAR1 Memory Usage\n        Total                             : 65536 MiB")


def test_two_pieces_without_headings_are_two_cards() -> None:
    piece = "    BAR1 Memory Usage\n        Total                             : 256 MiB\n"
    assert [fact.count for fact in of(Gpu, piece * 2) if fact.fact] == [2]


def test_cards_are_counted_and_named() -> None:
    words = "Driver Version                            : 550.54.14\nCUDA Version                              : 12.4\nAttached GPUs : 2\n"
    words += query() + query("00000000:41:00.0")
    assert ("NVIDIA GeForce RTX 4090", 2, "") in [(fact.name, fact.count, fact.fact) for fact in of(Gpu, words)]
    assert [(fact.driver, fact.cuda) for fact in of(Versions, words)] == [("550.54.14", ""), ("", "12.4")]


def test_a_narrow_link_is_downgraded_and_a_slow_idle_one_is_not() -> None:
    assert ("link_downgraded", "0000:01:00.0: x4 of x16") in events(query(width=4))
    assert not [kind for kind, _ in events(query()) if kind == "link_downgraded"]


def test_uncorrected_errors_count_from_one_corrected_ones_from_many() -> None:
    assert ("ecc_errors", "0000:01:00.0 Aggregate/DRAM Uncorrectable: 2") in facts(query(uncorrected=2))
    assert ("ecc_errors", "0000:01:00.0 Volatile/DRAM Correctable: 236795") in facts(query(corrected=236795))
    assert not [fact for fact, _ in facts(query(corrected=7)) if fact == "ecc_errors"]


def test_counters_of_the_older_form_are_read_by_their_headings() -> None:
    words = "    ECC Errors\n        Volatile\n            Single Bit\n                Total                     : {0}\n            Double Bit\n"
    words += "                Total                     : {1}\n        Aggregate\n            Double Bit\n                Total   : 0\n"
    assert [fact for fact, _ in facts(words.format(0, 3))] == ["ecc_errors"]
    assert not facts(words.format(5, 0))


@pytest.mark.parametrize("mode, kinds", [("Pass-Through", ["vm"]), ("VGPU", ["vm"]), ("None", []), ("Host VGPU", [])])
def test_the_virtualisation_mode_tells_a_guest_and_never_bare_metal(mode: str, kinds: list[str]) -> None:
    assert [fact.kind for fact in of(Platform, query(mode=mode))] == kinds


def test_the_fabric_is_ready_or_not_or_not_there() -> None:
    assert ("fabric_ready", "0000:01:00.0: Completed, Success") in events(query(fabric="Completed"))
    assert ("fabric_not_ready", "0000:01:00.0: In Progress, N/A") in events(query(fabric="In Progress"))
    assert not [kind for kind, _ in events(query()) if kind.startswith("fabric")]


def test_a_power_brake_is_told_and_the_power_cap_is_everyday() -> None:
    assert ("power_event", "0000:01:00.0: HW Power Brake Slowdown") in events(query(brake="Active"))
    assert not [kind for kind, _ in events(query()) if kind == "power_event"]


def test_many_replays_are_told_and_a_few_are_not() -> None:
    assert ("pcie_replays", "0000:01:00.0: Replays Since Reset 4711") in events(query(replays=4711))
    assert not [kind for kind, _ in events(query(replays=3)) if kind == "pcie_replays"]


def test_a_display_counts_when_it_is_active_not_when_the_mode_allows_one() -> None:
    assert ("display_attached", "0000:01:00.0") in facts(query(display="Enabled"))
    assert not [fact for fact, _ in facts(query()) if fact == "display_attached"]
