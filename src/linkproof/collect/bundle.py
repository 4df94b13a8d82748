"""A capture: what a Recorder kept, as one `.tar.gz` that is safe to share. Back again: the log for a Recorded host.

    manifest.json       {"capture": 1, "tool", "time", "entries": [{"key", "file", "why", "code", "took_s", "cut"}]}
    texts/00001-...     the texts again, for people

Masking happens here, before anything is written; configuration space is kept as bytes, without the card's serial number.
Names are chosen by us, so reading needs no path from the archive.
"""

from __future__ import annotations

import base64
import io
import tarfile
import time
import zlib
from collections.abc import Mapping

import msgspec

from linkproof.collect.host import Answer
from linkproof.collect.mask import Mask, without_serial
from linkproof.errors import InputError

MANIFEST = "manifest.json"
FOLDER = "linkproof-capture"
_TOTAL_MAX_B = 512 * 1024 * 1024
_MEMBERS_MAX = 10_000
_FORMAT = 1


class Entry(msgspec.Struct, omit_defaults=True):
    key: str
    data: str | None = None  # text; None: see `why`
    bytes64: str = ""  # raw bytes that are not text
    why: str = ""
    code: int = 0
    took_s: float = 0.0
    cut: bool = False


class Manifest(msgspec.Struct):
    capture: int
    tool: str
    time: str
    entries: list[Entry]


def _entry(key: str, answer: Answer, mask: Mask) -> Entry:
    entry = Entry(mask.text(key), why=mask.text(answer.why), code=answer.code, took_s=round(answer.took_s, 3), cut=answer.cut)
    if answer.data is None:
        return entry
    if key.startswith("file /sys/bus/pci/devices/") and key.endswith("/config"):
        entry.bytes64 = base64.b64encode(without_serial(answer.data)).decode()
        entry.data = ""
    else:
        entry.data = mask.text(answer.data.decode("utf-8", "replace"))
    return entry


def pack(log: Mapping[str, Answer], mask: Mask, tool: str) -> bytes:
    """The capture as bytes of a .tar.gz: one manifest that holds everything, and the command texts beside it for people."""
    entries = [_entry(k, a, mask) for k, a in sorted(log.items())]  # readers work side by side: the order of the log is chance
    manifest = Manifest(_FORMAT, tool, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), entries)
    members = [(MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))]
    for number, entry in enumerate(entries, 1):
        if entry.data and entry.key.startswith(("run ", "env", "file /proc/cmdline", "file /etc/")):
            name = "".join(c if c.isalnum() or c in "-." else "_" for c in entry.key.partition(" ")[2])[:60]
            members.append((f"texts/{number:05d}-{name}.txt", entry.data.encode()))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=6) as tar:
        for name, data in members:
            info = tarfile.TarInfo(f"{FOLDER}/{name}")
            info.size, info.mtime, info.mode = len(data), int(time.time()), 0o644
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def is_capture(path: str) -> bool:
    """A .tar.gz whose first member is a capture's manifest. Never raises; reads the first kilobytes."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            if file.read(2) != b"\x1f\x8b":
                return False
        with tarfile.open(path, mode="r:gz") as tar:
            first = tar.next()
            return first is not None and first.name == f"{FOLDER}/{MANIFEST}"
    except (tarfile.TarError, OSError, EOFError):
        return False


def _refuse(name: str, en: str, zh: str) -> InputError:
    return InputError(
        "not-a-capture",
        (f"{name}: {en}", f"{name}：{zh}"),
        ("this file was not made by `linkproof collect`", "此文件不是 `linkproof collect` 生成的"),
        (
            "make one with `linkproof collect -o FILE`; other texts go to `linkproof explain`",
            "用 `linkproof collect -o FILE` 生成；其他文本请用 `linkproof explain`",
        ),
    )


def unpack(data: bytes, name: str) -> dict[str, Answer]:
    """Bytes of a capture (.tar.gz, or the manifest alone) -> log. Raises InputError."""
    if data[:1] != b"{":
        data = _manifest_of(data, name)
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
        if manifest.capture != _FORMAT:
            raise _refuse(
                name,
                f"capture format {manifest.capture}, this linkproof reads {_FORMAT}",
                f"捕获格式为 {manifest.capture}，本程序只能读取 {_FORMAT}",
            )
        return {
            e.key: Answer(
                None if e.data is None else base64.b64decode(e.bytes64, validate=True) if e.bytes64 else e.data.encode(),
                e.why,
                e.code,
                e.took_s,
                e.cut,
            )
            for e in manifest.entries
        }
    except (msgspec.DecodeError, ValueError, RecursionError) as e:
        raise _refuse(name, f"manifest not readable ({e})", "清单无法读取") from None


def _manifest_of(data: bytes, name: str) -> bytes:
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
            for number, member in enumerate(tar):
                if number > _MEMBERS_MAX or member.offset_data > _TOTAL_MAX_B:
                    break
                if member.isfile() and member.name.rpartition("/")[2] == MANIFEST and member.size <= _TOTAL_MAX_B:
                    f = tar.extractfile(member)
                    return f.read(_TOTAL_MAX_B) if f else b""
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as e:
        raise _refuse(name, f"not a readable .tar.gz ({e})", "不是可读的 .tar.gz") from None
    raise _refuse(name, "no manifest in it", "其中没有清单")
