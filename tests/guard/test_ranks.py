"""Ranks of a tensor-parallel model: what lies is found and named on every rank alike, the tokens are the right ones, and nobody waits for ever."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: no model can be guarded")
pytest.importorskip("transformers", reason="transformers is not installed: there is no model")

import rank_gang
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from rank_gang import PROMPT, Gang, link, save_model, tokens
from transformers import AutoModelForCausalLM

import linkproof
from linkproof.errors import LinkproofError
from linkproof.guard.ranks import channel as ranks_channel
from linkproof.guard.ranks import session as ranks_session
from linkproof.guard.ranks.watch import guard_ranks

NEW = 4
PER_FORWARD = 6  # embedding, 2 layers with 2 sums each, logits
AT = 7  # second forward: sum of the second block of layer 0, as `link` counts
NUMBER = 4  # the same one, as the guard counts
Answer = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def gangs(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Gang]]:
    up: dict[int, Gang] = {}

    def of(ranks: int) -> Gang:
        if ranks not in up:
            up[ranks] = Gang(ranks, tmp_path_factory.mktemp("store") / str(ranks), model)
        return up[ranks]

    yield of
    for gang in up.values():
        gang.close()


@pytest.fixture(scope="module")
def healthy(model: str) -> list[int]:
    """One process, no ranks."""
    alone = AutoModelForCausalLM.from_pretrained(model).eval()
    out: torch.Tensor = alone.generate(PROMPT, max_new_tokens=NEW, do_sample=False)
    return out[0, PROMPT.shape[1] :].tolist()


# ---------------------------------------------------------------- what the ranks do; each runs in every rank


def lying(kind: str, rank: int, number: int = AT) -> AbstractContextManager[None]:
    """From the sum `number` on, all are wrong on this rank (-1: on every rank)."""
    before: list[torch.Tensor] = []
    mine = rank in (dist.get_rank(), -1)

    def damage(i: int, sent: torch.Tensor, out: torch.Tensor) -> None:
        if i < number or not mine:
            before.append(out.clone())
        elif kind == "zeros":
            out.zero_()
        elif kind == "stale":
            out.copy_(next(t for t in before[::-1] if t.shape == out.shape))
        elif kind == "low bit":
            out.view(torch.int32).view(-1)[3] ^= 1
        elif kind == "moved":
            out.copy_(out.roll(1, -1))
        elif kind == "too large":
            out.mul_(1.5)
        elif kind == "nan":
            out.fill_(float("nan"))
        elif kind == "nothing done":
            out.copy_(sent)

    return link(damage) if kind != "none" else nullcontext()


def guarded(mode: str, fault: AbstractContextManager[None] | None, policy: Any = "heal", **more: Any) -> Answer:
    with fault or nullcontext(), linkproof.guard(rank_gang.MODEL, mode, policy) as watch:
        out: Any = None
        error: LinkproofError | None = None
        try:
            out = tokens(**{"new": NEW, **more})
        except LinkproofError as e:
            error = e
    events = [(e.kind, e.ranks, e.step, e.hop, e.action) for e in watch.events]  # type: ignore[attr-defined]
    told = (error.told("en"), error.told("zh")) if error else ("", "")
    return {"tokens": out, "events": events, "error": error.ref if error else "", "told": told, "metrics": watch.metrics}


def lie(mode: str, kind: str, rank: int, policy: str = "heal") -> Answer:
    return guarded(mode, lying(kind, rank), policy)


def unguarded(kind: str, rank: int) -> list[int]:
    with lying(kind, rank):
        return tokens(NEW)


def one_of(answers: list[Answer], *but: str) -> Answer:
    """What every rank says, and all the same."""
    for name in set(answers[0]) - {"metrics", *but}:
        assert all(a[name] == answers[0][name] for a in answers), name
    return answers[0]


# ---------------------------------------------------------------- tests


@pytest.mark.parametrize("mode", ["deferred", "strict", "sampled", "stage", "observe"])
def test_a_healthy_model_says_what_it_says_on_one_device_and_nobody_is_accused(
    gangs: Callable[[int], Gang], healthy: list[int], mode: str
) -> None:
    answer = one_of(gangs(2).do(lie, mode, "none", 0))
    assert answer["tokens"] == healthy and not answer["events"] and not answer["error"]
    counts = answer["metrics"].counts
    assert counts.hops == PER_FORWARD * NEW and counts.forwards == NEW and not counts.unchecked and not counts.reruns
    assert counts.staged == (counts.hops if mode == "stage" else 0)


KINDS = {"zeros": "zeros", "stale": "stale", "low bit": "changed", "moved": "changed", "too large": "changed", "nan": "changed"}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("mode", ["deferred", "strict"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_sum_on_one_rank_is_named_and_the_tokens_are_right(
    gangs: Callable[[int], Gang], healthy: list[int], kind: str, mode: str, ranks: int
) -> None:
    answer = one_of(gangs(ranks).do(lie, mode, kind, 1))
    assert answer["tokens"] == healthy
    assert (KINDS[kind], (1,), 1, NUMBER, "heal") == answer["events"][0]
    counts = answer["metrics"].counts
    assert counts.staged and answer["metrics"].demoted == (f"ranks 0-{ranks - 1}",)
    assert counts.reruns == (mode == "deferred")


@pytest.mark.parametrize(("kind", "said", "odd"), [("zeros", "zeros", ()), ("too large", "sum", ()), ("nan", "sum", ())])
def test_a_sum_that_is_wrong_alike_on_every_rank_is_seen(
    gangs: Callable[[int], Gang], healthy: list[int], kind: str, said: str, odd: tuple[int, ...]
) -> None:
    answer = one_of(gangs(2).do(lie, "deferred", kind, -1))
    assert answer["tokens"] == healthy and answer["events"][0] == (said, odd, 1, NUMBER, "heal")


def with_little_room(kind: str) -> Answer:
    """As on a GPU with many sums in a forward: what has been read makes room in the middle of it."""
    plain = ranks_session.Projector.has_room
    asked = 0

    def has_room(self: Any, t: torch.Tensor) -> bool:
        nonlocal asked
        asked += 1
        return asked % 2 == 0

    ranks_session.Projector.has_room = has_room  # type: ignore[method-assign]
    try:
        return lie("deferred", kind, 1)
    finally:
        ranks_session.Projector.has_room = plain  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", ["none", "low bit"])
def test_numbers_that_have_come_in_the_middle_of_a_forward_are_kept(gangs: Callable[[int], Gang], healthy: list[int], kind: str) -> None:
    answer = one_of(gangs(2).do(with_little_room, kind))
    assert answer["tokens"] == healthy and not answer["error"]
    assert bool(answer["events"]) == (kind != "none")
    if kind != "none":
        assert answer["events"][0] == ("changed", (1,), 1, NUMBER, "heal")


def without_a_part(mode: str, rank: int) -> Answer:
    plain, count = dist.all_reduce, 0

    def all_reduce(tensor: torch.Tensor, *args: Any, **more: Any) -> Any:
        nonlocal count
        if count >= AT and dist.get_rank() == rank:
            tensor.zero_()
        count += 1
        return plain(tensor, *args, **more)

    dist.all_reduce = all_reduce
    try:
        return guarded(mode, None)
    finally:
        dist.all_reduce = plain


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("mode", ["deferred", "strict"])
def test_a_part_that_every_sum_lacks_is_named_though_all_ranks_agree(
    gangs: Callable[[int], Gang], healthy: list[int], mode: str, ranks: int
) -> None:
    answer = one_of(gangs(ranks).do(without_a_part, mode, 1))
    assert answer["tokens"] == healthy and answer["events"][0] == ("missing", (1,), 1, NUMBER, "heal")


def test_an_all_reduce_that_does_nothing_is_seen_and_no_rank_is_accused(gangs: Callable[[int], Gang], healthy: list[int]) -> None:
    answer = one_of(gangs(2).do(lie, "deferred", "nothing done", -1))
    assert answer["tokens"] == healthy and answer["events"][0][:2] == ("changed", ())


def test_observe_names_the_rank_and_changes_nothing(gangs: Callable[[int], Gang], healthy: list[int]) -> None:
    wrong = gangs(2).do(unguarded, "zeros", 1)
    answers = gangs(2).do(lie, "observe", "zeros", 1)
    assert [a["tokens"] for a in answers] == wrong and healthy not in wrong
    assert one_of(answers, "tokens")["events"][0] == ("zeros", (1,), 1, NUMBER, "warn")


@pytest.mark.parametrize("mode", ["deferred", "strict"])
def test_raise_stops_every_rank_with_the_same_words(gangs: Callable[[int], Gang], mode: str) -> None:
    answer = one_of(gangs(2).do(lie, mode, "zeros", 1, "raise"))
    assert answer["tokens"] is None and answer["error"] == "rank-corrupts"
    assert "all_reduce 4 of forward 1 left rank 1 with a wrong result (zeros); float32 of 1x1x64, 256 bytes" in answer["told"][0]
    assert "rank 1 得到的结果有误" in answer["told"][1]


def own_policy(kind: str) -> Answer:
    """The ranks' own functions do not agree."""
    return guarded("deferred", lying(kind, 1), lambda event: "raise" if dist.get_rank() == 1 else "warn")


