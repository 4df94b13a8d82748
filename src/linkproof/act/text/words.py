"""A kernel command line as words: which it holds, and what to replace in it to put words in and take words out. Pure.

In:      the text of a command line; words to add and to remove as the kernel names them: `iommu=pt`, `pci=config_acs=x0x00xx@0000:16:00.0`.
Out:     Splice(start, end, text) in rising order; none if the line is right already. Order, spaces and all other words stay.
         A word of a key that takes a list (`iommu=`, `pci=` ...) goes into the list that is there; devices of an ACS option are joined by `;`.
         A key that takes one value gets the new value in the place of the old one. `remove` without `=` takes out every word of that key.
Unknown: words that we do not know are carried along. What stands after ` -- ` is for init and is not read.
Raises:  nothing.
Source:  kernel/params.c (next_arg, parameq: dash and underscore alike, double quotes hold spaces together), pci_setup, iommu_setup,
         intel_iommu_setup, kstrtobool of Linux 5.10 .. 6.15; GRUB manual, "Quoting": a bare `;` ends a command.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from msgspec import Struct

LISTS = ("iommu", "intel_iommu", "amd_iommu", "pci")  # options joined by commas, all of them read, several words of the key too
DEVICES = ("config_acs", "disable_acs_redir")  # of `pci=`: entries joined by `;`; a second such option would replace the first
TRUTHS = ("iommu.passthrough", "iommu.strict")
_WORD = re.compile(r"""(?:"[^"]*"?|[^\s"])+""", re.ASCII)
_NEEDS_QUOTES = re.compile(r"[;{}|&$<>\s]", re.ASCII)  # for GRUB; the kernel takes quotes off only around a whole value
_BDF = re.compile(r"^(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})\.([0-7])$")


class Splice(Struct, frozen=True):
    start: int
    end: int
    text: str


class Word:
    """key, value (None: no `=`) as the kernel compares them; start, end: where in the text."""

    def __init__(self, key: str, value: str | None, start: int, end: int) -> None:
        self.key, self.value, self.start, self.end = key, value, start, end
        self.gone = self.changed = False


def parsed(word: str) -> tuple[str, str | None]:
    """Key (dash as underscore) and value (None: no `=`), without the quotes and the backslashes of GRUB."""
    key, equals, value = re.sub(r"[\"'\\]", "", word).partition("=")
    return key.replace("-", "_"), value if equals else None


def written(key: str, value: str | None) -> str:
    if value is None:
        return key
    return f'{key}="{value}"' if _NEEDS_QUOTES.search(value) else f"{key}={value}"


def words(line: str) -> list[Word]:
    """Those for the kernel, in order."""
    found = []
    for match in _WORD.finditer(line):
        if match.group() == "--":
            break
        found.append(Word(*parsed(match.group()), match.start(), match.end()))
    return found


# ---------------------------------------------------------------- values


def _same(key: str, one: str | None, other: str | None) -> bool:
    if key in TRUTHS and one and other:
        return _truth(one) == _truth(other)
    return one == other


def _truth(value: str) -> str:
    """As kstrtobool: y, t, 1, on; n, f, 0, off."""
    low = value.lower()
    return "1" if low[:1] in ("y", "t", "1") or low[:2] == "on" else "0" if low[:1] in ("n", "f", "0") or low[:2] == "of" else value


def _device(name: str) -> str:
    """An address in one spelling; a pattern (`pci:10de:2330`) or a path stays."""
    at = _BDF.match(name.lower())
    return f"{int(at[1] or '0', 16):04x}:{int(at[2], 16):02x}:{int(at[3], 16):02x}.{at[4]}" if at else name


def _entry(entry: str) -> tuple[str, str]:
    """`FLAGS@DEVICE` or `DEVICE` -> flags, device."""
    flags, at, name = entry.rpartition("@")
    return flags if at else "", _device(name)


def _options(value: str | None) -> list[str]:
    return [option for option in (value or "").split(",") if option]


def _entries(option: str) -> tuple[str, list[str]]:
    """Name of an option of `pci=` that names devices, and its entries; "" for any other."""
    name, equals, rest = option.partition("=")
    return (name, [entry for entry in rest.split(";") if entry]) if equals and name in DEVICES else ("", [])


def _merged_flags(mine: str, there: str) -> str:
    """Bit by bit, counted from the right; `x` leaves a bit to the other."""
    width = max(len(mine), len(there))
    pairs = zip(mine.rjust(width, "x"), there.rjust(width, "x"), strict=True)
    return "".join(there_bit if bit == "x" else bit for bit, there_bit in pairs)


def _joined(option: str, mine: list[str]) -> str:
    """An option that names devices with ours in it. The kernel takes the first entry that fits a device, so ours come first."""
    name, there = _entries(option)
    for entry in mine:
        flags, device = _entry(entry)
        old = next((e for e in there if _entry(e)[1] == device), None)
        if old is None:
            there = [entry, *there] if name == "config_acs" else [*there, entry]
        elif (merged := _merged_flags(flags, _entry(old)[0])) != _entry(old)[0]:
            there = [f"{merged}@{device}" if e is old else e for e in there]
    return f"{name}={';'.join(there)}"


def _without(value: str, unwanted: str) -> str:
    """A list without the options (and entries) of another."""
    kept = _options(value)
    for option in _options(unwanted):
        name, mine = _entries(option)
        if not name:
            kept = [o for o in kept if o != option]
            continue
        gone = [_entry(e) for e in mine]
        fresh = []
        for o in kept:
            if _entries(o)[0] == name:
                left = [e for e in _entries(o)[1] if _entry(e) not in gone]
                o = f"{name}={';'.join(left)}" if left else ""
            fresh.append(o)
        kept = [o for o in fresh if o]
    return ",".join(kept)


# ---------------------------------------------------------------- lines


def splices(line: str, add: Iterable[str], remove: Iterable[str] = (), last_from: int = 0) -> list[Splice]:
    """last_from: a new word goes behind this place (the line may be of several pieces, and new words go into the last)."""
    there = words(line)
    for word in remove:
        _take_out(there, *parsed(word))
    fresh: list[Word] = []
    for word in add:
        _put_in(there, fresh, *parsed(word))
    found = [Splice(w.start, w.end, written(w.key, w.value)) for w in there if w.changed and not w.gone] + list(_cuts(there))
    if fresh:
        found.append(_appended(line, there, fresh, last_from))
    return sorted(found, key=lambda s: (s.start, s.end))


def _cuts(there: list[Word]) -> Iterator[Splice]:
    """Runs of words that go, each with the spaces on one side."""
    i = 0
    while i < len(there):
        j = i
        while j < len(there) and there[j].gone:
            j += 1
        if j > i:
            start = there[i - 1].end if i else there[0].start
            yield Splice(start, there[j - 1].end if i or j == len(there) else there[j].start, "")
        i = max(j, i + 1)


def _appended(line: str, there: list[Word], fresh: list[Word], last_from: int) -> Splice:
    new = " ".join(written(word.key, word.value) for word in fresh)
    last = max((word.end for word in there), default=0)
    at = max(last, last_from)
    kept = any(word.end > last_from and not word.gone for word in there)
    before = " " if kept or (at == last_from > 0 and not line[at - 1].isspace()) else ""
    after = " " if at < len(line) and not line[at].isspace() else ""
    return Splice(at, at, before + new + after)


def _take_out(there: list[Word], key: str, value: str | None) -> None:
    for word in there:
        if word.key != key or word.gone:
            continue
        if value is None or (key not in LISTS and _same(key, word.value, value)):
            word.gone = True
        elif key in LISTS and word.value is not None and (left := _without(word.value, value)) != word.value:
            word.value, word.gone, word.changed = left, not left, True


def _put_in(there: list[Word], fresh: list[Word], key: str, value: str | None) -> None:
    mine = [word for word in (*there, *fresh) if word.key == key and not word.gone]
    if key in LISTS and value:
        for option in _options(value):
            _put_option(there, fresh, key, option)
        return
    if mine and _same(key, mine[-1].value, value):
        return
    _set(there, fresh, key, value)


def _put_option(there: list[Word], fresh: list[Word], key: str, option: str) -> None:
    mine = [word for word in (*there, *fresh) if word.key == key and not word.gone]
    name, entries = _entries(option)
    for word in reversed(mine):
        options = _options(word.value)
        if not name:
            if option in options:
                return
            continue
        hits = [i for i, o in enumerate(options) if _entries(o)[0] == name]
        if hits:  # the last one is in force
            joined = _joined(options[hits[-1]], entries)
            if joined != options[hits[-1]]:
                options[hits[-1]] = joined
                word.value, word.changed = ",".join(options), True
            return
    _set(there, fresh, key, ",".join([*(_options(mine[-1].value) if mine else []), option]))


def _set(there: list[Word], fresh: list[Word], key: str, value: str | None) -> None:
    """Into the last word of that key, else into the place of one that was taken out, else behind all."""
    places = [w for w in (*there, *fresh) if w.key == key and not w.gone] or [w for w in there if w.key == key]
    if places:
        places[-1].value, places[-1].gone, places[-1].changed = value, False, True
    else:
        fresh.append(Word(key, value, 0, 0))


def with_words(line: str, add: Iterable[str], remove: Iterable[str] = ()) -> str:
    return applied(line, splices(line, add, remove))


def applied(text: str, found: Iterable[Splice]) -> str:
    for splice in sorted(found, key=lambda s: (s.start, s.end), reverse=True):
        text = text[: splice.start] + splice.text + text[splice.end :]
    return text


def words_in(cmdline: str, add: Iterable[str], remove: Iterable[str] = ()) -> bool:
    """Does a command line (/proc/cmdline) hold these words as the kernel reads them, and none of those to remove?"""
    return not splices(cmdline, add, remove)


def atoms(line: str) -> Counter[str]:
    """Each word by itself, lists taken apart: `pci=a,config_acs=X@1;Y@2` is three."""
    found: list[str] = []
    for word in words(line):
        if word.key not in LISTS or not word.value:
            found.append(written(word.key, word.value))
            continue
        for option in _options(word.value):
            name, entries = _entries(option)
            found += [f"{word.key}={name}={entry}" for entry in entries] or [f"{word.key}={option}"]
    return Counter(found)
