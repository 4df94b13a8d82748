"""What stands at some paths, files in folders too: as it was kept, as it is, and put back as it was.

In:      paths that a program writes.
Out:     path -> Image; what is absent is not in it. Sockets and devices are left out.
Unknown: more than FILES_MAX names or LARGEST_B bytes: OSError, as a part of it could not be put back.
Raises:  OSError.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

from linkproof.act.doors import FileNow, Machine
from linkproof.act.journal import Image, Journal, Kept

FILES_MAX = 4096
LARGEST_B = 256 << 20

Images = dict[str, Image]


def images(machine: Machine, paths: Iterable[str], of: Callable[[FileNow], Image]) -> Images:
    """of: `journal.keep` to be able to put it back, `image_of` to compare."""
    found: Images = {}
    total_B = 0
    asked = [name for given in paths for name in dict.fromkeys((given, machine.real(given)))]
    for path in _walk(machine, asked):
        kind = machine.kind(path)
        if path in found or kind not in ("file", "folder", "link"):
            continue
        if kind == "file":
            now = machine.file(path)
            if now is None:  # gone while we looked
                continue
            total_B += len(now.data)
            if total_B > LARGEST_B:
                raise OSError(errno.EFBIG, "too much to be kept", path)
            found[path] = of(now)
        elif kind == "link":
            found[path] = Image("link", target=machine.link(path) or "")
        else:
            about = machine.about(path)
            found[path] = Image("folder", mode=stat.S_IMODE(about.st_mode), uid=about.st_uid, gid=about.st_gid)
        if len(found) > FILES_MAX:
            raise OSError(errno.E2BIG, "too many files to be kept", path)
    return found


def _walk(machine: Machine, paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        yield path
        if machine.kind(path) == "folder":
            yield from _walk(machine, (f"{path.rstrip('/')}/{name}" for name in machine.names(path)))


def kept(before: Mapping[str, Image], after: Mapping[str, Image]) -> tuple[Kept, ...]:
    return tuple(Kept(path, before.get(path), after.get(path)) for path in sorted({**before, **after}))


def differing(one: Mapping[str, Image], other: Mapping[str, Image]) -> list[str]:
    return sorted(path for path in {**one, **other} if one.get(path) != other.get(path))


def as_now(image: Image, data: bytes) -> FileNow:
    return FileNow(data, image.mode, image.uid, image.gid, tuple((name, bytes.fromhex(value)) for name, value in image.xattrs))


def put_back(machine: Machine, journal: Journal, before: Mapping[str, Image], now: Mapping[str, Image], paths: Iterable[str]) -> None:
    """Each of the paths as it was. A folder that holds something more by now stays."""
    paths = sorted(paths)
    for path in reversed(paths):  # what stands in a folder goes before it
        was, is_ = before.get(path), now.get(path)
        if is_ is None or (was is not None and was.kind == is_.kind):
            continue
        if is_.kind != "folder":
            machine.unlink(path)
        else:
            with suppress(OSError):
                machine.remove_folder(path)
    for path in paths:
        was = before.get(path)
        if was is None or was == now.get(path):
            continue
        if was.kind == "file":
            machine.replace_file(path, journal.blob(was.blob), as_now(was, b""))
        elif was.kind == "link":
            machine.replace_link(path, was.target)
        else:
            if machine.kind(path) != "folder":
                machine.make_folder(path, was.mode)
            machine.folder_attributes(path, as_now(was, b""))
