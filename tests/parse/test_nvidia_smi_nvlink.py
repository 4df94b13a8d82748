from __future__ import annotations

from machine_texts import events, of

from linkproof.model import Gpu


def status(*cards: str) -> str:
    out = []
    for n, links in enumerate(cards):
        out.append(f"GPU {n}: NVIDIA A100-SXM4-80GB (UUID: GPU-{n})")
        out += [f"\t Link {i}: " + ("25 GB/s" if up == "+" else "<inactive>") for i, up in enumerate(links)]
    return "\n".join(out)


def down(words: str) -> list[str]:
    return [value for kind, value in events(words) if kind == "nvlink_down"]


def test_links_that_are_all_up_are_not_down() -> None:
    assert not down(status("++++", "++++"))


def test_an_inactive_link_beside_active_ones_is_down() -> None:
    assert down(status("++++", "++-+")) == ["GPU 1 links 2 inactive, 3 active"]


def test_a_card_without_any_link_beside_cards_with_links_is_told() -> None:
    assert down(status("++++", "++++", "----")) == ["GPU 2 all links inactive, 0 active"]


def test_no_link_anywhere_is_a_machine_without_bridges() -> None:
    assert not down(status("----", "----"))


def test_the_same_pattern_on_every_card_is_said_to_be_so() -> None:
    assert down(status("++--", "++--")) == [
        "GPU 0 links 2,3 inactive, 2 active, the same on every GPU",
        "GPU 1 links 2,3 inactive, 2 active, the same on every GPU",
    ]


def test_links_without_the_line_of_their_card_are_read_too() -> None:
    assert down(" Link 0: 26.562 GB/s\n Link 1: <inactive>") == ["links 1 inactive, 1 active"]


ERRORS = "GPU 0: NVIDIA H100 (UUID: GPU-1)\n\t Link 0: Replay Errors: {0}\n\t Link 0: Recovery Errors: 0\n\t Link 0: CRC Errors: 0"


def test_counters_above_zero_are_errors_and_zeros_are_none() -> None:
    assert [(fact.fact, fact.value) for fact in of(Gpu, ERRORS.format(505)) if fact.fact] == [
        ("nvlink_errors", "GPU 0 link 0: Replay Errors 505")
    ]
    assert not [fact for fact in of(Gpu, ERRORS.format(0)) if fact.fact]


def test_checksum_errors_are_told_apart_from_replays_and_recoveries() -> None:
    words = "GPU 0: NVIDIA H100 (UUID: GPU-1)\n\t Link 0: Replay Errors: {0}\n\t Link 0: CRC Errors: 7\n\t Link 1: CRC FLIT Errors: 2"
    crc = ("nvlink_crc", "GPU 0 link 0: CRC Errors 7; link 1: CRC FLIT Errors 2")
    assert [(fact.fact, fact.value) for fact in of(Gpu, words.format(0)) if fact.fact] == [crc]
    assert [(fact.fact, fact.value) for fact in of(Gpu, words.format(1)) if fact.fact] == [
        ("nvlink_errors", "GPU 0 link 0: Replay Errors 1"),
        crc,
    ]


def test_corrected_symbols_are_no_errors_of_new_links() -> None:
    words = (
        "GPU 0: NVIDIA B200 (UUID: GPU-1)\n Link 0: Symbol Errors: 9412\n Link 0: Raw BER: 12\n Link 0: Link recovery successful events: 2"
    )
    assert not [fact for fact in of(Gpu, words) if fact.fact]
    assert [fact.value for fact in of(Gpu, words + "\n Link 0: Total link recovery events: 2") if fact.fact] == [
        "GPU 0 link 0: Total link recovery events 2"
    ]
