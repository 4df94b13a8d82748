"""One layer of packed bytes: what it is, and its content as a stream that cannot grow without limit.

In:      any source of bytes that has `read(size)`; a codec that `kind_of` told from the first bytes.
Out:     `Stream`: forward only, peek, read, tell, seek; it counts what comes out.
Unknown: a codec that this Python lacks (zstd before 3.14) and one that nothing here reads (7z, rar, lz4) are refused by name.
Raises:  InputError for damage, for a layer that unpacks to too much, for an unknown codec.
Source:  RFC 1952, RFC 8878, the bzip2 and xz format pages, POSIX ustar; through gzip, bz2, lzma and compression.zstd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from linkproof.errors import InputError

TOTAL_B = 4 << 30  # out of one archive, all layers together
FREE_B = 64 << 20  # no ratio is asked for below this
RATIO = {"gzip": 200, "zip": 200}  # a repetitive log reaches 50 with deflate; its own limit is 1032
RATIO_OTHER = 1000  # bzip2, xz and zstd get further with honest logs
MEMBERS = 20_000
CHUNK_B = 1 << 16
READ_B = 1 << 20  # nobody asks for more at once, but a header that lies about its length
XZ_MEMORY_B = 256 << 20  # xz -9 needs 65 MiB

_MAGICS = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\3\4", "zip"),
    (b"PK\5\6", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\7", "rar"),
    (b"\x04\x22\x4d\x18", "lz4"),
)
STREAMS = ("gzip", "bzip2", "xz", "zstd")


def kind_of(head: bytes) -> str:
    """What 512 bytes are the start of; "" for no archive."""
    for magic, kind in _MAGICS:
        if head.startswith(magic) and (kind != "bzip2" or head[4:10] in (b"1AY&SY", b"\x17rE8P\x90")):
            return kind
    return "tar" if head[257:262] == b"ustar" else ""


class Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Left:
    """What may still come out of one archive, over all its layers."""

    def __init__(self, name: str) -> None:
        self.name, self.total_B, self.members = name, 0, 0

    def member(self) -> None:
        self.members += 1
        if self.members > MEMBERS:
            raise too_big(self.name, f"more than {MEMBERS:,} members", f"成员超过 {MEMBERS:,} 个")


class Stream:
    """One layer, forward only: what tarfile needs of a file and no more."""

    def __init__(
        self,
        source: Source,
        left: Left,
        name: str,
        packed_B: int = 0,
        ratio: int = 0,
        lenient: Callable[[], None] | None = None,
    ) -> None:
        self._source, self._left, self._name, self.lenient = source, left, name, lenient
        self._most_B = max(FREE_B, ratio * packed_B) if ratio else 0
        self._ahead, self._at, self._ended, self._came_B = b"", 0, False, 0
        self.last = b""  # what the latest `read` gave

    def _more(self) -> bytes:
        if self._ended:
            return b""
        try:
            data = self._source.read(CHUNK_B)
        except InputError:
            raise
        except Exception as e:  # zlib.error, EOFError, LZMAError, BadZipFile, OSError: each codec has its own words for "damaged"
            if self.lenient is None or not self._came_B:
                raise damaged(self._left.name, self._name) from e
            self.lenient()
            data = b""
        self._ended = not data
        self._came_B += len(data)
        if self._most_B:  # a layer that unpacks, not a window on one
            self._left.total_B += len(data)
            if self._came_B > self._most_B:
                times = f"{self._most_B >> 20:,} MiB"
                raise too_big(self._left.name, f"{self._name} unpacks to more than {times}", f"{self._name} 解压后超过 {times}")
            if self._left.total_B > TOTAL_B:
                raise too_big(self._left.name, f"it unpacks to more than {TOTAL_B >> 30} GiB", f"解压后超过 {TOTAL_B >> 30} GiB")
        return data

    def peek(self, size: int) -> bytes:
        while len(self._ahead) < size and (data := self._more()):
            self._ahead += data
        return self._ahead[:size]

    def read(self, size: int) -> bytes:
        if not 0 <= size <= READ_B:
            raise damaged(self._left.name, self._name)
        parts, wanted = [], size
        while wanted:
            data = self._ahead or self._more()
            if not data:
                break
            parts.append(data[:wanted])
            self._ahead = data[wanted:]
            wanted -= len(parts[-1])
        out = b"".join(parts)
        self._at += len(out)
        self.last = out
        return out

    def tell(self) -> int:
        return self._at

    def seek(self, to: int) -> None:
        if to < self._at:
            raise damaged(self._left.name, self._name)
        while self._at < to and self.read(min(READ_B, to - self._at)):
            pass


class Part:
    """`size_B` bytes of a layer from here on."""

    def __init__(self, stream: Stream, size_B: int, name: str, archive: str) -> None:
        self._stream, self._left_B, self._name, self._archive = stream, size_B, name, archive

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left_B, READ_B))
        self._left_B -= len(data)
        if not data and self._left_B:
            raise damaged(self._archive, self._name)
        return data


class _Xz:
    """Like lzma.LZMAFile, but with a limit to the dictionary that a header may ask for."""

    def __init__(self, packed: Source) -> None:
        self._packed, self._decoder, self._input = packed, self._fresh(), b""

    @staticmethod
    def _fresh() -> Any:
        from lzma import FORMAT_XZ, LZMADecompressor

        return LZMADecompressor(FORMAT_XZ, memlimit=XZ_MEMORY_B)

    def read(self, size: int) -> bytes:
        while True:
            if self._decoder.eof:  # xz files may be joined, with zeros between
                rest = self._decoder.unused_data.lstrip(b"\0") or self._packed.read(CHUNK_B).lstrip(b"\0")
                if not rest:
                    return b""
                self._decoder, self._input = self._fresh(), rest
            elif self._decoder.needs_input and not self._input:
                self._input = self._packed.read(CHUNK_B)
                if not self._input:
                    raise EOFError
            data: bytes = self._decoder.decompress(self._input, size)
            self._input = b""
            if data:
                return data


class _ReadOne:
    """`read1` of a codec's file: what came before a cut is not lost with it."""

    def __init__(self, file: Any) -> None:
        self.read = file.read1


