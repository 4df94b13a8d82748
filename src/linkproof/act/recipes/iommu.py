"""The IOMMU in the way of peer addresses: passthrough now where it can be done now, passthrough for good, off only if asked for. Pure.

In:      a Case; the mode of each GPU as read now.
Out:     iommu-identity     the groups of the GPUs of failing pairs, through /sys, if no driver but the port's own holds a device of them
         iommu-passthrough  the kernel command line
         iommu-off          the kernel command line, in place of passthrough; only if the person asks
         iommu-back         takes "IOMMU off" away where that made the damage, and asks for passthrough
Unknown: a group whose members could not be listed is not changed at run time; words say so.
Raises:  nothing.
Source:  Linux Documentation/ABI/testing/sysfs-kernel-iommu_groups; kernel-parameters.txt (iommu=, intel_iommu=, amd_iommu=, iommu.passthrough=).
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.act import boot
from linkproof.act.recipes import bios
from linkproof.act.recipes.case import BY_PERSON, Case, Failing, measured, pairs_of, seen, undo_line
from linkproof.act.refusals import listed
from linkproof.collect.mend import GROUPS
from linkproof.mending import Change, Refusal, Sentence, Step, SysfsText

PORT_DRIVERS = ("", "pcieport")  # the kernel lets the type of a group change while these hold its devices
TRANSLATING = ("DMA", "DMA-FQ")
_KEYS = ("iommu", "intel_iommu", "amd_iommu", "iommu.passthrough")
_OFF = ("iommu=off", "intel_iommu=off", "amd_iommu=off")


def iommu(case: Case) -> Iterator[Step]:
    modes = case.found.modes
    failing = tuple(f for f in case.failing if any(modes.get(bdf) == "translating" for bdf in f.pair))
    if not failing:
        return
    yield _now(case, failing)
    yield _off(case, failing) if case.iommu_off else _for_good(case, failing)


def _said(case: Case, failing: tuple[Failing, ...]) -> tuple[Sentence, ...]:
    out = []
    for bdf in dict.fromkeys(bdf for f in failing for bdf in f.pair if case.found.modes.get(bdf) == "translating"):
        group = case.mend.group_of.get(bdf, "")
        text = "{gpu}: the IOMMU translates its addresses (group {group}, type {type})"
        out.append(
            Sentence(text, {"gpu": bdf, "group": group or "?", "type": case.mend.groups[group].type if group in case.mend.groups else "?"})
        )
    return (*measured(failing), *out, *seen(case.cause))


# ---------------------------------------------------------------- at run time


def _now(case: Case, failing: tuple[Failing, ...]) -> Step:
    mend = case.mend
    gpus = list(dict.fromkeys(bdf for f in failing for bdf in f.pair if case.found.modes.get(bdf) == "translating"))
    groups = list(dict.fromkeys(mend.group_of[bdf] for bdf in gpus if bdf in mend.group_of))
    held: list[str] = []
    unread = [bdf for bdf in gpus if bdf not in mend.group_of]
    for name in groups:
        members = mend.groups[name].members
        unread += [f"{GROUPS}/{name}/devices"] if members is None else []
        held += [f"{bdf} ({driver})" for bdf, driver in members or () if driver not in PORT_DRIVERS]
    changes: tuple[Change, ...] = ()
    if groups and not held and not unread:
        changes = tuple(SysfsText(f"{GROUPS}/{name}/type", "identity") for name in groups if mend.groups[name].type in TRANSLATING)
    commands = tuple(f"echo identity | sudo tee {GROUPS}/{name}/type" for name in groups)
    back = tuple(undo_line(f"echo {mend.groups[n].type} | sudo tee {GROUPS}/{n}/type") for n in groups if mend.groups[n].type)
    if changes:
        what = Sentence("let the GPUs' own IOMMU groups pass addresses through, until the next boot")
    elif held:
        text = "try it before the reboot: end all GPU work and unload the drivers that hold {devices}, then change the groups' type and load them again"
        what = Sentence(text, {"devices": listed(held)})
    else:
        what = Sentence("at run time it cannot be changed from here: {files} could not be read", {"files": listed(unread) or GROUPS})
    unload = ("sudo modprobe -r nvidia_uvm nvidia_drm nvidia_modeset nvidia",) if any("(nvidia)" in h for h in held) else ()
    load = ("sudo modprobe nvidia_uvm",) if unload else ()
    return Step(
        id="iommu-identity",
        what=what,
        finding=case.cause.id,
        why=_said(case, failing),
        lasts="until_reboot" if changes else "",
        effect="now" if changes else "by_hand",
        undo=Sentence(
            "`linkproof fix rollback` writes the former type back; so does a reboot" if changes else "a reboot puts the former type back"
        ),
        by_hand=(*unload, *commands, *load, *back),
        changes=changes,
        risk=(
            Sentence(
                "these GPUs, and whatever shares their groups, can then reach all memory of the host: {devices}", {"devices": listed(gpus)}
            ),
        ),
        unsafe_when=(Sentence("a guest is to use one of these devices"),),
        pairs=pairs_of(failing),
    )


# ---------------------------------------------------------------- for good


def _asked(cmdline: str) -> tuple[str, ...]:
    """What a command line asks of the IOMMU, one value each: `iommu=pt,nopt` -> `iommu=pt` `iommu=nopt`."""
    found = []
    for word in cmdline.split():
        key, _, values = word.partition("=")
        if key.replace("-", "_") in _KEYS:
            found += [f"{key}={value}" for value in values.split(",")]
    return tuple(dict.fromkeys(found))


def asks_for_passthrough(cmdline: str) -> bool:
    return any(word in ("iommu=pt", "iommu.passthrough=1", "iommu.passthrough=y", "iommu.passthrough=Y") for word in _asked(cmdline))


def _for_good(case: Case, failing: tuple[Failing, ...]) -> Step:
    if asks_for_passthrough(case.mend.cmdline):
        what = Sentence("the running kernel was asked for passthrough already, and the IOMMU translates all the same: look in the BIOS")
        return _boot_step(case, "iommu-passthrough", what, failing, (), ())
    words = boot.passthrough_words(case.mend.arm)
    what = Sentence("set the IOMMU to passthrough at each boot: {word} on the kernel command line", {"word": " ".join(words.add)})
    return _boot_step(case, "iommu-passthrough", what, failing, words.add, words.remove)


def _off(case: Case, failing: tuple[Failing, ...]) -> Step:
    words = boot.iommu_off_words(case.found.cpu_vendor, case.mend.arm)
    what = Sentence("switch the IOMMU off: {word} on the kernel command line", {"word": " ".join(words.add) or "?"})
    if words.refusal is not None:
        what = words.refusal.why
    return _boot_step(case, "iommu-off", what, failing, words.add, words.remove)


def _boot_step(case: Case, name: str, what: Sentence, failing: tuple[Failing, ...], add: tuple[str, ...], remove: tuple[str, ...]) -> Step:
    edit = boot.command_line(case.mend.host, add, remove) if add or remove else None
    refusals: tuple[Refusal, ...] = (edit.refusal,) if edit is not None and edit.refusal is not None else ()
    changes = edit.changes if edit is not None and not refusals else ()
    if edit is not None and not refusals and not changes:
        what = Sentence("the boot loader's files ask for it already ({word}): reboot", {"word": " ".join(add) or " ".join(remove)})
    off = name == "iommu-off"
    vfio = Sentence("PCI passthrough to guests (VFIO) needs the IOMMU on") if off else Sentence("guests or untrusted devices use this host")
    remapping = Sentence("interrupt remapping goes with it: machines with more than 254 CPUs lose the rest")
    return Step(
        id=name,
        what=what,
        finding=case.cause.id,
        why=_said(case, failing) if failing else seen(case.cause),
        lasts="for_good" if changes else "",
        effect="reboot" if changes else "by_hand",
        undo=(
            Sentence("`linkproof fix rollback` takes the words out of the boot loader's files; the former state is back after a reboot")
            if changes
            else BY_PERSON
        ),
        by_hand=edit.by_hand if edit is not None else bios.iommu_lines(case, "Enabled" if name == "iommu-back" else "Disabled"),
        changes=changes,
        risk=(
            Sentence("every device can then reach all memory of the host"),
            *((remapping,) if off else ()),
            *(edit.notes if edit is not None else ()),
        ),
        unsafe_when=(vfio,),
        refusals=refusals,
        pairs=pairs_of(failing),
    )


def iommu_back(case: Case) -> Iterator[Step]:
    """Off made the damage (lost CPUs, lost interrupts): on again, and out of the way."""
    gone = [word for word in _asked(case.mend.cmdline) if word in _OFF]
    words = boot.passthrough_words(case.mend.arm)
    add = () if asks_for_passthrough(case.mend.cmdline) else words.add
    if gone:
        what = Sentence(
            "put the IOMMU back, in passthrough: {words} off the kernel command line, {word} on it",
            {"words": " ".join(gone), "word": " ".join(words.add)},
        )
        yield _boot_step(case, "iommu-back", what, (), add, tuple(gone))
    else:
        what = Sentence("switch the IOMMU on in the BIOS, and x2APIC with it; the kernel command line does not switch it off")
        yield _boot_step(case, "iommu-back", what, (), (), ())
