"""NCCL's own choice per pair: each row of its table, the settings that act and those that only look so, and what is not known."""

from __future__ import annotations

import pytest

from linkproof.model import Fact, PeerAccess, Setting, Source, Topo, Versions
from linkproof.parse.nccl_plan import Plan, default_levels, pair_plans, plan, set_level, version_of
from linkproof.parse.pci_tree import NVIDIA, PciFunction, PciTree
from linkproof.report.say import Teller, catalogue, say
from linkproof.report.topo import draw_nccl, why_words

AMD, INTEL, ZHAOXIN, HYGON, ARM, POWER = "AuthenticAMD", "GenuineIntel", "  Shanghai  ", "HygonGenuine", "ARM", "IBM"
BROADWELL, SKYLAKE = "6/79", "6/85"


def chosen(
    way: str = "PHB",
    cpu: str = AMD,
    version: tuple[int, ...] = (2, 27, 3),
    gpus: int = 2,
    said: str = "OK",
    nvlink: bool | None = False,
    shm: bool = True,
    near_nics: bool = False,
    **settings: str,
) -> Plan:
    return plan(way, cpu, "", version, gpus, said, said, nvlink, settings, shm, near_nics)


def words(made: Plan) -> str:
    return say(made.why.text, made.why.args)


# ---------------------------------------------------------------- the default by version and processor


@pytest.mark.parametrize(
    ("version", "cpu", "model", "gpus", "level"),
    [
        ((2, 6, 4), AMD, "", 8, "SYS"), ((2, 6, 4), INTEL, SKYLAKE, 8, "SYS"), ((2, 6, 4), INTEL, BROADWELL, 8, "PXB"),
        ((2, 6, 4), ZHAOXIN, "", 8, "SYS"), ((2, 6, 4), ARM, "", 8, "PXB"), ((2, 6, 4), POWER, "", 8, "SYS"),
        ((2, 7, 8), AMD, "", 8, "SYS"), ((2, 7, 8), INTEL, SKYLAKE, 8, "PHB"), ((2, 8, 4), INTEL, BROADWELL, 8, "PXB"),
        ((2, 8, 3), ZHAOXIN, "", 8, "SYS"), ((2, 8, 4), ZHAOXIN, "", 8, "PXB"), ((2, 8, 4), POWER, "", 8, "SYS"),
        ((2, 9, 6), AMD, "", 8, "SYS"), ((2, 9, 6), INTEL, SKYLAKE, 2, "PXB"), ((2, 22, 3), AMD, "", 8, "SYS"),
        ((2, 22, 3), ZHAOXIN, "", 2, "PXB"), ((2, 22, 3), ARM, "", 2, "PXB"), ((2, 22, 3), POWER, "", 2, "SYS"),
        ((2, 22, 3), HYGON, "", 8, "SYS"), ((2, 23, 4), AMD, "", 2, "SYS"), ((2, 23, 4), AMD, "", 3, "PXB"),
        ((2, 30, 7), AMD, "", 8, "PXB"), ((2, 23, 4), HYGON, "", 2, "PXB"), ((2, 30, 7), INTEL, "", 2, "PXB"),
        ((2, 30, 7), ZHAOXIN, "", 2, "PXB"), ((2, 30, 7), ARM, "", 2, "PXB"), ((2, 30, 7), POWER, "", 2, "PXB"),
    ],
)  # fmt: skip
def test_each_row_of_the_table(version: tuple[int, ...], cpu: str, model: str, gpus: int, level: str) -> None:
    assert default_levels(version, cpu, model, gpus) == {level}


def test_two_gpus_on_amd_take_p2p_through_the_processor_and_three_do_not() -> None:
    assert chosen("PHB", gpus=2).transport == chosen("SYS", gpus=2).transport == "P2P"
    assert chosen("PHB", gpus=3).transport == "SHM"
    assert words(chosen("PHB", gpus=3)) == "PHB is beyond PXB, the default of NCCL 2.27.3 on AuthenticAMD for 3 GPUs"


def test_eight_gpus_on_amd_took_p2p_until_2_22() -> None:
    assert (chosen("SYS", gpus=8, version=(2, 22, 3)).transport, chosen("SYS", gpus=8, version=(2, 23, 4)).transport) == ("P2P", "SHM")


