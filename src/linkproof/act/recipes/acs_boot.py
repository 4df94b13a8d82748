"""ACS for good: the parameter with which the kernel clears the redirect bits at boot, where the running kernel has one that works. Pure.

In:      the ports whose bits are cleared; the kernel's release.
Out:     acs-kernel: changes of the boot loader where lockdown refuses the register itself; else words, since `fix persist` does the same and
         leaves the IOMMU groups as they are.
Unknown: as boot/kernel_words.py.
Raises:  nothing.
Source:  boot/kernel_words.py, which chooses the parameter.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.act import boot
from linkproof.act.recipes.case import Case, Failing, measured, pairs_of, seen
from linkproof.act.refusals import listed
from linkproof.mending import Sentence, Step
from linkproof.parse.pci_config import REDIRECT
from linkproof.parse.pci_tree import PciFunction


def at_boot(case: Case, ports: tuple[PciFunction, ...], failing: tuple[Failing, ...]) -> Iterator[Step]:
    """Nothing where the kernel has no such parameter and `fix persist` does it anyhow."""
    names = tuple(p.bdf for p in ports)
    words = boot.acs_words(tuple((name, REDIRECT) for name in names), case.mend.release)
    locked = case.mend.lockdown not in ("none", "")
    if words.refusal is not None:
        return
    edit = boot.command_line(case.mend.host, words.add, words.remove)
    changes = edit.changes if locked and edit.refusal is None else ()
    if locked:
        text = "let the kernel clear the redirect bits at each boot, as lockdown refuses the register itself: {ports}"
        what = Sentence(text, {"ports": listed(names)})
    else:
        what = Sentence(
            "instead of `linkproof fix persist`, once a step above has helped: {word} on the kernel command line",
            {"word": " ".join(words.add)},
        )
    yield Step(
        id="acs-kernel",
        what=what,
        finding=case.cause.id,
        why=(*measured(failing), *seen(case.cause)) if locked else (),
        lasts="for_good" if changes else "",
        effect="reboot" if changes else "by_hand",
        undo=Sentence("take the words off the kernel command line again; the former state is back after a reboot"),
        by_hand=edit.by_hand,
        changes=changes,
        risk=(
            Sentence("the named ports and all below them become one IOMMU group: none of these devices can be given to a guest by itself"),
            Sentence("PCI addresses can move when cards are added or removed: the parameter then names other ports"),
            *words.notes,
            *edit.notes,
        ),
        unsafe_when=(Sentence("guests or other tenants use devices below these ports"),),
        refusals=(edit.refusal,) if locked and edit.refusal is not None else (),
        pairs=pairs_of(failing) if changes else (),
    )
