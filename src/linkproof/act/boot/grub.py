"""GRUB whose menu is made from /etc/default/grub: Debian, Ubuntu, SUSE, openEuler, Kylin, Arch and others.

In:      Seen, the words.
Out:     one edited file (or more, where words to take out stand in others), and the program that makes the menu again.
         New words go where they count: into the file that is read last of those that set the variable, or that holds the key already.
         GRUB_CMDLINE_LINUX_DEFAULT first: recovery entries do not get it, so a way back stays.
Unknown: whether /etc/default/grub.d is read at all is asked of grub-mkconfig itself; only Debian's and its children's does.
Source:  grub-mkconfig of GRUB 2.06 (upstream) and of Debian; /etc/grub2.cfg and /etc/grub2-efi.cfg of Red Hat's packages.
"""

from __future__ import annotations

import re

from msgspec import Struct

from linkproof.act.boot.edit import (
    REBOOT,
    BootEdit,
    Wish,
    as_typed,
    lines_by_hand,
    not_readable,
    not_understood,
    program,
    removed_notes,
    text_change,
    there_already,
)  # fmt: skip
from linkproof.act.boot.seen import Seen
from linkproof.act.text import shell_file, words
from linkproof.act.text.edits import ALWAYS, DEFAULT, NotUnderstood, line_of
from linkproof.mending import Change, Sentence, TextFile

MAIN, FOLDER = "/etc/default/grub", "/etc/default/grub.d"
_KERNEL_LINE = re.compile(r"^[ \t]*linux(?:16|efi)?[ \t]+\S+(.*)$", re.M)


class _Part(Struct, frozen=True):
    path: str
    data: bytes
    sets: tuple[str, ...]  # the variables that it sets
    counts: tuple[str, ...]  # the variables of which something in it is in force at the end

    @property
    def edit(self) -> str:
        return (
            "grub_default"
            if len(self.counts) != 1 or self.counts == self.sets
            else f"grub_{'default' if DEFAULT in self.counts else 'always'}_only"
        )

    @property
    def line(self) -> str:
        return line_of(self.edit, self.data)


def grub(seen: Seen, wish: Wish) -> BootEdit | None:
    """None: this is not how the kernel is loaded here."""
    main = seen.host.file(MAIN)
    maker = next((p for p in ("update-grub", "grub2-mkconfig", "grub-mkconfig") if p in seen.programs), "")
    if main.why == "absent" or not maker or seen.running_loader.startswith("systemd-boot"):
        return None
    if main.data is None or main.cut:
        return not_readable("grub", MAIN, main.why)
    menu = _menu(seen)
    if not menu:
        return None
    argv = ("update-grub",) if maker == "update-grub" else (maker, "-o", menu)
    by_hand = (f'{MAIN}: GRUB_CMDLINE_LINUX_DEFAULT="... {wish.text}"', as_typed(argv), REBOOT)
    try:
        parts = _parts(seen, main.data, maker)
        if isinstance(parts, BootEdit):
            return parts
        edits = _edits(parts, wish)
    except NotUnderstood as e:
        return not_understood("grub", e, by_hand)
    data = {part.path: part.data for part in parts}
    lines = [part.line for part in parts if part.counts]
    remake = program(argv, (menu,))
    if not edits:
        return (
            BootEdit("grub", (remake,), (as_typed(argv), REBOOT), (_stale(menu),)) if _is_stale(seen, menu, wish) else there_already("grub")
        )
    notes = (*_why_here(parts, edits), *removed_notes(lines, wish))
    typed = tuple(line for edit in edits for line in lines_by_hand(edit, data[edit.path]))
    changes: tuple[Change, ...] = (*edits, remake)
    return BootEdit("grub", changes, (*typed, as_typed(argv), REBOOT), notes)


# ---------------------------------------------------------------- which files


