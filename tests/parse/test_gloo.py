import pytest

from linkproof.model import Event, Fact, Iface
from linkproof.parse import read
from linkproof.parse.clean import clean


def facts(words: str) -> list[Fact]:
    return read(clean("log", words))


def events(words: str) -> list[tuple[str, str]]:
    return [(f.kind, f.value) for f in facts(words) if isinstance(f, Event)]


def test_ranks_that_cannot_connect_give_the_address_they_tried() -> None:
    line = "RuntimeError: Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:144] timed out connecting: SO_ERROR: Connection refused, "
    assert events(line + "remote=[127.0.0.1]:14215") == [("gloo_failed", "127.0.0.1")]


def test_an_address_below_the_message_belongs_to_it() -> None:
    lines = "RuntimeError: Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:144]\ntimed out connecting: SO_ERROR: x, remote=[10.0.0.7]:1"
    assert events(lines) == [("gloo_failed", "10.0.0.7")]


def test_a_message_without_an_address_is_told_without() -> None:
    assert events("RuntimeError: Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:144] no error") == [("gloo_failed", "")]


def test_an_address_far_below_is_not_taken() -> None:
    lines = "RuntimeError: Gloo connectFullMesh failed\na\nb\nc\nremote=[10.0.0.7]:1"
    assert events(lines) == [("gloo_failed", "")]


@pytest.mark.parametrize("line, want", [
    ("[W ProcessGroupGloo.cpp:715] Warning: Unable to resolve hostname to a (local) address. Using the loopback address as fallback. Manually set",
     ("gloo_loopback", "")),
    ("RuntimeError: [/b/third_party/gloo/gloo/transport/tcp/pair.cc:799] connect [127.0.1.1]:33219: Connection refused", ("gloo_failed", "127.0.1.1")),
    ("RuntimeError: [/b/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete",
     ("collective_timeout", "recv")),
    ("RuntimeError: [enforce fail at gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 2048 vs 4", ("collective_mismatch", "2048 vs 4")),
    ("RuntimeError: [/b/third_party/gloo/gloo/transport/tcp/pair.cc:525] Connection closed by peer [10.0.0.2]:4411",
     ("store_closed", "Connection closed by peer")),
])  # fmt: skip
def test_what_a_line_says_is_an_event(line: str, want: tuple[str, str]) -> None:
    assert want in events(line)


def test_a_named_interface_that_is_not_there_is_told() -> None:
    found = facts("RuntimeError: [enforce fail at gloo/transport/tcp/device.cc:83] ifa != nullptr. Unable to find address for: eth7")
    assert [(f.library, f.name) for f in found if isinstance(f, Iface)] == [("gloo", "eth7")]
    assert [f.kind for f in found if isinstance(f, Event)] == ["gloo_failed"]


@pytest.mark.parametrize("line", [
    "[Gloo] Rank 0 is connected to 7 peer ranks. Expected number of connected peer ranks is : 7",
    "Waiting for recv operation to complete",
    "ssh: connect to host node1 port 22: Connection refused",
])  # fmt: skip
def test_success_and_other_programs_are_no_event(line: str) -> None:
    assert events(line) == []
