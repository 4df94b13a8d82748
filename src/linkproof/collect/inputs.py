"""What a person names on the command line -> texts, one after the other.

In:      files, folders (walked, sorted), archives and compressed files (told by content), `-` or a pipe.
Out:     `Raw`s: small ones with their bytes, big ones as chunks.  A file that is named twice is read once.
Unknown: in a folder or archive what is empty, binary, special or unreadable is left out and named in `skipped`; so is a link that
         leaves the folder. Hidden files are left out silently, but not `.nccl.conf`.
Raises:  InputError (nothing usable there), NothingToRead (read, and no text in it). Each path is looked at before the first is read.
Source:  POSIX file types.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import IO, BinaryIO, NamedTuple

from linkproof.collect.archive import SMALL_B, Skipped, Unpack, hidden, printable
from linkproof.collect.decode import decode, decode_lines, not_text, recode
from linkproof.collect.layers import READ_B, kind_of, too_big
from linkproof.errors import InputError, LinkproofError, NothingToRead

HEAD_B = 1 << 16
LINES = 100_000  # a text with more lines is reduced by a scan, however few its bytes
FILES = 20_000  # in one folder
PIPED_ARCHIVE_B = 256 << 20  # an archive that comes through a pipe is held in memory
EMPTY = ("empty", "空文件")


class Raw(NamedTuple):
    """One text as it came. The chunks of a pipe or of a member of an archive can be read once, before the next Raw is asked for."""

    name: str
    data: bytes | None  # None: bigger than SMALL_B
    head: bytes
    chunks: Callable[[], Iterator[bytes]]


class _Found(NamedTuple):
    path: str
    name: str
    named: bool  # by the person, not met in a folder
    mode: int = stat.S_IFREG


def inputs(
    paths: Sequence[str], *, stdin: BinaryIO | None = None, skipped: list[Skipped] | None = None, allow_empty: bool = False
) -> Iterator[Raw]:
    """All texts of `paths`.

    skipped      is filled while this runs: name, why in English, why in Chinese
    allow_empty  no text at all is no error (observations alone are enough to go on)
    """
    skipped = [] if skipped is None else skipped
    texts, first_error = 0, None
    for file in _all_of(paths, skipped):
        try:
            for raw in _read(file, stdin, skipped):
                why = not_text(raw.head)
                if why is None:
                    texts += 1
                    yield raw
                else:
                    skipped.append(Skipped(raw.name, *(why if any(why) else EMPTY)))
        except InputError as e:
            if file.named:
                raise
            skipped.append(Skipped(file.name, *e.what))
            first_error = first_error or e
    if not texts and not allow_empty:
        raise first_error or _no_text(paths, skipped)


def lines_of(raw: Raw, anchors: Mapping[str, tuple[int, int]]) -> tuple[str | list[tuple[int, str]], int]:
    """The text of a Raw and how many lines it has: whole if small, else the numbered lines around anchors. 0: not counted."""
    if raw.data is not None and raw.data.count(b"\n") <= LINES:
        return decode(raw.data), 0
    from linkproof.collect.scan import scan

    scanned = scan(recode(raw.chunks()), anchors)
    return decode_lines((line.no, line.data) for line in scanned.lines), scanned.total_lines


# ---------------------------------------------------------------- what there is


def _all_of(paths: Sequence[str], skipped: list[Skipped]) -> list[_Found]:
    found: list[_Found] = []
    seen: set[tuple[int, int]] = set()
    for path in dict.fromkeys(paths):
        if path == "-":
            found.append(_Found(path, "<stdin>", True, stat.S_IFIFO))
            continue
        try:
            status = os.stat(path)  # noqa: PTH116  pathlib costs more than the rest of this file
            if stat.S_ISDIR(status.st_mode):
                mine = list(_folder(path, "" if len(paths) == 1 else printable(path).rstrip("/") + "/", skipped))
            else:
                mine = [(_Found(path, printable(path), True, status.st_mode), status)]
        except (OSError, ValueError) as e:
            raise _unreadable(path, e) from e
        for file, status in mine:
            key = (status.st_dev, status.st_ino)
            if key not in seen or not stat.S_ISREG(status.st_mode):
                seen.add(key)
                found.append(file)
    return found


def _folder(top: str, prefix: str, skipped: list[Skipped]) -> Iterator[tuple[_Found, os.stat_result]]:
    """Files below `top`, sorted by path. Of links only one to a hidden file inside is followed: others inside are met anyway."""
    todo = _entries(top, "")
    count = 0
    while todo:
        path, below = todo.pop()
        name = prefix + printable(below)
        try:
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode):
                todo += _entries(path, below + "/")
                continue
            if stat.S_ISLNK(status.st_mode):
                path, inside = _behind(path, top)
                status = os.lstat(path)
                if inside and not (hidden(inside) and stat.S_ISREG(status.st_mode)):
                    continue
                if not inside:
                    skipped.append(Skipped(name, "a link that leaves the folder", "指向文件夹之外的链接"))
                    continue
        except OSError as e:
            skipped.append(Skipped(name, *_unreadable(name, e).what))
            continue
        if not stat.S_ISREG(status.st_mode):
            skipped.append(Skipped(name, "a socket, pipe or device", "套接字、管道或设备"))
            continue
        count += 1
        if count > FILES:
            raise _too_many(top)
        yield _Found(path, name, False), status


def _entries(folder: str, below: str) -> list[tuple[str, str]]:
    """Path and path below the top of all that is not hidden, last name first."""
    with os.scandir(folder) as entries:
        return sorted(((entry.path, below + entry.name) for entry in entries if not hidden(entry.name)), reverse=True)


def _behind(link: str, top: str) -> tuple[str, str]:
    """Where a link leads, and the path of that below `top` ("" if it is outside)."""
    from pathlib import Path

    try:
        real, root = Path(link).resolve(strict=True), Path(top).resolve()
    except RuntimeError as e:  # a loop, before Python 3.13
        raise OSError("a link that leads to itself") from e
    return str(real), str(real.relative_to(root)) if real.is_relative_to(root) else ""


# ---------------------------------------------------------------- how it is read


def _read(file: _Found, stdin: BinaryIO | None, skipped: list[Skipped]) -> Iterator[Raw]:
    try:
        if file.path == "-":
            import sys

            yield from _piped(stdin or sys.stdin.buffer, file.name, skipped)
        elif stat.S_ISFIFO(file.mode):
            with os.fdopen(os.open(file.path, os.O_RDONLY), "rb") as pipe:
                yield from _piped(pipe, file.name, skipped)
        elif not stat.S_ISREG(file.mode):
            raise _special(file.name)
        else:
            yield from _plain(file, skipped)
    except OSError as e:
        raise _unreadable(file.name, e) from e


def _plain(file: _Found, skipped: list[Skipped]) -> Iterator[Raw]:
    def opened() -> IO[bytes]:
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        return os.fdopen(os.open(file.path, flags | (0 if file.named else getattr(os, "O_NOFOLLOW", 0))), "rb")

    def chunks() -> Iterator[bytes]:
        try:
            with opened() as again:
                while chunk := again.read(READ_B):
                    yield chunk
        except OSError as e:
            raise _unreadable(file.name, e) from e

    with opened() as first:
        status = os.fstat(first.fileno())
        if not stat.S_ISREG(status.st_mode):  # exchanged since it was looked at
            raise _special(file.name)
        head = first.read(HEAD_B)
        if not kind_of(head):
            data = head + first.read(SMALL_B + 1 - len(head))
            small = len(data) <= SMALL_B
            yield Raw(file.name, data if small else None, head, (lambda: iter((data,))) if small else chunks)
            return
    yield from _unpacked(opened, status.st_size, file.name, skipped)


def _piped(pipe: BinaryIO | IO[bytes], name: str, skipped: list[Skipped]) -> Iterator[Raw]:
    data = pipe.read(SMALL_B + 1)
    if kind_of(data[:512]):
        from io import BytesIO

        data += pipe.read(PIPED_ARCHIVE_B + 1 - len(data))
        if len(data) > PIPED_ARCHIVE_B:
            raise too_big(name, f"more than {PIPED_ARCHIVE_B >> 20} MiB through a pipe", f"通过管道传入超过 {PIPED_ARCHIVE_B >> 20} MiB")
        yield from _unpacked(lambda: BytesIO(data), len(data), name, skipped)
    elif len(data) <= SMALL_B:
        yield Raw(name, data, data[:HEAD_B], lambda: iter((data,)))
    else:
        yield Raw(name, None, data[:HEAD_B], lambda: chain((data,), iter(lambda: pipe.read(READ_B), b"")))


def _unpacked(opened: Callable[[], IO[bytes]], size_B: int, name: str, skipped: list[Skipped]) -> Iterator[Raw]:
    for leaf in Unpack(opened, size_B, name, skipped):
        first = next(leaf.chunks, b"")
        chunks = chain((first,), leaf.chunks)
        yield Raw(leaf.name, leaf.data, first[:HEAD_B], lambda chunks=chunks: chunks)  # type: ignore[misc]


# ---------------------------------------------------------------- errors


def _unreadable(path: str, e: OSError | ValueError) -> InputError:
    path = printable(path)
    if isinstance(e, FileNotFoundError | NotADirectoryError):
        return InputError(
            "no-such-file",
            (f"{path} does not exist", f"{path} 不存在"),
            ("nothing was read", "没有读取任何内容"),
            ("check the name; `-` reads what is pasted or piped in", "请检查路径；`-` 表示读取粘贴或管道传入的内容"),
        )
    if isinstance(e, PermissionError):
        return InputError(
            "permission-denied",
            (f"{path} may not be read by this user", f"当前用户无权读取 {path}"),
            ("nothing is known of what it says", "无法得知其中的内容"),
            (
                "read it as a user who may, e.g. `sudo cat FILE | linkproof explain -`",
                "请换有权限的用户读取，例如 `sudo cat 文件 | linkproof explain -`",
            ),
        )
    why = getattr(e, "strerror", None) or str(e)
    return InputError(
        "unreadable",
        (f"{path} cannot be read: {why}", f"无法读取 {path}：{why}"),
        ("nothing is known of what it says", "无法得知其中的内容"),
        ("copy it to a local disk and give the copy", "请拷贝到本地磁盘后再给出"),
    )


def _special(name: str) -> InputError:
    return InputError(
        "not-a-file",
        (f"{name} is a device or socket, not a file", f"{name} 是设备或套接字，不是文件"),
        ("there is no text to read in it", "其中没有可读的文本"),
        ("give a file, a folder, an archive, or `-`", "请给出文件、文件夹、压缩包或 `-`"),
    )


def _too_many(top: str) -> InputError:
    return InputError(
        "folder-too-big",
        (f"{printable(top)} holds more than {FILES:,} files", f"{printable(top)} 中的文件超过 {FILES:,} 个"),
        ("this is probably not a folder of logs; nothing was read", "这多半不是日志文件夹；没有读取任何内容"),
        ("name the folder or the files that hold the logs", "请给出存放日志的文件夹或具体文件"),
    )


def _no_text(paths: Sequence[str], skipped: list[Skipped]) -> LinkproofError:
    means = ("nothing was diagnosed: no text is not the same as no fault", "未作诊断：没有文本不等于没有故障")
    do = (
        "give the log, the terminal output or `dmesg`; pasted text goes through `-`",
        "请给出日志、终端输出或 `dmesg`；粘贴的文本用 `-` 读入",
    )
    if not skipped:
        names = ", ".join(printable(path) for path in paths)
        return NothingToRead("empty-folder", (f"there is no file in {names}", f"{names} 中没有文件"), means, do)
    one = skipped[0]
    if len(skipped) == 1 and (one.en, one.zh) == EMPTY:
        return NothingToRead("empty-file", (f"{one.name} is empty", f"{one.name} 是空文件"), means, do)
    if len(skipped) == 1:
        return NothingToRead("not-text", (f"{one.name} holds no text: {one.en}", f"{one.name} 不是文本：{one.zh}"), means, do)
    some = [(f"{s.name} ({s.en})", f"{s.name}（{s.zh}）") for s in skipped[:3]]
    more = (f" and {len(skipped) - 3} more", f" 等 {len(skipped)} 个") if len(skipped) > 3 else ("", "")
    return NothingToRead(
        "no-text",
        ("no text in " + ", ".join(en for en, _ in some) + more[0], "没有文本：" + "、".join(zh for _, zh in some) + more[1]),
        means,
        do,
    )
