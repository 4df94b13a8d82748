"""What forbids a step: guests' devices, lent functions, lockdown, virtual machines, containers, ports off the path, too many CPUs; what nobody
could read is none of it "fine". What a person may accept, and what nobody may."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from evidence.build import DEVICES, NVIDIA, Machine
from fix_machine import JOURNAL, REDIRECTS, SWITCH_PORTS, Box
from linkproof.act.apply import apply
from linkproof.act.doors import Machine as Door
from linkproof.act.journal import Journal
from linkproof.act.plan import plan
from linkproof.act.refusals import listed, refusals, refusals_now
from linkproof.checking import check
from linkproof.collect.host import Answer, Live
from linkproof.collect.mend import read_mend
from linkproof.mending import RISKS, Command, ConfigWord, Plan, Refusal, Sentence, Step, SysfsText, TextFile
from planned import BOTH, GPUS, NIC, PORTS, bad_between, driver, plan_for, put, refs, steps, two_below_a_switch, words

SOUND, INSIDE = "0000:04:00.1", "0000:00:02.0"  # of the first card, below the first port; a function of the processor, below no port
NEVER = ("lockdown", "guest", "container", "off_path", "not_readable", "chipset", "no_loader", "no_parameter", "entries_differ")


class Shut(Machine):
    """Paths that may not be read."""

    denied: tuple[str, ...] = ()

    def file(self, path: str) -> Answer:
        return Answer(None, "denied") if path in self.denied else super().file(path)

    def names(self, path: str) -> Answer:
        return Answer(None, "denied") if path in self.denied else super().names(path)

    def link(self, path: str) -> Answer:
        return Answer(None, "denied") if path in self.denied else super().link(path)


@pytest.fixture
def m(monkeypatch: pytest.MonkeyPatch) -> Shut:
    """Bare metal, everything read, nobody else's devices: nothing is refused."""
    monkeypatch.setattr("planned.Machine", Shut)
    made = two_below_a_switch(iommu="DMA-FQ")
    made.function(PORTS[0], SOUND, 0x040300, NVIDIA, 0x22BA, b"\xde\x10")
    made.function("pci0000:00", INSIDE, 0x0B4000, 0x8086, 0x4940, b"\x86\x80")
    assert isinstance(made, Shut)
    return made


def told(m: Machine, iommu_off: bool = False, cause: str = "p2p_broken_unattributed") -> dict[str, set[str]]:
    """Step that writes -> what it is refused for."""
    return {name: refs(step) for name, step in steps(cause, machine=m, iommu_off=iommu_off).items() if step.changes}


def test_a_machine_on_which_nothing_forbids_it_refuses_nothing(m: Shut) -> None:
    assert told(m) == {"acs-switch": set(), "acs-path": set(), "iommu-passthrough": set()}
    assert told(m, iommu_off=True)["iommu-off"] == set()


# ---------------------------------------------------------------- who uses what stands below


@pytest.mark.parametrize("name", ["vfio-pci", "mlx5_vfio_pci", "xen-pciback", "pciback", "pci-stub"])
def test_a_device_that_is_held_for_a_guest_refuses_the_ports_above_it_and_the_whole_iommu(m: Shut, name: str) -> None:
    assert told(driver(m, NIC, name)) == {"acs-switch": set(), "acs-path": {"vfio"}, "iommu-passthrough": {"vfio"}}
    assert told(driver(m, SOUND, name))["acs-switch"] == {"vfio"}
    step = steps("acs_redirect", machine=m)["acs-switch"]
    assert [words(r.why) for r in step.refusals] == [f"held for a guest: {SOUND} ({name})"]


@pytest.mark.parametrize("name", ["nvidia", "mlx5_core", "ahci", "pcieport", "snd_hda_intel"])
def test_a_device_that_the_host_uses_itself_refuses_nothing(m: Shut, name: str) -> None:
    assert not any(told(driver(m, SOUND, name)).values())


