"""`linkproof fix` on real ACS registers in a real Linux: planned, applied, read back by lspci, taken back, made to last; and what refuses it.

Every comparison of registers is of the whole configuration space of every function of the machine, word by word. None of its words moves by
itself (read three times with nothing in between, see the first test), so none is left out.

QEMU routes no packet by ACS. Where a step has to help, the probe is a stand-in that says what a switch does with the words that are in the
registers (fix_guest.by_acs). Where a step must not have helped, the probe is real: a device copies one card's memory into another's, the IOMMU
loses it, and no word in a port changes that.
"""

from __future__ import annotations

import re
from base64 import decodebytes
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kernel.conftest import Told
from kernel.guest import StandIn as Nvidia
from kernel.vm import ACS_PORTS
from kernel.witness import witnessed
from linkproof import cli
from linkproof.act.doors import Machine
from linkproof.collect.bundle import unpack
from linkproof.collect.host import Recorded
from linkproof.fixing import command as fixing

PORTS = ("0000:02:01.0", "0000:02:02.0")  # where the way between the two cards turns
PAIRS = [("0000:04:00.0", "0000:05:00.0"), ("0000:05:00.0", "0000:04:00.0")]
DEFAULT, CLEARED = 0x001D, 0x0011
WRITTEN = {port: ["0x14e 001d -> 0011"] for port in PORTS}  # ReqRedir and CmpltRedir off, all else as it was


@pytest.fixture(scope="module")
def acs(acs_boots: dict[str, Told]) -> Told:
    return acs_boots["acs"]


@pytest.fixture(scope="module")
def persisted(acs_boots: dict[str, Told]) -> Told:
    return acs_boots["persisted"]


@pytest.fixture(scope="module")
def moved(acs_boots: dict[str, Told]) -> Told:
    return acs_boots["moved"]


@pytest.fixture(scope="module")
def lockdown(lockdown_boots: dict[str, Told]) -> Told:
    return lockdown_boots["lockdown"]


def acs_words(listing: str) -> dict[str, int]:
    """As lspci decodes them."""
    return {bdf: o.acs for bdf, o in witnessed(listing).items() if o.acs is not None}


def but_for_acs(listing: str) -> list[str]:
    return [line for line in listing.splitlines() if "ACSCtl:" not in line]