def test_where_functions_disagree_all_ranks_do_the_strictest(gangs: Callable[[int], Gang]) -> None:
    assert one_of(gangs(2).do(own_policy, "zeros"))["error"] == "rank-corrupts"
    assert one_of(gangs(2).do(own_policy, "none"))["error"] == ""


def broken_host(kind: str) -> Answer:
    plain = ranks_channel.Channel.all_reduce

    def all_reduce(self: Any, t: torch.Tensor, op: Any) -> None:
        plain(self, t, op)
        if dist.get_rank() == 1:
            t.zero_()

    ranks_channel.Channel.all_reduce = all_reduce  # type: ignore[method-assign]
    try:
        return guarded("deferred", lying(kind, 1))
    finally:
        ranks_channel.Channel.all_reduce = plain  # type: ignore[method-assign]


def test_where_the_host_lies_too_it_stops(gangs: Callable[[int], Gang]) -> None:
    assert one_of(gangs(2).do(broken_host, "zeros"))["error"] == "host-path-corrupts"
    assert one_of(gangs(2).do(broken_host, "none"))["error"] == ""  # the host is not used


# ---------------------------------------------------------------- collectives of other kinds


def functional(name: str, mode: str) -> Answer:
    """The second call of a functional collective gives rank 1 a result that begins with zeros."""
    plain, count = getattr(funcol, name), 0

    def lies(*args: Any, **more: Any) -> Any:
        nonlocal count
        out = plain(*args, **more)
        count += 1
        if count == 2 and dist.get_rank() == 1:
            out = (out.wait() if isinstance(out, funcol.AsyncCollectiveTensor) else out).clone()
            out[..., :32] = 0
        return out

    setattr(funcol, name, lies)
    try:
        return guarded(mode, None)
    finally:
        setattr(funcol, name, plain)