@pytest.mark.parametrize(("text", "lent"), [("4", True), ("1", True), ("0", False), ("", True), ("many", True), ("-1", True)])
def test_virtual_functions_in_use_refuse_and_a_number_that_cannot_be_understood_does_too(m: Shut, text: str, lent: bool) -> None:
    put(m, {f"{DEVICES}/{NIC}/sriov_numvfs": text})
    assert told(m) == {"acs-switch": set(), "acs-path": {"sriov"} if lent else set(), "iommu-passthrough": {"sriov"} if lent else set()}


def test_virtual_functions_of_the_processors_own_devices_count_where_the_whole_iommu_is_meant(m: Shut) -> None:
    put(m, {f"{DEVICES}/{INSIDE}/sriov_numvfs": "16"})
    assert told(m) == {"acs-switch": set(), "acs-path": set(), "iommu-passthrough": {"sriov"}}


@pytest.mark.parametrize(("word", "refused"), [("removable", True), ("fixed", False), ("unknown", False)])
def test_a_device_outside_of_the_case_refuses_the_port_above_it(m: Shut, word: str, refused: bool) -> None:
    put(m, {f"{DEVICES}/{NIC}/removable": word})
    assert told(m)["acs-path"] == ({"external"} if refused else set()) and told(m)["acs-switch"] == set()


def test_a_group_is_refused_for_its_members_and_for_no_other_device(m: Shut) -> None:
    for gpu in GPUS:
        del m.links[f"{DEVICES}/{gpu}/driver"]
    driver(m, NIC, "vfio-pci")
    step = steps("iommu_translation", machine=m)["iommu-identity"]
    assert step.changes and refs(step) == set()
    driver(m, GPUS[1], "vfio-pci")  # since it was planned
    assert {r.ref for r in refusals_now(step, m)} == {"vfio"}


# ---------------------------------------------------------------- what the machine is


@pytest.mark.parametrize("virt", ["kvm", "vmware", "microsoft", "xen", "amazon"])
def test_in_a_guest_neither_ports_nor_iommu_are_touched_and_the_host_is_named(m: Shut, virt: str) -> None:
    m.commands[("systemd-detect-virt",)] = Answer(f"{virt}\n".encode())
    assert set(map(frozenset, told(m).values())) == {frozenset({"guest"})}
    made = plan_for("p2p_broken_unattributed", machine=m)
    assert made.steps[-1].id == "host-of-the-guest" and made.steps[-1].changes == ()


def test_a_guest_whose_kind_could_not_be_known_is_not_bare_metal(m: Shut) -> None:
    del m.commands[("systemd-detect-virt",)], m.commands[("lscpu",)]
    assert set(map(frozenset, told(m).values())) == {frozenset({"not_readable"})}


@pytest.mark.parametrize("mode", ["integrity", "confidentiality"])
def test_a_locked_kernel_refuses_registers_and_takes_its_own_parameter_instead(m: Shut, mode: str) -> None:
    put(m, {"/sys/kernel/security/lockdown": f"none [{mode}]"})
    made = told(m)
    assert made["acs-switch"] == made["acs-path"] == {"lockdown"}
    assert made["acs-kernel"] == made["iommu-passthrough"] == set()


def test_whether_it_is_locked_may_be_unknown_since_the_kernel_itself_then_refuses_and_nothing_is_lost(m: Shut) -> None:
    m.denied = ("/sys/kernel/security/lockdown",)
    assert told(m)["acs-switch"] == set()


@pytest.mark.parametrize(
    ("texts", "refused"),
    [
        ({"/.dockerenv": ""}, {"acs-switch", "acs-path"}),
        ({"/run/.containerenv": ""}, {"acs-switch", "acs-path"}),
        ({"/proc/self/cgroup": "0::/kubepods/burstable/pod1"}, {"acs-switch", "acs-path", "iommu-passthrough"}),
        ({"/proc/mounts": "sysfs /sys sysfs ro,nosuid 0 0"}, {"acs-switch", "acs-path"}),
        ({"/proc/mounts": "sysfs /sys sysfs ro 0 0\nsysfs /sys sysfs rw 0 0"}, set()),
        ({"/proc/mounts": "sysfs /sys/fs sysfs ro 0 0"}, set()),
    ],
)
def test_in_a_container_nothing_is_written(m: Shut, texts: dict[str, str], refused: set[str]) -> None:
    assert {name for name, found in told(put(m, texts)).items() if found == {"container"}} == refused


