"""What the leading cause means for each engine, and the settings that move it off the broken way now.

Source: NCCL `src/graph/paths.cc` (NCCL_P2P_DISABLE, NCCL_P2P_LEVEL reach NCCL's transports only), torch `c10/cuda/PeerToPeerAccess.cpp`
(no switch exists), vLLM 0.33 `cuda_communicator.py`, SGLang 0.5.23 `custom_all_reduce.py`, llama.cpp PR 21910 (GGML_CUDA_P2P).
"""

from __future__ import annotations

from linkproof.model import Consumer, Weighed

_NCCL_ONLY = ("nccl_version_bug", "cumem_host_numa", "nccl_library_conflict", "nccl_env_misconfig", "shm_too_small", "container_isolation")
_OWN_ALL_REDUCE = ("custom_allreduce_bug", "custom_allreduce_gate", "ipc_expandable_segments")
_PEER_PATH = (
    "iommu_translation", "acs_redirect", "p2p_driver_bug", "p2p_patched_driver_config", "bar1_too_small", "p2p_unsupported_platform",
    "rocm_p2p_copy_broken", "vm_passthrough_p2p", "p2p_broken_unattributed",
)  # fmt: skip
_MULTICAST = ("nvls_multicast",)

ENGINES = ("transformers", "torchrun", "vllm", "sglang", "llama.cpp")

# engine -> what keeps it off the peer path; () where no switch exists
_OFF_PEER: dict[str, tuple[str, ...]] = {
    "transformers": (),
    "torchrun": ("NCCL_P2P_DISABLE=1",),
    "vllm": ("NCCL_P2P_DISABLE=1", "--disable-custom-all-reduce", "VLLM_ALLREDUCE_USE_SYMM_MEM=0"),
    "sglang": ("NCCL_P2P_DISABLE=1", "--disable-custom-all-reduce"),
    "llama.cpp": ("unset GGML_CUDA_P2P",),
}


def consumers(leader: Weighed | None) -> dict[str, Consumer]:
    """engine -> Consumer, for a cause that reaches some engines and not others; {} where all depend on the mend alike."""
    if leader is None or leader.state == "ruled_out":
        return {}
    if leader.id in _PEER_PATH:
        return {e: Consumer("at_risk", _OFF_PEER[e]) for e in ENGINES}
    if leader.id in _OWN_ALL_REDUCE:
        flag = ("--disable-custom-all-reduce",)
        return {e: Consumer("at_risk", flag) if e in ("vllm", "sglang") else Consumer("not_reached") for e in ENGINES}
    if leader.id in _MULTICAST:
        off = ("NCCL_NVLS_ENABLE=0",)
        return {e: Consumer("at_risk", off) if e in ("torchrun", "vllm", "sglang") else Consumer("not_reached") for e in ENGINES}
    if leader.id in _NCCL_ONLY:
        return {e: Consumer("at_risk") if e in ("torchrun", "vllm", "sglang") else Consumer("not_reached") for e in ENGINES}
    return {}
