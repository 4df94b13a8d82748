from __future__ import annotations

import pytest
from machine_texts import events, of
from test_pci_config import space

from linkproof.model import Acs, Gpu, Host, Platform

ON = "SrcValid+ TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-"
OFF = "SrcValid+ TransBlk- ReqRedir- CmpltRedir- UpstreamFwd- EgressCtrl- DirectTrans-"


def port(
    address: str, control: str | None, *, secondary: str, subordinate: str, kind: str = "Root Port (Slot+)", name: str = "AMD Starship GPP"
) -> str:
    acs = (
        f"\n\tCapabilities: [2a0 v1] Access Control Services\n\t\tACSCap:\tSrcValid+ TransBlk+ ReqRedir+\n\t\tACSCtl:\t{control}"
        if control
        else ""
    )
    return (
        f"{address} PCI bridge: {name} (prog-if 00 [Normal decode])\n"
        f"\tBus: primary=00, secondary={secondary}, subordinate={subordinate}, sec-latency=0\n"
        f"\tCapabilities: [58] Express (v2) {kind}, MSI 00\n"
        "\t\tUESta:\tDLP- SDES- ACSViol+\n"
        f"\tCapabilities: [100 v1] Vendor Specific Information{acs}\n\tKernel driver in use: pcieport\n\n"
    )


def gpu(address: str, *, width: str = "x16", driver: str = "nvidia", size: str = "32G") -> str:
    return (
        f"{address} VGA compatible controller: NVIDIA Corporation AD102 [GeForce RTX 4090] (rev a1) (prog-if 00 [VGA controller])\n"
        "\tRegion 0: Memory at e0000000 (32-bit, non-prefetchable) [size=16M]\n"
        f"\tRegion 1: Memory at 1f800000000 (64-bit, prefetchable) [size={size}]\n"
        "\t\tLnkCap:\tPort #0, Speed 16GT/s, Width x16, ASPM L1\n"
        f"\t\tLnkSta:\tSpeed 2.5GT/s (downgraded), Width {width}\n"
        f"\tKernel driver in use: {driver}\n\n"
    )


def acs(words: str) -> list[tuple[str, str, str, str]]:
    return [(fact.redirect, fact.port, fact.kind, fact.above) for fact in of(Acs, words)]


def test_each_port_is_told_with_its_kind_and_what_hangs_below() -> None:
    words = port("00:01.1", ON, secondary="01", subordinate="01") + port("00:03.1", OFF, secondary="02", subordinate="02")
    words += gpu("01:00.0") + gpu("02:00.0")
    assert acs(words) == [("on", "00:01.1", "root_port", "gpu"), ("off", "00:03.1", "root_port", "gpu")]


def test_source_validation_alone_redirects_nothing() -> None:
    found = of(Acs, port("00:01.1", OFF, secondary="01", subordinate="01"))
    assert [(fact.redirect, fact.bits) for fact in found] == [("off", "SrcValid")]


def test_egress_control_redirects() -> None:
    assert acs("ACSCtl: SrcValid- ReqRedir- CmpltRedir- EgressCtrl+") == [("on", "", "", "")]


def test_a_port_above_every_gpu_is_not_between_them() -> None:
    words = port("00:01.1", ON, secondary="01", subordinate="05")
    words += port("02:00.0", OFF, secondary="03", subordinate="03", kind="Downstream Port (Slot-)", name="PEX 88096")
    words += port("02:01.0", OFF, secondary="04", subordinate="04", kind="Downstream Port (Slot-)", name="PEX 88096")
    words += gpu("03:00.0") + gpu("04:00.0")
    assert acs(words) == [
        ("on", "00:01.1", "root_port", "every gpu"),
        ("off", "02:00.0", "downstream_port", "gpu"),
        ("off", "02:01.0", "downstream_port", "gpu"),
    ]


def test_a_port_above_other_devices_is_told_as_such() -> None:
    words = (
        port("00:01.1", ON, secondary="01", subordinate="01") + "01:00.0 Ethernet controller: Mellanox Technologies MT28908 [ConnectX-6]\n"
    )
    words += port("00:01.2", ON, secondary="02", subordinate="02") + "02:00.0 Non-Volatile memory controller: Samsung NVMe SSD\n"
    words += gpu("41:00.0")
    assert [where for *_, where in acs(words)] == ["nic", "other"]


def test_a_port_above_a_gpu_without_the_capability_cannot_redirect() -> None:
    words = port("00:01.1", None, secondary="01", subordinate="01") + gpu("01:00.0")
    assert [(fact.redirect, fact.bits) for fact in of(Acs, words)] == [("off", "no capability")]
    assert not of(Acs, port("00:01.1", None, secondary="01", subordinate="01"))


