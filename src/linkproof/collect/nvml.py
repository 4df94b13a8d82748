"""What NVML says, as one JSON text: `python -m linkproof.collect.nvml`. Run in a child with a deadline: a sick driver can hang NVML.

Every value that a card does not offer is left out; every error is a word in `errors`. Nothing is set, nothing is reset.
Source: nvidia-ml-py; the P2P index is passed as a number since the constant of some releases is a tuple.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any

P2P_CAPS = {"read": 0, "write": 1, "nvlink": 2, "atomics": 3}
P2P_STATUS = {0: "OK", 1: "CNS", 2: "GNS", 3: "TNS", 4: "DR", 5: "NS"}
LINK_COUNTERS = {"replay": 0, "recovery": 1, "crc_flit": 2, "crc_data": 3}
NVLINKS_MAX = 18


class _Asker:
    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml
        self.errors: dict[str, str] = {}

    def ask(self, name: str, function: str, *args: Any) -> Any:
        """The answer, or None: not supported by the card, or an error that is kept under `name` ("": not kept)."""
        try:
            value = getattr(self.nvml, function)(*args)
        except self.nvml.NVMLError as e:
            if name and getattr(e, "value", None) != self.nvml.NVML_ERROR_NOT_SUPPORTED:
                self.errors[name] = str(e)
            return None
        except Exception as e:  # a function that this driver or binding lacks; a newer binding over an older library has errors of its own
            if name:
                self.errors[name] = f"{type(e).__name__}: {e}"
            return None
        return _text(value)


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _gpu(a: _Asker, index: int, handle: Any) -> dict[str, Any]:
    n, name = a.nvml, f"gpu{index}"

    def ask(what: str, function: str, *args: Any) -> Any:
        return a.ask(f"{name}.{what}", function, handle, *args)

    memory, bar1 = ask("memory", "nvmlDeviceGetMemoryInfo"), ask("bar1", "nvmlDeviceGetBAR1MemoryInfo")
    pci = ask("pci", "nvmlDeviceGetPciInfo")
    remaps, mig = ask("remaps", "nvmlDeviceGetRemappedRows"), ask("mig", "nvmlDeviceGetMigMode")
    compute = ask("processes", "nvmlDeviceGetComputeRunningProcesses")
    uncorrected, since_ever = getattr(n, "NVML_MEMORY_ERROR_TYPE_UNCORRECTED", 1), getattr(n, "NVML_AGGREGATE_ECC", 1)
    out = {
        "index": index,
        "name": ask("name", "nvmlDeviceGetName"),
        "pci": _text(getattr(pci, "busId", None)),
        "memory_B": getattr(memory, "total", None),
        "bar1_B": getattr(bar1, "bar1Total", None),
        "ecc_uncorrected": ask("ecc", "nvmlDeviceGetTotalEccErrors", uncorrected, since_ever),
        "rows_remapped_uncorrectable": remaps[1] if remaps else None,
        "remap_failed": bool(remaps[3]) if remaps else None,
        "mig": mig[0] if mig else None,
        "display": ask("display", "nvmlDeviceGetDisplayMode"),
        "virtualization": ask("virtualization", "nvmlDeviceGetVirtualizationMode"),
        "pcie_generation": ask("gen", "nvmlDeviceGetCurrPcieLinkGeneration"),
        "pcie_generation_max": ask("gen_max", "nvmlDeviceGetMaxPcieLinkGeneration"),
        "pcie_width": ask("width", "nvmlDeviceGetCurrPcieLinkWidth"),
        "pcie_width_max": ask("width_max", "nvmlDeviceGetMaxPcieLinkWidth"),
        "pcie_replays": ask("replays", "nvmlDeviceGetPcieReplayCounter"),
        "processes": len(compute) if compute is not None else None,
        "sm_clock_MHz": ask("clock", "nvmlDeviceGetClockInfo", getattr(n, "NVML_CLOCK_SM", 1)),
        "nvlinks": _links(a, handle),
        "fabric": _fabric(a, name, handle),
    }
    return {k: v for k, v in out.items() if v is not None}


def _links(a: _Asker, handle: Any) -> dict[str, dict[str, Any]] | None:
    """Link number -> state and counters; None if the card has no NVLink."""
    out = {}
    for link in range(getattr(a.nvml, "NVML_NVLINK_MAX_LINKS", NVLINKS_MAX)):
        state = a.ask("", "nvmlDeviceGetNvLinkState", handle, link)
        if state is None:
            continue
        entry: dict[str, Any] = {"active": bool(state)}
        for word, counter in LINK_COUNTERS.items():
            if value := a.ask("", "nvmlDeviceGetNvLinkErrorCounter", handle, link, counter):
                entry[word] = value
        out[str(link)] = entry
    return out or None


class _Fabric(ctypes.Structure):
    """nvmlGpuFabricInfo_t of nvml.h. The binding's own has 80 bytes for the 16 of the UUID, and finds the state where there is none."""

    _fields_ = (("cluster", ctypes.c_uint8 * 16), ("status", ctypes.c_uint), ("clique", ctypes.c_uint32), ("state", ctypes.c_uint8))


