"""Numbers, names and words of CUDA runtime, CUDA driver and HIP errors. A table, not a parser.

Numbers are those since CUDA 10.1, where runtime and driver agree; HIP follows them. Names are kept without prefix and underscores,
so that `cudaErrorIllegalAddress`, `CUDA_ERROR_ILLEGAL_ADDRESS` and `hipErrorIllegalAddress` are one key.
Before 10.1 the runtime had other numbers (59 was the assertion, 77 the illegal address): words and names are right in both, so
they win over a printed number.

Source: driver_types.h and cuda.h of CUDA 13, `cudaGetErrorString` of the same, hip_runtime_api.h.
"""

from __future__ import annotations

# number: (message as printed, names)
CODES: dict[int, tuple[str, str]] = {
    1: ("invalid argument", "invalidvalue"),
    2: ("out of memory", "memoryallocation outofmemory"),
    3: ("initialization error", "initializationerror notinitialized"),
    4: ("driver shutting down", "cudartunloading deinitialized"),
    9: ("invalid configuration argument", "invalidconfiguration"),
    16: ("invalid host pointer", "invalidhostpointer"),
    17: ("invalid device pointer", "invaliddevicepointer"),
    34: ("CUDA driver is a stub library", "stublibrary"),
    35: ("CUDA driver version is insufficient for CUDA runtime version", "insufficientdriver"),
    36: ("API call is not supported in the installed CUDA driver", "callrequiresnewerdriver"),
    46: ("CUDA-capable device(s) is/are busy or unavailable", "devicesunavailable deviceunavailable"),
    98: ("invalid device function", "invaliddevicefunction"),
    100: ("no CUDA-capable device", "nodevice"),
    101: ("invalid device ordinal", "invaliddevice"),
    200: ("device kernel image is invalid", "invalidkernelimage invalidimage"),
    201: ("invalid device context", "deviceuninitialized invalidcontext"),
    205: ("mapping of buffer object failed", "mapbufferobjectfailed mapfailed"),
    209: ("no kernel image is available for execution on the device", "nokernelimagefordevice nobinaryforgpu"),
    214: ("uncorrectable ECC error encountered", "eccuncorrectable eccnotcorrectable"),
    216: ("exclusive-thread device already in use by a different thread", "devicealreadyinuse contextalreadyinuse"),
    217: ("peer access is not supported between these two devices", "peeraccessunsupported"),
    218: ("a PTX JIT compilation failed", "invalidptx invalidkernelfile"),
    220: ("uncorrectable NVLink error detected during the execution", "nvlinkuncorrectable"),
    221: ("PTX JIT compiler library not found", "jitcompilernotfound"),
    222: ("the provided PTX was compiled with an unsupported toolchain", "unsupportedptxversion"),
    226: ("Invalid access of peer GPU memory over nvlink or a hardware error", "contained"),
    227: ("Loader version is insufficient for fatbin", "insufficientloaderversion"),
    304: ("OS call failed or operation not supported on this OS", "operatingsystem"),
    400: ("invalid resource handle", "invalidresourcehandle invalidhandle"),
    401: ("the operation cannot be performed in the present state", "illegalstate"),
    500: ("named symbol not found", "symbolnotfound notfound"),
    600: ("device not ready", "notready"),
    700: ("an illegal memory access", "illegaladdress"),
    701: ("too many resources requested for launch", "launchoutofresources"),
    702: ("the launch timed out and was terminated", "launchtimeout"),
    704: ("peer access is already enabled", "peeraccessalreadyenabled"),
    705: ("peer access has not been enabled", "peeraccessnotenabled"),
    709: ("context is destroyed", "contextisdestroyed"),
    710: ("device-side assert triggered", "assert"),
    711: ("peer mapping resources exhausted", "toomanypeers"),
    712: ("part or all of the requested memory range is already mapped", "hostmemoryalreadyregistered"),
    713: ("pointer does not correspond to a registered memory region", "hostmemorynotregistered"),
    714: ("hardware stack error", "hardwarestackerror"),
    715: ("an illegal instruction was encountered", "illegalinstruction"),
    716: ("misaligned address", "misalignedaddress"),
    717: ("operation not supported on global/shared address space", "invalidaddressspace"),
    718: ("invalid program counter", "invalidpc"),
    719: ("unspecified launch failure", "launchfailure launchfailed"),
    720: ("too many blocks in cooperative launch", "cooperativelaunchtoolarge"),
    721: ("tensor memory not completely freed", "tensormemoryleak"),
    800: ("operation not permitted", "notpermitted"),
    801: ("operation not supported", "notsupported"),
    802: ("system not yet initialized", "systemnotready"),
    803: ("system has unsupported display driver / cuda driver combination", "systemdrivermismatch"),
    804: ("forward compatibility was attempted on non supported HW", "compatnotsupportedondevice"),
    805: ("MPS client failed to connect to the MPS control daemon or the MPS server", "mpsconnectionfailed"),
    806: ("the remote procedural call between the MPS server and the MPS client failed", "mpsrpcfailure"),
    807: ("MPS server is not ready to accept new MPS client requests", "mpsservernotready"),
    808: ("the hardware resources required to create MPS client have been exhausted", "mpsmaxclientsreached"),
    809: ("the hardware resources required to support device connections have been exhausted", "mpsmaxconnectionsreached"),
    810: ("the MPS client has been terminated by the server", "mpsclientterminated"),
    811: ("is using CUDA Dynamic Parallelism, but the current configuration, like MPS, does not support it", "cdpnotsupported"),
    900: ("operation not permitted when stream is capturing", "streamcaptureunsupported"),
    901: ("operation failed due to a previous error during capture", "streamcaptureinvalidated"),
    902: ("operation would result in a merge of separate capture sequences", "streamcapturemerge"),
    907: ("operation not permitted on an event last recorded in a capturing stream", "capturedevent"),
    909: ("wait operation timed out", "timeout"),
    910: ("the graph update was not performed because it included changes", "graphexecupdatefailure"),
    911: ("an async error has occured in external entity outside of CUDA", "externaldevice"),
    919: ("GPU fabric is not ready within the probe wait budget", "fabricnotready"),
    999: ("unknown error", "unknown"),
}

# words that other software prints as well: they count only after a CUDA or HIP word in the same line
COMMON_WORDS = frozenset(
    (1, 2, 3, 4, 9, 16, 17, 200, 201, 304, 400, 500, 600, 709, 712, 714, 715, 716, 718, 720, 800, 801, 811, 909, 911, 999)
)


def code_of_name(name: str) -> int | None:
    """`cudaErrorNoDevice`, `CUDA_ERROR_NO_DEVICE` or `hipErrorNoDevice` -> 100; None if the name is not in the table."""
    return _by_name().get(_bare(name))


def _bare(name: str) -> str:
    for prefix in ("cudaError", "CUDA_ERROR_", "hipError"):
        name = name.removeprefix(prefix)
    return name.replace("_", "").lower()


_NAMES: dict[str, int] = {}


def _by_name() -> dict[str, int]:
    if not _NAMES:
        _NAMES.update((name, code) for code, (_words, names) in CODES.items() for name in names.split())
    return _NAMES
