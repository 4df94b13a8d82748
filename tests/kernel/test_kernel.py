"""What linkproof says inside a real Linux on a machine with real ACS registers, held against what that machine is known to be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from kernel.conftest import BOOTS, WRITES, Boots
from kernel.guest import Report, Seen, StandIn, describe
from kernel.initramfs import INSTALL
from kernel.vm import ACS_PORTS, GPUS, NICS, PLAIN_PORTS, Booted
from kernel.witness import Witnessed, witnessed
from linkproof.act.plan import plan
from linkproof.checking import check
from linkproof.collect.bundle import unpack
from linkproof.collect.host import Recorded
from linkproof.collect.mend import read_mend
from linkproof.model import Acs, Iommu
from linkproof.parse import read
from linkproof.parse.clean import clean
from linkproof.parse.pci_config import REDIRECT, bit_names

DEFAULT = 0x001D  # SrcValid ReqRedir CmpltRedir UpstreamFwd: what Linux sets where an IOMMU is in use
CAPABLE = 0x005F  # what QEMU's port can do; other bits do not stick
NO_ROOT = "config: 64 bytes without root"
EVERY_BOOT = pytest.mark.parametrize("name", BOOTS)
# ports that lie on a way between two GPUs or to a network card, and those among them that decide about direct traffic below a switch
ON_A_WAY = {*ACS_PORTS, *PLAIN_PORTS} - {"0000:00:1c.2"}
TURNING = ("0000:02:00.0", "0000:02:01.0", "0000:02:02.0", "0000:02:03.0", "0000:02:04.0")
MODES = {
    "translating": "translating",
    "strict": "translating",
    "chosen_acs": "translating",
    "passthrough": "passthrough",
    "iommu_off": "off",
    "no_iommu": "off",
}


def registers(seen: Seen) -> dict[str, int | None]:
    return {bdf: seen.functions[bdf].acs for bdf in ACS_PORTS}


def facts(seen: Seen, kind: str) -> list[dict[str, Any]]:
    return [fact for fact in seen.facts if fact["type"] == kind]


def redirects(seen: Seen) -> dict[str, tuple[str, str]]:
    """Port -> what the facts say of it: on, off or unknown; the bits."""
    return {fact["port"]: (fact["redirect"], fact["bits"]) for fact in facts(seen, "Acs")}


def expected(words: dict[str, int]) -> dict[str, tuple[str, str]]:
    """What the facts must say if these words are in the registers."""
    said = {bdf: ("on" if word & REDIRECT else "off", bit_names(word)) for bdf, word in words.items()}
    return {bdf: said.get(bdf, ("off", "no capability")) for bdf in ON_A_WAY}


# ---------------------------------------------------------------- ACS registers


@pytest.mark.parametrize("name", ["translating", "strict", "passthrough"])
def test_where_linux_uses_an_iommu_every_port_with_acs_redirects_and_we_say_so(boots: Boots, name: str) -> None:
    seen = boots[name].result().report.root
    assert registers(seen) == dict.fromkeys(ACS_PORTS, DEFAULT)
    assert redirects(seen) == expected(dict.fromkeys(ACS_PORTS, DEFAULT))


@pytest.mark.parametrize("name", ["iommu_off", "no_iommu"])
def test_without_an_iommu_linux_sets_no_bit_and_we_say_off(boots: Boots, name: str) -> None:
    seen = boots[name].result().report.root
    assert registers(seen) == dict.fromkeys(ACS_PORTS, 0)
    assert redirects(seen) == expected(dict.fromkeys(ACS_PORTS, 0))
    assert not any("ACS redirects" in line for line in seen.tree)


def test_config_acs_on_the_kernel_command_line_is_seen_port_by_port_as_the_register_holds_it(chosen_acs: Booted) -> None:
    """Linux logs 0x007b for 00:1c.1, but the port cannot hold bit 5: the register counts."""
    words = dict.fromkeys(ACS_PORTS, DEFAULT) | {"0000:00:1c.0": 0, "0000:02:02.0": 0, "0000:00:1c.1": 0x005B, "0000:80:00.0": 0x000C}
    seen = chosen_acs.report.root
    assert "0000:00:1c.1: Configured ACS to 0x007b" in chosen_acs.report.dmesg
    assert registers(seen) == words
    assert redirects(seen) == expected(words)
    marked = dict(re.findall(r"(\S+) root port \[ACS redirects: ([^]]*)\]", "\n".join(seen.tree)))
    assert marked == {bdf: bit_names(word) for bdf, word in words.items() if word & REDIRECT}


def test_a_port_without_the_capability_is_off_and_says_why(translating: Booted) -> None:
    seen = translating.report.root
    assert {bdf: (seen.functions[bdf].acs, seen.functions[bdf].acs_why) for bdf in PLAIN_PORTS} == dict.fromkeys(
        PLAIN_PORTS, (None, "no ACS capability")
    )


def test_words_that_setpci_wrote_are_read_back_and_source_validation_alone_redirects_nothing(iommu_off: Booted) -> None:
    written = iommu_off.report.written
    assert written is not None
    words = {bdf: word & CAPABLE for bdf, word in WRITES.items()}
    assert registers(written.root) == words
    assert redirects(written.root) == expected(words)
    assert redirects(written.root)["0000:00:1c.0"] == ("off", "SrcValid")
    assert differences(written.root, witnessed(written.lspci)) == {}


# ---------------------------------------------------------------- another tool's eye


def differences(seen: Seen, others: dict[str, Witnessed]) -> dict[str, tuple[object, object]]:
    """Where we and lspci do not say the same of a function that linkproof reads in full."""
    out: dict[str, tuple[object, object]] = {}
    for bdf, f in seen.functions.items():
        if not (f.is_bridge or f.is_gpu or f.is_nic):
            continue
        o = others[bdf]
        ours = (
            f.cls >> 8,
            f.device,
            f.kind,
            f.acs,
            f.speed_GTps,
            f.width,
            f.speed_best_GTps,
            f.width_best,
            f.numa,
            f.iommu_group,
            f.driver,
        )
        theirs = (o.cls, o.device, o.kind, o.acs, o.speed_GTps, o.width, o.speed_best_GTps, o.width_best, o.numa, o.iommu_group, o.driver)
        bars = {number: size for number, size in enumerate(f.bars_B) if size}
        if ours != theirs or bars != o.bars_B:
            out[bdf] = ((*ours, bars), (*theirs, o.bars_B))
    return out


@EVERY_BOOT
def test_lspci_says_the_same_of_every_port_gpu_and_network_card(boots: Boots, name: str) -> None:
    report = boots[name].result().report
    others = witnessed(report.lspci)
    assert set(others) == set(report.root.functions)
    assert {bdf for bdf, o in others.items() if o.acs is not None} == set(ACS_PORTS)
    assert differences(report.root, others) == {}


@EVERY_BOOT
def test_our_reader_of_lspci_texts_and_our_reader_of_sysfs_agree(boots: Boots, name: str) -> None:
    report = boots[name].result().report
    listing = report.lspci.replace("Device [1234:1111]", "NVIDIA Corporation Device [10de:1111]")  # as StandIn does
    found = {fact.port: (fact.redirect, fact.bits) for fact in read(clean("lspci -D -nn -vvv", listing)) if isinstance(fact, Acs)}
    ours = redirects(report.root)
    assert {port: said for port, said in found.items() if port in ours} == ours


@EVERY_BOOT
def test_reading_changed_no_byte_of_any_configuration_space(boots: Boots, name: str) -> None:
    assert boots[name].result().report.changed == []


# ---------------------------------------------------------------- IOMMU


@pytest.mark.parametrize(("name", "kind"), [("translating", "DMA-FQ"), ("strict", "DMA"), ("passthrough", "identity")])
def test_the_group_type_of_every_gpu_is_the_one_that_linux_was_told_to_use(boots: Boots, name: str, kind: str) -> None:
    seen = boots[name].result().report.root
    assert {gpu: seen.group_types[seen.functions[gpu].iommu_group] for gpu in GPUS} == dict.fromkeys(GPUS, kind)
    assert {fact["device"]: fact["mode"] for fact in facts(seen, "Iommu")} == dict.fromkeys(GPUS, MODES[name])
    assert seen.iommus == ["dmar0"]


def test_passthrough_leaves_acs_on_and_both_are_said(passthrough: Booted) -> None:
    seen = passthrough.report.root
    assert {fact["mode"] for fact in facts(seen, "Iommu")} == {"passthrough"}
    assert {redirects(seen)[port][0] for port in ACS_PORTS if port in ON_A_WAY} == {"on"}


def test_an_iommu_that_is_switched_off_is_told_from_one_that_is_not_there(iommu_off: Booted, no_iommu: Booted) -> None:
    off, absent = iommu_off.report.root, no_iommu.report.root
    assert (off.group_types, off.iommus, absent.group_types, absent.iommus) == ({}, [], {}, [])
    assert off.acpi is not None and "DMAR" in off.acpi
    assert absent.acpi is not None and "DMAR" not in absent.acpi


@EVERY_BOOT
def test_the_kernel_log_as_we_read_it_never_contradicts_the_groups(boots: Boots, name: str) -> None:
    """Linux logs `Default domain type: Translated` even where there is no IOMMU."""
    report = boots[name].result().report
    assert "Default domain type" in report.dmesg
    told = {fact.mode for fact in read(clean("dmesg", report.dmesg)) if isinstance(fact, Iommu)}
    assert told - {"unknown"} <= {MODES[name]}


# ---------------------------------------------------------------- places


def test_every_device_is_where_the_machine_was_built_with_it(translating: Booted) -> None:
    seen = translating.report.root
    switch = ("0000:00:1c.0", "0000:01:00.0")
    assert {bdf: seen.functions[bdf].chain for bdf in (*GPUS, *NICS)} == {
        "0000:03:00.0": (*switch, "0000:02:00.0"),
        "0000:04:00.0": (*switch, "0000:02:01.0"),
        "0000:05:00.0": (*switch, "0000:02:02.0"),
        "0000:06:00.0": (*switch, "0000:02:03.0"),
        "0000:09:00.0": (*switch, "0000:02:04.0", "0000:07:00.0", "0000:08:00.0"),
        "0000:0a:00.0": ("0000:00:1c.1",),
        "0000:0b:00.0": ("0000:00:1c.2",),
        "0000:81:00.0": ("0000:80:00.0",),
    }
    assert {seen.functions[bdf].host_bridge for bdf in GPUS[:5]} == {"pci0000:00"}
    assert (seen.functions[GPUS[5]].host_bridge, seen.functions[GPUS[5]].numa, seen.functions[GPUS[0]].numa) == ("pci0000:80", 1, None)


MATRIX = """\
      GPU0  GPU1  GPU2  GPU3  GPU4  GPU5  NIC0  NIC1
