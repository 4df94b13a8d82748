"""The command `fix` on a machine in a folder: plan, apply, status, rollback, refusals; what is written, and above all what is not."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fix_machine import JOURNAL, REDIRECTS, SWITCH_PORTS, Box
from linkproof import proc
from linkproof.act.doors import Machine
from linkproof.checking import check
from linkproof.cli import main
from linkproof.errors import UsageError
from linkproof.fixing import command
from linkproof.fixing.probe import PairProbe, modes_of
from linkproof.mending import Pair, Proved
from linkproof.probe.plan import Wish
from linkproof.probing import machine as simulated
from linkproof.prove import prove
from linkproof.report import fix

SCHEMA = json.loads(Path(fix.__file__).with_name("fix.schema.json").read_text(encoding="utf-8"))
EVIDENCE = Path(__file__).parent / "evidence"
GUEST = "0000:43:00.0"  # the first GPU


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def asked(box: Box, *argv: str, **more: Any) -> tuple[int, dict[str, Any]]:
    """The same in JSON, which keeps its schema."""
    code, out = box.run(*argv, "--format", "json", **more)
    said = json.loads(out)
    pytest.importorskip("jsonschema").validate(said, SCHEMA)
    return code, said


def states(said: dict[str, Any]) -> dict[str, str]:
    return {r["id"]: r["state"] for r in said["results"]}


# ---------------------------------------------------------------- plan


def test_a_plan_names_the_ports_of_the_bad_pairs_and_changes_nothing(box: Box) -> None:
    before = box.registers()
    code, said = asked(box)
    assert code == 1 and said["measured"] and said["state"] == "steps"
    first = said["steps"][0]
    assert first["applies"] and {c["target"] for c in first["changes"]} == set(SWITCH_PORTS)
    assert {tuple(p["gpus"]) for p in said["pairs"]} == {(0, 1), (1, 0), (2, 3), (3, 2)}
    assert box.registers() == before and not (box.folder / JOURNAL.lstrip("/")).exists()
    assert box.probed_pairs == [], "a plan sends nothing"


def test_the_text_of_a_plan_ends_with_the_command_that_does_it(box: Box) -> None:
    code, out = box.run("plan")
    assert code == 1 and out.startswith("`fix apply` would do ") and "Nothing was changed yet" in out.partition("\n\n")[0]
    assert "fix apply" in out.rstrip().splitlines()[-2]


def test_a_machine_whose_pairs_are_right_needs_nothing(tmp_path: Path) -> None:
    box = Box(tmp_path, bad=False)
    assert asked(box)[0] == 0 and asked(box)[1]["state"] == "nothing"
    before = box.registers()
    code, said = asked(box, "apply")
    assert code == 0 and said["state"] == "nothing" and box.registers() == before
    assert not (box.folder / JOURNAL.lstrip("/")).exists(), "nothing was done, so there is nothing to take back"


def test_without_a_measurement_the_plan_says_so_and_asks_for_one(box: Box) -> None:
    code, said = asked(box, measured=False)
    assert not said["measured"] and said["next"][0]["command"] == "linkproof check"
    assert code in (1, 3) and "nothing was measured" in said["headline"]


def test_a_person_may_say_which_pair_fails_and_must_then_accept_that_nobody_measured_it(box: Box) -> None:
    _, said = asked(box, "--pair", "0:1", measured=False)
    assert [(r["ref"], r["accept"]) for r in said["steps"][0]["refusals"]] == [("unmeasured", "--i-accept unmeasured")]
    assert {c["target"] for s in said["steps"] for c in s["changes"] if c["kind"] == "config_word"} & set(SWITCH_PORTS[2:]) == set()


@pytest.mark.parametrize(("capture", "code"), [("switches-acs-on", 1), ("one-gpu-in-a-vm", 3), ("idle-links", 3)])
def test_a_capture_is_planned_from_and_never_applied(capture: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fix", "--from", str(EVIDENCE / capture), "--lang", "en", "--format", "json"]) == code
    said = json.loads(capsys.readouterr().out)
    assert said["source"] == "capture" and not said["measured"]
    assert main(["fix", "apply", "--from", str(EVIDENCE / capture), "--lang", "en"]) == 2
    assert capsys.readouterr().err.startswith("only-this-machine: ")


# ---------------------------------------------------------------- apply, status, rollback


def test_apply_clears_the_redirect_bits_and_no_other_bit_of_any_device(box: Box) -> None:
    before = box.registers()
    code, said = asked(box, "apply")
    assert code == 0 and said["state"] == "done" and said["results"][0]["state"] == "helped", said
    after = box.registers()
    changed = {bdf for bdf in before if before[bdf] != after[bdf]}
    assert changed == set(SWITCH_PORTS)
    for bdf in changed:
        assert [i for i, (a, b) in enumerate(zip(before[bdf], after[bdf], strict=True)) if a != b] == [0x156]
        assert box.acs(bdf) == 0x1D & ~REDIRECTS
    assert said["check_again"] and said["results"][0]["bad_before"] and said["results"][0]["bad_after"] == []
    assert {pair for pairs in box.probed_pairs for pair in pairs} == {
        (box.gpus[a], box.gpus[b]) for a, b in ((0, 1), (1, 0), (2, 3), (3, 2))
    }, "only pairs that measured bad are probed"


def test_apply_shows_each_register_before_and_after_and_what_to_type_next(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = box.run("apply", width=120)
    assert code == 0 and out.startswith("Helped, as the probe shows: acs-switch")
    assert "0x001d SrcValid ReqRedir CmpltRedir UpstreamFwd -> 0x0011 SrcValid UpstreamFwd" in out
    assert all(command in out for command in ("linkproof check", "fix persist", "fix rollback"))
    assert "acs-switch: " in capsys.readouterr().err, "progress goes to stderr"


def test_status_tells_what_stands_and_rollback_puts_every_byte_back(box: Box) -> None:
    before = box.registers()
    assert asked(box, "status") == (0, asked(box, "status")[1]) and asked(box, "status")[1]["state"] == "nothing"
    box.run("apply")
    code, said = asked(box, "status")
    assert code == 0 and said["state"] == "in_force" and len(said["changes"]) == 4
    assert {(c["former"][:6], c["now"][:6]) for c in said["changes"]} == {("0x001d", "0x0011")}
    code, said = asked(box, "rollback")
    assert code == 0 and said["state"] == "back" and {c["state"] for c in said["changes"]} == {"restored"}
    assert box.registers() == before
    assert asked(box, "status")[1]["state"] == "nothing" and asked(box, "rollback")[0] == 0


def test_what_does_not_help_is_taken_back_at_once(tmp_path: Path) -> None:
    box = Box(tmp_path, cured=False)
    before = box.registers()
    code, said = asked(box, "apply")
    assert code == 1 and "helped" not in states(said).values() and states(said)["acs-switch"] == "did_not_help"
    assert box.registers() == before and said["consumers"], "the way around is shown"
    assert asked(box, "status")[1]["state"] == "nothing"


def test_where_the_kernel_refuses_the_register_its_own_parameter_takes_the_steps_place(tmp_path: Path) -> None:
    files = {
        "/sys/kernel/security/lockdown": "none [integrity] confidentiality\n",
        "/etc/default/grub": 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n',
        "/boot/grub/grub.cfg": "menuentry 'Linux' {\n\tlinux /vmlinuz quiet\n}\n",
        "/usr/sbin/update-grub": "#!/bin/sh\n",
    }
    box = Box(tmp_path, files=files)
    box.machine = Machine(str(tmp_path), run=lambda argv, *, deadline_s: proc.Done(b""))
    before = box.registers()
    code, said = asked(box, "apply")
    assert states(said)["acs-switch"] == "refused" and states(said)["acs-kernel"] == "in_place"
    assert (code, said["state"]) == (0, "done") and box.registers() == before
    assert "disable_acs_redir=" in (tmp_path / "etc/default/grub").read_text()
    assert asked(box, "rollback")[0] == 0 and (tmp_path / "etc/default/grub").read_text() == files["/etc/default/grub"]


def test_a_register_that_takes_no_write_is_told_and_its_neighbours_are_put_back(tmp_path: Path) -> None:
    box = Box(tmp_path, stuck=SWITCH_PORTS[1:2])
    before = box.registers()
    code, said = asked(box, "apply", "--step", "acs-switch")
    assert code == 1 and states(said) == {"acs-switch": "did_not_stick"} and box.registers() == before


def test_a_probe_that_cannot_tell_is_no_success(box: Box) -> None:
    def blind(pairs: tuple[Pair, ...]) -> Proved | None:
        return None

    box.probe = blind  # type: ignore[method-assign,assignment]
    before = box.registers()
    code, said = asked(box, "apply", "--step", "acs-switch")
    assert code == 1 and states(said) == {"acs-switch": "refused"} and box.registers() == before, "nothing would show whether it helps"
    code, said = asked(box, "apply", "--step", "acs-switch", "--i-accept", "unmeasured")
    assert (code, said["state"]) == (3, "not_known") and states(said) == {"acs-switch": "not_known"} and box.registers() != before


def test_after_a_reboot_status_says_lost_and_rollback_has_nothing_to_write(box: Box) -> None:
    box.run("apply")
    box.reboot()
    code, said = asked(box, "status")
    assert code == 1 and said["state"] == "not_all" and {c["state"] for c in said["changes"]} == {"lost"}
    code, said = asked(box, "rollback")
    assert code == 0 and {c["state"] for c in said["changes"]} == {"as_before"}


def test_a_register_that_another_hand_changed_is_left_alone_and_told(box: Box) -> None:
    box.run("apply")
    for word, state in (
        (0x15, "drifted"),
        (0x1D, "lost"),
        (0x12, "in_force"),
    ):  # one bit again; all of ours again; only a bit that is not ours
        box.set_acs(SWITCH_PORTS[0], word)
        code, said = asked(box, "status")
        assert [c["state"] for c in said["changes"] if c["change"]["target"] == SWITCH_PORTS[0]] == [state]
        assert code == (state != "in_force")
    box.set_acs(SWITCH_PORTS[0], 0x15)
    code, said = asked(box, "rollback")
    assert code == 1 and box.acs(SWITCH_PORTS[0]) == 0x15
    assert {c["change"]["target"]: c["state"] for c in said["changes"]} == {
        p: "changed_since" if p == SWITCH_PORTS[0] else "restored" for p in SWITCH_PORTS
    }


def test_a_cut_in_the_middle_is_told_and_rolled_back(box: Box) -> None:
    before = box.registers()

    class Cut(Exception):
        pass

    class Dying(Machine):
        left = 2

        def write_word(self, bdf: str, offset: int, word: int) -> None:
            if self.left == 0:
                raise Cut
            self.left -= 1
            super().write_word(bdf, offset, word)

    box.machine = Dying(str(box.folder))
    with pytest.raises(Cut):
        box.run("apply")
    box.machine = Machine(str(box.folder))
    assert box.registers() != before
    code, said = asked(box, "status")
    assert code == 1 and "interrupted" in {c["state"] for c in said["changes"]}
    assert asked(box, "rollback")[0] == 0 and box.registers() == before


# ---------------------------------------------------------------- refusals


def _to_a_guest(box: Box) -> None:
    driver = box.config(GUEST).parent / "driver"
    driver.unlink()
    held = box.folder / "sys/bus/pci/drivers/vfio-pci"
    held.mkdir()
    driver.symlink_to(os.path.relpath(held, driver.parent))
    (held / GUEST).symlink_to(os.path.relpath(box.config(GUEST).parent, held))


def test_a_guests_device_below_the_port_refuses_the_step_until_a_person_accepts_it(box: Box) -> None:
    _to_a_guest(box)
    before = box.registers()
    code, said = asked(box, "apply", "--step", "acs-switch")
    assert code == 1 and states(said) == {"acs-switch": "refused"} and box.registers() == before
    assert [r["accept"] for r in said["results"][0]["refusals"]] == ["--i-accept vfio"]
    code, said = asked(box, "apply", "--step", "acs-switch", "--i-accept", "vfio")
    assert code == 0 and states(said) == {"acs-switch": "helped"}


def test_a_locked_kernel_refuses_and_nobody_may_overrule(tmp_path: Path) -> None:
    box = Box(tmp_path, corrupt=True, files={"/sys/kernel/security/lockdown": "none [integrity] confidentiality\n"})
    before = box.registers()
    code, said = asked(box, "apply", "--step", "acs-switch")
    assert code == 1 and states(said) == {"acs-switch": "refused"} and box.registers() == before
    assert {r["ref"]: r["accept"] for r in said["results"][0]["refusals"]} == {"lockdown": ""}
    words = box.run("plan")[1]
    assert "NCCL_P2P_DISABLE=1" in words and "linkproof run -- CMD" in words, "the way around is shown"


# ---------------------------------------------------------------- what was typed


@pytest.mark.parametrize(
    ("argv", "ref"),
    [
        (["apply", "--sim", "acs-redirect-4x4090"], "only-this-machine"),
        (["apply", "--from", "x.tar.gz"], "only-this-machine"),
        (["rollback", "--sim", "acs-redirect-4x4090"], "option-does-nothing"),
        (["plan", "--step", "acs-switch"], "option-does-nothing"),
        (["--i-accept", "vfio"], "option-does-nothing"),
        (["--kernel-parameter"], "option-does-nothing"),
        (["apply", "--kernel-parameter"], "option-does-nothing"),
        (["status", "--pair", "0:1"], "option-does-nothing"),
        (["rollback", "--iommu-off"], "option-does-nothing"),
        (["persist", "--step", "acs-switch"], "option-does-nothing"),
        (["reapply", "--i-accept", "vfio"], "option-does-nothing"),
        (["--all", "--format", "json"], "option-does-nothing"),
        (["apply", "--i-accept", "everything"], "no-such-risk"),
        (["mend"], "usage"),
        (["--from", "x", "--sim", "y"], "usage"),
        (["--pair", "0-1", "--from", str(EVIDENCE / "switches-acs-on")], "not-a-pair"),
        (["--pair", "0:99", "--from", str(EVIDENCE / "switches-acs-on")], "no-such-pair"),
        (["--sim", "no-such-machine"], "no-such-scenario"),
    ],
)
def test_what_does_nothing_or_is_not_known_is_refused(argv: list[str], ref: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fix", *argv, "--lang", "en"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith(f"{ref}: ") and "\n  do: " in told.err, told.err
    if ref != "usage":
        main(["fix", *argv, "--lang", "zh"])
        assert "怎么办" in capsys.readouterr().err


def test_an_unknown_step_lists_those_that_there_are(box: Box) -> None:
    with pytest.raises(UsageError, match=r"no-such-step.*acs-switch"):
        box.run("apply", "--step", "acs")
    box.run("apply")
    with pytest.raises(UsageError, match=r"no-such-step.*acs-switch"):
        box.run("rollback", "--step", "acs")


def test_an_apply_to_which_nobody_listens_any_more_goes_on(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str, /) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    code, said = asked(box, "apply")
    assert code == 0 and states(said)["acs-switch"] == "helped"


def test_one_step_can_be_taken_back_by_its_name(box: Box) -> None:
    before = box.registers()
    box.run("apply")
    code, said = asked(box, "rollback", "--step", "acs-switch")
    assert code == 0 and {c["step"] for c in said["changes"]} == {"acs-switch"} and box.registers() == before


@pytest.mark.parametrize("action", ["apply", "rollback", "persist", "reapply"])
def test_who_is_not_root_is_told_the_command_that_works(
    action: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["fix", action, "--lang", "en"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("needs-root: ") and re.search(rf"do: sudo \S*python\S* -m linkproof fix {action}$", told.strip())


def test_the_command_that_root_should_type_asks_for_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    main(["fix", "apply", "--step", "acs-switch", "--pair", "0:1", "--i-accept", "vfio", "--iommu-off", "--lang", "en"])
    assert capsys.readouterr().err.strip().endswith("fix apply --step acs-switch --pair 0:1 --i-accept vfio --iommu-off")


def test_the_whole_command_line_reaches_the_machine(box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "run", partial(command.run, stand_in=box.stand_in()))
    assert main(["fix", "--lang", "en"]) == 1 and "acs-switch" in capsys.readouterr().out
    assert main(["fix", "apply", "--lang", "en"]) == 0
    assert main(["fix", "status", "--lang", "zh"]) == 0 and "生效" in capsys.readouterr().out
    assert main(["fix", "rollback", "--lang", "zh"]) == 0 and "原值" in capsys.readouterr().out


@pytest.mark.parametrize("action", [[], ["apply"], ["status"], ["rollback"]])
def test_every_answer_is_chinese_if_asked_so(action: list[str], box: Box) -> None:
    if action in (["status"], ["rollback"]):
        box.run("apply")
    _, zh = box.run(*action, lang="zh")
    assert re.search("[\u4e00-\u9fff]", zh.splitlines()[0]), zh


# ---------------------------------------------------------------- the probe of pairs


def test_a_pair_is_probed_again_with_the_ways_that_were_tried_and_the_control() -> None:
    """On simulated GPUs, by real workers."""
    with simulated("acs-redirect-4x4090") as (host, devices):
        checked = check(host, prove(devices, Wish(((0, 1), (1, 0)), ("push", "staged", "store"))))
        assert checked.routes is not None
        assert modes_of(checked.routes, ((0, 1), (1, 0))) == ("staged", "push", "store")
        bdfs = {c.index: c.bdf for c in checked.routes.cards}
        probe = PairProbe(devices, checked, "en")
        near = probe(((bdfs[0], bdfs[1]),))
        assert near is not None and (bdfs[0], bdfs[1], "push") in near.bad and (bdfs[0], bdfs[1], "staged") in near.right
        assert {(a, b) for a, b, _ in near.bad | near.right} == {(bdfs[0], bdfs[1])}
        assert probe((("0000:99:00.0", bdfs[1]),)) is None and probe(()) is None
