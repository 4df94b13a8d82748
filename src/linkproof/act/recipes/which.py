"""Which finding has which recipe: the one place. A cause is here, or is mended in the program and not on the machine. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from linkproof.act.recipes import bios, by_hand
from linkproof.act.recipes.acs import acs
from linkproof.act.recipes.by_hand import told
from linkproof.act.recipes.case import Case
from linkproof.act.recipes.fabric import fabric_manager, gpu_reset
from linkproof.act.recipes.iommu import iommu, iommu_back
from linkproof.act.recipes.memory import memlock, shm
from linkproof.act.recipes.nvidia import hmm, static_bar1
from linkproof.mending import Step

Recipe = Callable[[Case], Iterator[Step]]

# in the order in which they are planned: what acts now and goes by itself before what lasts
MENDS: dict[str, tuple[Recipe, ...]] = {
    "acs_redirect": (acs,),
    "iommu_translation": (iommu,),
    "p2p_broken_unattributed": (acs, iommu),
    "rocm_p2p_copy_broken": (acs, iommu, bios.bar, told(by_hand.ROCM)),
    "fabric_manager_down": (fabric_manager,),
    "nvls_multicast": (gpu_reset, told(by_hand.IMEX)),
    "shm_too_small": (shm,),
    "rdma_memlock_limit": (memlock,),
    "p2p_patched_driver_config": (static_bar1, hmm, bios.bar),
    "bar1_too_small": (bios.bar,),
    "iommu_off_side_effect": (iommu_back,),
    "driver_runtime_mismatch": (hmm, told(by_hand.DRIVER_PARTS)),
    "p2p_driver_bug": (told(by_hand.DRIVER),),
    "gsp_firmware_bug": (told(by_hand.GSP),),
    "p2p_unsupported_platform": (told(by_hand.FORCED),),
    "vm_passthrough_p2p": (told(by_hand.GUEST),),
    "vm_topology_missing": (told(by_hand.TOPOLOGY),),
    "pcie_link_error": (told(by_hand.LINK),),
    "slow_interconnect": (told(by_hand.PLACE),),
    "nvlink_fault": (told(by_hand.NVLINK),),
    "gpu_hardware_fault": (told(by_hand.CARD),),
    "mig_unsupported": (told(by_hand.MIG),),
    "cumem_host_numa": (told(by_hand.NUMA),),
    "container_isolation": (told(by_hand.CONTAINER),),
    "firewall": (told(by_hand.FIREWALL),),
    "multi_node_rdma_config": (told(by_hand.RDMA),),
}

# mended in the program, its settings, its libraries or how it is started; `linkproof causes ID` says how
IN_THE_PROGRAM = frozenset(
    {
        "attention_mask_padding", "collective_mismatch", "custom_allreduce_bug", "custom_allreduce_gate", "duplicate_gpu", "fork_after_cuda_init",
        "gpu_shared_with_other_process", "gpu_virtualization_shim", "input_token_out_of_vocab", "ipc_expandable_segments", "label_out_of_range",
        "library_device_map_bug", "library_kernel_device_guard", "library_kernel_numeric_bug", "library_peer_mapping_bug", "library_tp_sharding_bug",
        "nccl_env_misconfig", "nccl_library_conflict", "nccl_version_bug", "numeric_overflow_fp16", "p2p_copy_sync", "position_beyond_max",
        "rank_busy_timeout", "rank_died_oom", "ray_resource", "rdma_gid_index", "wrong_device_visible", "wrong_network_interface",
    }
)  # fmt: skip
