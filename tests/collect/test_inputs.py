"""What a person names is read whatever it is, or refused in words that help."""

from __future__ import annotations

import gzip
import io
import os
import socket
import tarfile
import threading
from pathlib import Path

import pytest

from linkproof.collect import inputs as module
from linkproof.collect.archive import SMALL_B, Skipped
from linkproof.collect.inputs import Raw, inputs, lines_of
from linkproof.errors import InputError, LinkproofError, NothingToRead

LOG = b"NCCL WARN x\n"
ELF = b"\x7fELF\2\1\1" + bytes(100)


def names(*paths: Path | str, skipped: list[Skipped] | None = None, allow_empty: bool = False) -> list[str]:
    return [raw.name for raw in inputs([str(path) for path in paths], skipped=skipped, allow_empty=allow_empty)]


def error(*paths: Path | str, stdin: bytes = b"") -> LinkproofError:
    with pytest.raises(LinkproofError) as caught:
        list(inputs([str(path) for path in paths], stdin=io.BytesIO(stdin)))
    told = caught.value
    assert all(told.what) and all(told.means) and all(told.do)
    assert told.ref in told.told("en") and told.told("en") != told.told("zh")
    return told


def tarball(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


# ---------------------------------------------------------------- what is read


def test_files_come_in_the_order_given_under_the_names_given(tmp_path: Path) -> None:
    b, a = tmp_path / "b.log", tmp_path / "a.log"
    b.write_bytes(LOG)
    a.write_bytes(LOG * 2)
    got = list(inputs([str(b), str(a)]))
    assert [(raw.name, raw.data, b"".join(raw.chunks())) for raw in got] == [(str(b), LOG, LOG), (str(a), LOG * 2, LOG * 2)]


def test_a_folder_is_walked_in_order_and_names_are_relative_to_it(tmp_path: Path) -> None:
    for name in ("b/2.log", "b/1.log", "a.log", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LOG)
    assert names(tmp_path) == ["a.log", "b/1.log", "b/2.log", "c.txt"]
    assert names(f"{tmp_path}/", tmp_path / "a.log")[0] == f"{tmp_path}/a.log"


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(LOG)
    assert len(names(tmp_path / "a.log", tmp_path / "a.log", tmp_path)) == 1


def test_hidden_files_are_left_out_but_not_nccl_conf_and_not_when_named(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    for name in (".git/log", ".history", ".nccl.conf", "x.log"):
        (tmp_path / name).write_bytes(LOG)
    assert names(tmp_path) == [".nccl.conf", "x.log"]
    assert names(tmp_path / ".history") == [str(tmp_path / ".history")]


def test_a_big_file_comes_in_chunks_and_can_be_read_twice(tmp_path: Path) -> None:
    big = tmp_path / "big.log"
    big.write_bytes(LOG * (SMALL_B // len(LOG) + 1))
    (raw,) = inputs([str(big)])
    assert raw.data is None and raw.head.startswith(LOG)
    assert b"".join(raw.chunks()) == b"".join(raw.chunks()) == big.read_bytes()


def test_standard_input_is_read_small_and_big() -> None:
    (raw,) = inputs(["-", "-"], stdin=io.BytesIO(LOG))
    assert (raw.name, raw.data) == ("<stdin>", LOG)
    big = LOG * (SMALL_B // len(LOG) + 1)
    (raw,) = inputs(["-"], stdin=io.BytesIO(big))
    assert raw.data is None and b"".join(raw.chunks()) == big


def test_an_archive_is_known_by_content_also_from_a_pipe(tmp_path: Path) -> None:
    path = tarball(tmp_path / "sent.txt", ("rank0.log", LOG), ("rank1.log.gz", gzip.compress(LOG)))
    assert names(path) == [f"{path}!rank0.log", f"{path}!rank1.log.gz"]
    assert [raw.name for raw in inputs(["-"], stdin=io.BytesIO(path.read_bytes()))] == ["<stdin>!rank0.log", "<stdin>!rank1.log.gz"]
    report = tmp_path / "nvidia-bug-report.log.gz"
    report.write_bytes(gzip.compress(LOG))
    (raw,) = inputs([str(report)])
    assert (raw.name, raw.data, list(raw.chunks())) == (str(report), LOG, [LOG])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_read_if_named_and_left_out_of_a_folder(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "x.log").write_bytes(LOG)
    skipped: list[Skipped] = []
    assert names(tmp_path, skipped=skipped) == ["x.log"]
    assert [s.name for s in skipped] == ["pipe"]
    writer = threading.Thread(target=pipe.write_bytes, args=(LOG,))
    writer.start()
    assert [raw.data for raw in inputs([str(pipe)])] == [LOG]
    writer.join()


def test_links_are_not_followed_out_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(LOG)
    logs = tmp_path / "logs"
    (logs / "..2026").mkdir(parents=True)
    (logs / "..2026" / "mounted").write_bytes(LOG)
    (logs / "x.log").write_bytes(LOG)
    for link, target in (
        ("out", "../secret"),
        ("outdir", ".."),
        ("again", "x.log"),
        ("here", "."),
        ("mounted", "..2026/mounted"),
        ("gone", "no"),
        ("loop", "loop"),
    ):
        (logs / link).symlink_to(target)
    skipped: list[Skipped] = []
    assert names(logs, skipped=skipped) == ["mounted", "x.log"]
    assert sorted(s.name for s in skipped) == ["gone", "loop", "out", "outdir"]


# ---------------------------------------------------------------- what is left out


def test_in_a_folder_and_in_an_archive_what_is_no_text_is_left_out_and_named(tmp_path: Path) -> None:
    for name, data in (("core", ELF), ("empty", b""), ("blank", b"\n \n"), ("x.log", LOG), ("x.log.gz", gzip.compress(LOG)[:-4])):
        (tmp_path / name).write_bytes(data)
    tarball(tmp_path / "y.tar", ("core", ELF), ("y.log", LOG))
    skipped: list[Skipped] = []
    assert names(tmp_path, skipped=skipped) == ["x.log", "x.log.gz", "y.tar!y.log"]
    assert sorted(s.name for s in skipped) == ["blank", "core", "empty", "x.log.gz", "y.tar!core"]
    assert all(s.en and s.zh for s in skipped)


def test_a_refused_archive_in_a_folder_is_left_out_and_named(tmp_path: Path) -> None:
    tarball(tmp_path / "bad.tgz", ("../x", LOG))
    (tmp_path / "x.log").write_bytes(LOG)
    skipped: list[Skipped] = []
    assert names(tmp_path, skipped=skipped) == ["x.log"]
    assert "../x" in skipped[0].en and "../x" in skipped[0].zh


def test_an_empty_folder_is_fine_if_the_caller_has_observations(tmp_path: Path) -> None:
    assert names(tmp_path, allow_empty=True) == []
    (tmp_path / "screenshot.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    skipped: list[Skipped] = []
    assert names(tmp_path, skipped=skipped, allow_empty=True) == [] and len(skipped) == 1


# ---------------------------------------------------------------- errors


def test_a_missing_path_is_said_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_bytes(LOG)
    told = error(tmp_path / "x.log", tmp_path / "no.log")
    assert (told.ref, told.exit_code) == ("no-such-file", 2) and "no.log" in told.what[0]
    with pytest.raises(InputError):
        next(inputs([str(tmp_path / "x.log"), str(tmp_path / "no.log")]))


@pytest.mark.parametrize("path", ["x.log/y", "a\0b", "x" * 5000])
def test_a_path_that_cannot_be_is_an_input_error(path: str, tmp_path: Path) -> None:
    (tmp_path / "x.log").write_bytes(LOG)
    assert isinstance(error(f"{tmp_path}/{path}"), InputError)


def test_a_file_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.log").write_bytes(LOG)

    def denied(*_args: object, **_more: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    told = error(tmp_path / "x.log")
    assert (told.ref, told.exit_code) == ("permission-denied", 2)
    assert error(tmp_path).ref == "permission-denied"  # nothing else was in the folder


def test_a_disk_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.log").write_bytes(LOG)

    def failing(*_args: object, **_more: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "open", failing)
    assert "Input/output error" in error(tmp_path / "x.log").what[0]


@pytest.mark.parametrize(
    ("data", "ref"),
    [
        (b"", "empty-file"),
        (b"\n\n", "empty-file"),
        (ELF, "not-text"),
        (gzip.compress(b"", mtime=0), "empty-file"),
        (gzip.compress(ELF, mtime=0), "not-text"),
    ],
)
def test_a_file_without_text_is_nothing_to_read(data: bytes, ref: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    for told in (error(tmp_path / "x"), error("-", stdin=data), error(tmp_path)):
        assert isinstance(told, NothingToRead) and (told.ref, told.exit_code) == (ref, 3)


def test_a_folder_without_files_or_text_is_nothing_to_read(tmp_path: Path) -> None:
    assert error(tmp_path).ref == "empty-folder"
    for name in "abcd":
        (tmp_path / name).write_bytes(ELF)
    told = error(tmp_path)
    assert (told.ref, told.exit_code) == ("no-text", 3) and "1 more" in told.what[0]


def test_a_refused_archive_that_was_named_is_an_error(tmp_path: Path) -> None:
    told = error(tarball(tmp_path / "bad.tgz", ("../x", LOG)))
    assert (told.ref, told.exit_code) == ("archive-refused", 2)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no sockets in the file system here")
def test_a_socket_or_device_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        assert error("s").ref == "not-a-file"
    assert error("/dev/zero").ref == "not-a-file"


def test_a_folder_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILES", 2)
    for name in "abc":
        (tmp_path / name).write_bytes(LOG)
    assert error(tmp_path).ref == "folder-too-big"


def test_a_name_cannot_steer_the_terminal(tmp_path: Path) -> None:
    assert "\x1b" not in error(tmp_path / "x\x1b[2J").told("en")
    (tmp_path / "y\x1b[2J").write_bytes(LOG)
    assert names(tmp_path) == ["y\ufffd[2J"]


# ---------------------------------------------------------------- lines


def raw_of(data: bytes, *, big: bool) -> Raw:
    return Raw("x", None if big else data, data[:100], lambda: iter((data,)))


def test_a_small_text_is_given_whole() -> None:
    assert lines_of(raw_of("显存\n".encode("gbk"), big=False), {}) == ("显存\n", 0)


def test_a_big_one_is_reduced_to_the_lines_that_matter() -> None:
    text = "\n".join(f"NCCL WARN 显存 {i}" if i == 5000 else f"line {i}" for i in range(10_000))
    for codec in ("utf-8", "utf-16"):
        lines, total = lines_of(raw_of(text.encode(codec), big=True), {"NCCL WARN": (1, 1)})
        assert total == 10_000 and isinstance(lines, list) and len(lines) < 1000
        assert (5001, "NCCL WARN 显存 5000") in lines and (5002, "line 5001") in lines and (4001, "line 4000") not in lines


def test_a_small_text_of_very_many_lines_is_reduced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINES", 100)
    lines, total = lines_of(raw_of(b"x\n" * 101, big=False), {"NCCL": (0, 0)})
    assert total == 101 and isinstance(lines, list)
