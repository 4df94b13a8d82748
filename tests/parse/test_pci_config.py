from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from linkproof.parse.pci_config import bit_names, decode, dwords_acs


def space(
    *, vendor: int = 0x1022, device: int = 0x1483, control: int | None = 0x001D, loop: bool = False, size: int = 4096, port: int = 4
) -> bytes:
    """A bridge with an Express capability and, after another extended one, ACS."""
    config = bytearray(4096)
    struct.pack_into("<HHHH", config, 0, vendor, device, 0x0407, 0x0010)
    struct.pack_into("<H", config, 0x0A, 0x0604)
    config[0x0E], config[0x19], config[0x1A], config[0x34] = 0x01, 0x41, 0x45, 0x50
    struct.pack_into("<BBH", config, 0x50, 0x01, 0x58, 0)
    struct.pack_into("<BBH", config, 0x58, 0x10, 0x00, port << 4 | 2)
    struct.pack_into("<I", config, 0x100, 0x0001 | 2 << 16 | (0x100 if loop else 0x2A0) << 20)
    if control is not None and not loop:
        struct.pack_into("<IHH", config, 0x2A0, 0x000D | 1 << 16, 0x005F, control)
    return bytes(config[:size])


def test_identity_buses_port_type_and_control_word_are_read() -> None:
    config = decode(space())
    assert config is not None
    assert (config.vendor, config.device, config.cls, config.kind) == (0x1022, 0x1483, 0x0604, "root_port")
    assert (config.secondary, config.subordinate, config.acs, config.extended) == (0x41, 0x45, 0x001D, True)


def test_a_downstream_port_is_told_by_its_express_capability() -> None:
    config = decode(space(port=6))
    assert config is not None and config.kind == "downstream_port"


def test_a_port_without_the_capability_has_no_control_word_and_a_readable_list() -> None:
    config = decode(space(control=None))
    assert config is not None and config.acs is None and config.extended


def test_a_user_who_is_not_root_sees_64_bytes_and_nothing_of_acs() -> None:
    config = decode(space(size=64))
    assert config is not None and config.acs is None and not config.extended and config.kind == ""


def test_a_list_that_loops_ends() -> None:
    config = decode(space(loop=True))
    assert config is not None and config.acs is None


def test_the_misplaced_registers_of_intel_chipset_ports_are_not_read() -> None:
    config = decode(space(vendor=0x8086, device=0x9D10))
    assert config is not None and config.acs is None
    assert dwords_acs(0x8086, 0xA290) and not dwords_acs(0x8086, 0x2F04) and not dwords_acs(0x1022, 0x9D10)


def test_a_device_that_does_not_answer_is_none() -> None:
    assert decode(b"\xff" * 4096) is None
    assert decode(b"") is None


def test_bits_have_the_names_that_lspci_prints() -> None:
    assert bit_names(0x001D) == "SrcValid ReqRedir CmpltRedir UpstreamFwd"
    assert bit_names(0) == "none"


@given(st.binary(max_size=600))
def test_any_bytes_are_read_without_an_error(config: bytes) -> None:
    found = decode(config)
    assert found is None or found.acs is None or 0 <= found.acs <= 0xFFFF
