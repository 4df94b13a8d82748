"""`torch.utils.collect_env`, `accelerate env`, `transformers env`, vLLM and SGLang reports, `pip list` -> versions and cards.

In:      whole reports or single lines; rows of `pip list`, `pip freeze` and `conda list`.
Out:     Versions (torch, cuda, rocm, nccl, driver, engine), Gpu per kind of card, Event no_cuda_device; with two NCCL packages
         Host(two_nccl_libraries).
Unknown: `N/A`, `None` and `Could not collect` give nothing. Topology and lscpu sections of a report are read by their own parsers.
Raises:  nothing.
Source:  torch 1.0 .. 2.15 collect_env.py, accelerate 0.2 .. 1.15, transformers 4 .. 5, vLLM collect_env.py, SGLang check_env.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Gpu, Host, Line, Text, Versions
from linkproof.parse.rules import LINE_MAX, Match, rx, source

_ENGINES = ("vllm", "sglang", "transformers", "accelerate", "deepspeed", "lmdeploy", "tensorrt-llm", "tensorrt_llm")
ANCHORS = (
    "PyTorch version", "CUDA used to build PyTorch", "ROCM used to build PyTorch", "Nvidia driver version", "CUDA Driver Version:",
    "GPU models and configuration", "Is CUDA available", "CUDA available:", "vLLM Version", "sglang: ", "PyTorch: ", "GPU type:", "HIP runtime version",
    "nvidia-nccl-cu", "torch==", "torch  ", " torch ", "` version: ", "GPU 0: ", "GPU 1: ", "GPU 0,1",
    *(f"{engine}{end}" for engine in _ENGINES for end in ("==", "  ")),
)  # fmt: skip
KEEP = (0, 18)

_V = r"(\d[0-9A-Za-z.+_-]{0,60})"
_FIELDS = (
    ("torch", rf"PyTorch version(?: \(GPU\?\))?: +{_V}"),
    ("torch", rf"^\s*PyTorch: {_V}\s*$"),
    ("cuda", rf"CUDA used to build PyTorch: {_V}"),
    ("rocm", rf"ROCM used to build PyTorch: {_V}"),
    ("driver", rf"Nvidia driver version: {_V}"),
    ("driver", rf"^\s*CUDA Driver Version: {_V}"),
)
_NAME = r"(torch|nvidia-nccl-cu\d{2}|vllm|sglang|transformers|accelerate|deepspeed|lmdeploy|tensorrt[-_]llm)"
_PACKAGE = rf"^\W{{0,3}}\[(?:pip3?|conda)\]\s*{_NAME}(?:==|\s+){_V}"
_ROW = rf"^\W{{0,3}}{_NAME}(?:==|\s{{2,}}){_V}(?:\s|$)|^\W{{0,3}}{_NAME}:? {_V}\s*$"  # of a list; one blank and more words are prose
_SAID = rf"^\W{{0,4}}`(transformers|accelerate|Accelerate)` version: {_V}"
_CARD = r"^\s*GPU (\d{1,3}(?:,\d{1,3})*): ([A-Z][^()]*?)\s*$"


def _package(words: str) -> Match | None:
    return rx(_PACKAGE).search(words) or rx(_ROW).search(words)


def _cards(text: Text, hits: list[int]) -> Iterator[Fact]:
    kinds: dict[str, tuple[Line, set[int]]] = {}
    seen: set[int] = set()
    for hit in hits:
        for index in range(hit, min(hit + 17, len(text.lines))) if "GPU models and configuration" in text.lines[hit].text else (hit,):
            line = text.lines[index]
            card = rx(_CARD).search(line.text[:LINE_MAX])
            if card is None or "Compute Capability" in line.text:
                continue
            numbers = {int(number) for number in str(card.group(1)).split(",")[:64]} - seen
            seen |= numbers
            if numbers:
                kinds.setdefault(str(card.group(2)), (line, set()))[1].update(numbers)
    for name, (line, numbers) in kinds.items():
        yield Gpu(source=source(text, line), name=name, count=len(numbers))


def _versions(text: Text, hits: list[int]) -> Iterator[tuple[Line, str, str]]:
    """(line, field of Versions, value)."""
    for index in hits:
        line = text.lines[index]
        words = line.text[:LINE_MAX]
        for field, pattern in _FIELDS:
            found = rx(pattern).search(words)
            if found is not None:
                yield line, field, str(found.group(1))
                break
        package = _package(words) or rx(_SAID).search(words)
        if package is not None:
            name, value = (str(group) for group in package.groups() if group is not None)
            name = name.lower()
            if name == "torch" or name.startswith("nvidia-nccl"):
                yield line, "torch" if name == "torch" else "nccl", value
            else:
                yield line, "engine", f"{name} {value}"
        engine = rx(rf"vLLM Version: {_V}").search(words)
        if engine is not None:
            yield line, "engine", f"vllm {engine.group(1)}"


def _two_nccl(text: Text, hits: list[int]) -> Iterator[Fact]:
    packages: dict[str, Line] = {}
    for index in hits:
        line = text.lines[index]
        found = _package(line.text[:LINE_MAX])
        said = " ".join(str(group) for group in found.groups() if group is not None) if found is not None else ""
        if said.startswith("nvidia-nccl"):
            packages.setdefault(said, line)
    if len({name.split(" ")[0] for name in packages}) > 1:
        line = list(packages.values())[1]
        yield Host(source=source(text, line), fact="two_nccl_libraries", value=", ".join(packages))


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    told: set[tuple[str, str]] = set()
    for line, field, value in _versions(text, hits):
        if (field, value) not in told and len(told) < 500:
            told.add((field, value))
            part = {"torch": "", "cuda": "", "rocm": "", "nccl": "", "driver": "", "engine": "", field: value}
            yield Versions(
                source=source(text, line), torch=part["torch"], cuda=part["cuda"], rocm=part["rocm"], nccl=part["nccl"],
                driver=part["driver"], engine=part["engine"],
            )  # fmt: skip
    for index in hits:
        line = text.lines[index]
        if rx(r"(?:Is )?CUDA available: False").search(line.text[:LINE_MAX]) is not None:
            yield Event(source=source(text, line), kind="no_cuda_device", value="torch.cuda.is_available() is False")
            break
    yield from _cards(text, hits)
    yield from _two_nccl(text, hits)
