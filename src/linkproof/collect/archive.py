"""What lies in an archive or a compressed file, read as a stream; nothing is ever written to disk.

In:      a way to open the bytes (twice if need be), their size, a name. What it is, is told by content: gzip, bzip2, xz, zstd
         (Python 3.14 and later), tar, zip, and one of them inside another, once.
Out:     `Leaf`s in the order of the archive: small ones (up to SMALL_B) as bytes, others as chunks that must be read before the next
         leaf is asked for.
Unknown: what is nested deeper is not opened but named in `skipped`; a compressed log that is cut gives what lies before the cut,
         and `skipped` says so.
Raises:  InputError for a member that points outside, a link, a device, a bomb, too many members, a damaged or unknown archive.
         An archive with members is walked to its end before the first leaf is given, so a refused one gives nothing.
Source:  POSIX pax and ustar, PKWARE APPNOTE 6.3.10, RFC 1952; all through tarfile, zipfile, gzip, bz2 and lzma.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from linkproof.collect.layers import (
    MEMBERS,
    RATIO,
    RATIO_OTHER,
    READ_B,
    STREAMS,
    UNUSED,
    Left,
    Part,
    Stream,
    damaged,
    kind_of,
    too_big,
    unpacked,
    unsupported,
)
from linkproof.errors import InputError

SMALL_B = 8 << 20  # a text up to this size is handled in one piece
HOLD_B = 64 << 20  # leaves kept while an archive is checked; what does not fit is read again
NAME = 1024  # characters
NESTED_ZIP_B = 64 << 20  # a zip inside an archive is held in memory: its table is at the end


class Leaf(NamedTuple):
    name: str
    data: bytes | None  # None: big
    chunks: Iterator[bytes]


class Skipped(NamedTuple):
    name: str
    en: str
    zh: str


class Unpack:
    """All leaves of one archive. `open_bytes` gives a new binary file each time; `size_B` is its size."""

    def __init__(self, open_bytes: Callable[[], IO[bytes]], size_B: int, name: str, skipped: list[Skipped]) -> None:
        self._open, self._size_B, self._name, self._skipped = open_bytes, size_B, name, skipped

    def __iter__(self) -> Iterator[Leaf]:
        with self._open() as file:
            if kind_of(file.read(512)) in STREAMS:
                file.seek(0)
                left = Left(self._name)
                inner = self._layer(Stream(file, left, self._name), self._size_B, self._name, left)
                if not kind_of(inner.peek(512)):  # a single compressed text: nothing to check first
                    yield _leaf(self._name, inner)
                    return
        held: dict[int, Leaf] = {}
        room, count = HOLD_B, 0
        for count, (name, stream) in enumerate(self._walk(), 1):
            data = _up_to(stream, SMALL_B + 1)
            if len(data) <= min(SMALL_B, room):
                held[count] = Leaf(name, data, iter((data,)))
                room -= len(data)
            while stream.read(READ_B):  # to its end: damage and bombs show before anything is given
                pass
        if len(held) == count:
            yield from held.values()
            return
        self._skipped = []  # said already
        for n, (name, stream) in enumerate(self._walk(), 1):
            yield held.pop(n) if n in held else _leaf(name, stream)

    def _walk(self) -> Iterator[tuple[str, Stream]]:
        left = Left(self._name)
        with self._open() as file:
            yield from self._inside(Stream(file, left, self._name), self._size_B, self._name, left, 0, file)

    def _inside(
        self, stream: Stream, packed_B: int, name: str, left: Left, depth: int, file: IO[bytes] | None
    ) -> Iterator[tuple[str, Stream]]:
        """The leaves of `stream`. depth: archives around it. file: the same bytes, if one can seek in them."""
        kind = kind_of(stream.peek(512))
        if kind in STREAMS and depth <= 1:
            stream, file = self._layer(stream, packed_B, name, left), None
            if kind_of(stream.peek(512)) not in ("", "tar"):
                yield from self._inside(stream, packed_B, name, left, depth + 1, None)
                return
            kind = kind_of(stream.peek(512))
        if not kind:
            yield name, stream
        elif depth > 1:
            self._skipped.append(Skipped(name, "an archive in an archive in an archive", "压缩包嵌套超过两层"))
        elif kind == "tar":
            yield from self._tar(stream, name, left, depth)
        elif kind == "zip":
            yield from self._zip(file or self._held(stream, left, name), packed_B, name, left, depth)
        else:
            raise unsupported(name, kind)

    def _layer(self, packed: Stream, packed_B: int, name: str, left: Left) -> Stream:
        kind = kind_of(packed.peek(512))

        def cut() -> None:
            self._skipped.append(Skipped(name, "damaged or cut: read up to that place", "损坏或被截断：只读到该处为止"))

        layer = Stream(unpacked(kind, packed, name), left, name, max(packed_B, 1), RATIO.get(kind, RATIO_OTHER), cut)
        if kind_of(layer.peek(512)):
            layer.lenient = None  # half an archive is refused, half a log is used
        return layer

    def _tar(self, stream: Stream, name: str, left: Left, depth: int) -> Iterator[tuple[str, Stream]]:
        import tarfile

        try:
            for info in tarfile.TarFile(fileobj=stream, mode="r", encoding="utf-8", errors="surrogateescape"):  # type: ignore[arg-type]
                left.member()
                _safe(info.name, name)
                if info.issym() or info.islnk():
                    raise refused(name, info.name, "is a link", "是链接")
                if info.issparse() or not (info.isreg() or info.isdir()):
                    raise refused(name, info.name, "is a device, a pipe or another special file", "是设备、管道或其他特殊文件")
                if info.isreg() and not hidden(info.name):
                    shown = f"{name}!{printable(info.name.removeprefix('./'))}"
                    stream.seek(info.offset_data)
                    part = Stream(Part(stream, info.size, shown, name), left, shown)
                    yield from self._inside(part, info.size, shown, left, depth + 1, None)
            if stream.last.strip(b"\0"):  # tarfile takes a header that it cannot read for the end
                raise damaged(name, "")
        except (tarfile.TarError, RecursionError, ValueError, EOFError, OSError, OverflowError) as e:
            raise damaged(name, "") from e

    def _held(self, stream: Stream, left: Left, name: str) -> IO[bytes]:
        from io import BytesIO

        data = _up_to(stream, NESTED_ZIP_B + 1)
        if len(data) > NESTED_ZIP_B:
            raise too_big(name, f"a zip inside an archive above {NESTED_ZIP_B >> 20} MiB", f"嵌套的 zip 超过 {NESTED_ZIP_B >> 20} MiB")
        return BytesIO(data)

    def _zip(self, file: IO[bytes], packed_B: int, name: str, left: Left, depth: int) -> Iterator[tuple[str, Stream]]:
        from stat import S_IFDIR, S_IFMT, S_IFREG
        from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

        if _zip_table_B(file) > MEMBERS * 256:
            raise too_big(name, "its table of members is too long", "成员表过长")
        try:
            with ZipFile(file) as members:
                for info in members.infolist():
                    left.member()
                    _safe(info.filename, name)
                    if S_IFMT(info.external_attr >> 16) not in (0, S_IFREG, S_IFDIR):
                        raise refused(name, info.filename, "is a link or another special file", "是链接或其他特殊文件")
                    if info.is_dir() or hidden(info.filename):
                        continue
                    if info.flag_bits & 1:
                        raise unsupported(name, "zip with a password")
                    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED, ZIP_BZIP2):
                        raise unsupported(name, f"zip with method {info.compress_type}")
                    shown = f"{name}!{printable(info.filename)}"
                    ratio = RATIO_OTHER if info.compress_type == ZIP_BZIP2 else RATIO["zip"]
                    part = Stream(members.open(info), left, shown, min(info.compress_size, packed_B) or 1, ratio)
                    yield from self._inside(part, info.file_size, shown, left, depth + 1, None)
        except (BadZipFile, RuntimeError, NotImplementedError, ValueError, EOFError, OSError, OverflowError) as e:
            raise damaged(name, "") from e


def _zip_table_B(file: IO[bytes]) -> int:
    """Length that a zip gives for its table of members: zipfile reads all of it at once."""
    size_B = file.seek(0, 2)
    file.seek(max(0, size_B - 66_000))
    tail = file.read(66_000)
    file.seek(0)
    longest = 0
    at = tail.rfind(b"PK\5\6")
    while at >= 0:
        length = int.from_bytes(tail[at + 12 : at + 16], "little")
        if length < 0xFFFFFFFF:
            longest = max(longest, length)
        at = tail.rfind(b"PK\5\6", 0, at)
    wide = tail.rfind(b"PK\6\6") if b"PK\6\7" in tail else -1
    return max(longest, int.from_bytes(tail[wide + 40 : wide + 48], "little")) if wide >= 0 else longest


def _up_to(stream: Stream, size: int) -> bytes:
    parts = []
    while size and (data := stream.read(min(size, READ_B))):
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _leaf(name: str, stream: Stream) -> Leaf:
    data = _up_to(stream, SMALL_B + 1)
    if len(data) <= SMALL_B:
        return Leaf(name, data, iter((data,)))

    def chunks() -> Iterator[bytes]:
        yield data
        while more := stream.read(READ_B):
            yield more

    return Leaf(name, None, chunks())


# ---------------------------------------------------------------- names


def printable(name: str) -> str:
    """A file name as it can be shown: no control characters (they could steer a terminal), no half characters."""
    return name if name.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in name)


def hidden(name: str) -> bool:
    """`.git/x` and `._log`, but not `.nccl.conf`."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    return any(part.startswith(".") for part in parts[:-1]) or bool(parts and parts[-1].startswith(".") and not parts[-1].endswith(".conf"))


def _safe(member: str, archive: str) -> None:
    name = member.replace("\\", "/")
    if name.startswith("/") or name[1:3] == ":/":
        raise refused(archive, member, "has an absolute name", "使用绝对路径")
    if ".." in name.split("/"):
        raise refused(archive, member, "points outside of the archive", "指向压缩包之外")
    if len(name) > NAME:
        raise refused(archive, member[:80] + "...", "has a name without end", "名称过长")


# ---------------------------------------------------------------- errors


def refused(archive: str, member: str, en: str, zh: str) -> InputError:
    member = printable(member)
    return InputError(
        "archive-refused",
        (f"{archive} is refused: its member `{member}` {en}", f"拒绝读取 {archive}：成员 `{member}` {zh}"),
        (
            "an archive of logs holds plain files only; this one could reach other files; " + UNUSED[0],
            "日志压缩包只应包含普通文件，此包可能触及其他文件；" + UNUSED[1],
        ),
        ("unpack it yourself where it can do no harm, then give the log files", "请在安全的地方自行解压，再给出日志文件"),
    )
