from __future__ import annotations

import pytest
from machine_texts import events, of

from linkproof.model import Gpu, Platform, Versions

OLD_HEAD = "| NVIDIA-SMI 460.32.03    Driver Version: 460.32.03    CUDA Version: 11.2     |"
NEW_HEAD = "| NVIDIA-SMI 610.57.04              KMD Version: 610.57.04     CUDA UMD Version: 13.3     |"


def card(n: int, *, name: str = "NVIDIA H100 80GB HBM3", display: str = "Off", ecc: str = "0", power: str = "62W / 700W", load: str = "0",
         used: int = 0, mig: str = "Disabled") -> str:  # fmt: skip
    return (
        f"|   {n}  {name}          On  | 00000000:{0x1B + n:02X}:00.0 {display} |  {ecc} |\n"
        f"| N/A   28C    P0              {power} | {used:6d}MiB / 81559MiB |   {load}%      Default |\n"
        f"|                                         |                      |  {mig} |\n"
        "+-----------------------------------------+----------------------+----------------------+"
    )


def table(*cards: str, head: str = OLD_HEAD) -> str:
    return "\n".join((head, "|=========================================+======================+======================|", *cards))


def gpu_facts(words: str) -> list[tuple[str, str]]:
    return [(fact.fact, fact.value) for fact in of(Gpu, words) if fact.fact]


@pytest.mark.parametrize("head, driver, cuda", [(OLD_HEAD, "460.32.03", "11.2"), (NEW_HEAD, "610.57.04", "13.3")])
def test_driver_and_cuda_are_read_from_old_and_new_headers(head: str, driver: str, cuda: str) -> None:
    assert [(fact.driver, fact.cuda) for fact in of(Versions, table(card(0), head=head))] == [(driver, cuda)]


def test_cards_are_counted_by_kind() -> None:
    words = table(card(0), card(1), card(2))
    assert [(fact.name, fact.count) for fact in of(Gpu, words)] == [("NVIDIA H100 80GB HBM3", 3)]


def test_a_table_pasted_twice_is_one_machine() -> None:
    assert [(fact.name, fact.count) for fact in of(Gpu, table(card(0), card(1)) + "\n" + table(card(0), card(1)))] == [
        ("NVIDIA H100 80GB HBM3", 2)
    ]


def test_two_kinds_of_cards_are_mixed_and_one_kind_is_not() -> None:
    mixed = table(card(0), card(1, name="NVIDIA A100-PCIE-40GB"))
    assert gpu_facts(mixed) == [("mixed_models", "NVIDIA A100-PCIE-40GB + NVIDIA H100 80GB HBM3")]
    assert not gpu_facts(table(card(0), card(1)))


def test_a_display_on_a_card_is_seen() -> None:
    assert gpu_facts(table(card(0, display=" On"), card(1))) == [("display_attached", "0000:1b:00.0")]


def test_full_load_at_idle_power_is_a_waiting_kernel() -> None:
    assert gpu_facts(table(card(0, power="118W / 700W", load="100", used=70000))) == [
        ("utilisation_100_idle_power", "GPU 0: 100% at 118W of 700W")
    ]


@pytest.mark.parametrize("power, load", [("520W / 700W", "100"), ("60W / 700W", "12"), (" N/A /  N/A", "100"), ("ERR! / 700W", "100")])
def test_work_rest_and_unknown_power_are_no_waiting_kernel(power: str, load: str) -> None:
    assert not gpu_facts(table(card(0, power=power, load=load)))


def test_no_load_counts_only_where_every_card_holds_memory() -> None:
    loaded = table(card(0, used=60000), card(1, used=60000))
    assert [fact for fact, _ in gpu_facts(loaded)] == ["utilisation_0"]
    assert not gpu_facts(table(card(0, used=4), card(1, used=4)))
    assert not gpu_facts(table(card(0, used=60000), card(1, used=60000, load="35", power="300W / 700W")))


def test_uncorrectable_errors_of_the_table_are_told_and_zero_is_not() -> None:
    assert gpu_facts(table(card(0, ecc="12"))) == [("ecc_errors", "GPU 0: 12 uncorrectable (volatile)")]
    assert not gpu_facts(table(card(0, ecc="N/A")))


def test_mig_mode_is_read_from_the_third_line() -> None:
    assert gpu_facts(table(card(0, mig="Enabled"))) == [("mig", "")]


PROCESSES = """
|    0   N/A  N/A      4242      C   /usr/bin/python3                1234MiB |
|    1   N/A  N/A      4243      C   /usr/bin/python3                1234MiB |
|    1   N/A  N/A      999       {0}   {1}                1234MiB |
"""


def test_a_process_that_only_one_of_the_ranks_cards_runs_is_foreign() -> None:
    assert ("other_process", "GPU 1: ollama") in gpu_facts(PROCESSES.format("C", "/usr/local/bin/ollama"))


def test_ranks_and_the_desktop_are_not_foreign() -> None:
    assert not gpu_facts(PROCESSES.format("C", "/usr/bin/python3"))
    assert not gpu_facts(PROCESSES.format("G", "/usr/lib/xorg/Xorg"))


def test_a_list_counts_each_card_once() -> None:
    words = "GPU 0: Tesla T4 (UUID: GPU-1)\nGPU 1: Tesla T4 (UUID: GPU-2)\nGPU 0: Tesla T4 (UUID: GPU-1)"
    assert [(fact.name, fact.count) for fact in of(Gpu, words)] == [("Tesla T4", 2)]


def test_mig_devices_in_a_list_are_seen() -> None:
    words = "GPU 0: NVIDIA A100 (UUID: GPU-1)\n  MIG 1g.10gb     Device  0: (UUID: MIG-0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9)"
    assert ("mig_present", "") in events(words)
    assert ("mig_present", "") not in events("GPU 0: NVIDIA A100 (UUID: GPU-1)")


@pytest.mark.parametrize("words, device", [
    ("Unable to determine the device handle for GPU0000:25:00.0: Unknown Error", "0000:25:00.0"),
    ("Unable to determine the device handle for GPU3: 0000:5F:00.0: Unknown Error", "0000:5f:00.0"),
    ("Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost.  Reboot the system to recover this GPU", "0000:01:00.0"),
])  # fmt: skip
def test_a_card_that_does_not_answer_fell_off_the_bus(words: str, device: str) -> None:
    assert ("gpu_fell_off", device) in events(words)


def test_the_windows_form_is_windows() -> None:
    words = "| GPU  Name            TCC/WDDM  | Bus-Id        Disp.A | Volatile Uncorr. ECC |"
    assert [fact.kind for fact in of(Platform, words)] == ["windows"]
    assert not of(Platform, "| GPU  Name        Persistence-M| Bus-Id        Disp.A | Volatile Uncorr. ECC |")