class _FabricV2(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint), *_Fabric._fields_, ("health", ctypes.c_uint32))


def _fabric(a: _Asker, name: str, handle: Any) -> dict[str, Any] | None:
    """State of the NVSwitch fabric: 0 not supported, 1 not started, 2 in progress, 3 completed. The older call goes with CUDA 14."""
    newer = _FabricV2(version=ctypes.sizeof(_FabricV2) | 2 << 24)
    for info, call in ((newer, "nvmlDeviceGetGpuFabricInfoV"), (_Fabric(), "nvmlDeviceGetGpuFabricInfo")):
        last = call == "nvmlDeviceGetGpuFabricInfo"
        if not hasattr(a.nvml, call):
            continue
        # the binding passes on what it gets, and NVML writes through a pointer: the structure itself would crash it
        if a.ask(f"{name}.fabric" if last else "", call, handle, ctypes.byref(info)) is not None:
            return {"state": int(info.state), "status": int(info.status)}
    return None


def _pairs(a: _Asker, handles: list[Any]) -> dict[str, dict[str, str]]:
    out: dict[str, dict[str, str]] = {}
    there = [(i, h) for i, h in enumerate(handles) if h is not None]
    for word, cap in P2P_CAPS.items():
        pairs = out.setdefault(word, {})
        for i, one in there:
            for j, other in there:
                status = a.ask(f"p2p.{word}.{i}-{j}", "nvmlDeviceGetP2PStatus", one, other, cap) if i != j else None
                if status is not None:
                    pairs[f"{i}-{j}"] = P2P_STATUS.get(int(status), "U")
    return out


def ask_nvml() -> dict[str, Any]:
    """Everything, or {"error": why} if NVML cannot be used at all."""
    try:
        import pynvml
    except ImportError as e:
        return {"error": f"nvidia-ml-py is not installed ({e})"}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as e:
        return {"error": str(e)}
    a = _Asker(pynvml)
    try:
        count = a.ask("count", "nvmlDeviceGetCount") or 0
        handles = [a.ask(f"gpu{i}", "nvmlDeviceGetHandleByIndex", i) for i in range(count)]
        return {
            "driver": a.ask("driver", "nvmlSystemGetDriverVersion"),
            "cuda": a.ask("cuda", "nvmlSystemGetCudaDriverVersion_v2"),
            "gpus": [_gpu(a, i, h) for i, h in enumerate(handles) if h is not None],
            "p2p": _pairs(a, handles),
            "errors": a.errors,
        }
    finally:
        a.ask("", "nvmlShutdown")


if __name__ == "__main__":
    print(json.dumps(ask_nvml()))