def unpacked(kind: str, packed: Any, archive: str) -> Source:
    if kind == "gzip":
        from gzip import GzipFile

        return _ReadOne(GzipFile(fileobj=packed, mode="rb"))
    if kind == "bzip2":
        from bz2 import BZ2File

        return _ReadOne(BZ2File(packed, "rb"))
    if kind == "xz":
        return _Xz(packed)
    try:
        from importlib import import_module

        return _ReadOne(import_module("compression.zstd").ZstdFile(packed, "rb"))
    except ImportError:
        raise unsupported(archive, "zstd") from None


# ---------------------------------------------------------------- errors

UNUSED = ("nothing of it was used", "其中的内容一律未使用")


def too_big(archive: str, en: str, zh: str) -> InputError:
    return InputError(
        "archive-too-big",
        (f"{archive} is refused: {en}", f"拒绝读取 {archive}：{zh}"),
        ("it looks like an archive made to exhaust memory or disk; " + UNUSED[0], "它像是用来耗尽内存或磁盘的压缩包；" + UNUSED[1]),
        ("unpack it yourself and give the log file that matters", "请自行解压，只给出相关的日志文件"),
    )


def damaged(archive: str, member: str) -> InputError:
    at = f" at `{member}`" if member and member != archive else ""
    return InputError(
        "archive-damaged",
        (f"{archive} is damaged or cut short{at}", f"{archive} 已损坏或不完整{at.replace(' at ', '，位于 ')}"),
        ("the archive cannot be read to its end; " + UNUSED[0], "压缩包无法完整读取；" + UNUSED[1]),
        ("copy it again, or unpack what can be unpacked and give that", "请重新拷贝，或解压能解压的部分后再给出"),
    )


def unsupported(archive: str, kind: str) -> InputError:
    return InputError(
        "archive-unsupported",
        (f"{archive} is packed in a way that is not read here: {kind}", f"{archive} 的压缩方式不支持：{kind}"),
        (UNUSED[0], UNUSED[1]),
        ("unpack it and give the log files, or pack them as .tar.gz or .zip", "请解压后给出日志文件，或改用 .tar.gz、.zip 打包"),
    )
