from __future__ import annotations

import pytest

from linkproof.parse.nccl_variables import ineffective, known, misspelt, numbers


def test_the_variables_of_every_age_are_known() -> None:
    assert {"NCCL_P2P_DISABLE", "NCCL_RINGS", "NCCL_CUMEM_HOST_ENABLE", "NCCL_RUN_DIAGNOSTICS", "NCCL_DEBUG_SUBSYS"} <= known()
    assert "NCCL_P2P_NET_DISABLE" not in known()
    assert numbers() < known()


@pytest.mark.parametrize(("name", "meant"), [
    ("NCCL_P2P_DISABEL", "NCCL_P2P_DISABLE"),
    ("NCCL_P2P_DISABLED", "NCCL_P2P_DISABLE"),
    ("NCCL_SOCKET_IFNAM", "NCCL_SOCKET_IFNAME"),
    ("NCCL_SOCKET_IF_NAME", "NCCL_SOCKET_IFNAME"),
    ("NCCL_DEBGU", "NCCL_DEBUG"),
])  # fmt: skip
def test_a_slip_of_up_to_two_letters_finds_what_was_meant(name: str, meant: str) -> None:
    assert misspelt(name) == meant


@pytest.mark.parametrize("name", [
    "NCCL_P2P_DISABLE", "NCCL_VERSION", "NCCL_BLOCKING_WAIT", "NCCL_FASTRAK_CTRL_DEV", "NCCL_NOTHING_LIKE_THIS", "NCCL_", "MCCL_DEBUG",
    "NCCL_P2P_NET_DISABLE", "NCCL_" + "A" * 5000, "",
])  # fmt: skip
def test_known_foreign_and_far_names_are_no_slips(name: str) -> None:
    assert misspelt(name) == ""


@pytest.mark.parametrize(("name", "value", "reason"), [
    ("NCCL_P2P_DISABLE", "true", "only_one"),
    ("NCCL_P2P_DISABLE", "2", "only_one"),
    ("NCCL_P2P_LEVEL", "pix", "no_level"),
    ("NCCL_P2P_LEVEL", "NODE", "no_level"),
    ("NCCL_NET_GDR_LEVEL", "phb", "no_level"),
    ("NCCL_P2P_NET_DISABLE", "1", "gone"),
    ("NCCL_DEBUG", "DEBUG", "no_debug_level"),
    ("NCCL_SHM_DISABLE", "true", "read_as_zero"),
    ("NCCL_CUMEM_ENABLE", "auto", "read_as_zero"),
])  # fmt: skip
def test_a_value_that_does_not_act_has_its_reason(name: str, value: str, reason: str) -> None:
    assert ineffective(name, value) == reason


@pytest.mark.parametrize(("name", "value"), [
    ("NCCL_P2P_DISABLE", "1"), ("NCCL_P2P_DISABLE", "0x1"), ("NCCL_P2P_DISABLE", "0"), ("NCCL_P2P_DISABLE", ""),
    ("NCCL_P2P_LEVEL", "SYS"), ("NCCL_P2P_LEVEL", "3"), ("NCCL_DEBUG", "info"), ("NCCL_DEBUG", "WARN,INFO"), ("NCCL_SHM_DISABLE", "1"),
    ("NCCL_SHM_DISABLE", "false"), ("NCCL_CUMEM_ENABLE", "-2"), ("NCCL_SOCKET_IFNAME", "eth0"), ("NCCL_UNHEARD_OF", "true"),
    ("NCCL_BUFFSIZE", "9" * 9000),
])  # fmt: skip
def test_a_value_that_acts_has_none(name: str, value: str) -> None:
    assert ineffective(name, value) == ""
