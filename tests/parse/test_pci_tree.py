"""Raw functions to the tree: places, kinds, ACS control words, links, what counts as a GPU."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence.build import AMD, DOWN, INTEL, NVIDIA, Machine, config
from evidence.drawn import DRAWN
from linkproof.collect.pci import RawFunction, read_pci
from linkproof.parse.pci_tree import PciFunction, PciTree, tree
from linkproof.parse.topology import pairs
from linkproof.report.topo import draw_matrix, to_xml


def of(m: Machine) -> PciTree:
    raw = read_pci(m)
    return tree(raw.functions, raw.why)


def one(cls: int = 0x030200, vendor: int = NVIDIA, **texts: str) -> PciFunction:
    m = Machine()
    m.function("pci0000:00", "0000:00:05.0", cls, vendor, 0x2330, config(vendor, 0x2330, cls), **texts)
    return of(m).functions["0000:00:05.0"]


@pytest.mark.parametrize(
    ("cls", "vendor", "gpu"),
    [
        (0x030000, NVIDIA, True), (0x030200, NVIDIA, True), (0x038000, AMD, True), (0x120000, AMD, True), (0x030000, AMD, True),
        (0x068000, NVIDIA, False), (0x040300, NVIDIA, False), (0x060400, NVIDIA, False), (0x030000, 0x1A03, False), (0x030000, 0x102B, False),
        (0x038000, INTEL, False), (0x120000, 0x1DA3, False),
    ],
)  # fmt: skip
def test_a_gpu_is_a_display_or_accelerator_of_nvidia_or_amd(cls: int, vendor: int, gpu: bool) -> None:
    assert one(cls, vendor).is_gpu is gpu


def test_ethernet_and_infiniband_are_network_cards_and_wifi_is_none() -> None:
    assert [one(cls, 0x15B3).is_nic for cls in (0x020000, 0x020700, 0x028000)] == [True, True, False]


def test_a_function_lent_to_a_guest_is_neither_gpu_nor_network_card() -> None:
    m = Machine()
    port = m.port("pci0000:00", "0000:00:01.0")
    card = m.nic(port, "0000:01:00.0")
    m.nic(port, "0000:01:00.1")
    m.links["/sys/bus/pci/devices/0000:01:00.1/physfn"] = f"/sys/devices/{m.places[card]}"
    found = of(m)
    assert [n.bdf for n in found.nics] == [card] and found.functions["0000:01:00.1"].vf_of == card


def test_gpus_of_two_makers_do_not_work_together_and_the_larger_group_counts() -> None:
    m = Machine()
    for n, vendor in enumerate((NVIDIA, AMD, AMD)):
        m.gpu("pci0000:00", f"0000:00:0{n + 1}.0", vendor=vendor)
    assert {g.vendor for g in of(m).gpus} == {AMD}
    m.gpu("pci0000:00", "0000:00:04.0")
    assert {g.vendor for g in of(m).gpus} == {NVIDIA}


def test_an_amd_card_without_a_security_processor_beside_it_is_a_gpu() -> None:
    m = Machine()
    port = m.port("pci0000:00", "0000:00:01.1")
    m.gpu(port, "0000:01:00.0", vendor=AMD, device=0x744C, cls=0x030000)
    m.other(port, "0000:01:00.1", 0x040300, AMD, 0xAB30)
    m.other(port, "0000:01:00.2", 0x0C0330, AMD, 0x7446)
    assert [g.bdf for g in of(m).gpus] == ["0000:01:00.0"]


def test_words_of_the_kernel_in_upper_case_hex_are_read() -> None:
    m = Machine()
    m.function("pci0000:00", "0000:00:05.0", 0x030200, NVIDIA, 0x2330, b"")
    for name, text in (("class", "0X030200"), ("vendor", "0X10DE"), ("device", "0x20B0")):
        m.files[f"/sys/bus/pci/devices/0000:00:05.0/{name}"] = text.encode()
    found = of(m).functions["0000:00:05.0"]
    assert (found.is_gpu, found.device) == (True, 0x20B0)


@pytest.mark.parametrize(("text", "speed"), [("32.0 GT/s PCIe", 32.0), ("2.5 GT/s", 2.5), ("16 GT/s", 16.0), ("Unknown", None), ("", None)])
def test_a_link_speed_is_a_number_or_not_known(text: str, speed: float | None) -> None:
    assert one(current_link_speed=text).speed_GTps == speed


@pytest.mark.parametrize(
    ("text", "width"), [("16", 16), ("0", None), ("63", None), ("255", None), ("", None), ("x16", None), ("9" * 400, None)]
)
def test_a_link_width_is_a_number_of_lanes_or_not_known(text: str, width: int | None) -> None:
    assert one(current_link_width=text).width == width


@pytest.mark.parametrize(("text", "numa"), [("0", 0), ("1", 1), ("-1", None), ("", None), ("none", None)])
def test_numa_node_minus_one_is_not_node_zero(text: str, numa: int | None) -> None:
    assert one(numa_node=text).numa == numa


def test_bars_are_sizes_and_unassigned_ones_are_zero() -> None:
    lines = ["0x00000000c0000000 0x00000000c0ffffff 0x40200", "0x0000004000000000 0x0000005fffffffff 0x14220c", "0x0 0x0 0x0", "junk", ""]
    assert one(resource="\n".join(lines)).bars_B == (16 << 20, 128 << 30, 0, 0, 0)[: len(one(resource="\n".join(lines)).bars_B)]
    assert one(resource="\n".join(lines)).bars_B[:3] == (16 << 20, 128 << 30, 0)


def test_error_counters_are_the_totals() -> None:
    words = "BadTLP 3\nRxErr 4\nTOTAL_ERR_COR 7"
    assert one(aer_dev_correctable=words, aer_dev_fatal="TOTAL_ERR_FATAL 0").aer == {"correctable": 7, "fatal": 0}


def test_the_control_word_of_a_port_is_read_and_srcvalid_alone_redirects_nothing() -> None:
    m = Machine()
    words = {"0000:00:01.0": 0x1D, "0000:00:02.0": 0x01, "0000:00:03.0": 0x20, "0000:00:04.0": 0x00}
    for bdf, word in words.items():
        m.port("pci0000:00", bdf, acs=word)
    found = of(m).functions
    assert {bdf: found[bdf].acs for bdf in words} == words
    assert [found[bdf].redirects for bdf in words] == [True, False, True, False]


def test_acs_that_cannot_be_read_is_unknown_with_the_reason() -> None:
    m = Machine()
    bases = [f"/sys/bus/pci/devices/{m.port('pci0000:00', f'0000:00:0{n}.0', acs=0x1D)}/config" for n in range(1, 7)]
    m.files[bases[0]] = m.files[bases[0]][:64]
    m.files[bases[1]] = m.files[bases[1]][:256]
    m.files[bases[2]] = b"\xff" * 4096
    m.files[bases[3]] = config(INTEL, 0x352A, 0x060400, DOWN)
    m.files[bases[4]] = config(INTEL, 0xA110, 0x060400, DOWN, acs=0x1D)
    del m.files[bases[5]]
    found = [f for f in of(m).functions.values() if f.is_bridge]
    assert [f.acs for f in found] == [None] * 6
    assert [f.acs_why for f in found] == [
        "config: 64 bytes without root",
        "no extended configuration space",
        "no device answers",
        "no ACS capability",
        "this chipset keeps its ACS registers in its own way",
        "absent",
    ]


def test_without_root_the_kind_of_a_port_follows_from_its_place() -> None:
    kinds = {f.bdf: f.kind for f in of(DRAWN["switches-acs-on"]()).functions.values() if f.is_bridge}
    assert kinds == {f.bdf: f.kind for f in of(DRAWN["switches-no-root"]()).functions.values() if f.is_bridge}
    assert set(kinds.values()) == {"root_port", "upstream_port", "downstream_port"}


def test_a_card_that_cannot_be_read_whole_is_an_endpoint_if_it_has_a_link() -> None:
    kinds = {f.kind for f in of(DRAWN["switches-no-root"]()).functions.values() if not f.is_bridge}
    assert kinds == {"endpoint"} and one(0x020000, 0x8086).kind == ""


def test_a_port_that_was_not_listed_is_in_the_tree_and_nothing_is_known_of_it() -> None:
    m = DRAWN["switches-acs-on"]()
    m.folders["/sys/bus/pci/devices"].remove("0000:12:00.0")
    found = of(m)
    port = found.functions["0000:12:00.0"]
    assert (port.is_bridge, port.acs, port.acs_why) == (True, None, "not listed")
    near = next(p for p in pairs(found) if p.b == "0000:14:00.0")
    assert (near.smi, near.turning) == ("PIX", ("0000:12:00.0", "0000:12:01.0"))


def test_names_that_are_no_addresses_are_not_functions() -> None:
    m = Machine()
    m.folders["/sys/bus/pci/devices"] = ["../../etc", "\x1b[2J", "0000:00:05.0 ", "0000:00:05.8"]
    assert of(m).functions == {}


def test_no_listing_says_why() -> None:
    m = Machine()
    del m.folders["/sys/bus/pci/devices"]
    assert of(m) == PciTree({}, "absent")


def test_a_narrow_link_is_judged_against_what_both_ends_can() -> None:
    m = Machine()
    m.gpu(m.port("pci0000:00", "0000:00:01.0", width=8), "0000:01:00.0", width=8)
    m.gpu(m.port("pci0000:00", "0000:00:02.0"), "0000:02:00.0", width=4)
    found = of(m)
    assert [found.narrowed(g) for g in found.gpus] == [None, (4, 16)]
    assert found.narrowed(found.functions["0000:00:02.0"]) is None


_texts = st.dictionaries(
    st.sampled_from(["vendor", "numa_node", "resource", "current_link_width", "aer_dev_fatal", "max_link_speed"]), st.text()
)
_bdfs = st.sampled_from(["0000:00:01.0", "0000:01:00.0", "0000:02:00.0", "10000:e1:00.0", "x"])
_paths = st.lists(st.one_of(_bdfs, st.sampled_from(["pci0000:00", "pci10000:e0", "", ".."])), max_size=8).map("/".join)


@given(
    st.lists(
        st.builds(
            RawFunction, bdf=_bdfs, path=_paths, cls=st.sampled_from(["0x060400", "0x030200", "0x020700", "", "zz"]), texts=_texts,
            config=st.binary(max_size=600), driver=st.just(""), iommu_group=st.just(""),
        ),
        max_size=6,
    )
)  # fmt: skip
def test_whatever_a_capture_says_gives_a_tree_that_can_be_drawn(functions: list[RawFunction]) -> None:
    for f in functions[::2]:
        f.texts["vendor"] = "0x10de"
    found = tree(functions)
    assert {p.a for p in pairs(found)} <= set(found.functions)
    assert len(draw_matrix(found)) == 1 + len(found.gpus)
    assert to_xml(found).count("<pci ") >= len(found.gpus) + len(found.nics)
