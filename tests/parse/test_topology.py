"""Paths: classes as nvidia-smi and as NCCL name them, and the ports whose ACS bits decide."""

from __future__ import annotations

import pytest

from evidence.build import ROOT, Machine
from evidence.drawn import DRAWN, many
from evidence.nccl import Nest, gpus_of_xml, nccl_class, nestings
from linkproof.collect.pci import read_pci
from linkproof.parse.pci_tree import PciTree, tree
from linkproof.parse.topology import Path, pairs, path, switch_ports
from linkproof.report.topo import to_xml


def of(m: Machine) -> PciTree:
    raw = read_pci(m)
    return tree(raw.functions, raw.why)


def only(m: Machine) -> Path:
    (found,) = pairs(of(m))
    return found


def drawn_from(nest: Nest) -> Machine:
    """A machine with that nesting: each switch of the file is an upstream port, with a port of its own for each thing below it."""
    m, made, ports = Machine(root=False), dict[tuple[str, ...], str](), 0
    for gpu, (numa, above) in nest.items():
        m.numa = int(numa)
        parent = f"pci0000:{int(numa):02x}"
        for depth in range(len(above) + 1):
            ports += 1
            door = m.port(parent, f"00ff:{ports // 32 % 256:02x}:{ports % 32:02x}.0", ROOT)
            if depth < len(above):
                key = above[: depth + 1]
                if key not in made:
                    made[key] = m.port(door, above[depth], ROOT)
                parent = made[key]
            else:
                m.gpu(door, gpu)
    return m


@pytest.mark.parametrize("name", nestings())
def test_the_classes_are_those_of_the_nesting_that_nccl_reads(name: str) -> None:
    nest = nestings()[name]
    found = of(drawn_from(nest))
    assert len(found.gpus) == len(nest)
    assert {(p.a, p.b): p.nccl for p in pairs(found)} == {
        (a, b): nccl_class(nest[a], nest[b]) for i, a in enumerate(sorted(nest)) for b in sorted(nest)[i + 1 :]
    }


@pytest.mark.parametrize("name", nestings())
def test_what_to_xml_writes_means_the_same_classes_to_nccl(name: str) -> None:
    found = of(drawn_from(nestings()[name]))
    again = gpus_of_xml(to_xml(found))
    assert {(p.a, p.b): p.nccl for p in pairs(found)} == {(p.a, p.b): nccl_class(again[p.a], again[p.b]) for p in pairs(found)}


def test_the_published_files_hold_every_class() -> None:
    assert len(nestings()) >= 35
    seen = {nccl_class(a, b) for nest in nestings().values() for a in nest.values() for b in nest.values() if a is not b}
    assert seen == {"PIX", "PXB", "PHB", "SYS"}


def test_two_gpus_below_one_switch_are_pix_and_its_two_ports_decide() -> None:
    m = Machine()
    _, downs = m.switch(m.port("pci0000:00", "0000:00:01.0"), 1, ports=2)
    m.gpu(downs[0], "0000:03:00.0")
    m.gpu(downs[1], "0000:04:00.0")
    assert only(m) == Path("0000:03:00.0", "0000:04:00.0", "PIX", "PIX", tuple(downs), tuple(downs), "0000:01:00.0")


def test_a_switch_below_a_switch_is_pxb_and_the_ports_below_the_common_one_decide() -> None:
    found = {(p.a[5:7], p.b[5:7]): p for p in pairs(of(DRAWN["cascaded-switches"]()))}
    far = found["43", "47"]
    assert (far.smi, far.nccl, far.common) == ("PXB", "PXB", "0000:41:00.0")
    assert far.turning == ("0000:42:00.0", "0000:42:02.0")
    assert far.ports == ("0000:42:00.0", "0000:42:02.0", "0000:45:00.0", "0000:46:00.0")
    assert (found["47", "48"].smi, found["47", "48"].turning) == ("PIX", ("0000:46:00.0", "0000:46:01.0"))


