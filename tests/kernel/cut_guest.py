"""Runs inside the guest: a plan of every kind of change, and the power or the process ends at a place of it that the host names.

TEST_JOB=apply      ready to apply; the host's word `17` or `17 torn` says before (or in the middle of) which change of the machine to
                    print CUT and stand still for ever; `0`: go through, print END and the list of all changes
TEST_JOB=rollback   the same, applied already and ready to roll back
TEST_JOB=look       in a later boot: of each disk that the host hung in, what `status` says, what `rollback` does, and all files before
                    and after it
TEST_JOB=kill       in one boot: a child applies (or rolls back) and is killed at each change in turn; the parent looks, rolls back, looks
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from kernel import inside
from linkproof.act.apply import apply
from linkproof.act.doors import Machine
from linkproof.act.journal import FOLDER, Journal
from linkproof.act.rollback import rollback
from linkproof.act.status import status
from linkproof.mending import (
    Command,
    ConfigWord,
    Pair,
    Plan,
    Proved,
    Sentence,
    Step,
    Symlink,
    SysfsText,
    TextFile,
)

PORT, GPU = "0000:02:01.0", "0000:04:00.0"
ACS_CONTROL = 0x148 + 6  # of QEMU's port
PAIRS = ((GPU, "0000:05:00.0"),)
GRUB, GRUB_CFG = "/etc/default/grub", "/boot/grub/grub.cfg"
UNIT, WANTS = "/etc/systemd/system/linkproof-test.service", "/etc/systemd/system/multi-user.target.wants/linkproof-test.service"
UPDATE_GRUB = "/bin/update-grub"
SCRIPT = f"""#!/bin/sh
{{ echo "# made from {GRUB}"; cat {GRUB}; }} > {GRUB_CFG}.new && cat {GRUB_CFG}.new > {GRUB_CFG} && rm {GRUB_CFG}.new
"""
JOURNAL, PAST = "/journal", "/past"  # of the kill job: they lie in memory


def plan() -> Plan:
    machine = Machine()
    group = (Path("/sys/bus/pci/devices") / GPU / "iommu_group").resolve().name
    say = Sentence("test")

    def step(name: str, effect: str, lasts: str, changes: tuple[Any, ...], pairs: tuple[Pair, ...] = ()) -> Step:
        return Step(
            id=name, what=say, finding="test", why=(say,), lasts=lasts, effect=effect, undo=say, by_hand=(), changes=changes, pairs=pairs
        )

    return Plan(
        steps=(
            step("word", "now", "until_reboot", (ConfigWord(PORT, ACS_CONTROL, 0x2C, 0, machine.identity(PORT)),), PAIRS),
            step("type", "now", "until_reboot", (SysfsText(f"/sys/kernel/iommu_groups/{group}/type", "identity"),), PAIRS),
            step(
                "boot",
                "reboot",
                "for_good",
                (TextFile(GRUB, "grub_default", add=("iommu=pt",)), Command((UPDATE_GRUB,), watched=(GRUB_CFG,))),
                PAIRS,
            ),
            step("unit", "reboot", "for_good", (TextFile(UNIT, "whole", content="[Unit]\n"), Symlink(WANTS, UNIT))),
        ),
        pairs=PAIRS,
        measured=True,
        boot_id=machine.boot_id(),
    )


class Helps:
    """A probe for which each step helps one way more, so that none is superfluous: what is tested here is the journal."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, pairs: tuple[Pair, ...]) -> Proved:
        self.asked += 1
        ways = [(src, dst, f"way{n}") for src, dst in pairs for n in range(20)]
        return Proved(frozenset(ways[self.asked :]), frozenset(ways[: self.asked]))


class Change(Struct):
    """One change of the machine, as it goes through its one door. torn: a power cut can leave half of it."""

    name: str
    path: str
    torn: bool


