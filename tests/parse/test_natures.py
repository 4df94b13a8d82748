"""What people tried is understood from their own words, and other words say nothing."""

from __future__ import annotations

import pytest

from linkproof.parse.natures import natures


@pytest.mark.parametrize(
    ("name", "nature"),
    [
        ("export NCCL_P2P_DISABLE=1", {"p2p_off"}),
        ("NCCL_P2P_DISABLE=1 --disable-custom-all-reduce", {"p2p_off", "custom_ar_off"}),
        ("disable_custom_all_reduce: true", {"custom_ar_off"}),
        ("IOMMU off in BIOS and kernel", {"iommu_off"}),
        ("disable VT-d", {"iommu_off"}),
        ("amd_iommu=on iommu=pt", {"iommu_pt"}),
        ("ACS disabled in BIOS", {"acs_off"}),
        ("downgrade driver to 535", {"driver"}),
        ("pip install nvidia-nccl-cu12==2.18.3", {"nccl_version"}),
        ("another NCCL (2.19.3)", {"nccl_version"}),
        ("vllm 0.6.2 instead of 0.6.3", {"library"}),
        ("kernel 6.8", {"kernel"}),
        ("tensor_parallel_size=1", {"single_gpu"}),
        ("NCCL_P2P_LEVEL=PHB", {"p2p_forced"}),
        ("NCCL_P2P_DISABLE=0", {"p2p_forced"}),
        ("NCCL_CUMEM_HOST_ENABLE=0", {"cumem_host_off"}),
        ("remove NCCL_BUFFSIZE", {"env_removed"}),
        ("systemctl stop firewalld", {"firewall"}),
        ("switch to xformers backend", {"attention_backend"}),
        ("disable cuda graphs", {"eager"}),
        ("HSA_ENABLE_SDMA=0", {"sdma_off"}),
        ("CUDA_VISIBLE_DEVICES=1,0", {"device_select"}),
    ],
)
def test_a_switch_is_known_by_what_it_does(name: str, nature: set[str]) -> None:
    assert natures(name) == nature


@pytest.mark.parametrize("name", ["NCCL_DEBUG=INFO", "more coffee", "", "VLLM_LOGGING_LEVEL=DEBUG", "{x}\n" * 50, "NCCL_P2P_LEVEL=foo"])
def test_words_that_say_nothing_known_have_no_nature(name: str) -> None:
    assert natures(name) == frozenset()
