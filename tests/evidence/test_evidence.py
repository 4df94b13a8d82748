"""Recorded and drawn machines, replayed: paths, ports, groups and links come out as a person confirmed them in expected.txt."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from linkproof.checking import check
from linkproof.collect.bundle import unpack
from linkproof.collect.evidence import read_evidence
from linkproof.collect.host import Recorded
from linkproof.facts import facts_from
from linkproof.model import Acs, Event, Fact, Iommu, KernelLog
from linkproof.parse.pci_tree import PciTree
from linkproof.parse.topology import joined
from linkproof.report.topo import draw_matrix

from .build import Machine
from .drawn import DRAWN
from .make_from_fixtures import manifest

HERE = Path(__file__).parent
MACHINES = sorted(p.parent.name for p in HERE.glob("*/manifest.json"))


@cache
def replay(name: str) -> tuple[list[Fact], PciTree]:
    data = (HERE / name / "manifest.json").read_bytes()
    return facts_from(read_evidence(Recorded(unpack(data, name))))


def said(fact: Fact) -> str:
    if isinstance(fact, Acs):
        return f"acs {fact.redirect} {fact.port} {fact.kind or '-'}, above {fact.above}: {fact.bits or fact.source.text}"
    if isinstance(fact, Iommu):
        return f"iommu {fact.mode} {fact.device}".rstrip()
    if isinstance(fact, KernelLog):
        return f"{fact.fact} {fact.device}"
    return f"{fact.kind} {fact.value}" if isinstance(fact, Event) else ""


def lines(name: str) -> str:
    facts, tree = replay(name)
    return "\n".join([*draw_matrix(tree, joined(tree, facts)), "", *(words for fact in facts if (words := said(fact)))]) + "\n"


@pytest.mark.parametrize("machine", MACHINES)
def test_a_recorded_machine_says_what_a_person_confirmed(machine: str) -> None:
    expected = HERE / machine / "expected.txt"
    if os.environ.get("UPDATE_EXPECTED"):
        expected.write_text(lines(machine), encoding="utf-8")
    assert lines(machine) == expected.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_the_stored_capture_of_a_drawn_machine_is_the_drawing(name: str) -> None:
    assert manifest(DRAWN[name]()) == (HERE / name / "manifest.json").read_bytes()


@pytest.mark.parametrize("machine", MACHINES)
def test_every_machine_says_where_it_is_from(machine: str) -> None:
    about = (HERE / machine / "about.md").read_text(encoding="utf-8")
    assert about.startswith(f"# {machine}\n") and len(about.splitlines()) >= 3


def acs(name: str) -> dict[str, str]:
    return {f.port: f.redirect for f in replay(name)[0] if isinstance(f, Acs)}


def narrowed(name: str) -> list[str]:
    return [f.value for f in replay(name)[0] if isinstance(f, Event) and f.kind == "link_downgraded"]


def test_without_root_every_port_on_a_path_is_unknown_and_none_is_off() -> None:
    assert set(acs("switches-acs-on").values()) == {"on"}
    assert set(acs("switches-no-root").values()) == {"unknown"}
    assert set(acs("switches-acs-on")) == set(acs("switches-no-root"))
    assert not [m for m in MACHINES if m.endswith("no-root") and set(acs(m).values()) - {"unknown"}]


def test_ports_that_lead_to_no_gpu_raise_no_alarm() -> None:
    ports = acs("acs-away-from-gpus")
    assert set(ports.values()) == {"off"} and not any(port.startswith("0000:00:") for port in ports)


def test_sleeping_links_raise_no_alarm_and_a_narrow_one_does() -> None:
    assert narrowed("idle-links") == []
    assert narrowed("x8-of-x16") == ["0000:02:00.0 x8 of x16"]
    assert [m for m in MACHINES if narrowed(m)] == ["x8-of-x16"]


def test_the_graphics_of_the_processor_are_no_third_gpu() -> None:
    tree = replay("two-cards-amd-root-complex")[1]
    assert [g.bdf for g in tree.gpus] == ["0000:01:00.0", "0000:02:00.0"]


def test_only_the_switch_between_two_switches_redirects_and_only_its_pairs_are_marked() -> None:
    rows = [row.split() for row in draw_matrix(replay("cascaded-switches")[1])][1:]
    assert [row[1:] for row in rows] == [
        ["X", "PIX", "PXB*", "PXB*"],
        ["PIX", "X", "PXB*", "PXB*"],
        ["PXB*", "PXB*", "X", "PIX"],
        ["PXB*", "PXB*", "PIX", "X"],
    ]


def test_the_four_boots_of_one_machine_differ_in_registers_and_groups_only() -> None:
    boots = [f"qemu-{boot}" for boot in ("intel-iommu-on", "iommu-pt", "iommu-off", "config-acs-off")]
    matrices = {"\n".join(draw_matrix(replay(b)[1])).replace("*", " ").replace(" ", "") for b in boots}
    assert len(matrices) == 1
    assert [max(f.acs or 0 for f in replay(b)[1].functions.values()) for b in boots] == [0x1D, 0x1D, 0, 0]
    modes = [{f.mode for f in replay(b)[0] if isinstance(f, Iommu) and f.device} for b in boots]
    assert modes == [{"translating"}, {"passthrough"}, {"off"}, {"translating"}]


def test_a_live_tree_of_files_says_what_its_drawing_says(tmp_path: Path) -> None:
    from linkproof.collect.host import Live

    drawn = DRAWN["switches-acs-on"]()
    drawn.write(tmp_path)
    live, memory = read_evidence(Live(str(tmp_path))), read_evidence(drawn)
    assert (live.pci, live.group_types, live.iommus) == (memory.pci, memory.group_types, memory.iommus)
    assert isinstance(drawn, Machine) and len(live.pci.functions) == 32


@pytest.mark.parametrize(
    "machine", ["acs-away-from-gpus", "h200-nvlink-pair-in-a-vm", "idle-links", "one-gpu-in-a-vm", "qemu-iommu-off", "xeon-phi-no-root"]
)
def test_a_machine_on_which_no_mechanism_stands_has_no_risk_and_is_not_called_healthy(machine: str) -> None:
    checked = check(Recorded(unpack((HERE / machine / "manifest.json").read_bytes(), machine)))
    assert checked.risks == () and checked.diagnosis.verdict == "cannot_tell"


def test_a_narrow_link_and_a_redirecting_switch_are_risks() -> None:
    for machine, cause in (
        ("x8-of-x16", "pcie_link_error"),
        ("switches-acs-on", "acs_redirect"),
        ("two-cards-amd-root-complex", "iommu_translation"),
    ):
        checked = check(Recorded(unpack((HERE / machine / "manifest.json").read_bytes(), machine)))
        assert cause in [w.id for w in checked.risks]
