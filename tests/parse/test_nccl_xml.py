from hypothesis import given, settings
from hypothesis import strategies as st

from linkproof.model import Event, Fact, Gpu, Host, Topo
from linkproof.parse import read
from linkproof.parse.clean import clean


def card(dev: int, bus: str, link: str, inner: str = "") -> str:
    return (
        f'<pci busid="0000:{bus}:00.0" class="0x030200" vendor="0x10de" device="0x20f5" {link}>\n'
        f'<gpu dev="{dev}" sm="80" rank="{dev}" gdr="1">\n{inner}</gpu>\n</pci>\n'
    )


CPU = '<system version="1">\n<cpu numaid="{}" affinity="ff" arch="x86_64" vendor="{}" familyid="6" modelid="134">\n'
NONE, FULL = 'link_speed="" link_width="0"', 'link_speed="16.0 GT/s PCIe" link_width="16"'
GUEST = CPU.format("-1", "GenuineIntel") + card(0, "09", NONE) + card(1, "0a", NONE) + "</cpu>\n</system>\n"
BRIDGE = '<pci busid="0000:40:00.0" class="0x060400" vendor="0x1000" device="0xc010" link_speed="16.0 GT/s PCIe" link_width="16">\n'
TREE = CPU.format("0", "AuthenticAMD") + BRIDGE + card(0, "41", FULL) + card(1, "42", FULL) + "</pci>\n</cpu>\n</system>\n"


def facts(words: str) -> list[Fact]:
    return read(clean("topo.xml", words))


def events(words: str) -> dict[str, str]:
    return {f.kind: f.value for f in facts(words) if isinstance(f, Event)}


def test_cards_directly_at_the_cpu_without_a_link_are_flat() -> None:
    assert events(GUEST) == {"nccl_topo_flat": "numaid=-1"}
    assert [f.count for f in facts(GUEST) if isinstance(f, Gpu)] == [2]
    assert [f.value for f in facts(GUEST) if isinstance(f, Host)] == ["GenuineIntel"]


def test_a_guest_that_knows_its_nodes_is_flat_all_the_same() -> None:
    assert events(GUEST.replace('numaid="-1"', 'numaid="0"').replace('link_width="0"', 'link_width=""')) == {"nccl_topo_flat": ""}


def test_cards_behind_a_bridge_are_a_tree() -> None:
    assert events(TREE) == {"nccl_topo_tree": ""}


def test_cards_at_the_cpu_with_a_link_are_neither() -> None:
    assert events(CPU.format("-1", "AuthenticAMD") + card(0, "41", FULL) + "</cpu>") == {}


def test_a_cut_file_is_read_as_far_as_it_goes() -> None:
    assert events("\n".join(GUEST.splitlines()[:4])) == {"nccl_topo_flat": "numaid=-1"}
    assert events("\n".join(GUEST.splitlines()[3:])) == {}  # the first card and its CPU are cut away


def test_a_file_in_one_line_is_read_too() -> None:
    assert events(TREE.replace("\n", "")) == {"nccl_topo_tree": ""}


def test_links_between_cards_are_told_and_those_over_a_switch_reach_all() -> None:
    bridge = card(0, "41", FULL, '<nvlink target="0000:42:00.0" count="4" tclass="0x030200"/>\n')
    switch = card(0, "41", FULL, '<nvlink target="0000:c1:00.0" count="18" tclass="0x068000"/>\n')
    itself = card(0, "41", FULL, '<nvlink target="0000:41:00.0" count="12" tclass="0x030200"/>\n')
    xgmi = card(0, "41", FULL, '<xgmi target="0000:42:00.0" count="1" tclass="0x038000"/>\n')
    paths = [[(f.path, f.pairs) for f in facts(CPU.format("0", "x") + t) if isinstance(f, Topo)] for t in (bridge, switch, itself, xgmi)]
    assert paths == [[("NV", "some")], [("NV", "all")], [], [("XGMI", "some")]]


def test_a_graph_tells_its_farthest_step_and_no_cards() -> None:
    graph = '<graphs version="1">\n<graph id="0" pattern="4" crossnic="0" nchannels="2" typeintra="{}" typeinter="PIX" samechannels="0">\n'
    words = graph.format("SYS") + '<channel>\n<gpu dev="0"/>\n<gpu dev="1"/>\n</channel>\n</graph>\n</graphs>'
    assert [(f.path, f.pairs) for f in facts(words) if isinstance(f, Topo)] == [("SYS", "some")]
    assert not [f for f in facts(words) if isinstance(f, Gpu)]
    assert [f.path for f in facts(graph.format("NVL")) if isinstance(f, Topo)] == ["NV"]
    assert not [f for f in facts(graph.format("LOC")) if isinstance(f, Topo)]


def test_other_xml_is_not_ours() -> None:
    assert not [f for f in facts('<domain><cpu mode="host"/></domain><pci ') if isinstance(f, (Gpu, Host, Event))]


@given(st.text(alphabet='<>/=" cpugi0123456789abdnlkwth_-\n', max_size=500))
@settings(max_examples=60, deadline=None)
def test_no_text_is_refused(words: str) -> None:
    assert isinstance(facts('<cpu numaid="0">\n<pci busid="x">' + words), list)
