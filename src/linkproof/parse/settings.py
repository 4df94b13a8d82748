"""What a setting is, and whom it reaches. Not a parser of a text; used by those that meet settings.

Source: NCCL `src/graph/paths.cc` and `src/misc/param.cc` (2.30.7), vLLM 0.33 and SGLang 0.5.23 flags, llama.cpp `GGML_CUDA_P2P`.
"""

from __future__ import annotations

from linkproof.parse.rules import rx

# setting -> the consumers that it moves off peer memory, or whose peer traffic it shapes. What is not named is not reached:
# NCCL's switches do nothing for `tensor.to("cuda:1")`, for an engine's own all-reduce or for symmetric memory.
# consumers: nccl, torch_copy (device_map, .to between GPUs), custom_allreduce, symm_mem, llama_cpp, ib (RDMA of NCCL), every (all of them)
REACH: dict[str, tuple[str, ...]] = {
    "NCCL_P2P_DISABLE": ("nccl",),
    "NCCL_P2P_LEVEL": ("nccl",),
    "NCCL_P2P_DIRECT_DISABLE": ("nccl",),
    "NCCL_P2P_READ_ENABLE": ("nccl",),
    "NCCL_P2P_USE_CUDA_MEMCPY": ("nccl",),
    "NCCL_IGNORE_DISABLED_P2P": ("nccl",),
    "NCCL_SHM_DISABLE": ("nccl",),
    "NCCL_CUMEM_ENABLE": ("nccl",),
    "NCCL_CUMEM_HOST_ENABLE": ("nccl",),
    "NCCL_NVLS_ENABLE": ("nccl",),
    "NCCL_PROTO": ("nccl",),
    "NCCL_ALGO": ("nccl",),
    "NCCL_HOSTID": ("nccl",),
    "NCCL_IB_DISABLE": ("nccl", "ib"),
    "NCCL_NET_GDR_LEVEL": ("ib",),
    "NCCL_IB_GID_INDEX": ("ib",),
    "--disable-custom-all-reduce": ("custom_allreduce",),
    "disable_custom_all_reduce": ("custom_allreduce",),
    "VLLM_SKIP_P2P_CHECK": ("custom_allreduce",),
    "SGLANG_SKIP_P2P_CHECK": ("custom_allreduce",),
    "--enable-p2p-check": ("custom_allreduce",),
    "VLLM_ALLREDUCE_USE_SYMM_MEM": ("symm_mem",),
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": ("symm_mem",),
    "PYTORCH_CUDA_ALLOC_CONF": ("torch_copy", "custom_allreduce"),
    "PYTORCH_ALLOC_CONF": ("torch_copy", "custom_allreduce"),
    "GGML_CUDA_NO_PEER_COPY": ("llama_cpp",),
    "GGML_CUDA_P2P": ("llama_cpp",),
    "CUDA_VISIBLE_DEVICES": ("every",),
    "HIP_VISIBLE_DEVICES": ("every",),
    "iommu": ("every",),
    "intel_iommu": ("every",),
    "amd_iommu": ("every",),
    "iommu.passthrough": ("every",),
    # of no effect on a stock kernel, though often advised
    "pcie_acs_override": (),
    "pci=noacs": (),
}
_SECRET_WORDS = frozenset(("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "PASS", "CREDENTIAL", "CREDENTIALS", "AUTH"))


def reaches(key: str, consumer: str) -> bool | None:
    """Can this setting change what `consumer` does between GPUs? None: the setting is not known here."""
    known = REACH.get(key.lstrip())
    return None if known is None else consumer in known or "every" in known


def is_secret(key: str) -> bool:
    return not _SECRET_WORDS.isdisjoint(key.upper().replace("-", "_").split("_"))


def masked(words: str) -> str:
    """The line with the values of secrets struck out: facts keep their lines, and reports print them."""
    out, at = [], 0
    for found in rx(r"([A-Za-z][A-Za-z0-9_-]+)([\"']?\s?[=:]\s?[\"']?)([^\s\"',;&]+)|\b(?:hf|sk|ghp|glpat)[_-][A-Za-z0-9_-]{16,}").finditer(
        words
    ):
        name = found.group(1)
        if name is None:
            out.append(words[at : found.start()] + "***")
            at = found.end()
        elif is_secret(str(name)):
            out.append(words[at : found.start(3)] + "***")
            at = found.end()
    return "".join(out) + words[at:]


def split_setting(name: str) -> tuple[str, str]:
    """`NCCL_P2P_DISABLE=1 --foo` -> ("NCCL_P2P_DISABLE", "1"); `--disable-custom-all-reduce` -> (itself, ""); words -> ("", "")."""
    first = name.strip().split(" ", 1)[0]
    key, eq, value = first.partition("=")
    if eq and key.replace("_", "").replace("-", "").replace(".", "").isalnum():
        return key, value.strip("\"'")
    if first.startswith("--"):
        return first, ""
    return (first, "") if first.isupper() and "_" in first else ("", "")