@pytest.mark.parametrize("mode", ["deferred", "strict"])
@pytest.mark.parametrize(("names", "number"), [(["all_reduce"], 0), (["all_gather_single", "all_gather_tensor"], 5)])
def test_sums_and_gathers_of_dtensor_are_heard_as_well(
    gangs: Callable[[int], Gang], healthy: list[int], names: list[str], number: int, mode: str
) -> None:
    name = next(n for n in names if hasattr(funcol, n))
    answer = one_of(gangs(2).do(functional, name, mode))
    assert answer["tokens"] == healthy
    kind, odd, step, hop, action = answer["events"][0]
    assert (odd, step, hop, action) == ((1,), 1, number, "heal") and kind == "changed"


DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class Sums(torch.nn.Module):
    """A forward of a hundred sums, of parts that cancel out, too."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        random = torch.Generator().manual_seed(int(input_ids) * 64 + dist.get_rank())
        x = input_ids
        for i in range(100):
            size = (1, 17, 64, 1000, 4096)[i % 5]
            x = (torch.randn(size, generator=random) * 10.0 ** (i % 7 - 3)).to(DTYPES[i % 3])
            if i % 4 == 3:
                x = x.abs() * (-1) ** dist.get_rank()
            dist.all_reduce(x)
        return x


def clean(forwards: int) -> tuple[int, int]:
    with guard_ranks(Sums(), policy="raise") as watch:
        for i in range(forwards):
            watch._model(torch.tensor([i]))
    return len(watch.events), watch.metrics.counts.hops


@pytest.mark.parametrize(("ranks", "forwards"), [(2, 90), (4, 10)])
def test_no_alarm_in_ten_thousand_clean_sums(gangs: Callable[[int], Gang], ranks: int, forwards: int) -> None:
    assert gangs(ranks).do(clean, forwards) == [(0, 100 * forwards)] * ranks


# ---------------------------------------------------------------- ranks that part


def sampled(same: bool) -> Answer:
    return guarded("deferred", None, new=8, seed=5 if same else 5 + (dist.get_rank() == 1))


@pytest.mark.parametrize(("ranks", "odd"), [(2, ()), (4, (1,))])
def test_a_rank_that_samples_another_token_is_caught_before_its_next_forward(
    gangs: Callable[[int], Gang], ranks: int, odd: tuple[int, ...]
) -> None:
    answer = one_of(gangs(ranks).do(sampled, False))
    assert answer["error"] == "ranks-diverge" and "the same seed" in answer["told"][0]
    kind, who, step, _, action = answer["events"][0]
    assert (kind, who, action) == ("ids", odd, "raise")
    counts = answer["metrics"].counts
    assert counts.forwards == step + 1 and counts.hops == PER_FORWARD * step  # no collective of the step itself was made


def test_ranks_with_the_same_seed_sample_the_same(gangs: Callable[[int], Gang]) -> None:
    answer = one_of(gangs(2).do(sampled, True))
    assert not answer["error"] and not answer["events"] and len(answer["tokens"]) == 8


def of_length(longer: int) -> Answer:
    return guarded("deferred", None, new=NEW + longer * (dist.get_rank() == 1))


def test_a_rank_that_goes_on_when_the_others_have_ended_is_told_and_does_not_hang(gangs: Callable[[int], Gang]) -> None:
    began = time.monotonic()
    assert one_of(gangs(4).do(of_length, 2))["events"][0][:2] == ("ended", (1,))
    assert time.monotonic() - began < 20
    assert not one_of(gangs(4).do(of_length, 0))["events"]


def asked(mode: str) -> str:
    try:
        linkproof.guard(rank_gang.MODEL, mode if dist.get_rank() else "strict").remove()
    except LinkproofError as e:
        return e.ref
    return ""


def test_ranks_that_ask_for_different_guards_are_refused(gangs: Callable[[int], Gang]) -> None:
    assert gangs(2).do(asked, "deferred") == ["ranks-guarded-differently"] * 2
    assert gangs(2).do(asked, "strict") == ["", ""]


def alone() -> str:
    try:
        guard_ranks(rank_gang.MODEL, group=dist.new_group([dist.get_rank()], use_local_synchronization=True))
    except LinkproofError as e:
        return e.ref
    return ""


def test_one_rank_is_nothing_to_compare(gangs: Callable[[int], Gang]) -> None:
    assert gangs(2).do(alone) == ["nothing-to-guard"] * 2


def put_back() -> bool:
    names = [(dist, "all_reduce"), (dist, "all_gather"), (funcol, "all_reduce")]
    before = [getattr(*name) for name in names]
    own = dict(vars(rank_gang.MODEL))
    with linkproof.guard(rank_gang.MODEL):
        heard = [getattr(*name) for name in names]
    return (
        all(a is not b for a, b in zip(before, heard, strict=True))
        and before == [getattr(*name) for name in names]
        and own == vars(rank_gang.MODEL)
    )


def test_after_it_nothing_is_listened_to(gangs: Callable[[int], Gang]) -> None:
    assert gangs(2).do(put_back) == [True, True]


def test_metrics_are_told_by_group(gangs: Callable[[int], Gang]) -> None:
    text = gangs(2).do(lie, "deferred", "zeros", 1)[0]["metrics"].prometheus()
    assert 'linkproof_guard_mismatches_total{link="ranks 0-1 all_reduce"} 1' in text
    assert "linkproof_guard_reruns_total 1" in text


# ---------------------------------------------------------------- ranks that are gone; these gangs end with the test


def dies(at: str) -> Answer:
    """Rank 1 ends in the second forward, before a sum or between two forwards."""

    def damage(i: int, sent: torch.Tensor, out: torch.Tensor) -> None:
        if i == AT and dist.get_rank() == 1 and at == "in a forward":
            os._exit(1)

    begin = linkproof.guard.ranks.session.RankSession.begin  # type: ignore[attr-defined]

    def ends(self: Any, step: int, *more: Any) -> None:
        if step == 1 and dist.get_rank() == 1 and at == "between forwards":
            os._exit(1)
        begin(self, step, *more)

    linkproof.guard.ranks.session.RankSession.begin = ends  # type: ignore[attr-defined]
    return guarded("deferred", link(damage))


@pytest.mark.parametrize("at", ["in a forward", "between forwards"])
def test_the_others_say_which_rank_is_gone_and_do_not_hang(model: str, tmp_path: Path, at: str) -> None:
    gang = Gang(4 if at == "in a forward" else 2, tmp_path / "store", model, 8)  # gloo's sum among the others ends by that
    try:
        began = time.monotonic()
        answers = gang.do(dies, at, but=1)
        assert time.monotonic() - began < 30
    finally:
        gang.close()
    assert {a["error"] for a in answers} == {"rank-gone"}
    assert all("rank 1 does not answer" in a["told"][0] for a in answers), answers
