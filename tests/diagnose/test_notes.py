"""What people get wrong is said when it is at hand, and only then."""

from __future__ import annotations

from typing import Any

import pytest

from linkproof.diagnose import diagnose
from linkproof.parse.observations import observations

TENSOR = {"check": "model", "split": "tensor", "result": "hang"}
LAYERS = {"check": "model", "split": "pipeline", "result": "garbage"}
VLLM = {"check": "versions", "engine": "vllm 0.9"}


def texts(*entries: dict[str, Any]) -> str:
    return " | ".join(note.text.format_map(note.args) for note in diagnose(observations(list(entries))).notes)


def setting(name: str, effect: str = "present") -> dict[str, Any]:
    return {"check": "setting", "name": name, "effect": effect}


@pytest.mark.parametrize(
    ("shown", "absent", "words"),
    [
        ([setting("NCCL_P2P_DISABLE=1", "no_effect"), LAYERS], [setting("NCCL_P2P_DISABLE=1", "no_effect"), TENSOR], "reaches NCCL only"),
        (
            [setting("NCCL_P2P_DISABLE=1"), TENSOR, VLLM],
            [setting("NCCL_P2P_DISABLE=1 --disable-custom-all-reduce"), TENSOR, VLLM],
            "own all-reduce",
        ),
        ([setting("GGML_CUDA_P2P=0")], [setting("GGML_CUDA_GRAPH_OPT=0")], "mere presence"),
        ([setting("NCCL_P2P_LEVEL=pix")], [setting("NCCL_P2P_LEVEL=PIX")], "ignored without a word"),
        ([setting("NCCL_P2P_DISABLE=true")], [setting("NCCL_P2P_DISABLE=1")], "only the value 1"),
        ([setting("pci=noacs")], [setting("pci=nommconf")], "clears no ACS bit"),
        (
            [{"check": "peer_access", "claimed": "all", "status": "OK"}],
            [{"check": "peer_access", "claimed": "none"}],
            "whether the bytes arrive",
        ),
    ],
)
def test_a_note_stands_where_it_belongs_and_nowhere_else(shown: list[Any], absent: list[Any], words: str) -> None:
    assert words in texts(*shown)
    assert words not in texts(*absent)


def test_a_switch_that_never_reached_the_program_clears_nothing() -> None:
    base = [LAYERS, {"check": "model", "split": "none", "result": "ok"}]
    without = diagnose(observations(base)).causes[0]
    with_it = diagnose(observations([*base, setting("NCCL_P2P_DISABLE=1", "no_effect")])).causes[0]
    assert (with_it.id, with_it.score) == (without.id, without.score)


def test_the_same_switch_speaks_against_the_path_where_it_does_reach() -> None:
    base = [{"check": "collective", "engine": "nccl", "result": "hang"}, {"check": "gpu", "name": "L4", "count": 2}]

    def score(entries: list[Any]) -> float:
        return next((w.score for w in diagnose(observations(entries)).causes if w.id == "p2p_broken_unattributed"), -99.0)

    assert score([*base, setting("NCCL_P2P_DISABLE=1", "no_effect")]) < score([*base, setting("NCCL_P2P_DISABLE=1", "cured")]) - 3


def test_a_cause_on_the_peer_path_tells_each_engine_what_to_set() -> None:
    consumers = diagnose(
        observations([{"check": "copy", "via": "peer", "result": "zeros"}, {"check": "copy", "via": "host", "result": "ok"}])
    ).consumers
    assert "--disable-custom-all-reduce" in consumers["vllm"].settings
    assert consumers["transformers"].settings == (), "torch has no switch for peer copies"
    assert consumers["torchrun"].settings == ("NCCL_P2P_DISABLE=1",)


def test_a_small_shared_memory_does_not_reach_layer_copies() -> None:
    consumers = diagnose(
        observations([{"check": "host", "fact": "shm_bytes", "value": 67108864}, {"check": "stage", "at": "nccl_init", "result": "error"}])
    ).consumers
    assert consumers["transformers"].state == "not_reached" and consumers["torchrun"].state == "at_risk"
