"""The settings of one engine as text: right for the tool that reads it, whatever a value holds."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest
import yaml

from linkproof.model import Consumer
from linkproof.report.env import FORMATS, settings_text, sorted_out

VLLM = Consumer("safe_with", ("NCCL_P2P_DISABLE=1", "--disable-custom-all-reduce", "VLLM_ALLREDUCE_USE_SYMM_MEM=0"), ("flags",))
NASTY = "a b'\"$(touch x)`%n\\"
HOSTILE = Consumer("safe_with", (f"NCCL_X={NASTY}", "unset GGML_CUDA_P2P"), ("push\nrm -rf x",))


def lines(consumer: Consumer, form: str) -> list[str]:
    return [line for line in settings_text(consumer, "vllm", form).splitlines() if not line.startswith("#")]


def test_settings_are_sorted_by_what_they_are() -> None:
    found = sorted_out((*VLLM.settings, "unset GGML_CUDA_P2P", "--level=3", "NCCL_PROTO=^LL128"))
    assert found.env == {"NCCL_P2P_DISABLE": "1", "VLLM_ALLREDUCE_USE_SYMM_MEM": "0", "NCCL_PROTO": "^LL128"}
    assert found.unset == ("GGML_CUDA_P2P",) and found.flags == ("--disable-custom-all-reduce", "--level=3")


def test_a_shell_reads_exactly_these_values() -> None:
    said = settings_text(HOSTILE, "llama.cpp", "shell")
    script = f'GGML_CUDA_P2P=1\n{said}\nprintf \'%s|%s\' "$NCCL_X" "${{GGML_CUDA_P2P-gone}}"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{NASTY}|gone"
    assert lines(VLLM, "shell") == ["export NCCL_P2P_DISABLE=1", "export VLLM_ALLREDUCE_USE_SYMM_MEM=0"]
    assert "--disable-custom-all-reduce" in settings_text(VLLM, "vllm", "shell")


def test_json_tells_all_parts_apart() -> None:
    said = json.loads(settings_text(VLLM, "vllm", "json"))
    assert said["env"] == {"NCCL_P2P_DISABLE": "1", "VLLM_ALLREDUCE_USE_SYMM_MEM": "0"} and said["flags"] == ["--disable-custom-all-reduce"]
    assert said["engine"] == "vllm" and said["state"] == "safe_with" and said["modes"] == ["flags"] and said["schema"] == 1
    assert json.loads(settings_text(HOSTILE, "vllm", "json"))["env"]["NCCL_X"] == NASTY


def test_docker_takes_one_line_of_options() -> None:
    assert lines(VLLM, "docker") == ["--env NCCL_P2P_DISABLE=1 --env VLLM_ALLREDUCE_USE_SYMM_MEM=0 --shm-size=16g"]
    assert shlex.split(lines(HOSTILE, "docker")[0]) == ["--env", f"NCCL_X={NASTY}"]


def test_kubernetes_and_compose_are_yaml() -> None:
    pod = yaml.safe_load(settings_text(VLLM, "vllm", "k8s"))
    assert pod["env"] == [{"name": "NCCL_P2P_DISABLE", "value": "1"}, {"name": "VLLM_ALLREDUCE_USE_SYMM_MEM", "value": "0"}]
    assert pod["args"] == ["--disable-custom-all-reduce"] and pod["volumeMounts"][0]["mountPath"] == "/dev/shm"
    service = yaml.safe_load(settings_text(VLLM, "vllm", "compose"))
    assert service == {"environment": {"NCCL_P2P_DISABLE": "1", "VLLM_ALLREDUCE_USE_SYMM_MEM": "0"}, "shm_size": "16g"}
    assert yaml.safe_load(settings_text(HOSTILE, "x", "k8s"))["env"][0]["value"] == NASTY
    assert yaml.safe_load(settings_text(HOSTILE, "x", "compose"))["environment"]["NCCL_X"] == NASTY.replace("$", "$$")


def test_systemd_escapes_its_own_signs() -> None:
    assert lines(VLLM, "systemd") == ["[Service]", 'Environment="NCCL_P2P_DISABLE=1"', 'Environment="VLLM_ALLREDUCE_USE_SYMM_MEM=0"']
    assert lines(HOSTILE, "systemd")[1:] == ['Environment="NCCL_X=a b\'\\"$(touch x)`%%n\\\\"', "UnsetEnvironment=GGML_CUDA_P2P"]


def test_shared_memory_is_asked_for_only_where_nccl_is_sent_there() -> None:
    net = Consumer("safe_with", ("NCCL_P2P_DISABLE=1", "NCCL_SHM_DISABLE=1"), ("nccl",))
    assert "shm" not in settings_text(net, "torchrun", "docker").lower().replace("nccl_shm_disable=1", "")
    assert "shm" not in settings_text(net, "torchrun", "compose").lower().replace("nccl_shm_disable", "")


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_says_why_and_no_value_breaks_out_of_a_comment(form: str) -> None:
    said = settings_text(HOSTILE, "vllm", form)
    assert "vllm" in said and said.endswith("\n")
    assert not any(line.startswith("rm ") for line in said.splitlines())


@pytest.mark.parametrize(
    ("consumer", "words"),
    [
        (Consumer("safe"), "safe as it is"),
        (Consumer("unknown", (), ("nccl",)), "cannot tell, nccl was not tested"),
        (Consumer("at_risk", (), ("push",)), "no setting moves it off"),
        (Consumer("at_risk", ("NCCL_P2P_DISABLE=1",), ("nccl",)), "was not tested"),
        (Consumer("at_risk", ("NCCL_P2P_DISABLE=1",)), "nothing was measured"),
        (Consumer("not_reached"), "not reached"),
        (VLLM, "tested on this machine"),
    ],
)
def test_the_first_line_says_how_sure_it_is(consumer: Consumer, words: str) -> None:
    assert words in settings_text(consumer, "torchrun", "shell").splitlines()[0]
    if not consumer.settings:
        assert lines(consumer, "shell") == []
