"""`check`, `topo`, `collect`: what a person gets, and what leaves the machine."""

from __future__ import annotations

import json
import os
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from linkproof.cli import main

EVIDENCE = Path(__file__).parent / "evidence"
H200 = str(EVIDENCE / "h200-in-a-vm")
PAIR = EVIDENCE / "h200-nvlink-pair-in-a-vm"


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main([*argv, "--lang", "en"])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize(
    ("machine", "code", "risks"),
    [
        ("switches-acs-on", 1, {"acs_redirect", "iommu_translation"}),
        ("switches-no-root", 1, {"iommu_translation"}),
        ("two-cards-amd-root-complex", 1, {"acs_redirect", "iommu_translation"}),
        ("x8-of-x16", 1, {"pcie_link_error"}),
        ("acs-away-from-gpus", 3, set()),
        ("idle-links", 3, set()),
        ("h200-in-a-vm", 3, set()),
        ("h200-nvlink-pair-in-a-vm", 3, set()),
    ],
)
def test_a_mechanism_that_stands_is_a_risk_and_nothing_else_is(
    machine: str, code: int, risks: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    got, out, _ = said(capsys, "check", "--from", str(EVIDENCE / machine), "--format", "json")
    report = json.loads(out)
    assert got == code and {r["id"] for r in report["risks"]} == risks
    assert report["verdict"] != "healthy", "nothing was measured"
    assert all(any(s["stands"] for s in r["signs"]) for r in report["risks"])


def test_only_a_fault_fails_if_one_asks_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "check", "--from", str(EVIDENCE / "switches-acs-on"), "--fail-on", "fault")[0] == 3


def test_ports_that_need_root_are_named_and_never_called_off(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = said(capsys, "check", "--from", str(EVIDENCE / "switches-no-root"))
    assert "ACS (" in out and "run again as root" in out
    report = json.loads(said(capsys, "check", "--from", str(EVIDENCE / "switches-no-root"), "--format", "json")[1])
    assert {p["smi"] for p in report["paths"] if p["redirects"] is None} == {"PIX"}


def test_a_real_h200_in_a_vm_is_read_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "check", "--from", H200)
    assert code == 3 and "1 x NVIDIA H200" in out and "driver 580.159.04" in out and "nothing was measured" in out
    report = json.loads(said(capsys, "check", "--from", H200, "--format", "json")[1])
    assert report["risks"] == [] and report["paths"] == [], "one GPU has no path to another"


