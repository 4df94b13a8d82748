"""What `linkproof topo` prints: the tree with its marks, the matrix, the XML for NCCL."""

from __future__ import annotations

from xml.etree import ElementTree

from evidence.build import Machine
from evidence.drawn import DRAWN, many
from evidence.nccl import gpus_of_xml
from linkproof.collect.pci import read_pci
from linkproof.model import Source, Topo
from linkproof.parse.pci_tree import PciTree, tree
from linkproof.parse.topology import joined
from linkproof.report.say import Teller
from linkproof.report.topo import draw_matrix, draw_tree, matrix_legend, to_xml


def of(m: Machine) -> PciTree:
    raw = read_pci(m)
    return tree(raw.functions, raw.why)


def drawn(m: Machine, modes: dict[str, str] | None = None, lang: str = "en") -> str:
    return "\n".join(draw_tree(of(m), {}, modes or {}, Teller(lang)))


def test_the_tree_shows_the_ports_of_a_switch_with_their_acs() -> None:
    said = drawn(DRAWN["switches-acs-on"]())
    assert "pci0000:10  (NUMA node 0)" in said and "pci0000:a0  (NUMA node 1)" in said
    assert "   ├─ 0000:12:00.0 switch, down [ACS redirects: SrcValid ReqRedir CmpltRedir UpstreamFwd]" in said
    assert "GPU" in said and "NIC" in said


def test_the_tree_of_a_user_says_unknown_on_every_port_and_redirects_on_none() -> None:
    said = drawn(DRAWN["switches-no-root"]())
    assert said.count("[ACS unknown: config: 64 bytes without root]") == 16
    assert "[ACS redirects" not in said


def test_functions_that_lead_to_no_gpu_and_no_network_card_are_not_drawn() -> None:
    said = drawn(DRAWN["acs-away-from-gpus"]())
    assert "0000:00:1c" not in said and "pci0000:00" not in said


def test_a_narrow_link_is_marked_at_the_card_and_not_at_its_slot() -> None:
    lines = [line for line in drawn(DRAWN["x8-of-x16"]()).splitlines() if "[x8 of x16]" in line]
    assert len(lines) == 1 and "0000:02:00.0 GPU" in lines[0]


def test_a_card_of_8_lanes_in_a_slot_of_16_has_no_mark() -> None:
    m = Machine()
    slot = m.port("pci0000:00", "0000:00:02.0", acs=0)
    m.files[f"/sys/bus/pci/devices/{slot}/current_link_width"] = b"8\n"
    m.gpu(slot, "0000:02:00.0", width=8, width_best=8)
    assert " of x" not in drawn(m)


def test_the_mode_of_the_iommu_and_vfio_stand_at_the_gpu() -> None:
    modes = {"0000:01:00.0": "translating", "0000:02:00.0": "passthrough"}
    said = drawn(DRAWN["one-gpu-bound-to-vfio"](), modes).splitlines()
    assert any("0000:01:00.0 GPU [IOMMU translates]" in line for line in said)
    assert any("0000:02:00.0 GPU [IOMMU passthrough] [vfio-pci]" in line for line in said)


def test_a_numa_node_that_the_firmware_does_not_tell_is_said_to_be_untold() -> None:
    assert "(NUMA node not told)" in drawn(DRAWN["one-gpu-in-a-vm"]())


def test_names_of_the_cards_stand_behind_their_addresses() -> None:
    found = of(DRAWN["x8-of-x16"]())
    said = draw_tree(found, {"0000:01:00.0": "NVIDIA H100"}, {}, Teller("en"))
    assert "   └─ 0000:01:00.0 GPU NVIDIA H100" in [line.replace("│  ", "   ") for line in said]


def test_the_tree_in_chinese_draws_the_same_functions() -> None:
    m = DRAWN["switches-acs-on"]()
    assert [line.split()[1] for line in drawn(m).splitlines() if "─" in line] == [
        line.split()[1] for line in drawn(m, lang="zh").splitlines() if "─" in line
    ]


def test_a_host_without_gpus_draws_nothing_of_gpus() -> None:
    assert draw_matrix(PciTree({})) == [""] and draw_tree(PciTree({}), {}, {}, Teller("en")) == []
    assert gpus_of_xml(to_xml(PciTree({}))) == {}


def test_the_matrix_is_symmetric_and_marks_redirected_pairs() -> None:
    rows = [row.split() for row in draw_matrix(of(many(functions=0)))]
    cells = [row[1:17] for row in rows[1:]]
    assert len(cells) == 16
    assert all(cells[i][j] == cells[j][i] for i in range(16) for j in range(16))
    assert {cell for row in cells for cell in row} == {"X", "PIX*", "NODE", "SYS"}


