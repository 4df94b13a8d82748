"""The power goes, or the process is killed, at every change that `apply` and `rollback` make to a machine; the next boot has it all back.

Power: QEMU boots once, and is kept as it stands just before `apply` (and once more just before `rollback`). From there it is started again for
every change in turn, killed with SIGKILL before that change (and in the middle of those that can be torn), and the disk that it leaves is
looked at in a later boot, by `status` and `rollback` on a real ext4. What the guest's kernel held in its memory and had not written is lost by
that. Of a cut at which writes were on their way there are two disks: one that holds every write that QEMU had been given, and one that has lost
all that the guest had not flushed. What lies between (some of those writes, or half of one) is not shown.
Registers and group types are those of the next boot then, as on a machine that was switched off.

Kill: in one boot a child process is killed with SIGKILL at each change in turn, and the registers of the machine stay as it left them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import msgspec
import pytest

from kernel import disk
from kernel.cut_guest import GRUB, JOURNAL, UNIT, WANTS, Change, Killed, Looked
from kernel.vm import Drive, Frozen, Lab, Machine

ARGS = "TEST_PROGRAM=cut_guest intel_iommu=on TEST_JOB="
OURS = "/var/lib/linkproof"
FILES = {
    "etc/default/grub": b'# If you change this file, run update-grub\nGRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX_DEFAULT="quiet splash"\n',
    "boot/grub/grub.cfg": b"# before\n",
    "etc/systemd/system/multi-user.target.wants/other.service": b"[Unit]\n",
    "var/lib/other/state": b"7\n",
}
PLANNED = {"ConfigWord", "SysfsText", "Command", f"TextFile {GRUB}", f"TextFile {UNIT}", f"Symlink {WANTS}"}
AT_ONCE, BOOT = {"ConfigWord", "SysfsText"}, {f"TextFile {GRUB}", "Command"}
LANES = ("apply", "rollback")


class Place(NamedTuple):
    """Where the power went. lost: writes that the disk had been given and that were not flushed."""

    lane: str
    n: int
    torn: bool
    change: Change
    disks: dict[str, Path]  # all, flushed
    lost: int


class Cuts(NamedTuple):
    places: list[Place]
    looked: dict[Path, Looked]

    def of(self, lane: str) -> Iterator[tuple[Place, str, Looked]]:
        for place in self.places:
            if place.lane == lane:
                yield from ((place, holds, self.looked[path]) for holds, path in place.disks.items())


def _start(lab: Lab, lane: str) -> tuple[Frozen, list[Change]]:
    image = disk.make(lab.work / f"cut-{lane}.img", FILES)
    frozen = lab.freeze(f"cut-{lane}", ARGS + lane, Machine(drives=(Drive(image),)))
    whole = lab.thaw(frozen, "0")
    seen = next(line for line in whole.said.splitlines() if line.startswith("SEEN "))
    return frozen, msgspec.convert(json.loads(seen.removeprefix("SEEN ")), list[Change])


def _cut(lab: Lab, frozen: Frozen, lane: str, n: int, torn: bool, change: Change) -> Place:
    cut = lab.thaw(frozen, f"{n} torn" if torn else str(n))
    assert "CUT" in cut.said, f"{lane}: change {n} was not reached again: {cut.said}"
    disks = {"all": cut.image, "flushed": cut.image.with_suffix(".flushed")}
    lost = disk.after_power_cut(cut.before, cut.log, disks["flushed"])
    cut.log.unlink()
    if not lost:  # then both are the same
        disks.pop("flushed").unlink()
    return Place(lane, n, torn, change, disks, lost)


def _look(lab: Lab, number: int, disks: list[Path]) -> dict[Path, Looked]:
    untouched = disk.make(lab.work / f"untouched-{number}.img", FILES)
    machine = Machine(drives=tuple(Drive(path) for path in (untouched, *disks)), many=True)
    said = lab.run(f"look-{number}", ARGS + "look", machine)
    return dict(zip(disks, msgspec.json.decode(said.body, type=list[Looked]), strict=True))


@pytest.fixture(scope="module")
def cuts(lab: Lab) -> Iterator[Cuts]:
    t0 = monotonic()
    with ThreadPoolExecutor(max_workers=2) as pool:
        lanes = dict(zip(LANES, pool.map(lambda lane: _start(lab, lane), LANES), strict=True))
        todo = [
            (frozen, lane, n, torn, change)
            for lane, (frozen, seen) in lanes.items()
            for n, change in enumerate(seen, 1)
            for torn in ((False, True) if change.torn else (False,))
        ]
        t1 = monotonic()
        places = list(pool.map(lambda cut: _cut(lab, *cut), todo))
        t2 = monotonic()
        for frozen, _ in lanes.values():
            frozen.state.unlink()
        disks = [path for place in places for path in place.disks.values()]
        parts = [disks[::2], disks[1::2]]
        looked: dict[Path, Looked] = {}
        for found in pool.map(lambda part: _look(lab, *part), enumerate(parts)):
            looked |= found
    t3 = monotonic()
    print(
        f"\n2 boots {t1 - t0:.0f} s, {len(places)} cuts {t2 - t1:.0f} s, {len(parts)} boots that look at {len(disks)} disks {t3 - t2:.0f} s"
    )
    yield Cuts(places, looked)
    for path in disks:
        path.unlink()


@pytest.fixture(scope="module")
def killed(lab: Lab) -> list[Killed]:
    image = disk.make(lab.work / "kill.img", FILES)
    said = lab.run("kill", ARGS + "kill", Machine(drives=(Drive(image),)))
    found = msgspec.json.decode(said.body, type=list[Killed])
    print(f"\n{len(found)} kills: {said.took_s:.0f} s")
    return found


# ---------------------------------------------------------------- what must hold, whoever ended it


def _others(files: dict[str, object]) -> dict[str, object]:
    return {path: found for path, found in files.items() if not path.startswith(OURS) and not path.startswith(JOURNAL)}


def _wrong(looked: Looked, former: dict[str, object], *, next_boot: bool) -> list[str]:
    """What is not as it must be. next_boot: of which the kernel was started without the new word, as no boot loader ran in between."""
    out = [f"neither old nor new: {name} {truth}" for name, truth in looked.truth.items() if truth.startswith("other")]
    known = {stood.change for stood in looked.stood}
    for name, truth in looked.truth.items():
        if truth == "wanted" and name not in known:
            out.append(f"changed, and the journal does not know: {name}")
    for stood in looked.stood:
        now = (
            "in_force"
            if stood.change in AT_ONCE
            else "waits_for_reboot"
            if not next_boot
            else "drifted"
            if stood.change in BOOT
            else "in_force"
        )
        right = {"former": {"lost", "interrupted"}, "wanted": {now, "interrupted"}}.get(stood.truth, set())
        if stood.state not in right:
            out.append(f"status says {stood.state} of {stood.change}, and the {stood.truth} value is there")
    undone = {name for name, _ in looked.undone}
    out += [f"not taken back: {name}" for name in known - undone]
    out += [f"rollback says {state} of {name}" for name, state in looked.undone if state not in ("restored", "as_before")]
    after, before = _others(looked.files_after), _others(former)
    out += [f"not as before: {path}" for path in sorted({*after, *before}) if after.get(path) != before.get(path)]
    out += looked.why if out else []
    if looked.again or looked.left:
        out.append(f"a second rollback found {looked.again}, status still {looked.left}")
    return out


def _former(untouched: Looked) -> dict[str, object]:
    """All files of a machine that nothing was done to: the cut before the first change of `apply`."""
    return _others(untouched.files_before)


# ---------------------------------------------------------------- power


def test_the_power_was_cut_at_every_change_of_every_kind(cuts: Cuts) -> None:
    kinds = {(place.lane, place.change.name) for place in cuts.places}
    wanted = {"config", "sysfs", "create", "attributes", "append", "fsync", "rename", "symlink", "run"}
    assert {name for lane, name in kinds if lane == "apply"} >= wanted
    assert {name for lane, name in kinds if lane == "rollback"} >= {"config", "sysfs", "append", "fsync", "rename", "unlink"}
    for lane in LANES:
        numbers = [place.n for place in cuts.places if place.lane == lane and not place.torn]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 20


def test_a_disk_that_loses_what_was_not_flushed_is_another_disk_at_some_cuts(cuts: Cuts) -> None:
    """Else the second disk would show nothing that the first does not."""
    assert sum(place.lost > 0 for place in cuts.places) >= 4


@pytest.mark.parametrize("lane", LANES)
def test_after_a_power_cut_status_tells_the_truth_and_rollback_gives_every_byte_back(cuts: Cuts, lane: str) -> None:
    former = _former(cuts.looked[cuts.places[0].disks["all"]])
    wrong = {
        f"{place.n}{' torn' if place.torn else ''} {holds} {place.change.name} {place.change.path}": found
        for place, holds, looked in cuts.of(lane)
        if (found := _wrong(looked, former, next_boot=True))
    }
    assert wrong == {}


@pytest.mark.parametrize("lane", LANES)
def test_the_journal_remembers_across_the_cut_what_had_been_begun(cuts: Cuts, lane: str) -> None:
    """With a journal that forgets, a rollback that does nothing would pass wherever nothing had been written: here it had something to do."""
    assert {"restored", "as_before"} <= {state for _, _, looked in cuts.of(lane) for _, state in looked.undone}
    assert {"interrupted", "lost", "in_force"} <= {stood.state for _, _, looked in cuts.of(lane) for stood in looked.stood}
    most = max((looked for _, _, looked in cuts.of(lane)), key=lambda looked: len(looked.stood))
    assert {stood.change for stood in most.stood} >= PLANNED


# ---------------------------------------------------------------- kill -9


def test_a_process_that_is_killed_at_any_change_leaves_a_journal_that_restores_every_register_and_file(killed: list[Killed]) -> None:
    former = _former(killed[0].looked)
    wrong = {
        (k.what, k.n, k.torn, k.change.name, k.change.path): found
        for k in killed
        if (found := _wrong(k.looked, former, next_boot=False) + [f"register {bdf} {words}" for bdf, words in k.words.items()])
    }
    assert wrong == {}
    for what in LANES:
        assert {"config", "sysfs", "append", "fsync"} <= {k.change.name for k in killed if k.what == what}
    assert {"restored", "as_before"} <= {state for k in killed for name, state in k.looked.undone if name == "ConfigWord"}


def test_where_the_process_was_killed_while_a_register_held_the_new_word_status_said_so(killed: list[Killed]) -> None:
    stood = [s for k in killed for s in k.looked.stood if s.change == "ConfigWord" and s.truth == "wanted"]
    assert stood and {s.state for s in stood} <= {"in_force", "interrupted"}
