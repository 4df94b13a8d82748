from __future__ import annotations

import pytest
from machine_texts import events, of

from linkproof.model import Versions

CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024"
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (dvs-builder@U22-I3)  Tue Apr  7 11:10:00 UTC 2026"
)
FORK = OPEN.replace("dvs-builder@U22-I3", "aikitoria@rig")


def of_kind(words: str, kind: str) -> list[str]:
    return [value for k, value in events(words) if k == kind]


@pytest.mark.parametrize(("words", "flavour", "number"), [(CLOSED, "closed", "550.54.14"), (OPEN, "open", "580.159.04")])
def test_the_flavour_and_the_version_are_each_told_once(words: str, flavour: str, number: str) -> None:
    assert of_kind(words + "\nGCC version:  gcc version 12.3.0", "driver_flavour") == [flavour]
    assert [v.driver for v in of(Versions, words) if v.driver] == [number]


def test_the_line_of_the_kernel_log_tells_the_flavour_too() -> None:
    words = "[    5.1] NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (root@box)"
    assert of_kind(words, "driver_flavour") == ["open"]


def test_a_line_about_the_driver_that_loads_nothing_tells_no_flavour() -> None:
    assert not of_kind("NVRM: No NVIDIA GPU found.\nthe NVIDIA UNIX Open Kernel Module is recommended", "driver_flavour")


def test_the_builder_of_a_fork_makes_a_patched_driver() -> None:
    assert of_kind(FORK, "patched_driver") == ["aikitoria@rig"]


def test_a_module_built_at_home_is_no_patched_driver() -> None:
    assert not of_kind(OPEN.replace("dvs-builder@U22-I3", "root@box"), "patched_driver")
    assert not of_kind(CLOSED, "patched_driver")


def test_a_version_with_the_suffix_of_a_fork_is_told_once() -> None:
    assert of_kind(OPEN.replace("580.159.04", "580.159.04-p2p"), "patched_driver") == ["580.159.04-p2p"]


PARAMS = """\
ResmanDebugLevel: 4294967295
EnableGpuFirmware: 18
EnableResizableBar: 0
OpenRmEnableUnsupportedGpus: 1
GrdmaPciTopoCheckOverride: 0
RegistryDwords: "%s"
RegistryDwordsPerDevice: ""
"""


def test_the_registry_keys_that_bear_on_peer_access_are_read() -> None:
    words = PARAMS % "ForceP2P=0x11;RMForceP2PType=1;RMIntrLockingMode=1;RMForceStaticBar1=1"
    assert of_kind(words, "registry_key") == ["ForceP2P=0x11", "RMForceP2PType=1", "RMForceStaticBar1=1"]


def test_stock_parameters_and_other_keys_give_nothing() -> None:
    assert not of_kind(PARAMS % "", "registry_key")
    assert not of_kind(PARAMS % "RMIntrLockingMode=1;PowerMizerEnable=0x1", "registry_key")


def test_switches_that_differ_from_the_stock_are_read() -> None:
    words = (PARAMS % "").replace("EnableGpuFirmware: 18", "EnableGpuFirmware: 0").replace("Override: 0", "Override: 1")
    assert of_kind(words, "registry_key") == ["EnableGpuFirmware=0", "GrdmaPciTopoCheckOverride=1"]


def test_the_options_of_a_module_are_read() -> None:
    words = 'options nvidia NVreg_RegistryDwords="ForceP2P=17;PeerMappingOverride=1" NVreg_EnableGpuFirmware=0'
    assert of_kind(words, "registry_key") == ["ForceP2P=17", "PeerMappingOverride=1", "EnableGpuFirmware=0"]


def test_a_description_of_the_options_sets_nothing() -> None:
    assert not of_kind("parm:           NVreg_RegistryDwords:charp\nparm:           NVreg_EnableGpuFirmware:int", "registry_key")


@pytest.mark.parametrize(("said", "state"), [("Y", "off"), ("N", "on"), ("1", "off"), ("0", "on")])
def test_whether_hmm_runs_is_read(said: str, state: str) -> None:
    assert of_kind(f"/sys/module/nvidia_uvm/parameters/uvm_disable_hmm: {said}", "uvm_hmm") == [state]
    assert of_kind(f"$ cat /sys/module/nvidia_uvm/parameters/uvm_disable_hmm\n{said}", "uvm_hmm") == [state]


def test_a_file_that_is_not_there_says_nothing_of_hmm() -> None:
    words = "cat: /sys/module/nvidia_uvm/parameters/uvm_disable_hmm: No such file or directory"
    assert not of_kind(words, "uvm_hmm")
    assert not of_kind("parm:  uvm_disable_hmm:Force-disable HMM functionality in the UVM driver. (bool)", "uvm_hmm")


def test_hostile_lengths_end_quietly() -> None:
    words = 'RegistryDwords: "' + "ForceP2P=1;" * 5000 + "\nRegistryDwords: " + "9" * 9000 + "\nuvm_disable_hmm: " + "Y" * 9000
    assert of_kind(words, "uvm_hmm") == []