def test_without_root_nothing_is_known() -> None:
    words = (
        "00:01.1 PCI bridge: AMD Starship GPP Bridge\n\tBus: primary=00, secondary=01, subordinate=01\n\tCapabilities: <access denied>\n\n"
    )
    words += "01:00.0 VGA compatible controller: NVIDIA Corporation AD102 [GeForce RTX 4090] (rev a1)\n\tCapabilities: <access denied>\n"
    assert acs(words) == [("unknown", "00:01.1", "root_port", "")]


def test_lines_of_a_grep_have_no_device() -> None:
    assert acs(f"\t\tACSCtl:\t{ON}\n\t\tACSCtl:\t{OFF}") == [("on", "", "", ""), ("off", "", "", "")]


def test_a_grep_below_another_list_is_not_the_last_device_of_that_list() -> None:
    words = f"01:00.0 VGA compatible controller: NVIDIA Corporation AD102 [GeForce RTX 4090] (rev a1)\n$ lspci -vvv | grep ACSCtl\n\t\tACSCtl:\t{ON}\n\t\tACSCtl:\t{ON}"
    assert {where for _, where, _, _ in acs(words)} == {""}


def test_a_hexadecimal_control_word_is_decoded() -> None:
    assert [(fact.redirect, fact.bits) for fact in of(Acs, "ACSCtl: 0x001d = SrcValid+, ReqRedir+, CmpltRedir+, UpstreamFwd+")] == [
        ("on", "SrcValid ReqRedir CmpltRedir UpstreamFwd")
    ]
    assert [fact.redirect for fact in of(Acs, "ACSCtl: 0x0001")] == ["off"]


def test_a_cut_line_is_unknown() -> None:
    assert [fact.redirect for fact in of(Acs, "ACSCtl: SrcValid+ TransBlk-")] == ["unknown"]


@pytest.mark.parametrize(
    "words", ["$ sudo lspci -vvv | grep ACSCtl", "look at ACSCtl of every bridge (SrcValid+ is not enough)", "ACSCtl:"]
)
def test_a_mention_of_the_register_is_no_state(words: str) -> None:
    assert not of(Acs, words)


def test_error_bits_and_ability_are_no_state() -> None:
    assert not of(Acs, "UESta: DLP- ACSViol+\nACSCap: SrcValid+ ReqRedir+ CmpltRedir+\nARICap: MFVC- ACS-, Next Function: 0")


def test_intel_chipset_ports_are_unknown_whatever_lspci_prints() -> None:
    words = port(
        "00:1c.0", OFF, secondary="01", subordinate="01", name="Intel Corporation Sunrise Point-LP PCI Express Root Port #1 (rev f1)"
    )
    assert [redirect for redirect, *_ in acs(words)] == ["unknown"]


@pytest.mark.parametrize("words, expected", [
    ("0000:00:1c.0 (ecap 000d @148) @14e = 001d", ("on", "0000:00:1c.0")),
    ("0000:00:1c.0 (ecap 000d @148) @14e = 0011", ("off", "0000:00:1c.0")),
    ("$ setpci -s 00:1c.0 ECAP_ACS+0x6.w\n001d", ("on", "00:1c.0")),
    ("0000:80:01.1 ECAP_ACS+6.w = 001d", ("on", "0000:80:01.1")),
])  # fmt: skip
def test_what_setpci_reads_is_a_state(words: str, expected: tuple[str, str]) -> None:
    assert [(fact.redirect, fact.port) for fact in of(Acs, words)] == [expected]


@pytest.mark.parametrize(
    "words",
    ["setpci -v -s 00:1c.0 ECAP_ACS+0x6.w=0000", "0000:00:1c.0 (ecap 000d @148) @14c = 005f", "setpci -s ${BDF} ECAP_ACS+0x6.w\ndone"],
)
def test_what_setpci_writes_and_other_registers_are_none(words: str) -> None:
    assert not of(Acs, words)


def test_a_hex_dump_is_decoded() -> None:
    config = space()
    rows = [f"{at:02x}: " + " ".join(f"{byte:02x}" for byte in config[at : at + 16]) for at in range(0, 4096, 16)]
    words = "0000:40:01.1 PCI bridge: Advanced Micro Devices, Inc. [AMD] Starship/Matisse GPP Bridge\n" + "\n".join(rows)
    assert acs(words) == [("on", "0000:40:01.1", "root_port", "")]