def test_what_takes_no_isolation_is_refused_in_a_container_and_by_nothing_else(m: Shut) -> None:
    m.commands[("systemd-detect-virt",)] = Answer(b"kvm\n")
    driver(put(m, {"/sys/kernel/security/lockdown": "[integrity]", f"{DEVICES}/{NIC}/sriov_numvfs": "4"}), SOUND, "vfio-pci")
    step = steps("shm_too_small", machine=m, shm_KiB=65536)["shm-host"]
    assert step.changes and step.refusals == ()
    assert {r.ref for r in refusals_now(step, put(m, {"/.dockerenv": ""}))} == {"container"}


@pytest.mark.parametrize(
    ("cpus", "refused"), [("0-253", False), ("0-254", True), ("0-127,256-383", True), ("0", False), ("", True), ("0-x", True)]
)
def test_more_cpus_than_interrupts_reach_without_the_iommu_refuse_off_and_not_passthrough(m: Shut, cpus: str, refused: bool) -> None:
    put(m, {"/sys/devices/system/cpu/possible": cpus})
    assert told(m, iommu_off=True)["iommu-off"] == ({"many_cpus"} if refused else set())
    assert told(m)["iommu-passthrough"] == set()


# ---------------------------------------------------------------- what nobody could read


UNREAD: dict[str, tuple[tuple[str, ...], str, set[str]]] = {  # what is denied -> the name of the refusal, the steps that have it
    "who holds a device": ((f"{DEVICES}/{NIC}/driver",), "vfio", {"acs-path", "iommu-passthrough", "iommu-off"}),
    "who holds the GPU's sound": ((f"{DEVICES}/{SOUND}/driver",), "vfio", {"acs-switch", "acs-path", "iommu-passthrough", "iommu-off"}),
    "what it lends": ((f"{DEVICES}/{NIC}/sriov_numvfs",), "sriov", {"acs-path", "iommu-passthrough", "iommu-off"}),
    "where it stands": ((f"{DEVICES}/{NIC}/removable",), "external", {"acs-path", "iommu-passthrough", "iommu-off"}),
    "how many CPUs": (("/sys/devices/system/cpu/possible",), "many_cpus", {"iommu-off"}),
}


@pytest.mark.parametrize("what", UNREAD)
def test_what_could_not_be_read_is_refused_like_the_worst_that_it_could_be(m: Shut, what: str) -> None:
    m.denied, ref, refused = UNREAD[what]
    found = {**told(m), **told(m, iommu_off=True)}
    assert {name for name, have in found.items() if have == {ref}} == refused
    assert all(have in (set(), {ref}) for have in found.values())


def test_a_guests_device_whose_place_could_not_be_read_may_stand_below_any_port(m: Shut) -> None:
    driver(m, NIC, "vfio-pci")
    m.denied = (f"{DEVICES}/{NIC}",)
    assert told(m)["acs-switch"] == {"vfio"}


def test_ports_that_could_not_be_read_are_not_written_and_the_step_says_that_root_can(m: Shut) -> None:
    m.denied = tuple(f"{DEVICES}/{port}/config" for port in PORTS)
    step = steps("p2p_broken_unattributed", machine=m)["acs-switch"]
    assert step.changes == () and refs(step) == {"not_readable"}


def test_devices_that_cannot_be_listed_any_more_right_before_the_write_refuse_it(m: Shut) -> None:
    before = {name: step for name, step in steps("p2p_broken_unattributed", machine=m).items() if step.changes}
    for gpu in GPUS:
        del m.links[f"{DEVICES}/{gpu}/driver"]
    before |= steps("iommu_translation", machine=m)
    m.denied = (DEVICES,)
    after = {name: {r.ref for r in refusals_now(step, m)} for name, step in before.items()}
    assert after["acs-switch"] == after["acs-path"] == {"off_path"}
    assert after["iommu-passthrough"] == after["iommu-identity"] == {"not_readable"}


# ---------------------------------------------------------------- off the path


def acs_switch(m: Machine) -> Step:
    return steps("acs_redirect", machine=m)["acs-switch"]