def test_two_root_ports_of_one_host_bridge_are_phb_and_no_port_turns_traffic_round() -> None:
    p = only(DRAWN["two-cards-amd-root-complex"]())
    assert (p.smi, p.nccl, p.turning, p.common) == ("PHB", "PHB", (), "pci0000:00")
    assert p.ports == ("0000:00:01.1", "0000:00:03.1")


@pytest.mark.parametrize(("numa", "smi", "nccl"), [((0, 0), "NODE", "PHB"), ((0, 1), "SYS", "SYS"), ((-1, -1), "NODE", "PHB")])
def test_two_host_bridges_are_told_apart_by_numa_node(numa: tuple[int, int], smi: str, nccl: str) -> None:
    m = Machine()
    for number, bridge in zip(numa, ("00", "40"), strict=True):
        m.numa = number
        m.gpu(m.port(f"pci0000:{bridge}", f"0000:{bridge}:01.0"), f"0000:{bridge[0]}1:00.0")
    p = only(m)
    assert (p.smi, p.nccl, p.common) == (smi, nccl, "")


def test_one_bus_number_in_two_domains_is_not_one_host_bridge() -> None:
    m = Machine()
    for number, domain in enumerate(("0001", "0002")):
        m.numa = number
        m.gpu(f"pci{domain}:00", f"{domain}:00:00.0")
    assert only(m).smi == "SYS"


def test_flat_guests_are_phb() -> None:
    m = Machine()
    m.numa = -1
    m.gpu("pci0000:00", "0000:00:05.0")
    m.gpu("pci0000:00", "0000:00:06.0")
    assert (only(m).smi, only(m).nccl, only(m).ports) == ("PHB", "PHB", ())


def test_gpus_behind_one_conventional_bridge_are_pix_to_nvidia_smi_and_phb_to_nccl() -> None:
    m = Machine()
    bridge = m.other("pci0000:00", "0000:00:05.0", 0x060400)
    m.gpu(bridge, "0000:01:01.0")
    m.gpu(bridge, "0000:01:02.0")
    assert (only(m).smi, only(m).nccl, only(m).turning) == ("PIX", "PHB", ())


def test_two_functions_of_one_card_share_all_their_ports() -> None:
    m = Machine()
    _, downs = m.switch(m.port("pci0000:00", "0000:00:01.0"), 1, ports=1)
    m.gpu(downs[0], "0000:03:00.0")
    m.gpu(downs[0], "0000:03:00.1")
    p = only(m)
    assert (p.smi, p.nccl, p.ports, p.turning, p.common) == ("PIX", "PIX", (), (), downs[0])


def test_vmd_ports_of_a_five_digit_domain_have_a_host_bridge_of_their_own() -> None:
    m = Machine()
    vmd = m.other("pci0000:00", "0000:00:0e.0", 0x010400)
    m.places["pci10000:e0"] = f"{m.places[vmd]}/pci10000:e0"
    m.gpu(m.port("pci10000:e0", "10000:e0:01.0"), "10000:e1:00.0")
    m.gpu(m.port("pci10000:e0", "10000:e0:02.0"), "10000:e2:00.0")
    p = only(m)
    assert (p.smi, p.common, p.ports) == ("PHB", "pci10000:e0", ("10000:e0:01.0", "10000:e0:02.0"))


def test_nccl_counts_switches_and_not_root_ports() -> None:
    found = of(DRAWN["cascaded-switches"]())
    assert switch_ports(found.functions["0000:47:00.0"]) == ("0000:41:00.0", "0000:45:00.0")
    assert switch_ports(of(DRAWN["x8-of-x16"]()).functions["0000:01:00.0"]) == ()


def test_a_path_read_backwards_is_the_same_path() -> None:
    found = of(many(functions=0))
    for p in pairs(found):
        back = path(found.functions[p.b], found.functions[p.a])
        assert (back.smi, back.nccl, back.common) == (p.smi, p.nccl, p.common)
        assert back.ports == p.ports[::-1] and back.turning == p.turning[::-1]
