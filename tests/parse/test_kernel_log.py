from __future__ import annotations

import pytest
from machine_texts import events, of

from linkproof.model import Host, KernelLog, Versions


def logged(words: str) -> list[tuple[str, str, str, int]]:
    return [(fact.fact, fact.value, fact.device, fact.count) for fact in of(KernelLog, words)]


def test_an_xid_has_its_number_and_device_and_is_counted() -> None:
    line = "NVRM: Xid (PCI:0000:03:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
    assert logged(f"[ 1.0] {line}\n[ 2.0] {line}") == [("xid", "79", "0000:03:00.0", 2)]
    assert ("gpu_fell_off", "0000:03:00.0") in events(line)


@pytest.mark.parametrize("words, number, device", [
    ("kernel: NVRM: Xid (0000:0A:00): 13, Graphics SM Warp Exception", "13", "0000:0a:00.0"),
    ("Xid 149, NETIR_LINK_DOWN Fatal XC0 i0 Link 14", "149", ""),
    ("Xid 79", "79", ""),
])  # fmt: skip
def test_older_and_bare_xid_lines_are_read(words: str, number: str, device: str) -> None:
    assert logged(words) == [("xid", number, device, 1)]


@pytest.mark.parametrize("words", ["There was no Xid 79 in the log", "see the table of Xid 31 and Xid 43 errors", "Xiden 79"])
def test_an_xid_in_prose_is_none(words: str) -> None:
    assert not logged(words)


def test_an_xid_that_names_a_link_says_that_it_is_down() -> None:
    assert ("nvlink_down", "0018:01:00.0 Link 14") in events(
        "NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_DOWN Fatal XC0 i0 Link 14 (0x1 0x2)"
    )
    assert not [k for k, _ in events("NVRM: Xid (PCI:0018:01:00): 149, NETIR_BER_EVENT Nonfatal XC0 i0 Link 03") if k == "nvlink_down"]


def test_an_ecc_xid_is_an_ecc_error_and_another_is_not() -> None:
    assert ("ecc_error", "Xid 48") in events(
        "NVRM: Xid (PCI:0000:03:00): 48, pid=1, An uncorrectable double bit error (DBE) has been detected"
    )
    assert not [k for k, _ in events("NVRM: Xid (PCI:0000:03:00): 31, pid=1, MMU Fault") if k == "ecc_error"]


def test_an_sxid_is_of_the_switch() -> None:
    words = "nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"
    assert logged(words) == [("sxid", "20034", "0000:05:00.0", 1)]
    assert ("nvlink_down", "0000:05:00.0 Link 30") in events(words)
    assert not [
        k
        for k, _ in events("nvidia-nvswitch0: SXid (PCI:0000:c3:00.0): 20009, Non-fatal, Link 28 RX Short Error Rate")
        if k == "nvlink_down"
    ]


@pytest.mark.parametrize("words, fact", [
    ("nvidia 0000:41:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID)", "aer_corrected"),
    ("nvidia 0000:41:00.0: PCIe Bus Error: severity=Correctable, type=Data Link Layer, (Transmitter ID)", "aer_corrected"),
    ("nvidia 0000:41:00.0: AER: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer, (Requester ID)", "aer_fatal"),
    ("nvidia 0000:41:00.0: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Inaccessible, (Unregistered Agent ID)", "aer_fatal"),
])  # fmt: skip
def test_a_bus_error_has_its_severity_in_old_and_new_words(words: str, fact: str) -> None:
    assert logged(words) == [(fact, "", "0000:41:00.0", 1)]


def test_a_non_fatal_bus_error_is_seen_and_not_fatal() -> None:
    words = "pcieport 0000:40:01.1: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer, (Completer ID)"
    assert not logged(words)
    assert ("aer_seen", "0000:40:01.1 non-fatal") in events(words)


def test_the_heading_of_a_report_is_not_a_second_error() -> None:
    words = "pcieport 0000:00:05.0: AER: Corrected error received: 0000:41:00.0\n"
    assert logged(words) == [("aer_corrected", "", "0000:41:00.0", 1)]
    words += "nvidia 0000:41:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID)"
    assert logged(words) == [("aer_corrected", "", "0000:41:00.0", 1)]


def test_a_recovery_that_failed_is_seen() -> None:
    assert ("aer_seen", "0000:00:03.0 device recovery failed") in events("pcieport 0000:00:03.0: AER: device recovery failed")
    assert not events("pcieport 0000:00:03.0: AER: device recovery successful")


@pytest.mark.parametrize("words", [
    "pcieport 0000:00:01.0: pciehp: Slot(4): Link Down",
    "pcieport 0000:00:01.0: pciehp: Slot(4): Card not present",
    "pcieport 0000:00:01.0:    [ 5] SDES                   (First)",
])  # fmt: skip
def test_a_link_that_goes_down_is_told_with_its_port(words: str) -> None:
    assert logged(words) == [("link_down", "", "0000:00:01.0", 1)]


