"""Boot entries, one file a kernel (Boot Loader Specification): grubby on Red Hat's family, systemd-boot, SUSE's sdbootutil.

In:      Seen, the words.
Out:     grubby: one command for all entries; it also writes /etc/default/grub, /etc/kernel/cmdline and grubenv, from which new kernels get theirs.
         systemd-boot: each entry's `options`, and /etc/kernel/cmdline for kernels to come, if it is there.
         sdbootutil: /etc/kernel/cmdline, and the program that writes it into the entries.
Unknown: kernels whose words for the same key differ are not given one word by us.
Source:  Boot Loader Specification; kernel-install(8); grubby(8) and its shell version of 2018..2023; sdbootutil update-all-entries.
"""

from __future__ import annotations

import re

from linkproof.act.boot.edit import (
    REBOOT,
    BootEdit,
    Swap,
    Wish,
    as_typed,
    lines_by_hand,
    not_readable,
    not_understood,
    program,
    removed_notes,
    swap_of,
    text_change,
    there_already,
)  # fmt: skip
from linkproof.act.boot.grub import MAIN
from linkproof.act.boot.seen import Seen
from linkproof.act.text import words
from linkproof.act.text.edits import DEFAULT, NotUnderstood, line_of
from linkproof.mending import Change, Refusal, Sentence

CMDLINE = "/etc/kernel/cmdline"
GRUBENV = ("/boot/grub2/grubenv", "/boot/grub/grubenv", "/boot/efi/EFI/redhat/grubenv")
GRUBBY = ("/usr/libexec/grubby/grubby-bls", "/usr/sbin/grubby")


# ---------------------------------------------------------------- grubby


def grubby(seen: Seen, wish: Wish) -> BootEdit | None:
    if "grubby" not in seen.programs or seen.running_loader.startswith("systemd-boot"):
        return None
    plain = Swap(wish.remove, tuple(_for_grubby(words.written(*words.parsed(word))) for word in wish.add))
    folder, entries, hidden = seen.entries()
    if hidden is not None:
        return not_readable("grubby", folder, hidden.why, (as_typed(_argv(plain)), REBOOT))
    if not entries or not _grub_reads_entries(seen):
        return None
    try:
        lines, main = _grubby_lines(seen, entries)
    except NotUnderstood as e:
        return not_understood("grubby", e, (as_typed(_argv(plain)), REBOOT))
    swaps = {swap.new: swap for line in lines if (swap := swap_of(line, wish)) is not None}
    if not swaps:
        return there_already("grubby")
    if len(swaps) > 1:
        text = "the kernels of this machine have different words there ({words}): one command for all would change more than is wanted"
        refusal = Refusal("entries_differ", Sentence(text, {"words": " | ".join(" ".join(new) for new in swaps)}))
        return BootEdit(
            "grubby", (), ("sudo grubby --info=ALL", f"sudo grubby --update-kernel=KERNEL --args='... {wish.text}'", REBOOT), (), refusal
        )
    new = next(iter(swaps))
    away = tuple(dict.fromkeys(word for line in lines if (s := swap_of(line, wish)) is not None for word in s.away))
    swap = Swap(away, tuple(_for_grubby(word) for word in new))
    argv, undo = _argv(swap), _argv(Swap(swap.new, tuple(_for_grubby(word) for word in away)))
    changes: list[Change] = []
    notes = list(removed_notes(lines, wish))
    if main is not None and DEFAULT in main.decode("latin-1") and _can_leave_default(seen):
        # it would overwrite every line that begins with GRUB_CMDLINE_LINUX, this variable too
        argv, undo = (*argv, "--no-etc-grub-update"), (*undo, "--no-etc-grub-update")
        try:
            change = text_change(MAIN, "grub_default", wish, main)
        except NotUnderstood as e:
            return not_understood("grubby", e, (as_typed(argv), REBOOT))
        changes += [change] if change is not None else []
    watched = (folder, MAIN, CMDLINE, *(path for path in GRUBENV if seen.there(path)), *seen.grub_cfgs())
    changes.append(program(argv, watched, undo))
    return BootEdit("grubby", tuple(changes), (as_typed(argv), REBOOT), tuple(notes))


def _argv(swap: Swap) -> tuple[str, ...]:
    away = (f"--remove-args={' '.join(swap.away)}",) if swap.away else ()
    new = (f"--args={' '.join(swap.new)}",) if swap.new else ()
    return ("grubby", "--update-kernel=ALL", *away, *new)


def _for_grubby(word: str) -> str:
    """Single quotes: it puts the word between double quotes into /etc/default/grub, and GRUB reads the entry and takes the quotes off."""
    return word.replace('"', "'")


