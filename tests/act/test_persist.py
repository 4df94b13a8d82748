"""Persisting and writing again at boot, on a machine drawn into a folder: its registers are files, a reboot puts them back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from evidence.build import DOWN, Machine, config
from linkproof import __version__, proc
from linkproof.act.apply import apply
from linkproof.act.doors import Machine as Doors
from linkproof.act.journal import Journal, Record
from linkproof.act.persist import persist_file, reapply, unit
from linkproof.act.persist.plan import PARAMETER, UNIT, persist_plan, persisted
from linkproof.act.persist.reapply import LAST, last_run
from linkproof.act.persist.reapply import reapply as reapplied
from linkproof.act.refusals import refusals_now
from linkproof.act.rollback import rollback
from linkproof.act.status import status
from linkproof.collect.host import Live
from linkproof.errors import UsageError
from linkproof.mending import ConfigWord, Plan, Proved, Sentence, Step
from linkproof.report.say import say

FOLDER = "/var/lib/linkproof/fix"
A, B = "0000:12:00.0", "0000:12:01.0"
GPUS = ("0000:13:00.0", "0000:14:00.0")
CONTROL = 0x156
WHO = unit.Program("/usr/bin/env", "-P", ("/usr/bin/env",))
SYS = "/sys/bus/pci/devices"


class Box:
    """Two GPUs below one switch whose ports redirect. boot: which boot it is in."""

    def __init__(self, root: Path) -> None:
        self.root, self.boots = root, 0
        m = Machine(iommu="DMA-FQ")
        _, downs = m.switch(m.port("pci0000:10", "0000:10:01.0", acs=0x1D), 0x11, ports=2, acs=0x1D)
        assert downs == [A, B]
        for down, gpu in zip(downs, GPUS, strict=True):
            m.gpu(down, gpu)
        for path in [path for path in m.files if path.endswith("/config")]:
            m.files[path] = m.files[path].ljust(4096, b"\0")
        m.folders["/sys/bus/pci/drivers"] = ["nvidia"]
        m.files["/proc/cpuinfo"] = b"processor\t: 0\nflags\t\t: fpu vme sse2\n"
        m.files["/proc/sys/kernel/osrelease"] = b"6.12.95\n"
        m.files["/sys/kernel/security/lockdown"] = b"[none] integrity confidentiality\n"
        m.files["/etc/default/grub"] = b'# ours\nGRUB_CMDLINE_LINUX_DEFAULT="quiet"\n'
        m.files["/boot/grub/grub.cfg"] = b"menuentry 'Linux' {\n\tlinux /vmlinuz root=/dev/sda1 ro quiet\n}\n"
        m.files["/usr/sbin/update-grub"] = b"#!/bin/sh\n"
        m.files["/run/systemd/system/x"] = b""
        m.files["/etc/systemd/system/multi-user.target.wants/x"] = b""
        self.drawn = m
        m.write(root)
        self.machine = Doors(str(root), run=lambda argv, *, deadline_s: proc.Done(f"linkproof {__version__}\n".encode()))
        self.journal, self.host = Journal(FOLDER, self.machine), Live(str(root))
        self.reboot()

    def put(self, path: str, data: bytes) -> None:
        (self.root / path[1:]).write_bytes(data)

    def reboot(self) -> None:
        """Every register as the kernel sets it."""
        self.boots += 1
        for path, data in self.drawn.files.items():
            if path.endswith("/config"):
                self.put(path, data)
        boot = self.root / "proc/sys/kernel/random/boot_id"
        boot.parent.mkdir(parents=True, exist_ok=True)
        boot.write_text(f"00000000-0000-4000-8000-{self.boots:012}\n")

    def words(self) -> dict[str, int]:
        return {bdf: int.from_bytes(self.machine.config(bdf)[CONTROL : CONTROL + 2], "little") for bdf in (A, B)}

    def applied(self, *ports: str, id_: str = "acs-switch", mask: int = 0x0C) -> None:
        changes = tuple(ConfigWord(p, CONTROL, mask, 0, self.machine.identity(p)) for p in ports)
        step = Step(id_, Sentence("x"), "acs_redirect", (), "until_reboot", "now", Sentence("x"), (), changes, pairs=(GPUS,))
        before, after = (Proved(frozenset(b), frozenset(r)) for b, r in (([(*GPUS, "push")], []), ([], [(*GPUS, "push")])))
        said = iter((before, after))
        [done] = self.do(Plan((step,), (GPUS,), True), lambda pairs: next(said))
        assert done.state == "helped"

    def do(self, plan: Plan, probe: Any = lambda pairs: None, accepted: frozenset[str] = frozenset()) -> Any:
        return apply(plan, self.machine, self.journal, probe, accepted, ask_again=lambda step: refusals_now(step, self.host))

    def plan(self, **options: Any) -> Plan:
        return persist_plan(self.machine, self.journal, self.host, who=WHO, **options)

    def persist(self, **options: Any) -> str:
        [done] = self.do(self.plan(**options), accepted=options.get("accepted", frozenset()))
        return str(done.state)

    def again(self) -> reapply.Reapplied:
        return reapplied(self.machine, self.journal, self.host)

    def ready(self) -> Box:
        """Persisted, and booted again: the registers are back."""
        self.applied(A, B)
        assert self.persist() == "in_place"
        self.reboot()
        assert self.words() == {A: 0x1D, B: 0x1D}
        return self

    def files(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.root)): p.read_bytes() for p in self.root.joinpath("etc").rglob("*") if p.is_file()}


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def told(sentences: Any) -> list[str]:
    return [say(s.text, s.args) for s in sentences]


# ---------------------------------------------------------------- the plan


def test_it_writes_the_file_the_unit_and_the_link_and_rollback_takes_all_away(box: Box) -> None:
    before = box.files()
    box.applied(A, B)
    assert box.persist() == "in_place"
    kept, why = persist_file.read(box.machine)
    assert why is None and kept is not None
    assert {w.bdf: (w.mask, w.want) for w in kept.words} == {A: (0x0C, 0), B: (0x0C, 0)} and kept.linkproof == __version__
    wanted = box.root / unit.WANTED[1:]
    assert wanted.is_symlink() and wanted.resolve() == (box.root / unit.PATH[1:]).resolve()
    assert wanted.read_text() == unit.unit_text(WHO)
    rollback(box.machine, box.journal, (UNIT,))
    assert box.files() == before and not wanted.is_symlink() and not (box.root / "etc/linkproof").exists()
    assert box.words() == {A: 0x11, B: 0x11}  # what was applied stays


def test_twice_is_as_once(box: Box) -> None:
    box.applied(A, B)
    box.persist()
    before = box.files()
    assert box.persist() == "not_needed" and box.files() == before


def test_with_nothing_applied_there_is_nothing_to_persist(box: Box) -> None:
    with pytest.raises(UsageError) as e:
        box.plan()
    assert e.value.ref == "nothing-to-persist"
    box.applied(A, B)
    rollback(box.machine, box.journal)
    with pytest.raises(UsageError):
        box.plan()


def test_what_was_lost_is_not_persisted_and_that_is_said(box: Box) -> None:
    box.applied(A, B)
    box.put(f"{SYS}/{A}/config", box.drawn.files[f"{SYS}/{A}/config"])  # a hot reset of that port
    plan = box.plan()
    assert told(plan.notes) == [f"not persisted, as it is not in force now: {A}"]
    content = msgspec.json.decode(plan.steps[0].changes[0].content)  # type: ignore[union-attr]
    assert [w["bdf"] for w in content["words"]] == [B]


def test_two_steps_on_one_port_are_one_word(box: Box) -> None:
    box.applied(A, mask=0x08)
    box.applied(A, id_="acs-path", mask=0x04)
    box.persist()
    kept, _ = persist_file.read(box.machine)
    assert kept is not None and [(w.bdf, w.mask) for w in kept.words] == [(A, 0x0C)]


def test_when_more_was_applied_status_says_so_and_persisting_asks_for_a_rollback_of_the_old(box: Box) -> None:
    box.applied(A)
    box.persist()
    assert persisted(box.machine, box.journal).state == "sound"
    box.applied(B, id_="acs-path")
    stands = persisted(box.machine, box.journal)
    assert stands.state == "wrong" and f"applied, and not persisted like this: {B}" in told(stands.words)
    with pytest.raises(UsageError) as e:
        box.plan()
    assert e.value.ref == "persisted-otherwise"
    rollback(box.machine, box.journal, (UNIT,))
    assert box.persist() == "in_place" and persisted(box.machine, box.journal).state == "sound"


def test_a_unit_of_that_name_that_is_not_ours_is_left_alone(box: Box) -> None:
    box.applied(A)
    box.put(unit.PATH, b"[Unit]\n")
    with pytest.raises(UsageError) as e:
        box.plan()
    assert e.value.ref == "persisted-otherwise" and box.files()[unit.PATH[1:]] == b"[Unit]\n"


def refs(plan: Plan) -> list[str]:
    return [r.ref for r in plan.steps[0].refusals]


def test_where_systemd_does_not_run_no_unit_is_written(box: Box) -> None:
    box.applied(A)
    (box.root / "run/systemd/system/x").unlink()
    (box.root / "run/systemd/system").rmdir()
    assert refs(box.plan()) == ["no_systemd"] and box.persist() == "refused"
    assert unit.PATH[1:] not in box.files()


def test_a_program_that_root_must_not_start_is_refused(box: Box) -> None:
    box.applied(A)
    gone = unit.Program("/tmp/x/python3", "-P", ("/tmp/x/python3",))
    plan = persist_plan(box.machine, box.journal, box.host, who=gone)
    assert "fleeting" in refs(plan) and box.do(plan)[0].state == "refused"


def lend(box: Box) -> None:
    """The first card is bound to vfio-pci, in both places where the kernel shows it."""
    (box.root / "sys/bus/pci/drivers/vfio-pci" / GPUS[0]).mkdir(parents=True)
    driver = (box.root / SYS[1:] / GPUS[0]).resolve() / "driver"
    driver.unlink()
    driver.symlink_to(os.path.relpath(box.root / "sys/bus/pci/drivers/vfio-pci", driver.parent))


def test_a_device_of_a_guest_refuses_unless_that_is_accepted_then_and_at_each_boot(box: Box) -> None:
    box.applied(A, B)
    lend(box)
    assert refs(box.plan()) == ["vfio"] and box.persist() == "refused"
    assert box.persist(accepted=frozenset({"vfio"})) == "in_place"
    box.reboot()
    assert box.again().state == "done" and box.words() == {A: 0x11, B: 0x11}


# ---------------------------------------------------------------- the kernel parameter


def test_the_kernel_parameter_goes_into_the_boot_files_and_out_again(box: Box) -> None:
    box.applied(A, B)
    before = box.files()
    plan = box.plan(kernel_parameter=True)
    [step] = plan.steps
    assert step.id == PARAMETER and not step.refusals and any("IOMMU group" in words for words in told(step.risk))
    assert box.do(plan)[0].state == "in_place"
    grub = box.files()["etc/default/grub"].decode()
    assert f"config_acs=xxx00xx@{A};xxx00xx@{B}" in grub and grub.startswith("# ours\n") and "quiet" in grub
    assert unit.PATH[1:] not in box.files() and persisted(box.machine, box.journal).state == "none"
    rollback(box.machine, box.journal, (PARAMETER,))
    assert box.files() == before


@pytest.mark.parametrize(
    ("release", "ports", "refused"), [("4.18.0-553.el8", 1, True), ("6.11.4", 2, True), ("6.11.4", 1, False), ("5.15.0-100", 2, False)]
)
def test_a_kernel_without_a_parameter_that_works_refuses_in_words(box: Box, release: str, ports: int, refused: bool) -> None:
    box.applied(*(A, B)[:ports])
    box.put("/proc/sys/kernel/osrelease", release.encode())
    if not refused:
        assert box.plan(kernel_parameter=True).steps[0].changes
        return
    with pytest.raises(UsageError) as e:
        box.plan(kernel_parameter=True)
    assert e.value.ref == "no-kernel-parameter" and all(
        release in e.value.told(lang) and "{" not in e.value.told(lang) for lang in ("en", "zh")
    )


def test_where_no_boot_loader_is_known_it_is_refused_and_the_words_are_given(box: Box) -> None:
    box.applied(A)
    (box.root / "etc/default/grub").unlink()
    [step] = box.plan(kernel_parameter=True).steps
    assert step.refusals and not step.changes and any(f"@{A}" in str(words) for words in step.by_hand)


def test_under_lockdown_it_is_the_kernel_parameter_by_itself(box: Box) -> None:
    box.applied(A)
    assert box.plan().steps[0].id == UNIT
    box.put("/sys/kernel/security/lockdown", b"none [integrity] confidentiality\n")
    plan = box.plan()
    assert plan.steps[0].id == PARAMETER and "lockdown" not in refs(plan)


# ---------------------------------------------------------------- at boot


def test_at_the_next_boot_the_words_are_written_again_and_the_journal_knows(box: Box) -> None:
    box.ready()
    came = box.again()
    assert came.state == "done" and box.words() == {A: 0x11, B: 0x11}
    assert told(came.why) == [f"ACS control words written and read back: {A}, {B}"]
    assert [d.state for d in came.done] == ["not_known"]  # not measured at boot, and not said to have helped
    assert {s.state for s in status(box.machine, box.journal)} == {"in_force"}
    assert {s.step for s in status(box.machine, box.journal)} == {"acs-switch", UNIT}
    stands = persisted(box.machine, box.journal)
    assert stands.state == "sound" and any("the unit ran" in words and "stood as wanted" in words for words in told(stands.words))


def test_twice_in_a_boot_changes_nothing(box: Box) -> None:
    box.ready().again()
    journal = box.root / FOLDER[1:] / "journal"
    before = journal.read_bytes()
    came = box.again()
    assert came.state == "done" and not came.done and journal.read_bytes() == before
    assert told(came.why) == [f"the ACS control words stand already, nothing was written: {A}, {B}"]


def test_what_a_hot_reset_took_is_written_again_and_only_that(box: Box) -> None:
    box.ready().again()
    box.put(f"{SYS}/{A}/config", box.drawn.files[f"{SYS}/{A}/config"])
    assert {s.state for s in status(box.machine, box.journal) if s.step == "acs-switch"} == {"lost", "in_force"}
    assert any(words.startswith(f"lost since: {A}.") for words in told(persisted(box.machine, box.journal).words))
    came = box.again()
    assert told(came.why) == [f"ACS control words written and read back: {A}"] and box.words() == {A: 0x11, B: 0x11}


def test_rollback_after_a_boot_gives_the_former_words_of_that_boot(box: Box) -> None:
    box.ready().again()
    rollback(box.machine, box.journal)
    assert box.words() == {A: 0x1D, B: 0x1D} and status(box.machine, box.journal) == ()
    box.reboot()
    assert box.again().state == "nothing" and box.words() == {A: 0x1D, B: 0x1D}


def test_over_many_boots_it_stays_so(box: Box) -> None:
    box.ready()
    for _ in range(3):
        assert box.again().state == "done" and box.words() == {A: 0x11, B: 0x11}
        box.reboot()
    assert {s.state for s in status(box.machine, box.journal) if s.step == "acs-switch"} == {"lost"}
    rollback(box.machine, box.journal)
    assert box.words() == {A: 0x1D, B: 0x1D} and status(box.machine, box.journal) == ()


def test_a_step_that_was_rolled_back_is_not_written_again(box: Box) -> None:
    box.applied(A, B)
    box.persist()
    rollback(box.machine, box.journal, ("acs-switch",))
    stands = persisted(box.machine, box.journal)
    assert stands.state == "wrong" and f"persisted, and rolled back since, so no longer written at boot: {A}, {B}" in told(stands.words)
    box.reboot()
    assert box.again().state == "nothing" and box.words() == {A: 0x1D, B: 0x1D}


def test_with_nothing_persisted_there_is_nothing_to_do(box: Box) -> None:
    assert box.again().state == "nothing" and persisted(box.machine, box.journal).state == "none"
    assert not (box.root / FOLDER[1:]).exists()


def refused(box: Box) -> list[str]:
    """Refused, nothing written, and `fix status` knows why."""
    journal = (box.root / FOLDER[1:] / "journal").read_bytes()
    words, came = box.words(), box.again()
    assert came.state == "refused" and box.words() == words and (box.root / FOLDER[1:] / "journal").read_bytes() == journal
    last = last_run(box.machine, box.journal)
    assert last is not None and last.why == came.why and last.state == "refused"
    stands = persisted(box.machine, box.journal)
    assert stands.state == "wrong" and set(told(came.why)) <= set(told(stands.words))
    return told(came.why)


def test_other_hardware_is_not_written_to_and_what_changed_is_said(box: Box) -> None:
    box.ready()
    box.put(f"{SYS}/{A}/device", b"0xc040\n")
    assert refused(box)[:-1] == [
        "the hardware is not the same as when this was persisted: nothing was written",
        f"port {A} is now 1000:c040 (was 1000:c030)",
    ]


def test_a_card_that_is_gone_is_other_hardware(box: Box) -> None:
    box.ready()
    (box.root / SYS[1:] / GPUS[1]).unlink()
    assert f"GPU {GPUS[1]} is gone" in refused(box)


def test_hardware_that_cannot_be_read_is_not_the_same(box: Box) -> None:
    box.ready()
    (box.root / SYS[1:] / A / "vendor").unlink()
    assert f"{A} cannot be read" in refused(box)


def test_the_refusals_are_asked_again_at_boot(box: Box) -> None:
    box.ready()
    lend(box)
    assert refused(box) == [f"held for a guest: {GPUS[0]} (vfio-pci)"]


def test_lockdown_is_said(box: Box) -> None:
    box.ready()
    box.put("/sys/kernel/security/lockdown", b"none [integrity] confidentiality\n")
    assert "integrity" in refused(box)[0]


def test_in_a_guest_nothing_is_written(box: Box) -> None:
    box.ready()
    box.put("/proc/cpuinfo", b"processor\t: 0\nflags\t\t: fpu hypervisor\n")
    assert "virtual machine" in refused(box)[0]


def test_a_port_that_does_not_take_the_word_is_said(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.ready()
    real = box.machine.write_word
    monkeypatch.setattr(box.machine, "write_word", lambda bdf, offset, word: None if bdf == B else real(bdf, offset, word))
    came = box.again()
    assert came.state in ("not_all", "refused") and any(B in words for words in told(came.why))
    assert persisted(box.machine, box.journal).state == "wrong"


def test_after_an_apply_that_was_cut_off_nothing_is_written_and_status_tells(box: Box) -> None:
    box.ready()
    change = ConfigWord(A, CONTROL, 0x0C, 0, box.machine.identity(A))
    with box.journal.locked("apply"):
        box.journal.write(Record(0, "about", 0.0, step="acs-path", effect="now", change=change, before="0x001d", after="0x0011"))
    with pytest.raises(UsageError) as e:
        box.again()
    assert e.value.ref == "fix-interrupted" and box.words() == {A: 0x1D, B: 0x1D}
    assert persisted(box.machine, box.journal).state == "wrong"


def test_while_another_fix_is_at_work_nothing_is_written(box: Box) -> None:
    box.ready()
    with box.journal.locked("rollback"), pytest.raises(UsageError) as e:
        reapplied(box.machine, Journal(FOLDER, box.machine), box.host)
    assert e.value.ref == "fix-busy" and box.words() == {A: 0x1D, B: 0x1D}


# ---------------------------------------------------------------- what stands in persist.json is hostile


def spoiled(box: Box, change: Any) -> Path:
    path = box.root / persist_file.PATH[1:]
    body = msgspec.json.decode(path.read_bytes())
    change(body)
    path.write_bytes(msgspec.json.encode(body))
    return path


def word(name: str, value: Any) -> Any:
    return lambda body: body["words"][0].update({name: value})


HOSTILE = {
    "another capability": word("capability", 0x0001),
    "another place in it": word("inside", 8),
    "other bits": word("mask", 0xFFFF),
    "no bits": word("mask", 0),
    "bits that are set": word("want", 0x0C),
    "another offset": word("offset", 0x44),
    "a crooked offset": word("offset", CONTROL + 1),
    "a port that the key does not name": word("bdf", "0000:10:02.0"),
    "another identity": word("identity", "8086:1234 pci0000:00/0000:00:00.0"),
    "a card": word("bdf", GPUS[0]),
    "a path": word("bdf", "../../../etc"),
    "another kind of change": word("type", "sysfs_text"),
    "one port twice": lambda body: body["words"].append(body["words"][0]),
    "no words": lambda body: body.update(words=[]),
    "another schema": lambda body: body.update(schema=2),
    "another key": lambda body: body.update(hardware="0" * 16),
    "no parts": lambda body: body.update(parts={}, hardware=""),
    "a part more": lambda body: body["parts"].update({"port 0000:10:02.0": "8086:352a pci0000:10/0000:10:02.0"}),
    "an unknown field": lambda body: body.update(run="rm"),
    "an unknown risk": lambda body: body.update(accepted=["everything"]),
    "words of another type": lambda body: body.update(words="x"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_asks_for_anything_else_is_not_used_at_all(box: Box, what: str) -> None:
    box.ready()
    spoiled(box, HOSTILE[what])
    assert len(refused(box)) == 1


def test_escape_sequences_do_not_reach_the_terminal(box: Box) -> None:
    from linkproof.act.hardware import key

    box.ready()

    def plant(body: Any) -> None:
        body["parts"]["GPU \x1b[31m"] = "10de:2330 pci0000:10/0000:10:01.0"
        body["hardware"] = key(body["parts"])

    spoiled(box, plant)
    assert all(words.isprintable() for words in refused(box))


@pytest.mark.parametrize("data", [b"", b"{", b"\xff" * 100, b"[" * 100_000, b'{"schema":1}', b" " * (persist_file.LARGEST_B + 1)])
def test_a_damaged_file_is_not_used(box: Box, data: bytes) -> None:
    box.ready()
    box.put(persist_file.PATH, data)
    assert len(refused(box)) == 1


def test_a_file_that_others_can_write_is_not_used(box: Box) -> None:
    box.ready()
    path = box.root / persist_file.PATH[1:]
    path.chmod(0o664)
    assert "others than root" in refused(box)[0]
    path.chmod(0o644)
    path.parent.chmod(0o777)
    assert "others than root" in refused(box)[0]
    path.parent.chmod(0o755)
    assert box.again().state == "done"


def test_a_link_in_its_place_is_not_followed(box: Box) -> None:
    box.ready()
    path = box.root / persist_file.PATH[1:]
    path.rename(path.with_name("x"))
    path.symlink_to("x")
    assert "not a plain file" in refused(box)[0]


def test_a_file_of_another_owner_is_not_used(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.ready()
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert persist_file.read(box.machine)[1] is not None


# ---------------------------------------------------------------- what status says


def test_before_the_first_boot_it_says_when_the_unit_runs(box: Box) -> None:
    box.applied(A, B)
    box.persist()
    assert told(persisted(box.machine, box.journal).words)[-1] == "the unit runs at the next boot for the first time"


def test_a_unit_that_did_not_run_at_this_boot_is_said(box: Box) -> None:
    stands = persisted(box.ready().machine, box.journal)
    assert stands.state == "wrong" and any("did not run at this boot" in words for words in told(stands.words))
    box.again()
    box.reboot()
    assert persisted(box.machine, box.journal).state == "wrong"


@pytest.mark.parametrize("path", [unit.PATH, unit.WANTED, persist_file.PATH])
def test_what_somebody_removed_is_said(box: Box, path: str) -> None:
    box.ready().again()
    assert persisted(box.machine, box.journal).state == "sound"
    (box.root / path[1:]).unlink()
    stands = persisted(box.machine, box.journal)
    assert stands.state == "wrong" and any(words.startswith(f"{path} is gone") for words in told(stands.words))


@pytest.mark.parametrize("data", [b"", b"{}", b'{"schema":9}', b"x" * 100_000])
def test_a_damaged_note_of_the_last_run_is_none(box: Box, data: bytes) -> None:
    box.ready().again()
    assert last_run(box.machine, box.journal) is not None
    box.put(f"{FOLDER}/{LAST}", data)
    assert last_run(box.machine, box.journal) is None and persisted(box.machine, box.journal).state == "wrong"


def test_the_drawing_is_right() -> None:
    assert config(1, 1, 0x060400, DOWN, acs=0x1D)[CONTROL] == 0x1D
