from __future__ import annotations

import pytest

from linkproof.parse.settings import is_secret, masked, reaches, split_setting


def test_a_setting_splits_into_key_and_value() -> None:
    assert split_setting("NCCL_P2P_DISABLE=1 --foo") == ("NCCL_P2P_DISABLE", "1")
    assert split_setting("--disable-custom-all-reduce") == ("--disable-custom-all-reduce", "")
    assert split_setting("fewer GPUs") == ("", "")


def test_the_switch_of_nccl_reaches_nccl_and_nobody_else() -> None:
    assert reaches("NCCL_P2P_DISABLE", "nccl") is True
    assert reaches("NCCL_P2P_DISABLE", "torch_copy") is False
    assert reaches("NCCL_P2P_DISABLE", "custom_allreduce") is False


def test_the_iommu_reaches_everyone_and_an_acs_override_no_one() -> None:
    assert reaches("iommu", "torch_copy") is True
    assert reaches("pcie_acs_override", "nccl") is False


def test_an_unknown_setting_reaches_we_do_not_know_whom() -> None:
    assert reaches("FOO_BAR", "nccl") is None


@pytest.mark.parametrize(
    "key, secret", [("HF_TOKEN", True), ("VLLM_API_KEY", True), ("NCCL_DEBUG", False), ("TOKENIZERS_PARALLELISM", False)]
)
def test_secrets_are_known_by_the_words_of_their_names(key: str, secret: bool) -> None:
    assert is_secret(key) is secret


@pytest.mark.parametrize("words, kept", [
    ("docker run -e HF_TOKEN=hf_abcdefghijklmnopqrst -e NCCL_DEBUG=INFO img", "docker run -e HF_TOKEN=*** -e NCCL_DEBUG=INFO img"),
    ('OPENAI_API_KEY: "sk-abcdefghijklmnopqrstuv"', 'OPENAI_API_KEY: "***"'),
    ("login with hf_abcdefghijklmnopqrstuvwxyz now", "login with *** now"),
    ("NCCL_P2P_LEVEL=SYS keeps its value", "NCCL_P2P_LEVEL=SYS keeps its value"),
])  # fmt: skip
def test_values_of_secrets_are_struck_out_of_a_line(words: str, kept: str) -> None:
    assert masked(words) == kept
