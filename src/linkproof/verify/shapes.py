"""Models whose shape is known here, for weights that are random: the numbers that their makers publish, and how they are cut to fit.

Out:     Shape; `transformers` makes the config object from `kind` and `numbers`, so names are those of its config classes.
Unknown: a model of another family: name its folder or its hub id instead.
Source:  config.json of the hub repository named in `source`, each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct, structs

from linkproof.verified import Cut


class Shape(Struct, frozen=True):
    """kind: transformers' model_type. numbers: of config.json, nothing else is set. dtype: as published."""

    source: str
    kind: str
    numbers: dict[str, Any]
    dtype: str = "bfloat16"


def _qwen3(size: str, hidden: int, inner: int, layers: int, heads: int, tied: bool) -> Shape:
    numbers = _dense(hidden, inner, layers, heads, 8, 151936, 40960, 1e-6, 1e6, tied) | {"head_dim": 128}
    return Shape(f"Qwen/Qwen3-{size}", "qwen3", numbers)


def _dense(
    hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int, longest: int, eps: float, theta: float, tied: bool
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": longest,
        "rms_norm_eps": eps,
        "rope_theta": theta,
        "tie_word_embeddings": tied,
    }


def _mla(heads: int, vocab: int, longest: int, theta: float, experts: int, groups: int, top_groups: int, dense_layers: int,
         scale: float, yarn: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
    numbers = _dense(7168, 18432, 61, heads, heads, vocab, longest, 1e-6, theta, False)
    numbers |= {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
    numbers |= {"moe_intermediate_size": 2048, "n_routed_experts": experts, "n_shared_experts": 1, "num_experts_per_tok": 8}
    numbers |= {"n_group": groups, "topk_group": top_groups, "first_k_dense_replace": dense_layers, "routed_scaling_factor": scale}
    rope = {"type": "yarn", "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0}
    return numbers | {"norm_topk_prob": True, "rope_scaling": rope | yarn}


_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_GLM45: dict[str, Any] = {
    "moe_intermediate_size": 1408,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 1,
}
_GLM45 |= {"topk_group": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": True, "use_qk_norm": False}
_ERNIE_MOE = {"moe_intermediate_size": 1536, "moe_num_experts": 64, "moe_k": 6, "moe_num_shared_experts": 2, "moe_layer_start_index": 1}

SHAPES: dict[str, Shape] = {
    "qwen3-0.6b": _qwen3("0.6B", 1024, 3072, 28, 16, True),
    "qwen3-1.7b": _qwen3("1.7B", 2048, 6144, 28, 16, True),
    "qwen3-4b": _qwen3("4B", 2560, 9728, 36, 32, True),
    "qwen3-8b": _qwen3("8B", 4096, 12288, 36, 32, False),
    "qwen3-14b": _qwen3("14B", 5120, 17408, 40, 40, False),
    "qwen3-32b": _qwen3("32B", 5120, 25600, 64, 64, False),
    "qwen3-30b-a3b": Shape(
        "Qwen/Qwen3-30B-A3B",
        "qwen3_moe",
        _dense(2048, 6144, 48, 32, 4, 151936, 40960, 1e-6, 1e6, False)
        | {"head_dim": 128, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True},
    ),
    "qwen2-7b": Shape("Qwen/Qwen2-7B", "qwen2", _dense(3584, 18944, 28, 28, 4, 152064, 131072, 1e-6, 1e6, False)),
    "llama-3.1-8b": Shape(
        "meta-llama/Llama-3.1-8B", "llama", _dense(4096, 14336, 32, 32, 8, 128256, 131072, 1e-5, 5e5, False) | {"rope_scaling": _LLAMA3}
    ),
    "glm-4-9b": Shape(
        "zai-org/GLM-4-9B-0414",
        "glm4",
        _dense(4096, 13696, 40, 32, 2, 151552, 32768, 1e-5, 1e4, False)
        | {"head_dim": 128, "attention_bias": True, "partial_rotary_factor": 0.5, "pad_token_id": 151329},
    ),
    "glm-4.5-air": Shape(
        "zai-org/GLM-4.5-Air",
        "glm4_moe",
        _dense(4096, 10944, 46, 96, 8, 151552, 131072, 1e-5, 1e6, False)
        | {"head_dim": 128, "attention_bias": True, "partial_rotary_factor": 0.5}
        | _GLM45,
    ),
    "deepseek-v3": Shape(
        "deepseek-ai/DeepSeek-V3",
        "deepseek_v3",
        _mla(128, 129280, 163840, 1e4, 256, 8, 4, 3, 2.5, {"factor": 40.0, "beta_fast": 32.0, "beta_slow": 1.0}),
    ),
    "kimi-k2": Shape(
        "moonshotai/Kimi-K2-Instruct",
        "deepseek_v3",
        _mla(64, 163840, 131072, 5e4, 384, 1, 1, 1, 2.827, {"factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0}),
    ),
    "ernie-4.5-0.3b": Shape(
        "baidu/ERNIE-4.5-0.3B-PT",
        "ernie4_5",
        _dense(1024, 3072, 18, 16, 2, 103424, 131072, 1e-5, 5e5, True) | {"head_dim": 128, "use_bias": False},
    ),
    "ernie-4.5-21b-a3b": Shape(
        "baidu/ERNIE-4.5-21B-A3B-PT",
        "ernie4_5_moe",
        _dense(2560, 12288, 28, 20, 4, 103424, 131072, 1e-5, 5e5, True) | {"use_bias": False} | _ERNIE_MOE,
    ),
}


# ---------------------------------------------------------------- cut to fit

EXPERTS = ("num_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "moe_k")
WIDTHS = ("hidden_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads", "num_key_value_heads", "q_lora_rank",
          "kv_lora_rank")  # fmt: skip
FEWEST_EXPERTS, SMALLEST_VOCAB, NARROWEST = 16, 4096, 128


def fit(
    shape: Shape, budget_B: int, dtype_B: int, layers: int, parameters: Callable[[Shape], int], ranks: int = 1
) -> tuple[Shape, tuple[Cut, ...]]:
    """The shape, no larger than the budget, and what was cut. layers: the fewest. parameters: counts those of a shape.
    ranks: heads stay divisible by it.

    First layers go, which leaves each of them as published; then experts, words, and widths last of all.
    """
    first = shape.numbers
    small = _fewer_layers(shape, budget_B // dtype_B, layers, parameters)
    for smaller in (_experts, _words, lambda n: _narrower(n, ranks)):
        for numbers in smaller(small.numbers):
            if parameters(small) * dtype_B <= budget_B:
                break
            small = structs.replace(small, numbers=numbers)
    return small, tuple(Cut(name, first[name], now) for name, now in small.numbers.items() if first[name] != now)


def _fewer_layers(shape: Shape, most: int, layers: int, parameters: Callable[[Shape], int]) -> Shape:
    """Parameters grow by the same number with each layer behind the first dense ones."""
    published: int = shape.numbers["num_hidden_layers"]
    dense = shape.numbers.get("first_k_dense_replace", shape.numbers.get("moe_layer_start_index", 0))
    fewest = min(published, max(layers, dense + 1))

    def of(count: int) -> Shape:
        return structs.replace(shape, numbers=shape.numbers | {"num_hidden_layers": count})

    if parameters(shape) <= most or published == fewest:
        return shape
    begin = parameters(of(fewest))
    each = max(1, parameters(of(fewest + 1)) - begin)
    return of(max(fewest, min(published, fewest + (most - begin) // each)))


def _experts(numbers: dict[str, Any]) -> Iterator[dict[str, Any]]:
    name = next((n for n in EXPERTS if n in numbers), None)
    while name and numbers[name] // 2 >= FEWEST_EXPERTS:
        numbers = numbers | {name: numbers[name] // 2}
        yield numbers


def _words(numbers: dict[str, Any]) -> Iterator[dict[str, Any]]:
    while numbers["vocab_size"] // 2 >= SMALLEST_VOCAB:
        numbers = numbers | {"vocab_size": numbers["vocab_size"] // 2}
        if (numbers.get("pad_token_id") or 0) >= numbers["vocab_size"]:
            numbers = numbers | {"pad_token_id": numbers["vocab_size"] - 1}
        yield numbers


def _narrower(numbers: dict[str, Any], ranks: int) -> Iterator[dict[str, Any]]:
    """Half of everything, heads too; the size of a head stays, and with it its rotation."""
    while numbers["hidden_size"] // 2 >= NARROWEST and numbers["num_attention_heads"] % (2 * ranks) == 0:
        if ranks > 1 and numbers["num_key_value_heads"] % (2 * ranks):
            return
        numbers = numbers | {n: max(1, numbers[n] // 2) for n in WIDTHS if n in numbers}
        yield numbers