class Ending(Machine):
    """Ends before its `at`-th change, or in the middle of it."""

    def __init__(self, at: int, torn: bool, end: Callable[[], None]) -> None:
        super().__init__()
        self.at, self.torn, self.end = at, torn, end
        self.seen: list[Change] = []

    def _do(self, name: str, path: str, act: Callable[[], None], torn: Callable[[], None] | None = None) -> None:
        self.seen.append(Change(name, path, torn is not None))
        if len(self.seen) == self.at:
            if self.torn:
                assert torn is not None
                torn()
            self.end()
        super()._do(name, path, act, torn)


def _no_power() -> None:
    print("CUT", flush=True)
    while True:
        time.sleep(10)


def _applies(machine: Machine, folder: str = FOLDER) -> None:
    """In the kill job only what a machine that goes on keeps in its registers: the files are the same to a killed process and a cut power."""
    made, probe = plan(), Helps()
    if folder != FOLDER:
        made = msgspec.structs.replace(made, steps=made.steps[:2])
    done = apply(made, machine, Journal(folder, machine), probe, frozenset(), ask_again=lambda step: ())
    assert [d.state for d in done] == ["helped", "helped", "in_place", "in_place"][: len(done)], done


def _rolls_back(machine: Machine, folder: str = FOLDER) -> None:
    undone = rollback(machine, Journal(folder, machine))
    assert all(u.state in ("restored", "as_before") for u in undone), undone


def _until(work: Callable[[Machine], None]) -> None:
    at, _, torn = inside.word_from_host().partition(" ")
    machine = Ending(int(at), bool(torn), _no_power)
    work(machine)
    print("SEEN", json.dumps(msgspec.to_builtins(machine.seen)))
    print("END", flush=True)
    time.sleep(1000)


def _set_up(disk: str = "/dev/vda") -> None:
    Path(UPDATE_GRUB).write_text(SCRIPT)
    Path(UPDATE_GRUB).chmod(0o755)
    if disk:
        inside.load("virtio_blk")
        inside.mount(disk)


def _with_a_past(folder: str = FOLDER) -> None:
    """A journal in which a plan was applied and taken back already: the next apply has it to tidy up."""
    _applies(Machine(), folder)
    _rolls_back(Machine(), folder)


def _former() -> dict[str, bytes]:
    return {path: Path(path).read_bytes() for path in (GRUB, GRUB_CFG)}


def apply_and_cut() -> None:
    _set_up()
    _with_a_past()
    _until(_applies)


def rollback_and_cut() -> None:
    _set_up()
    _with_a_past()
    _applies(Machine())
    _until(_rolls_back)


# ---------------------------------------------------------------- afterwards


class Stood(Struct):
    """What `status` said of one change, and what is really there: former, wanted or other."""

    change: str
    state: str
    truth: str


class Looked(Struct):
    stood: list[Stood]
    truth: dict[str, str]
    undone: list[tuple[str, str]]
    why: list[str]
    again: list[str]
    left: list[str]
    files_before: dict[str, Any]
    files_after: dict[str, Any]


def _name(change: object) -> str:
    """Without the number of the IOMMU group: the kernel counts them."""
    kind, path = type(change).__name__, getattr(change, "path", "")
    return f"{kind} {path}" if isinstance(change, TextFile | Symlink) else kind


def _truth(former: dict[str, bytes], type_before: str) -> dict[str, str]:
    """Each change of the plan by a read of our own: is the former value there, the wanted one, or another?"""
    word = int.from_bytes(inside.registers_of(PORT)[ACS_CONTROL : ACS_CONTROL + 2], "little")
    kind = inside.group_type(GPU)
    out = {"ConfigWord": "former" if word == 0x1D else "wanted" if word == 0x11 else f"other {word:#06x}"}
    out["SysfsText"] = "former" if kind == type_before else "wanted" if kind == "identity" else f"other {kind}"
    grub, cfg = Path(GRUB).read_bytes(), Path(GRUB_CFG).read_bytes()
    out[f"TextFile {GRUB}"] = _of(grub, former[GRUB], b"iommu=pt")
    out["Command"] = _of(cfg, former[GRUB_CFG], b"iommu=pt")
    out[f"TextFile {UNIT}"] = "former" if not Path(UNIT).exists() else _of(Path(UNIT).read_bytes(), b"-", b"[Unit]\n")
    out[f"Symlink {WANTS}"] = "former" if not Path(WANTS).is_symlink() else "wanted" if str(Path(WANTS).readlink()) == UNIT else "other"
    return out


