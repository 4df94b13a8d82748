"""`/etc/linkproof/persist.json`: the words that are written again at each boot, and the hardware that they are for. Read at boot, by root.

In:      Machine.
Out:     PersistFile, or why there is none that may be used.
Unknown: a file that is not plain, not ours alone to write, too large, of another schema, or that asks for anything but clearing ACS redirect
         bits of ports that are part of its own hardware key, is not used at all: a word of it is never taken alone.
Raises:  nothing.
Source:  PCI Express Base Specification 6, 7.7.11: the control word stands 6 bytes behind the head of the capability 0x000d.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import msgspec
from msgspec import Struct

from linkproof.act.doors import Machine
from linkproof.act.hardware import PORT, key
from linkproof.mending import RISKS, ConfigWord, Sentence
from linkproof.parse.pci_config import ACS, ACS_CONTROL, REDIRECT

FOLDER = "/etc/linkproof"
PATH = FOLDER + "/persist.json"
SCHEMA = 1
LARGEST_B = 1 << 20
_BDF = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
_NAME = re.compile(rf"(?:GPU|port|NIC) {_BDF}")
_IDENTITY = re.compile(rf"[0-9a-f]{{4}}:[0-9a-f]{{4}} pci[0-9a-f]{{4,8}}:[0-9a-f]{{2}}(?:/{_BDF}){{1,256}}")


class PersistFile(Struct, frozen=True, forbid_unknown_fields=True):
    """linkproof: its version. when: seconds since 1970. boot_id: of the boot in which it was written; this unit first runs in the next one.

    accepted: risks that the person took with --i-accept. hardware: `hardware.key` of parts.
    """

    schema: int
    linkproof: str
    when: float
    boot_id: str
    hardware: str
    parts: dict[str, str]
    words: tuple[ConfigWord, ...]
    accepted: tuple[str, ...] = ()


def text(kept: PersistFile) -> str:
    return msgspec.json.format(msgspec.json.encode(kept), indent=1).decode() + "\n"


def read(machine: Machine) -> tuple[PersistFile | None, Sentence | None]:
    """(None, None) if there is no such file; (None, why) if it may not be used."""
    try:
        kind = machine.kind(PATH)
        if not kind:
            return None, None
        if kind != "file":
            return None, Sentence("{path} is not a plain file", {"path": PATH})
        found = machine.file(PATH)
        if found is None:
            return None, None
        folder = Path(machine.root + FOLDER).lstat()
    except OSError as e:
        return None, Sentence("{path} cannot be read: {why}", {"path": PATH, "why": e.strerror or "?"})
    if others_write(folder.st_mode, folder.st_uid) or others_write(found.mode, found.uid):
        return None, Sentence("{path} can be written by others than root, so it is not used", {"path": PATH})
    if len(found.data) > LARGEST_B:
        return None, Sentence("{path} is larger than {n} KiB", {"path": PATH, "n": str(LARGEST_B >> 10)})
    try:
        kept = msgspec.json.decode(found.data, type=PersistFile)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None, Sentence("{path} is damaged, or of another version of linkproof", {"path": PATH})
    if kept.schema != SCHEMA:
        return None, Sentence("{path} is damaged, or of another version of linkproof", {"path": PATH})
    why = _unsound(kept)
    return (None, why) if why else (kept, None)


def others_write(mode: int, uid: int) -> bool:
    """Linux has no file of root that others own; whoever runs linkproof must be the owner (root, but for tests)."""
    return uid != os.geteuid() or bool(mode & (stat.S_IWGRP | stat.S_IWOTH))


def _unsound(kept: PersistFile) -> Sentence | None:
    named = all(_NAME.fullmatch(name) and _IDENTITY.fullmatch(words) for name, words in kept.parts.items())
    if not named or kept.hardware != key(kept.parts) or not kept.hardware:
        return Sentence("the hardware key of {path} does not fit its parts", {"path": PATH})
    if not kept.words or len({w.bdf for w in kept.words}) != len(kept.words) or not set(kept.accepted) <= set(RISKS):
        return Sentence("{path} holds no words, or contradicting ones", {"path": PATH})
    if not all(allowed(word, kept.parts) for word in kept.words):
        return Sentence("{path} asks for more than clearing ACS redirect bits of ports between GPUs, so it is not used", {"path": PATH})
    return None


def allowed(word: ConfigWord, parts: dict[str, str]) -> bool:
    """Only ReqRedir, CmpltRedir and EgressCtrl, only cleared, only of a port that the hardware key names."""
    head = word.offset - ACS_CONTROL
    return (
        (word.capability, word.inside) == (ACS, ACS_CONTROL)
        and 0x100 <= head <= 0xFF8
        and head % 4 == 0
        and 0 < word.mask == word.mask & REDIRECT
        and word.want == 0
        and parts.get(f"{PORT} {word.bdf}") == word.identity != ""
    )