def test_on_intel_only_pcie_switches_are_near_enough() -> None:
    assert [chosen(way, INTEL).transport for way in ("PIX", "PXB", "PHB", "SYS")] == ["P2P", "P2P", "SHM", "SHM"]


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("value", ["1", "01", "0x1", "1 "])
def test_p2p_disable_acts_as_one(value: str) -> None:
    made = chosen("PIX", NCCL_P2P_DISABLE=value, NCCL_P2P_LEVEL="SYS")
    assert (made.transport, made.level, words(made)) == ("SHM", "LOC", "NCCL_P2P_DISABLE=1 is set")


@pytest.mark.parametrize("value", ["0", "2", "true", "yes", "", "-1", "9" * 5000])
def test_p2p_disable_with_any_other_value_does_nothing(value: str) -> None:
    assert chosen("PIX", NCCL_P2P_DISABLE=value).transport == "P2P"


@pytest.mark.parametrize(
    ("value", "level"),
    [("SYS", "SYS"), ("PHB", "PHB"), ("LOC", "LOC"), ("NVL", "NVL"), ("0", "LOC"), ("1", "PIX"), ("2", "PXB"), ("3", "PHB"), ("4", "SYS"), ("99", "SYS"),
     ("2x", "PXB"), ("0x3", "PHB"), ("pix", ""), ("sys", ""), ("NODE", ""), ("", ""), (" SYS", ""), (" 4", ""), ("-4", ""), ("NET", ""), ("DIS", "")],
)  # fmt: skip
def test_a_level_is_an_exact_word_or_an_old_number(value: str, level: str) -> None:
    assert set_level({"NCCL_P2P_LEVEL": value}, (2, 27, 3)) == level


def test_a_word_that_this_version_does_not_know_yet_is_ignored() -> None:
    assert (set_level({"NCCL_P2P_LEVEL": "C2C"}, (2, 25, 1)), set_level({"NCCL_P2P_LEVEL": "C2C"}, (2, 26, 2))) == ("", "C2C")
    assert (set_level({"NCCL_P2P_LEVEL": "PXN"}, (2, 11, 4)), set_level({"NCCL_P2P_LEVEL": "PXN"}, (2, 12, 7))) == ("", "PXN")


def test_a_level_opens_what_the_default_closes_and_the_other_way_round() -> None:
    assert chosen("SYS", INTEL, gpus=8, NCCL_P2P_LEVEL="SYS").transport == "P2P"
    assert words(chosen("SYS", INTEL, gpus=8, NCCL_P2P_LEVEL="4")) == "SYS is within SYS, which NCCL_P2P_LEVEL sets"
    assert chosen("PXB", INTEL, NCCL_P2P_LEVEL="PIX").transport == "SHM"
    assert chosen("PHB", INTEL, NCCL_P2P_LEVEL="phb").transport == "SHM"  # small letters: as if it were not there


def test_without_shared_memory_only_the_network_is_left() -> None:
    assert chosen("SYS", INTEL, NCCL_SHM_DISABLE="1").transport == "NET"
    assert chosen("SYS", INTEL, NCCL_SHM_DISABLE="2").transport == "SHM"
    assert chosen("PIX", INTEL, NCCL_SHM_DISABLE="1").transport == "P2P"


def test_two_containers_with_their_own_shared_memory_have_neither_p2p_nor_shm() -> None:
    assert chosen("PIX", shm=False).transport == chosen(nvlink=True, shm=False).transport == "NET"


# ---------------------------------------------------------------- the driver, NVLink, network cards


@pytest.mark.parametrize("status", ["CNS", "GNS", "TNS", "NS", "DR"])
def test_a_refusal_of_the_driver_leads_to_shm(status: str) -> None:
    made = chosen("PIX", said=status)
    assert (made.transport, made.why.args["status"]) == ("SHM", status)


def test_a_refusal_of_one_direction_is_enough() -> None:
    assert plan("PIX", INTEL, "", (2, 27, 3), 2, "OK", "CNS", False, {}).transport == "SHM"


def test_the_driver_is_not_asked_beyond_the_level() -> None:
    assert chosen("SYS", INTEL, said="").transport == "SHM"


@pytest.mark.parametrize("status", ["", "U"])
def test_a_driver_that_was_not_read_is_no_consent(status: str) -> None:
    made = chosen("PIX", said=status)
    assert (made.transport, "not read" in words(made)) == ("unknown", True)


