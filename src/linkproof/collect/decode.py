"""Bytes that people give -> str.

In:      a whole text (`decode`), the chunks of a big one (`recode`), or single lines that a scan kept (`decode_lines`).
Out:     str without NUL.  UTF-8, UTF-16 and UTF-32 (with a BOM, or told by where the NULs are), GB18030, cp1252.
         Mojibake is undone where it can only be that: UTF-8 that was read once as cp1252 or as GBK.
Unknown: a byte that fits no guess becomes U+FFFD; the rest of its line is kept.
Raises:  nothing, whatever the bytes.
Source:  the Unicode standard (BOMs, UTF-8), GB 18030-2022, the cp1252 table; file magics from each format's own specification.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

HEAD_B = 4096  # enough to tell an encoding
_BOMS = ((b"\xff\xfe\0\0", "utf-32-le"), (b"\0\0\xfe\xff", "utf-32-be"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_UTF8_BOM = b"\xef\xbb\xbf"


def wide(head: bytes) -> tuple[str, int]:
    """Codec and length of the BOM of a text with two or four bytes a character; ("", 0) for any other."""
    for bom, codec in _BOMS:
        if head.startswith(bom):
            return codec, len(bom)
    quarters = min(len(head), HEAD_B) // 4
    if quarters < 2:
        return "", 0
    zero = [head[i : quarters * 4 : 4].count(0) / quarters for i in range(4)]  # share of NUL at each place of four bytes
    if zero[2] > 0.9 and zero[3] > 0.9 and zero[0] < 0.1:
        return "utf-32-le", 0
    if zero[0] > 0.9 and zero[1] > 0.9 and zero[3] < 0.1:
        return "utf-32-be", 0
    if min(zero[1], zero[3]) > 0.2 and max(zero[0], zero[2]) < 0.1:
        return "utf-16-le", 0
    if min(zero[0], zero[2]) > 0.2 and max(zero[1], zero[3]) < 0.1:
        return "utf-16-be", 0
    return "", 0


_MAGICS = (  # first bytes, what that is
    (b"\x7fELF", ("a program or a core dump", "程序或核心转储")),
    (b"MZ\x90", ("a Windows program", "Windows 程序")),
    (b"\x89PNG\r\n", ("an image", "图片")),
    (b"\xff\xd8\xff", ("an image", "图片")),
    (b"GIF8", ("an image", "图片")),
    (b"%PDF-", ("a PDF", "PDF 文档")),
    (b"\x93NUMPY", ("a numpy array", "numpy 数组")),
    (b"GGUF", ("model weights", "模型权重")),
    (b"SQLite format 3\0", ("a database", "数据库")),
    (b"\x89HDF\r\n", ("an HDF5 file", "HDF5 文件")),
)
_BINARY = ("binary data, not text", "二进制数据，不是文本")
_CONTROL = bytes(b for b in range(32) if b not in b"\0\t\n\r\x0b\x0c\x08\x07\x1b") + b"\x7f"


def not_text(head: bytes) -> tuple[str, str] | None:
    """What a file is that is no text, told from its first bytes (64 KiB are good); None for a text. ("", "") if all is NUL or blank."""
    for magic, words in _MAGICS:
        if head.startswith(magic):
            return words
    if wide(head[:HEAD_B])[0]:
        return None
    shown = head.replace(b"\0", b"")  # a hole in a log after a crash is no reason to refuse it
    if not shown.strip():
        return "", ""
    if (head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")) or head[4:10] == b'\0\0\0\0{"':
        return ("a pickle or model weights", "pickle 或模型权重")
    control = len(shown) - len(shown.translate(None, _CONTROL))
    return _BINARY if control > max(2, 0.05 * len(shown)) else None


def decode(data: bytes) -> str:
    """A whole text. In one without any line end NUL is the separator (`/proc/PID/environ`), elsewhere it is dirt (a journal
    or kern.log after a crash)."""
    codec, bom_B = wide(data[:HEAD_B])
    text = data[bom_B:].decode(codec, "replace") if codec else _narrow(data.removeprefix(_UTF8_BOM))
    if "\0" in text:
        text = text.replace("\0", "" if "\n" in text else "\n")
    return text if text.isascii() else unmojibake(text)


def decode_lines(lines: Iterable[tuple[int, bytes]]) -> list[tuple[int, str]]:
    """Numbered lines of one text of which others may be missing; what they are written in is told from all of them."""
    numbered = list(lines)
    texts = _each([data for _, data in numbered])
    out = []
    for (no, _), text in zip(numbered, texts, strict=True):
        text = text.replace("\0", "") if "\0" in text else text
        out.append((no, text if text.isascii() else unmojibake(text)))
    return out


def recode(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same chunks, as UTF-8 if they are UTF-16 or UTF-32: a scan looks for ASCII words and for line ends."""
    rest = iter(chunks)
    head = b""
    for chunk in rest:
        head += chunk
        if len(head) >= HEAD_B:
            break
    codec, bom_B = wide(head)
    if not codec:
        if head:
            yield head
        yield from rest
        return
    decoder = getincrementaldecoder(codec)("replace")
    yield decoder.decode(head[bom_B:]).encode("utf-8", "replace")
    for chunk in rest:
        yield decoder.decode(chunk).encode("utf-8", "replace")
    yield decoder.decode(b"", True).encode("utf-8", "replace")


