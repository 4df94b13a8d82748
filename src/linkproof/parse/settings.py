"""What a setting is, and whom it reaches. Not a parser of a text; used by those that meet settings.

Source: NCCL `src/graph/paths.cc` and `src/misc/param.cc` (2.30.7), vLLM 0.33 and SGLang 0.5.23 flags, llama.cpp `GGML_CUDA_P2P`.
"""

from __future__ import annotations


def split_setting(name: str) -> tuple[str, str]:
    """`NCCL_P2P_DISABLE=1 --foo` -> ("NCCL_P2P_DISABLE", "1"); `--disable-custom-all-reduce` -> (itself, ""); words -> ("", "")."""
    first = name.strip().split(" ", 1)[0]
    key, eq, value = first.partition("=")
    if eq and key.replace("_", "").replace("-", "").replace(".", "").isalnum():
        return key, value.strip("\"'")
    if first.startswith("--"):
        return first, ""
    return (first, "") if first.isupper() and "_" in first else ("", "")
