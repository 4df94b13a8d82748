from __future__ import annotations

import pytest
from machine_texts import events, of

from linkproof.model import Gpu, Host, Versions

REPORT = """\
PyTorch version: 2.1.0+cu121
Is debug build: False
CUDA used to build PyTorch: 12.1
ROCM used to build PyTorch: N/A
Is CUDA available: True
GPU models and configuration:
GPU 0: NVIDIA A100-SXM4-80GB
GPU 1: NVIDIA A100-SXM4-80GB
GPU 2: NVIDIA A100-SXM4-80GB

Nvidia driver version: 535.104.05
cuDNN version: Probably one of the following:
[pip3] nvidia-nccl-cu12==2.18.1
[conda] numpy 1.26.4 pypi_0 pypi
vLLM Version: 0.6.3.post1
"""


def versions(words: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for fact in of(Versions, words):
        for name in ("torch", "cuda", "rocm", "nccl", "driver", "engine"):
            if getattr(fact, name):
                out.setdefault(name, str(getattr(fact, name)))
    return out


def test_a_report_gives_versions_and_cards() -> None:
    assert versions(REPORT) == {
        "torch": "2.1.0+cu121",
        "cuda": "12.1",
        "driver": "535.104.05",
        "nccl": "2.18.1",
        "engine": "vllm 0.6.3.post1",
    }
    assert [(fact.name, fact.count) for fact in of(Gpu, REPORT)] == [("NVIDIA A100-SXM4-80GB", 3)]
    assert not events(REPORT)


@pytest.mark.parametrize("words, expected", [
    ("- PyTorch version (GPU?): 2.0.1+cu118 (True)", {"torch": "2.0.1+cu118"}),
    ("- `transformers` version: 4.40.2", {"engine": "transformers 4.40.2"}),
    ("ROCM used to build PyTorch: 6.0.32830", {"rocm": "6.0.32830"}),
    ("torch                     2.4.0", {"torch": "2.4.0"}),
    ("nvidia-nccl-cu12          2.20.5", {"nccl": "2.20.5"}),
    ("sglang: 0.4.1\nPyTorch: 2.5.1+cu124", {"engine": "sglang 0.4.1", "torch": "2.5.1+cu124"}),
])  # fmt: skip
def test_other_reports_and_package_lists_are_read(words: str, expected: dict[str, str]) -> None:
    assert versions(words) == expected


@pytest.mark.parametrize("words", [
    "CUDA used to build PyTorch: None", "Nvidia driver version: Could not collect", "the torch 2.1 release is great", "torch 2.15.0 pins an NCCL", "- transformers 5.23 alone does not need it", "torchvision==0.16.0",
])  # fmt: skip
def test_what_could_not_be_collected_is_unknown(words: str) -> None:
    assert not versions(words)


def test_cards_of_one_line_are_counted() -> None:
    words = "GPU 0,1,2,3: NVIDIA L40S\nGPU 0,1,2,3 Compute Capability: 8.9"
    assert [(fact.name, fact.count) for fact in of(Gpu, words)] == [("NVIDIA L40S", 4)]


def test_no_cuda_is_told() -> None:
    assert [kind for kind, _ in events("Is CUDA available: False")] == ["no_cuda_device"]
    assert not events("Is CUDA available: True")


def test_two_nccl_packages_are_told_and_one_is_not() -> None:
    words = "nvidia-nccl-cu11          2.14.3\nnvidia-nccl-cu12          2.18.1"
    assert [(fact.fact, fact.value) for fact in of(Host, words)] == [
        ("two_nccl_libraries", "nvidia-nccl-cu11 2.14.3, nvidia-nccl-cu12 2.18.1")
    ]
    assert not of(Host, "nvidia-nccl-cu12          2.18.1\n[pip3] nvidia-nccl-cu12==2.18.1")