def test_a_network_link_and_a_slot_that_comes_up_are_no_pcie_link_down() -> None:
    assert not logged("e1000e 0000:00:1f.6 eno1: NIC Link is Down\npcieport 0000:00:01.0: pciehp: Slot(4): Link Up")


def test_the_oom_killer_names_the_process_once() -> None:
    words = """\
python3 invoked oom-killer: gfp_mask=0x100cca(GFP_HIGHUSER_MOVABLE), order=0, oom_score_adj=0
oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c1,mems_allowed=0,oom_memcg=/x,task_memcg=/x,task=python3,pid=4242,uid=0
Memory cgroup out of memory: Killed process 4242 (python3) total-vm:1kB, anon-rss:1kB"""
    assert [(fact.fact, fact.value) for fact in of(Host, words)] == [("oom_kill", "python3")]
    assert ("host_oom", "python3") in events(words)


def test_a_device_out_of_memory_is_not_the_oom_killer() -> None:
    assert not of(Host, "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_mismatch_that_breaks_over_lines_has_both_versions() -> None:
    words = "NVRM: API mismatch: the client has the version 470.63.01, but\nNVRM: this kernel module has the version 470.57.02.  Please"
    assert ("nvrm_mismatch", "client 470.63.01, kernel module 470.57.02") in events(words)
    assert not [k for k, _ in events("NVRM: GPU 0000:01:00.0 is in use") if k == "nvrm_mismatch"]


@pytest.mark.parametrize("words, value", [
    ("NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x26:0x56:1474)", "0000:01:00.0"),
    ("NVRM: RmInitAdapter failed! (0x26:0x56:1474)", ""),
    ("NVRM: rm_init_adapter failed, device minor number 2", "minor number 2"),
])  # fmt: skip
def test_an_adapter_that_does_not_start_is_told(words: str, value: str) -> None:
    assert ("nvrm_init_failed", value) in events(words)


def test_the_loaded_module_has_a_version() -> None:
    for words in (
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6 22:20:39 UTC 2023",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.54.03  Release Build  (root@box)",
    ):
        assert [fact.driver for fact in of(Versions, words)] == ["535.54.03"]
    assert not of(Versions, "NVRM: loading firmware")


@pytest.mark.parametrize("words, value", [
    ("smpboot: do_boot_cpu failed(-1) to wakeup CPU#255", "CPU#255"),
    ("[   10.67] CPU255 failed to report alive state", "CPU255"),
    ("APIC: NR_CPUS/possible_cpus limit of 128 reached. Processor 128/0x100 and the rest are ignored.", "Processor 128/0x100"),
])  # fmt: skip
def test_a_cpu_that_did_not_come_up_is_missing(words: str, value: str) -> None:
    assert ("cpu_missing", value) in events(words)


def test_a_cpu_that_came_up_is_not_missing() -> None:
    assert not [k for k, _ in events("smpboot: Allowing 256 CPUs, 0 hotplug CPUs\nsmp: Brought up 2 nodes, 256 CPUs") if k == "cpu_missing"]


def test_a_hanging_task_a_ring_timeout_and_an_nmi_are_told() -> None:
    assert ("task_blocked", "nvidia-smi") in events("INFO: task nvidia-smi:1234 blocked for more than 120 seconds.")
    assert ("gpu_ring_timeout", "sdma0") in events(
        "[drm:amdgpu_job_timedout [amdgpu]] *ERROR* ring sdma0 timeout, signaled seq=1, emitted seq=2"
    )
    assert ("nmi", "2d") in events("Uhhuh. NMI received for unknown reason 2d on CPU 0.")
    assert not events("amdgpu 0000:03:00.0: amdgpu: ring gfx_0.0.0 uses VM inv eng 0 on hub 0")


def test_a_link_narrower_than_the_device_is_downgraded_and_a_slow_one_is_not() -> None:
    line = "nvidia 0000:01:00.0: 31.504 Gb/s available PCIe bandwidth, limited by {} link at 0000:00:01.0 (capable of 252.048 Gb/s with 16.0 GT/s PCIe x16 link)"
    assert ("link_downgraded", "0000:01:00.0: x4 of x16") in events(line.format("8.0 GT/s PCIe x4"))
    assert not events(line.format("2.5 GT/s PCIe x16"))


def test_a_module_patched_for_peer_access_says_so_in_its_version() -> None:
    assert ("patched_driver", "570.148.08-p2p") in events("filename: nvidia.ko\nversion: 570.148.08-p2p")
    assert not [k for k, _ in events("$ nvidia-smi topo -p2p r") if k == "patched_driver"]
