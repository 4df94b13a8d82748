"""Tree to facts: only ports that decide about a path, with what hangs below them."""

from __future__ import annotations

import pytest

from evidence.build import Machine
from evidence.drawn import DRAWN
from linkproof.collect.pci import read_pci
from linkproof.model import Acs, Event, Fact, Iommu, KernelLog
from linkproof.parse.pci_facts import facts_of, paths_of_interest
from linkproof.parse.pci_tree import tree


def facts(m: Machine, types: dict[str, str] | None = None) -> list[Fact]:
    raw = read_pci(m)
    return facts_of(tree(raw.functions, raw.why), types or {})


def acs(m: Machine) -> dict[str, Acs]:
    return {f.port: f for f in facts(m) if isinstance(f, Acs)}


def test_a_port_that_redirects_gives_its_bits_and_its_register_as_source() -> None:
    port = acs(DRAWN["switches-acs-on"]())["0000:12:00.0"]
    assert (port.redirect, port.kind, port.above) == ("on", "downstream_port", "gpu")
    assert port.source.file == "/sys/bus/pci/devices/0000:12:00.0/config"
    assert port.source.text == "0000:12:00.0 ACSCtl: SrcValid ReqRedir CmpltRedir UpstreamFwd (0x001d)"


def test_what_hangs_below_a_port_is_said() -> None:
    above = {port: f.above for port, f in acs(DRAWN["switches-acs-on"]()).items()}
    assert (above["0000:12:00.0"], above["0000:12:02.0"], above["0000:10:01.0"]) == ("gpu", "nic", "gpu nic")


def test_a_root_port_above_every_gpu_decides_about_none_and_gives_no_fact() -> None:
    m = Machine()
    _, downs = m.switch(m.port("pci0000:00", "0000:00:01.0", acs=0x1D), 1, ports=2, acs=0)
    m.gpu(downs[0], "0000:03:00.0")
    m.gpu(downs[1], "0000:04:00.0")
    assert {port: f.redirect for port, f in acs(m).items()} == {"0000:02:00.0": "off", "0000:02:01.0": "off"}


def test_one_gpu_alone_has_no_path_and_no_port_that_decides() -> None:
    m = Machine()
    m.gpu(m.port("pci0000:00", "0000:00:01.0", acs=0x1D), "0000:01:00.0")
    assert acs(m) == {}


def test_a_network_card_across_the_cpu_is_no_path_of_interest() -> None:
    m = Machine()
    m.gpu(m.port("pci0000:00", "0000:00:01.0", acs=0x1D), "0000:01:00.0")
    m.nic(m.port("pci0000:00", "0000:00:02.0", acs=0x1D), "0000:02:00.0")
    raw = read_pci(m)
    assert paths_of_interest(tree(raw.functions)) == []


def test_a_port_without_the_capability_is_off_and_an_unread_one_unknown() -> None:
    m = Machine()
    _, downs = m.switch(m.port("pci0000:00", "0000:00:01.0"), 1, ports=2)
    m.gpu(downs[0], "0000:03:00.0")
    m.gpu(downs[1], "0000:04:00.0")
    m.files[f"/sys/bus/pci/devices/{downs[1]}/config"] = bytes.fromhex("86800a00") + b"\0" * 60
    found = acs(m)
    assert (found[downs[0]].redirect, found[downs[0]].bits) == ("off", "no capability")
    assert (found[downs[1]].redirect, found[downs[1]].bits) == ("unknown", "")


@pytest.mark.parametrize(
    ("word", "mode"),
    [("DMA", "translating"), ("DMA-FQ", "translating"), ("identity", "passthrough"), ("blocked", "unknown"), ("unmanaged", "unknown")],
)
def test_the_type_of_a_gpus_group_is_its_mode(word: str, mode: str) -> None:
    m = Machine(iommu=word)
    m.gpu("pci0000:00", "0000:00:05.0")
    found = [f for f in facts(m, {"0": word}) if isinstance(f, Iommu)]
    assert [(f.mode, f.device, f.source.file) for f in found] == [(mode, "0000:00:05.0", "/sys/kernel/iommu_groups/0/type")]


def test_a_gpu_without_a_group_says_nothing_of_the_iommu_here() -> None:
    m = Machine()
    m.gpu("pci0000:00", "0000:00:05.0")
    assert not [f for f in facts(m, {"0": "DMA"}) if isinstance(f, Iommu)]


def test_a_card_bound_to_vfio_is_an_event_and_one_bound_to_its_driver_is_none() -> None:
    kinds = [(f.kind, f.value) for f in facts(DRAWN["one-gpu-bound-to-vfio"]()) if isinstance(f, Event)]
    assert kinds == [("vfio_bound", "0000:02:00.0")]


def test_fatal_errors_on_the_way_are_said_and_zero_is_not() -> None:
    m = DRAWN["switches-acs-on"]()
    m.files["/sys/bus/pci/devices/0000:12:00.0/aer_dev_fatal"] = b"DLP 2\nTOTAL_ERR_FATAL 2\n"
    m.files["/sys/bus/pci/devices/0000:12:01.0/aer_dev_fatal"] = b"DLP 0\nTOTAL_ERR_FATAL 0\n"
    assert [(f.fact, f.device, f.value) for f in facts(m) if isinstance(f, KernelLog)] == [("aer_fatal", "0000:12:00.0", "2")]


def test_a_narrow_uplink_of_a_switch_is_a_narrow_way() -> None:
    m = DRAWN["switches-acs-on"]()
    m.files["/sys/bus/pci/devices/0000:11:00.0/current_link_width"] = b"4\n"
    assert [f.value for f in facts(m) if isinstance(f, Event)] == ["0000:11:00.0 x4 of x16"]


def _express(payload_code: int) -> bytes:
    """256 bytes of a function whose PCI Express capability at 0x40 sets this MaxPayload."""
    config = bytearray(256)
    config[0:2], config[6], config[0x34], config[0x40] = b"\xde\x10", 0x10, 0x40, 0x10
    config[0x48] = payload_code << 5
    return bytes(config)


def test_the_payload_size_is_read_from_device_control() -> None:
    from linkproof.parse.pci_config import decode

    sizes = [config.max_payload_B for code in (0, 1, 2, 5, 6) if (config := decode(_express(code))) is not None]
    assert sizes == [128, 256, 512, 4096, None], "6 and 7 are reserved"


def test_ports_of_one_path_with_different_payload_sizes_are_told_once() -> None:
    from linkproof.parse.pci_facts import _payloads
    from linkproof.parse.pci_tree import PciFunction, PciTree
    from linkproof.parse.topology import Path

    def tree_of(*sizes: int | None) -> PciTree:
        functions = {
            f"0000:0{i}:00.0": PciFunction(f"0000:0{i}:00.0", "pci0000:00", (), 0x030200, 0x10DE, 1, max_payload_B=s)
            for i, s in enumerate(sizes)
        }
        return PciTree(functions)

    way = Path("0000:00:00.0", "0000:01:00.0", "PIX", "PIX", (), (), "")
    assert [f.kind for f in _payloads(tree_of(256, 512), [way, way])] == ["payload_mismatch"]  # type: ignore[attr-defined]
    assert list(_payloads(tree_of(256, 256), [way])) == []
    assert list(_payloads(tree_of(256, None), [way])) == [], "unreadable is no mismatch"