GPU0  X     PIX*  PIX*  PXB   PHB   SYS   PIX*  PHB
GPU1  PIX*  X     PIX*  PXB*  PHB   SYS   PIX*  PHB
GPU2  PIX*  PIX*  X     PXB*  PHB   SYS   PIX*  PHB
GPU3  PXB   PXB*  PXB*  X     PHB   SYS   PXB*  PHB
GPU4  PHB   PHB   PHB   PHB   X     SYS   PHB   PHB
GPU5  SYS   SYS   SYS   SYS   SYS   X     SYS   SYS"""


def test_the_matrix_names_every_way_and_marks_those_that_are_redirected(translating: Booted, iommu_off: Booted) -> None:
    assert "\n".join(translating.report.root.matrix) == MATRIX
    assert "\n".join(iommu_off.report.root.matrix) == MATRIX.replace("*", " ")


def test_the_ports_that_decide_are_the_two_below_the_common_switch(translating: Booted) -> None:
    turning = {(p.a, p.b): p.turning for p in translating.report.root.paths}
    assert turning[GPUS[0], GPUS[1]] == ("0000:02:00.0", "0000:02:01.0")
    assert turning[GPUS[1], GPUS[3]] == ("0000:02:01.0", "0000:02:04.0")
    assert turning[GPUS[1], NICS[0]] == ("0000:02:01.0", "0000:02:03.0")
    assert turning[GPUS[0], GPUS[4]] == turning[GPUS[0], GPUS[5]] == ()
    assert {port for ports in turning.values() for port in ports} == set(TURNING)


def test_a_narrow_card_in_a_wide_port_is_no_lost_width(translating: Booted) -> None:
    seen = translating.report.root
    assert (seen.functions["0000:00:1c.1"].width, seen.functions["0000:00:1c.1"].width_best) == (1, 32)
    assert [fact for fact in facts(seen, "Event") if fact["kind"] == "link_downgraded"] == []


def test_the_file_for_nccl_nests_every_gpu_and_card_below_its_switches(translating: Booted) -> None:
    system = ElementTree.fromstring(translating.report.root.xml)
    above = {child.get("busid"): parent.get("busid") for parent in system.iter() for child in parent if child.tag == "pci"}
    assert {bdf: above[bdf] for bdf in (*GPUS, *NICS)} == {
        **dict.fromkeys((*GPUS[:3], NICS[0]), "0000:01:00.0"),
        GPUS[3]: "0000:07:00.0",
        **dict.fromkeys((GPUS[4], GPUS[5], NICS[1]), None),
    }
    assert above["0000:07:00.0"] == "0000:01:00.0"
    assert len(system.findall("cpu")) == 2


# ---------------------------------------------------------------- without root


@EVERY_BOOT
def test_without_root_every_port_is_unknown_with_the_reason_and_never_off(boots: Boots, name: str) -> None:
    seen = boots[name].result().report.user
    assert {(f.acs, f.acs_why) for f in seen.functions.values() if f.is_bridge} == {(None, NO_ROOT)}
    said = {fact["port"]: (fact["redirect"], fact["source"]["text"]) for fact in facts(seen, "Acs")}
    assert set(said) >= {*TURNING, "0000:00:1c.0", "0000:00:1c.1", "0000:80:00.0"}
    assert said == {port: ("unknown", f"{port}: {NO_ROOT}") for port in said}
    assert sum(f"[ACS unknown: {NO_ROOT}]" in line for line in seen.tree) == len({*ACS_PORTS, *PLAIN_PORTS})
    assert not any("ACS redirects" in line for line in seen.tree)
    assert "*" not in "".join(seen.matrix)


@EVERY_BOOT
def test_without_root_places_links_and_groups_are_known_all_the_same(boots: Boots, name: str) -> None:
    report = boots[name].result().report
    assert report.user.paths == report.root.paths
    assert report.user.group_types == report.root.group_types
    assert facts(report.user, "Iommu") == facts(report.root, "Iommu")
    assert report.user.xml == report.root.xml


# ---------------------------------------------------------------- the capture


def log_of(report: Report) -> Recorded:
    return Recorded(unpack(report.capture, "capture"))


@EVERY_BOOT
def test_a_capture_from_the_guest_says_on_another_machine_what_the_live_one_said(boots: Boots, name: str) -> None:
    report = boots[name].result().report
    replayed = msgspec.json.decode(msgspec.json.encode(describe(log_of(report))), type=Seen)
    assert replayed == report.root


@EVERY_BOOT
def test_the_whole_check_of_a_capture_knows_each_gpus_iommu_mode_or_that_a_guest_cannot_know(boots: Boots, name: str) -> None:
    """A guest without groups says nothing about its host's IOMMU. And nothing was measured, so no machine may be called healthy."""
    checked = check(StandIn(log_of(boots[name].result().report)))
    assert checked.modes == dict.fromkeys(GPUS, "unknown" if MODES[name] == "off" else MODES[name])
    assert checked.diagnosis.verdict == "cannot_tell"