def test_ignoring_the_refusal_leaves_it_to_what_the_process_sees() -> None:
    assert chosen("PIX", said="CNS", NCCL_IGNORE_DISABLED_P2P="2").transport == "unknown"
    assert chosen("PIX", said="CNS", NCCL_IGNORE_DISABLED_P2P="1").transport == "SHM"
    assert chosen("PIX", said="OK", NCCL_IGNORE_DISABLED_P2P="2").transport == "P2P"
    assert chosen("PIX", said="CNS", version=(2, 11, 4), NCCL_IGNORE_DISABLED_P2P="2").transport == "SHM"  # not known yet


def test_nvlink_is_p2p_wherever_the_cards_sit_and_on_every_processor() -> None:
    assert {chosen("SYS", cpu, gpus=8, nvlink=True).transport for cpu in (AMD, INTEL, ARM, HYGON, "")} == {"P2P"}
    assert chosen("SYS", nvlink=True, NCCL_P2P_LEVEL="LOC").transport == "SHM"


def test_nvlink_that_the_driver_refuses_stops_nccl() -> None:
    made = chosen("SYS", nvlink=True, said="NS")
    assert (made.transport, "stops with an error" in words(made)) == ("unknown", True)
    assert chosen("SYS", nvlink=True, said="NS", NCCL_IGNORE_DISABLED_P2P="1").transport == "SHM"


def test_nvlink_that_was_not_read_matters_only_where_it_decides() -> None:
    assert chosen("PIX", INTEL, nvlink=None).transport == "P2P"
    assert chosen("SYS", INTEL, nvlink=None).transport == "unknown"


def test_network_cards_beside_both_gpus_may_be_faster_than_the_way_across() -> None:
    assert chosen("SYS", INTEL, near_nics=True).transport == "unknown"
    assert chosen("SYS", INTEL, near_nics=True, NCCL_NET_DISABLE_INTRA="1").transport == "SHM"
    assert chosen("PXB", INTEL, near_nics=True).transport == "P2P"


# ---------------------------------------------------------------- what is not known


@pytest.mark.parametrize("version", [(), (2,), (2, 5, 7), (2, 31, 2), (3, 0, 0)])
def test_a_version_outside_the_table_is_not_guessed(version: tuple[int, ...]) -> None:
    assert (chosen("PIX", version=version).transport, chosen("PIX", version=version).level) == ("unknown", "")


def test_an_unknown_processor_is_unknown_only_where_processors_differ() -> None:
    assert chosen("PHB", "", gpus=2).transport == "unknown"
    assert chosen("PHB", "RiscVendor", gpus=2).transport == "unknown"
    assert chosen("PHB", "", gpus=8).transport == "SHM"  # since 2.23 PXB everywhere
    assert chosen("PIX", "").transport == "P2P"
    assert chosen("PHB", "", gpus=2, NCCL_P2P_LEVEL="SYS").transport == "P2P"


def test_an_unknown_number_of_gpus_or_intel_model_is_unknown_where_it_decides() -> None:
    assert (chosen("PHB", gpus=0).transport, chosen("PHB", INTEL, gpus=0).transport) == ("unknown", "SHM")
    assert (chosen("PHB", INTEL, (2, 7, 8)).transport, chosen("SYS", INTEL, (2, 7, 8)).transport) == ("unknown", "SHM")


def test_a_path_that_has_no_name_is_unknown() -> None:
    assert chosen("NODE").transport == chosen("").transport == "unknown"


@pytest.mark.parametrize(
    ("text", "version"),
    [("2.27.3", (2, 27, 3)), ("2.27.3+cuda12.9", (2, 27, 3)), ("2.8", (2, 8)), ("", ()), ("x", ()), ("2", ()), ("1" * 900, ())],
)
def test_a_version_is_read_or_empty(text: str, version: tuple[int, ...]) -> None:
    assert version_of(text) == version


# ---------------------------------------------------------------- a whole machine

AT = Source("nvidia-smi topo -m")


def machine(gpus: int, vendor: int = NVIDIA) -> PciTree:
    """Each GPU below its own root port of one host bridge: PHB."""
    found = [
        PciFunction(f"0000:0{i}:00.0", "pci0000:00", (f"0000:00:0{i}.0",), 0x030200, vendor, 1, driver="nvidia", numa=0)
        for i in range(1, gpus + 1)
    ]
    ports = [PciFunction(f"0000:00:0{i}.0", "pci0000:00", (), 0x060400, 0x1022, 1) for i in range(1, gpus + 1)]
    return PciTree({f.bdf: f for f in (*found, *ports)})


