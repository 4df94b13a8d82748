from __future__ import annotations

import pytest
from machine_texts import of

from linkproof.model import FabricManager

STATUS = """\
● nvidia-fabricmanager.service - NVIDIA fabric manager service
     Loaded: loaded (/lib/systemd/system/nvidia-fabricmanager.service; enabled; vendor preset: enabled)
     Active: {0} since Tue 2025-03-25 02:10:15 UTC; 2h 37min ago
    Process: 2114 ExecStart=/usr/bin/nv-fabricmanager -c /usr/share/nvidia/nvswitch/fabricmanager.cfg (code=exited, status=0/SUCCESS)
"""


def states(words: str) -> list[str]:
    return [fact.state for fact in of(FabricManager, words)]


@pytest.mark.parametrize(
    "active, state", [("active (running)", "running"), ("inactive (dead)", "stopped"), ("failed (Result: signal)", "stopped")]
)
def test_the_status_block_says_if_it_runs(active: str, state: str) -> None:
    assert states(STATUS.format(active)) == [state]


def test_a_service_that_just_starts_is_neither() -> None:
    assert not states(STATUS.format("activating (start)"))


@pytest.mark.parametrize("verb", ["don't", "doesn't"])
def test_a_version_that_does_not_match_wins_over_the_failed_start(verb: str) -> None:
    words = f"nv-fabricmanager[104230]: fabric manager NVIDIA GPU driver interface version 550.127.05 {verb} match with driver version 550.120.\n"
    words += "systemd[1]: nvidia-fabricmanager.service: Control process exited, code=exited, status=1/FAILURE\n"
    assert states(words + STATUS.format("failed (Result: exit-code)")) == ["version_mismatch"]


@pytest.mark.parametrize("words, state", [
    ("Unit nvidia-fabricmanager.service could not be found.", "stopped"),
    ("$ systemctl is-active nvidia-fabricmanager\ninactive", "stopped"),
    ("$ systemctl is-active nvidia-fabricmanager\nactive", "running"),
    ("systemd[1]: Started nvidia-fabricmanager.service - NVIDIA fabric manager service.", "running"),
    ("nv-fabricmanager[1]: Successfully configured all the available GPUs and NVSwitches to route NVLink traffic.", "running"),
    ("root  1234  0.0  0.0 /usr/bin/nv-fabricmanager -c /usr/share/nvidia/nvswitch/fabricmanager.cfg", "running"),
    ("nv-fabricmanager: request to query NVSwitch device information from NVSwitch driver failed with error:WARNING Nothing to do", "stopped"),
])  # fmt: skip
def test_other_tools_say_it_too(words: str, state: str) -> None:
    assert states(words) == [state]


@pytest.mark.parametrize("words", [
    "sudo systemctl enable --now nvidia-fabricmanager",
    "This is usually caused by a system or configuration error in the Fabric Manager or NVSwitches.",
    "Fabric Manager version is : 580.126.09",
])  # fmt: skip
def test_a_mention_is_no_state(words: str) -> None:
    assert not states(words)
