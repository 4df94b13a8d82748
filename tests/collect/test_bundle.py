"""A capture: packed without secrets, unpacked to the same answers, refused with words if it is none."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence.drawn import DRAWN
from linkproof.collect.bundle import pack, unpack
from linkproof.collect.evidence import read_evidence
from linkproof.collect.host import Answer, Recorded, Recorder
from linkproof.collect.mask import Mask
from linkproof.collect.sources import SOURCES
from linkproof.errors import InputError

HOST, USER = "gpubox01.corp.example", "alice"
PLANTED = (
    "hf_QwErTyUiOpAsDfGhJkLzXcVb", "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "sk-proj-abcDEF1234567890abcDEF", "AKIAIOSFODNN7EXAMPLE", "nvapi-AbCdEfGhIjKlMnOpQrStUvWx",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N", "bearerBEARER0123456789", "urlpa55word", "hunter2hunter2", "ZGRmZ2hqa2xxd2VydHk",
    "1652822001234", "d3977428-7a30-086b-2e20-5c1eeed647c6", "0c:42:a1:00:11:22", "0002:c903:00a1:b2c4", "gpubox01", "GPUBOX01", "alice",
)  # fmt: skip
DIRTY = f"""Jan 01 00:00:00 gpubox01 kernel: hello alice, GPUBOX01 here
HF_TOKEN={PLANTED[0]}
git clone https://bob:urlpa55word@github.com/x {PLANTED[1]}
{PLANTED[2]} {PLANTED[3]} {PLANTED[4]} token {PLANTED[5]}
Authorization: Bearer bearerBEARER0123456789
PASSWORD=hunter2hunter2
NGC_API_KEY=ZGRmZ2hqa2xxd2VydHk
    Serial Number                         : 1652822001234
