from __future__ import annotations

from machine_texts import of

from linkproof.model import Gpu, PeerAccess, Topo

SHOWTOPO = """\
=========================== Weight between two GPUs ============================
       GPU0         GPU1
GPU0   0            15
GPU1   15           0

========================== Link Type between two GPUs ==========================
       GPU0         GPU1
GPU0   0            {0}
GPU1   {0}         0

================================== Numa Nodes ==================================
GPU[0]\t\t: (Topology) Numa Node: 0
"""
TOPOLOGY = """\
ACCESS TABLE:
             0000:03:00.0 0000:0c:00.0
0000:03:00.0 ENABLED      {0}
0000:0c:00.0 {0}     ENABLED
LINK TYPE TABLE:
             0000:03:00.0 0000:0c:00.0
0000:03:00.0 SELF         PCIE
0000:0c:00.0 PCIE         SELF
"""


def paths(words: str) -> dict[str, str]:
    return {fact.pairs: fact.path for fact in of(Topo, words)}


def test_the_link_type_table_tells_xgmi_from_pcie() -> None:
    assert paths(SHOWTOPO.format("XGMI")) == {"0-1": "XGMI", "all": "XGMI"}
    assert paths(SHOWTOPO.format("PCIE")) == {"0-1": "PCIE", "all": "PCIE"}


def test_an_unknown_link_type_is_no_path() -> None:
    assert not paths(SHOWTOPO.format("????"))


def test_weights_speak_only_where_no_link_type_was_printed() -> None:
    only_weights = SHOWTOPO.split("========================== Link Type")[0]
    assert paths(only_weights) == {"0-1": "XGMI", "all": "XGMI"}


def test_amd_smi_names_cards_by_bus_address_and_says_who_may_reach_whom() -> None:
    words = TOPOLOGY.format("DISABLED")
    assert paths(words) == {"0000:03:00.0-0000:0c:00.0": "PCIE", "all": "PCIE"}
    assert [fact.claimed for fact in of(PeerAccess, words)] == ["none"]
    assert [fact.claimed for fact in of(PeerAccess, TOPOLOGY.format("ENABLED"))] == ["all"]


def test_some_pairs_refused_are_named() -> None:
    words = "Link accessibility between two GPUs\n       GPU0  GPU1  GPU2\nGPU0   True  True  False\nGPU1   True  True  True\nGPU2   False  True  True"
    assert {(fact.claimed, fact.pairs) for fact in of(PeerAccess, words)} == {
        ("some", "all"),
        ("all", "0-1"),
        ("none", "0-2"),
        ("all", "1-2"),
    }


ROCMINFO = """\
  Name:                    AMD EPYC 7402 24-Core Processor
  Marketing Name:          AMD EPYC 7402 24-Core Processor
  Name:                    gfx1100
  Marketing Name:          Radeon RX 7900 XTX
  Name:                    gfx1100
  Marketing Name:          Radeon RX 7900 XTX
"""


def test_rocminfo_lists_cards_and_not_processors() -> None:
    assert [(fact.name, fact.count) for fact in of(Gpu, ROCMINFO) if not fact.fact] == [("Radeon RX 7900 XTX", 2)]


def test_an_integrated_gpu_beside_a_card_is_visible() -> None:
    words = ROCMINFO + "  Name:                    gfx1036\n  Marketing Name:          AMD Radeon Graphics\n"
    assert {(fact.fact, fact.value) for fact in of(Gpu, words) if fact.fact} == {
        ("integrated_visible", "gfx1036"),
        ("mixed_models", "gfx1100 + gfx1036"),
    }


def test_an_integrated_gpu_alone_is_the_card_one_has() -> None:
    assert not [
        fact for fact in of(Gpu, "  Name:                    gfx1036\n  Marketing Name:          AMD Radeon Graphics\n") if fact.fact
    ]