def test_the_first_256_bytes_say_nothing_of_acs() -> None:
    config = space()
    rows = [f"{at:02x}: " + " ".join(f"{byte:02x}" for byte in config[at : at + 16]) for at in range(0, 256, 16)]
    assert not of(Acs, "0000:40:01.1 PCI bridge: Advanced Micro Devices, Inc. [AMD] Starship/Matisse GPP Bridge\n" + "\n".join(rows))


@pytest.mark.parametrize("words, name", [
    ("0001:00:00.0 3D controller [0302]: NVIDIA Corporation GA100 [A100 SXM4 80GB] [10de:20b2] (rev a1)", "A100 SXM4 80GB"),
    ("01:00.0 VGA compatible controller: Advanced Micro Devices, Inc. [AMD/ATI] Navi 31 [Radeon RX 7900 XT/7900 XTX] (rev c8)", "Radeon RX 7900 XT/7900 XTX"),
    ("0d:00.0 VGA compatible controller: Advanced Micro Devices, Inc. [AMD/ATI] Granite Ridge [Radeon Graphics] (rev c5)", "Granite Ridge"),
    ('41:00.0 "Processing accelerators [1200]" "Advanced Micro Devices, Inc. [AMD/ATI] [1002]" "Aldebaran/MI200 [Instinct MI250X/MI250] [740c]" -r01', "Instinct MI250X/MI250"),
    ("01:00.0 VGA compatible controller: NVIDIA Corporation Device 2b85 (rev a1)", ""),
])  # fmt: skip
def test_gpus_are_named_from_every_form_of_the_listing(words: str, name: str) -> None:
    assert [(fact.name, fact.count) for fact in of(Gpu, words)] == [(name, 1)]


@pytest.mark.parametrize("words", [
    "03:00.0 VGA compatible controller: ASPEED Technology, Inc. ASPEED Graphics Family (rev 41)",
    "00:02.0 VGA compatible controller: Intel Corporation UHD Graphics 630",
    "01:00.1 Audio device: NVIDIA Corporation AD102 High Definition Audio Controller (rev a1)",
])  # fmt: skip
def test_consoles_processors_and_sound_are_no_gpus(words: str) -> None:
    assert not of(Gpu, words)


def test_the_size_of_bar1_alone_is_no_verdict() -> None:
    assert [(fact.fact, fact.value) for fact in of(Gpu, gpu("01:00.0", size="256M"))] == [("", "01:00.0 BAR1 256M")]


@pytest.mark.parametrize("now, fact", [("256MB", "bar1_smaller_than_vram"), ("32GB", "bar1_covers_vram")])
def test_the_resizable_bar_capability_tells_if_it_could_be_larger(now: str, fact: str) -> None:
    words = gpu("01:00.0") .rstrip("\n") + f"\n\tCapabilities: [bb0 v1] Physical Resizable BAR\n\t\tBAR 1: current size: {now}, supported: 64MB 256MB 1GB 16GB 32GB\n"  # fmt: skip
    assert [found.fact for found in of(Gpu, words) if found.fact] == [fact]


def test_a_narrow_link_of_a_gpu_is_downgraded_and_a_slow_one_at_rest_is_not() -> None:
    assert ("link_downgraded", "01:00.0: x4 of x16") in events(gpu("01:00.0", width="x4 (downgraded)"))
    assert not [kind for kind, _ in events(gpu("01:00.0", width="x16 (ok)")) if kind == "link_downgraded"]


def test_a_device_given_to_a_guest_is_bound_to_vfio() -> None:
    assert ("vfio_bound", "01:00.0") in events(gpu("01:00.0", driver="vfio-pci"))
    assert not [kind for kind, _ in events(gpu("01:00.0")) if kind == "vfio_bound"]


def test_nvswitches_are_counted_and_other_bridges_are_not() -> None:
    words = "".join(f"000{n}:00:00.0 Bridge [0680]: NVIDIA Corporation Device [10de:1af1] (rev a1)\n" for n in range(5, 8))
    assert [(fact.fact, fact.value) for fact in of(Host, words)] == [("nvswitch", "3")]
    assert not of(Host, "00:0f.0 Bridge: NVIDIA Corporation MCP55 Ethernet (rev a3)\n" + gpu("01:00.0"))


def test_emulated_ports_are_a_guest() -> None:
    assert [fact.kind for fact in of(Platform, "00:02.0 PCI bridge [0604]: Red Hat, Inc. QEMU PCIe Root port [1b36:000c]")] == ["vm"]
    assert not of(Platform, port("00:01.1", ON, secondary="01", subordinate="01"))
