"""A machine in a folder with one of everything that `fix` writes to, where a test can look at each single change, make it fail, or cut the power
at it. Used by the tests of journal, apply and rollback."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from evidence.build import DOWN, config
from linkproof import proc
from linkproof.act.apply import apply
from linkproof.act.doors import Machine, Run
from linkproof.act.journal import Journal
from linkproof.act.rollback import rollback
from linkproof.mending import (
    Change,
    ChangeUndone,
    Command,
    ConfigWord,
    Pair,
    Plan,
    Proved,
    Refusal,
    Sentence,
    Step,
    StepDone,
    Symlink,
    SysfsText,
    TextFile,
)

OURS, FOLDER = "/var/lib/linkproof", "/var/lib/linkproof/fix"
A, B = "0000:12:00.0", "0000:12:01.0"
PLACE = "pci0000:10/0000:10:01.0/0000:11:00.0"
CONTROL, WORD = 0x156, 0x1D
GROUP, GROUP_2 = "/sys/kernel/iommu_groups/7/type", "/sys/kernel/iommu_groups/8/type"
GRUB, CFG = "/etc/default/grub", "/boot/grub/grub.cfg"
UNIT, WANTED = "/etc/systemd/system/ours.service", "/etc/systemd/system/multi-user.target.wants/ours.service"
CONF = "/etc/ours/more/ours.conf"  # in folders that are not there
UPDATE = "/usr/sbin/update-grub"
GPUS = ("0000:13:00.0", "0000:14:00.0")
PUSH = (*GPUS, "push")

FILES = {
    GRUB: b'# a comment\nGRUB_CMDLINE_LINUX_DEFAULT="quiet"\n',
    CFG: b"# made by hand\n",
    "/boot/grub/grubenv": b"saved_entry=0\n",
    "/etc/systemd/system/other.service": b"[Unit]\n",
    "/etc/systemd/system/multi-user.target.wants/x": b"",
    GROUP: b"DMA-FQ\n",
    GROUP_2: b"DMA-FQ\n",
    "/proc/sys/kernel/random/boot_id": b"boot 1\n",
}
MODES = {GRUB: (0o640, 12, 34), CFG: (0o600, 0, 56)}  # mode, owner, group


def draw(root: Path) -> Path:
    for path, data in FILES.items():
        below(root, path).parent.mkdir(parents=True, exist_ok=True)
        below(root, path).write_bytes(data)
    for path, (mode, uid, gid) in MODES.items():
        if os.geteuid() == 0:
            os.chown(below(root, path), uid, gid)
        below(root, path).chmod(mode)
    (root / "sys/bus/pci/devices").mkdir(parents=True)
    (root / "var/lib").mkdir(parents=True)
    for bdf in (A, B):
        at = root / f"sys/devices/{PLACE}/{bdf}"
        at.mkdir(parents=True)
        (at / "config").write_bytes(config(0x1000, 0xC030, 0x060400, DOWN, acs=WORD).ljust(4096, b"\0"))
        (root / f"sys/bus/pci/devices/{bdf}").symlink_to(f"../../../devices/{PLACE}/{bdf}")
    return root


MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder for machines that are drawn by the hundred: a file system in memory makes them ten times as quick."""
    with TemporaryDirectory(prefix="linkproof-test-", dir=MEMORY) as folder:
        yield Path(folder)


def below(root: Path, path: str) -> Path:
    return root / path[1:]


