"""Taking back: the former bytes, modes, owners and words, whenever it was cut off, and never over what another hand wrote."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import permutations
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from act_machine import (
    CFG,
    CONF,
    FILES,
    FOLDER,
    GPUS,
    GROUP,
    GROUP_2,
    GRUB,
    IDENTITY,
    MAKE_CFG,
    MEMORY,
    OF_EVERY_KIND,
    OUR_CONF,
    OUR_LINK,
    OUR_UNIT,
    OURS,
    PASSTHROUGH,
    PUSH,
    UNIT,
    UPDATE,
    WANTED,
    WORD,
    A,
    B,
    Cut,
    Hook,
    Hooked,
    Primitive,
    Thing,
    applied,
    below,
    bits,
    copied,
    cut_at,
    cuts,
    differences,
    draw,
    everything,
    full,
    in_memory,
    into_the_journal,
    no_hook,
    reboot,
    rolled_back,
    set_word,
    step,
    word,
)
from linkproof.act.journal import Journal
from linkproof.act.status import status
from linkproof.errors import UsageError
from linkproof.mending import UNDO_STATES, Change, ChangeUndone, Command, Proved, SysfsText, TextFile
from linkproof.proc import Done

BACK = {"restored", "as_before"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw(tmp_path / "machine")


@pytest.fixture
def memory() -> Iterator[Path]:
    with in_memory() as folder:
        yield folder


def states(undone: tuple[ChangeUndone, ...]) -> list[str]:
    assert {u.state for u in undone} <= set(UNDO_STATES)
    return [u.state for u in undone]


def put(root: Path, path: str, data: bytes) -> None:
    below(root, path).write_bytes(data)


def names_of(seen: Hooked) -> set[str]:
    """Of the changes that are not of the journal."""
    return {p.name for p in seen.seen if not p.path.startswith(OURS)} - {"fsync", "sync"}


def nothing_left(root: Path) -> bool:
    """Another rollback finds nothing to do, and writes nothing."""
    seen = Hooked(root)
    return rolled_back(seen) == () and {p.name for p in seen.seen} <= {"lock file"} and status(seen, Journal(FOLDER, seen)) == ()


# ---------------------------------------------------------------- restored, as_before


@pytest.mark.parametrize("change", OF_EVERY_KIND, ids=lambda change: type(change).__name__)
def test_each_kind_of_change_is_restored_once(root: Path, change: Change) -> None:
    start = everything(root)
    applied(Hooked(root), step(change))
    assert differences(root, start) != []
    assert states(rolled_back(Hooked(root))) == ["restored"] and differences(root, start) == [] and nothing_left(root)


def test_all_of_a_step_is_restored_the_last_change_first(root: Path) -> None:
    start = everything(root)
    applied(Hooked(root), step(*OF_EVERY_KIND))
    undone = rolled_back(Hooked(root))
    assert [u.change for u in undone] == list(reversed(OF_EVERY_KIND)) and set(states(undone)) == {"restored"}
    assert differences(root, start) == [] and nothing_left(root)


def test_a_machine_without_a_journal_is_not_given_one(root: Path) -> None:
    seen = Hooked(root)
    assert rolled_back(seen) == () and seen.seen == [] and not below(root, OURS).exists()


@pytest.mark.parametrize("again", [False, True])
def test_what_a_reboot_took_back_is_as_before_and_the_disk_is_restored(root: Path, again: bool) -> None:
    """Applied in one boot, or in both."""
    start = everything(root)
    applied(Hooked(root), step(*OF_EVERY_KIND))
    reboot(root)
    if again:
        applied(Hooked(root), step(*OF_EVERY_KIND))
        assert word(root, A) == 0x11
    undone = {(type(u.change).__name__, u.state) for u in rolled_back(Hooked(root))}
    assert ("ConfigWord", "as_before") in undone and ("SysfsText", "as_before") in undone and ("TextFile", "restored") in undone
    assert (("ConfigWord", "restored") in undone) == again
    below(root, "/proc/sys/kernel/random/boot_id").write_bytes(FILES["/proc/sys/kernel/random/boot_id"])
    assert differences(root, start) == [] and nothing_left(root)


def test_in_another_boot_a_group_of_that_number_is_another_group(root: Path) -> None:
    applied(Hooked(root), step(IDENTITY))
    reboot(root)
    put(root, GROUP, b"identity\n")
    seen = Hooked(root)
    assert states(rolled_back(seen)) == ["as_before"] and names_of(seen) == set() and below(root, GROUP).read_bytes() == b"identity\n"


def test_registers_that_outlive_the_kernel_are_restored_in_the_next(root: Path) -> None:
    """kexec starts another kernel, and no register is reset."""
    applied(Hooked(root), step(bits(A)))
    put(root, "/proc/sys/kernel/random/boot_id", b"boot 2\n")
    assert states(rolled_back(Hooked(root))) == ["restored"] and word(root, A) == WORD


def given_back(root: Path, drawn: Path) -> None:
    for path in (GROUP, GRUB, CFG):
        put(root, path, below(drawn, path).read_bytes())
    set_word(root, A, WORD)
    below(root, "/boot/grub/made").unlink()
    below(root, WANTED).unlink()
    below(root, CONF).unlink()


def test_what_somebody_put_back_by_hand_is_as_before(root: Path, tmp_path: Path) -> None:
    start = everything(root)
    applied(Hooked(root), step(*OF_EVERY_KIND))
    given_back(root, draw(tmp_path / "drawn"))
    seen = Hooked(root)
    assert set(states(rolled_back(seen))) == {"as_before"} and names_of(seen) == {"rmdir"}
    assert differences(root, start) == [] and nothing_left(root)


def test_a_file_keeps_its_mode_and_owner_on_the_way_there_and_back(root: Path) -> None:
    below(root, GRUB).chmod(0o4751)
    start = everything(root)
    applied(Hooked(root), step(PASSTHROUGH, MAKE_CFG))
    now = everything(root)
    assert all(now[path][:3] == start[path][:3] and now[path] != start[path] for path in (GRUB, CFG))
    rolled_back(Hooked(root))
    assert differences(root, start) == []


def test_extended_attributes_too(root: Path) -> None:
    try:
        os.setxattr(below(root, GRUB), "user.note", b"\0\xff")
    except OSError:
        pytest.skip("no extended attributes here")
    applied(Hooked(root), step(PASSTHROUGH))
    assert os.getxattr(below(root, GRUB), "user.note") == b"\0\xff"
    below(root, GRUB).unlink()
    put(root, GRUB, b"# others\n")
    rolled_back(Hooked(root))
    assert os.listxattr(below(root, GRUB)) == [], "and what others took away stays away"


# ---------------------------------------------------------------- another hand


def bits_of_ours(root: Path) -> None:
    set_word(root, A, 0x15)


def another_word(root: Path) -> None:
    put(root, GROUP, b"DMA\n")


def other_content(root: Path) -> None:
    put(root, CONF, b"x\ny\n")


def no_file(root: Path) -> None:
    below(root, GRUB).unlink()


def shell_code(root: Path) -> None:
    put(root, GRUB, b'GRUB_CMDLINE_LINUX_DEFAULT="$(cat /etc/x) iommu=pt"\nGRUB_CMDLINE_LINUX_DEFAULT+=" $(cat')


def link_elsewhere(root: Path) -> None:
    below(root, WANTED).unlink()
    below(root, WANTED).symlink_to("/dev/null")


def file_for_link(root: Path) -> None:
    below(root, WANTED).unlink()
    put(root, WANTED, b"[Unit]\n")


@pytest.mark.parametrize(
    ("change", "by", "touched"),
    [
        (bits(A), bits_of_ours, A),
        (IDENTITY, another_word, GROUP),
        (OUR_CONF, other_content, CONF),
        (PASSTHROUGH, no_file, GRUB),
        (PASSTHROUGH, shell_code, GRUB),
        (OUR_LINK, link_elsewhere, WANTED),
        (OUR_LINK, file_for_link, WANTED),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_another_hand_changed_is_left_alone_and_kept_in_mind(
    root: Path, change: Change, by: Callable[[Path], None], touched: str
) -> None:
    applied(Hooked(root), step(bits(B), OUR_UNIT, change))
    by(root)
    theirs = everything(root)
    undone = {u.change: u for u in rolled_back(Hooked(root))}
    assert undone[change].state == "changed_since"
    assert undone[bits(B)].state == undone[OUR_UNIT].state == "restored", "the others are taken back all the same"
    now = everything(root)
    assert all(now.get(path) == theirs.get(path) for path in {*now, *theirs} if touched in path)
    assert states(rolled_back(Hooked(root))) == ["changed_since"], "and it is not forgotten"


def test_others_bits_of_our_register_stay_as_they_set_them(root: Path) -> None:
    applied(Hooked(root), step(bits(A)))
    set_word(root, A, (0x11 | 0x40) & ~0x10)
    assert states(rolled_back(Hooked(root))) == ["restored"] and word(root, A) == (WORD | 0x40) & ~0x10


def test_what_others_wrote_beside_our_words_stays(root: Path) -> None:
    applied(Hooked(root), step(PASSTHROUGH))
    put(root, GRUB, below(root, GRUB).read_bytes().replace(b"quiet", b"splash") + b"GRUB_TIMEOUT=5\n")
    [undone] = rolled_back(Hooked(root))
    assert undone.state == "restored" and undone.why is not None and "the rest stays" in undone.why.text
    assert below(root, GRUB).read_bytes() == FILES[GRUB].replace(b"quiet", b"splash") + b"GRUB_TIMEOUT=5\n" and nothing_left(root)


def test_a_file_out_of_which_others_took_our_words_is_left_as_it_is(root: Path) -> None:
    applied(Hooked(root), step(PASSTHROUGH))
    put(root, GRUB, FILES[GRUB] + b"GRUB_TIMEOUT=5\n")
    seen = Hooked(root)
    assert states(rolled_back(seen)) == ["as_before"] and names_of(seen) == set()


def test_a_folder_that_we_made_stays_while_others_use_it(root: Path) -> None:
    applied(Hooked(root), step(OUR_CONF))
    put(root, "/etc/ours/more/theirs", b"")
    assert states(rolled_back(Hooked(root))) == ["restored"]
    assert [p.name for p in below(root, "/etc/ours/more").iterdir()] == ["theirs"]


def test_what_others_wrote_over_the_work_of_a_program_is_made_anew_and_not_put_back(root: Path) -> None:
    """A kernel was installed since: the former grub.cfg would not know of it."""
    applied(Hooked(root), step(PASSTHROUGH, MAKE_CFG))
    put(root, CFG, b"with a new kernel\n")
    [first, second] = rolled_back(Hooked(root))
    assert (first.change, second.change) == (PASSTHROUGH, MAKE_CFG), "after the file that it reads was taken back"
    assert second.state == "restored" and second.why is not None and "made them again" in second.why.text
    assert below(root, CFG).read_bytes() == b"# made from\n" + FILES[GRUB] and below(root, GRUB).read_bytes() == FILES[GRUB]


@pytest.mark.parametrize("ended", [Done(b"", code=1), Done(None, "absent"), Done(b"", "timeout")])
def test_if_it_cannot_be_made_anew_it_is_theirs(root: Path, ended: Done) -> None:
    applied(Hooked(root), step(PASSTHROUGH, MAKE_CFG))
    put(root, CFG, b"with a new kernel\n")
    [first, second] = rolled_back(Hooked(root, program=lambda argv, *, deadline_s: ended))
    assert (first.state, second.state) == ("restored", "failed") and below(root, CFG).read_bytes() == b"with a new kernel\n"
    assert states(rolled_back(Hooked(root))) == ["restored"], "and the next rollback tries again"


def test_a_program_with_an_undo_of_its_own_is_undone_by_that_if_others_wrote_too(root: Path) -> None:
    ran: list[tuple[str, ...]] = []

    def program(argv: tuple[str, ...], *, deadline_s: float) -> Done:
        ran.append(argv)
        put(root, CFG, " ".join(argv).encode())
        return Done(b"")

    change = Command((UPDATE, "--add"), undo=(UPDATE, "--remove"), watched=(CFG,))
    start = everything(root)
    applied(Hooked(root, program=program), step(change))
    assert states(rolled_back(Hooked(root, program=program))) == ["restored"] and len(ran) == 1 and differences(root, start) == []
    applied(Hooked(root, program=program), step(change))
    put(root, CFG, b"others\n")
    assert states(rolled_back(Hooked(root, program=program))) == ["restored"] and ran[-1] == change.undo


@pytest.mark.parametrize(
    ("undo", "same_boot", "state"), [((UPDATE,), True, "restored"), ((), True, "failed"), ((UPDATE,), False, "as_before")]
)
def test_a_program_that_leaves_no_file_is_undone_by_its_undo_in_the_same_boot(
    root: Path, undo: tuple[str, ...], same_boot: bool, state: str
) -> None:
    applied(Hooked(root), step(Command((UPDATE,), undo=undo)))
    if not same_boot:
        reboot(root)
    seen = Hooked(root)
    assert states(rolled_back(seen)) == [state] and ("run" in names_of(seen)) == (state == "restored")


def test_programs_that_outlived_us_are_ended_before_anything_is_put_back(root: Path) -> None:
    applied(Hooked(root), step(MAKE_CFG))

    class Ends(Hooked):
        def end_programs(self) -> None:
            assert names_of(self) == set()
            put(root, CFG, b"# half")  # the last that it wrote
            self.ended = True

    machine = Ends(root)
    rolled_back(machine)
    assert machine.ended and below(root, CFG).read_bytes() != b"# half"


# ---------------------------------------------------------------- other_device, failed


def swapped(root: Path, bdf: str) -> bytes:
    config = below(root, f"/sys/bus/pci/devices/{bdf}/config")
    former = config.read_bytes()
    config.write_bytes(b"\xde\x10\x30\x23" + former[4:])
    return former


def test_another_device_at_the_address_is_never_written(root: Path) -> None:
    start = everything(root)
    applied(Hooked(root), step(bits(A), bits(B)))
    former, seen = swapped(root, A), Hooked(root)
    theirs = below(root, f"/sys/bus/pci/devices/{A}/config").read_bytes()
    assert states(rolled_back(seen)) == ["restored", "other_device"]
    assert [p.path for p in seen.seen if p.name == "config"] == [f"{B} 0x156"]
    assert below(root, f"/sys/bus/pci/devices/{A}/config").read_bytes() == theirs
    below(root, f"/sys/bus/pci/devices/{A}/config").write_bytes(former)
    assert states(rolled_back(Hooked(root))) == ["restored"] and differences(root, start) == [], "the right one is plugged in again"


def test_nor_the_same_device_at_another_place(root: Path) -> None:
    applied(Hooked(root), step(bits(A)))
    link = below(root, f"/sys/bus/pci/devices/{A}")
    link.unlink()
    link.symlink_to(below(root, f"/sys/bus/pci/devices/{B}").readlink())
    set_word(root, B, 0x11)
    seen = Hooked(root)
    assert states(rolled_back(seen)) == ["other_device"] and "config" not in names_of(seen) and word(root, B) == 0x11


def test_nor_a_device_whose_capability_stands_elsewhere_by_now(root: Path) -> None:
    applied(Hooked(root), step(bits(A)))
    config = below(root, f"/sys/bus/pci/devices/{A}/config")
    data = config.read_bytes()
    config.write_bytes(data[:0x150] + b"\x0b\0" + data[0x152:])
    seen = Hooked(root)
    assert states(rolled_back(seen)) == ["failed"] and "config" not in names_of(seen)


@pytest.mark.parametrize("spoil", [lambda config: config.write_bytes(b"\xff" * 4096), lambda config: os.truncate(config, 64)])
def test_a_device_that_cannot_be_read_is_not_written(root: Path, spoil: Callable[[Path], None]) -> None:
    start = everything(root)
    applied(Hooked(root), step(bits(A)))
    config = below(root, f"/sys/bus/pci/devices/{A}/config")
    whole = config.read_bytes()
    spoil(config)
    seen = Hooked(root)
    assert states(rolled_back(seen)) == ["failed"] and "config" not in names_of(seen)
    config.write_bytes(whole)
    assert states(rolled_back(Hooked(root))) == ["restored"] and differences(root, start) == []


def refuses(name: str, path: str, error: int = errno.EIO) -> Hook:
    def hook(primitive: Primitive) -> None:
        if primitive.name == name and primitive.path.startswith(path):
            raise OSError(error, os.strerror(error))

    return hook


@pytest.mark.parametrize(
    ("name", "path", "left"),
    [
        ("config", A, bits(A)),
        ("sysfs", GROUP, IDENTITY),
        ("create", "/etc/default", PASSTHROUGH),
        ("rename", GRUB, PASSTHROUGH),
        ("unlink", CONF, OUR_CONF),
        ("rmdir", "/etc/ours/more", OUR_CONF),
        ("unlink", WANTED, OUR_LINK),
        ("create", "/boot/grub", MAKE_CFG),
    ],
)
def test_what_the_kernel_refuses_has_failed_alone_and_the_next_rollback_brings_it_back(
    root: Path, name: str, path: str, left: Change
) -> None:
    start = everything(root)
    applied(Hooked(root), step(*OF_EVERY_KIND))
    undone = {u.change: u for u in rolled_back(Hooked(root, refuses(name, path)))}
    assert {change for change, u in undone.items() if u.state != "restored"} == {left} and undone[left].state == "failed"
    assert "Input/output error" in str(undone[left].why)
    assert [s.change for s in status(Hooked(root), Journal(FOLDER, Hooked(root)))] == [left]
    assert set(states(rolled_back(Hooked(root)))) <= BACK and differences(root, start) == [] and nothing_left(root)


@pytest.mark.parametrize(("change", "name"), [(bits(A), "config"), (IDENTITY, "sysfs")])
def test_a_former_value_that_does_not_read_back_has_failed(root: Path, change: Change, name: str) -> None:
    applied(Hooked(root), step(change))

    class Deaf(Hooked):
        def _do(self, name_: str, path: str, act: Callable[[], None], torn: Callable[[], None] | None = None) -> None:
            super()._do(name_, path, (lambda: None) if name_ == name else act, torn)

    [undone] = rolled_back(Deaf(root))
    assert undone.state == "failed" and undone.why is not None and "wrote" in undone.why.text
    assert states(rolled_back(Hooked(root))) == ["restored"]


def test_folders_that_a_program_changed_or_took_away_are_put_back_with_their_mode_and_owner(root: Path) -> None:
    taken = below(root, "/boot/grub/fonts")
    taken.mkdir(mode=0o750)
    (taken / "unicode.pf2").write_bytes(b"\0")
    if os.geteuid() == 0:
        os.chown(taken, 12, 34)

    def program(argv: tuple[str, ...], *, deadline_s: float) -> Done:
        shutil.rmtree(taken)
        below(root, "/boot/grub").chmod(0o700)
        return Done(b"")

    start = everything(root)
    applied(Hooked(root, program=program), step(MAKE_CFG))
    assert len(differences(root, start)) == 3
    assert states(rolled_back(Hooked(root))) == ["restored"] and differences(root, start) == [] and nothing_left(root)


def test_links_files_and_folders_that_a_program_made_of_each_other_are_put_back(root: Path) -> None:
    at = below(root, "/boot/grub")
    (at / "link").symlink_to("grubenv")
    (at / "folder").mkdir()
    (at / "folder/x").write_bytes(b"x")
    start = everything(root)

    def program(argv: tuple[str, ...], *, deadline_s: float) -> Done:
        (at / "link").unlink()
        (at / "link").mkdir()
        shutil.rmtree(at / "folder")
        (at / "folder").write_bytes(b"")
        (at / "grubenv").unlink()
        (at / "grubenv").symlink_to("/dev/null")
        return Done(b"")

    applied(Hooked(root, program=program), step(MAKE_CFG))
    assert states(rolled_back(Hooked(root))) == ["restored"] and differences(root, start) == [] and nothing_left(root)


# ---------------------------------------------------------------- one step, and the same thing twice


def test_one_step_is_taken_back_by_its_name_and_the_others_stand(root: Path) -> None:
    start = everything(root)
    applied(Hooked(root), step(bits(A), OUR_CONF, id="one"), step(bits(B), IDENTITY, id="two"), step(PASSTHROUGH, id="three"))
    undone = rolled_back(Hooked(root), "two")
    assert {u.step for u in undone} == {"two"} and set(states(undone)) == {"restored"}
    assert (word(root, A), word(root, B)) == (0x11, WORD) and below(root, CONF).exists()
    assert {s.step for s in status(Hooked(root), Journal(FOLDER, Hooked(root)))} == {"one", "three"}
    assert rolled_back(Hooked(root), "two") == (), "and it is known, and back"
    assert {u.step for u in rolled_back(Hooked(root))} == {"one", "three"} and differences(root, start) == []


@pytest.mark.parametrize("names", [("four",), ("one", "four")])
def test_a_step_that_the_journal_does_not_know_is_said_and_nothing_is_done(root: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="fix-step-unknown"):
        rolled_back(Hooked(root), *names)
    applied(Hooked(root), step(bits(A), id="one"))
    start = everything(root)
    with pytest.raises(UsageError, match="fix-step-unknown"):
        rolled_back(Hooked(root), *names)
    assert differences(root, start) == []


ORDERS = list(permutations(range(3)))
DISJOINT = (bits(A, 0x08), bits(A, 0x04), bits(A, 0x40, 0x40))
OVERLAPPING = (bits(A, 0x0C), bits(A, 0x08), bits(A, 0x44, 0x40))


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_steps_that_wrote_other_bits_of_one_register_are_taken_back_in_any_order(root: Path, order: tuple[int, ...]) -> None:
    applied(Hooked(root), *(step(change, id=f"step-{n}") for n, change in enumerate(DISJOINT)))
    assert word(root, A) == 0x51
    standing = set(range(3))
    for n in order:
        assert states(rolled_back(Hooked(root), f"step-{n}")) == ["restored"]
        standing.remove(n)
        for m, change in enumerate(DISJOINT):
            assert word(root, A) & change.mask == (change.want if m in standing else WORD & change.mask)
    assert word(root, A) == WORD and nothing_left(root)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_steps_that_wrote_the_same_bits_are_taken_back_in_any_order(root: Path, order: tuple[int, ...]) -> None:
    """A hot reset took the bits back in between, so that each of them had something to write."""
    for n, change in enumerate(OVERLAPPING):
        set_word(root, A, WORD)
        applied(Hooked(root), step(change, id=f"step-{n}"))
    for n in order:
        assert set(states(rolled_back(Hooked(root), f"step-{n}"))) <= {*BACK, "changed_since"}
    assert set(states(rolled_back(Hooked(root)))) <= BACK and word(root, A) == WORD and nothing_left(root)


def test_a_word_that_was_lost_and_written_again_is_taken_back_once(root: Path) -> None:
    """A hot reset, and the same step once more."""
    applied(Hooked(root), step(bits(A), IDENTITY))
    set_word(root, A, WORD)
    applied(Hooked(root), step(bits(A), IDENTITY))
    assert (
        sorted(states(rolled_back(Hooked(root)))) == ["as_before", "restored", "restored"] and word(root, A) == WORD and nothing_left(root)
    )


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")], ids=str)
def test_two_steps_that_wrote_one_file_are_taken_back_in_any_order(root: Path, order: tuple[str, ...]) -> None:
    start = everything(root)
    applied(Hooked(root), step(PASSTHROUGH, id="one"), step(TextFile(GRUB, "grub_default", ("pci=noaer",)), id="two"))
    for name, left in zip(order, ({"one": b"pci=noaer", "two": b"iommu=pt"}[order[0]], b"quiet"), strict=True):
        assert states(rolled_back(Hooked(root), name)) == ["restored"] and left in below(root, GRUB).read_bytes()
    assert differences(root, start) == [] and nothing_left(root)


# ---------------------------------------------------------------- cut off


def _cut(root: Path, n: int, torn: bool, doing: Callable[[Hooked], object]) -> None:
    with suppress(Cut):
        doing(Hooked(root, cut_at(n, torn)))


@pytest.mark.parametrize("next_boot", [False, True])
def test_an_apply_that_was_cut_anywhere_is_taken_back_to_the_byte(memory: Path, next_boot: bool) -> None:
    drawn = draw(memory / "drawn")
    seen = Hooked(copied(drawn, memory / "x"))
    applied(seen, step(*OF_EVERY_KIND))
    assert {"config", "sysfs", "create", "attributes", "rename", "mkdir", "symlink", "run", "append"} <= {
        p.name for p in seen.seen if p.name
    }
    for n, torn in cuts(seen.seen):
        root = copied(drawn, memory / "x")
        _cut(root, n, torn, lambda machine: applied(machine, step(*OF_EVERY_KIND)))
        _is_taken_back(root, everything(drawn), next_boot, str((seen.seen[n - 1], torn)))


def _is_taken_back(root: Path, start: dict[str, Thing], next_boot: bool, where: str) -> None:
    if next_boot:
        reboot(root)
    assert set(states(rolled_back(Hooked(root)))) <= BACK, where
    put(root, "/proc/sys/kernel/random/boot_id", FILES["/proc/sys/kernel/random/boot_id"])
    assert differences(root, start) == [] and nothing_left(root), where


@pytest.mark.parametrize("next_boot", [False, True])
def test_a_rollback_that_was_cut_anywhere_is_gone_on_with_by_the_next(memory: Path, next_boot: bool) -> None:
    """And that is cut as well, at another place."""
    drawn = draw(memory / "drawn")
    done = copied(drawn, memory / "done")
    applied(Hooked(done), step(*OF_EVERY_KIND))
    seen = Hooked(copied(done, memory / "x"))
    rolled_back(seen)
    assert {"config", "sysfs", "create", "rename", "unlink", "rmdir", "append"} <= {p.name for p in seen.seen}
    for n, torn in cuts(seen.seen):
        root = copied(done, memory / "x")
        _cut(root, n, torn, rolled_back)
        _cut(root, 1 + n * 7 % len(seen.seen), not torn, rolled_back)
        _is_taken_back(root, everything(drawn), next_boot, str((seen.seen[n - 1], torn)))


@pytest.mark.parametrize("next_boot", [False, True])
def test_a_step_that_was_cut_while_it_was_taken_back_in_apply_comes_back_too(memory: Path, next_boot: bool) -> None:
    drawn = draw(memory / "drawn")

    def probe(pairs: object) -> Proved:
        return Proved(frozenset({PUSH}), frozenset())

    def doing(machine: Hooked) -> None:
        applied(machine, step(*OF_EVERY_KIND, effect="now", pairs=(GPUS,)), probe=probe)

    seen = Hooked(copied(drawn, memory / "x"))
    doing(seen)
    first = max(p.n for p in seen.seen if p.name == "run")
    for n, torn in cuts(seen.seen[first:]):
        root = copied(drawn, memory / "x")
        _cut(root, n, torn, doing)
        _is_taken_back(root, everything(drawn), next_boot, str((seen.seen[n - 1], torn)))


def test_after_a_cut_in_this_boot_our_bits_come_back_whatever_they_read(root: Path) -> None:
    """A write of which nobody read what became: 0x15 may be all that the device took of it."""
    seen = Hooked(copied(root, root.with_name("x")))
    applied(seen, step(bits(A)))
    place = next(p.n for p in seen.seen if p.name == "config")
    _cut(root, place, False, lambda machine: applied(machine, step(bits(A))))
    set_word(root, A, 0x15 | 0x40)
    assert states(rolled_back(Hooked(root))) == ["restored"] and word(root, A) == WORD | 0x40


@pytest.mark.parametrize("cut", [True, False], ids=["cut off", "whole"])
@pytest.mark.parametrize("found", [0x15, 0x0000, 0x0001], ids=["one bit", "the IOMMU is off since", "other bits"])
def test_a_register_of_a_later_boot_is_no_longer_ours(root: Path, cut: bool, found: int) -> None:
    """Whatever its redirect bits read: a boot sets them anew, and to set them in another boot would be a change, not an undo."""
    _written(root, cut)
    reboot(root)
    set_word(root, A, found)
    assert states(rolled_back(Hooked(root))) == ["as_before"] and word(root, A) == found


@pytest.mark.parametrize("cut", [True, False], ids=["cut off", "whole"])
def test_but_a_whole_word_as_we_left_it_is(root: Path, cut: bool) -> None:
    """A kernel that was started by kexec finds the registers as the last one left them."""
    _written(root, cut)
    reboot(root)
    set_word(root, A, 0x11)
    assert states(rolled_back(Hooked(root))) == ["restored"] and word(root, A) == WORD


def _written(root: Path, cut: bool) -> None:
    if not cut:
        applied(Hooked(root), step(bits(A)))
        return
    seen = Hooked(copied(root, root.with_name("x")))
    applied(seen, step(bits(A)))
    place = next(p.n for p in seen.seen if p.name == "config")
    _cut(root, place, False, lambda machine: applied(machine, step(bits(A))))


def test_a_step_below_one_that_stands_and_shares_its_bits_waits_for_it(root: Path) -> None:
    """Else the later one's former value, which is the earlier one's doing, would come back last."""
    applied(Hooked(root), step(bits(A, 0x04), id="one"))
    applied(Hooked(root), step(bits(A, 0x0C), id="two"))
    assert states(rolled_back(Hooked(root), "one")) == ["changed_since"] and word(root, A) == 0x11
    assert states(rolled_back(Hooked(root))) == ["restored", "restored"] and word(root, A) == WORD


def test_of_a_program_that_was_cut_only_what_was_written_meanwhile_is_ours(root: Path) -> None:
    seen = Hooked(copied(root, root.with_name("x")))
    applied(seen, step(MAKE_CFG))
    place = next(p.n for p in seen.seen if p.name == "run")
    with suppress(Cut):
        applied(Hooked(root, cut_at(place, torn=True)), step(MAKE_CFG))
    assert below(root, CFG).read_bytes() == b"# ma"
    put(root, "/boot/grub/grubenv", b"saved_entry=1\n")
    later = below(root, CFG).stat().st_mtime + MAKE_CFG.deadline_s + 60
    os.utime(below(root, "/boot/grub/grubenv"), (later, later))
    [undone] = rolled_back(Hooked(root))
    assert undone.state == "restored" and undone.why is not None and "/boot/grub/grubenv" in undone.why.args["paths"]
    assert below(root, "/boot/grub/grubenv").read_bytes() == b"saved_entry=1\n", "what another hand wrote later is theirs"


# ---------------------------------------------------------------- a full disk


@pytest.mark.parametrize("lasting", [False, True])
def test_a_disk_that_takes_no_line_of_the_journal_does_not_keep_a_former_value_from_coming_back(memory: Path, lasting: bool) -> None:
    drawn = draw(memory / "drawn")
    done = copied(drawn, memory / "done")
    applied(Hooked(done), step(*OF_EVERY_KIND))
    seen = Hooked(copied(done, memory / "x"))
    rolled_back(seen)
    for n in range(1, sum(map(into_the_journal, seen.seen)) + 1):
        root = copied(done, memory / "x")
        undone = rolled_back(Hooked(root, full(n, lasting)))
        assert set(states(undone)) == {"restored"} and differences(root, everything(drawn)) == [], n
        assert any(u.why is not None and "the journal cannot be written" in u.why.text for u in undone), "and it says so"
        assert set(states(rolled_back(Hooked(root)))) <= {"as_before"} and differences(root, everything(drawn)) == [] and nothing_left(root)


@pytest.mark.parametrize("lasting", [False, True])
def test_where_a_former_file_does_not_fit_on_the_disk_it_says_so_and_the_others_come_back(memory: Path, lasting: bool) -> None:
    drawn = draw(memory / "drawn")
    done = copied(drawn, memory / "done")
    applied(Hooked(done), step(*OF_EVERY_KIND))
    seen = Hooked(copied(done, memory / "x"))
    rolled_back(seen)
    for n in range(1, sum(map(takes_space, seen.seen)) + 1):
        root = copied(done, memory / "x")
        undone = rolled_back(Hooked(root, full(n, lasting, takes_space)))
        assert set(states(undone)) <= {"restored", "failed"}
        assert (word(root, A), below(root, GROUP).read_bytes()) == (WORD, FILES[GROUP]) and not os.path.lexists(below(root, WANTED))
        left = {GRUB: PASSTHROUGH, CFG: MAKE_CFG, CONF: OUR_CONF}
        failed = {u.change for u in undone if u.state == "failed"}
        assert {left[path] for path in differences(root, everything(drawn)) if path in left} <= failed
        assert all("No space left" in str(u.why) for u in undone if u.state == "failed")
        rolled_back(Hooked(root))
        assert differences(root, everything(drawn)) == [] and nothing_left(root)


def takes_space(primitive: Primitive) -> bool:
    return primitive.name in ("create", "append", "fsync") and primitive.path != "/"


# ---------------------------------------------------------------- anything, in any order

# no two steps want different bits of a register: what a plan asks for is to clear, of each port, the bits that redirect
POOL: tuple[Change, ...] = (
    *OF_EVERY_KIND,
    bits(A, 0x04),  # not 0x08 of A: another hand leaves that bit as this would, see `another_hand`
    *(bits(B, mask) for mask in (0x04, 0x08, 0x0C)),
    bits(A, 0x40, 0x40),
    SysfsText(GROUP_2, "identity"),
    TextFile(GRUB, "grub_default", ("pci=noaer",)),
    OUR_UNIT,
)
STEPS = st.builds(
    lambda name, changes, at_once: step(*changes, id=name, effect="now" if at_once else "reboot", pairs=(GPUS,) if at_once else ()),
    st.sampled_from(["one", "two"]),
    st.lists(st.sampled_from(POOL), min_size=1, max_size=6, unique=True),
    st.booleans(),
)
PLACES = st.none() | st.tuples(st.integers(1, 60), st.booleans())
PROBED = st.sampled_from(["helps", "does not help", "ends", "cannot tell"])


class Doings(RuleBasedStateMachine):
    """Steps, kills, reboots, rollbacks and other hands, one after another. In the end all that no other hand touched is as at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp(prefix="linkproof-test-", dir=MEMORY))
        self.root = draw(self.folder / "machine")
        self.start = everything(self.root)
        self.theirs: set[str] = set()  # parts of paths that another hand touched
        self.fresh: dict[str, bytes] = {}  # what it wrote last, and nothing but a rollback came after it
        self.bit = WORD & 0x10  # of A, and none of ours

    def _hook(self, place: tuple[int, bool] | None) -> Hook:
        return no_hook if place is None else cut_at(*place)

    @rule(steps=st.lists(STEPS, min_size=1, max_size=2, unique_by=lambda step: step.id), place=PLACES, probed=PROBED)
    def applies(self, steps: list[object], place: tuple[int, bool] | None, probed: str) -> None:
        before, asked, half = everything(self.root), 0, self._half_done()
        self.fresh.clear()

        def probe(pairs: object) -> Proved | None:
            nonlocal asked
            asked += 1
            if asked > 1 and probed == "ends":
                raise KeyboardInterrupt
            if asked > 1 and probed == "cannot tell":
                return None
            good = asked > 1 and probed == "helps"
            return Proved(frozenset(() if good else {PUSH}), frozenset({PUSH} if good else ()))

        try:
            done = applied(Hooked(self.root, self._hook(place)), *steps, probe=probe)  # type: ignore[arg-type]
            assert not half
            if {d.state for d in done} <= {"did_not_help", "failed", "not_needed"}:
                assert differences(self.root, before) == []
        except Cut:
            pass
        except KeyboardInterrupt:
            if len(steps) == 1:
                assert differences(self.root, before) == []
        except UsageError as e:
            assert e.ref == "fix-interrupted" and half and differences(self.root, before) == []

    @rule(name=st.sampled_from(["", "one", "two"]), place=PLACES)
    def rolls_back(self, name: str, place: tuple[int, bool] | None) -> None:
        entries = Journal(FOLDER, Hooked(self.root)).read()
        if name and any(e.change == MAKE_CFG and e.about.step != name and not e.final for e in entries):
            self.theirs |= {CFG, "/boot/grub/made"}  # two steps made it: it is made anew for the one that stands, and is not the former
        with suppress(Cut):
            try:
                self._roll_back(Hooked(self.root, self._hook(place)), *([name] if name else []))
            except UsageError as e:
                assert e.ref == "fix-step-unknown"

    def _half_done(self) -> bool:
        return any(e.interrupted for e in Journal(FOLDER, Hooked(self.root)).read())

    def _roll_back(self, machine: Hooked, *names: str) -> tuple[ChangeUndone, ...]:
        if self._half_done():  # what was cut off in this boot is ours as far as it reaches
            self.fresh = {path: data for path, data in self.fresh.items() if path not in (A, GROUP)}
        try:
            return rolled_back(machine, *names)
        finally:
            for path, data in self.fresh.items():
                now = bytes([word(self.root, A) & 0x0C]) if path == A else below(self.root, path).read_bytes()
                assert now == data, f"{path} is another hand's"

    @rule()
    def reboots(self) -> None:
        reboot(self.root, f"boot {os.urandom(4).hex()}")
        self.bit = WORD & 0x10
        self.fresh = {path: data for path, data in self.fresh.items() if path not in (A, GROUP)}

    @rule(what=st.sampled_from([A, B, "another bit", "a line", GROUP, CONF, CFG, WANTED, UNIT]))
    def another_hand(self, what: str) -> None:
        if what in (A, B):
            set_word(self.root, what, word(self.root, what) & ~0x0C | 0x04)
            self.theirs.add(what)
            if what == A:  # neither as we find its two bits nor as we leave them
                self.fresh[A] = b"\x04"
        elif what == "another bit":
            self.bit ^= 0x10
            set_word(self.root, A, word(self.root, A) ^ 0x10)
            self.theirs.add(A)
        elif what == "a line":
            put(self.root, GRUB, below(self.root, GRUB).read_bytes() + b"# theirs\n")
            self.theirs.add(GRUB)
        elif below(self.root, what).parent.exists():
            below(self.root, what).unlink(missing_ok=True)
            put(self.root, what, b"theirs\n")
            if what != CFG:  # that is made anew by the program whose it is
                self.fresh[what] = b"theirs\n"
            self.theirs |= {what, {CONF: "/etc/ours", CFG: "/boot/grub/made"}.get(what, what)}

    def teardown(self) -> None:
        try:
            self._all_is_back()
        finally:
            shutil.rmtree(self.folder)

    def _all_is_back(self) -> None:
        self._roll_back(Hooked(self.root))
        shutil.copy(self.root / "proc/sys/kernel/random/boot_id", self.folder / "boot_id")
        put(self.root, "/proc/sys/kernel/random/boot_id", FILES["/proc/sys/kernel/random/boot_id"])
        left = [path for path in differences(self.root, self.start) if not any(part in path for part in self.theirs)]
        assert left == []
        assert word(self.root, A) & 0x10 == self.bit
        if GRUB in self.theirs:
            lines = below(self.root, GRUB).read_bytes().splitlines()
            assert b"# theirs" in lines and not any(ours in line for line in lines for ours in (b"iommu=pt", b"noaer"))
        put(self.root, "/proc/sys/kernel/random/boot_id", (self.folder / "boot_id").read_bytes())
        before = everything(self.root)
        again = self._roll_back(Hooked(self.root))
        assert differences(self.root, before) == []
        assert self.theirs or again == ()


TestAnythingInAnyOrder = Doings.TestCase
TestAnythingInAnyOrder.settings = settings(
    max_examples=400, stateful_step_count=8, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
