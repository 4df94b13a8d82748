"""Every scenario that is shipped can be read, says what it is in both languages, and its host reads like a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from linkproof.checking import Checked, check
from linkproof.errors import UsageError
from linkproof.model import Acs, Event, FabricManager, Gpu, KernelLog, PeerAccess, Platform
from linkproof.model import Host as HostFact
from linkproof.parse.topology import pairs
from linkproof.sim.host import SimHost
from linkproof.sim.scenario import load, names
from linkproof.sim.virtual import Virtual, create


def read(name: str) -> Checked:
    return check(SimHost(load(name)))


def test_there_are_enough_scenarios_and_both_kinds() -> None:
    verdicts = [load(name).expect.verdict for name in names()]
    assert len(verdicts) >= 14 and {"healthy", "faulty", "cannot_tell"} == set(verdicts)


@pytest.mark.parametrize("name", names())
def test_a_scenario_says_what_it_is_and_expects_causes_that_exist(name: str) -> None:
    s = load(name)
    assert s.title.en and any("\u4e00" <= c <= "\u9fff" for c in s.title.zh) and s.modelled_on
    known = {path.stem for path in (Path(__file__).parents[2] / "src/linkproof/causes").glob("*.md")}
    assert set(s.expect.causes) <= known
    assert bool(s.expect.causes) == (s.expect.verdict == "faulty")


@pytest.mark.parametrize("name", names())
def test_the_host_shows_the_same_gpus_as_the_probe(name: str, tmp_path: Path) -> None:
    checked = read(name)
    create(load(name), tmp_path)
    assert [g.bdf for g in checked.tree.gpus] == [c.bdf for c in Virtual(tmp_path).cards()]
    assert not [u.name for u in checked.unread if u.name == "/sys/bus/pci/devices"]


def test_redirecting_ports_are_seen_where_they_are() -> None:
    checked = read("acs-redirect-4x4090")
    acs = {f.port: (f.redirect, f.kind) for f in checked.diagnosis.facts if isinstance(f, Acs)}
    switches = {f"0000:{b}:0{n}.0": ("on", "downstream_port") for b in (42, 82) for n in (0, 1)}
    assert acs == {**switches, "0000:40:01.1": ("on", "root_port"), "0000:80:01.1": ("on", "root_port")}
    assert {(p.a[5:7], p.b[5:7]): p.smi for p in pairs(checked.tree)}["43", "44"] == "PIX"
    assert set(checked.modes.values()) == {"passthrough"}
    assert any(f.kind == "patched_driver" for f in checked.diagnosis.facts if isinstance(f, Event))


def test_a_healthy_host_redirects_nothing() -> None:
    for name in ("healthy-2xpcie", "healthy-8xnvlink", "amd-2x-mi210"):
        checked = read(name)
        assert {f.redirect for f in checked.diagnosis.facts if isinstance(f, Acs)} == {"off"}
        assert checked.diagnosis.verdict == "cannot_tell" and not checked.risks, "nothing was measured, and nothing is wrong"


def test_a_translating_iommu_and_its_fault_are_read() -> None:
    checked = read("iommu-translating-2xa6000")
    assert set(checked.modes.values()) == {"translating"}
    faults = [f for f in checked.diagnosis.facts if isinstance(f, KernelLog) and f.fact == "io_page_fault"]
    assert [f.device for f in faults] == ["0000:01:00.0"] and checked.diagnosis.causes[0].id == "iommu_translation"


@pytest.mark.parametrize(("name", "kind"), [("healthy-2xpcie", "bare_metal"), ("private-mirror-2x", "vm"), ("shm-too-small", "container")])
def test_the_platform_is_read(name: str, kind: str) -> None:
    assert {f.kind for f in read(name).diagnosis.facts if isinstance(f, Platform)} == {kind}


def test_what_tools_say_is_read() -> None:
    def facts(name: str, kind: type) -> list[object]:
        return [f for f in read(name).diagnosis.facts if isinstance(f, kind)]

    assert any(isinstance(f, HostFact) and (f.fact, f.value) == ("shm_bytes", str(64 << 20)) for f in facts("shm-too-small", HostFact))
    assert any(isinstance(f, Gpu) and f.fact == "bar1_smaller_than_vram" for f in facts("bar1-small-256MiB", Gpu))
    assert {f.claimed for f in facts("p2p-refused-geforce", PeerAccess) if isinstance(f, PeerAccess)} == {"none"}
    assert [f.state for f in facts("healthy-8xnvlink", FabricManager) if isinstance(f, FabricManager)] == ["running"]
    assert any(isinstance(f, Event) and f.kind == "nvlink_down" for f in facts("nvlink-one-link-down", Event))


def test_what_links_tell_while_traffic_runs_stands_in_the_log_and_the_counters(tmp_path: Path) -> None:
    create(load("iommu-translating-2xa6000"), tmp_path)
    v = Virtual(tmp_path)
    before = SimHost(v.scenario, tmp_path).run(("dmesg",)).text
    v.move("push", v.alloc(1, 64), 0, v.alloc(0, 64), 0, 64)
    after = SimHost(v.scenario, tmp_path).run(("dmesg",)).text
    assert "0000:41:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT" in after.removeprefix(before.rstrip())
    create(load("link-errors-under-load"), tmp_path / "l")
    v = Virtual(tmp_path / "l")
    v.loaded = True
    a, b = v.alloc(0, 64), v.alloc(3, 64)
    for _ in range(20):
        v.move("push", a, 0, b, 0, 64)
    text = SimHost(v.scenario, tmp_path / "l").file("/sys/bus/pci/devices/0000:c6:00.0/aer_dev_correctable").text
    assert int(text.split()[-1]) > 9120


def test_an_unknown_name_lists_those_that_exist() -> None:
    with pytest.raises(UsageError) as e:
        load("no-such-machine")
    assert e.value.ref == "no-such-scenario" and all(name in e.value.do[0] and name in e.value.do[1] for name in names())


GOOD = """modelled_on = "x"
title = {en = "a", zh = "b"}
expect = {verdict = "healthy"}
gpus = [{name = "g", place = "pci0000:00/0000:00:01.0/0000:01:00.0", memory_GiB = 1.0}]
"""


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        (GOOD + "colour = 1\n", "colour"),
        (GOOD.replace("memory_GiB = 1.0", 'memory_GiB = "much"'), "memory_GiB"),
        (GOOD.replace('"healthy"', '"fine"'), "fine"),
        (GOOD + '[[faults]]\nkind = "melt"\n', "melt"),
        (GOOD + '[[faults]]\nkind = "zero"\npairs = ["0->5"]\n', "0->5"),
        (GOOD.replace("gpus = [", "gpus = ["[:-1]), "line"),
        ("gpus = []\n", "title"),
    ],
)
def test_a_spoilt_file_is_refused_and_the_place_is_said(tmp_path: Path, spoilt: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert load(str(path)).gpus[0].name == "g"
    path.write_text(spoilt)
    with pytest.raises(UsageError) as e:
        load(str(path))
    assert e.value.ref == "bad-scenario" and said in e.value.what[0]
