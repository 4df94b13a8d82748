"""A tiny Qwen3 with random weights, split over four virtual GPUs by accelerate: what the tests of this folder guard."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from typing import Any

import torch
from accelerate import dispatch_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from linkproof.sim.torch_device import install

torch.set_num_threads(1)  # the tensors are tiny
GPUS = 4
FABRIC = install(GPUS)
PROMPT = torch.arange(1, 9)[None]
HIDDEN, HEAD, VOCAB = 64, 16, 256


def make(layers: int = GPUS, seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HEAD,
    }
    tokens: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    config = Qwen3Config(num_hidden_layers=layers, max_position_embeddings=256, tie_word_embeddings=False, **shape, **tokens, **more)
    return Qwen3ForCausalLM(config).eval()


def device_map(layers: int = GPUS, last: str = f"vgpu:{GPUS - 1}") -> dict[str, str]:
    ends = {"model.embed_tokens": "vgpu:0", "model.rotary_emb": "vgpu:0", "model.norm": last, "lm_head": last}
    return ends | {f"model.layers.{i}": f"vgpu:{i * GPUS // layers}" for i in range(layers)}


def split(layers: int = GPUS, **more: Any) -> Any:
    return dispatch_model(make(layers, **more), device_map(layers), main_device="vgpu:0")


def tokens_of(model: Any, on: str = "vgpu:0", new: int = 4, prompt: torch.Tensor = PROMPT, **more: Any) -> list[list[int]]:
    torch.manual_seed(3)
    how = {"max_new_tokens": new, "do_sample": False} | more
    ids: torch.Tensor = model.generate(prompt.to(on), **how).cpu()
    return ids[:, prompt.shape[1] :].tolist()
