"""Symmetric memory and the engines' all-reduce, with shared host memory and a stand-in engine in their place: the checks are the real ones."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from linkproof.measured import Case, Outcome
from linkproof.probe.setup import Effort, Setup

torch = pytest.importorskip("torch", reason="needs torch; CPU is enough")
dist = torch.distributed

from linkproof.probe.collectives import engines, groups  # noqa: E402
from linkproof.probe.collectives.ranks import Ranks  # noqa: E402

SETUP = Setup("gloo", 0x1234_5678_9ABC_DEF0, Effort(rounds_small=3, rounds_big=2))
SIZES_B = (8, 4096 - 16, 65536)

# Shaped like the class of both engines: a gloo group, `disabled`, and an all-reduce that says None for what is not its size.
ENGINE = """
import torch, torch.distributed as dist
class CustomAllreduce:
    def __init__(self, group, device, max_size=1 << 20):
        self.group, self.max_size, self.disabled, self.late = group, max_size, {disabled}, {late}
    def finalize_p2p(self):
        self.late = False
    def custom_all_reduce(self, data):
        if self.late or data.numel() * data.element_size() >= self.max_size:
            return None
        out = data.clone()
        dist.all_reduce(out, group=self.group)
        {fault}
        return out
"""


def _run(folder: Path, members: int, work: Callable[[int, str], Outcome]) -> dict[int, Outcome]:
    fork = multiprocessing.get_context("fork")
    mail = fork.SimpleQueue()

    def child(member: int) -> None:
        torch.set_num_threads(1)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        mail.put((member, work(member, str(folder))))

    children = [fork.Process(target=child, args=(m,)) for m in range(members)]
    for one in children:
        one.start()
    told = dict(mail.get() for _ in children)
    for one in children:
        one.join()
    return told


# ---------------------------------------------------------------- symmetric memory


def _exchange(folder: Path, members: int, tamper: Callable[[int, list[Any]], None] = lambda me, peers: None) -> dict[int, Outcome]:
    """Each rank's memory is a file that all map; tamper may change how a rank sees its peers."""

    def work(member: int, at: str) -> Outcome:
        gang = Ranks(Case("symm_mem", tuple(range(members))), SETUP, member, members, at, "gloo")
        count = max(SIZES_B) // 8 * (1 + members)
        peers = [torch.from_file(f"{at}/memory.{rank}", shared=True, size=count, dtype=torch.int64) for rank in range(members)]
        tamper(member, peers)
        engines.exchange(gang, engines.Shared(peers, dist.barrier), SIZES_B)
        return engines._end(gang)

    return _run(folder, members, work)


def test_symmetric_memory_that_works_is_verified(tmp_path: Path) -> None:
    told = _exchange(tmp_path, 3)
    assert {o.state for o in told.values()} == {"verified"}
    assert all(o.rounds == 9 and o.verified_B == 3 * 2 * 2 * sum(SIZES_B) for o in told.values())


def test_stores_into_a_private_mirror_are_missed_by_the_owner_and_loads_from_it_by_the_reader(tmp_path: Path) -> None:
    def mirror(me: int, peers: list[Any]) -> None:
        if me == 1:
            peers[0] = peers[0].clone()

    told = _exchange(tmp_path, 3, mirror)
    assert told[2].state == "verified"
    assert told[1].op == "load 0->1" and told[1].state == "corrupt"
    assert told[0].op == "store 1->0" and told[0].wrong[0].kind == "untouched"


def test_memory_of_the_wrong_rank_is_named_as_its(tmp_path: Path) -> None:
    def crossed(me: int, peers: list[Any]) -> None:
        if me == 2:
            peers[0] = peers[1]

    told = _exchange(tmp_path, 3, crossed)
    assert told[2].op == "load 0->2" and (told[2].wrong[0].kind, told[2].wrong[0].detail) == ("other_pair", "1->1")


# ---------------------------------------------------------------- engines


def _engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str = "", disabled: bool = False, late: bool = False, extra: str = ""
) -> dict[int, Outcome]:
    package = folder / "site" / "vllm" / "distributed" / "device_communicators"
    package.mkdir(parents=True)
    for part in (package, package.parent, package.parent.parent):
        (part / "__init__.py").touch()
    (package / "custom_all_reduce.py").write_text(extra + ENGINE.format(fault=fault or "pass", disabled=disabled, late=late))
    monkeypatch.syspath_prepend(str(folder / "site"))
    case = Case("vllm_allreduce", (0, 1))
    try:
        return _run(folder, 2, lambda member, at: groups.member(case, SETUP, member, 2, at))
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
            del sys.modules[name]


