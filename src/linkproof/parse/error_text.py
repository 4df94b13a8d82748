"""What torch, Triton, NVML and their neighbours say when devices, drivers or libraries do not fit, with or without a traceback.

In:      single messages anywhere in a line: mixed devices, sampling from broken probabilities, an index out of range on the CPU,
         kernels launched for another device, fork after CUDA, NCCL symbols and library files, MIG names, driver and runtime versions.
Out:     Event of the kinds named in `RULES`; `several_nccl` when one text names NCCL libraries of two folders or two NCCL packages;
         `driver_mismatch` when it names `libcuda.so` of two driver versions.  value: devices, symbol, versions or words.
Unknown: a plugin (`libnccl-net.so`), a link and its target in one folder, or one package named twice are no second NCCL.
Raises:  nothing.  Errors that have a CUDA number are cuda_error's, ends of processes process_end's, limits of a model model_text's.
Source:  torch 1.0 .. 2.15 (TensorIterator, Copy.cu, multiprocessing), Triton `launcher`, CuPy, NVML `nvmlErrorString`, bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Source, Text
from linkproof.parse.rules import LINE_MAX, Match, Rule, anchors_of, distinct, event, run, rx, source

_DEVICES = r"\b(?:cuda|hip|xpu|mps|meta):?\d{0,3}\b|\bcpu\b|\bGPU ?\d{1,3}\b"


def _two_devices(_found: Match | None, where: Source, rank: int | None) -> Fact:
    if unequal := rx(r"device (\d{1,3}) does not equal (\d{1,3})").search(where.text):
        return Event(source=where, rank=rank, kind="two_devices", value=f"cuda:{unequal[1]},cuda:{unequal[2]}")
    after = where.text.split("device", 1)[-1]
    named = list(dict.fromkeys(m[0] for m in rx(_DEVICES).finditer(after) if m[0] not in ("cuda", "meta")))
    return Event(source=where, rank=rank, kind="two_devices", value=",".join(named[:4]))


def _prob(_found: Match | None, where: Source, rank: int | None) -> Fact | None:
    """The CUDA form is an assertion and stands in device_assert."""
    return None if "Assertion" in where.text else Event(source=where, rank=rank, kind="prob_tensor")


_WRONG_DEVICE = (
    r"(?i)\b(?:device|stream|pointer|tensor|array)\b.{0,80}"
    r"\b(?:different from|not (?:the same as|match|on)|does not match|mismatch|must be (?:the )?same as)\b.{0,30}current.{0,10}device"
    r"|current(?: cuda)? device.{0,20}\d.{0,20}\b(?:but|while)\b.{0,60}\b(?:cuda:|device |gpu )\d"
)

RULES: tuple[Rule, ...] = (
    # devices of tensors
    Rule("to be on the same device", "", _two_devices),
    Rule("not at the same device", "", _two_devices),
    Rule("to have the same device", r"but device \d|but got", _two_devices),
    Rule("must be on the same device", r"(?i)tensors? must be|Received", _two_devices),
    Rule("are located on different GPUs", "", _two_devices),
    Rule("on the same device as the indexed tensor", "", _two_devices),
    Rule("found one of them on device", "", _two_devices),
    Rule("probability tensor contains either", "", _prob),
    Rule("index out of range in self", "", "index_out_of_range_cpu"),
    Rule("is out of bounds for dimension", r"index (-?\d{1,20}) is out of bounds for dimension \d+ with size \d+", "index_out_of_range_cpu"),
    Rule("cannot be accessed from Triton", "", "triton_wrong_device"),
    Rule("current device", _WRONG_DEVICE, "wrong_current_device"),
    Rule("current CUDA device", _WRONG_DEVICE, "wrong_current_device"),
    Rule("Cannot re-initialize CUDA in forked subprocess", "", "fork_after_cuda"),
    Rule("CUDA out of memory", "", "cuda_oom"),
    Rule("HIP out of memory", "", "cuda_oom"),
    Rule("torch.OutOfMemoryError", "", "cuda_oom"),
    Rule("torch.cuda.OutOfMemoryError", "", "cuda_oom"),
    # NCCL as a library
    Rule("undefined symbol", r"undefined symbol:? \(?['\"]?((?:nccl|pnccl)[A-Z]\w{2,60})", "undefined_nccl_symbol"),
    # MIG
    Rule("invalid literal for int() with base 10: 'MIG-", "", "mig_name_as_number"),
    Rule("MIG-", r"(?:UUID: |VISIBLE_DEVICES['\"]?\]?\s?[=:]\s?['\"]?)(MIG-[\w/-]{8,80})", "mig_present"),
    Rule("MIG devices:", "", "mig_present"),
    # no device at all
    Rule("No CUDA GPUs are available", "", "no_cuda_device"),
    Rule("No HIP GPUs are available", "", "no_cuda_device"),
    Rule("Found no NVIDIA driver on your system", "", "no_cuda_device"),
    Rule("The NVIDIA Driver was not detected", "", "no_cuda_device"),
    # driver, its library, the runtime
    Rule("NVIDIA driver on your system is too old", r"too old(?: \(found version (\d{4,6})\))?", "driver_mismatch"),
    Rule("couldn't communicate with the NVIDIA driver", "", event("driver_mismatch", "nvidia-smi cannot reach the driver")),
    Rule("river/library version mismatch", r"(?i)(driver/library version mismatch)", "driver_mismatch"),
    Rule("NVML/RM version mismatch", "", event("driver_mismatch", "NVML/RM version mismatch")),
    Rule("NVMLError_LibRmVersionMismatch", "", event("driver_mismatch", "NVML/RM version mismatch")),
    Rule("nitialize NVML: Driver Not Loaded", "", event("driver_mismatch", "driver not loaded")),
    Rule("NVMLError_DriverNotLoaded", "", event("driver_mismatch", "driver not loaded")),
    Rule("nitialize NVML: Unknown Error", "", "nvml_lost"),
    Rule("nitialize NVML: Insufficient Permissions", "", "nvml_lost"),
    Rule("NVMLError_Unknown", "", "nvml_lost"),
    Rule("unsatisfied condition: cuda", r"unsatisfied condition: (cuda\s?[<>=]+\s?[\d.]+)", "driver_mismatch"),
    Rule("unsatisfied condition: driver", r"unsatisfied condition: (driver\s?[<>=]+\s?[\d.]+)", "driver_mismatch"),
    Rule("This container was built for NVIDIA Driver Release", r"Driver Release ([\d.]+ or later, but version [\d.]+)", "driver_mismatch"),
    Rule("is not compatible with the current PyTorch installation", r"CUDA capability (sm_\d{2,3}\w?)", "driver_mismatch"),
    Rule("mismatches the version that was used to compile", r"detected CUDA version \((\d+\.\d+)\)", "driver_mismatch"),
    Rule("CUDA Setup failed despite GPU being available", "", event("driver_mismatch", "bitsandbytes: CUDA setup failed")),
    Rule("Configured CUDA binary not found at", r"(libbitsandbytes_cuda\w{1,20})", "driver_mismatch"),
    Rule("bitsandbytes was compiled without GPU support", "", event("driver_mismatch", "bitsandbytes without GPU support")),
    Rule("hipErrorNoBinaryForGpu", "", "hip_kernel_image"),
    # operations that met two dtypes
    Rule("to have the same dtype", "", "mixed_dtype_matmul"),
    Rule("must have the same dtype", "", "mixed_dtype_matmul"),
    Rule("expected scalar type", r"expected scalar type \w+ but found \w+", "mixed_dtype_matmul"),
    Rule("and bias type", r"Input type \(.{1,60}\) and bias type \(.{1,60}\) should be the same", "mixed_dtype_matmul"),
    Rule("and weight type", r"Input type \(.{1,60}\) and weight type \(.{1,60}\) should be the same", "mixed_dtype_matmul"),
)  # fmt: skip

ANCHORS = (*anchors_of(RULES), "libnccl.so", "nvidia-nccl-cu", "libcuda.so.", "LD_LIBRARY_PATH")
KEEP = (0, 1)

_NCCL_FILE = r"(/[\w./+@-]{0,300}?)/libnccl\.so(?:[.\d]*)\b"
_NCCL_FOLDER = r"(/[\w./+@-]{0,300}?/nccl(?:[-_]?v?\d[\w.+-]{0,40})?/(?:build/)?lib(?:64)?)(?:[:/\s\"']|$)"
_NCCL_PACKAGE = r"\b(nvidia-nccl-cu\d{2})\b"
_LIBCUDA = r"\blibcuda\.so\.(\d{3}\.\d{2,3}(?:\.\d{2})?)\b"


def _libraries(text: Text, hits: list[int]) -> Iterator[Fact]:
    """Second NCCL folder or package, second libcuda version: said once, at the line where the second one stands."""
    folders: list[str] = []
    packages: list[str] = []
    drivers: list[str] = []
    for at in hits:
        line = text.lines[at]
        words = line.text[:LINE_MAX]
        patterns = (_NCCL_FILE, _NCCL_FOLDER) if "LD_LIBRARY_PATH" in words else (_NCCL_FILE,)
        found = [(folders, m[1]) for p in patterns if "nccl" in words for m in rx(p).finditer(words)]
        found += [(packages, m[1]) for m in rx(_NCCL_PACKAGE).finditer(words)] if "nvidia-nccl-cu" in words else []
        found += [(drivers, m[1]) for m in rx(_LIBCUDA).finditer(words)] if "libcuda.so." in words else []
        for names, name in found:
            name = name.removeprefix("/usr") if name.startswith("/usr/lib/") else name  # /lib is a link to /usr/lib
            if len(names) > 1 or name in names:
                continue
            names.append(name)
            if len(names) == 2:
                kind, what = ("driver_mismatch", "libcuda ") if names is drivers else ("several_nccl", "")
                yield Event(source=source(text, line), rank=line.rank, kind=kind, value=what + "; ".join(names))


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    yield from distinct((*run(RULES, text, hits), *_libraries(text, hits)), most=None)