def copied(root: Path, to: Path) -> Path:
    """The same machine once more, owners and all."""
    if to.exists():
        shutil.rmtree(to)
    shutil.copytree(root, to, symlinks=True)
    for path in root.rglob("*"):
        about, copy = path.lstat(), to / path.relative_to(root)
        if (about.st_uid, about.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(copy, about.st_uid, about.st_gid, follow_symlinks=False)
            if not path.is_symlink():
                copy.chmod(stat.S_IMODE(about.st_mode))
    return to


Thing = tuple[int, int, int, bytes | str | None]  # kind and mode, owner, group, bytes or target


def everything(root: Path) -> dict[str, Thing]:
    """All that stands on the machine, without our journal."""
    found: dict[str, Thing] = {}
    for path in root.rglob("*"):
        name = f"/{path.relative_to(root)}"
        if name.startswith(OURS):
            continue
        about = path.lstat()
        data = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[name] = (about.st_mode, about.st_uid, about.st_gid, data)
    return found


def differences(root: Path, before: dict[str, Thing]) -> list[str]:
    now = everything(root)
    return sorted(path for path in {**before, **now} if before.get(path) != now.get(path))


def word(root: Path, bdf: str) -> int:
    return int.from_bytes(below(root, f"/sys/bus/pci/devices/{bdf}/config").read_bytes()[CONTROL : CONTROL + 2], "little")


def set_word(root: Path, bdf: str, value: int) -> None:
    at = below(root, f"/sys/bus/pci/devices/{bdf}/config")
    data = bytearray(at.read_bytes())
    data[CONTROL : CONTROL + 2] = value.to_bytes(2, "little")
    at.write_bytes(data)


def reboot(root: Path, name: str = "boot 2") -> None:
    """Registers and files of the kernel are as at first; the disk stays."""
    for bdf in (A, B):
        set_word(root, bdf, WORD)
    for path in (GROUP, GROUP_2):
        below(root, path).write_bytes(FILES[path])
    below(root, "/proc/sys/kernel/random/boot_id").write_text(name)


# ---------------------------------------------------------------- what is asked of it


def bits(bdf: str, mask: int = 0x0C, want: int = 0) -> ConfigWord:
    return ConfigWord(bdf, CONTROL, mask, want, f"1000:c030 {PLACE}/{bdf}")


IDENTITY = SysfsText(GROUP, "identity")
PASSTHROUGH = TextFile(GRUB, "grub_default", add=("iommu=pt",))
OUR_UNIT, OUR_LINK = TextFile(UNIT, "whole", content="[Unit]\n"), Symlink(WANTED, UNIT)
OUR_CONF = TextFile(CONF, "whole", content="x\n")
MAKE_CFG = Command((UPDATE,), watched=("/boot/grub",))
OF_EVERY_KIND: tuple[Change, ...] = (bits(A), IDENTITY, PASSTHROUGH, OUR_CONF, OUR_LINK, MAKE_CFG)
SAY = Sentence("x")


def step(*changes: Change, id: str = "step", effect: str = "reboot", pairs: tuple[Pair, ...] = (), **more: Any) -> Step:
    return Step(id, SAY, "cause", (), "for_good", effect, SAY, (), changes, pairs=pairs, **more)


def blind(pairs: tuple[Pair, ...]) -> Proved | None:
    return None


def no_refusals(step: Step) -> tuple[Refusal, ...]:
    return ()


def applied(machine: Machine, *steps: Step, **more: Any) -> tuple[StepDone, ...]:
    options = {"probe": blind, "accepted": frozenset(), "ask_again": no_refusals, **more}
    return apply(Plan(steps), machine, Journal(FOLDER, machine), **options)


def rolled_back(machine: Machine, *steps: str) -> tuple[ChangeUndone, ...]:
    return rollback(machine, Journal(FOLDER, machine), steps)


# ---------------------------------------------------------------- its changes, one by one


class Primitive(NamedTuple):
    """n: counted from 1. torn: what a cut in the middle of it leaves, None if it is all or nothing."""

    n: int
    name: str
    path: str
    torn: Callable[[], None] | None


Hook = Callable[[Primitive], None]


def no_hook(primitive: Primitive) -> None:
    pass


class Hooked(Machine):
    """Shows each change of the machine to `hook` before it is done, which may raise. It has one program, `update-grub`, if no other is given.

    fsync(2) itself is left out: it takes milliseconds, and nobody sees from outside whether it was done.
    """

    def __init__(self, root: Path, hook: Hook = no_hook, program: Run | None = None) -> None:
        super().__init__(str(root), program or self._update_grub)
        self.hook, self.seen = hook, list[Primitive]()

    def _do(self, name: str, path: str, act: Callable[[], None], torn: Callable[[], None] | None = None) -> None:
        if name == "run":
            torn = self._half_made
        self.seen.append(Primitive(len(self.seen) + 1, name, path, torn))
        self.hook(self.seen[-1])
        if name not in ("fsync", "sync"):
            act()

    def _update_grub(self, argv: tuple[str, ...], *, deadline_s: float) -> proc.Done:
        if argv != (UPDATE,):
            return proc.Done(None, "absent")
        cfg = below(Path(self.root), CFG)
        cfg.write_bytes(b"# made from\n" + below(Path(self.root), GRUB).read_bytes())
        cfg.with_name("made").write_bytes(b"")
        return proc.Done(b"done\n")

    def _half_made(self) -> None:
        below(Path(self.root), CFG).write_bytes(b"# ma")


class Cut(BaseException):
    """The power is gone, or the process: nothing that we would do on the way out is done any more."""


def cut_at(n: int, torn: bool = False) -> Hook:
    def hook(primitive: Primitive) -> None:
        if primitive.n == n and torn and primitive.torn is not None:
            primitive.torn()
        if primitive.n >= n:
            raise Cut

    return hook


def cuts(seen: list[Primitive]) -> Iterator[tuple[int, bool]]:
    """Before each change, and in the middle of those that can be torn."""
    for primitive in seen:
        yield primitive.n, False
        if primitive.torn is not None:
            yield primitive.n, True


def into_the_journal(primitive: Primitive) -> bool:
    """Takes space on the disk that our folder is on."""
    return primitive.path.startswith(OURS) and primitive.name in ("mkdir", "create", "append", "fsync", "hard link", "rename")


def full(at: int, lasting: bool, when: Callable[[Primitive], bool] = into_the_journal) -> Hook:
    """The disk takes no more: at the `at`-th write of that kind, or from then on."""
    count = 0

    def hook(primitive: Primitive) -> None:
        nonlocal count
        count += when(primitive)
        if when(primitive) and (count >= at if lasting else count == at):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), primitive.path)

    return hook
