"""Environment variables of GPU libraries, wherever they are set -> settings that were on.

In:      `NAME=value`, `export`, `ENV`, commands that begin with assignments, `-e`/`--env`/`-x NAME=value`, `os.environ["X"] = "y"`,
         YAML (`- name: X` / `value: y`, `X: y`), JSON, systemd, `/etc/nccl.conf`; log lines of a preloaded GPU-sharing library.
Out:     Setting(present); for LD_PRELOAD with a GPU-sharing library also Host(ld_preload) and Event libvgpu.
Unknown: an assignment inside prose or a hint (`Set NCCL_DEBUG=INFO for details`) is advice, not a setting, and gives nothing.
         Secrets (names with TOKEN, KEY, PASSWORD ...) give nothing, and are struck out of the lines that facts cite.
Raises:  nothing.
Source:  NCCL `src/misc/param.cc`; shell, Docker, Kubernetes, systemd and Open MPI syntax; HAMi-core, gpushare, vGPU libraries.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Host, Line, Setting, Source, Text
from linkproof.parse.rules import LINE_MAX, rx
from linkproof.parse.settings import is_secret, masked

_PREFIXES = (
    "NCCL_", "CUDA_", "PYTORCH_", "TORCH_", "VLLM_", "SGLANG_", "SGL_", "GGML_", "HIP_", "HSA_", "ROCR_", "RCCL_", "GLOO_", "UCX_",
    "HF_", "RAY_", "OMP_", "FI_", "NVSHMEM_", "TP_SOCKET_", "NVIDIA_",
)  # fmt: skip
_NAMES = ("LD_PRELOAD", "LD_LIBRARY_PATH", "MASTER_ADDR", "ACCELERATE_USE_DEEPSPEED")
_SHIMS = ("libvgpu", "[HAMI-core", "[4pdvGPU", "libcuda-control", "libgpushare", "libgpucuda")
ANCHORS = (*_PREFIXES, *_NAMES, *_SHIMS)
KEEP = (0, 1)

_NAME = r"(?:(?:NCCL|CUDA|PYTORCH|TORCH|VLLM|SGLANG|SGL|GGML|HIP|HSA|ROCR|RCCL|GLOO|UCX|HF|RAY|OMP|FI|NVSHMEM|TP_SOCKET|NVIDIA)_[A-Z0-9_]+"
_NAME += r"|LD_PRELOAD|LD_LIBRARY_PATH|MASTER_ADDR)"
_VALUE = r"(?:\"[^\"]*\"|'[^']*'|[^\s;&|\"'`]*)"
_LEAD = r"^[\s>$#%+*|`-]{0,12}(?:\d{1,5}[:|]\s*)?(?:(?:sudo|exec|export|set|env|ENV|declare -x|%env|Environment=\"?|environment:)\s*)*\"?"
_KEYWORD = r"^[\s>$#%+*|`-]{0,12}(?:(?:sudo|exec)\s+)?(?:export|set|ENV|declare -x|%env|Environment=)"
_FLAG = rf"(?:^|\s)(?:-e|--env|-x|--genv|-genv)[ =]\"?({_NAME})=({_VALUE})"
_CODE = rf"(?:environ(?:\.setdefault\(|\[)|putenv\(|setenv\()\s*[\"']({_NAME})[\"']\]?\s*[,=]\s*[\"']?([^\"')\s]*)"
_MAP = rf"^\s*(?:-\s*)?[\"']?({_NAME})[\"']?\s*:\s+({_VALUE}),?\s*$|^\s*[\"']({_NAME})[\"']\s*:\s*({_VALUE}),?\s*$"
_PAIR = rf"[\"']({_NAME})[\"']\s*:\s*[\"']([^\"']*)[\"']"
_LIST = rf"^\s*(?:-\s*)?[\"']({_NAME})=([^\"']*)[\"'],?\s*$"
_K8S = rf"^\s*(?:-\s*)?name:\s*[\"']?({_NAME})[\"']?\s*$"
_RUNS = (
    "python", "python3", "torchrun", "accelerate", "deepspeed", "vllm", "sglang", "mpirun", "mpiexec", "srun", "ray", "bash", "sh", "uv", "docker",
    "podman", "ollama", "llama-server", "llama-cli", "pytest", "nsys", "compute-sanitizer", "gdb", "make", "lmdeploy", "xinference", "swift", "trl",
    "nohup", "numactl", "taskset", "time", "timeout", "exec", "env", "all_reduce_perf", "llamafactory-cli", "jupyter", "node", "nvidia-smi", "stdbuf",
)  # fmt: skip
_SHARING = r"(?i)\b([\w.-]{0,40}(?:vgpu|cuda[\w.-]{0,12}(?:hook|control|intercept)|(?:hook|intercept)[\w.-]{0,12}cuda|gpushare|gpu-share)[\w.-]{0,40}\.so[.\d]{0,8})"


def _source(text: Text, line: Line) -> Source:
    return Source(text.name, line.no, masked(line.text[:LINE_MAX])[:300])


def _bare(value: str) -> str:
    return value.strip().strip("\"'").strip()


def _runs(rest: str) -> bool:
    """May the words after assignments be the command that they are for? Prose may not."""
    if not rest or rest[0] in ";&|\\#":
        return True
    first = rest.split(" ", 1)[0].strip("\"'`")
    return first in _RUNS or "/" in first or first.startswith(("python", "-e", "--")) or first.endswith((".py", ".sh"))


def _assigned(words: str) -> Iterator[tuple[str, str]]:
    """Assignments at the start of a line, after `;` and `&&`."""
    for piece in rx(r"[^;&]+").findall(words):
        rest = str(piece).rstrip()
        lead = rx(_LEAD).search(rest)
        at = lead.end() if lead is not None else 0
        found: list[tuple[str, str]] = []
        while (one := rx(rf"^([A-Z][A-Z0-9_]+)=({_VALUE})(?:\"?\s+|\"?$)").search(rest[at : at + 700])) is not None and len(found) < 60:
            found.append((str(one.group(1)), _bare(str(one.group(2)))))
            at += one.end()
        keyword = rx(_KEYWORD).search(rest) is not None
        after = rest[at:].strip()
        if found and (_runs(after) if not keyword else not after or after[0] in "#\\|\"'"):
            yield from found


def _of_line(text: Text, index: int) -> Iterator[tuple[str, str]]:
    words = text.lines[index].text[:LINE_MAX]
    # a cheap look for the sign of each form spares most lines of a log the patterns
    quoted = '"' in words or "'" in words
    for pattern, there in (
        (_FLAG, "=" in words and " -" in f" {words}"),
        (_CODE, quoted and ("env" in words)),
        (_PAIR, quoted and ":" in words),
    ):
        if there:
            yield from ((str(name), _bare(str(value))) for name, value in rx(pattern).findall(words)[:60])
    mapped = (rx(_MAP).search(words) if ":" in words else None) or (rx(_LIST).search(words) if quoted else None)
    if mapped is not None:
        told = [group for group in mapped.groups() if group is not None]
        yield str(told[0]), _bare(str(told[1]))
        return
    named = rx(_K8S).search(words) if "name:" in words else None
    if named is not None and index + 1 < len(text.lines):
        value = rx(r"^\s*value:\s*(.*)$").search(text.lines[index + 1].text[:400])
        if value is not None:
            yield str(named.group(1)), _bare(str(value.group(1)))
        return
    if "=" in words:
        yield from _assigned(words)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    told: set[tuple[str, str]] = set()
    shim = False
    for index in hits:
        line = text.lines[index]
        words = line.text[:LINE_MAX]
        for key, value in _of_line(text, index):
            if (key, value) in told or is_secret(key) or not (key.startswith(_PREFIXES) or key in _NAMES) or len(told) > 2000:
                continue
            told.add((key, value))
            yield Setting(
                source=_source(text, line), rank=line.rank, name=f"{key}={value[:300]}", effect="present", key=key, value=value[:300]
            )
            shared = rx(_SHARING).search(value) if key == "LD_PRELOAD" else None
            if shared is not None:
                yield Host(source=_source(text, line), fact="ld_preload", value=str(shared.group(1)))
        if not shim and any(mark in words for mark in _SHIMS):
            library = rx(_SHARING).search(words)
            shim = library is not None or "[HAMI-core" in words or "[4pdvGPU" in words
            if shim:
                value = str(library.group(1)) if library is not None else "HAMi-core"
                yield Event(source=_source(text, line), kind="libvgpu", value=value)
