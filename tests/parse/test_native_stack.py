"""Stacks inside NCCL and addresses that belong to nobody are seen; other stacks and plain overruns are not."""

from __future__ import annotations

import pytest

from linkproof.model import Event
from linkproof.parse import read
from linkproof.parse.clean import clean

KINDS = ("nccl_stack", "cumem_host_failed", "sanitizer_far")


def events(text: str) -> list[tuple[str, str]]:
    return [(f.kind, f.value) for f in read(clean("stack", text)) if isinstance(f, Event) and f.kind in KINDS]


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("#0  ncclLocalOpAppend (comm=0xaaab2d0f8000, proxyConn=0xfffe9c014d28) at proxy.cc:462", ("nccl_stack", "ncclLocalOpAppend")),
        ("#5 0x00007f1b2c3d4e5f in ncclProxyProgress () from /usr/lib/libnccl.so.2", ("nccl_stack", "ncclProxyProgress")),
        (
            "[hostA:01733] [ 5] /usr/lib/libnccl.so.2(_Z19ncclCuMemHostEnablev+0x1b2)[0x7f0f6d2a7f32]",
            ("cumem_host_failed", "ncclCuMemHostEnable"),
        ),
        (
            "=========     and is 130,023,424 bytes after the nearest allocation at 0x7f2a14000000 of size 6,291,456 bytes",
            ("sanitizer_far", "130023424"),
        ),
    ],
)
def test_what_a_stack_says_is_read(line: str, event: tuple[str, str]) -> None:
    assert event in events(line)


@pytest.mark.parametrize(
    "line",
    [
        "#2  __futex_abstimed_wait_common64 (private=0) at futex-internal.c:57",
        "/usr/lib/x86_64-linux-gnu/libcuda.so.1(cuMemCreate+0x6e)[0x7f0f3a7d0b3e]",
        "=========     and is 4 bytes after the nearest allocation at 0x7f2a14000000 of size 1,024 bytes",
    ],
)
def test_other_stacks_and_small_overruns_say_nothing(line: str) -> None:
    assert events(line) == []
