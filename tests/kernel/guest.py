"""Runs inside the guest: linkproof's readers as root and as nobody, and what `lspci` says of the same registers. Prints one JSON.

    root      what linkproof makes of the live machine, every answer recorded on the way
    user      the same by a process without any right
    capture   the recorded answers, packed as `linkproof collect` packs them
    lspci     `lspci -D -nn -vvv`, for comparison
    changed   lines of `lspci -xxxx` that are not as they were before linkproof read anything
    written   what both say after setpci wrote other words into the ports (only if asked: TEST_WRITES in the environment)

`describe` also runs on the host, on the capture: the two must be equal.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from base64 import encodebytes
from itertools import zip_longest
from typing import Any

import msgspec
from msgspec import Struct

from linkproof.collect.bundle import pack
from linkproof.collect.evidence import read_evidence
from linkproof.collect.host import Answer, Host, Live, Recorder
from linkproof.collect.mask import Mask
from linkproof.collect.mend import read_mend
from linkproof.model import Iommu
from linkproof.parse.pci_facts import facts_of, paths_of_interest
from linkproof.parse.pci_tree import PciFunction, tree
from linkproof.parse.topology import Path
from linkproof.report.say import Teller
from linkproof.report.topo import draw_matrix, draw_tree, to_xml

BEGIN, END = "LINKPROOF-BEGIN", "LINKPROOF-END"
NOBODY = 65534
VERBOSE = ("-nn", "-vvv")


class StandIn:
    """A host whose display adapters are said to be NVIDIA's.

    QEMU has no GPU of a maker that linkproof knows; its display adapter (1234:1111, class 0380) stands in. So that it counts as a GPU,
    the answer of its `vendor` file is exchanged before linkproof sees it: data of this test, no switch of the product. All else passes.
    """

    def __init__(self, host: Host) -> None:
        self.host, self.names, self.link, self.run = host, host.names, host.link, host.run

    def file(self, path: str) -> Answer:
        answer = self.host.file(path)
        return Answer(b"0x10de\n") if path.endswith("/vendor") and answer.text.strip() == "0x1234" else answer


class Seen(Struct):
    """All that linkproof makes of a host's PCI side."""

    functions: dict[str, PciFunction]
    facts: list[dict[str, Any]]
    paths: list[Path]
    tree: list[str]
    matrix: list[str]
    xml: str
    group_types: dict[str, str]
    iommus: list[str] | None
    acpi: list[str] | None
    answered: dict[str, str]  # source -> "" or why there is nothing


class Written(Struct):
    words: dict[str, str]  # port -> the word that setpci was told to write
    root: Seen
    lspci: str


class Report(Struct):
    kernel: str
    python: str
    cmdline: str
    dmesg: str
    root: Seen
    user: Seen
    lspci: str
    changed: list[str]
    capture: bytes
    written: Written | None
    up_s: float  # since the kernel's start, when all was done


def describe(host: Host) -> Seen:
    """Everything that linkproof says of a host, live or recorded."""
    evidence = read_evidence(StandIn(host))
    found = tree(evidence.pci.functions, evidence.pci.why)
    facts = facts_of(found, evidence.group_types)
    modes = {fact.device: fact.mode for fact in facts if isinstance(fact, Iommu)}
    return Seen(
        functions=found.functions,
        facts=[{"type": type(fact).__name__, **msgspec.to_builtins(fact)} for fact in facts],
        paths=paths_of_interest(found),
        tree=draw_tree(found, {}, modes, Teller("en")),
        matrix=draw_matrix(found),
        xml=to_xml(found),
        group_types=evidence.group_types,
        iommus=evidence.iommus,
        acpi=evidence.acpi,
        answered={got.source.name: got.answer.why for got in evidence.texts},
    )


def _as_nobody() -> Seen:
    """`describe` in a process that has given up every right."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with os.fdopen(writing, "wb") as out:
                out.write(msgspec.json.encode(describe(Live())))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as f:
        data = f.read()
    os.waitpid(child, 0)
    return msgspec.json.decode(data, type=Seen)


def _lspci(*how: str) -> str:
    return subprocess.run(["lspci", "-D", *how], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout


def _after_writing(writes: str) -> Written:
    """writes: `0000:00:1c.0=0001,...`"""
    words = dict(part.split("=") for part in writes.split(","))
    for bdf, word in words.items():
        subprocess.run(["setpci", "-s", bdf, f"ECAP_ACS+6.w={word}"], stderr=subprocess.DEVNULL, check=True)
    return Written(words, describe(Live()), _lspci(*VERBOSE))


def main() -> None:
    before = _lspci("-xxxx")
    user = _as_nobody()
    recorder = Recorder(Live())
    root = describe(recorder)
    read_mend(StandIn(recorder))
    live, writes = Live(), os.environ.get("TEST_WRITES")
    after = _lspci("-xxxx")
    report = Report(
        kernel=os.uname().release,
        python=sys.version,
        cmdline=live.file("/proc/cmdline").text,
        dmesg=live.run(("dmesg",)).text,
        root=root,
        user=user,
        lspci=_lspci(*VERBOSE),
        changed=[f"{a} -> {b}" for a, b in zip_longest(before.splitlines(), after.splitlines()) if a != b],
        capture=pack(recorder.log, Mask(), "linkproof"),
        written=_after_writing(writes) if writes else None,
        up_s=float(live.file("/proc/uptime").text.split()[0]),
    )
    packed = encodebytes(zlib.compress(msgspec.json.encode(report))).decode()
    print(f"{BEGIN}\n{packed}{END}", flush=True)


if __name__ == "__main__":
    main()
