"""What the unit does at boot: writes the persisted words again, if the hardware is the same and nothing forbids it.

In:      `persist.json`, the journal, the machine as it is now.
Out:     Reapplied; the words go through the same journal as `fix apply`, so that status and rollback know of them.
Unknown: a tree, a register or a refusal that cannot be read means that nothing is written. The pairs are not probed: the GPUs are not ready at
         boot, and the step was proven before it was persisted; its state is `not_known`, never `helped`.
Raises:  UsageError of the journal (busy, damaged, interrupted, unsafe folder): the unit fails with it.
Source:  udev(7): drivers are bound while its queue runs, vfio-pci among them, so it is waited for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from time import time

import msgspec
from msgspec import Struct, structs

from linkproof.act.apply import apply
from linkproof.act.doors import FileNow, Machine
from linkproof.act.hardware import changed
from linkproof.act.journal import Entry, Journal
from linkproof.act.persist import persist_file
from linkproof.act.persist.persist_file import PersistFile
from linkproof.act.refusals import listed, refusals_now
from linkproof.act.writing import Failed, there
from linkproof.collect.host import Host
from linkproof.collect.pci import read_pci
from linkproof.mending import ConfigWord, Pair, Plan, Sentence, Step, StepDone
from linkproof.parse.pci_facts import paths_of_interest
from linkproof.parse.pci_tree import PciTree, tree
from linkproof.version import __version__

STEP = "acs-reapply"  # of the refusals; what is written belongs to the steps that wrote it first
# of this boot's devices; bounded, as a rule of udev may itself wait for a service that starts after us
SETTLE, SETTLE_S = ("udevadm", "settle", "--timeout=30"), 40.0
LAST, SCHEMA, LARGEST_B = "last_reapply.json", 1, 1 << 16
WROTE = ("not_known", "not_needed")  # of STEP_STATES: the words stand
PROVEN = Sentence("written and read back; that it helps was measured before it was persisted, and is not measured at boot")


class Reapplied(Struct, frozen=True):
    """state: done (all words stand, written now or before), refused (nothing was written), not_all, nothing (nothing to write)."""

    state: str
    why: tuple[Sentence, ...]
    steps: tuple[Step, ...] = ()
    done: tuple[StepDone, ...] = ()


class LastRun(Struct, frozen=True, forbid_unknown_fields=True):
    """How it ended when it last ran; when: seconds since 1970."""

    schema: int
    when: float
    boot_id: str
    linkproof: str
    state: str
    why: tuple[Sentence, ...]


def reapply(machine: Machine, journal: Journal, host: Host) -> Reapplied:
    kept, why_not = persist_file.read(machine)
    if kept is None and why_not is None:
        return Reapplied("nothing", (Sentence("nothing is persisted on this machine"),))
    result = Reapplied("refused", (why_not,)) if why_not is not None else None
    if kept is not None:
        host.run(SETTLE, SETTLE_S)
        result = _again(kept, machine, journal, host)
    assert result is not None
    _keep(result, machine, journal)
    return result


def _again(kept: PersistFile, machine: Machine, journal: Journal, host: Host) -> Reapplied:
    raw = read_pci(host)
    found = tree(raw.functions, raw.why)
    if differs := changed(kept.parts, found):
        first = Sentence("the hardware is not the same as when this was persisted: nothing was written")
        last = Sentence("if it is to stay so: `linkproof fix rollback`, then `linkproof check`, `fix apply` and `fix persist` anew")
        return Reapplied("refused", (first, *differs, last))
    owners = standing(journal.read())
    words = tuple(w for w in kept.words if w.bdf in owners)
    back = [w.bdf for w in kept.words if w not in words]
    said = [Sentence("rolled back since it was persisted, so not written: {ports}", {"ports": listed(back)})] if back else []
    if not words:
        return Reapplied("nothing", tuple(said))
    if strange := [w.bdf for w in words if not found.functions[w.bdf].is_bridge]:
        return Reapplied("refused", (Sentence("not a port: {ports}", {"ports": listed(strange)}),))
    todo = tuple(w for w in words if not stands(machine, w))
    if not todo:
        return Reapplied(
            "done",
            (*said, Sentence("the ACS control words stand already, nothing was written: {ports}", {"ports": listed(w.bdf for w in words)})),
        )
    ids = dict.fromkeys(owners[w.bdf] for w in todo)
    steps = tuple(again(tuple(w for w in todo if owners[w.bdf] == id_), (), id_) for id_ in ids)
    asked = again(todo, pairs_through(todo, found))
    done = apply(
        Plan(steps, boot_id=machine.boot_id()),
        machine,
        journal,
        lambda pairs: None,
        frozenset(kept.accepted),
        ask_again=lambda step: refusals_now(asked, host),
    )
    if all(d.state == "refused" for d in done):
        return Reapplied("refused", tuple({s.text: s for d in done for s in d.why}.values()), steps, done)
    written = [w.bdf for w in todo if stands(machine, w)]
    said += [Sentence("ACS control words written and read back: {ports}", {"ports": listed(written)})] if written else []
    done = tuple(structs.replace(d, why=(PROVEN,)) if d.state == "not_known" else d for d in done)
    left = tuple(s for d in done if d.state not in WROTE for s in d.why)
    return Reapplied("done" if len(written) == len(todo) else "not_all", (*said, *left), steps, done)


def standing(entries: Iterable[Entry]) -> dict[str, str]:
    """Port -> the step that wrote it and is not rolled back. A reboot takes the word back, and not the step."""
    return {e.change.bdf: e.about.step for e in entries if isinstance(e.change, ConfigWord) and not e.final}


def stands(machine: Machine, word: ConfigWord) -> bool:
    """Are the bits as wanted? False if that cannot be known: then the write says why."""
    try:
        return there(machine, word, ())
    except Failed:
        return False


def pairs_through(words: tuple[ConfigWord, ...], found: PciTree) -> tuple[Pair, ...]:
    """All whose way leads through one of these ports, both directions."""
    ports = {w.bdf for w in words}
    return tuple(pair for way in paths_of_interest(found) if ports & {*way.ports} for pair in ((way.a, way.b), (way.b, way.a)))


def again(words: tuple[ConfigWord, ...], pairs: tuple[Pair, ...], name: str = STEP) -> Step:
    """The step that writes words again."""
    return Step(
        id=name,
        what=Sentence("write the persisted ACS control words again: {ports}", {"ports": listed(w.bdf for w in words)}),
        finding="acs_redirect",
        why=(PROVEN,),
        lasts="until_reboot",
        effect="now",
        undo=Sentence("`linkproof fix rollback` writes the former words back; so does a reboot"),
        by_hand=tuple(f"sudo setpci -s {w.bdf} ECAP_ACS+6.w=0000:{w.mask:04x}" for w in words),
        changes=words,
        pairs=pairs,
    )


# ---------------------------------------------------------------- for `fix status`


def _keep(result: Reapplied, machine: Machine, journal: Journal) -> None:
    """Beside the journal, whose folder is there if anything was ever applied."""
    if not machine.kind(journal.folder):
        return
    last = LastRun(SCHEMA, time(), machine.boot_id(), __version__, result.state, result.why)
    ours = FileNow(b"", 0o600, os.geteuid(), os.getegid())
    machine.replace_file(f"{journal.folder}/{LAST}", msgspec.json.encode(last), ours)


def last_run(machine: Machine, journal: Journal) -> LastRun | None:
    """None: it has not run, or what it left cannot be read."""
    path = f"{journal.folder}/{LAST}"
    try:
        now = machine.file(path) if machine.kind(path) == "file" else None
        if now is None or len(now.data) > LARGEST_B or persist_file.others_write(now.mode, now.uid):
            return None
        last = msgspec.json.decode(now.data, type=LastRun)
    except (OSError, ValueError, RecursionError):
        return None
    return last if last.schema == SCHEMA and last.state in ("done", "refused", "not_all", "nothing") else None