def test_an_all_reduce_of_the_engine_that_sums_right_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = _engine(tmp_path, monkeypatch, late=True)  # a newer one, that must be finished before it works
    assert {o.state for o in told.values()} == {"verified"} and told[0].largest_ok_B == 512 * 1024


def test_an_all_reduce_of_the_engine_that_loses_the_other_part_is_corrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = _engine(tmp_path, monkeypatch, "if dist.get_rank() == 1 and data.numel() > 1000: out = data.clone()")
    assert told[0].state == "verified"
    assert told[1].state == "corrupt" and told[1].op == "vLLM all_reduce bfloat16" and told[1].wrong[0].detail == "rank 0 missing"


def test_an_all_reduce_that_writes_nothing_does_not_pass_on_what_lay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = _engine(tmp_path, monkeypatch, "out = torch.empty_like(data)")
    assert {o.state for o in told.values()} == {"corrupt"}


def test_an_engine_that_switches_itself_off_is_not_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = _engine(tmp_path, monkeypatch, disabled=True)
    assert {o.why for o in told.values()} == {"{engine} switches its own all-reduce off on this machine"}


def test_an_engine_with_another_interface_is_not_tested_and_says_what_it_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = _engine(tmp_path, monkeypatch, extra="from vllm import something_that_moved\n")
    assert {o.state for o in told.values()} == {"not_tested"} and "something_that_moved" in told[0].args["said"]


def test_an_engine_that_is_not_installed_is_not_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    told = groups.member(Case("sglang_allreduce", (0, 1)), SETUP, 0, 2, str(tmp_path))
    assert (told.state, told.why, told.args) == ("not_tested", "{engine} is not installed here", {"engine": "SGLang"})


# ---------------------------------------------------------------- what cannot be tried here


def test_diagnostics_of_an_older_nccl_are_not_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "nccl_version", lambda: (2, 30, 7))
    told = groups.member(Case("nccl_diag", (0, 1)), Setup("cuda", 1), 0, 2, str(tmp_path))
    assert (told.state, told.args) == ("not_tested", {"version": "2.30.7"})


def test_symmetric_memory_that_torch_does_not_have_is_no_fault(tmp_path: Path) -> None:
    case = Case("symm_mem", (0, 1))
    told = _run(tmp_path, 2, lambda member, at: groups.member(case, SETUP, member, 2, at))  # CPU memory cannot be symmetric
    assert {o.state for o in told.values()} == {"refused"} and "cpu" in told[0].args["said"]


def test_multicast_stays_off_unless_it_is_what_is_tried() -> None:
    assert engines.engine_env(Case("symm_mem", (0, 1))) == {"TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
    assert engines.engine_env(Case("symm_mem", (0, 0)))["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] == "1"
    assert "TORCH_SYMM_MEM_DISABLE_MULTICAST" not in engines.engine_env(Case("nvls", (0, 1)))


@pytest.mark.parametrize("setting", ["TORCH_SYMM_MEM_DISABLE_MULTICAST=1", "NCCL_NVLS_ENABLE=0"])
def test_multicast_that_the_environment_switches_off_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv(*setting.split("="))
    told = groups.member(Case("nvls", (0, 1)), Setup("cuda", 1), 0, 2, str(tmp_path))
    assert (told.state, told.args) == ("not_tested", {"setting": setting}) and "switched off" in told.why
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_multicast_that_is_not_offered_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_SYMM_MEM_DISABLE_MULTICAST", "NCCL_NVLS_ENABLE"):
        monkeypatch.delenv(name, raising=False)
    module = SimpleNamespace(_SymmetricMemory=SimpleNamespace(has_multicast_support=lambda kind, gpu: False))
    monkeypatch.setitem(sys.modules, "torch._C._distributed_c10d", module)
    told = groups.member(Case("nvls", (0, 1)), Setup("cuda", 1), 0, 2, str(tmp_path))
    assert (told.state, told.why) == ("not_tested", "GPU and driver offer no NVLink multicast")
