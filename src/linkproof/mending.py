"""What mending speaks: sentences, changes, steps, refusals, a plan, and what became of them. Bottom shelf: imports no other room.

A `Change` is one thing that is written. It says what is wanted, not what was there: the former value is read and put into the journal
immediately before the write, so the undo is of the machine as it was, not as it was planned for. A pair is (source BDF, destination BDF).
"""

from __future__ import annotations

from msgspec import Struct, field

Pair = tuple[str, str]


class Sentence(Struct, frozen=True):
    """An English template; `args` fills its {names}. The Chinese template stands in the catalogue under the English one."""

    text: str
    args: dict[str, str] = field(default_factory=dict)


# what a person types: a command or a line of a file as it is, or words around one
Line = str | Sentence

# ---------------------------------------------------------------- changes


class ConfigWord(Struct, frozen=True, tag="config_word"):
    """Bits of a 16-bit word in a function's configuration space. Only bits of `mask` change; `want` has no others.

    identity: `vendor:device` of the function and its place, `8086:3420 pci0000:00/0000:00:1c.0`; another device there is never written.
    capability: number of the extended capability that the word belongs to, at `offset - inside`; looked up again before each write.
    """

    bdf: str
    offset: int
    mask: int
    want: int
    identity: str
    capability: int = 0x000D
    inside: int = 6


class SysfsText(Struct, frozen=True, tag="sysfs_text"):
    """A file of the kernel that takes a word, such as `/sys/kernel/iommu_groups/7/type`."""

    path: str
    want: str


class TextFile(Struct, frozen=True, tag="text_file"):
    """A file on disk, replaced as a whole and atomically. edit: name of a function in `act/text/edits.py`; add, remove: its words.

    edit "whole": the file is `content` and nothing else (a file of our own); it must not be there before, or be the same.
    """

    path: str
    edit: str
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    content: str = ""


class Symlink(Struct, frozen=True, tag="symlink"):
    path: str
    target: str


class Command(Struct, frozen=True, tag="command"):
    """A program that writes files of its own. undo: run if those are not as before; () if undoing the other changes and `argv` again does it.

    watched: files and folders that it writes, kept before and after, so that an undo can give back identical bytes.
    """

    argv: tuple[str, ...]
    undo: tuple[str, ...] = ()
    watched: tuple[str, ...] = ()
    deadline_s: float = 120.0


Change = ConfigWord | SysfsText | TextFile | Symlink | Command

# ---------------------------------------------------------------- the plan

# a name that `--i-accept` takes -> what the person then accepts
RISKS = {
    "vfio": "a guest's device is, or may be, among those concerned, and it loses the isolation that ACS and the IOMMU give",
    "sriov": "virtual functions are, or may be, lent to guests, and they lose the isolation that ACS and the IOMMU give",
    "external": "a device concerned stands outside of the case (Thunderbolt or the like): what is plugged in could reach other devices' memory",
    "unmeasured": "no measurement says that a pair fails: the change may mend nothing",
    "many_cpus": "with the IOMMU off the kernel cannot use more than 254 CPUs",
}


class Refusal(Struct, frozen=True):
    """ref: a name of RISKS if a person may overrule, else another stable name (lockdown, guest, container, off_path, not_readable ...)."""

    ref: str
    why: Sentence

    @property
    def may_be_accepted(self) -> bool:
        return self.ref in RISKS


class Step(Struct, frozen=True):
    """id: stable, `acs-switch`, `iommu-passthrough` ... finding: id of the cause. why: what was seen that asks for it.

    lasts:   until_reboot | for_good | "" (a person does it)
    effect:  now | reboot | restart (of the program, container or service) | by_hand
    pairs:   those it is for, and that are probed again; () where no pair can show it.
    unless:  id of a step before it: this one is done only if that one did not help.
    changes: () if a person must do it; by_hand then says how. refusals: why it is not applied.
    """

    id: str
    what: Sentence
    finding: str
    why: tuple[Sentence, ...]
    lasts: str
    effect: str
    undo: Sentence
    by_hand: tuple[Line, ...]
    changes: tuple[Change, ...] = ()
    risk: tuple[Sentence, ...] = ()
    unsafe_when: tuple[Sentence, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    pairs: tuple[Pair, ...] = ()
    unless: str = ""


class Plan(Struct, frozen=True):
    """steps in order. pairs: that measured bad, and that the plan is for. measured: False if no fresh measurement is at hand.

    hardware: `hardware_key` of the machine; boot_id: of the boot that it was planned in ("" from a capture).
    """

    steps: tuple[Step, ...]
    pairs: tuple[Pair, ...] = ()
    measured: bool = False
    hardware: str = ""
    boot_id: str = ""
    notes: tuple[Sentence, ...] = ()


# ---------------------------------------------------------------- what became of it


class Proved(Struct, frozen=True):
    """A probe of some pairs, as (source, destination, mode): bad or slow ones, right ones. Neither: not tried, which proves nothing."""

    bad: frozenset[tuple[str, str, str]]
    right: frozenset[tuple[str, str, str]]


# states of a step after `apply`; the last four leave the machine as it was
STEP_STATES = (
    "helped",  # probed again: fewer bad, none new
    "in_place",  # written and read back; shows after a reboot or restart
    "not_known",  # written and read back; the probe could not tell whether it helped
    "not_needed",  # an earlier step helped, or what it wants is there already
    "by_hand",
    "refused",
    "did_not_help",
    "did_not_stick",
    "failed",
)


class StepDone(Struct, frozen=True):
    id: str
    state: str
    why: tuple[Sentence, ...] = ()
    before: Proved | None = None
    after: Proved | None = None


# states of a change after `rollback`
UNDO_STATES = (
    "restored",  # the former value was written and read back
    "as_before",  # it held the former value already (never written, or lost by a reboot or reset)
    "changed_since",  # another hand changed it: left alone
    "other_device",  # another device stands at that address: left alone
    "failed",
)


class ChangeUndone(Struct, frozen=True):
    step: str
    change: Change
    state: str
    why: Sentence | None = None


# states of a change in `status`
STANDS = (
    "in_force",
    "waits_for_reboot",  # in place, and the running kernel was started before
    "lost",  # a reboot, reset or rescan put the former value back
    "drifted",  # neither the former nor the wanted value
    "interrupted",  # an apply or rollback ended in the middle of it
    "not_readable",
)


class ChangeStands(Struct, frozen=True):
    step: str
    change: Change
    state: str
    when: float  # seconds since 1970, of the write
    former: str  # in words: `0x001d`, `DMA-FQ`, `812 bytes`
    now: str
    why: Sentence | None = None