def test_a_port_that_stands_above_neither_gpu_is_refused_whoever_put_it_into_the_step(m: Shut) -> None:
    step = acs_switch(m)
    third = "0000:03:02.0"  # the network card's
    strange = structs.replace(step, changes=(*step.changes, ConfigWord(third, 0x156, 0x0C, 0, "1000:c030 x")))
    (refusal,) = refusals(strange, read_mend(m))
    assert refusal.ref == "off_path" and third in words(refusal.why) and PORTS[0] not in words(refusal.why)


def test_the_gpu_itself_is_no_port_of_its_path(m: Shut) -> None:
    step = structs.replace(acs_switch(m), changes=(ConfigWord(GPUS[0], 0x156, 0x0C, 0, "10de:2330 x"),))
    assert {r.ref for r in refusals(step, read_mend(m))} == {"off_path"}


MOVED: dict[str, Callable[[Machine], None]] = {
    "a GPU is gone": lambda m: m.folders[DEVICES].remove(GPUS[1]),
    "a GPU stands elsewhere": lambda m: m.links.update({f"{DEVICES}/{GPUS[1]}": f"/sys/devices/pci0000:00/0000:00:05.0/{GPUS[1]}"}),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_machine_that_changed_since_it_was_planned_for_refuses(m: Shut, name: str) -> None:
    step = acs_switch(m)
    assert refusals_now(step, m) == ()
    MOVED[name](m)
    assert {r.ref for r in refusals_now(step, m)} == {"off_path"}


def test_a_step_for_no_pair_may_write_no_register(m: Shut) -> None:
    step = structs.replace(acs_switch(m), pairs=())
    assert {r.ref for r in refusals(step, read_mend(m))} == {"off_path"}


# ---------------------------------------------------------------- what was measured


def test_pairs_that_were_named_and_did_not_measure_bad_must_be_accepted(m: Shut) -> None:
    found = check(m, bad_between((0, 1)))
    for named, refused in ((BOTH[:1], set()), (BOTH, {"unmeasured"}), (BOTH[1:], {"unmeasured"})):
        written = [step for step in plan(found, read_mend(m), named).steps if step.changes]
        assert written and all(refs(step) == refused for step in written)
    written = [step for step in plan(check(m), read_mend(m), BOTH, fresh=False).steps if step.changes]
    assert written and all(refs(step) == {"unmeasured"} for step in written)


def test_a_step_that_a_person_does_is_not_refused(m: Shut) -> None:
    m.commands[("systemd-detect-virt",)] = Answer(b"kvm\n")
    step = structs.replace(acs_switch(m), changes=())
    assert refusals(step, read_mend(m)) == ()


def test_several_reasons_are_all_told_each_once(m: Shut) -> None:
    m.commands[("systemd-detect-virt",)] = Answer(b"kvm\n")
    put(
        driver(driver(m, SOUND, "vfio-pci"), NIC, "vfio-pci"),
        {"/sys/kernel/security/lockdown": "[integrity]", f"{DEVICES}/{NIC}/sriov_numvfs": "2"},
    )
    step = steps("acs_redirect", machine=m)["acs-path"]
    assert sorted(r.ref for r in step.refusals) == ["guest", "lockdown", "sriov", "vfio"]
    assert {SOUND, NIC} <= set(words(next(r for r in step.refusals if r.ref == "vfio").why).replace("(", " ").split())


def test_many_devices_are_counted_and_not_all_named() -> None:
    assert listed("abcdef") == "a, b, c, d, e, f" and listed("abcdefgh") == "a, b, c, d, e, f ... +2" and listed(()) == ""


# ---------------------------------------------------------------- accepted


def test_a_person_may_accept_what_costs_isolation_and_never_what_makes_it_wrong_or_impossible() -> None:
    assert set(RISKS) == {"vfio", "sriov", "external", "unmeasured", "many_cpus"}
    assert all(Refusal(ref, Sentence("x")).may_be_accepted for ref in RISKS)
    assert not any(Refusal(ref, Sentence("x")).may_be_accepted for ref in NEVER)


GUEST_FLAG = {"/proc/cpuinfo": "vendor_id\t: AuthenticAMD\nflags\t\t: fpu hypervisor sse2\n"}
FORBIDDEN = {
    "guest": GUEST_FLAG,
    "container": {"/.dockerenv": ""},
    "lockdown": {"/sys/kernel/security/lockdown": "none [integrity] confidentiality\n"},
    "not_readable": {"/proc/cpuinfo": ""},
}


@pytest.mark.parametrize("ref", FORBIDDEN)
def test_what_nobody_may_accept_stays_refused_with_every_risk_accepted(ref: str, tmp_path: Path) -> None:
    box = Box(tmp_path, files=FORBIDDEN[ref])
    before = box.registers()
    code, _ = box.run("apply", *(part for name in RISKS for part in ("--i-accept", name)))
    assert code == 1 and box.registers() == before


BELOW = f"{DEVICES}/0000:43:00.0"  # the first GPU of a Box
ACCEPTABLE = {"sriov": {f"{BELOW}/sriov_numvfs": "2\n"}, "external": {f"{BELOW}/removable": "removable\n"}}


@pytest.mark.parametrize("ref", ACCEPTABLE)
def test_a_risk_is_taken_only_by_its_own_name(ref: str, tmp_path: Path) -> None:
    box = Box(tmp_path, files=ACCEPTABLE[ref])
    before = box.registers()
    others = [part for name in RISKS if name != ref for part in ("--i-accept", name)]
    assert box.run("apply", "--step", "acs-switch", *others)[0] == 1 and box.registers() == before
    assert box.run("apply", "--step", "acs-switch", "--i-accept", ref)[0] == 0
    assert all(box.acs(port) & REDIRECTS == 0 for port in SWITCH_PORTS)


def test_what_changed_between_plan_and_write_is_asked_again_and_what_was_accepted_then_is_no_leave_for_it(tmp_path: Path) -> None:
    """Planned on bare metal; a guest's device is there when it comes to writing, and who accepted another risk did not accept this one."""
    box = Box(tmp_path)
    host, door = Live(str(tmp_path)), Door(str(tmp_path))
    made = plan(check(host, box.measured()), read_mend(host))
    first = structs.replace(made, steps=made.steps[:1])
    assert first.steps[0].id == "acs-switch" and first.steps[0].refusals == ()
    held = tmp_path / "sys/bus/pci/drivers/vfio-pci"
    held.mkdir(parents=True)
    link = Path(box.config("0000:43:00.0")).parent / "driver"
    link.unlink()
    link.symlink_to(held)
    before = box.registers()
    done = applied(first, door, box, frozenset({"sriov", "unmeasured"}))
    assert done == {"acs-switch": "refused"} and box.registers() == before
    assert applied(first, door, box, frozenset({"vfio"})) == {"acs-switch": "helped"}


def applied(made: Plan, door: Door, box: Box, accepted: frozenset[str]) -> dict[str, str]:
    host = Live(str(box.folder))
    done = apply(made, door, Journal(JOURNAL, door), box.probe, accepted, ask_again=lambda step: refusals_now(step, host))
    return {d.id: d.state for d in done}


@pytest.mark.parametrize(
    "change",
    [
        ConfigWord(PORTS[0], 0x156, 0x0C, 0, "1000:c030 x"),
        SysfsText("/sys/kernel/iommu_groups/5/type", "identity"),
        TextFile("/etc/default/grub", "grub_default", ("iommu=pt",)),
        Command(("update-grub",)),
    ],
    ids=["register", "group", "file", "program"],
)
def test_a_step_on_ports_or_iommu_asks_for_guests_and_devices_whatever_it_writes(
    m: Shut, change: ConfigWord | SysfsText | TextFile | Command
) -> None:
    m.commands[("systemd-detect-virt",)] = Answer(b"kvm\n")
    for bdf in (SOUND, *GPUS):
        driver(m, bdf, "vfio-pci")
    for name in ("acs-anything", "iommu-anything"):
        found = {r.ref for r in refusals(structs.replace(acs_switch(m), id=name, changes=(change,)), read_mend(m))}
        assert {"guest", "vfio"} <= found