def _of(now: bytes, former: bytes, wanted: bytes) -> str:
    return "former" if now == former else "wanted" if wanted in now else f"other {now[:80]!r}"


def _look(former: dict[str, bytes], type_before: str, folder: str = FOLDER) -> Looked:
    machine = Machine()
    truth = _truth(former, type_before)
    before = inside.files()
    standing = status(machine, Journal(folder, machine))
    undone = rollback(machine, Journal(folder, machine))
    after = inside.files()
    return Looked(
        stood=[Stood(_name(s.change), s.state, truth[_name(s.change)]) for s in standing],
        truth=truth,
        undone=[(_name(u.change), u.state) for u in undone],
        why=[u.why.text.format(**u.why.args) for u in undone if u.why is not None],
        again=[u.state for u in rollback(machine, Journal(folder, machine))],
        left=[s.state for s in status(machine, Journal(folder, machine))],
        files_before={path: found[:4] for path, found in before.items()},
        files_after={path: found[:4] for path, found in after.items()},
    )


def look() -> list[Looked]:
    """The first disk is one that nothing was done to; the others are looked at, in order."""
    _set_up("")
    untouched, *cut = inside.disks()
    inside.mount(untouched)
    former = _former()
    inside.unmount()
    kind, out = inside.group_type(GPU), []
    for device in cut:
        inside.mount(device)
        out.append(_look(former, kind))
        inside.unmount()
    return out


# ---------------------------------------------------------------- kill -9, the machine goes on


class Killed(Struct):
    """n: before its n-th change. words: registers of every function after the rollback that are not as they were."""

    what: str
    n: int
    torn: bool
    change: Change
    looked: Looked
    words: dict[str, list[str]]


def _child(work: Callable[[Machine, str], None], at: int, torn: bool) -> tuple[bool, Change]:
    """Was it killed, and before what? The last line that it could write tells."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)

        def end() -> None:
            os.write(writing, msgspec.json.encode(machine.seen[-1]))
            os.kill(os.getpid(), signal.SIGKILL)

        machine = Ending(at, torn, end)
        code = 1
        try:
            work(machine, JOURNAL)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as f:
        said = f.read()
    _, ended = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(ended):
        assert os.WEXITSTATUS(ended) == 0, "apply or rollback failed by itself"
        return False, Change("", "", False)
    return True, msgspec.json.decode(said, type=Change)


def kill() -> list[Killed]:
    _set_up()
    former, kind, registers = _former(), inside.group_type(GPU), inside.registers()
    _with_a_past(PAST)
    out: list[Killed] = []
    for what, work in (("apply", _applies), ("rollback", _rolls_back)):
        n, torn = 1, False
        while True:
            shutil.rmtree(JOURNAL, ignore_errors=True)
            shutil.copytree(PAST, JOURNAL)
            if what == "rollback":
                _applies(Machine(), JOURNAL)
            killed, change = _child(work, n, torn)
            if not killed:
                break
            looked = _look(former, kind, JOURNAL)
            out.append(Killed(what, n, torn, change, looked, inside.differences(registers, inside.registers())))
            torn, n = (True, n) if change.torn and not torn else (False, n + 1)
        _rolls_back(Machine(), JOURNAL)
    return out


if __name__ == "__main__":
    inside.report({"apply": apply_and_cut, "rollback": rollback_and_cut, "look": look, "kill": kill})
