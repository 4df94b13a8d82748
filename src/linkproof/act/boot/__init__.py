"""The kernel command line as changes, whatever loads the kernel. Found by what is there (programs, files, what the running loader said of
itself), never by the name of a distribution. Reads only.

In:      a Host; words to add and to remove, as the kernel names them.
Out:     BootEdit: changes, the same by hand, notes; or a refusal. changes () and no refusal: the files ask for it already.
Unknown: a folder of entries that may not be read refuses (`not_readable`); nothing recognised refuses (`no_loader`) with the words to add.
Raises:  nothing.
"""

from __future__ import annotations

from linkproof.act.boot.edit import REBOOT, BootEdit, Wish, line_by_hand, not_readable, not_understood
from linkproof.act.boot.entries import grubby, sdbootutil, systemd_boot, unified
from linkproof.act.boot.grub import grub
from linkproof.act.boot.kernel_words import KernelWords, acs_words, iommu_off_words, passthrough_words
from linkproof.act.boot.seen import Seen
from linkproof.act.boot.tools import kernelstub, rpm_ostree
from linkproof.act.text.edits import NotUnderstood
from linkproof.act.text.words import words_in
from linkproof.collect.host import Host
from linkproof.mending import Refusal, Sentence

__all__ = ["BootEdit", "KernelWords", "acs_words", "command_line", "iommu_off_words", "passthrough_words", "words_in"]

# the more particular first: a machine with kernelstub has boot entries too, one with grubby has /etc/default/grub too
LOADERS = (rpm_ostree, kernelstub, sdbootutil, unified, grubby, systemd_boot, grub)


def read(host: Host) -> None:
    """All that a plan may look at, whatever it will ask for: so that a recorder has it."""
    for add in (passthrough_words().add, ("linkproof",)):  # the second is on no command line: nobody says "it is there already" early
        command_line(host, add)


def command_line(host: Host, add: tuple[str, ...], remove: tuple[str, ...] = ()) -> BootEdit:
    seen, wish = Seen(host), Wish(add, remove)
    hand = (line_by_hand(host.file("/proc/cmdline").text, wish), REBOOT)
    if seen.container:
        why = Sentence("this is a container: the kernel belongs to the host, and so does its command line")
        return BootEdit("", (), hand, (), Refusal("container", why))
    for loader in LOADERS:
        try:
            edit = loader(seen, wish)
        except NotUnderstood as e:
            return not_understood(loader.__name__.replace("_", "-"), e, hand)
        if edit is not None:
            return edit
    if seen.names("/boot") is None:
        return not_readable("", "/boot", host.names("/boot").why)
    why = Sentence("no boot loader was recognised: /etc/default/grub, boot entries, kernelstub and rpm-ostree are all absent")
    return BootEdit("", (), hand, (), Refusal("no_loader", why))