def pair_with(tmp_path: Path, without: tuple[str, ...] = (), link0: dict[str, int] | None = None) -> str:
    """The recorded pair, with other counters of the first link of its first card, or without some sources."""
    manifest = json.loads((PAIR / "manifest.json").read_bytes())
    manifest["entries"] = [e for e in manifest["entries"] if e["key"] not in without]
    for e in manifest["entries"]:
        if e["key"] == "run linkproof-nvml":
            nvml = json.loads(e["data"])
            nvml["gpus"][0]["nvlinks"]["0"].update(link0 or {})
            e["data"] = json.dumps(nvml)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("counts", "code"), [({}, 3), ({"crc_data": 100_000}, 3), ({"crc_flit": 12}, 3), ({"replay": 1}, 1), ({"recovery": 1}, 1)]
)
def test_checksum_counts_of_a_healthy_nvlink_are_no_risk_and_one_replay_or_recovery_is(
    counts: dict[str, int], code: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    got, out, _ = said(capsys, "check", "--from", pair_with(tmp_path, link0=counts), "--format", "json")
    assert got == code and [r["id"] for r in json.loads(out)["risks"]] == ["nvlink_fault"] * (code == 1)


NVML, TOPO_M = "run linkproof-nvml", "run nvidia-smi topo -m"


@pytest.mark.parametrize(
    ("without", "cell", "joined", "plan"),
    [
        ((), "NV18/PHB", (True, 18), "P2P"),
        ((NVML,), "NV18/PHB", (True, 18), "P2P"),
        ((TOPO_M,), "NV18/PHB", (True, 18), "P2P"),
        ((NVML, TOPO_M), "PHB", (None, 0), "unknown"),
    ],
)  # fmt: skip
def test_nvlink_is_told_from_either_source_and_not_read_is_not_none(
    without: tuple[str, ...], cell: str, joined: tuple[bool | None, int], plan: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    at = pair_with(tmp_path, without)
    code, out, _ = said(capsys, "topo", "--from", at)
    row = next(line.split() for line in out.splitlines() if line.startswith("GPU0"))
    assert code == 0 and row == ["GPU0", "X", cell, "PHB"]
    assert ("was not read" in out) is (joined[0] is None)
    (path,) = json.loads(said(capsys, "topo", "--from", at, "--format", "json")[1])["paths"]
    assert (path["smi"], path["nvlink"], path["nvlinks"], path["nccl_default"]) == ("PHB", *joined, plan)


def test_what_nccl_took_on_the_recorded_pair_is_what_is_planned_and_its_healthy_log_accuses_nobody(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two ranks, sums and messages right. P2P/CUMEM is peer access over memory of the virtual memory API."""
    log = (PAIR / "nccl.txt").read_text(encoding="utf-8")
    assert {line.rpartition(" via ")[2] for line in log.splitlines() if " via " in line} == {"P2P/CUMEM"}
    assert "GPU 0-1: P2P: NVLink joins the two" in said(capsys, "topo", "--from", str(PAIR))[1]
    for files in (["nccl.txt"], ["nccl.txt", "nccl_topo.xml"]):
        report = json.loads(said(capsys, "explain", *(str(PAIR / f) for f in files), "--format", "json")[1])
        assert report["verdict"] == "cannot_tell"
        assert [c["id"] for c in report["causes"] if c["class"] == "fabric" or c["confidence"] >= 0.1] == []


def test_a_hidden_tree_still_leads_on_that_pair_where_something_is_slow(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    seen = tmp_path / "seen.yaml"
    seen.write_text("- {check: collective, engine: nccl, result: slow}\n", encoding="utf-8")
    out = said(capsys, "explain", str(PAIR / "nccl_topo.xml"), "--observations", str(seen), "--format", "json")[1]
    assert json.loads(out)["causes"][0]["id"] == "vm_topology_missing"


def test_the_tree_marks_the_ports_that_redirect(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "topo", "--from", str(EVIDENCE / "switches-acs-on"))
    assert code == 0 and "ACS redirects" in out and "PIX*" in out and "IOMMU translates" in out


def test_the_xml_is_xml_with_every_gpu_once(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "topo", "--from", str(EVIDENCE / "switches-acs-on"), "--format", "xml")
    buses = [p.get("busid") for p in ET.fromstring(out).iter("pci") if p.get("class") == "0x030200"]
    assert code == 0 and len(buses) == len(set(buses)) == 8


def test_a_bus_that_nobody_could_read_is_not_called_clean(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The driver still names the GPU; the devices under /sys are hidden, as some containers do it."""
    manifest = json.loads((EVIDENCE / "h200-in-a-vm" / "manifest.json").read_bytes())
    manifest["entries"] = [e for e in manifest["entries"] if "/sys/bus/pci/devices" not in e["key"]]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    code, out, _ = said(capsys, "check", "--from", str(tmp_path))
    assert code == 3 and out.startswith("Cannot tell: the PCI devices could not be read") and "1 x NVIDIA H200" in out
    assert said(capsys, "check", "--from", H200)[1].startswith("Nothing speaks against this machine")


def test_a_variable_that_nobody_reads_is_told_and_a_right_one_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_P2P_DISABL", "1")
    assert "NCCL_P2P_DISABL is no variable that NCCL knows" in said(capsys, "check", "--quick")[1]
    monkeypatch.delenv("NCCL_P2P_DISABL")
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    assert "no variable that NCCL knows" not in said(capsys, "check", "--quick")[1]


def test_no_engine_is_called_at_risk_from_a_cause_that_does_not_lead(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(said(capsys, "check", "--from", H200, "--format", "json")[1])["report"]
    assert report["causes"][0]["confidence"] < 0.1 and report["consumers"] == {}


def test_no_gpu_is_said_and_is_not_health(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"capture": 1, "tool": "t", "time": "", "entries": []}', encoding="utf-8")
    code, out, _ = said(capsys, "check", "--from", str(tmp_path))
    assert code == 3 and "no GPU was found" in out
    assert said(capsys, "topo", "--from", str(tmp_path))[0] == 3


@pytest.mark.parametrize("content", [b"", b"not a capture", b"{}", b'{"capture": 1}', b"\x1f\x8b\x08broken"])
def test_what_is_no_capture_is_refused_with_a_reason(content: bytes, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "x.tar.gz"
    file.write_bytes(content)
    code, _, err = said(capsys, "check", "--from", str(file))
    assert code == 2 and "linkproof collect" in err


def test_a_check_without_a_gpu_to_send_with_says_so_and_is_not_health(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, out, _ = said(capsys, "check")
    assert code == 3 and out.startswith("Cannot tell") and "Nothing could be tested" in out
    assert not list(tmp_path.rglob("routes.json")), "nothing was measured, so nothing is kept"
    report = json.loads(said(capsys, "check", "--format", "json")[1])
    assert report["links"]["links_verified"] == 0 and report["links"]["notes"] and report["verdict"] == "cannot_tell"


def test_options_that_need_traffic_are_refused_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--deep"], ["--force"], ["--plan"], ["--self-test"], ["--pair", "0:1"], ["--mode", "push"], ["--for", "vllm"]):
        for where in (["--quick"], ["--from", H200]):
            code, out, err = said(capsys, "check", *where, *option)
            assert code == 2 and out == "" and f"{option[0]} does nothing beside --quick/--from" in err


def test_this_machine_is_read_in_time_and_a_capture_of_it_says_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_planted0123456789abcdef")
    monkeypatch.setenv("NCCL_P2P_LEVEL", "SYS")
    file = tmp_path / "this.tar.gz"
    code, live, _ = said(capsys, "check", "--quick", "--format", "json")
    assert said(capsys, "collect", "-o", str(file))[0] == 0
    again, replayed, _ = said(capsys, "check", "--from", str(file), "--format", "json")
    assert (again, json.loads(replayed)["risks"]) == (code, json.loads(live)["risks"])
    assert json.loads(replayed)["paths"] == json.loads(live)["paths"]
    with tarfile.open(file) as tar:
        texts = b"".join((tar.extractfile(m) or pytest.fail(m.name)).read() for m in tar if m.isfile())
    assert b"hf_planted" not in texts and b"NCCL_P2P_LEVEL=SYS" in texts
    host = os.uname().nodename.encode()
    assert len(host) < 3 or host == b"localhost" or host not in texts


def test_a_capture_never_overwrites_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "x.tar.gz"
    file.write_bytes(b"mine")
    code, _, err = said(capsys, "collect", "-o", str(file))
    assert code == 2 and file.read_bytes() == b"mine" and "x.tar.gz" in err


def test_explain_takes_a_capture_among_other_texts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("RuntimeError: CUDA error: device-side assert triggered\n", encoding="utf-8")
    file = tmp_path / "this.tar.gz"
    said(capsys, "collect", "-o", str(file))
    code, out, _ = said(capsys, "explain", str(file), str(log), "--format", "json")
    assert code == 3 and {t["name"] for t in json.loads(out)["texts"]} >= {str(log)}