def _narrow(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "\n".join(_each(data.split(b"\n")))


def _each(lines: list[bytes]) -> list[str]:
    """Line by line, because pastes are mixed: one bad line must not change how the others are read."""
    texts: list[str] = []
    bad: list[int] = []
    for i, data in enumerate(lines):
        try:
            texts.append(data.decode())
        except UnicodeDecodeError:
            text = data.decode("utf-8", "replace")
            texts.append(text)
            at = text.index("\ufffd")
            around = text[max(0, at - 4096) : at + 4096]
            whole = sum(1 if c < "\u0800" else 3 for c in around if c > "\x7f" and c != "\ufffd")  # three in order are no accident
            if whole <= around.count("\ufffd"):
                bad.append(i)
    if bad:
        codec = _legacy(b"\n".join(lines[i] for i in bad)[:65536])
        for i in bad:
            texts[i] = lines[i].decode(codec, "replace")
        if codec == "gb18030":  # short GBK words can be valid UTF-8 by accident; then they lie below the CJK planes
            for i, text in enumerate(texts):
                if not text.isascii() and max(text) < "\u0800":
                    texts[i] = lines[i].decode(codec, "replace")
    return texts


def _legacy(data: bytes) -> str:
    """gb18030 if most pairs are everyday hanzi or Chinese punctuation (rows B0-D7 and A1-A3 of GB 2312), else cp1252."""
    foreign = [c for c in data.decode("gb18030", "replace") if c > "\x7f"]
    everyday = 0
    for c in foreign:
        pair = c.encode("gb18030", "replace")
        everyday += len(pair) == 2 and pair[1] >= 0xA1 and (0xB0 <= pair[0] <= 0xD7 or 0xA1 <= pair[0] <= 0xA3)
    return "gb18030" if everyday >= 0.7 * len(foreign) else "cp1252"


# ---------------------------------------------------------------- mojibake

_LEADS = "ÂÃâïãäåæçèé"  # what cp1252 shows for the first byte of a UTF-8 sequence that occurs in logs


@cache
def _twice_encoded() -> tuple[Any, dict[str, bytes]]:
    """The pattern of UTF-8 shown as cp1252, and the byte behind each character. Bytes that cp1252 lacks stay C1 controls."""
    import re2

    trail = [bytes([b]).decode("cp1252", "ignore") or chr(b) for b in range(0x80, 0xC0)]
    byte_of = {c: bytes([0x80 + i]) for i, c in enumerate(trail)} | {chr(b): bytes([b]) for b in range(0xC0, 0x100)}
    t = "[" + "".join(f"\\x{{{ord(c):x}}}" for c in trail) + "]"
    # three-byte hanzi only in pairs: a French `é…”` is what it says
    return re2.compile(f"(?:[ÂÃ]{t}|[âï]{t}{t}|(?:[ãäåæçèé]{t}{t}){{2}})+"), byte_of


def unmojibake(text: str) -> str:
    """`â€˜x â€™` and `鈥榵鈥?` back to quotes. Only runs that are whole UTF-8 sequences in disguise are touched."""
    if any(lead in text for lead in _LEADS):
        pattern, byte_of = _twice_encoded()

        def once(found: Any) -> str:
            run: str = found.group(0)
            try:
                return b"".join(byte_of[c] for c in run).decode()
            except UnicodeDecodeError:
                return run

        text = pattern.sub(once, text).replace("â€\ufffd", "”")
    if "鈥" in text:
        text = "\n".join(_read_as_gbk(line) if "鈥" in line else line for line in text.split("\n"))
    return text


def _read_as_gbk(line: str) -> str:
    """`鈥` is the first two bytes of every curly quote and dash in UTF-8; the third took the next character with it."""
    line = line.replace("鈥\ufffd", "'").replace("鈥?", "'")
    try:
        return line.encode("gb18030").decode()
    except UnicodeError:
        return line
