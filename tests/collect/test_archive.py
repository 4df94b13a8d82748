"""Archives give their texts and nothing else; one that could do harm gives nothing."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linkproof.collect import archive, layers
from linkproof.collect.archive import SMALL_B, Skipped, Unpack, hidden
from linkproof.collect.layers import kind_of
from linkproof.errors import InputError

LOG = b"NCCL WARN x\n"
PACKERS: list[Callable[[bytes], bytes]] = [bytes, gzip.compress, bz2.compress, lzma.compress]


def leaves(data: bytes, skipped: list[Skipped] | None = None) -> dict[str, bytes]:
    found = Unpack(lambda: io.BytesIO(data), len(data), "a", [] if skipped is None else skipped)
    return {leaf.name: b"".join(leaf.chunks) for leaf in found}


def tar(*members: tuple[str, bytes], **odd: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in odd.items():
                setattr(info, key, value)
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(*members: tuple[str, bytes], mode: int = 0, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            file.writestr(info, data, method)
    return out.getvalue()


def refusal(data: bytes) -> InputError:
    given_out: list[str] = []
    with pytest.raises(InputError) as caught:
        for leaf in Unpack(lambda: io.BytesIO(data), len(data), "a", []):
            given_out.append(leaf.name)
            for _ in leaf.chunks:
                pass
    assert given_out == [] or kind_of(data) != "tar"  # nothing of a refused archive is given
    assert all(caught.value.what) and all(caught.value.means) and all(caught.value.do)
    return caught.value


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("pack", PACKERS)
def test_a_tar_gives_its_files_however_it_is_packed(pack: Callable[[bytes], bytes]) -> None:
    data = pack(tar(("./rank0.log", LOG), ("d/rank1.log", LOG * 2), ("empty", b"")))
    assert leaves(data) == {"a!rank0.log": LOG, "a!d/rank1.log": LOG * 2, "a!empty": b""}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_zip_gives_its_files(method: int) -> None:
    assert leaves(zipped(("d/", b""), ("d/x.log", LOG), ("y", b""), method=method)) == {"a!d/x.log": LOG, "a!y": b""}


@pytest.mark.parametrize("pack", PACKERS[1:])
def test_a_single_compressed_log_keeps_its_name(pack: Callable[[bytes], bytes]) -> None:
    assert leaves(pack(LOG)) == {"a": LOG}
    assert leaves(pack(LOG) + pack(LOG)) == {"a": LOG * 2}  # rotated and joined


@pytest.mark.parametrize("pack", PACKERS[1:])
def test_one_archive_inside_another_is_read(pack: Callable[[bytes], bytes]) -> None:
    assert leaves(tar(("x.gz", pack(LOG)))) == {"a!x.gz": LOG}
    assert leaves(pack(tar(("in.tar", pack(tar(("x", LOG))))))) == {"a!in.tar!x": LOG}
    assert leaves(zipped(("x.gz", pack(LOG)), ("in.zip", zipped(("y", LOG))))) == {"a!x.gz": LOG, "a!in.zip!y": LOG}
    assert leaves(pack(pack(LOG))) == {"a": LOG}


def test_what_is_nested_deeper_is_named_and_not_opened() -> None:
    skipped: list[Skipped] = []
    assert leaves(tar(("in.tar", tar(("deep.gz", gzip.compress(LOG)), ("y", LOG)))), skipped) == {"a!in.tar!y": LOG}
    assert [s.name for s in skipped] == ["a!in.tar!deep.gz"]
    assert leaves(gzip.compress(gzip.compress(gzip.compress(LOG))), skipped) == {}


def test_hidden_members_are_left_out_but_not_nccl_conf() -> None:
    assert leaves(tar((".git/x", LOG), ("._log", LOG), ("home/.nccl.conf", LOG))) == {"a!home/.nccl.conf": LOG}
    assert hidden("a/.b/c") and not hidden("./a/b") and not hidden("..conf")


def test_big_members_come_in_chunks_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "HOLD_B", 20)
    big = LOG * (SMALL_B // len(LOG) + 10)
    data = gzip.compress(tar(("1", LOG), ("2", big), ("3", LOG), ("4", LOG)), 1)
    found = Unpack(lambda: io.BytesIO(data), len(data), "a", [])
    got = [(leaf.name, leaf.data is None, b"".join(leaf.chunks)) for leaf in found]
    assert got == [("a!1", False, LOG), ("a!2", True, big), ("a!3", False, LOG), ("a!4", False, LOG)]


def test_names_cannot_steer_a_terminal() -> None:
    assert list(leaves(tar(("x\x1b[2J.log", LOG)))) == ["a!x\ufffd[2J.log"]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "C:/x", "..\\x", "\\x"])
def test_a_member_that_points_outside_refuses_the_whole_archive(name: str) -> None:
    for data in (tar(("ok", LOG), (name, LOG)), gzip.compress(tar(("ok", LOG), (name, LOG)))):
        error = refusal(data)
        assert error.ref == "archive-refused" and name in error.what[0] and name in error.what[1]


def test_the_same_in_a_zip() -> None:
    assert refusal(zipped(("ok", LOG), ("../x", LOG))).ref == "archive-refused"
    assert refusal(zipped(("ok", LOG), ("link", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777)).ref == "archive-refused"


def test_dots_in_a_name_are_no_way_out() -> None:
    assert leaves(tar(("a..b/x..log", LOG))) == {"a!a..b/x..log": LOG}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"])
def test_links_and_devices_refuse_the_whole_archive(kind: bytes) -> None:
    error = refusal(tar(("ok", b""), ("bad", b""), type=kind, linkname="ok"))
    assert error.ref == "archive-refused" and "`ok`" in error.what[0]


def test_a_name_without_end_is_refused() -> None:
    assert refusal(tar(("x" * 2000, LOG))).ref == "archive-refused"


def test_too_many_members_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MEMBERS", 10)
    many = [(str(i), b"") for i in range(11)]
    assert refusal(tar(*many)).ref == "archive-too-big"
    assert refusal(zipped(*many)).ref == "archive-too-big"
    assert len(leaves(tar(*many[:10]))) == 10


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: tar(("x.gz", gzip.compress(data))), lambda data: zipped(("x", data))])
def test_a_bomb_is_refused_by_its_ratio(pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "FREE_B", 1 << 20)
    error = refusal(pack(bytes(9 << 20)))
    assert error.ref == "archive-too-big"


def test_an_honest_log_passes_at_fifty_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "FREE_B", 1 << 10)
    log = b"".join(b"host%d:12:34 [%d] NCCL INFO Channel 00 : 0 -> 1 via P2P/IPC\n" % (i // 50 * 7919 % 997, i % 8) for i in range(20_000))
    packed = gzip.compress(log)
    assert len(log) > 40 * len(packed)
    assert leaves(packed) == {"a": log}


def test_the_total_is_limited_over_all_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "TOTAL_B", 1 << 20)
    assert refusal(tar(*[(f"{i}.gz", gzip.compress(bytes(300_000))) for i in range(4)])).ref == "archive-too-big"


def test_a_header_that_claims_gigabytes_is_damage_not_memory() -> None:
    data = bytearray(tar(("x" * 200, LOG)))  # a pax header comes first
    data[124:136] = b"77777777777\0"
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:512]) + 8 * 32)
    assert refusal(bytes(data)).ref == "archive-damaged"


def test_a_zip_with_a_huge_table_is_refused_before_it_is_read() -> None:
    data = bytearray(zipped(("x", LOG)))
    end = data.rfind(b"PK\5\6")
    data[end + 12 : end + 16] = (1 << 30).to_bytes(4, "little")
    assert refusal(bytes(data)).ref == "archive-too-big"


def test_a_password_and_an_unknown_method_are_said() -> None:
    data = bytearray(zipped(("x", LOG)))
    for at in (6, data.rfind(b"PK\1\2") + 8):
        data[at] |= 1
    assert "password" in refusal(bytes(data)).what[0]
    assert refusal(zipped(("x", LOG), method=zipfile.ZIP_LZMA)).ref == "archive-unsupported"


@pytest.mark.parametrize("head", [b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\7\1\0", b"\x04\x22\x4d\x18"])
def test_other_packers_are_refused_by_name(head: bytes) -> None:
    assert refusal(head + bytes(600)).ref == "archive-unsupported"


def test_zstd_is_read_where_python_can_and_refused_by_name_elsewhere() -> None:
    packed = bytes.fromhex("28b52ffd200c610000") + LOG  # one raw block
    try:
        import compression.zstd  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        assert "zstd" in refusal(packed).what[0]
    else:
        assert leaves(packed) == {"a": LOG}


# ---------------------------------------------------------------- what is cut


@pytest.mark.parametrize("pack", PACKERS[1:])
def test_a_cut_log_is_used_as_far_as_it_goes(pack: Callable[[bytes], bytes]) -> None:
    log = b"".join(b"line %d of it %d\n" % (i, i * i * 7919 % 10007) for i in range(200_000))
    packed = pack(log)
    skipped: list[Skipped] = []
    (got,) = leaves(packed[: len(packed) * 3 // 4], skipped).values()
    assert log.startswith(got) and len(got) > len(log) // 3
    assert [s.name for s in skipped] == ["a"] and all(skipped[0])


def test_garbage_after_a_log_costs_nothing_before_it() -> None:
    assert leaves(gzip.compress(LOG) + b"garbage") == {"a": LOG}


@pytest.mark.parametrize("pack", PACKERS)
def test_a_cut_tar_is_refused(pack: Callable[[bytes], bytes]) -> None:
    noise = bytes(i * i * 7919 % 251 for i in range(60_000))
    packed = pack(tar(("1", noise), ("2", noise)))
    assert refusal(packed[: len(packed) * 3 // 4]).ref == "archive-damaged"


def test_a_damaged_header_in_the_middle_is_not_the_end() -> None:
    data = bytearray(tar(("1", LOG), ("2", LOG)))
    data[1024 + 100] ^= 0xFF
    assert refusal(bytes(data)).ref == "archive-damaged"


def test_a_damaged_zip_is_refused() -> None:
    data = bytearray(zipped(("x", LOG * 100)))
    data[40] ^= 0xFF
    assert refusal(bytes(data)).ref == "archive-damaged"
    assert refusal(zipped(("x", LOG))[:-30]).ref == "archive-damaged"
    assert refusal(b"\x1f\x8b\x08nothing").ref == "archive-damaged"


def test_a_text_about_bzip2_is_no_archive() -> None:
    assert kind_of(b"BZh is a magic") == "" and kind_of(b"PK\n") == ""


# ---------------------------------------------------------------- hostile bytes

_WHOLE = [
    tar(("1", LOG), ("d/2.gz", gzip.compress(LOG))),
    gzip.compress(tar(("1", LOG * 50))),
    zipped(("1", LOG * 9), ("2", gzip.compress(LOG))),
    lzma.compress(LOG),
    bz2.compress(LOG),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(_WHOLE), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6), st.floats(0, 1))
def test_no_damage_raises_anything_else(whole: bytes, hits: list[tuple[float, int]], cut: float) -> None:
    data = bytearray(whole)
    for at, value in hits:
        data[int(at * (len(data) - 1))] = value
    data = data[: int(len(data) * (0.5 + cut))]
    try:
        total = sum(len(content) for content in leaves(bytes(data)).values())
    except InputError:
        total = 0
    assert total <= 1 << 16