def _grub_reads_entries(seen: Seen) -> bool:
    cfgs = [seen.host.file(path) for path in seen.grub_cfgs()]
    if any(cfg.data is not None for cfg in cfgs) and (told := any("blscfg" in cfg.text for cfg in cfgs)):
        return told
    return re.search(r"^\s*GRUB_ENABLE_BLSCFG=[\"']?true", seen.host.file(MAIN).text, re.M) is not None


def _grubby_lines(seen: Seen, entries: dict[str, bytes]) -> tuple[list[str], bytes | None]:
    """Every command line that grubby writes. Raises NotUnderstood."""
    env = next((text for path in GRUBENV if "kernelopts=" in (text := seen.host.file(path).text)), "")
    opts = re.search(r"^kernelopts=(.*)$", env, re.M)
    lines = [_one(path, data).replace("$kernelopts", opts[1] if opts else "") for path, data in entries.items()]
    cmdline, main = seen.host.file(CMDLINE).data, seen.host.file(MAIN).data
    lines += [line_of("cmdline_file", cmdline)] if cmdline else []
    if main is not None:
        try:
            line = line_of("grub_default", main)
        except NotUnderstood as e:
            raise e.of(MAIN) from None
        lines += [line] if line.strip() else []
    return lines, main


def _one(path: str, data: bytes) -> str:
    try:
        return line_of("options_lines", data)
    except NotUnderstood as e:
        raise e.of(path) from None


def _can_leave_default(seen: Seen) -> bool:
    return any("no-etc-grub-update" in seen.host.file(path).text for path in GRUBBY)


# ---------------------------------------------------------------- systemd-boot and sdbootutil


def sdbootutil(seen: Seen, wish: Wish) -> BootEdit | None:
    kind = re.search(r"^\s*LOADER_TYPE=[\"']?([\w-]+)", seen.host.file("/etc/sysconfig/bootloader").text, re.M)
    cmdline = seen.host.file(CMDLINE)
    if "sdbootutil" not in seen.programs or kind is None or kind[1] not in ("systemd-boot", "grub2-bls") or cmdline.why == "absent":
        return None
    if cmdline.data is None or cmdline.cut:
        return not_readable("sdbootutil", CMDLINE, cmdline.why)
    change = text_change(CMDLINE, "cmdline_file", wish, cmdline.data)
    if change is None:
        return there_already("sdbootutil")
    argv = ("sdbootutil", "update-all-entries")
    folder, _, _ = seen.entries()
    hand = (*lines_by_hand(change, cmdline.data), as_typed(argv), REBOOT)
    notes = removed_notes([line_of("cmdline_file", cmdline.data)], wish)
    return BootEdit("sdbootutil", (change, program(argv, (folder,) if folder else ())), hand, notes)


def unified(seen: Seen, wish: Wish) -> BootEdit | None:
    if not seen.unified:
        return None
    why = Sentence("the kernel is one image with its command line inside (UKI): it must be built again")
    hand = (
        f"{CMDLINE}: ... {wish.text}",
        Sentence("sudo kernel-install add-all  # or: sudo mkinitcpio -P; sudo dracut --regenerate-all"),
        REBOOT,
    )
    return BootEdit("unified image", (), hand, (), Refusal("unified_image", why))


def systemd_boot(seen: Seen, wish: Wish) -> BootEdit | None:
    """Also for entries that GRUB reads where grubby is not installed."""
    loader = seen.running_loader
    if not loader.startswith("systemd-boot") and (seen.grub_cfgs() and not _grub_reads_entries(seen)):
        return None
    folder, entries, hidden = seen.entries()
    if hidden is not None:
        return not_readable("systemd-boot", folder, hidden.why)
    if not entries:
        return None
    if any(b"$kernelopts" in data for data in entries.values()):
        why = Sentence("the entries take their words from grubenv, and grubby is not installed: install it and plan again")
        return BootEdit(
            "grub", (), ("sudo dnf install grubby", f"sudo grubby --update-kernel=ALL --args='{wish.text}'"), (), Refusal("no_grubby", why)
        )
    files: dict[str, tuple[str, bytes]] = {path: ("options_lines", data) for path, data in entries.items()}
    cmdline = seen.host.file(CMDLINE)
    if cmdline.data is not None:
        files[CMDLINE] = ("cmdline_file", cmdline.data)
    found = [text_change(path, edit, wish, data) for path, (edit, data) in files.items()]
    changes = [change for change in found if change is not None]
    if not changes:
        return there_already("systemd-boot")
    hand = tuple(line for change in changes for line in lines_by_hand(change, files[change.path][1]))
    notes = removed_notes([line_of(edit, data) for edit, data in files.values()], wish)
    if cmdline.data is None:
        notes = (*notes, Sentence("a kernel installed before the next reboot would not get the words: there is no /etc/kernel/cmdline"))
    return BootEdit("systemd-boot" if loader or not seen.grub_cfgs() else "grub", tuple(changes), (*hand, REBOOT), notes)