@EVERY_BOOT
def test_in_a_guest_that_says_so_no_step_of_a_plan_for_its_ports_or_iommu_may_be_applied(boots: Boots, name: str) -> None:
    """QEMU shows ACS registers and an IOMMU, and what is written there moves nothing on the host."""
    host = StandIn(log_of(boots[name].result().report))
    made = plan(check(host), read_mend(host), ((GPUS[1], GPUS[2]),))
    written = [step for step in made.steps if step.changes]
    assert bool(written) == (MODES[name] == "translating")
    assert all("guest" in {refusal.ref for refusal in step.refusals} for step in written)


def test_a_locked_down_kernel_still_lets_us_read_every_register(strict: Booted) -> None:
    assert "[integrity]" in log_of(strict.report).file("/sys/kernel/security/lockdown").text
    assert registers(strict.report.root) == dict.fromkeys(ACS_PORTS, DEFAULT)


# ---------------------------------------------------------------- where it cannot run


def test_without_qemu_the_run_says_at_its_end_what_to_install(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(Path(__file__)), "-k", "capability_is_off"]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2], env={**os.environ, "PATH": str(tmp_path)}
    )
    assert done.returncode == 0, done.stdout
    assert "kernel tests skipped" in done.stdout
    assert INSTALL in done.stdout
