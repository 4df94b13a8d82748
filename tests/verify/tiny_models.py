"""Tiny models of three kinds over four virtual devices, verified in this very process: what the tests of this folder spoil."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from linkproof.sim.torch_device import install
from linkproof.verified import Fact, Verified
from linkproof.verify import models
from linkproof.verify.child import work
from linkproof.verify.judge import judged
from linkproof.verify.shapes import SHAPES, Shape
from linkproof.verify.task import Task

torch.set_num_threads(1)
FABRIC = install(4)
BASE: dict[str, Any] = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
BASE |= {"num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": False, "pad_token_id": 0}
MLA: dict[str, Any] = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
MLA |= {"num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
MLA |= {"first_k_dense_replace": 1, "moe_intermediate_size": 32, "n_shared_experts": 1}
MOE: dict[str, Any] = {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
TINY = {
    "tiny-dense": Shape("a test", "qwen3", BASE | {"head_dim": 16}),
    "tiny-tied": Shape("a test", "qwen3", BASE | {"head_dim": 16, "tie_word_embeddings": True}, "float32"),
    "tiny-moe": Shape("a test", "qwen3_moe", BASE | MOE),
    "tiny-mla": Shape("a test", "deepseek_v3", BASE | MLA),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, shape in TINY.items():
        monkeypatch.setitem(SHAPES, name, shape)


def facts_of(model: str = "tiny-dense", **more: Any) -> list[Fact]:
    facts: list[Fact] = []
    asked: dict[str, Any] = {"model": model, "devices": "virtual:4", "new": 3, "sample": False}
    work(Task(**(asked | more)), facts.append)
    return facts


def verified(model: str = "tiny-dense", **more: Any) -> Verified:
    return judged(facts_of(model, **more), None, 0.0)


def spoiled(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], None]) -> None:
    """The split model, once it is loaded, in other hands."""
    load = models.split

    def split(*args: Any) -> Any:
        model = load(*args)
        with torch.no_grad():
            spoil(model)
        return model

    monkeypatch.setattr(models, "split", split)