def pair(*facts: Topo) -> tuple[list[str], list[str]]:
    m = Machine()
    for bus in (1, 2):
        m.gpu(m.port("pci0000:00", f"0000:00:0{bus}.0"), f"0000:0{bus}:00.0")
    m.nic(m.port("pci0000:00", "0000:00:03.0"), "0000:03:00.0")
    found = of(m)
    nvlinks = joined(found, facts)
    english, chinese = (matrix_legend(found, nvlinks, Teller(lang)) for lang in ("en", "zh"))
    assert len(english) == len(chinese) and not set(english) & set(chinese)
    return draw_matrix(found, nvlinks), english[1:]


def test_a_pair_that_nvlink_joins_says_so_as_nvidia_smi_does_and_keeps_its_pcie_path() -> None:
    matrix, legend = pair(Topo(source=Source("nvidia-smi topo -m"), path="NV", pairs="0-1", links=18))
    assert matrix == [
        "      GPU0      GPU1      NIC0",
        "GPU0  X         NV18/PHB  PHB",
        "GPU1  NV18/PHB  X         PHB",
    ]
    assert len(legend) == 1 and "NVLinks join the two" in legend[0]


def test_nvlinks_of_an_unknown_number_have_none_and_the_number_of_topo_goes_before_nvmls() -> None:
    nvml = Topo(source=Source("NVML"), path="NV", pairs="0-1")
    matrix, legend = pair(nvml)
    assert matrix[1].split() == ["GPU0", "X", "NV/PHB", "PHB"] and "by how many links was not read" in legend[1]
    assert pair(nvml, Topo(source=Source("nvidia-smi topo -m"), path="NV", pairs="0-1", links=4))[0][1].split()[2] == "NV4/PHB"
    assert pair(nvml, Topo(source=Source("nvidia-smi topo -m"), path="PHB", pairs="0-1"))[0][1].split()[2] == "PHB"


def test_without_nvlink_the_pcie_path_stands_alone_and_what_was_not_read_is_said() -> None:
    matrix, legend = pair(Topo(source=Source("nvidia-smi topo -m"), path="PHB", pairs="0-1"))
    assert matrix[1].split() == ["GPU0", "X", "PHB", "PHB"] and legend == []
    unread, legend = pair()
    assert unread == matrix and legend == ["whether NVLink joins GPUs was not read: these are the PCIe paths"]


def test_a_redirected_pair_with_nvlink_keeps_its_mark() -> None:
    m = Machine()
    _, downs = m.switch(m.port("pci0000:00", "0000:00:01.0"), 1, ports=2, acs=0x1D)
    m.gpu(downs[0], "0000:03:00.0")
    m.gpu(downs[1], "0000:04:00.0")
    found = of(m)
    nvlinks = joined(found, [Topo(source=Source("t"), path="NV", pairs="0-1", links=2)])
    assert [row.split()[1:] for row in draw_matrix(found, nvlinks)[1:]] == [["X", "NV2/PIX*"], ["NV2/PIX*", "X"]]


def test_a_link_in_the_xml_is_as_good_as_the_weaker_of_its_ends() -> None:
    m = Machine()
    m.gpu(m.port("pci0000:00", "0000:00:01.0", width=8, speed="8.0"), "0000:01:00.0")
    m.gpu(m.port("pci0000:00", "0000:00:02.0", speed="2.5"), "0000:02:00.0")
    slow = m.gpu("pci0000:00", "0000:00:05.0")
    del m.files[f"/sys/bus/pci/devices/{slow}/max_link_speed"], m.files[f"/sys/bus/pci/devices/{slow}/max_link_width"]
    links = [(e.get("link_speed"), e.get("link_width")) for e in ElementTree.fromstring(to_xml(of(m))).iter("pci")]
    assert links == [("", "0"), ("8.0 GT/s PCIe", "8"), ("2.5 GT/s PCIe", "16")]


def test_the_xml_has_one_cpu_per_numa_node_and_one_for_all_that_is_not_told() -> None:
    m = Machine()
    for number, bridge in ((0, "00"), (-1, "20"), (1, "40"), (-1, "60")):
        m.numa = number
        m.gpu(m.port(f"pci0000:{bridge}", f"0000:{bridge}:01.0"), f"0000:{bridge[0]}1:00.0")
    numas = [e.get("numaid") for e in ElementTree.fromstring(to_xml(of(m), "GenuineIntel")).iter("cpu")]
    assert numas == ["-1", "0", "1"]


def test_cpu_vendor_and_architecture_are_written_as_given() -> None:
    cpu = ElementTree.fromstring(to_xml(of(DRAWN["amd-mi300x"]()), 'Authentic"AMD', "aarch64")).find("cpu")
    assert cpu is not None and cpu.attrib == {"numaid": "0", "arch": "aarch64", "vendor": 'Authentic"AMD'}
