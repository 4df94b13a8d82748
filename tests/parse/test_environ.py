from __future__ import annotations

import pytest
from machine_texts import events, of

from linkproof.model import Fact, Host, Setting


def present(words: str) -> list[str]:
    return [fact.name for fact in of(Setting, words) if fact.effect == "present"]


@pytest.mark.parametrize("words", [
    "NCCL_P2P_DISABLE=1",
    "export NCCL_P2P_DISABLE=1",
    "$ NCCL_P2P_DISABLE=1 torchrun --nproc-per-node 2 train.py",
    "NCCL_P2P_DISABLE=1 ./build/all_reduce_perf -b 8",
    "ENV NCCL_P2P_DISABLE=1",
    'Environment="NCCL_P2P_DISABLE=1"',
    "docker run --gpus all -e NCCL_P2P_DISABLE=1 vllm/vllm-openai",
    "mpirun -np 8 -x NCCL_P2P_DISABLE=1 ./all_reduce_perf",
    'os.environ["NCCL_P2P_DISABLE"] = "1"',
    "os.environ.setdefault('NCCL_P2P_DISABLE', '1')",
    "        - name: NCCL_P2P_DISABLE\n          value: \"1\"",
    '      NCCL_P2P_DISABLE: "1"',
    '            "NCCL_P2P_DISABLE=1",',
    'runtime_env={"env_vars": {"NCCL_P2P_DISABLE": "1"}}',
    "cd /x && export NCCL_P2P_DISABLE=1",
    "set NCCL_P2P_DISABLE=1",
])  # fmt: skip
def test_a_variable_that_is_set_is_present_wherever_it_is_set(words: str) -> None:
    found = of(Setting, words)
    assert [(fact.name, fact.key, fact.value, fact.effect) for fact in found] == [
        ("NCCL_P2P_DISABLE=1", "NCCL_P2P_DISABLE", "1", "present")
    ]


@pytest.mark.parametrize("words", [
    "Disable NVLS (NCCL_NVLS_ENABLE=0) if you wish to avoid this error in the future.",
    "For debugging consider passing CUDA_LAUNCH_BLOCKING=1",
    "NCCL_P2P_DISABLE=1 fixes it for me",
    "set NCCL_P2P_DISABLE=1 and it works",
    "If reserved memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.",
    "RuntimeError: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
])  # fmt: skip
def test_advice_and_prose_set_nothing(words: str) -> None:
    assert not present(words)


def test_several_assignments_before_a_command_are_all_read() -> None:
    assert present("CUDA_VISIBLE_DEVICES=0,1 NCCL_DEBUG=INFO FOO=1 python3 run.py") == ["CUDA_VISIBLE_DEVICES=0,1", "NCCL_DEBUG=INFO"]


def test_the_same_setting_is_told_once() -> None:
    assert present("NCCL_DEBUG=INFO\nNCCL_DEBUG=INFO\nNCCL_DEBUG=WARN") == ["NCCL_DEBUG=INFO", "NCCL_DEBUG=WARN"]


def test_variables_of_other_programs_are_left_alone() -> None:
    assert not present("PATH=/usr/bin\nEDITOR=vi\nLC_ALL=C")


def test_a_secret_is_neither_a_fact_nor_in_the_line_that_a_fact_cites() -> None:
    words = "HF_TOKEN=hf_abcdefghijklmnopqrst NCCL_DEBUG=INFO python run.py"
    found: list[Fact] = list(of(Setting, words))
    assert [fact.source.text for fact in found] == ["HF_TOKEN=*** NCCL_DEBUG=INFO python run.py"]
    assert present(words) == ["NCCL_DEBUG=INFO"]


def test_a_preloaded_gpu_sharing_library_is_told_as_such() -> None:
    words = "LD_PRELOAD=/usr/local/vgpu/libvgpu.so"
    assert [(fact.fact, fact.value) for fact in of(Host, words)] == [("ld_preload", "libvgpu.so")]
    assert ("libvgpu", "libvgpu.so") in events(words)


def test_another_preloaded_library_is_a_setting_only() -> None:
    words = "LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"
    assert not of(Host, words) and not events(words) and len(present(words)) == 1


def test_the_log_of_a_sharing_library_shows_that_it_is_loaded() -> None:
    assert ("libvgpu", "HAMi-core") in events("[HAMI-core Msg(28:140561996502848:multiprocess.c:836)]: Initializing.....")
    assert not events("We run HAMi on that cluster")