def step(said: Told, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(s for s in said["steps"] if s["id"] == name)
    return found


def states(said: Told) -> dict[str, str]:
    """Step -> state, of `apply`; change -> state, of `status` and `rollback`."""
    if "results" in said:
        return {r["id"]: r["state"] for r in said["results"]}
    return {c["change"]["target"]: c["state"] for c in said["changes"]}


# ---------------------------------------------------------------- plan


def test_no_word_of_any_configuration_space_moves_by_itself(acs: Told) -> None:
    assert acs["moving"] == [{}, {}]


def test_planning_writes_nothing(acs: Told) -> None:
    assert acs["plan_changed"] == [{}, False]


def test_the_plan_is_for_the_pair_that_fails_and_its_first_step_is_the_two_ports_between(acs: Told) -> None:
    plan = acs["plan"]
    assert (plan["code"], plan["state"], plan["measured"]) == (1, "steps", True)
    assert [(p["src"], p["dst"]) for p in plan["pairs"]] == PAIRS
    first = plan["steps"][0]
    assert (first["id"], first["applies"], first["lasts"], first["effect"]) == ("acs-switch", True, "until_reboot", "now")
    assert [c["target"] for c in first["changes"]] == list(PORTS)
    assert [(p["src"], p["dst"]) for p in first["pairs"]] == PAIRS
    on_the_way = {"0000:00:1c.0", *PORTS}
    assert {c["target"] for s in plan["steps"] for c in s["changes"] if c["kind"] == "config_word"} <= on_the_way


def test_a_capture_taken_in_the_guest_gives_the_same_plan_on_another_machine(acs: Told, tmp_path: Path) -> None:
    host = Nvidia(Recorded(unpack(decodebytes(acs["capture"].encode()), "capture")))
    options = cli._parser("en").parse_args(["fix", "plan", "--format", "json"])
    printed: list[Any] = []
    code = fixing.run(options, "en", printed.append, 100, fixing.StandIn(host, Machine(str(tmp_path))))
    planned = {name: said for name, said in acs["planned"].items() if name != "told"}
    assert {"code": code, **msgspec.json.decode(printed[0])} == planned
    assert planned["steps"][0]["id"] == "acs-switch" and not planned["measured"]


def test_without_a_measurement_every_step_is_refused_but_may_be_accepted(acs: Told) -> None:
    written = [s for s in acs["planned"]["steps"] if s["changes"]]
    assert written and all("unmeasured" in [r["ref"] for r in s["refusals"]] and not s["applies"] for s in written)


# ---------------------------------------------------------------- apply, status, rollback


def test_apply_clears_the_named_bits_of_two_ports_and_changes_nothing_else_in_any_device(acs: Told) -> None:
    assert states(acs["apply"]) == {"acs-switch": "helped"}
    assert acs["apply"]["code"] == 0
    assert acs["applied"] == WRITTEN


def test_lspci_reads_the_same_words_before_apply_after_it_and_after_rollback(acs: Told) -> None:
    all_on = dict.fromkeys(ACS_PORTS, DEFAULT)
    assert acs_words(acs["lspci_before"]) == all_on
    assert acs_words(acs["lspci_applied"]) == all_on | dict.fromkeys(PORTS, CLEARED)
    assert acs_words(acs["lspci_rolled_back"]) == all_on
    assert but_for_acs(acs["lspci_applied"]) == but_for_acs(acs["lspci_before"])
    assert acs["lspci_rolled_back"] == acs["lspci_before"]


def test_status_tells_what_is_in_force_and_what_was_there(acs: Told) -> None:
    assert states(acs["status"]) == dict.fromkeys(PORTS, "in_force")
    assert {c["former"].split()[0] for c in acs["status"]["changes"]} == {"0x001d"}
    assert {c["now"].split()[0] for c in acs["status"]["changes"]} == {"0x0011"}


def test_rollback_gives_every_bit_of_every_device_back_and_leaves_nothing_in_place(acs: Told) -> None:
    assert states(acs["rollback"]) == dict.fromkeys(PORTS, "restored")
    assert acs["rolled_back"] == {}
    assert (acs["status_then"]["code"], acs["status_then"]["state"], acs["status_then"]["changes"]) == (0, "nothing", [])


def test_a_step_that_real_data_show_not_to_help_is_taken_back_by_apply_itself(acs: Told) -> None:
    assert states(acs["apply_real"]) == {"acs-switch": "did_not_help"}
    assert "acs-switch: takes it back" in acs["apply_real"]["told"]
    assert acs["apply_real"]["code"] == 1
    assert acs["applied_real"] == {}
    assert acs["status_real"]["state"] == "nothing"


def test_while_one_apply_is_at_work_a_second_one_and_a_rollback_are_refused(acs: Told) -> None:
    second = acs["two"]["second"]
    assert second["registers"] == WRITTEN  # the first one was in the middle of it
    for action in ("apply", "rollback"):
        assert (second[action]["code"], second[action]["error"]) == (2, "fix-busy")
        assert re.search(r"apply, pid \d+, since ", second[action]["what"])
    assert any("apply, pid" in note for note in second["status"]["notes"])
    assert states(acs["two"]["first"]) == {"acs-switch": "helped"}
    assert states(acs["two"]["rollback"]) == dict.fromkeys(PORTS, "restored")
    assert acs["left_by_two"] == {}


# ---------------------------------------------------------------- refusals


def test_a_device_below_the_port_that_is_held_by_vfio_makes_it_refuse(acs: Told) -> None:
    vfio = acs["vfio"]
    assert vfio["driver"] == "vfio-pci"
    planned = step(vfio["plan"], "acs-switch")
    assert [(r["ref"], r["accept"]) for r in planned["refusals"]] == [("vfio", "--i-accept vfio")]
    assert "0000:04:00.1 (vfio-pci)" in planned["refusals"][0]["why"]
    assert states(vfio["apply"]) == {"acs-switch": "refused"}
    assert vfio["changed"] == {}


def test_a_person_may_overrule_that_and_take_it_back(acs: Told) -> None:
    vfio = acs["vfio"]
    assert states(vfio["accepted"]) == {"acs-switch": "helped"}
    assert vfio["changed_accepted"] == WRITTEN
    assert states(vfio["rollback"]) == dict.fromkeys(PORTS, "restored")
    assert vfio["rolled_back"] == {}


def test_a_locked_down_kernel_makes_it_refuse_and_nobody_may_overrule_it(lockdown: Told) -> None:
    planned = step(lockdown["plan"], "acs-switch")
    assert [(r["ref"], r["accept"]) for r in planned["refusals"]] == [("lockdown", "")]
    assert states(lockdown["apply"]) == {"acs-switch": "refused"}
    assert lockdown["changed"] == {}


def test_where_the_kernel_itself_refuses_the_write_the_step_has_failed_with_its_reason_and_nothing_is_left(lockdown: Told) -> None:
    [forced] = lockdown["forced"]
    assert (forced["id"], forced["state"]) == ("acs-switch", "failed")
    assert "the kernel is locked down ({mode})" in forced["why"][0]["text"] and forced["why"][0]["args"] == {"mode": "integrity"}
    assert lockdown["changed_forced"] == {}
    assert (lockdown["status"]["state"], lockdown["rollback"]["state"]) == ("nothing", "nothing")


# ---------------------------------------------------------------- made to last


def test_persist_writes_a_unit_and_says_that_it_waits_for_the_next_boot(acs: Told) -> None:
    assert states(acs["last"]) == {"acs-switch": "helped"}
    assert (acs["persist"]["code"], states(acs["persist"])) == (0, {"persist-unit": "in_place"})
    assert re.search(r"^ExecStart=.* linkproof fix reapply$", acs["unit"], re.M)
    waiting = [c["change"]["target"] for c in acs["persist_status"]["changes"] if c["state"] == "waits_for_reboot"]
    assert "/etc/systemd/system/multi-user.target.wants/linkproof-fix.service" in waiting
    assert {states(acs["persist_status"])[port] for port in PORTS} == {"in_force"}


def test_after_a_reboot_status_says_that_the_words_are_lost_until_the_unit_has_run(persisted: Told) -> None:
    before = persisted["status_before"]
    assert (before["code"], before["state"]) == (1, "not_all")
    assert {states(before)[port] for port in PORTS} == {"lost"}


def test_what_the_unit_starts_writes_the_words_again_and_status_says_so(persisted: Told) -> None:
    assert persisted["run"]["code"] == 0, persisted["run"]["said"]
    assert persisted["changed"] == WRITTEN
    assert {port: acs_words(persisted["lspci"])[port] for port in PORTS} == dict.fromkeys(PORTS, CLEARED)
    assert persisted["status"]["code"] == 0
    assert {states(persisted["status"])[port] for port in PORTS} == {"in_force"}
    assert persisted["again"]["code"] == 0, persisted["again"]["said"]
    assert persisted["changed_again"] == WRITTEN


def test_a_reset_of_the_bridge_above_loses_the_words_status_says_so_and_the_unit_writes_them_again(persisted: Told) -> None:
    assert {port: acs_words(persisted["lspci_reset"])[port] for port in PORTS} == dict.fromkeys(PORTS, DEFAULT)
    assert persisted["status_reset"]["code"] == 1
    assert {states(persisted["status_reset"])[port] for port in PORTS} == {"lost"}
    assert persisted["after_reset"]["code"] == 0, persisted["after_reset"]["said"]
    assert persisted["changed_after_reset"] == WRITTEN


def test_what_another_hand_wrote_since_is_told_and_left_alone(persisted: Told) -> None:
    assert {port: states(persisted["status_other_hand"])[port] for port in PORTS} == {PORTS[0]: "drifted", PORTS[1]: "in_force"}
    assert (persisted["status_other_hand"]["code"], persisted["rollback_other_hand"]["code"]) == (1, 1)
    last = {c["change"]["target"]: c["state"] for c in reversed(persisted["rollback_other_hand"]["changes"])}
    assert (last[PORTS[0]], last[PORTS[1]]) == ("changed_since", "restored")
    assert persisted["changed_other_hand"] == {PORTS[0]: ["0x14e 001d -> 0019"]}


def test_rollback_in_a_later_boot_takes_words_unit_and_folders_away(persisted: Told) -> None:
    assert (persisted["rollback"]["code"], persisted["rolled_back"]) == (0, {})
    assert (persisted["status_after"]["state"], persisted["status_after"]["notes"]) == ("nothing", [])
    assert [path for path in persisted["files"] if path.startswith("/etc/")] == ["/etc/hostname"]


def test_with_another_card_in_the_machine_the_unit_writes_nothing_and_says_why(moved: Told) -> None:
    assert moved["run"]["code"] == 1
    assert "GPU 0000:09:00.0 is gone" in moved["run"]["said"]
    assert moved["changed"] == {}
    assert (moved["status"]["code"], {states(moved["status"])[port] for port in PORTS}) == (1, {"lost"})
    assert any("GPU 0000:09:00.0 is gone" in note for note in moved["status"]["notes"])


def test_rollback_there_takes_the_unit_away_and_touches_no_register(moved: Told) -> None:
    assert (moved["rollback"]["code"], moved["rolled_back"]) == (0, {})
    assert [path for path in moved["files"] if path.startswith("/etc/")] == ["/etc/hostname"]
