"""Systems whose own program keeps the kernel command line: rpm-ostree (kargs) and kernelstub (Pop!_OS).

Source: rpm-ostree(1) kargs; kernelstub(1) and its configuration file, schema 3.
"""

from __future__ import annotations

import json

from linkproof.act.boot.edit import REBOOT, BootEdit, Swap, Wish, as_typed, not_readable, program, removed_notes, swap_of, there_already
from linkproof.act.boot.seen import Seen
from linkproof.mending import Refusal, Sentence

KERNELSTUB = "/etc/kernelstub/configuration"


def rpm_ostree(seen: Seen, wish: Wish) -> BootEdit | None:
    if seen.host.file("/run/ostree-booted").why == "absent" or "rpm-ostree" not in seen.programs:
        return None
    running = seen.host.file("/proc/cmdline")
    if running.data is None:
        return not_readable("rpm-ostree", "/proc/cmdline", running.why)
    if (swap := swap_of(running.text, wish)) is None:
        return there_already("rpm-ostree")
    argv = _kargs(swap)
    if any('"' in word for word in (*swap.new, *swap.away)):
        why = Sentence("rpm-ostree is not known to carry a parameter with `;` in it to the kernel unharmed")
        return BootEdit("rpm-ostree", (), (as_typed(("rpm-ostree", "kargs", "--editor")), REBOOT), (), Refusal("quoting", why))
    notes = (*removed_notes([running.text], wish), Sentence("a new deployment is made; the one that runs stays in the boot menu"))
    undo = _kargs(Swap(swap.new, swap.away))
    return BootEdit("rpm-ostree", (program(argv, (), undo, 900.0),), (as_typed(argv), REBOOT), notes)


def _kargs(swap: Swap) -> tuple[str, ...]:
    away = (f"--delete-if-present={word}" for word in swap.away)
    return ("rpm-ostree", "kargs", *away, *(f"--append-if-missing={word}" for word in swap.new))


def kernelstub(seen: Seen, wish: Wish) -> BootEdit | None:
    answer = seen.host.file(KERNELSTUB)
    if "kernelstub" not in seen.programs or answer.why == "absent":
        return None
    if answer.data is None:
        return not_readable("kernelstub", KERNELSTUB, answer.why)
    try:
        options = json.loads(answer.text)["user"]["kernel_options"]
        line = options if isinstance(options, str) else " ".join(str(word) for word in options)
    except (ValueError, KeyError, TypeError):
        why = Sentence("{file} is left alone: its kernel options cannot be read", {"file": KERNELSTUB})
        return BootEdit("kernelstub", (), (as_typed(("kernelstub", "-a", wish.text)), REBOOT), (), Refusal("not_understood", why))
    if (swap := swap_of(line, wish)) is None:
        return there_already("kernelstub")
    folder, _, _ = seen.entries()
    watched = (KERNELSTUB, *((folder,) if folder else ()))
    away, new = " ".join(swap.away), " ".join(swap.new)
    changes = []
    if away:
        changes.append(program(("kernelstub", "--delete-options", away), watched, ("kernelstub", "--add-options", away)))
    if new:
        changes.append(program(("kernelstub", "--add-options", new), watched, ("kernelstub", "--delete-options", new)))
    hand = (*(as_typed(change.argv) for change in changes), REBOOT)
    return BootEdit("kernelstub", tuple(changes), hand, removed_notes([line], wish))