def _parts(seen: Seen, main: bytes, maker: str) -> list[_Part] | BootEdit:
    """All files that are read, in order. Raises NotUnderstood."""
    files = {MAIN: main}
    for name in sorted(seen.names(FOLDER) or ()) if _reads_folder(seen, maker) else ():
        if name.endswith(".cfg") and not name.startswith("."):
            answer = seen.host.file(f"{FOLDER}/{name}")
            if answer.data is None or answer.cut:
                return not_readable("grub", f"{FOLDER}/{name}", answer.why)
            files[f"{FOLDER}/{name}"] = answer.data
    values: list[tuple[str, shell_file.Value]] = []
    for path, data in files.items():
        try:
            values += [(path, value) for value in shell_file.assignments(data.decode("latin-1"), (ALWAYS, DEFAULT))]
        except NotUnderstood as e:
            raise e.of(path) from None
    counting: set[tuple[str, str]] = set()
    for name in (ALWAYS, DEFAULT):
        try:
            kept = {id(v) for v in shell_file.in_force([value for _, value in values], name)}
        except NotUnderstood as e:
            raise e.of(next(path for path, value in values if value.name == name and not value.top)) from None
        counting |= {(path, name) for path, value in values if id(value) in kept}
    both = (ALWAYS, DEFAULT)
    return [
        _Part(
            path,
            data,
            tuple(n for n in both if any(p == path and v.name == n for p, v in values)),
            tuple(n for n in both if (path, n) in counting),
        )
        for path, data in files.items()
    ]


def _reads_folder(seen: Seen, maker: str) -> bool:
    script = seen.host.file(seen.path_of("grub2-mkconfig" if maker == "grub2-mkconfig" else "grub-mkconfig"))
    return "default/grub.d" in script.text if script.data is not None else maker == "update-grub"


def _edits(parts: list[_Part], wish: Wish) -> list[TextFile]:
    counting = [part for part in parts if part.counts]
    lines = {part.path: part.line for part in counting}
    defaults = [part.path for part in counting if DEFAULT in part.counts]
    winner = (MAIN if MAIN in defaults else defaults[-1]) if defaults else (MAIN if MAIN in lines or not lines else list(lines)[-1])
    adds: dict[str, list[str]] = {part.path: [] for part in parts}
    for word in wish.add:
        key = words.parsed(word)[0]
        holding = [path for path, line in lines.items() if any(w.key == key for w in words.words(line))]
        adds[holding[-1] if holding else winner].append(word)
    found = []
    for part in parts:
        if part.counts or adds[part.path]:
            change = text_change(part.path, part.edit, Wish(tuple(adds[part.path]), wish.remove), part.data)
            found += [change] if change is not None else []
    return found


def _why_here(parts: list[_Part], edits: list[TextFile]) -> tuple[Sentence, ...]:
    here = next((edit.path for edit in edits if edit.add), MAIN)
    if here == MAIN:
        return ()
    main_counts = any(part.path == MAIN and DEFAULT in part.counts for part in parts)
    text = (
        "{file} is changed, as the key stands there" if main_counts
        else "{file} is changed, as it is read after /etc/default/grub and sets the variable anew"
    )  # fmt: skip
    return (Sentence(text, {"file": here}),)


# ---------------------------------------------------------------- the menu


def _menu(seen: Seen) -> str:
    """The file that the running firmware's GRUB reads and that is made by grub-mkconfig; "" if there is none."""
    uefi = bool(seen.names("/sys/firmware/efi"))
    linked = seen.host.link("/etc/grub2-efi.cfg" if uefi else "/etc/grub2.cfg").text
    there = seen.grub_cfgs()
    if linked in there:
        return linked
    own = [p for p in there if not p.startswith("/boot/efi/")]
    made = [p for p in there if p not in own and "### BEGIN /etc/grub.d/" in seen.host.file(p).text]
    return next(iter((*made, *own) if uefi else own), "")


def _is_stale(seen: Seen, menu: str, wish: Wish) -> bool:
    """The menu can be read, and none of its kernels gets the words: someone edited the defaults and did not make it again."""
    kernels = _KERNEL_LINE.findall(seen.host.file(menu).text)
    return bool(kernels) and not any(words.words_in(line, wish.add, wish.remove) for line in kernels)


def _stale(menu: str) -> Sentence:
    return Sentence("the defaults ask for it already, but {menu} was not made again since", {"menu": menu})