GPU UUID : GPU-d3977428-7a30-086b-2e20-5c1eeed647c6
eth0 0c:42:a1:00:11:22
\tnode_guid:\t\t\t0002:c903:00a1:b2c4
alice@gpubox01:~$ /home/alice/run.py
"""
USEFUL = (
    "0000:19:00.0", "Driver Version: 580.65.06", "NCCL_P2P_DISABLE=1", "Xid (PCI:0000:19:00): 79", "intel_iommu=on", "ReqRedir+",
)  # fmt: skip


def texts_of(capture: bytes) -> str:
    """Everything in a capture as a person with it could read it: names, texts, and bytes that are base64 in the manifest."""
    out = []
    with tarfile.open(fileobj=io.BytesIO(capture)) as tar:
        for member in tar:
            f = tar.extractfile(member)
            assert f is not None
            data = f.read()
            out += [member.name, member.uname, member.gname, data.decode()]
            if member.name.endswith("manifest.json"):
                for entry in json.loads(data)["entries"]:
                    out.append(entry["key"])
                    out.append(entry.get("data") or "")
                    out.append(base64.b64decode(entry.get("bytes64", "")).decode("latin-1"))
    return "\n".join(out)


def packed(log: dict[str, Answer]) -> bytes:
    return pack(log, Mask((HOST,), (USER,)), "linkproof 0")


KEYS = [f"file {s.what}" if isinstance(s.what, str) else f"run {' '.join(s.what)}" for s in SOURCES] + ["file env:", "file packages:"]


@pytest.mark.parametrize(
    "key", [*KEYS, "file /home/alice/.nccl.conf", "names /home/alice", "link /home/alice/x", "run cat /home/alice/config"]
)
def test_nothing_planted_in_any_source_gets_into_a_capture(key: str) -> None:
    said = texts_of(packed({key: Answer((DIRTY + " ".join(USEFUL)).encode(), why=f"failed: {DIRTY}")}))
    assert not [p for p in PLANTED if p in said]
    assert not [u for u in USEFUL if u not in said]


def test_a_nul_byte_in_an_output_does_not_carry_it_past_the_mask() -> None:
    said = texts_of(
        packed({"run dmesg": Answer(b"\0" + DIRTY.encode() + b"\xff\0"), "file env:": Answer(DIRTY.replace("\n", "\0").encode())})
    )
    assert not [p for p in PLANTED if p in said]


def test_a_serial_number_in_configuration_space_does_not_leave() -> None:
    config = bytearray(0x200)
    config[0x100:0x10C] = (0x0003 | 1 << 16).to_bytes(4, "little") + b"SERIALNO"
    key = "file /sys/bus/pci/devices/0000:19:00.0/config"
    capture = packed({key: Answer(bytes(config))})
    assert "SERIALNO" not in texts_of(capture)
    assert unpack(capture, "x")[key].data == bytes(config[:0x104]) + bytes(0x200 - 0x104)


_words = st.text(st.sampled_from("abcXYZ019 _-=:;,.\"'\n\t/\\\0é"), max_size=40)


@given(st.lists(st.tuples(_words, st.sampled_from(PLANTED[:6]), _words), max_size=5), st.sampled_from(KEYS))
def test_no_token_between_any_words_gets_into_a_capture(parts: list[tuple[str, str, str]], key: str) -> None:
    said = texts_of(packed({key: Answer("\n".join(f"{a} {secret} {b}" for a, secret, b in parts).encode())}))
    assert not [secret for _, secret, _ in parts if secret in said]


_answers = st.builds(
    Answer, st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=50).map(str.encode)), st.sampled_from(["", "timeout", "denied"]),
    st.integers(-64, 255), st.just(1.25), st.booleans(),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["run a", "file /b", "names /c", "link /d"]), _answers))
def test_what_holds_nothing_to_mask_comes_back_as_it_was(log: dict[str, Answer]) -> None:
    texts = "\n".join(a.text for a in log.values())
    if Mask().text(texts) == texts:
        assert unpack(pack(log, Mask(), "linkproof"), "x") == log


@pytest.mark.parametrize("machine", ["switches-acs-on", "switches-no-root", "one-gpu-in-a-vm"])
def test_a_machine_reads_the_same_from_its_capture(machine: str) -> None:
    recorder = Recorder(DRAWN[machine]())
    live = read_evidence(recorder)
    assert read_evidence(Recorded(unpack(packed(recorder.log), "x"))) == live


def test_the_manifest_alone_is_a_capture_too() -> None:
    log = {"file /proc/cmdline": Answer(b"iommu=pt")}
    with tarfile.open(fileobj=io.BytesIO(packed(log))) as tar:
        member = tar.extractfile("linkproof-capture/manifest.json")
        assert member is not None
        assert unpack(member.read(), "manifest.json") == log


def test_answers_in_another_order_are_the_same_capture() -> None:
    log = {"run b": Answer(b"2"), "run a": Answer(b"1")}
    assert unpack(packed(log), "x") == unpack(packed(dict(reversed(log.items()))), "x")
    assert re.sub(r"\d\dZ", "", texts_of(packed(log))) == re.sub(r"\d\dZ", "", texts_of(packed(dict(sorted(log.items())))))


def tar_of(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def manifest(**fields: Any) -> bytes:
    return json.dumps({"capture": 1, "tool": "x", "time": "", "entries": [], **fields}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"hello", b"{", b"{}", b"\x1f\x8b", gzip.compress(b"hello", mtime=0), tar_of("other.txt", b"x"), tar_of("x/manifest.json", b"not json"), manifest(entries=[{"key": 1}]),
        manifest(capture=2), manifest(entries=[{"key": "a", "data": "", "bytes64": "!"}]), tar_of("manifest.json", manifest())[:-40],
        b'{"capture": 1, "x": ' + b"[" * 200_000, tar_of("manifest.json", manifest())[:60] + b"\0" * 50,
    ],
)  # fmt: skip
def test_what_is_no_capture_is_refused_with_words(data: bytes) -> None:
    with pytest.raises(InputError) as refused:
        unpack(data, "box.tar.gz")
    assert "box.tar.gz" in str(refused.value)


def test_a_path_in_an_archive_is_never_followed() -> None:
    assert unpack(tar_of("../../etc/manifest.json", manifest()), "x") == {}


@given(st.binary(max_size=300))
def test_any_bytes_are_a_capture_or_refused(data: bytes) -> None:
    for tried in (data, b"{" + data, gzip.compress(data)):
        with pytest.raises(InputError):
            unpack(tried, "x")
