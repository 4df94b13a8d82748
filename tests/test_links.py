"""What `check` says of links: machines as a probe may find them, read in both languages."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from itertools import permutations
from pathlib import Path

import msgspec
import pytest
from msgspec import Struct, structs

from linkproof.measured import MODES, Card, Case, Counter, Outcome, Probed, Speed, Wrong
from linkproof.report import check_json, machine
from linkproof.report.contract import Report
from linkproof.report.layout import plain, width_of
from linkproof.report.links import links_rows
from linkproof.report.links_json import LinksSaid, links_said
from linkproof.report.links_self_test import self_test_rows
from linkproof.report.links_words import kind_words
from linkproof.report.machine_words import proven_words
from linkproof.report.say import Teller, catalogue
from linkproof.report.text import Sheet

SCHEMA = Path(check_json.__file__).with_name("check.schema.json")
EMPTY = Report(1, "cannot_tell", (), (), (), (), {}, (), ())
PAIR_MODES = [m.name for m in MODES.values() if m.scope == "pair" and m.judged and m.level == "check"]
NO_PEER = "the driver offers no peer access from GPU {a} to GPU {b}"
ARMS = ("default/default", "p2p/LL", "p2p/LL128", "p2p/Simple", "shm/Simple", "net/Simple")
USED = {"default": "P2P/CUMEM", "p2p": "P2P/CUMEM", "shm": "SHM/direct", "net": "NET/Socket"}

Change = Callable[[Outcome], Outcome]


# ---------------------------------------------------------------- machines


def _cards(n: int) -> tuple[Card, ...]:
    return tuple(Card(i, "NVIDIA GeForce RTX 4090", f"GPU-{i}", f"0000:{i + 1:02x}:00.0", 24 << 30, "8.9") for i in range(n))


def _right(case: Case, bw_GBps: float = 0) -> Outcome:
    speed = None
    if bw_GBps:
        lat = 9.5 if case.load == "alone" else None
        speed = Speed(case.gpus[0], case.gpus[-1], case.mode, bw_GBps, (bw_GBps - 0.4, bw_GBps + 0.1), lat, case.load, 64 << 20, 7)
    return Outcome(
        case, "verified", size_B=256 << 20, rounds=199, largest_ok_B=256 << 20, verified_B=1_700_000_000, took_s=0.3, speed=speed
    )


def _machine(n: int, change: Change = lambda o: o, counters: tuple[Counter, ...] = ()) -> Probed:
    """Every mode of a machine on which all is right, then changed outcome by outcome."""
    pairs = list(permutations(range(n), 2))
    fast = {"push": 24.6, "pull": 23.9, "store16": 22.0, "staged": 11.8}
    outcomes = [_right(Case(mode, p), fast.get(mode, 0)) for mode in PAIR_MODES for p in pairs]
    outcomes += [_right(Case(mode, p, load), fast[mode] / 2) for mode in ("staged", "push") for load in ("both_ways", "all") for p in pairs]
    lost = {"lost": "80,112", "all": "200,000"}
    why = "{lost} of {all} additions are lost: atomics do not work over this link, as on most PCIe links"
    outcomes += [Outcome(Case("atomics", p), "refused", why, lost) for p in pairs]
    outcomes += [_right(Case("chain", (i, (i + 1) % n, (i + 2) % n))) for i in range(n)]
    ranks = tuple(range(n))
    outcomes += [
        structs.replace(_right(Case("nccl", ranks, arm=arm)), bw_GBps=14.25, bw_size_B=16 << 20, transport=USED[arm.split("/")[0]])
        for arm in ARMS
    ]
    absent = "{mode}: not there, or not for these GPUs"
    outcomes += [Outcome(Case(m, ranks), "not_tested", absent, {"mode": m}) for m in ("symm_mem", "nvls", "vllm_allreduce")]
    return Probed(_cards(n), tuple(map(change, outcomes)), (), counters, "cuda", 14.2, 12.4)


def _bad(o: Outcome, *wrong: Wrong, bad: int = 15, size_B: int = 65536, smallest_B: int = 8192) -> Outcome:
    args = {"bad": f"{bad:,}", "rounds": f"{o.rounds:,}"}
    why = "{bad} of {rounds} transfers arrived wrong"
    return structs.replace(
        o, state="corrupt", why=why, args=args, wrong=wrong, size_B=size_B, round_=4, bad_rounds=bad, smallest_bad_B=smallest_B,
        largest_ok_B=smallest_B // 2, speed=None,
    )  # fmt: skip


def _on(modes: Iterable[str], links: Iterable[tuple[int, ...]], made: Change, load: str = "") -> Change:
    modes, links = set(modes), set(links)
    return lambda o: made(o) if o.case.mode in modes and o.case.gpus in links and load in ("", o.case.load) else o


def _hung(o: Outcome) -> Outcome:
    return Outcome(o.case, "hung", "no answer after {deadline_s} s", {"deadline_s": "30"})


def _no_peer(o: Outcome) -> Outcome:
    if len(o.case.gpus) == 2 and o.case.mode not in ("staged", "nccl", "nvls", "symm_mem", "vllm_allreduce", "atomics"):
        return Outcome(o.case, "refused", NO_PEER, {"a": str(o.case.gpus[0]), "b": str(o.case.gpus[1])})
    return o


def _zeros(o: Outcome) -> Outcome:
    if o.case.mode in ("staged", "atomics") or o.state == "not_tested":
        return o
    if o.case.arm.startswith(("shm", "net")):
        return o
    return _bad(o, Wrong("zero", 65536, 0, "", 0, 1.0), bad=199, smallest_B=4)


def _mixed(n: int) -> Probed:
    """Everything at once, as a bad day has it."""
    pairs = list(permutations(range(n), 2))
    steps = [
        _on(["pull"], [(0, 1), (1, 0)], lambda o: _bad(o, Wrong("untouched", 4096, 4096, "", 4096, 0.06), Wrong("bits", 8, 65000, "14", 0, 1e-4))),
        _on(["store", "store16"], [(2, k) for k in range(n)], lambda o: _bad(o, Wrong("stale", 65536, 0, "round 3"))),
        _on(["load"], [(k, 3) for k in range(n)], lambda o: _bad(o, Wrong("offset", 4096, 0, "+4096"))),
        _on(["load16"], pairs[:5], lambda o: _bad(o, Wrong("other_pair", 16, 0, "2->3"))),
        _on(["ipc"], pairs, lambda o: Outcome(o.case, "died", "the process crashed: {signal}", {"signal": "SIGSEGV"})),
        _on(["flags"], pairs[::2], _hung),
        _on(["views"], [(0, 1)], lambda o: _bad(o, Wrong("torn", 8, 16))),
        _on(["vmm"], [(1, 2)], lambda o: _bad(o, Wrong("overrun", 16, 65536, "+0"))),
        _on(["pool"], [(1, 2)], lambda o: _bad(o, Wrong("bystander", 4096, 0))),
        _on(["push"], [(3, 0)], lambda o: _bad(o, Wrong("bits", 3, 1, "3,14", 0, 1e-6)), load="all"),
        _on(["ipc_vmm"], pairs[:2], lambda o: Outcome(o.case, "not_tested", "not enough memory: {error}", {"error": "OutOfMemoryError"})),
        _on(["chain"], [(0, 1, 2)], lambda o: _bad(o, Wrong("garbage", 40, 0))),
        _on(["staged"], [(3, 2)], lambda o: _bad(o, Wrong("bits", 1, 0, "9"))),
    ]  # fmt: skip

    def change(o: Outcome) -> Outcome:
        for step in steps:
            o = step(o)
        return o

    return _machine(n, change, (Counter("AER correctable", "0000:41:00.0", "3", "1215 (BadTLP +1212)"), Counter("link width", "0000:41:00.0", "16", "8"),
                                Counter("PCIe replay", "GPU 0", None, None)))  # fmt: skip


def _one_gpu() -> Probed:
    outcomes = [_right(Case(mode, (0, 0)), 2100.0 if mode == "push" else 0) for mode in PAIR_MODES]
    outcomes += [structs.replace(_right(Case("nccl", (0, 0), arm=arm)), transport=USED[arm.split("/")[0]], bw_GBps=3.5) for arm in ARMS[1:]]
    outcomes += [Outcome(Case(m, (0, 0)), "not_tested", "needs two GPUs") for m in ("symm_mem", "nvls")]
    return Probed(_cards(1), tuple(outcomes), (), (), "cuda", 6.1, 7.0)


def _busy() -> Probed:
    why = "GPU {gpu} is in use ({by}); --force tests it all the same"
    return Probed(_cards(2), tuple(Outcome(Case("push", (i, i)), "not_tested", why, {"gpu": str(i), "by": "python 4711"}) for i in (0, 1)))


def _slow(o: Outcome) -> Outcome:
    if o.case.mode == "push" and o.case.gpus == (0, 1) and o.speed:
        return structs.replace(o, speed=structs.replace(o.speed, bw_GBps=6.2, bw_spread_GBps=(6.1, 6.3)))
    return o


ONE_WAY = _machine(2, _on(["push", "pull"], [(0, 1)], lambda o: _bad(o, Wrong("untouched", 4096, 8192, "", 4096, 0.06))))
UNDER_LOAD = _machine(4, _on(["push"], [(0, 1), (1, 0)], lambda o: _bad(o, Wrong("bits", 2, 812, "14", 0, 1e-6), bad=2), load="all"))
LL128 = _machine(2, lambda o: _bad(o, Wrong("torn", 120, 8)) if o.case.arm == "p2p/LL128" else o)
MACHINES: dict[str, Probed] = {
    "fine-2": _machine(2),
    "fine-4": _machine(4, counters=(Counter("AER correctable", "0000:01:00.0", "0", "0"),)),
    "fine-8": _machine(8),
    "one-way": ONE_WAY,
    "zeros-2": _machine(2, _zeros),
    "zeros-8": _machine(8, _zeros),
    "under-load": UNDER_LOAD,
    "flags-hang": _machine(2, _on(["flags"], permutations(range(2), 2), _hung)),
    "no-peer": _machine(2, _no_peer),
    "slow": _machine(2, _slow),
    "one-gpu": _one_gpu(),
    "busy": _busy(),
    "nothing": Probed((), ()),
    "ll128": LL128,
    "mixed-4": _mixed(4),
    "mixed-8": _mixed(8),
}


def _text(probed: Probed, lang: str = "en", width: int = 100, say_all: bool = False) -> str:
    sheet = Sheet(EMPTY, width, Teller(lang), say_all, whole_names=True)
    links_rows(links_said(probed, lang), sheet)
    return plain(sheet.rows)


def _flat(text: str) -> str:
    """As if no row ended."""
    return " ".join(text.split())


# ---------------------------------------------------------------- the first line


HEADLINES = {
    "fine-2": "2 of 2 links verified in 14 modes: every byte right",
    "fine-8": "56 of 56 links verified in 14 modes: every byte right",
    "one-way": "Wrong data on 1 of 2 links (push, pull); 1 of 2 verified",
    "under-load": "Wrong data on 2 of 12 links (push); 10 of 12 verified",
    "flags-hang": "No end on 2 of 2 links (flags)",
    "no-peer": "2 of 2 links are right through host memory; this machine offers no direct way between its GPUs",
    "slow": "2 of 2 links verified in 14 modes: every byte right; 1 slower than they should be",
    "one-gpu": "One GPU: there is no link to test. On the card itself 14 modes are right; that says nothing about links",
    "busy": "Nothing could be tested: GPU 0 is in use (python 4711); --force tests it all the same",
    "nothing": "Nothing could be tested: no GPU answers",
}


@pytest.mark.parametrize(("name", "words"), HEADLINES.items())
def test_the_first_line_says_how_many_links_are_right_and_what_is_wrong(name: str, words: str) -> None:
    assert links_said(MACHINES[name], "en").headline == words
    assert _flat(_text(MACHINES[name])).startswith(words)


def test_a_link_that_nobody_tried_is_not_counted_as_verified() -> None:
    tried = tuple(o for o in _machine(3).outcomes if 2 not in o.case.gpus)
    said = links_said(Probed(_cards(3), tried), "en")
    assert (said.links_verified, said.links_total, said.state) == (2, 6, "partly")
    assert said.headline.endswith("4 links not tested")


def test_only_what_is_wholly_proven_is_called_verified() -> None:
    without_nccl = tuple(o for o in _machine(2).outcomes if o.case.mode != "nccl")
    said = links_said(Probed(_cards(2), without_nccl), "en")
    assert said.state == "partly" and said.headline.endswith("not proven: nccl")
    assert links_said(MACHINES["fine-2"], "en").state == "verified"


def test_one_card_that_fails_with_itself_is_said_and_still_is_no_link() -> None:
    one = _one_gpu()
    broken = structs.replace(one, outcomes=(_bad(one.outcomes[1], Wrong("zero", 8, 0)), *one.outcomes[2:]))
    said = links_said(broken, "en")
    assert said.state == "wrong" and said.links_total == 0
    assert said.headline == "One GPU: there is no link to test, and the card fails with itself (push)"


def test_a_failing_control_comes_first() -> None:
    said = links_said(MACHINES["mixed-4"], "en")
    assert said.headline.startswith("The way through host memory itself fails on 1 of 12 links")
    assert said.findings[0].modes == ("staged",) and "host memory, a card or its way" in said.findings[0].means[0]


# ---------------------------------------------------------------- findings


def test_a_finding_says_pair_modes_bytes_kind_page_size_other_direction_meaning_and_what_to_do() -> None:
    text = _flat(_text(ONE_WAY))
    for words in (
        "BAD GPU0 -> GPU1, modes push, pull",
        "15 of 199 transfers arrived wrong",
        "the first of them (transfer 5): 4,096 of 65,536 bytes wrong, from byte 8,192 on",
        "never arrived",
        "in whole pages of 4 KiB",
        "right up to 4 KiB, wrong from 8 KiB on",
        "the other direction is right",
        "means: a model whose layers are split over these GPUs",
        "`linkproof check --mode push --pair 0:1`",
    ):
        assert words in text


def test_the_other_direction_is_not_called_right_if_it_is_not() -> None:
    both = _machine(2, _on(["push"], [(0, 1), (1, 0)], lambda o: _bad(o, Wrong("zero", 65536, 0))))
    assert "the other direction" not in _text(both)
    assert "GPU0 <-> GPU1, mode push" in _text(both)
    other_way = _machine(2, lambda o: _on(["push"], [(1, 0)], _hung)(_on(["push"], [(0, 1)], lambda p: _bad(p, Wrong("zero", 8, 0)))(o)))
    assert "the other direction" not in _text(other_way)


def test_the_same_fault_on_many_links_and_modes_is_told_once() -> None:
    said = links_said(MACHINES["zeros-8"], "en")
    pairs = [f for f in said.findings if "push" in f.modes]
    assert len(pairs) == 1 and len(pairs[0].links) == 56 and set(pairs[0].modes) == set(PAIR_MODES) - {"staged"}
    assert "all 56 links, modes push, pull" in _text(MACHINES["zeros-8"])


def test_different_faults_of_one_link_are_told_apart() -> None:
    def change(o: Outcome) -> Outcome:
        o = _on(["push"], [(0, 1)], lambda o: _bad(o, Wrong("zero", 8, 0)))(o)
        return _on(["pull"], [(0, 1)], lambda o: _bad(o, Wrong("stale", 8, 0, "round 1")))(o)

    assert [f.modes for f in links_said(_machine(2, change), "en").findings] == [("push",), ("pull",)]


def test_only_under_load_is_said_only_where_the_link_alone_is_right() -> None:
    text = _flat(_text(UNDER_LOAD))
    assert "only under load (all links at once): the same link alone is right" in text and "BAD*" in text
    assert "; about 1 word in 1,000,000" in text
    untried = structs.replace(UNDER_LOAD, outcomes=tuple(o for o in UNDER_LOAD.outcomes if o.case.load != "alone"))
    assert "only under load" not in _text(untried)
    assert "only under load" not in _text(ONE_WAY)


def test_a_load_that_hangs_speaks_of_all_its_links() -> None:
    outcomes = [o for o in _machine(3).outcomes if o.case.load != "all"]
    hung = Outcome(Case("push", (0, 1, 2), "all"), "hung", "no answer after {deadline_s} s", {"deadline_s": "30"})
    said = links_said(Probed(_cards(3), (*outcomes, hung)), "en")
    assert len(said.findings) == 1 and len(said.findings[0].links) == 6 and said.findings[0].only_under_load


def test_at_most_eight_findings_are_shown_and_the_rest_is_counted() -> None:
    found = len(links_said(MACHINES["mixed-8"], "en").findings)
    text = _text(MACHINES["mixed-8"])
    assert found > 8 and f"... and {found - 8} more (--all)" in text and text.count("means:") <= 16
    assert "(--all)" not in _text(MACHINES["mixed-8"], say_all=True)


def test_all_links_of_one_gpu_are_called_so() -> None:
    text = _text(MACHINES["mixed-8"], say_all=True)
    assert "all links from GPU2, modes store, store16" in text and "all links to GPU3, mode load" in text


def test_a_setting_for_nccl_is_named_only_if_nccl_was_right_without_what_it_switches_off() -> None:
    assert "set `NCCL_P2P_DISABLE=1`" in _flat(_text(MACHINES["zeros-2"]))
    everywhere = _machine(2, lambda o: _bad(o, Wrong("zero", 8, 0)) if o.case.mode == "nccl" else o)
    assert "NCCL_P2P_DISABLE" not in _text(everywhere)


def test_ll128_that_nccl_would_not_choose_is_told_and_accuses_nobody() -> None:
    said = links_said(LL128, "en")
    assert said.state == "verified" and "Wrong" not in said.headline
    assert [f.counted for f in said.findings] == [False] and "nothing depends on it" in _flat(_text(LL128))


def test_atomics_that_pcie_lacks_are_no_finding() -> None:
    said = links_said(MACHINES["fine-4"], "en")
    assert said.findings == () and [s.modes for s in said.skipped if s.state == "refused"] == [("atomics",)]


KINDS = {
    Wrong("untouched", 8, 0): "never arrived",
    Wrong("zero", 8, 0, "", 2 << 20): "zeros arrived instead of the data, in whole pages of 2 MiB",
    Wrong("stale", 8, 0, "round 3"): "old data: those of transfer 4",
    Wrong("stale", 8, 0, "round 138"): "old data: those of an earlier transfer",
    Wrong("offset", 8, 0, "+4096"): "displaced: data from 4,096 bytes further on stand there",
    Wrong("offset", 8, 0, "-16"): "displaced: data from 16 bytes before stand there",
    Wrong("other_pair", 8, 0, "2->3"): "data meant for another link arrived (GPU2 -> GPU3)",
    Wrong("bits", 8, 0, "14"): "bit 14 of 64 is flipped",
    Wrong("bits", 8, 0, "3,14"): "bits are flipped (2 different ones of 64)",
    Wrong("torn", 8, 0): "torn words: one part new, one part not",
    Wrong("overrun", 8, 0, "+16"): "written past its end",
    Wrong("overrun", 8, 0, "-16"): "written before its beginning",
    Wrong("bystander", 8, 0): "memory beside the target was overwritten",
    Wrong("garbage", 8, 0): "neither the data nor anything else that was sent",
    Wrong("reordered", 8, 0): "the flag came before its data",
    Wrong("a new kind", 8, 0): "a new kind",
}


@pytest.mark.parametrize(("wrong", "words"), KINDS.items(), ids=lambda x: x.kind + x.detail if isinstance(x, Wrong) else "")
def test_every_kind_of_wrong_byte_has_words(wrong: Wrong, words: str) -> None:
    assert kind_words(wrong, Teller("en"), 9).startswith(words)


# ---------------------------------------------------------------- tables


def test_few_gpus_have_a_row_for_each_link_that_shows_where_modes_differ() -> None:
    rows = _text(ONE_WAY).splitlines()
    at = rows.index("Where links differ")
    assert rows[at + 1].split() == ["push", "pull"]
    assert rows[at + 2].split() == ["GPU0", "->", "GPU1", "BAD", "BAD"] and rows[at + 3].split() == ["GPU1", "->", "GPU0", "ok", "ok"]


def test_many_gpus_have_one_matrix_for_modes_that_are_alike() -> None:
    rows = _text(MACHINES["mixed-8"]).splitlines()
    at = rows.index("  store, store16")
    assert rows[at + 1].split() == [f"GPU{i}" for i in range(8)]
    assert rows[at + 2].split() == ["GPU2", *["BAD"] * 7] and rows[at + 3].split() == ["all", "others", *["ok"] * 8]


def test_modes_that_are_the_same_everywhere_take_one_line_each() -> None:
    text = _text(MACHINES["fine-8"])
    assert "Where links differ" not in text
    assert [row.split()[1:3] for row in text.splitlines() if row.startswith("  push ") and "copy" in row] == [["all", "ok"]]


def test_a_link_right_alone_and_untried_under_load_is_neither_ok_nor_untested() -> None:
    why = "not tried: the GPUs could not be set up twice in a row"
    missing = _on(["push"], [(0, 1)], lambda o: Outcome(o.case, "not_tested", why), load="all")
    text = _text(_machine(4, missing))
    assert "ok 10, part 2" in text and "part: right where it was tried" in text
    assert "push (all links at once) on GPU0 <-> GPU1: not tried" in _flat(text)


@pytest.mark.parametrize("mark", ["BAD", "HUNG", "died", "no"])
def test_marks_are_words_and_stand_in_the_legend(mark: str) -> None:
    text = _text(MACHINES["mixed-4"])
    assert mark in text and f"{mark}: " in text


# ---------------------------------------------------------------- speed, counters, what was not tested


def test_the_speed_of_each_link_stands_in_a_matrix_and_loads_in_lines() -> None:
    text = _text(MACHINES["fine-4"])
    assert [row.split() for row in text.splitlines() if row.startswith("  GPU1 ")][:1] == [["GPU1", "24.6", "24.6", "24.6"]]
    rows = {row.split()[0]: " ".join(row.split()[1:]) for row in text.split("each mode, one link")[1].splitlines() if row.startswith("  ")}
    assert rows["push"] == "24.6 (24.2-24.7) 12.3 (11.9-12.4) 12.3 (11.9-12.4) 9.5" and rows["pull"] == "23.9 (23.5-24.0) - - 9.5"


def test_a_link_slower_than_host_memory_is_a_finding_and_is_marked() -> None:
    text = _text(MACHINES["slow"])
    assert "6.2*" in text and "every byte right, but 6.2 GB/s, slower than the way through host memory (11.8 GB/s)" in _flat(text)
    assert "*" not in _text(MACHINES["fine-2"])


def test_nccl_tells_what_it_was_asked_for_and_what_it_used() -> None:
    text = _text(MACHINES["fine-2"])
    assert [row.split() for row in text.splitlines() if row.startswith("  shm/Simple")] == [
        ["shm/Simple", "ok", "SHM/direct", "14.2", "(16", "MiB)"]
    ]
    other = _machine(2, lambda o: structs.replace(o, transport="SHM/direct") if o.case.arm.startswith("p2p") else o)
    assert "SHM/direct*" in _text(other) and "NCCL did not use what it was asked for" in _flat(_text(other))
    assert "NCCL used SHM/direct instead" in _text(other)


def test_counters_that_rose_are_told_and_those_nobody_could_read() -> None:
    text = _text(MACHINES["mixed-4"])
    assert "! PCIe errors that were corrected (AER), 0000:41:00.0: 1,212 more, 1,215 in all (BadTLP +1212)" in text
    assert "! PCIe link width, 0000:41:00.0: 16 before, 8 after" in text
    assert "could not be read: PCIe packets that had to be sent again" in text
    assert "none of 1 changed" in _text(MACHINES["fine-4"])


def _counted(*counters: Counter) -> str:
    return _flat(_text(_machine(2, counters=counters)))


def test_counters_are_read_as_the_probe_writes_them() -> None:
    assert "! kernel log: 2 new lines, the first: Xid 79" in _counted(Counter("kernel log", "", "", "Xid 79\nXid 31"))
    assert "- PCIe link width, 0000:01:00.0: 8 before, 16 after" in _counted(Counter("link width", "0000:01:00.0", "8", "16"))
    assert "! NVLink state, GPU 0 link 3: active before, inactive after" in _counted(
        Counter("NVLink", "GPU 0 link 3", "active", "inactive")
    )
    assert "! NVML, GPU 1: could be read before the traffic and not after it" in _counted(Counter("NVML", "GPU 1", "1", None))
    assert "- could not be read: kernel log" in _counted(Counter("kernel log", "", None, None))


def test_what_was_not_tested_stands_with_its_reason_once() -> None:
    assert "- symm_mem, nvls, vllm_allreduce: not there, or not for these GPUs" in _text(MACHINES["fine-8"])
    assert "symm_mem, nvls: needs two GPUs" in _text(MACHINES["one-gpu"])
    assert "GPU 0, 1 is in use (python 4711)" in _text(MACHINES["busy"])
    text = _flat(_text(MACHINES["no-peer"]))
    assert "for example, the driver offers no peer access from GPU 0 to GPU 1" in text and text.count("peer access") == 1


def test_virtual_gpus_are_said_to_be_virtual() -> None:
    assert "virtual GPUs: nothing here is about real ones" in _flat(_text(structs.replace(MACHINES["fine-2"], backend="virtual")))
    assert "virtual" not in _text(MACHINES["fine-2"]).split("Every mode")[0]


# ---------------------------------------------------------------- forms


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("width", [40, 72, 100])
@pytest.mark.parametrize("say_all", [False, True])
@pytest.mark.parametrize("name", MACHINES)
def test_no_row_is_wider_than_asked(name: str, say_all: bool, width: int, lang: str) -> None:
    wide = [row for row in _text(MACHINES[name], lang, width, say_all).splitlines() if width_of(row) > width]
    assert wide == []


@pytest.mark.parametrize("name", MACHINES)
def test_no_word_is_torn(name: str) -> None:
    """The words of a narrow report are words of a wide one."""
    narrow, wide = (set(_text(MACHINES[name], "en", width, True).split()) for width in (60, 100))
    assert narrow <= wide


@pytest.mark.parametrize("name", ["fine-2", "fine-8", "one-way", "under-load", "one-gpu", "no-peer"])
def test_a_usual_report_fits_on_a_page_or_two(name: str) -> None:
    assert len(_text(MACHINES[name]).splitlines()) <= 76


@pytest.mark.parametrize("name", MACHINES)
def test_the_json_keeps_its_schema_and_holds_every_outcome(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    said = links_said(MACHINES[name], "zh")
    answer = json.loads(msgspec.json.encode(said))
    jsonschema.validate(answer, msgspec.json.schema(LinksSaid), cls=jsonschema.Draft202012Validator)
    assert len(answer["outcomes"]) == len(MACHINES[name].outcomes)
    assert msgspec.json.decode(msgspec.json.encode(said), type=LinksSaid) == said


def test_the_shipped_schema_of_check_is_the_one_that_the_types_make() -> None:
    if os.environ.get("UPDATE_EXPECTED"):
        SCHEMA.write_text(check_json.schema(), encoding="utf-8")
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json.loads(check_json.schema()), "run with UPDATE_EXPECTED=1"


def test_the_state_of_the_json_and_of_the_route_table_is_the_same_in_both_languages() -> None:
    for probed in MACHINES.values():
        en, zh = links_said(probed, "en"), links_said(probed, "zh")
        assert [r.state for r in en.routes] == [r.state for r in zh.routes] and en.state == zh.state


def test_every_mode_is_explained_in_chinese() -> None:
    assert [m.what for m in MODES.values() if not catalogue().get(m.what)] == []


def test_the_chinese_headline_is_chinese() -> None:
    for name in HEADLINES:
        assert any("\u4e00" <= c <= "\u9fff" for c in links_said(MACHINES[name], "zh").headline), name


# ---------------------------------------------------------------- self-test


class Result(Struct, frozen=True):
    fault: str
    caught: bool
    named: bool
    said: str
    took_s: float = 0.4
    why: str = ""
    possible: bool = True


def _self_test(*results: Result, width: int = 100) -> str:
    return plain(self_test_rows(results, Teller("en"), width))


def test_the_self_test_says_that_all_were_named_only_if_all_were() -> None:
    zeros, hang = Result("zeros", True, True, "corrupt: zero"), Result("a transfer never ends", True, True, "hung")
    assert _self_test(zeros, hang).endswith("All 2 were seen and named: this probe would have caught such faults here\n")
    missed = _self_test(zeros, Result("one bit flips", False, False, "verified", why="bits"))
    assert "MISSED" in missed and "verified; expected: bits" in missed
    assert missed.endswith("1 of 2 were missed: do not trust a clean result of this probe here\n")
    odd = _self_test(zeros, Result("words tear", True, False, "corrupt: garbage", why="torn"))
    assert "caught, misnamed" in odd and odd.endswith("All 2 were seen, 1 of them were called something else\n")
    assert _self_test().endswith("Nothing was put in, so nothing is proven\n")


def test_a_clean_run_of_the_self_test_is_called_clean() -> None:
    assert "clean" in _self_test(Result("nothing", False, True, "verified"))


@pytest.mark.parametrize("width", [40, 72])
def test_the_self_test_fits_its_width(width: int) -> None:
    said = _self_test(Result("memory behind the end is overwritten", True, False, "corrupt: overrun, bits", why="overrun"), width=width)
    assert max(map(width_of, said.splitlines())) <= width


# ---------------------------------------------------------------- multicast that nobody asked for


@pytest.mark.parametrize(("offered", "state", "left"), [
    (True, "not_tested", True), (True, "verified", False), (False, "not_tested", False), (None, "not_tested", False),
])  # fmt: skip
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_healthy_does_not_include_a_multicast_that_was_not_tried(offered: bool | None, state: str, left: bool, lang: str) -> None:
    probed = _machine(2, lambda o: structs.replace(o, state=state) if o.case.mode == "nvls" else o)
    probed = structs.replace(probed, cards=tuple(structs.replace(c, multicast=offered) for c in probed.cards))
    links = links_said(probed, lang)
    words = proven_words("healthy", Teller(lang), machine._multicast_left(links))
    assert ({"en": "but for NVLink multicast", "zh": "只有 NVLink 组播没有测试"}[lang] in words) == left
