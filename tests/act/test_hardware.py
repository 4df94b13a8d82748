"""The hardware key: what changes it, what does not, and the words for each change."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from evidence.build import AMD, Machine
from evidence.drawn import DRAWN
from linkproof.act.hardware import NAMED_MAX, changed, hardware_key, hardware_parts, identity, key
from linkproof.collect.pci import read_pci
from linkproof.parse.pci_tree import PciTree, tree
from linkproof.report.say import say

DOWN, GPU, NIC, ROOT = "0000:12:00.0", "0000:13:00.0", "0000:15:00.0", "0000:10:01.0"
PLACE = "pci0000:10/0000:10:01.0/0000:11:00.0"


def of(m: Machine) -> PciTree:
    raw = read_pci(m)
    return tree(raw.functions, raw.why)


def box() -> Machine:
    return DRAWN["switches-acs-on"]()


def words(saved: dict[str, str], now: PciTree) -> list[str]:
    return [say(s.text, s.args) for s in changed(saved, now)]


def without(m: Machine, bdf: str) -> Machine:
    m.folders["/sys/bus/pci/devices"].remove(bdf)
    return m


def set_file(m: Machine, bdf: str, name: str, text: str) -> Machine:
    m.files[f"/sys/bus/pci/devices/{bdf}/{name}"] = text.encode()
    return m


def test_the_parts_are_gpus_the_ports_between_them_and_near_network_cards() -> None:
    parts = hardware_parts(of(box()))
    assert [sum(name.startswith(kind) for name in parts) for kind in ("GPU", "port", "NIC")] == [8, 4 * (1 + 1 + 3), 4]
    assert parts[f"GPU {GPU}"] == f"10de:2330 {PLACE}/{DOWN}/{GPU}"
    assert parts[f"port {ROOT}"] == f"8086:352a pci0000:10/{ROOT}"


def test_what_stands_elsewhere_is_no_part() -> None:
    names = " ".join(hardware_parts(of(DRAWN["acs-away-from-gpus"]())))
    assert "0000:19:00.0" in names and "0000:00:1c" not in names


# ---------------------------------------------------------------- stays


def test_root_and_an_ordinary_user_see_the_same_key() -> None:
    assert hardware_key(of(box())) == hardware_key(of(DRAWN["switches-no-root"]())) != ""


def test_driver_acs_iommu_links_and_numa_are_not_in_the_key() -> None:
    before, m = of(box()), box()
    m.links[f"/sys/bus/pci/devices/{GPU}/driver"] = "/sys/bus/pci/drivers/vfio-pci"
    m.links[f"/sys/bus/pci/devices/{GPU}/iommu_group"] = "/sys/kernel/iommu_groups/77"
    for name, text in (("current_link_width", "8"), ("current_link_speed", "2.5 GT/s PCIe"), ("numa_node", "-1"), ("sriov_numvfs", "4")):
        set_file(m, GPU, name, text)
    config = m.files[f"/sys/bus/pci/devices/{DOWN}/config"]
    m.files[f"/sys/bus/pci/devices/{DOWN}/config"] = config[:0x156] + b"\0\0" + config[0x158:]
    now = of(m)
    assert now.functions[DOWN].acs == 0 and now.functions[GPU].driver == "vfio-pci"
    assert hardware_key(now) == hardware_key(before) and changed(hardware_parts(before), now) == ()


def test_the_order_in_which_the_kernel_lists_them_does_not_matter() -> None:
    found = of(box())
    turned = PciTree(dict(reversed(found.functions.items())))
    assert hardware_key(turned) == hardware_key(found)


def test_functions_lent_to_guests_do_not_change_the_key() -> None:
    m = box()
    m.nic(DOWN.replace("00.0", "02.0"), "0000:15:00.1")
    m.links["/sys/bus/pci/devices/0000:15:00.1/physfn"] = f"/sys/devices/{m.places[NIC]}"
    assert hardware_key(of(m)) == hardware_key(of(box()))


# ---------------------------------------------------------------- changes, in words

CHANGES: dict[str, tuple[Callable[[Machine], Machine], list[str]]] = {
    "a GPU taken out": (lambda m: without(m, GPU), [f"GPU {GPU} is gone", f"{DOWN} is on no way between GPUs any more"]),
    "another GPU": (lambda m: set_file(m, GPU, "device", "0x20b0"), [f"GPU {GPU} is now 10de:20b0 (was 10de:2330)"]),
    "another port": (lambda m: set_file(m, DOWN, "device", "0xc040"), [f"port {DOWN} is now 1000:c040 (was 1000:c030)"]),
    "another card": (lambda m: set_file(m, NIC, "device", "0x101d"), [f"network card {NIC} is now 15b3:101d (was 15b3:1021)"]),
    "a card taken out": (lambda m: without(m, NIC), ["0000:12:02.0 is on no way between GPUs any more", f"network card {NIC} is gone"]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_hardware_changes_the_key_and_is_named(what: str) -> None:
    change, said = CHANGES[what]
    before, now = of(box()), of(change(box()))
    assert words(hardware_parts(before), now) == said
    assert hardware_key(now) not in ("", hardware_key(before))


def test_a_gpu_more_is_named() -> None:
    m = box()
    port = m.port("pci0000:c0", "0000:c0:01.0")
    m.gpu(port, "0000:c1:00.0")
    assert words(hardware_parts(of(box())), of(m)) == [
        "GPU 0000:c1:00.0 is new (10de:2330)",
        "port 0000:c0:01.0 is new on a way between GPUs (8086:352a)",
    ]


def test_a_card_in_another_slot_is_named_by_its_places() -> None:
    m = box()
    place = f"pci0000:30/0000:30:01.0/{GPU}"
    m.links[f"/sys/bus/pci/devices/{GPU}"] = f"/sys/devices/{place}"
    said = words(hardware_parts(of(box())), of(m))
    assert said[0] == f"{GPU} now stands at {place} (was {PLACE}/{DOWN}/{GPU})"


def test_of_many_changes_some_are_named_and_the_others_counted() -> None:
    said = words(hardware_parts(of(box())), of(DRAWN["amd-mi300x"]()))
    assert len(said) == NAMED_MAX and said[-1] == f"and {8 + 20 + 4 + 8 + 8 - NAMED_MAX + 1} other devices differ"


# ---------------------------------------------------------------- unknown is not equal


def unreadable() -> PciTree:
    m = box()
    del m.files[f"/sys/bus/pci/devices/{DOWN}/vendor"]
    return of(m)


def test_what_cannot_be_read_has_no_key_and_matches_nothing_not_even_itself() -> None:
    found = unreadable()
    assert hardware_key(found) == "" and identity(found.functions[DOWN]) == ""
    assert words(hardware_parts(of(box())), found) == [f"{DOWN} cannot be read"]
    assert words(hardware_parts(found), found) == ["what hardware it was made for is not known"]


@pytest.mark.parametrize("found", [PciTree({}, "denied"), PciTree({})], ids=["no tree", "no GPU"])
def test_without_a_tree_or_a_gpu_there_is_no_key(found: PciTree) -> None:
    assert hardware_key(found) == "" == key({})
    assert changed(hardware_parts(of(box())), found) and changed({}, found)


def test_a_port_on_the_way_that_the_kernel_does_not_list_is_not_known() -> None:
    assert hardware_key(of(without(box(), DOWN))) == ""


def test_one_card_alone_has_a_key_too() -> None:
    m = Machine()
    m.gpu(m.port("pci0000:00", "0000:00:01.0"), "0000:01:00.0", vendor=AMD, device=0x74A1)
    assert hardware_key(of(m)) and list(hardware_parts(of(m))) == ["GPU 0000:01:00.0"]


def test_the_same_key_in_every_process() -> None:
    """A key on disk must hold after an upgrade of Python and of linkproof."""
    assert key({"GPU 0000:01:00.0": "10de:2330 pci0000:00/0000:00:01.0/0000:01:00.0"}) == "ccc8b5720179f2b3"
