"""NVML's JSON to facts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkproof.errors import ParseError
from linkproof.model import Event, Fact, Gpu, PeerAccess, Platform, Source, Topo, Versions
from linkproof.parse import nvml_json, read
from linkproof.parse.clean import clean

GIB = 1 << 30


def card(index: int = 0, **more: Any) -> dict[str, Any]:
    return {"index": index, "name": "NVIDIA H100 80GB HBM3", "pci": f"00000000:{index + 1:02X}:00.0", **more}


def facts(said: dict[str, Any]) -> list[Fact]:
    """Of this parser alone: others know the words of some errors too."""
    return list(nvml_json.parse(clean("NVML", json.dumps({"gpus": [], **said} if "error" not in said else said)), [0]))


def events(said: dict[str, Any]) -> list[tuple[str, str]]:
    return [(f.kind, f.value) for f in facts(said) if isinstance(f, Event)]


def signs(said: dict[str, Any]) -> list[str]:
    return [f.fact for f in facts(said) if isinstance(f, Gpu) and f.fact]


def test_versions_and_models_are_told() -> None:
    found = facts({"driver": "580.65.06", "cuda": 13000, "gpus": [card(0), card(1)]})
    assert [(f.driver, f.cuda) for f in found if isinstance(f, Versions)] == [("580.65.06", "13.0")]
    assert [(f.name, f.count) for f in found if isinstance(f, Gpu)] == [("NVIDIA H100 80GB HBM3", 2)]


def test_the_whole_reader_calls_this_parser_for_nvmls_text() -> None:
    assert [f.fact for f in read(clean("NVML", json.dumps({"gpus": [card(mig=1)]}))) if isinstance(f, Gpu) and f.fact] == ["mig"]
    assert [f.kind for f in read(clean("NVML", json.dumps({"error": "Driver Not Loaded"}))) if isinstance(f, Event)] == ["no_cuda_device"]


def test_an_answer_without_versions_gives_no_versions() -> None:
    assert not [f for f in facts({"driver": None, "gpus": [card()]}) if isinstance(f, Versions)]


def test_two_models_are_mixed_and_one_is_not() -> None:
    assert "mixed_models" in signs({"gpus": [card(0), card(1, name="NVIDIA A100")]})
    assert signs({"gpus": [card(0), card(1)]}) == []


@pytest.mark.parametrize(("bar1", "sign"), [(256 << 20, "bar1_smaller_than_vram"), (128 * GIB, "bar1_covers_vram")])
def test_bar1_is_compared_with_memory(bar1: int, sign: str) -> None:
    assert signs({"gpus": [card(bar1_B=bar1, memory_B=80 * GIB)]}) == [sign]


def test_memory_errors_and_mig_are_signs_and_their_absence_is_none() -> None:
    assert signs({"gpus": [card(ecc_uncorrected=3, mig=1)]}) == ["ecc_errors", "mig"]
    assert signs({"gpus": [card(remap_failed=True)]}) == ["ecc_errors"]
    assert signs({"gpus": [card(ecc_uncorrected=0, remap_failed=False, mig=0)]}) == []


def test_one_link_down_beside_others_is_down_and_a_card_without_a_bridge_is_not() -> None:
    on, off = {"active": True}, {"active": False}
    assert events({"gpus": [card(nvlinks={"0": on, "1": off})]}) == [("nvlink_down", "GPU0 0000:01:00.0 links 1")]
    assert events({"gpus": [card(nvlinks={"0": off, "1": off})]}) == []
    assert signs({"gpus": [card(nvlinks={"0": {"active": True, "replay": 4}})]}) == ["nvlink_errors"]


@pytest.mark.parametrize(
    ("counts", "sign"),
    [
        ({"replay": 1}, ["nvlink_errors"]), ({"recovery": 1}, ["nvlink_errors"]), ({"crc_flit": 9}, ["nvlink_crc"]), ({"crc_data": 442}, []),
        ({"recovery": 1, "crc_flit": 9, "crc_data": 3}, ["nvlink_errors", "nvlink_crc"]),
    ],
)  # fmt: skip
def test_replays_and_recoveries_are_errors_checksums_a_count_of_their_own_and_lanes_say_nothing(
    counts: dict[str, int], sign: list[str]
) -> None:
    assert signs({"gpus": [card(nvlinks={"0": {"active": True, **counts}})]}) == sign


@pytest.mark.parametrize(("fabric", "ready"), [((0, 0), True), ((1, 0), False), ((2, 0), False), ((3, 0), True), ((3, 999), False)])
def test_a_fabric_that_is_not_completed_is_not_ready(fabric: tuple[int, int], ready: bool) -> None:
    found = events({"gpus": [card(fabric={"state": fabric[0], "status": fabric[1]})]})
    assert (found == []) is ready


def test_a_narrow_link_is_an_event_and_a_slow_one_that_sleeps_is_not() -> None:
    assert events({"gpus": [card(pcie_width=8, pcie_width_max=16)]}) == [("link_downgraded", "GPU0 0000:01:00.0 x8 of x16")]
    assert events({"gpus": [card(pcie_width=16, pcie_width_max=16, pcie_generation=1, pcie_generation_max=5)]}) == []


@pytest.mark.parametrize(
    ("answers", "claimed", "status"),
    [(["OK", "OK"], "all", "OK"), (["OK", "CNS"], "some", "CNS"), (["CNS", "CNS"], "none", "CNS"), (["U", "OK"], "some", "OK")],
)
def test_peer_access_is_what_the_pairs_say(answers: list[str], claimed: str, status: str) -> None:
    pairs = {f"{i}-{1 - i}": answer for i, answer in enumerate(answers)}
    found = [f for f in facts({"gpus": [card(0), card(1)], "p2p": {"read": pairs}}) if isinstance(f, PeerAccess)]
    assert [(f.claimed, f.status) for f in found] == [(claimed, status)]


def test_pairs_of_unknown_state_and_one_gpu_claim_nothing() -> None:
    assert not [f for f in facts({"gpus": [card()], "p2p": {"read": {}, "write": {"0-1": "U"}}}) if isinstance(f, PeerAccess)]


def joined(cards: int, status: str = "OK", active: int = 4) -> dict[str, int]:
    links = {str(n): {"active": n < active} for n in range(6)}
    pairs = {f"{i}-{j}": status for i in range(cards) for j in range(cards) if i != j}
    said = {"gpus": [card(i, nvlinks=links) for i in range(cards)], "p2p": {"nvlink": pairs}}
    assert all(f.path == "NV" for f in facts(said) if isinstance(f, Topo))
    return {f.pairs: f.links for f in facts(said) if isinstance(f, Topo)}


def test_nvlink_joins_two_cards_by_all_their_links_and_among_more_the_number_is_not_told() -> None:
    assert joined(2) == {"0-1": 4, "all": 0}
    assert joined(3) == {"0-1": 0, "0-2": 0, "1-2": 0, "all": 0}


def test_nvlink_that_the_driver_refuses_or_that_is_down_joins_nobody() -> None:
    assert joined(2, status="NS") == {} == joined(2, active=0)
    some = {"gpus": [card(i, nvlinks={"0": {"active": True}}) for i in range(3)], "p2p": {"nvlink": {"0-1": "OK", "0-2": "CNS"}}}
    assert [f.pairs for f in facts(some) if isinstance(f, Topo)] == ["0-1"]


def test_a_card_in_a_guest_says_so() -> None:
    assert [f.kind for f in facts({"gpus": [card(virtualization=1)]}) if isinstance(f, Platform)] == ["vm"]
    assert not [f for f in facts({"gpus": [card(virtualization=0)]}) if isinstance(f, Platform)]


def test_a_lost_card_is_an_event_and_an_error_of_a_pair_is_not() -> None:
    assert events({"gpus": [card()], "errors": {"gpu1": "GPU is lost"}}) == [("gpu_fell_off", "gpu1")]
    assert events({"gpus": [card()], "errors": {"p2p.read.0-1": "GPU is lost", "gpu0.ecc": "Unknown Error"}}) == []


@pytest.mark.parametrize(
    ("why", "kinds"),
    [
        ("Driver/library version mismatch", ["driver_mismatch"]), ("Driver Not Loaded", ["no_cuda_device"]), ("NVML Shared Library Not Found", []),
        ("nvidia-ml-py is not installed (No module named 'pynvml')", []),
    ],
)  # fmt: skip
def test_why_nvml_cannot_be_used_is_an_event_where_it_tells(why: str, kinds: list[str]) -> None:
    assert [kind for kind, _ in events({"error": why})] == kinds


def test_the_same_words_in_another_text_are_not_nvmls() -> None:
    assert not [f for f in read(clean("server.log", json.dumps({"gpus": [card(mig=1)]}))) if isinstance(f, Gpu)]


def test_names_of_the_cards_by_address() -> None:
    said = json.dumps({"gpus": [card(0), card(0x16, name="NVIDIA L40S"), {"index": 3}]})
    assert nvml_json.names(said) == {"0000:01:00.0": "NVIDIA H100 80GB HBM3", "0000:17:00.0": "NVIDIA L40S"}
    assert nvml_json.names("") == {} == nvml_json.names("[1]")


@pytest.mark.parametrize("words", ['{"gpus": [', '"gpus": [1]', '{"gpus": [' + "[" * 100_000])
def test_what_is_no_object_is_a_parse_error(words: str) -> None:
    with pytest.raises(ParseError):
        list(nvml_json.parse(clean("NVML", words), [0]))


_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda s: st.lists(s) | st.dictionaries(st.text(max_size=8), s)
)
_keys = (
    "index",
    "name",
    "pci",
    "bar1_B",
    "memory_B",
    "ecc_uncorrected",
    "nvlinks",
    "fabric",
    "pcie_width",
    "pcie_width_max",
    "mig",
    "display",
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("driver", "cuda", "p2p", "errors", "virtualization"), _anything)),
       st.one_of(_anything, st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(_keys, _anything)))))  # fmt: skip
def test_any_object_gives_facts_or_a_parse_error(said: dict[str, Any], gpus: Any) -> None:
    try:
        found = list(nvml_json.parse(clean("NVML", json.dumps({**said, "gpus": gpus})), [0]))
    except ParseError:
        return
    assert all(isinstance(f.source, Source) for f in found)
