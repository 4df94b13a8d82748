"""Applying a plan: each state of a step from a cause that is really there and from its contrary, and a machine as before wherever it did not help."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from act_machine import (
    CFG,
    CONF,
    CONTROL,
    FILES,
    GPUS,
    GROUP,
    GROUP_2,
    GRUB,
    IDENTITY,
    MAKE_CFG,
    OF_EVERY_KIND,
    OUR_CONF,
    OUR_LINK,
    OUR_UNIT,
    PASSTHROUGH,
    UPDATE,
    WANTED,
    WORD,
    A,
    B,
    Cut,
    Hooked,
    Primitive,
    applied,
    below,
    bits,
    copied,
    cut_at,
    differences,
    draw,
    everything,
    in_memory,
    rolled_back,
    set_word,
    step,
    word,
)
from act_machine import FOLDER as JOURNAL
from linkproof.act.apply import TOLD, apply
from linkproof.act.doors import Machine
from linkproof.act.journal import Journal
from linkproof.act.status import status
from linkproof.errors import UsageError
from linkproof.mending import Change, Command, ConfigWord, Pair, Plan, Proved, Refusal, Sentence, Step, StepDone, TextFile
from linkproof.proc import Done

PAIRS = (GPUS, GPUS[::-1])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw(tmp_path / "machine")


@pytest.fixture
def memory() -> Iterator[Path]:
    with in_memory() as folder:
        yield folder


def proved(bad: str = "", right: str = "", pairs: tuple[Pair, ...] = (GPUS,)) -> Proved:
    """Modes of each of the pairs: `proved("push", "staged store")`."""
    return Proved(*(frozenset((*pair, mode) for pair in pairs for mode in modes.split()) for modes in (bad, right)))


class Asks:
    """A probe that asks the registers: what one of `ports` redirects arrives wrong."""

    def __init__(self, root: Path, *ports: str) -> None:
        self.root, self.ports, self.asked = root, ports, list[tuple[Pair, ...]]()

    def __call__(self, pairs: tuple[Pair, ...]) -> Proved:
        self.asked.append(pairs)
        redirects = any(word(self.root, port) & 0x0C for port in self.ports)
        return proved("push", "staged", pairs) if redirects else proved("", "push staged", pairs)


class Says:
    """A probe that gives these answers in turn."""

    def __init__(self, *answers: Proved | BaseException | None) -> None:
        self.left, self.asked = list(answers), list[tuple[Pair, ...]]()

    def __call__(self, pairs: tuple[Pair, ...]) -> Proved | None:
        self.asked.append(pairs)
        answer = self.left.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


BAD, GOOD, UNTRIED = proved("push", "staged"), proved("", "push staged"), proved()


def now(*changes: Change, **more: object) -> Step:
    """A step that acts at once, for the pair of GPUs."""
    return step(*changes, **{"effect": "now", "pairs": (GPUS,), **more})  # type: ignore[arg-type]


def done(machine: Machine, *steps: Step, **more: object) -> StepDone:
    """What became of the last of these steps."""
    return applied(machine, *steps, **more)[-1]


def why(done: StepDone) -> str:
    return "; ".join(s.text.format(**s.args) for s in done.why)


# ---------------------------------------------------------------- helped, did_not_help


def test_a_step_after_which_the_pair_is_right_has_helped_and_stays(root: Path) -> None:
    probe = Asks(root, A)
    helped = done(Hooked(root), now(bits(A)), probe=probe)
    assert (helped.state, helped.before, helped.after) == ("helped", BAD, GOOD)
    assert word(root, A) == 0x11 and word(root, B) == WORD and probe.asked == [(GPUS,), (GPUS,)]
    assert [s.state for s in status(Hooked(root), Journal(JOURNAL, Hooked(root)))] == ["in_force"]


def test_a_step_at_the_wrong_port_did_not_help_and_is_taken_back(root: Path) -> None:
    before = everything(root)
    failed = done(Hooked(root), now(bits(A)), probe=Asks(root, A, B))
    assert failed.state == "did_not_help" and f"{GPUS[0]} -> {GPUS[1]} (push)" in why(failed) and failed.after == BAD
    assert differences(root, before) == [] and status(Hooked(root), Journal(JOURNAL, Hooked(root))) == ()


def test_what_mends_one_pair_and_breaks_another_is_taken_back(root: Path) -> None:
    before = everything(root)
    first, second = proved("push", "staged store"), proved("store", "push staged")
    failed = done(Hooked(root), now(*OF_EVERY_KIND), probe=Says(first, second))
    assert failed.state == "did_not_help" and "it broke what was right" in why(failed) and "(store)" in why(failed)
    assert differences(root, before) == []
    assert done(Hooked(root), now(*OF_EVERY_KIND), probe=Says(first, proved("", "push staged store"))).state == "helped"


def test_half_of_what_was_bad_is_a_help(root: Path) -> None:
    first = proved("push", "staged", PAIRS)
    second = Proved(frozenset({(*GPUS, "push")}), first.right | {(*GPUS[::-1], "push")})
    assert done(Hooked(root), now(bits(A), pairs=PAIRS), probe=Says(first, second)).state == "helped" and word(root, A) == 0x11


def test_what_another_pair_does_meanwhile_says_nothing_of_this_step(root: Path) -> None:
    """The probe may say more than it was asked."""
    more = Proved(BAD.bad | {("x", "y", "push")}, BAD.right)
    after = Proved(frozenset({("y", "x", "push")}), GOOD.right)
    helped = done(Hooked(root), now(bits(A)), probe=Says(more, after))
    assert (helped.state, helped.before, helped.after) == ("helped", BAD, GOOD)


# ---------------------------------------------------------------- in_place, not_known


@pytest.mark.parametrize("effect", ["reboot", "restart"])
def test_what_shows_only_later_is_in_place_and_is_not_probed_again(root: Path, effect: str) -> None:
    probe = Says(BAD)
    assert done(Hooked(root), now(bits(A), effect=effect), probe=probe).state == "in_place"
    assert len(probe.asked) == 1 and word(root, A) == 0x11


def test_what_no_pair_can_show_is_not_known_and_nothing_is_sent(root: Path) -> None:
    probe = Says()
    assert done(Hooked(root), step(bits(A), effect="now"), probe=probe).state == "not_known"
    assert probe.asked == [] and word(root, A) == 0x11


@pytest.mark.parametrize("after", [None, UNTRIED, proved("", "staged")])
def test_a_probe_that_cannot_try_again_what_was_bad_proves_nothing_and_the_step_stays(root: Path, after: Proved | None) -> None:
    assert done(Hooked(root), now(bits(A)), probe=Says(BAD, after)).state == "not_known" and word(root, A) == 0x11


@pytest.mark.parametrize("before", [None, UNTRIED])
def test_without_a_measurement_before_it_takes_a_person_who_accepts_that(root: Path, before: Proved | None) -> None:
    start = everything(root)
    refused = done(Hooked(root), now(bits(A)), probe=Says(before))
    assert refused.state == "refused" and "could not be measured now" in why(refused) and differences(root, start) == []
    known = done(Hooked(root), now(bits(A)), probe=Says(before), accepted=frozenset({"unmeasured"}))
    assert known.state == "not_known" and word(root, A) == 0x11


# ---------------------------------------------------------------- not_needed


@pytest.mark.parametrize("change", OF_EVERY_KIND, ids=lambda change: type(change).__name__)
def test_what_is_there_already_is_not_written_again_and_what_went_is(root: Path, change: Change) -> None:
    start = {path: below(root, path).read_bytes() for path in FILES}
    assert done(Hooked(root), step(change)).state == "in_place"
    seen = Hooked(root)
    assert done(seen, step(change)).state == "not_needed"
    assert {p.name for p in seen.seen} == {"lock file"}, "not even in the journal"
    for path, data in start.items():
        below(root, path).write_bytes(data)
    set_word(root, A, WORD)
    below(root, WANTED).unlink(missing_ok=True)
    below(root, CONF).unlink(missing_ok=True)
    assert done(Hooked(root), step(change, id="again")).state == "in_place"


def test_only_what_is_missing_is_written_and_then_every_program_runs(root: Path) -> None:
    made = step(PASSTHROUGH, MAKE_CFG, OUR_UNIT)
    done(Hooked(root), made)
    below(root, GRUB).write_bytes(FILES[GRUB])
    seen = Hooked(root)
    assert done(seen, made).state == "in_place"
    assert {p.path for p in seen.seen if not p.path.startswith("/var") and p.name in ("rename", "run")} == {GRUB, UPDATE}
    assert below(root, CFG).read_bytes() == b"# made from\n" + below(root, GRUB).read_bytes()


def test_a_program_whose_work_another_hand_changed_runs_again(root: Path) -> None:
    done(Hooked(root), step(MAKE_CFG))
    below(root, CFG).write_bytes(b"made by an update of the kernel\n")
    seen = Hooked(root)
    assert done(seen, step(MAKE_CFG)).state == "in_place" and "run" in {p.name for p in seen.seen}


def test_a_step_is_superfluous_once_an_earlier_one_made_its_pairs_right(root: Path) -> None:
    probe = Asks(root, A)
    assert [d.state for d in applied(Hooked(root), now(bits(A)), now(bits(B), id="more"), probe=probe)] == ["helped", "not_needed"]
    assert word(root, B) == WORD and len(probe.asked) == 2


def test_and_it_is_done_while_one_of_its_pairs_is_bad_still(root: Path) -> None:
    first = proved("push", "", PAIRS)
    second = Proved(first.bad - {(*GPUS, "push")}, frozenset({(*GPUS, "push")}))
    third = Proved(frozenset(), first.bad)
    steps = (now(bits(A), pairs=PAIRS), now(bits(B), id="more", pairs=PAIRS))
    assert [d.state for d in applied(Hooked(root), *steps, probe=Says(first, second, third))] == ["helped", "helped"]
    assert word(root, B) == 0x11


def test_and_while_one_of_its_ways_is_bad_still(root: Path) -> None:
    first, second = proved("push store", "staged"), proved("store", "push staged")
    steps = (now(bits(A)), now(bits(B), id="more"))
    assert [d.state for d in applied(Hooked(root), *steps, probe=Says(first, second, proved("", "push staged store")))] == ["helped"] * 2


def test_a_pair_that_nobody_could_try_is_not_right(root: Path) -> None:
    steps = (now(bits(A)), now(bits(B), id="more", pairs=PAIRS))
    first, second = applied(Hooked(root), *steps, probe=Says(BAD, GOOD))
    assert (first.state, second.state) == ("helped", "refused") and "measured" in why(second)


@pytest.mark.parametrize(
    ("effect", "cured", "state"),
    [("now", True, "not_needed"), ("now", False, "helped"), ("reboot", False, "not_needed"), ("reboot", True, "not_needed")],
)
def test_a_step_that_is_for_when_another_did_not_help_waits_for_what_became_of_that(
    root: Path, effect: str, cured: bool, state: str
) -> None:
    steps = (now(bits(A), id="first", effect=effect), now(bits(B), id="second", unless="first"))
    probe = Asks(root, A) if cured else Asks(root, B)
    first, second = applied(Hooked(root), *steps, probe=probe)
    assert second.state == state, (first, second)
    assert ("not known yet" in why(second)) == (effect == "reboot"), "it says whether the other helped"
    assert word(root, B) == (WORD if state == "not_needed" else 0x11)


def test_it_is_done_if_that_other_was_refused_or_is_not_in_this_plan(root: Path) -> None:
    forbidden = now(bits(A), id="first", refusals=(Refusal("lockdown", Sentence("no")),))
    second = now(bits(B), id="second", unless="first")
    assert [d.state for d in applied(Hooked(root), forbidden, second, probe=Asks(root, B))] == ["refused", "helped"]
    rolled_back(Hooked(root))
    assert done(Hooked(root), second, probe=Asks(root, B)).state == "helped"


# ---------------------------------------------------------------- by_hand, refused


def test_what_a_person_must_do_is_left_to_a_person(root: Path) -> None:
    start = everything(root)
    assert done(Hooked(root), step()).state == "by_hand" and differences(root, start) == []


def test_a_refusal_counts_unless_it_may_be_accepted_and_is(root: Path) -> None:
    no, vfio = Refusal("lockdown", Sentence("the kernel is locked")), Refusal("vfio", Sentence("a guest"))
    start = everything(root)
    for refusals, accepted in [((vfio,), ""), ((vfio,), "sriov"), ((no,), "lockdown"), ((vfio, no), "vfio"), ((no, vfio), "vfio lockdown")]:
        probe = Says()
        refused = done(Hooked(root), now(bits(A), refusals=refusals), probe=probe, accepted=frozenset(accepted.split()))
        assert refused.state == "refused" and probe.asked == []
        assert refused.why == tuple(r.why for r in refusals if r is no or "vfio" not in accepted)
    assert differences(root, start) == []
    assert done(Hooked(root), now(bits(A), refusals=(vfio,)), probe=Asks(root, A), accepted=frozenset({"vfio"})).state == "helped"


def test_pairs_that_measure_right_now_need_no_mending(root: Path) -> None:
    start = everything(root)
    refused = done(Hooked(root), now(bits(A)), probe=Says(GOOD))
    assert refused.state == "refused" and refused.before == GOOD and differences(root, start) == []
    half = done(Hooked(root), now(bits(A), pairs=PAIRS), probe=Says(GOOD))
    assert half.state == "refused" and "could not be measured" in why(half), "one is right, the other was not tried"


def test_what_forbids_it_is_asked_again_right_before_the_write(root: Path) -> None:
    """A guest was started while the pairs were being measured."""
    said: list[str] = []

    def ask_again(step: Step) -> tuple[Refusal, ...]:
        said.append(f"asked for {step.id}, word {word(root, A):#06x}")
        return (Refusal("vfio", Sentence("a guest was started")),)

    def tell(step: Step, words: str) -> None:
        said.append(words)

    start = everything(root)
    refused = done(Hooked(root), now(bits(A)), probe=Says(BAD), ask_again=ask_again, tell=tell)
    assert refused.state == "refused" and why(refused) == "a guest was started" and refused.before == BAD
    assert said == [TOLD[0], "asked for step, word 0x001d", "refused"] and differences(root, start) == []
    assert done(Hooked(root), now(bits(A)), probe=Asks(root, A), ask_again=ask_again, accepted=frozenset({"vfio"})).state == "helped"


def test_it_is_asked_for_each_step_that_is_to_be_written_and_for_no_other(root: Path) -> None:
    asked: list[str] = []

    def ask_again(step: Step) -> tuple[Refusal, ...]:
        asked.append(step.id)
        return ()

    steps = (step(id="hand"), step(bits(A), id="one"), step(bits(A), id="there"), step(IDENTITY, id="two"))
    assert [d.state for d in applied(Hooked(root), *steps, ask_again=ask_again)] == ["by_hand", "in_place", "not_needed", "in_place"]
    assert asked == ["one", "two"]


# ---------------------------------------------------------------- did_not_stick

After = Callable[[Path, Primitive], None]


class Sticky(Hooked):
    """After each change of the machine something else happens to it."""

    def __init__(self, root: Path, after: After) -> None:
        super().__init__(root)
        self.after = after

    def _do(self, name: str, path: str, act: Callable[[], None], torn: Callable[[], None] | None = None) -> None:
        super()._do(name, path, act, torn)
        self.after(Path(self.root), self.seen[-1])


def one_bit_stays(root: Path, primitive: Primitive) -> None:
    if primitive.name == "config":
        set_word(root, A, word(root, A) | 0x04)


def another_bit_comes(root: Path, primitive: Primitive) -> None:
    if primitive.name == "config":
        set_word(root, A, word(root, A) ^ 0x40 if word(root, A) & 0x0C == 0 else word(root, A) & ~0x40)


def another_word(root: Path, primitive: Primitive) -> None:
    if primitive.name == "sysfs" and below(root, GROUP).read_bytes() != FILES[GROUP]:
        below(root, GROUP).write_bytes(b"DMA\n")


def a_line_more(root: Path, primitive: Primitive) -> None:
    if primitive.name == "rename" and primitive.path == CONF:
        below(root, CONF).write_bytes(b"x\ny\n")


@pytest.mark.parametrize(
    ("change", "after"),
    [(bits(A), one_bit_stays), (bits(A), another_bit_comes), (IDENTITY, another_word)],
    ids=lambda a: getattr(a, "__name__", ""),
)
def test_what_reads_back_otherwise_did_not_stick_and_its_neighbours_are_taken_back(root: Path, change: Change, after: After) -> None:
    start = everything(root)
    failed = done(Sticky(root, after), step(bits(B), PASSTHROUGH, change, OUR_LINK))
    assert failed.state == "did_not_stick" and "reads" in why(failed), failed
    assert differences(root, start) == []
    assert done(Hooked(root), step(bits(B), PASSTHROUGH, change, OUR_LINK)).state == "in_place"


def test_a_file_that_another_hand_changed_in_that_moment_is_left_to_it(root: Path) -> None:
    start = everything(root)
    failed = done(Sticky(root, a_line_more), step(bits(B), OUR_CONF))
    assert failed.state == "failed" and "does not read back" in why(failed) and "`linkproof fix rollback` tries again" in why(failed)
    assert below(root, CONF).read_bytes() == b"x\ny\n" and word(root, B) == WORD
    below(root, CONF).unlink()
    assert [u.state for u in rolled_back(Hooked(root))] == ["as_before"] and differences(root, start) == []


# ---------------------------------------------------------------- failed


class Program:
    """Writes something, and then ends so."""

    def __init__(self, root: Path, done: Done | BaseException) -> None:
        self.root, self.done = root, done

    def __call__(self, argv: tuple[str, ...], *, deadline_s: float) -> Done:
        below(self.root, CFG).write_bytes(b"# ha")
        below(self.root, "/boot/grub/new").mkdir()
        below(self.root, "/boot/grub/new/made").write_bytes(b"")
        if isinstance(self.done, BaseException):
            raise self.done
        return self.done


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (Done(b"warning\nno such device\n", code=1), f"`{UPDATE}` ended with 1: no such device"),
        (Done(b"", code=-9), "ended with -9: no output"),
        (Done(b"\xff\x1b", code=2), "ended with 2: "),
        (Done(b"still at it", "timeout", -9), "did not end within 120 s"),
        (Done(None, "absent"), f"`{UPDATE}` is not there"),
        (Done(None, "denied"), "could not be run: denied"),
        (Done(None, "failed: Exec format error"), "could not be run: failed: Exec format error"),
    ],
)
def test_a_program_that_does_not_end_well_has_failed_and_what_it_wrote_is_put_back(root: Path, ended: Done, words: str) -> None:
    start = everything(root)
    machine = Hooked(root, program=Program(root, ended))
    failed = done(machine, step(bits(B), PASSTHROUGH, MAKE_CFG, OUR_CONF))
    assert failed.state == "failed" and words in why(failed) and differences(root, start) == []
    assert done(Hooked(root), step(bits(B), PASSTHROUGH, MAKE_CFG, OUR_CONF)).state == "in_place"


def test_a_program_is_never_run_for_a_machine_in_another_root(root: Path) -> None:
    start = everything(root)
    failed = done(Machine(str(root)), step(Command(("touch", f"{root}/touched"), watched=("/boot",))))
    assert failed.state == "failed" and "is not there" in why(failed) and differences(root, start) == []


def test_a_real_program_that_hangs_is_ended_and_has_failed(tmp_path: Path) -> None:
    """On the machine that we run on, its journal and what is watched in a folder of the test."""
    made = tmp_path / "watched" / "made"
    made.parent.mkdir()
    hangs = Command(("sh", "-c", f"echo half > {made}; sleep 60"), watched=(str(made.parent),), deadline_s=0.5)
    journal = Journal(str(tmp_path / "journal"), Machine())
    [failed] = apply(Plan((step(hangs),)), Machine(), journal, lambda pairs: None, frozenset(), ask_again=lambda step: ())
    assert failed.state == "failed" and "did not end within 0.5 s" in why(failed) and not made.exists()


def not_understood(root: Path) -> None:
    below(root, GRUB).write_bytes(b'GRUB_CMDLINE_LINUX_DEFAULT="$(cat /x)\n')


def taken(root: Path) -> None:
    below(root, CONF).parent.mkdir(parents=True)
    below(root, CONF).write_bytes(b"somebody else's\n")


def link_taken(root: Path) -> None:
    below(root, WANTED).symlink_to("/dev/null")


def another_device(root: Path) -> None:
    config = below(root, f"/sys/bus/pci/devices/{A}/config")
    config.write_bytes(b"\xde\x10" + config.read_bytes()[2:])


def gone(root: Path) -> None:
    below(root, f"/sys/bus/pci/devices/{A}").unlink()


def another_place(root: Path) -> None:
    link = below(root, f"/sys/bus/pci/devices/{A}")
    link.unlink()
    link.symlink_to(below(root, f"/sys/bus/pci/devices/{B}").readlink())


def fallen_off(root: Path) -> None:
    below(root, f"/sys/bus/pci/devices/{A}/config").write_bytes(b"\xff" * 4096)


def read_in_part(root: Path) -> None:
    os.truncate(below(root, f"/sys/bus/pci/devices/{A}/config"), 256)


def capability_elsewhere(root: Path) -> None:
    config = bytearray(below(root, f"/sys/bus/pci/devices/{A}/config").read_bytes())
    config[0x150:0x152] = b"\x0b\0"
    below(root, f"/sys/bus/pci/devices/{A}/config").write_bytes(config)


@pytest.mark.parametrize(
    ("cause", "change", "words"),
    [
        (not_understood, PASSTHROUGH, "was left alone"),
        (taken, OUR_CONF, "was left alone"),
        (link_taken, OUR_LINK, "something else stands there"),
        (another_device, bits(A), "another device stands there: 10de:c030"),
        (another_place, bits(A), "another device stands there"),
        (gone, bits(A), "cannot be read: No such file"),
        (fallen_off, bits(A), "no device answers"),
        (read_in_part, bits(A), "only 256 bytes"),
        (capability_elsewhere, bits(A), "capability 0x000d is not where it was"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_machine_that_is_not_as_it_was_planned_for_is_left_as_it_is(
    root: Path, cause: Callable[[Path], None], change: Change, words: str
) -> None:
    healthy = copied(root, root.with_name("healthy"))
    cause(root)
    start = everything(root)
    failed = done(Hooked(root), step(bits(B), change))
    assert failed.state == "failed" and words in why(failed) and differences(root, start) == []
    assert done(Hooked(healthy), step(bits(B), change)).state == "in_place"


@pytest.mark.parametrize(
    "change",
    [
        replace(bits(A), mask=0),
        replace(bits(A), mask=0x1FFFF),
        replace(bits(A), want=0x10),
        replace(bits(A), offset=CONTROL + 1),
        replace(bits(A), offset=0x10),
        replace(bits(A), offset=0x1156),
        replace(bits(A), inside=4),
        replace(bits(A), capability=1),
        replace(bits(A), bdf="../../x"),
        replace(bits(A), identity=""),
    ],
)
def test_a_word_that_is_not_one_of_the_register_that_it_names_is_never_written(root: Path, change: ConfigWord) -> None:
    start = everything(root)
    seen = Hooked(root)
    assert done(seen, step(change)).state == "failed" and "config" not in {p.name for p in seen.seen} and differences(root, start) == []


def refuses(name: str, path: str, error: int) -> Callable[[Primitive], None]:
    def hook(primitive: Primitive) -> None:
        if primitive.name == name and primitive.path.startswith(path):
            raise OSError(error, os.strerror(error))

    return hook


@pytest.mark.parametrize(
    ("name", "path", "error", "words"),
    [
        ("config", A, errno.EPERM, "is locked down, or this process has no CAP_SYS_ADMIN"),
        ("config", A, errno.EROFS, "/sys is mounted read-only here"),
        ("config", A, errno.EACCES, "only root may do that"),
        ("sysfs", GROUP, errno.EBUSY, "only while no driver is bound"),
        ("sysfs", GROUP, errno.EINVAL, f"{GROUP}: Invalid argument"),
        ("create", "/etc/default", errno.ENOSPC, f"{GRUB}: No space left"),
        ("rename", GRUB, errno.EBUSY, f"{GRUB}: Device or resource busy"),
        ("attributes", "/etc/default", errno.EPERM, f"{GRUB}: Operation not permitted"),
        ("mkdir", "/etc/ours/more", errno.EROFS, f"{CONF}: its file system is mounted read-only"),
        ("symlink", WANTED, errno.EACCES, "only root may do that"),
    ],
)
def test_what_the_kernel_refuses_is_said_in_words_and_all_of_the_step_is_taken_back(
    root: Path, name: str, path: str, error: int, words: str
) -> None:
    start = everything(root)
    failed = done(Hooked(root, refuses(name, path, error)), step(*OF_EVERY_KIND))
    assert failed.state == "failed" and words in why(failed) and differences(root, start) == []


def test_a_kernel_that_is_locked_down_is_named(root: Path) -> None:
    at = below(root, "/sys/kernel/security/lockdown")
    at.parent.mkdir()
    at.write_bytes(b"none [integrity] confidentiality\n")
    assert "locked down (integrity)" in why(done(Hooked(root, refuses("config", A, errno.EPERM)), step(bits(A))))


def test_a_step_of_which_not_all_can_be_taken_back_has_failed_and_rollback_tries_again(root: Path) -> None:
    start, wrote = everything(root), list[Primitive]()

    def hook(primitive: Primitive) -> None:
        if primitive.name == "config":
            wrote.append(primitive)
            if len(wrote) > 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    failed = done(Hooked(root, hook), now(bits(A), PASSTHROUGH), probe=Asks(root, B))
    assert failed.state == "failed" and "`linkproof fix rollback` tries again" in why(failed) and failed.after == BAD
    assert word(root, A) == 0x11 and below(root, GRUB).read_bytes() == FILES[GRUB]
    assert [u.state for u in rolled_back(Hooked(root))] == ["restored"] and differences(root, start) == []


# ---------------------------------------------------------------- what ends it in the middle


class Lost(Exception):
    pass


@pytest.mark.parametrize("ended", [Lost(), KeyboardInterrupt(), SystemExit(1), MemoryError()])
def test_a_probe_that_ends_in_an_error_takes_the_step_back_and_no_other(root: Path, ended: BaseException) -> None:
    done(Hooked(root), step(bits(B), id="earlier"))
    start = everything(root)
    with pytest.raises(type(ended)):
        done(Hooked(root), now(*OF_EVERY_KIND), probe=Says(BAD, ended))
    assert differences(root, start) == [] and [u.step for u in rolled_back(Hooked(root))] == ["earlier"]
    with pytest.raises(type(ended)):
        done(Hooked(root), now(*OF_EVERY_KIND), probe=Says(ended))


def test_ctrl_c_while_a_program_runs_puts_back_what_it_wrote(root: Path) -> None:
    start = everything(root)
    with pytest.raises(KeyboardInterrupt):
        done(Hooked(root, program=Program(root, KeyboardInterrupt())), step(bits(A), PASSTHROUGH, MAKE_CFG))
    assert differences(root, start) == []


@pytest.mark.parametrize("words", TOLD)
def test_a_listener_that_is_gone_does_not_keep_a_step_from_being_taken_back(root: Path, words: str) -> None:
    """`linkproof fix apply 2>&1 | head -1`"""
    start = everything(root)

    def tell(step: Step, told: str) -> None:
        if TOLD.index(told) >= TOLD.index(words):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        done(Hooked(root), now(*OF_EVERY_KIND), probe=Says(BAD, BAD), tell=tell)
    assert differences(root, start) == [] and {u.state for u in rolled_back(Hooked(root))} <= {"as_before"}


def test_ctrl_c_at_any_change_of_the_machine_takes_the_step_back(memory: Path) -> None:
    drawn = draw(memory / "drawn")
    start, seen = everything(drawn), Hooked(copied(drawn, memory / "x"))
    done(seen, step(*OF_EVERY_KIND))
    for primitive in seen.seen:
        for torn in (False, True) if primitive.torn is not None else (False,):
            root = copied(drawn, memory / "x")
            with pytest.raises(KeyboardInterrupt):
                done(Hooked(root, _ctrl_c(primitive.n, torn)), step(*OF_EVERY_KIND))
            assert differences(root, start) == [], (primitive, torn)
            assert {u.state for u in rolled_back(Hooked(root))} <= {"as_before"}, "nothing was left for a rollback"
            assert done(Hooked(root), step(*OF_EVERY_KIND)).state == "in_place"


def _ctrl_c(n: int, torn: bool) -> Callable[[Primitive], None]:
    def hook(primitive: Primitive) -> None:
        if primitive.n == n:
            if torn and primitive.torn is not None:
                primitive.torn()
            raise KeyboardInterrupt

    return hook


def test_after_a_cut_nothing_more_is_applied_until_it_was_rolled_back(memory: Path) -> None:
    """At every change of apply, and of rollback: either the journal knows nothing of it, or it names the step that is half done."""
    drawn = draw(memory / "drawn")
    seen = Hooked(copied(drawn, memory / "x"))
    done(seen, step(*OF_EVERY_KIND, id="half"))
    refused = 0
    for n in range(1, len(seen.seen) + 1):
        root = copied(drawn, memory / "x")
        with suppress(Cut):
            done(Hooked(root, cut_at(n)), step(*OF_EVERY_KIND, id="half"))
        start = everything(root)
        interrupted = {s.state for s in status(Hooked(root), Journal(JOURNAL, Hooked(root)))} & {"interrupted"}
        try:
            done(Hooked(root), step(bits(B), id="more"))
            assert not interrupted
        except UsageError as e:
            refused += 1
            assert e.ref == "fix-interrupted" and "in the middle of: half" in str(e) and interrupted
            assert differences(root, start) == []
            rolled_back(Hooked(root))
            assert done(Hooked(root), step(bits(B), *OF_EVERY_KIND, id="more")).state == "in_place"
    assert refused > 20


def test_a_rollback_that_was_cut_off_is_in_the_way_too(root: Path) -> None:
    done(Hooked(root), step(bits(A), id="half"))
    seen = Hooked(copied(root, root.with_name("seen")))
    rolled_back(seen)
    place = next(p.n for p in seen.seen if p.name == "config")
    with pytest.raises(Cut):
        rolled_back(Hooked(root, cut_at(place)))
    with pytest.raises(UsageError, match="fix-interrupted"):
        done(Hooked(root), step(bits(B)))
    assert word(root, B) == WORD


# ---------------------------------------------------------------- a plan of several steps


def test_what_fails_does_not_keep_the_next_step_from_being_done(root: Path) -> None:
    steps = (now(bits(A), id="a"), step(TextFile("/etc/x/y", "grub_default"), id="b"), step(bits(B), id="c"))
    states = [d.state for d in applied(Hooked(root), *steps, probe=Asks(root, B))]
    assert states[0] == "did_not_help" and states[2] == "in_place" and word(root, A) == WORD and word(root, B) == 0x11


def test_the_pairs_of_all_steps_are_measured_once_before_and_those_of_a_step_after_it(root: Path) -> None:
    other = ("0000:15:00.0", "0000:16:00.0")
    first, second = now(bits(A)), now(bits(B), id="more", pairs=(other,))
    probe = Says(proved("push", "", (GPUS, other)), GOOD, proved("", "push", (other,)))
    assert [d.state for d in applied(Hooked(root), first, second, step(id="hand", pairs=(("x", "y"),)), probe=probe)] == [
        "helped",
        "helped",
        "by_hand",
    ]
    assert probe.asked == [(GPUS, other), (GPUS,), (other,)]


def test_each_step_is_told_from_its_beginning_to_its_state(root: Path) -> None:
    said: list[tuple[str, str]] = []
    steps = (now(bits(A), id="a"), now(bits(B), id="b"), step(id="c"))
    applied(Hooked(root), *steps, probe=Asks(root, B), tell=lambda step, words: said.append((step.id, words)))
    assert said == [
        ("a", TOLD[0]), ("a", TOLD[1]), ("a", TOLD[2]), ("a", TOLD[3]), ("a", "did_not_help"),
        ("b", TOLD[1]), ("b", TOLD[2]), ("b", "helped"),
        ("c", "by_hand"),
    ]  # fmt: skip


def test_two_words_of_one_register_in_one_step_keep_each_others_bits(root: Path) -> None:
    start = everything(root)
    assert done(Hooked(root), step(bits(A, 0x08), bits(A, 0x04), bits(A, 0x40, 0x40))).state == "in_place" and word(root, A) == 0x51
    assert [u.state for u in rolled_back(Hooked(root))] == ["restored"] * 3 and differences(root, start) == []


def test_one_of_a_list_of_words_is_read_by_its_brackets(root: Path) -> None:
    """As `/sys/kernel/mm/transparent_hugepage/enabled` says it."""
    choices = ("DMA", "DMA-FQ", "identity")

    class Lists(Hooked):
        def sysfs(self, path: str) -> str:
            said = super().sysfs(path)
            return " ".join(f"[{c}]" if c == said else c for c in choices) if path in (GROUP, GROUP_2) else said

    start = everything(root)
    assert done(Lists(root), step(IDENTITY)).state == "in_place" and below(root, GROUP).read_bytes() == b"identity\n"
    assert done(Lists(root), step(IDENTITY)).state == "not_needed"
    assert [u.state for u in rolled_back(Lists(root))] == ["restored"] and differences(root, start) == []


def test_the_file_that_a_link_leads_to_is_written_and_the_link_stays(root: Path) -> None:
    below(root, GRUB).rename(below(root, "/etc/grub.real"))
    below(root, GRUB).symlink_to("/etc/grub.real")
    start = everything(root)
    assert done(Hooked(root), step(PASSTHROUGH)).state == "in_place"
    assert below(root, GRUB).is_symlink() and b"iommu=pt" in below(root, "/etc/grub.real").read_bytes()
    below(root, GRUB).unlink()
    assert [u.state for u in rolled_back(Hooked(root))] == ["restored"], "and undone where it was written"
    assert differences(root, start) == [GRUB]
