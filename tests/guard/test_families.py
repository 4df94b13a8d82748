"""The guard knows no model: plain attention, sliding windows, recurrent states and experts are healed alike."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: no model can be guarded")
pytest.importorskip("accelerate", reason="accelerate is not installed: no model can be split")
transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed: there is no model")

import torch  # noqa: E402
from accelerate import dispatch_model  # noqa: E402
from split_model import FABRIC, device_map, tokens_of  # noqa: E402

from linkproof.guard.watch import guard  # noqa: E402
from linkproof.probe.faults import Fault  # noqa: E402

SHAPE: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 16,
}
SHAPE |= {
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
LINEAR: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"] * 2, "linear_num_value_heads": 2, "linear_num_key_heads": 2}
LINEAR |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "num_experts": 0, "mlp_only_layers": [0, 1, 2, 3]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "experts_implementation": "eager"}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 5},
    "Gemma2": {"sliding_window": 5},
    "Qwen3Next": LINEAR,
    "Qwen3Moe": EXPERTS,
}


def can_undo(model: Any) -> bool:
    """Before caches had layers, that of Gemma2 cannot be put back: it is compared hop by hop."""
    return hasattr(transformers.cache_utils, "DynamicLayer") or model.config.model_type != "gemma2"


@pytest.mark.parametrize("family", [f for f in FAMILIES if hasattr(transformers, f"{f}Config")])  # the oldest lacks Qwen3Next
def test_the_tokens_of_every_family_are_right(family: str) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE, **FAMILIES[family])
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    split = dispatch_model(model, device_map(), main_device="vgpu:0")
    healthy = tokens_of(split)
    for mode in ("deferred", "strict"):
        for after in (0, 2):  # in the prompt, in the middle of decoding
            with guard(split, mode) as watch, FABRIC.broken(Fault("zero", pairs=("1->2",), after=after)):
                assert tokens_of(split) == healthy
            assert watch.demoted == ("vgpu:1 -> vgpu:2",)
            assert watch.metrics.counts.reruns == (mode == "deferred" and can_undo(split))
