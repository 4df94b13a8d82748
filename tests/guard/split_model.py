"""A tiny Qwen3 with random weights, split over four virtual GPUs by accelerate, and a chain of layers: what the tests of this folder guard."""

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


class Writer(torch.nn.Module):
    """A layer that writes into its second input."""

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.lin, self.writes, self.kept = torch.nn.Linear(4, 4), writes, None

    def forward(self, x: Any, scale: Any) -> Any:
        self.kept = scale
        if self.writes:
            scale.mul_(2)
        return self.lin(x) * scale


class Chain(torch.nn.Module):
    def __init__(self, *writes: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(4, 4)
        self.layers: Any = torch.nn.ModuleList(Writer(w) for w in writes)
        self.between: Any = None

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        scale = x.sigmoid()
        for i, layer in enumerate(self.layers):
            x = layer(x, scale=scale)
            if self.between is not None and i == 1:
                self.between(scale)
        return x, sum(layer.kept.cpu().sum() for layer in self.layers)
