"""NVML asked in a child: with a binding made of Python, and with the real binding over a library built here."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from linkproof import proc
from linkproof.collect.nvml import ask_nvml
from linkproof.model import Event, Gpu, PeerAccess
from linkproof.parse import read
from linkproof.parse.clean import clean

STUB = Path(__file__).with_name("nvml_stub.c")


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__("Not Supported" if value == 3 else "GPU is lost")
        self.value = value


class Binding(SimpleNamespace):
    """A pynvml of two cards. What is not here is what an old driver or binding lacks."""

    NVMLError, NVML_ERROR_NOT_SUPPORTED = NVMLError, 3
    NVML_NVLINK_MAX_LINKS = 2
    down = False

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None:
        self.down = True

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"470.82.01"

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return 100 + index

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "GPU"

    def nvmlDeviceGetPciInfo(self, handle: int) -> Any:
        return SimpleNamespace(busId=b"00000000:19:00.0")

    def nvmlDeviceGetTotalEccErrors(self, handle: int, kind: int, since: int) -> int:
        raise NVMLError(3)

    def nvmlDeviceGetRemappedRows(self, handle: int) -> tuple[int, int, int, int]:
        return (0, 2, 0, 1)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[int]:
        return [1, 2, 3]

    def nvmlDeviceGetP2PStatus(self, one: int, other: int, cap: int) -> int:
        return 0 if cap == 0 else 77

    def nvmlDeviceGetNvLinkState(self, handle: int, link: int) -> int:
        raise NVMLError(3)

    def nvmlDeviceGetGpuFabricInfo(self, handle: int, info: Any) -> int:
        assert ctypes.sizeof(info._obj) == 28  # nvml.h: 16 bytes of UUID; bindings up to 13.610 have 80
        ctypes.memset(info, 0, 28)
        ctypes.memset(ctypes.addressof(info._obj) + 24, 3, 1)
        return 0


@pytest.fixture
def binding(monkeypatch: pytest.MonkeyPatch) -> Binding:
    made = Binding()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


def test_a_card_says_what_it_has_and_leaves_out_what_it_does_not_offer(binding: Binding) -> None:
    said = ask_nvml()
    assert said["gpus"][1] == {
        "index": 1, "name": "GPU", "pci": "00000000:19:00.0", "rows_remapped_uncorrectable": 2, "remap_failed": True, "processes": 3,
        "fabric": {"state": 3, "status": 0},
    }  # fmt: skip
    assert said["driver"] == "470.82.01" and binding.down
    assert json.loads(json.dumps(said)) == said


def test_the_newer_call_for_the_fabric_is_asked_first(binding: Binding) -> None:
    def newer(handle: int, info: Any) -> int:
        if handle == 100:
            raise NVMLError(3)  # then the older one
        assert ctypes.sizeof(info._obj) == 36 and info._obj.version == 0x2000024
        ctypes.memset(ctypes.addressof(info._obj) + 28, 2, 1)
        return 0

    binding.nvmlDeviceGetGpuFabricInfoV = newer
    assert [g["fabric"]["state"] for g in ask_nvml()["gpus"]] == [3, 2]


def test_what_the_binding_lacks_is_an_error_and_not_supported_is_none(binding: Binding) -> None:
    errors = ask_nvml()["errors"]
    assert "AttributeError" in errors["gpu0.memory"] and "AttributeError" in errors["cuda"]
    assert "gpu0.ecc" not in errors and not [name for name in errors if "nvlink" in name or name == ""]


def test_a_status_of_peer_access_that_is_not_known_is_u(binding: Binding) -> None:
    p2p = ask_nvml()["p2p"]
    assert p2p["read"] == {"0-1": "OK", "1-0": "OK"} and p2p["write"] == {"0-1": "U", "1-0": "U"}


def test_a_binding_without_peer_access_still_tells_of_the_cards(binding: Binding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Binding, "nvmlDeviceGetP2PStatus")
    said = ask_nvml()
    assert len(said["gpus"]) == 2 and said["p2p"]["read"] == {}


def test_a_lost_card_leaves_the_others(binding: Binding, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_: Any, index: int) -> int:
        if index == 0:
            raise NVMLError(15)
        return 101

    monkeypatch.setattr(Binding, "nvmlDeviceGetHandleByIndex", lost)
    said = ask_nvml()
    assert [g["index"] for g in said["gpus"]] == [1] and said["errors"]["gpu0"] == "GPU is lost"


def test_no_binding_and_no_driver_say_why(binding: Binding, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: Any) -> None:
        raise NVMLError(9)

    monkeypatch.setattr(Binding, "nvmlInit", none)
    assert ask_nvml() == {"error": "GPU is lost"}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert ask_nvml()["error"].startswith("nvidia-ml-py is not installed")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or importlib.util.find_spec("pynvml") is None:
        pytest.skip("needs a C compiler and nvidia-ml-py: pip install nvidia-ml-py")
    folder = tmp_path_factory.mktemp("nvml")
    how = [
        compiler,
        "-shared",
        "-fPIC",
        "-Wall",
        "-Werror",
        "-Wl,-soname,libnvidia-ml.so.1",
        "-o",
        str(folder / "libnvidia-ml.so.1"),
        str(STUB),
    ]
    subprocess.run(how, check=True, timeout=60)
    return str(folder)


def child(library: str, deadline_s: float = 60, **env: str) -> proc.Done:
    path = os.pathsep.join(p for p in sys.path if p)
    return proc.run(
        (sys.executable, "-m", "linkproof.collect.nvml"), deadline_s=deadline_s, env={"LD_LIBRARY_PATH": library, "PYTHONPATH": path, **env}
    )


def test_the_real_binding_over_a_real_library_is_read_to_facts(library: str) -> None:
    done = child(library)
    assert done.code == 0 and done.out is not None
    said = json.loads(done.out)
    assert [g["pci"] for g in said["gpus"]] == ["00000000:1A:00.0", "00000000:1B:00.0", "00000000:1D:00.0"]
    assert said["gpus"][0]["fabric"] == {"state": 2, "status": 0}  # not a crash: a pointer was passed
    assert said["gpus"][1]["nvlinks"] == {"0": {"active": True}, "1": {"active": False}} and "nvlinks" not in said["gpus"][2]
    assert said["p2p"]["read"]["0-1"] == "OK" and said["p2p"]["read"]["0-3"] == "CNS" and said["errors"]["gpu2"] == "GPU is lost"
    facts = read(clean("NVML", done.out.decode()))
    assert {f.kind for f in facts if isinstance(f, Event)} >= {"gpu_fell_off", "nvlink_down", "link_downgraded", "fabric_not_ready"}
    assert {f.fact for f in facts if isinstance(f, Gpu)} >= {"mixed_models", "bar1_smaller_than_vram", "nvlink_errors"}
    assert {(f.claimed, f.status) for f in facts if isinstance(f, PeerAccess)} == {("some", "CNS")}


def test_a_driver_that_does_not_fit_is_said(library: str) -> None:
    done = child(library, NVML_STUB_INIT="18")
    assert [f.kind for f in read(clean("NVML", (done.out or b"").decode())) if isinstance(f, Event)][:1] == ["driver_mismatch"]


def test_nvml_that_hangs_ends_at_the_deadline(library: str) -> None:
    t0 = time.monotonic()
    done = child(library, deadline_s=2.0, NVML_STUB_HANG="1")
    assert done.why == "timeout" and time.monotonic() - t0 < 8
