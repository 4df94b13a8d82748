"""From measurements to facts, causes, the verdict and what each engine may do. Each pattern stands beside one where it must stay silent."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from linkproof.causes.reading import Reading
from linkproof.diagnose.consumers import consumers
from linkproof.diagnose.weigh import weigh_all
from linkproof.measured import Case, Counter, Outcome, Wrong
from linkproof.model import Collective, Consumer, Copy, Event, Gpu, KernelLog, Pairs, PeerAccess, Platform, Setting, Source, Topo
from linkproof.report.links_json import links_said
from linkproof.routes import table
from measured_machine import PAIR_MODES, Changes, both, confidence, diagnosed, facts, iommu, leads, machine, switches, wrong

KERNELS = ("store", "store16", "load", "load16")


def only(kind: type, found: list[Any], **equals: object) -> list[Any]:
    return [f for f in found if isinstance(f, kind) and all(getattr(f, k) == v for k, v in equals.items())]


# ---------------------------------------------------------------- facts


def test_a_fact_cites_its_measurement() -> None:
    fact = only(Copy, facts(machine(2, change=wrong((0, 1)))), result="wrong")[0]
    assert fact.source.text == "GPU0 -> GPU1 push: corrupt untouched bad_B=4,096 size_B=67,108,864 first_B=2,097,152 round=6"
    assert fact.pairs == "0-1" and fact.via == "peer"


def test_all_right_is_said_of_all_pairs_and_not_of_some() -> None:
    assert {f.pairs for f in only(Copy, facts(machine(3)), result="ok") if f.via != "chain"} == {"all"}
    part = facts(machine(3, change={("push", (0, 2)): {"state": "not_tested"}}))
    assert {f.pairs for f in only(Copy, part, via="peer", result="ok")} == {"some", "all"}


@pytest.mark.parametrize(
    ("kinds", "result"),
    [(("zero",), "zeros"), (("untouched",), "wrong"), (("stale", "untouched"), "stale"), (("zero", "bits"), "wrong"), (("bits",), "wrong")],
)
def test_the_kind_of_wrong_gives_the_word(kinds: tuple[str, ...], result: str) -> None:
    change = wrong((0, 1), modes=("push",), wrong=tuple(Wrong(k, 8, 0) for k in kinds))
    assert [f.result for f in only(Copy, facts(machine(2, change=change))) if f.result != "ok"] == [result]


def test_a_refused_way_is_no_failed_copy() -> None:
    found = facts(machine(2, change={(m, p): {"state": "refused"} for m in PAIR_MODES[1:] for p in both((0, 1))}))
    assert only(PeerAccess, found)[0].claimed == "none" and not [f for f in only(Copy, found) if f.result != "ok"]
    some = facts(machine(3, change={(m, (0, 1)): {"state": "refused"} for m in PAIR_MODES[1:]}))
    assert only(PeerAccess, some)[0].claimed == "some" and only(PeerAccess, facts(machine(2)))[0].claimed == "all"


def test_memory_that_is_reached_and_cannot_be_handed_over_is_an_ipc_error_and_accuses_no_path() -> None:
    probed = machine(2, change={("ipc", p): {"state": "refused"} for p in both((0, 1))})
    assert only(Copy, facts(probed), via="ipc", result="error")
    assert all(confidence(diagnosed(probed), c) < 0.3 for c in ("acs_redirect", "iommu_translation", "p2p_broken_unattributed"))


def test_counters_that_rose_are_facts_and_those_that_did_not_are_none() -> None:
    still = (
        Counter("AER correctable", "0000:10:00.0", "7", "7"),
        Counter("PCIe replay", "GPU 0", None, "9"),
        Counter("link width", "x", "16", "16"),
    )
    assert not only(KernelLog, facts(machine(2, counters=still))) + only(Event, facts(machine(2, counters=still)))
    rose = (
        Counter("AER correctable", "0000:10:00.0", "7", "19"), Counter("AER fatal", "0000:10:00.0", "0", "1"), Counter("AER nonfatal", "a", "0", "1"),
        Counter("PCIe replay", "GPU 0", "1", "90"), Counter("NVLink replay", "GPU 0 link 3", "0", "4"), Counter("link width", "0000:11:00.0", "16", "8"),
        Counter("kernel log", "", "old", "old\nNVRM: Xid (PCI:0000:10:00): 79, GPU has fallen off the bus."),
    )  # fmt: skip
    found = facts(machine(2, counters=rose))
    assert {(f.fact, f.count) for f in only(KernelLog, found)} >= {("aer_corrected", 12), ("aer_fatal", 1), ("xid", 1)}
    assert {f.kind for f in only(Event, found)} >= {"pcie_replays", "link_downgraded", "aer_seen"}
    assert only(Gpu, found, fact="nvlink_errors")[0].value == "GPU 0 link 3 NVLink replay: +4"


@pytest.mark.parametrize(
    ("name", "rose", "took_s", "fact"),
    [
        ("NVLink CRC", 3000, 30.0, "nvlink_errors"), ("NVLink CRC", 60, 30.0, "nvlink_crc"), ("NVLink CRC", 10**6, 0.0, "nvlink_crc"),
        ("NVLink replay", 1, 30.0, "nvlink_errors"), ("NVLink recovery", 1, 0.0, "nvlink_errors"),
    ],
)  # fmt: skip
def test_checksum_errors_are_a_fault_from_100_a_second_on_and_a_replay_always_is(name: str, rose: int, took_s: float, fact: str) -> None:
    counter = Counter(name, "GPU 0 link 3", "5", str(5 + rose))
    probed = machine(2, counters=(counter,), took_s=took_s)
    assert [f.fact for f in only(Gpu, facts(probed)) if f.fact.startswith("nvlink")] == [fact]
    weighed, _ = weigh_all(Reading(facts(probed)))
    signs = [s for w in weighed if w.id == "nvlink_fault" for s in w.signs if s.speaks_for]
    assert [s.stands for s in signs] == [fact == "nvlink_errors"]
    said = links_said(probed, "en").counters
    assert [c.worrying for c in said] == [fact == "nvlink_errors"]


def test_a_few_checksum_errors_on_the_way_of_a_failing_pair_do_not_accuse_its_link() -> None:
    def counted(rose: int) -> Pairs | None:
        counters = (Counter("NVLink CRC", "GPU 0 link 3", "0", str(rose)),)
        return pairs_of("counted", machine(3, change=wrong(*both((0, 1))), counters=counters, took_s=30.0))

    few, many = counted(60), counted(3000)
    assert few is None or not few.failing_with
    assert many is not None and many.failing_with == 2


def test_the_same_measurements_give_the_same_facts() -> None:
    probed = machine(4, change=wrong(*both((0, 1))))
    assert facts(probed, switches(4, (0,)), iommu(4, 1)) == facts(probed, switches(4, (0,)), iommu(4, 1))


# ---------------------------------------------------------------- which pairs fail


def pairs_of(what: str, *args: Any) -> Pairs | None:
    return next(iter(only(Pairs, facts(*args), what=what)), None)


def test_pairs_are_counted_by_what_stands_on_their_way() -> None:
    found = pairs_of("redirects", machine(4, change=wrong(*both((0, 1)))), switches(4, (0, 1)))
    assert found is not None and found.follows
    assert (found.failing_with, found.failing_without, found.passing_with, found.passing_without, found.unknown) == (2, 0, 0, 10, 0)


def test_ports_that_could_not_be_read_allow_no_conclusion() -> None:
    found = pairs_of("redirects", machine(4, change=wrong(*both((0, 1)))), switches(4, why="config: 64 bytes without root"))
    assert found is not None and found.unknown and not found.follows


def test_redirecting_ports_on_the_way_of_just_the_failing_pairs_lead_to_acs() -> None:
    diagnosis = diagnosed(machine(4, change=wrong(*both((0, 1)))), switches(4, (0, 1)), iommu(4))
    assert leads(diagnosis) == "acs_redirect"


def test_redirecting_ports_elsewhere_are_not_accused() -> None:
    diagnosis = diagnosed(machine(4, change=wrong(*both((2, 3)))), switches(4, (0, 1)), iommu(4))
    assert leads(diagnosis) == "p2p_broken_unattributed" and confidence(diagnosis, "acs_redirect") < 0.1


def test_a_translating_iommu_on_just_the_failing_pairs_leads() -> None:
    touching = [p for i in range(3) for p in both((i, 3))]
    diagnosis = diagnosed(machine(4, change=wrong(*touching)), switches(4), iommu(4, 3))
    assert leads(diagnosis) == "iommu_translation"
    other = diagnosed(machine(4, change=wrong(*both((0, 1)))), switches(4), iommu(4, 3))
    assert leads(other) == "p2p_broken_unattributed" and confidence(other, "iommu_translation") < 0.1


def test_slower_than_the_host_below_redirecting_ports_is_acs_and_across_the_cpu_it_is_not() -> None:
    slow = {(a, b, m): 6.0 for a, b in both((0, 1), (2, 3)) for m in ("push", "pull")}
    assert leads(diagnosed(machine(4, bw=slow), switches(4, (0, 1, 2, 3)), iommu(4))) == "acs_redirect"
    far = {(a, b, m): 6.0 for a, b in both((0, 2), (0, 3), (1, 2), (1, 3)) for m in ("push", "pull")}
    assert leads(diagnosed(machine(4, bw=far), switches(4), iommu(4))) == "slow_interconnect"


def test_one_gpu_in_every_failing_pair_is_told_and_one_pair_is_not_one_gpu() -> None:
    touching = [p for i in range(3) for p in both((i, 3))]
    one = pairs_of("one_gpu", machine(4, change=wrong(*touching)))
    assert one is not None and one.where == "GPU 3" and one.follows
    into = pairs_of("one_gpu", machine(4, change=wrong((0, 3), (1, 3), (2, 3))))
    assert into is not None and into.where == "-> GPU 3"
    two = machine(4, change=wrong(*both((2, 3))))
    assert pairs_of("one_gpu", two) is None and pairs_of("one_pair", two) is not None
    assert pairs_of("one_gpu", machine(2, change=wrong(*both((0, 1))))) is None, "with two GPUs nobody can tell"


def test_errors_counted_on_the_way_of_the_failing_pairs_lead_to_their_link() -> None:
    touching = [p for i in range(3) for p in both((i, 3))]
    loaded = wrong(*touching, modes=("push", "store16"), load="both_ways")
    counters = (Counter("AER correctable", "0000:13:00.0", "0", "400"), Counter("PCIe replay", "GPU 3", "0", "90"))
    diagnosis = diagnosed(machine(4, change=loaded, counters=counters), switches(4), iommu(4))
    assert leads(diagnosis) == "pcie_link_error"
    quiet = diagnosed(machine(4, change=wrong(*both((0, 1), (0, 2)))), switches(4), iommu(4))
    assert confidence(quiet, "pcie_link_error") < 0.2


def test_only_large_transfers_into_a_small_bar1() -> None:
    def change(ok_B: int) -> Changes:
        return wrong(*both((0, 1)), smallest_bad_B=1 << 28, largest_ok_B=ok_B)

    small = switches(2)
    for function in small.gpus:
        function.bars_B = (1 << 24, 1 << 28, 0)
    seen = (Gpu(source=Source("nvml"), fact="bar1_smaller_than_vram", value="256 MiB of 49152 MiB"),)
    assert leads(diagnosed(machine(2, change=change(1 << 24)), small, iommu(2), seen)) == "bar1_too_small"
    assert pairs_of("beyond_bar1", machine(2, change=change(1 << 29)), small) is None, "a large one arrived right"
    assert pairs_of("beyond_bar1", machine(2, change=change(1 << 24)), switches(2)) is None, "BAR1 covers all"


def test_the_private_mirror_in_a_guest_and_on_metal() -> None:
    change = wrong(*both((0, 1))) | wrong(*both((0, 1)), modes=("views",), args={"mirror": "12"})
    guest = (Platform(source=Source("systemd-detect-virt"), kind="vm"),)
    assert leads(diagnosed(machine(2, change=change), more=guest)) == "vm_passthrough_p2p"
    assert confidence(diagnosed(machine(2, change=change)), "p2p_driver_bug") > confidence(
        diagnosed(machine(2, change=wrong(*both((0, 1))))), "p2p_driver_bug"
    )


def test_copies_that_pass_and_stores_that_are_lost_under_a_patched_driver() -> None:
    patched = (Gpu(source=Source("modinfo"), fact="patched_driver"),)
    lost = wrong(*both((0, 1)), modes=("store", "store16", "views"))
    assert leads(diagnosed(machine(2, change=lost), more=patched)) == "p2p_patched_driver_config"
    assert pairs_of("stores_only", machine(2, change=lost)) and pairs_of("stores_only", machine(2, change=wrong((0, 1)))) is None


def test_flags_that_hang_while_copies_pass_are_a_fault_of_the_path() -> None:
    hung: Changes = {("flags", p): {"state": "hung"} for p in both((0, 1))}
    probed = machine(2, change=hung, arms=dict.fromkeys(("default/default", "p2p/LL", "p2p/LL128", "p2p/Simple"), "hung"))
    diagnosis = diagnosed(probed)
    assert leads(diagnosis) == "p2p_broken_unattributed" and pairs_of("flags_only", probed)
    assert diagnosis.consumers["transformers"].state == "safe"
    assert diagnosis.consumers["torchrun"] == Consumer("safe_with", ("NCCL_P2P_DISABLE=1",), ("nccl",))


def test_a_chain_that_is_wrong_while_each_hop_is_right_is_a_matter_of_order() -> None:
    bad: Changes = {("chain", (0, 1, 2)): {"state": "corrupt", "wrong": (Wrong("stale", 8, 0),)}}
    assert leads(diagnosed(machine(3, change=bad))) == "p2p_copy_sync"
    hop = bad | wrong((0, 1))
    assert not only(Copy, facts(machine(3, change=hop)), via="chain", result="stale"), "a hop is wrong already"


# ---------------------------------------------------------------- not the fabric


def test_a_control_that_fails_accuses_no_link() -> None:
    everything = wrong(*both((0, 1)), modes=PAIR_MODES[:9])
    diagnosis = diagnosed(machine(2, change=everything), switches(2, (0, 1)), iommu(2, 0, 1))
    assert diagnosis.verdict == "cannot_tell" and all(w.confidence < 0.3 for w in diagnosis.causes if w.cls == "fabric")
    assert not [f for f in only(Copy, facts(machine(2, change=everything)), via="peer") if f.result != "ok"]


def test_a_control_that_fails_with_one_card_only_names_that_card() -> None:
    touching = [p for i in range(3) for p in both((i, 3))]
    assert leads(diagnosed(machine(4, change=wrong(*touching, modes=PAIR_MODES[:9])), switches(4))) == "gpu_hardware_fault"


def test_shared_memory_alone_failing_is_not_the_fabric() -> None:
    from linkproof.model import Host

    tight = (Host(source=Source("df"), fact="shm_bytes", value=str(64 << 20)),)
    diagnosis = diagnosed(machine(2, arms={"shm/Simple": "died"}), more=tight)
    assert leads(diagnosis) == "shm_too_small"
    assert diagnosis.consumers["torchrun"].state == "safe"


def test_one_protocol_alone_is_a_matter_of_nccl() -> None:
    probed = machine(2, arms={"p2p/LL128": "corrupt", "default/default": "corrupt"})
    found = facts(probed)
    assert only(Setting, found, effect="cured", key="NCCL_PROTO") and not [
        c for c in only(Collective, found, transport="p2p") if c.result != "ok"
    ]
    diagnosis = diagnosed(probed)
    assert leads(diagnosis) == "nccl_version_bug"
    assert diagnosis.consumers["torchrun"].settings == ("NCCL_PROTO=^LL128",)


def test_a_protocol_that_a_setting_forces_is_the_settings_fault() -> None:
    forced = Setting(source=Source("environment"), name="NCCL_PROTO=LL128", effect="present", key="NCCL_PROTO", value="LL128")
    diagnosis = diagnosed(machine(2, arms={"p2p/LL128": "corrupt"}), more=(forced,))
    assert leads(diagnosis) == "nccl_env_misconfig"
    assert diagnosis.consumers["torchrun"] == Consumer("safe_with", ("unset NCCL_PROTO",), ("nccl p2p/LL128",))
    assert leads(diagnosed(machine(2, arms={"p2p/LL128": "corrupt"}))) == "healthy", "nobody forces it"
    assert leads(diagnosed(machine(2), more=(forced,))) == "healthy", "and where it is right it may stay"


def test_nccl_that_fails_over_every_transport_does_not_accuse_the_path() -> None:
    arms = dict.fromkeys(("default/default", "p2p/LL", "p2p/LL128", "p2p/Simple", "shm/Simple", "net/Simple"), "hung")
    diagnosis = diagnosed(machine(2, arms=arms))
    assert all(w.confidence < 0.3 for w in diagnosis.causes if w.cls == "fabric")
    assert diagnosis.consumers["torchrun"].state == "at_risk" and diagnosis.consumers["torchrun"].settings == ()


# ---------------------------------------------------------------- the verdict


def test_healthy_needs_everything() -> None:
    assert leads(diagnosed(machine(2), switches(2), iommu(2))) == "healthy"
    for gap in ("staged", "push", "load16", "flags", "views", "ipc"):
        diagnosis = diagnosed(machine(2, change={(gap, (1, 0)): {"state": "not_tested"}}))
        assert diagnosis.verdict == "cannot_tell" and "not tested" in diagnosis.notes[0].text, gap
    assert diagnosed(machine(2, arms={"default/default": "not_tested"})).verdict == "cannot_tell"


def test_one_gpu_is_neither_healthy_nor_faulty() -> None:
    diagnosis = diagnosed(machine(1))
    assert diagnosis.verdict == "cannot_tell" and diagnosis.notes[0].text.startswith("one GPU") and diagnosis.consumers == {}


def test_no_peer_access_at_all_is_healthy_and_said() -> None:
    change: Changes = {(m, p): {"state": "refused"} for m in PAIR_MODES[1:] for p in both((0, 1))}
    change |= {("chain", (a, b, a)): {"state": "refused"} for a, b in both((0, 1))}
    used: Changes = {("nccl default/default", ()): {"transport": "SHM/direct"}}
    arms = {"p2p/LL": "refused", "p2p/LL128": "refused", "p2p/Simple": "refused"}
    diagnosis = diagnosed(machine(2, change=change | used, arms=arms))
    assert diagnosis.verdict == "healthy" and "no direct way" in diagnosis.notes[0].text
    assert {c.state for c in diagnosis.consumers.values()} == {"safe"}


# ---------------------------------------------------------------- engines


def _engines(**more: Any) -> dict[str, Consumer]:
    return consumers(None, table(machine(2, **more)))


def test_all_engines_are_safe_where_all_is_proven() -> None:
    assert set(_engines().values()) == {Consumer("safe")} and len(_engines()) == 6


def _with_multicast(gpus: int, nvls: str = "", offered: bool | None = True, capability: str = "9.0", **args: str) -> dict[str, Consumer]:
    """nvls: its state, "" if it was not tried."""
    probed = machine(gpus)
    found = (Outcome(Case("nvls", tuple(range(gpus))), nvls, "why" if nvls != "verified" else "", args),) if nvls else ()
    cards = tuple(structs.replace(c, multicast=offered, capability=capability) for c in probed.cards)
    return consumers(None, table(structs.replace(probed, cards=cards, outcomes=probed.outcomes + found)))


def test_an_engine_that_uses_multicast_is_not_called_safe_where_it_was_not_tested() -> None:
    unknown = Consumer("unknown", (), ("nvls",))
    for nvls in ("", "not_tested"):
        said = _with_multicast(4, nvls)
        assert said["vllm"] == unknown and {c.state for e, c in said.items() if e != "vllm"} == {"safe"}
    assert _with_multicast(8, capability="10.0")["vllm"] == unknown
    assert _with_multicast(4, "not_tested", setting="NCCL_NVLS_ENABLE=0")["vllm"] == unknown, "that binds NCCL, not torch"
    assert _with_multicast(4, "verified")["vllm"] == Consumer("safe")
    bad = _with_multicast(4, "corrupt")
    assert "VLLM_ALLREDUCE_USE_SYMM_MEM=0" in bad["vllm"].settings and bad["vllm"].modes == ("nvls",)


def test_where_multicast_is_not_there_or_not_used_its_absence_weakens_no_verdict() -> None:
    safe = {Consumer("safe")}
    assert set(_with_multicast(4, offered=None).values()) == set(_with_multicast(8, "not_tested", offered=False).values()) == safe
    assert set(_with_multicast(2).values()) == set(_with_multicast(4, capability="10.0").values()) == safe
    assert set(_with_multicast(8, "not_tested", setting="TORCH_SYMM_MEM_DISABLE_MULTICAST=1").values()) == safe


def test_wrong_copies_leave_transformers_without_a_switch() -> None:
    said = _engines(change=wrong((0, 1), modes=("push",)))
    assert said["transformers"] == Consumer("at_risk", (), ("push",))
    assert said["llama.cpp"] == Consumer("safe_with", ("unset GGML_CUDA_P2P",), ("push",))
    assert said["exllama"].settings == ("EXLLAMA_NO_P2P_COPY=1",) and said["torchrun"].state == "safe"


def test_a_setting_is_safe_only_if_the_way_it_leads_to_was_proven() -> None:
    bad: dict[str, Any] = {"arms": {"default/default": "corrupt", "p2p/LL": "corrupt", "p2p/LL128": "corrupt", "p2p/Simple": "corrupt"}}
    assert _engines(**bad)["torchrun"].settings == ("NCCL_P2P_DISABLE=1",)
    bad["arms"]["shm/Simple"] = "corrupt"
    assert _engines(**bad)["torchrun"] == Consumer("safe_with", ("NCCL_P2P_DISABLE=1", "NCCL_SHM_DISABLE=1"), ("nccl",))
    bad["arms"]["net/Simple"] = ""
    assert _engines(**bad)["torchrun"] == Consumer("at_risk", ("NCCL_P2P_DISABLE=1", "NCCL_SHM_DISABLE=1"), ("nccl",))
    bad["arms"]["net/Simple"] = "hung"
    assert _engines(**bad)["torchrun"] == Consumer("at_risk", (), ("nccl",))


def test_nccl_that_was_right_over_stores_that_fail_is_not_safe() -> None:
    lost = wrong((0, 1), modes=("store16",))
    assert _engines(change=lost)["torchrun"] == Consumer("safe_with", ("NCCL_P2P_DISABLE=1",), ("store16",))
    over_shm = lost | {("nccl default/default", ()): {"transport": "SHM/direct"}}
    assert _engines(change=over_shm)["torchrun"].state == "safe", "it does not go over the stores"


def test_what_was_not_tested_is_unknown_not_safe() -> None:
    assert _engines(arms={"default/default": ""})["torchrun"] == Consumer("unknown", (), ("nccl",))
    assert _engines(change={("store", (0, 1)): {"state": "not_tested"}})["transformers"] == Consumer("unknown", (), ("store",))


def test_the_engines_own_all_reduce_counts_where_the_engine_would_use_it() -> None:
    late: Changes = {("flags", p): {"state": "corrupt"} for p in both((0, 1))}
    two = _engines(change=late)
    assert two["vllm"].settings[0] == "NCCL_P2P_DISABLE=1" and two["vllm"].modes == ("flags",)
    ipc: Changes = {("ipc", p): {"state": "refused"} for p in both((0, 1))}
    assert _engines(change=ipc)["vllm"].settings == ("--disable-custom-all-reduce", "VLLM_ALLREDUCE_USE_SYMM_MEM=0")
    assert _engines(change=ipc)["sglang"].settings == ("--disable-custom-all-reduce",)
    four = machine(4, change={("ipc", (0, 1)): {"state": "refused"}})

    def over(path: str) -> Consumer:
        return diagnosed(four, more=(Topo(source=Source("topo"), path=path),)).consumers["vllm"]

    assert over("PHB").state == "safe" and over("NV").state == "safe_with"
