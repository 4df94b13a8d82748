"""The journal: on disk before the write that it announces, whole or refused, and no undo is ever lost in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from act_machine import (
    CFG,
    CONF,
    FOLDER,
    GROUP_2,
    GRUB,
    IDENTITY,
    MAKE_CFG,
    OF_EVERY_KIND,
    OUR_UNIT,
    OURS,
    PASSTHROUGH,
    UNIT,
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
    cuts,
    differences,
    draw,
    everything,
    full,
    in_memory,
    rolled_back,
    step,
    word,
)
from linkproof.act import journal as journal_file
from linkproof.act.doors import FILE_MAX_B, FileNow, Machine, temp_of
from linkproof.act.journal import LARGEST_B, OLD_KEPT, Entry, Image, Journal, Kept, NotKept, Record
from linkproof.act.status import status
from linkproof.errors import UsageError
from linkproof.mending import Change, Command, Symlink, SysfsText, TextFile

BOOT = "boot 1"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw(tmp_path / "machine")


@pytest.fixture
def memory() -> Iterator[Path]:
    with in_memory() as folder:
        yield folder


def at(root: Path, name: str = "journal") -> Path:
    return below(root, FOLDER) / name


def read(root: Path) -> tuple[Entry, ...]:
    return Journal(FOLDER, Machine(str(root))).read()


def summed(record: Record) -> bytes:
    """A line as the docstring of the journal says it: a check sum, a blank, and JSON."""
    text = msgspec.json.encode(record)
    return sha256(text).hexdigest()[:16].encode() + b" " + text + b"\n"


@contextmanager
def refused(ref: str, root: Path) -> Iterator[None]:
    """With that error, and nothing is done: not to the machine, not to the journal."""
    before, bytes_before = everything(root), at(root).read_bytes()
    with pytest.raises(UsageError) as e:
        yield
    assert e.value.ref == ref and all("{" not in e.value.told(lang) for lang in ("en", "zh"))
    assert differences(root, before) == [] and at(root).read_bytes() == bytes_before


def all_refuse(ref: str, root: Path) -> None:
    doings: tuple[Callable[[], object], ...] = (
        lambda: read(root),
        lambda: status(Hooked(root), Journal(FOLDER, Hooked(root))),
        lambda: applied(Hooked(root), step(bits(B), id="another")),
        lambda: rolled_back(Hooked(root)),
    )
    for doing in doings:
        with refused(ref, root):
            doing()


# ---------------------------------------------------------------- the undo is on disk before the do


class Waits:
    """What a power cut could still take out of our folder: bytes and names that were not fsynced since they were written. At each change of the
    rest of the machine there must be nothing of it, and the journal must know what is being done. The disk outlives the processes."""

    def __init__(self, root: Path) -> None:
        self.root, self.data, self.names, self.looked = root, set[str](), set[str](), set[str]()

    def __call__(self, primitive: Primitive) -> None:
        name, path = primitive.name, primitive.path
        if name == "fsync":
            self.data.discard(path)
            self.names = {n for n in self.names if n.rpartition("/")[0] != path}
        elif not path.startswith("/var/lib") and name != "sync":
            self.looked.add(name)
            waiting = {p for p in self.data | self.names if os.path.lexists(below(self.root, p)) and self._needed(p)}
            assert not waiting, f"{name} {path}: not on disk yet: {waiting}"
            assert sum(e.interrupted for e in read(self.root)) == 1, f"{name} {path} was not announced"
        elif name == "rename":
            self.names.add(path)
            if temp_of(path) in self.data:
                self.data = self.data - {temp_of(path)} | {path}
        elif name in ("mkdir", "hard link"):
            self.names.add(path)
        elif name in ("create", "append", "truncate"):
            self.data.add(path)
            if not os.path.lexists(below(self.root, path)):
                self.names.add(path)

    @staticmethod
    def _needed(path: str) -> bool:
        return path in (OURS, FOLDER, f"{FOLDER}/blobs", f"{FOLDER}/journal") or (path.startswith(f"{FOLDER}/blobs/") and "/." not in path)

    def cut_at(self, n: int, torn: bool) -> Callable[[Primitive], None]:
        cut = cut_at(n, torn)

        def hook(primitive: Primitive) -> None:
            for one in (cut, self) if primitive.name == "fsync" else (self, cut):
                one(primitive)

        return hook


def test_every_change_and_every_undo_is_announced_on_the_disk_before_it_is_done(root: Path) -> None:
    waits = Waits(root)
    applied(Hooked(root, waits), step(*OF_EVERY_KIND))
    assert waits.looked == {"config", "sysfs", "create", "attributes", "rename", "mkdir", "symlink", "run"}
    waits.looked.clear()
    rolled_back(Hooked(root, waits))
    assert waits.looked == {"config", "sysfs", "create", "attributes", "rename", "rmdir", "unlink"}


def test_whoever_goes_on_after_a_kill_does_not_take_for_kept_what_was_not_on_the_disk_yet(memory: Path) -> None:
    """The killed process leaves its bytes in the memory of the kernel: they read well, and a power cut would take them."""
    drawn = draw(memory / "drawn")
    seen = Hooked(copied(drawn, memory / "x"))
    applied(seen, step(*OF_EVERY_KIND))
    for n, torn in cuts(seen.seen):
        root = copied(drawn, memory / "x")
        waits = Waits(root)
        with suppress(Cut):
            applied(Hooked(root, waits.cut_at(n, torn)), step(*OF_EVERY_KIND))
        with suppress(UsageError):  # what is interrupted is rolled back first
            applied(Hooked(root, waits), step(*OF_EVERY_KIND, id="again"))
        rolled_back(Hooked(root, waits))
        applied(Hooked(root, waits), step(*OF_EVERY_KIND, id="again"))


def test_each_line_is_synced_by_itself_and_the_name_of_the_file_too(root: Path) -> None:
    machine = Hooked(root)
    journal = Journal(FOLDER, machine)
    with journal.locked("apply"):
        machine.seen.clear()
        journal.write(Record(0, "about", 0.0, step="x", change=bits(A), before="0x001d", after="0x0011"))
        assert [(p.name, p.path) for p in machine.seen[:3]] == [("append", journal.path), ("fsync", journal.path), ("fsync", FOLDER)]
        machine.seen.clear()
        journal.write(Record(0, "done", 0.0, of=1, after="0x0011"))
        assert [(p.name, p.path) for p in machine.seen] == [("append", journal.path), ("fsync", journal.path)]


def test_only_root_looks_into_our_folder_whatever_the_umask(root: Path) -> None:
    before = os.umask(0)
    try:
        applied(Machine(str(root)), step(PASSTHROUGH))  # with an fsync that is one
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (at(root, "."), *at(root, ".").rglob("*"))}
    assert modes.pop("fix") == modes.pop("blobs") == 0o700 and len(modes) == 4 and set(modes.values()) == {0o600}
    assert below(root, OURS).stat().st_mode & 0o777 == 0o755


# ---------------------------------------------------------------- torn, lost


def test_a_last_line_cut_at_any_byte_is_left_out_and_said_and_the_next_one_takes_its_place(root: Path) -> None:
    applied(Hooked(root), step(bits(A)), step(bits(B), id="second"))
    whole = at(root).read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(start, len(whole)):
        at(root).write_bytes(whole[:cut])
        journal = Journal(FOLDER, Hooked(root))
        first, second = journal.read()
        assert first.done is not None and second.done is None and second.interrupted and journal.torn_B == cut - start
        with journal.locked("rollback"):
            journal.write(Record(0, "undone", 0.0, of=second.about.n, state="as_before"))
        now = at(root).read_bytes()
        assert now.startswith(whole[:start]) and now.count(b"\n") == 4 and now.endswith(b"\n")
        assert [e.undone for e in read(root)] == ["", "as_before"] and journal.read() and journal.torn_B == 0


def test_a_first_line_that_is_torn_is_a_journal_without_a_change(root: Path) -> None:
    applied(Hooked(root), step(bits(A)))
    line = at(root).read_bytes().split(b"\n")[0]
    for cut in range(len(line) + 1):
        at(root).write_bytes(line[:cut])
        assert read(root) == () and status(Hooked(root), Journal(FOLDER, Hooked(root))) == ()
    assert rolled_back(Hooked(root)) == () and [d.state for d in applied(Hooked(root), step(bits(B)))] == ["in_place"]


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\0", b"\0" * 40 + b"\n", b"%", b"4f\0\0\0\0\n", b"\xff" * 9])
def test_zeros_of_a_block_that_was_lost_are_left_out(root: Path, tail: bytes) -> None:
    applied(Hooked(root), step(bits(A)))
    whole = at(root).read_bytes()
    at(root).write_bytes(whole + tail)
    journal = Journal(FOLDER, Hooked(root))
    assert journal.read()[0].done is not None and journal.torn_B == len(tail)
    assert [u.state for u in rolled_back(Hooked(root))] == ["restored"] and word(root, A) == WORD
    assert at(root).read_bytes().startswith(whole) and b"\0" not in at(root).read_bytes()


def test_of_the_last_line_only_zeros_can_be_a_lost_block_and_of_the_others_not_even_these(root: Path) -> None:
    applied(Hooked(root), step(bits(A)))
    first, last, _ = at(root).read_bytes().split(b"\n")
    at(root).write_bytes(first + b"\n" + b"\0" * len(last) + b"\n")
    assert [e.interrupted for e in read(root)] == [True]
    at(root).write_bytes(b"\0" * len(first) + b"\n" + last + b"\n")
    all_refuse("fix-journal-damaged", root)


# ---------------------------------------------------------------- another hand


def test_a_byte_that_another_hand_changed_is_found_wherever_it_is(root: Path) -> None:
    applied(Hooked(root), step(bits(A)), step(PASSTHROUGH, id="second"))
    whole = at(root).read_bytes()
    for place in range(len(whole) - 1):
        at(root).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UsageError, match="fix-journal-damaged"):
            read(root)


@pytest.mark.parametrize(
    "what", ["a byte", "a line less", "a line more", "two lines swapped", "a line of text", "another end", "empty line"]
)
def test_with_a_line_of_another_hand_nothing_is_done(root: Path, what: str) -> None:
    applied(Hooked(root), step(bits(A)), step(PASSTHROUGH, id="second"))
    one, two, three, four = at(root).read_bytes().splitlines(keepends=True)
    spoiled = {
        "a byte": one + two.replace(b"0x0011", b"0x0012") + three + four,
        "a line less": one + three + four,
        "a line more": one + two + two + three + four,
        "two lines swapped": one + three + two + four,
        "a line of text": one + two + three + four + b"# looked at it\n",
        "another end": one + two + three + four.replace(b"\n", b"\r\n"),
        "empty line": one + two + three + four + b"\n",
    }
    at(root).write_bytes(spoiled[what])
    all_refuse("fix-journal-damaged", root)


def test_the_line_that_is_damaged_is_named(root: Path) -> None:
    applied(Hooked(root), step(bits(A)))
    one, two = at(root).read_bytes().splitlines(keepends=True)
    at(root).write_bytes(one + two.replace(b"0", b"1", 1))
    with pytest.raises(UsageError, match=f"line 2 of {FOLDER}/journal"):
        read(root)


@pytest.mark.parametrize("size_B", [LARGEST_B + 1, FILE_MAX_B + 1])
def test_a_journal_larger_than_its_limit_is_not_read(root: Path, size_B: int) -> None:
    applied(Hooked(root), step(bits(A)))
    os.truncate(at(root), size_B)
    with pytest.raises(UsageError, match=r"fix-journal-unreadable.*too large"):
        rolled_back(Hooked(root))
    assert word(root, A) == 0x11 and at(root).stat().st_size == size_B


def test_a_full_journal_lets_nothing_more_be_applied_and_everything_be_taken_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    applied(Hooked(root), step(bits(A)))
    before = everything(root)
    monkeypatch.setattr(journal_file, "LARGEST_B", at(root).stat().st_size + 9)
    [done] = applied(Hooked(root), step(bits(B), id="more"))
    assert done.state == "failed" and done.why[0].args["why"] == "the journal is full" and differences(root, before) == []
    [undone] = rolled_back(Hooked(root))
    assert undone.state == "restored" and word(root, A) == WORD
    assert undone.why is not None and undone.why.args["why"] == "the journal is full", "it says that the journal does not know"
    assert [u.state for u in rolled_back(Hooked(root))] == ["as_before"]


# ---------------------------------------------------------------- two at once

HOLDS = """
import sys
from linkproof.act.doors import Machine
from linkproof.act.journal import Journal
with Journal(sys.argv[1], Machine(sys.argv[2])).locked("apply"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that is at work on that machine."""
    applied(Hooked(root), step(bits(A)))
    argv = [sys.executable, "-c", HOLDS, FOLDER, str(root)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == b"held\n"
            yield child
        finally:
            child.kill()


def test_while_another_process_is_at_work_nothing_is_done_and_it_is_named(root: Path, held: subprocess.Popen[bytes]) -> None:
    with refused("fix-busy", root):
        applied(Hooked(root), step(bits(B), id="more"))
    with refused("fix-busy", root):
        rolled_back(Hooked(root))
    with pytest.raises(UsageError, match=f"apply, pid {held.pid}, since "):
        rolled_back(Hooked(root))
    assert Journal(FOLDER, Hooked(root)).busy().startswith(f"apply, pid {held.pid}, since ")
    assert [s.state for s in status(Hooked(root), Journal(FOLDER, Hooked(root)))] == ["in_force"], "to look is always allowed"


def test_the_lock_of_a_process_that_was_killed_is_open(root: Path, held: subprocess.Popen[bytes]) -> None:
    held.send_signal(signal.SIGKILL)
    held.wait(10)
    assert Journal(FOLDER, Hooked(root)).busy() == ""
    assert [u.state for u in rolled_back(Hooked(root))] == ["restored"]


def test_two_at_once_in_one_process_are_refused_too(root: Path) -> None:
    applied(Hooked(root), step(bits(A)))
    with Journal(FOLDER, Hooked(root)).locked("reapply"):
        with refused("fix-busy", root):
            rolled_back(Hooked(root))
        assert "reapply, pid" in Journal(FOLDER, Hooked(root)).busy()
    assert Journal(FOLDER, Hooked(root)).busy() == "" and rolled_back(Hooked(root))


def test_a_lock_in_which_nothing_could_be_written_locks_all_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full: who is at work cannot be noted, and that must not keep a rollback from beginning."""
    applied(Hooked(root), step(bits(A)))
    monkeypatch.setattr(os, "pwrite", _no_space(os.pwrite))
    with Journal(FOLDER, Hooked(root)).locked("rollback"), pytest.raises(UsageError, match="fix-busy"):
        rolled_back(Hooked(root))
    assert [u.state for u in rolled_back(Hooked(root))] == ["restored"] and word(root, A) == WORD


def _no_space(pwrite: Callable[[int, bytes, int], int]) -> Callable[[int, bytes, int], int]:
    def write(fd: int, data: bytes, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/lock"):  # noqa: PTH115
            raise OSError(28, "No space left on device")
        return pwrite(fd, data, offset)

    return write


# ---------------------------------------------------------------- whose folder


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_can_write_to_is_not_used(root: Path, mode: int) -> None:
    applied(Hooked(root), step(bits(A)))
    at(root, ".").chmod(mode)
    all_refuse("fix-folder-unsafe", root)
    at(root, ".").chmod(0o755)
    assert [u.state for u in rolled_back(Hooked(root))] == ["restored"]


@pytest.mark.parametrize("what", ["folder", "journal"])
def test_a_link_in_the_place_of_the_folder_or_of_the_journal_is_not_followed(root: Path, what: str) -> None:
    applied(Hooked(root), step(bits(A)))
    path = at(root, "journal" if what == "journal" else "")
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")
    all_refuse("fix-folder-unsafe", root)


def test_a_link_that_leads_nowhere_is_not_no_journal(root: Path) -> None:
    applied(Hooked(root), step(bits(A)))
    before = everything(root)
    at(root).unlink()
    at(root).symlink_to("/etc/cron.d/x")
    for _ in range(2):
        with pytest.raises(UsageError, match="fix-folder-unsafe"):
            applied(Hooked(root), step(bits(B), id="more"))
        with pytest.raises(UsageError, match="fix-folder-unsafe"):
            rolled_back(Hooked(root))
    assert differences(root, before) == []


def test_a_folder_in_the_place_of_the_journal_is_not_used(root: Path) -> None:
    at(root).mkdir(parents=True)
    at(root, ".").chmod(0o700)
    with pytest.raises(UsageError, match="fix-folder-unsafe"):
        applied(Hooked(root), step(bits(A)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away")
def test_a_folder_of_another_user_is_not_used(root: Path) -> None:
    applied(Hooked(root), step(bits(A)))
    os.chown(at(root, "."), 1234, 1234)
    all_refuse("fix-folder-unsafe", root)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root owns what root owns")
def test_who_is_not_root_is_told_that_it_cannot_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    applied(Hooked(root), step(bits(A)))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match=r"fix-journal-unreadable.*only root"):
        read(root)


# ---------------------------------------------------------------- kept bytes


def blob_of(root: Path, path: str, *, after: bool = False) -> Path:
    kept = next(k for e in read(root) for k in e.about.files if k.path == path)
    image = kept.after if after else kept.before
    assert image is not None
    return at(root, "blobs") / image.blob


@pytest.mark.parametrize("spoil", [lambda blob: blob.write_bytes(blob.read_bytes() + b"\n"), lambda blob: blob.unlink()])
@pytest.mark.parametrize("after", [False, True])
def test_kept_bytes_that_are_not_what_they_were_are_never_put_back(root: Path, spoil: Callable[[Path], object], after: bool) -> None:
    applied(Hooked(root), step(PASSTHROUGH))
    before, blob = everything(root), blob_of(root, GRUB, after=after)
    good = blob.read_bytes()
    spoil(blob)
    [undone] = rolled_back(Hooked(root))
    assert undone.state == "failed" and undone.why is not None and "gone or damaged" in undone.why.args["why"]
    assert differences(root, before) == []
    blob.write_bytes(good)
    assert [u.state for u in rolled_back(Hooked(root))] == ["restored"], "the journal keeps it for the next time"


def test_of_a_program_too(root: Path) -> None:
    applied(Hooked(root), step(MAKE_CFG))
    before = everything(root)
    blob_of(root, CFG).write_bytes(b"set root=elsewhere\n")
    assert [u.state for u in rolled_back(Hooked(root))] == ["failed"] and below(root, CFG).read_bytes() == before[CFG][3]


def test_bytes_that_are_kept_again_are_mended(root: Path) -> None:
    journal = Journal(FOLDER, Hooked(root))
    with journal.locked("apply"):
        image = journal.keep(FileNow(b"abc"))
        (at(root, "blobs") / image.blob).write_bytes(b"abd")
        with pytest.raises(OSError):
            journal.blob(image.blob)
        journal.keep(FileNow(b"abc"))
        assert journal.blob(image.blob) == b"abc"


@pytest.mark.parametrize("torn", [False, True])
def test_what_a_cut_left_of_bytes_that_were_to_be_kept_is_in_nobodys_way(root: Path, torn: bool) -> None:
    applied(Hooked(root), step(bits(A), id="standing"))
    seen = Hooked(copied(root, root.with_name("seen")))
    applied(seen, step(PASSTHROUGH))
    place = next(p.n for p in seen.seen if p.name == "create")
    with suppress(Cut):
        applied(Hooked(root, cut_at(place if torn else place + 1, torn)), step(PASSTHROUGH))
    [left] = at(root, "blobs").iterdir()
    assert left.name.endswith("linkproof-new")
    assert [d.state for d in applied(Hooked(root), step(PASSTHROUGH))] == ["in_place"] and not left.exists()
    assert {u.state for u in rolled_back(Hooked(root))} == {"restored"}


@pytest.mark.parametrize("name", ["", "../journal", "0" * 63, "A" * 64, "/" * 64, "0" * 63 + "\n", "٠" * 64])
def test_a_name_that_is_no_sum_is_no_blob(root: Path, name: str) -> None:
    applied(Hooked(root), step(bits(A)))
    with pytest.raises(OSError, match="not the name of a blob"):
        Journal(FOLDER, Hooked(root)).blob(name)


# ---------------------------------------------------------------- a new file for a long one


@pytest.fixture
def worn(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A step of every kind stands, and one that could not be taken back; more was applied and taken back. The next apply begins a new file."""
    root = draw(memory / "worn")
    applied(Hooked(root), step(*OF_EVERY_KIND, id="standing"))
    applied(Hooked(root), step(OUR_UNIT, id="changed"))
    below(root, UNIT).write_bytes(b"theirs\n")
    assert [u.state for u in rolled_back(Hooked(root), "changed")] == ["changed_since"]
    below(root, UNIT).write_bytes(OUR_UNIT.content.encode())
    for _ in range(3):
        applied(Hooked(root), step(bits(B), SysfsText(GROUP_2, "identity"), id="passing"))
        rolled_back(Hooked(root), "passing")
    monkeypatch.setattr(journal_file, "TIDY_B", 1)
    return root


def tidied(machine: Machine) -> None:
    journal = Journal(FOLDER, machine)
    with journal.locked("apply"):
        journal.tidy()


def stand(root: Path) -> list[tuple[Change, str, tuple[Kept, ...], str]]:
    return [(e.change, e.about.before, e.about.files, e.about.boot) for e in read(root) if not e.final]


def back_to_the_start(root: Path, start: dict[str, tuple[int, int, int, bytes | str | None]]) -> bool:
    return {u.state for u in rolled_back(Hooked(root))} <= {"restored", "as_before"} and differences(root, start) == []


def test_a_long_journal_carries_over_what_stands_and_the_old_one_stays_beside_it(worn: Path, memory: Path) -> None:
    old, standing, start = at(worn).read_bytes(), stand(worn), everything(draw(memory / "start"))
    tidied(Hooked(worn))
    assert stand(worn) == standing and len(standing) == len(OF_EVERY_KIND) + 1 and len(read(worn)) == len(standing)
    assert at(worn).stat().st_size < len(old) and at(worn, "journal.1").read_bytes() == old
    assert back_to_the_start(worn, start)


def test_a_cut_anywhere_while_it_is_tidied_loses_no_undo(worn: Path, memory: Path) -> None:
    start, standing, seen = everything(draw(memory / "start")), stand(worn), Hooked(copied(worn, memory / "x"))
    tidied(seen)
    assert {"hard link", "rename", "create"} <= {p.name for p in seen.seen} and ("create", True) in {
        (p.name, p.torn is not None) for p in seen.seen
    }
    for n, torn in cuts(seen.seen):
        root = copied(worn, memory / "x")
        for _ in range(OLD_KEPT + 2):  # and it is cut at the same place again and again
            with suppress(Cut):
                tidied(Hooked(root, cut_at(n, torn)))
            assert stand(root) == standing
        applied(Hooked(root), step(bits(B), id="more"))
        assert back_to_the_start(root, start), seen.seen[n - 1]


def test_on_a_full_disk_the_old_journal_goes_on_and_the_new_one_is_begun_when_there_is_room(worn: Path, memory: Path) -> None:
    start, standing = everything(draw(memory / "start")), stand(worn)
    seen = Hooked(copied(worn, memory / "x"))
    tidied(seen)
    for at_write in range(1, len(seen.seen)):
        root = copied(worn, memory / "x")
        for _ in range(OLD_KEPT + 2):
            with suppress(UsageError):  # a line that could not be synced is there, so its write counts as begun
                [done] = applied(Hooked(root, full(at_write, lasting=True)), step(bits(B), id="more"))
                assert done.state in ("failed", "in_place", "not_needed")
                assert done.state != "failed" or "the journal cannot be written" in done.why[0].text
            assert stand(root)[: len(standing)] == standing
        if any(e.interrupted for e in read(root)):
            rolled_back(Hooked(root), "more")
            assert stand(root) == standing
        assert [d.state for d in applied(Hooked(root), step(bits(B), id="more"))] in (["in_place"], ["not_needed"])
        assert at(root).stat().st_size < at(worn).stat().st_size and at(root, "journal.1").exists()
        assert back_to_the_start(root, start)


def test_a_disk_that_was_full_for_many_an_apply_does_not_fill_the_history_with_one_file(worn: Path) -> None:
    """At each of them `journal.1` was made, and then there was no room for the new file."""
    size_B = at(worn).stat().st_size
    for _ in range(OLD_KEPT + 2):
        tidied(Hooked(worn, full(1, lasting=True, when=lambda primitive: primitive.name == "create")))
        assert at(worn).stat().st_size == size_B
    assert sorted(path.name for path in at(worn, ".").glob("journal*")) == ["journal", "journal.1"]
    tidied(Hooked(worn))
    assert at(worn).stat().st_size < size_B and at(worn, "journal.1").stat().st_size == size_B


def test_when_all_is_taken_back_the_journal_is_empty_and_history_is_five_files_long(root: Path) -> None:
    for n in range(OLD_KEPT + 3):
        applied(Hooked(root), step(bits(A), PASSTHROUGH, id=f"step-{n}"))
        rolled_back(Hooked(root))
    tidied(Hooked(root))
    assert at(root).read_bytes() == b"" and read(root) == ()
    assert sorted(path.name for path in at(root, ".").glob("journal*")) == ["journal", *(f"journal.{n}" for n in range(1, OLD_KEPT + 1))]
    assert b"step-7" in at(root, "journal.1").read_bytes() and b"step-3" in at(root, "journal.5").read_bytes()


def test_bytes_that_some_journal_names_are_kept_and_others_are_swept(root: Path) -> None:
    start = below(root, GRUB).read_bytes()
    for n in range(OLD_KEPT + 1):
        below(root, GRUB).write_bytes(start + b"#" * n)
        applied(Hooked(root), step(PASSTHROUGH))
        rolled_back(Hooked(root))
        tidied(Hooked(root))
    kept = {blob.read_bytes() for blob in at(root, "blobs").iterdir()}
    assert start not in kept and {start + b"#" * n for n in range(1, OLD_KEPT + 1)} <= kept and len(kept) == 2 * OLD_KEPT


def test_a_short_journal_or_one_of_which_most_stands_is_left_as_it_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    applied(Hooked(root), step(bits(A)))
    before = at(root).read_bytes()
    tidied(Hooked(root))
    monkeypatch.setattr(journal_file, "TIDY_B", 1)
    tidied(Hooked(root))
    assert at(root).read_bytes() == before and not at(root, "journal.1").exists()


def test_what_lies_in_the_folder_and_is_not_ours_does_not_keep_a_new_file_from_being_begun(worn: Path) -> None:
    at(worn, "journal.old").mkdir()
    standing, blobs = stand(worn), len(list(at(worn, "blobs").iterdir()))
    tidied(Hooked(worn))
    assert stand(worn) == standing and at(worn, "journal.1").exists()
    assert len(list(at(worn, "blobs").iterdir())) == blobs, "what cannot be read could name any of them"


# ---------------------------------------------------------------- hostile bytes


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = draw(tmp_path_factory.mktemp("journal") / "machine")
    applied(Hooked(root), step(*OF_EVERY_KIND))
    return root


@settings(max_examples=300, deadline=None)
@given(
    place=st.integers(0, 10_000),
    cut=st.integers(0, 40),
    junk=st.binary(max_size=60) | st.sampled_from([b"\n", b"\0" * 512, b"{}\n", b" \n"]),
)
def test_bytes_put_in_anywhere_are_refused_or_left_out_and_never_believed(common: Path, place: int, cut: int, junk: bytes) -> None:
    whole = at(common).read_bytes()
    true, place = read(common), min(place, len(whole))
    journal = Journal(FOLDER, Hooked(common))
    try:
        at(common).write_bytes(whole[:place] + junk + whole[place + cut :])
        with suppress(UsageError):
            entries = journal.read()
            assert [e.about for e in entries] == [e.about for e in true[: len(entries)]]
            assert all(e.done in (None, t.done) for e, t in zip(entries, true, strict=False))
            status(Hooked(common), journal)
    finally:
        at(common).write_bytes(whole)


NAMES = st.sampled_from(
    ["", "/", ".", "/etc", GRUB, CONF, "/etc/../etc/x", "x", "/a\0b", "/\udcff", "\x1b[31m", f"/{'a' * 300}", "/sys/kernel/a"]
)
IMAGES = st.none() | st.builds(
    Image,
    kind=st.sampled_from(["file", "link", "folder", "x"]),
    blob=st.sampled_from(["", "0" * 64, "../journal"]),
    size_B=st.integers(-1, 9),
    mode=st.integers(-1, 0o10000),
    xattrs=st.sampled_from([(), (("user.x", "zz"),), (("", "00"),)]),
    target=NAMES,
)
CHANGES = st.one_of(
    st.sampled_from(OF_EVERY_KIND),
    st.builds(TextFile, NAMES, st.sampled_from(["whole", "grub_default", "cmdline_file", "rm"]), content=NAMES),
    st.builds(Symlink, NAMES, NAMES),
    st.builds(SysfsText, NAMES, NAMES),
    st.builds(
        Command,
        st.sampled_from([(), ("",), ("a\0",), MAKE_CFG.argv]),
        undo=st.sampled_from([(), MAKE_CFG.argv, ("no",)]),
        watched=st.sampled_from([(), ("/etc/default",), ("x",), ("/a/../b",)]),
        deadline_s=st.sampled_from([120.0, -1.0, 1e308]),
    ),
)
WORDS = st.sampled_from(["", "0x001d", "0x0011", "-0x01", "0x1001d", "29", "zz", "٠x0011"])
RECORDS = st.builds(
    Record,
    st.just(0),
    st.sampled_from(["about", "done", "undoing", "undone", "x"]),
    st.sampled_from([0.0, -1e308, 1e308, 1.8e9]),
    boot=st.sampled_from(["", BOOT, "boot 0"]),
    of=st.integers(-1, 3),
    step=NAMES,
    effect=st.sampled_from(["", "now", "reboot", "x"]),
    change=st.none() | CHANGES,
    before=WORDS,
    after=WORDS,
    files=st.lists(st.builds(Kept, NAMES, IMAGES, IMAGES), max_size=2).map(tuple),
    made=st.lists(NAMES, max_size=2).map(tuple),
    state=st.sampled_from(["", "restored", "as_before", "failed", "x"]),
)


@settings(max_examples=300, deadline=None)
@given(records=st.lists(RECORDS, min_size=1, max_size=4))
def test_lines_of_nonsense_with_the_right_sums_end_in_a_state_or_in_words(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record]
) -> None:
    root = tmp_path_factory.getbasetemp() / "nonsense"
    if not root.exists():
        draw(root)
        applied(Hooked(root), step(bits(A)))
        rolled_back(Hooked(root))
    try:
        lines = [summed(msgspec.structs.replace(record, n=n)) for n, record in enumerate(records, 1)]
    except UnicodeEncodeError:  # a surrogate cannot stand in JSON
        return
    at(root).write_bytes(b"".join(lines))
    with suppress(UsageError):
        status(Hooked(root), Journal(FOLDER, Hooked(root)))
    with suppress(UsageError):
        rolled_back(Hooked(root))


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"n":1,"what":"about","at":1e999}', b'{"n":1}', b"null", b'"\xff"', b"{" + b'"n":1,' * 9 + b"}"]
)
def test_json_that_is_no_record_is_damage(root: Path, text: bytes) -> None:
    applied(Hooked(root), step(bits(A)))
    at(root).write_bytes(sha256(text).hexdigest()[:16].encode() + b" " + text + b"\n")
    all_refuse("fix-journal-damaged", root)


@pytest.mark.parametrize(
    "about",
    [
        Record(1, "about", 0.0, change=bits(A)),
        Record(1, "about", 0.0, change=bits(A), before="0x001d", after="-0x1"),
        Record(1, "about", 0.0, change=PASSTHROUGH),
        Record(1, "about", 0.0, change=PASSTHROUGH, files=(Kept(GRUB), Kept(CFG))),
        Record(1, "about", 0.0, change=TextFile(GRUB, "rm"), files=(Kept(GRUB),)),
        Record(1, "about", 0.0, change=PASSTHROUGH, files=(Kept("/"),)),
        Record(1, "about", 0.0),
        Record(1, "done", 0.0, of=1, after="0x0011"),
    ],
)
def test_a_record_without_what_an_undo_needs_is_damage(root: Path, about: Record) -> None:
    applied(Hooked(root), step(bits(A)))
    at(root).write_bytes(summed(about))
    all_refuse("fix-journal-damaged", root)


def test_a_word_of_a_record_that_is_not_known_yet_does_no_harm(root: Path) -> None:
    """A later version may write more."""
    applied(Hooked(root), step(bits(A)))
    whole = at(root).read_bytes()
    at(root).write_bytes(whole + summed(Record(3, "looked_at", 0.0, of=1)))
    assert [u.state for u in rolled_back(Hooked(root))] == ["restored"] and word(root, A) == WORD


# ---------------------------------------------------------------- what the disk refuses


def test_when_the_disk_takes_no_line_the_write_that_it_would_announce_is_not_done(memory: Path) -> None:
    """At whichever write of the journal it happens, once or from then on: the machine is as before or all of it is in place."""
    drawn = draw(memory / "drawn")
    start, seen = everything(drawn), Hooked(copied(drawn, memory / "x"))
    applied(seen, step(*OF_EVERY_KIND))
    written = everything(memory / "x")
    kept = [p for p in seen.seen if p.path.startswith(OURS) and p.name in ("mkdir", "create", "append", "fsync", "rename")]
    for n in range(1, len(kept) + 1):
        for lasting in (False, True):
            root = copied(drawn, memory / "x")
            try:
                [done] = applied(Hooked(root, full(n, lasting)), step(*OF_EVERY_KIND))
                assert done.state == "failed", kept[n - 1]
                assert any("the journal cannot be written" in why.text for why in done.why)
            except UsageError as e:
                assert e.ref == "fix-journal-unreadable"
            assert differences(root, start) == [], (kept[n - 1], lasting)
            rolled_back(Hooked(root))
            assert [d.state for d in applied(Hooked(root), step(*OF_EVERY_KIND))] == ["in_place"]
            assert differences(root, written) == []


def test_what_an_append_left_that_failed_is_cut_off_by_the_next(root: Path) -> None:
    journal = Journal(FOLDER, Hooked(root))
    about = Record(0, "about", 0.0, step="x", change=bits(A), before="0x001d", after="0x0011")
    with journal.locked("apply"):
        journal.write(about)
        whole = at(root).read_bytes()
        journal.machine = Hooked(root, _half_an_append)
        with pytest.raises(NotKept):
            journal.write(about)
        assert at(root).read_bytes() != whole and len(journal.entries()) == 1
        journal.machine = Hooked(root)
        second = journal.write(about)
    assert second.n == 2 and [e.about for e in read(root)] == [e.about for e in journal.entries()] and len(read(root)) == 2


def _half_an_append(primitive: Primitive) -> None:
    if primitive.name == "append" and primitive.torn is not None:
        primitive.torn()
        raise OSError(28, "No space left on device", primitive.path)


def test_a_line_says_when_it_was_written_in_which_boot_and_what_was_there(root: Path) -> None:
    t0 = time.time()
    applied(Hooked(root), step(IDENTITY))
    [entry] = read(root)
    assert (
        t0 <= entry.about.at <= time.time()
        and entry.about.boot == BOOT
        and (entry.about.before, entry.about.after) == ("DMA-FQ", "identity")
    )