def facts(*more: Fact) -> list[Fact]:
    said = [PeerAccess(source=Source(f"nvidia-smi topo -p2p {word}"), claimed="all", status="OK") for word in ("r", "w")]
    paths = [Topo(source=AT, path="PHB", pairs=f"{a}-{b}") for a in range(8) for b in range(a + 1, 8)]
    return [Versions(source=AT, nccl="2.27.3"), *more, *said, *paths]


def test_eight_on_amd_get_shm_together_and_two_of_them_p2p() -> None:
    plans = pair_plans(machine(8), facts(), AMD)
    assert (len(plans), {p.plan.transport for p in plans}, {p.two.transport if p.two else "" for p in plans}) == (28, {"SHM"}, {"P2P"})
    said = draw_nccl(machine(8), plans, Teller("en"))
    assert len(said) == 2
    assert "all 28 pairs: SHM: together: PHB is beyond PXB" in said[1] and "two ranks alone: P2P, PHB is within SYS" in said[1]


def test_two_on_amd_have_one_plan() -> None:
    plans = pair_plans(machine(2), facts(), AMD)
    assert [(p.plan.transport, p.two) for p in plans] == [("P2P", None)]
    assert draw_nccl(machine(2), plans, Teller("zh"))[1].startswith("  GPU 0-1：P2P：PHB 在 SYS 之内")


def test_pairs_with_nvlink_stand_in_a_line_of_their_own() -> None:
    joined = [Topo(source=AT, path="NV", pairs="0-1"), Topo(source=AT, path="NV", pairs="2-3")]
    said = draw_nccl(machine(4), pair_plans(machine(4), facts(*joined), INTEL), Teller("en"))
    assert said[1:] == [
        "  GPU 0-1, 2-3: P2P: NVLink joins the two",
        "  GPU 0-2, 0-3, 1-2, 1-3: SHM: PHB is beyond PXB, the default of NCCL 2.27.3 on GenuineIntel",
    ]


def test_a_pair_that_the_driver_refuses_in_one_direction_is_told_apart() -> None:
    refused = PeerAccess(source=Source("nvidia-smi topo -p2p w"), claimed="none", status="CNS", pairs="0-1")
    assert [p.plan.transport for p in pair_plans(machine(2), facts(refused), AMD)] == ["SHM"]


def test_the_environment_of_the_process_goes_before_the_file() -> None:
    own = Setting(source=Source("environment"), name="p2p", effect="present", key="NCCL_P2P_LEVEL", value="SYS")
    file = Setting(source=Source("/etc/nccl.conf"), name="p2p", effect="present", key="NCCL_P2P_LEVEL", value="LOC")
    assert {p.plan.level for p in pair_plans(machine(4), facts(own, file), AMD)} == {"SYS"}


def test_without_any_fact_nothing_is_said_to_be_chosen() -> None:
    assert {p.plan.transport for p in pair_plans(machine(3), [], "")} == {"unknown"}
    assert draw_nccl(machine(1), pair_plans(machine(1), [], ""), Teller("en")) == []


def test_a_card_that_a_guest_has_is_not_counted_by_the_driver() -> None:
    tree = machine(3)
    tree.functions["0000:01:00.0"].driver = "vfio-pci"
    joined = Topo(source=AT, path="NV", pairs="0-1")
    assert [p.plan.transport for p in pair_plans(tree, facts(joined), INTEL)] == ["unknown", "unknown", "P2P"]
    assert [p.plan.transport for p in pair_plans(tree, facts(), AMD)] == ["unknown", "unknown", "P2P"]  # two are left, not three


def test_for_gpus_of_amd_rccl_decides() -> None:
    plans = pair_plans(machine(2, vendor=0x1002), facts(), AMD)
    assert [why_words(p, Teller("en")) for p in plans] == ["RCCL decides for these GPUs, not NCCL"]


def test_every_reason_has_its_chinese_sentence() -> None:
    made = [
        chosen(),
        chosen(gpus=3),
        chosen("PHB", INTEL),
        chosen("PIX", ""),
        chosen("SYS", "", gpus=8),
        chosen(said=""),
        chosen(said="NS"),
    ]
    assert not [m.why.text for m in made if m.why.text not in catalogue()]
