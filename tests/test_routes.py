"""The route table: states, slowness, what is proven in all, its key, and its place on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from linkproof import routes_cache
from linkproof.measured import Case, Outcome, Speed
from linkproof.routes import SEVERITY, key, key_parts, link_GBps, proof, table, worst
from measured_machine import PAIR_MODES, Changes, both, iommu, machine, switches, wrong

# ---------------------------------------------------------------- states


def test_the_worst_state_wins_and_nothing_tried_is_not_tested() -> None:
    assert worst(("verified", "slow", "corrupt", "hung")) == "corrupt"
    assert worst(("verified", "not_tested")) == "not_tested" and worst(()) == "not_tested"
    assert len(SEVERITY) == 7


def test_a_pair_is_as_good_as_its_worst_load() -> None:
    probed = machine(2)
    loaded = Outcome(Case("push", (0, 1), "both_ways"), "corrupt")
    routes = table(msgspec.structs.replace(probed, outcomes=(*probed.outcomes, loaded)))
    assert routes.state(0, 1, "push") == "corrupt" and routes.state(1, 0, "push") == "verified"
    assert routes.cell(0, 1, "push").loads == (("alone", "verified"), ("both_ways", "corrupt"))


def test_what_hangs_with_all_pairs_at_once_is_laid_to_every_pair() -> None:
    probed = machine(3)
    hung = Outcome(Case("push", (0, 1, 2), "all"), "hung")
    routes = table(msgspec.structs.replace(probed, outcomes=(*probed.outcomes, hung)))
    assert {routes.state(a, b, "push") for a, b in routes.pairs} == {"hung"}
    assert routes.state(0, 1, "pull") == "verified"


def test_a_pair_that_was_never_tried_is_not_tested() -> None:
    routes = table(machine(2, change={("push", (1, 0)): {"state": ""}}))
    assert routes.state(1, 0, "push") == "not_tested" and routes.over_pairs("push") == "not_tested"


def test_an_arm_that_nccl_served_over_another_transport_proves_nothing() -> None:
    routes = table(machine(2, change={("nccl shm/Simple", ()): {"transport": "P2P/CUMEM"}}))
    assert routes.group("nccl", "shm/Simple").state == "not_tested" and routes.transport("shm") == "not_tested"
    assert table(machine(2)).transport("shm") == "verified"


# ---------------------------------------------------------------- slow


@pytest.mark.parametrize(("bw", "state"), [(6.0, "slow"), (11.5, "verified"), (24.0, "verified")])
def test_slower_than_through_the_host_is_a_finding(bw: float, state: str) -> None:
    routes = table(machine(2, bw={(0, 1, "push"): bw, (1, 0, "push"): bw}))
    assert routes.state(0, 1, "push") == state
    assert ("host memory" in routes.cell(0, 1, "push").why) == (state == "slow")


def test_a_spread_that_reaches_the_control_is_no_finding() -> None:
    probed = machine(2)
    wide = tuple(Speed(s.src, s.dst, s.mode, 10.0, (4.0, 12.5)) if s.mode == "push" else s for s in probed.speeds)
    assert table(msgspec.structs.replace(probed, speeds=wide)).state(0, 1, "push") == "verified"


def test_the_narrowest_link_of_the_way_is_the_yardstick() -> None:
    tree = switches(2)
    cards = [tree.functions[f"0000:{0x10 + i:02x}:00.0"] for i in range(2)]
    found = link_GBps(tree, *cards)
    assert found is not None and 31.4 < found[0] < 31.6 and "x16" in found[1]
    slow = table(machine(2, bw={(0, 1, "push"): 14.0, (1, 0, "push"): 14.0}), tree).cell(0, 1, "push")
    assert slow.state == "slow" and slow.args["against"] == "31.5"
    assert table(machine(2, bw={(0, 1, "push"): 14.0, (1, 0, "push"): 14.0}), switches(2, best=8)).state(0, 1, "push") == "verified"


def test_one_direction_slower_than_the_other_is_told_against_it() -> None:
    bw = {(0, 1, "push"): 40.0, (1, 0, "push"): 15.0}
    cell = table(machine(2, bw=bw)).cell(1, 0, "push")
    assert cell.state == "slow" and cell.args == {"bw": "15.0", "against": "40.0"}


def test_odd_ones_out_are_a_minority_or_nobody_is_accused() -> None:
    fast = {(a, b, "push"): 200.0 for a in range(4) for b in range(4) if a != b}
    one_pair = {**fast, (2, 3, "push"): 24.0, (3, 2, "push"): 24.0}
    routes = table(machine(4, bw=one_pair))
    assert {(c.gpus, c.mode) for c in routes.slow} == {((2, 3), "push"), ((3, 2), "push")}
    half = {p: 24.0 if 0 in p[:2] else 200.0 for p in fast}
    assert not table(machine(4, bw=half)).slow


# ---------------------------------------------------------------- what is proven


@pytest.mark.parametrize(
    ("what", "word"),
    [
        ({}, "all"),
        ({"change": wrong((0, 1))}, "bad"),
        ({"change": {("load16", (1, 0)): {"state": "not_tested"}}}, "part"),
        ({"change": {("views", (1, 0)): {"state": ""}}}, "part"),
        ({"change": {("ipc_vmm", p): {"state": "refused"} for p in both((0, 1))}}, "all"),
        ({"change": {("atomics", p): {"state": "corrupt"} for p in both((0, 1))}}, "all"),
        ({"arms": {"default/default": ""}}, "part"),
        ({"arms": {"default/default": "corrupt"}}, "bad"),
        ({"arms": {"p2p/LL128": "corrupt"}}, "all"),
        ({"arms": {"p2p/LL128": "corrupt", "default/default": "corrupt"}}, "bad"),
        ({"bw": {(0, 1, "push"): 5.0}}, "slow"),
    ],
)
def test_what_may_be_said_of_a_machine(what: dict[str, Any], word: str) -> None:
    assert proof(table(machine(2, **what))).word == word


def test_one_gpu_has_no_link_to_prove() -> None:
    assert proof(table(machine(1))).word == "one_gpu"


def _refused(staged: str) -> Changes:
    change: Changes = {(m, p): {"state": "refused"} for m in PAIR_MODES for p in both((0, 1))}
    return {**change, **{("staged", p): {"state": staged} for p in both((0, 1))}, ("chain", (0, 1, 0)): {"state": "refused"}}


def test_refused_everywhere_is_proven_only_through_the_host() -> None:
    assert proof(table(machine(2, change=_refused("verified")))).word == "no_p2p"
    assert proof(table(machine(2, change=_refused("not_tested")))).word == "part"


def test_what_only_nvidia_has_is_not_missed_on_amd() -> None:
    missing: Changes = {("flags", p): {"state": "not_tested"} for p in both((0, 1))}
    assert proof(table(machine(2, change=missing, backend="hip"))).word == "all"
    assert proof(table(machine(2, change=missing))).word == "part"


# ---------------------------------------------------------------- the key


def _parts(**more: Any) -> dict[str, str]:
    given: dict[str, Any] = {
        "driver": "580.95",
        "kernel": "6.8",
        "boot_id": "b1",
        "firmware": "96.02",
        "versions": {"torch": "2.13"},
        **more,
    }
    return key_parts(machine(2).cards, given.pop("tree", switches(2)), given.pop("modes", iommu(2)), **given)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"driver": "590.1"}, "driver"), ({"kernel": "6.9"}, "kernel"), ({"boot_id": "b2"}, "boot"), ({"firmware": "97"}, "firmware"),
        ({"tree": switches(2, (0,))}, "ACS"), ({"modes": iommu(2, 1)}, "IOMMU"), ({"versions": {"torch": "2.14"}}, "libraries"),
    ],
)  # fmt: skip
def test_any_change_makes_a_table_stale_and_is_named(change: dict[str, Any], part: str) -> None:
    before, now = _parts(), _parts(**change)
    assert key(before) != key(now)
    assert [s[0] for s in routes_cache.stale(before, now)] == [part]


def test_the_key_is_stable_and_does_not_hang_on_order() -> None:
    parts = _parts()
    assert key(parts) == key(dict(reversed(parts.items()))) and len(key(parts)) == 16
    assert routes_cache.stale(parts, _parts()) == []


def test_an_acs_word_that_can_no_longer_be_read_makes_it_stale() -> None:
    hidden = _parts(tree=switches(2, why="config: 64 bytes without root"))
    assert "?" in hidden["ACS"] and routes_cache.stale(_parts(), hidden)[0][0] == "ACS"


# ---------------------------------------------------------------- on disk


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path)}


def test_what_is_kept_comes_back_whole_and_private(home: dict[str, str]) -> None:
    probed = machine(2, change=wrong((0, 1)))
    assert routes_cache.save(probed, _parts(), home)
    path = routes_cache.file_path(home)
    assert path.stat().st_mode & 0o777 == 0o600 and [p.name for p in path.parent.iterdir()] == ["routes.json"]
    kept = routes_cache.load(home)
    assert kept is not None and kept[0].outcomes == probed.outcomes and kept[1] == _parts() and kept[2] > 1e9
    assert kept[0].key == key(_parts()) and table(kept[0]).state(0, 1, "push") == "corrupt"


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b"", lambda b: b"\xff" * 50, lambda b: b"[" * 100_000, lambda b: b[: len(b) // 2], lambda b: b.replace(b'"schema":1', b'"schema":2'),
        lambda b: b.replace(b'"verified"', b'"superb"', 1), lambda b: b.replace(b'"mode":"push"', b'"mode":"pish"', 1),
        lambda b: b.replace(b"580.95", b"580.96"), lambda b: b.replace(b'"gpus":[0,1]', b'"gpus":[0,9]', 1), lambda b: b"null",
    ],
)  # fmt: skip
def test_a_damaged_or_forged_file_is_no_table(home: dict[str, str], change: Any) -> None:
    routes_cache.save(machine(2), _parts(), home)
    path = routes_cache.file_path(home)
    before = path.read_bytes()
    assert change(before) != before
    path.write_bytes(change(before))
    assert routes_cache.load(home) is None


def test_links_folders_pipes_and_files_others_may_write_are_not_read(home: dict[str, str], tmp_path: Path) -> None:
    assert routes_cache.load(home) is None
    routes_cache.save(machine(2), _parts(), home)
    path = routes_cache.file_path(home)
    path.chmod(0o620)
    assert routes_cache.load(home) is None
    path.chmod(0o600)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert routes_cache.load(home) is None
    path.unlink()
    os.mkfifo(path)
    assert routes_cache.load(home) is None, "and it does not wait"
    path.unlink()
    path.mkdir()
    assert routes_cache.load(home) is None and not routes_cache.save(machine(2), _parts(), home)
    assert [p.name for p in path.parent.iterdir()] == ["routes.json"], "nothing half-written stays"


def test_a_cache_that_cannot_be_written_is_said_not_raised(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not routes_cache.save(machine(2), _parts(), {"XDG_CACHE_HOME": str(tmp_path / "file")})


def test_a_relative_cache_home_is_ignored() -> None:
    assert routes_cache.file_path({"XDG_CACHE_HOME": "here", "HOME": "/home/a"}) == Path("/home/a/.cache/linkproof/routes.json")
