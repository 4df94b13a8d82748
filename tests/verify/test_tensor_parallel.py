"""A checkpoint over real gloo ranks against one device: it agrees, a spoilt part is named, a rank that dies or will not load is a result."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: there is no tensor")
pytest.importorskip("transformers", reason="transformers is not installed: there is no model")

import msgspec
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from linkproof import verify_ranks
from linkproof.verify_ranks import Lied, RankSaid, RanksResult, RankTask, tensor_parallel

PROMPTS = [[1, 2, 3, 4], [9, 8, 7]]
# what a rank runs instead: the real one, with its hands on the model in between
HANDS = """
import os, signal, sys
import torch, torch.distributed as dist
from linkproof.verify_ranks import rank

def spoilt(task, me=int(sys.argv[2]), load=rank.split):
    model = load(task)
    if me == 1 and "shard" in "{fault}":
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.to_local()[3, 5] += 1
    if me == 1 and "sums" in "{fault}":
        plain = dist.all_reduce
        def lies(t, *args, **more):
            plain(t, *args, **more)
            t.zero_()
        dist.all_reduce = lies
    if me == 1 and "killed" in "{fault}":
        model.model.norm.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    return model

rank.split = spoilt
rank.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    shape |= {"vocab_size": 64, "num_hidden_layers": 2, "tie_word_embeddings": False, "initializer_range": 0.3}
    folder = tmp_path_factory.mktemp("model")
    Qwen3ForCausalLM(Qwen3Config(**shape, eos_token_id=None, bos_token_id=None, pad_token_id=0)).save_pretrained(folder)
    return str(folder)


def run(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str = "") -> RanksResult:
    if fault:
        script = tmp_path / "rank.py"
        script.write_text(HANDS.replace("{fault}", fault), encoding="utf-8")
        monkeypatch.setattr(verify_ranks, "RANK", (sys.executable, str(script)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = tensor_parallel(model, PROMPTS, 4, 2, "float32", 0, deadline_s=200)
    assert not any(str(tmp_path) in line for line in _command_lines())
    return result


def _command_lines() -> Iterator[str]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                yield (folder / "cmdline").read_bytes().decode(errors="replace")


def test_a_healthy_model_agrees_with_one_device(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run(model, monkeypatch, tmp_path)
    assert result.state == "agrees", result
    assert [len(t) for t in result.tokens] == [4, 4] and len({tuple(t) for t in result.tokens}) == 2
    assert result.logit_distance is not None and result.logit_distance < 1e-3
    assert not result.weights_bad and result.odd_rank is None and result.weights_compared == 25 and not result.weights_unknown


def test_a_spoilt_part_and_wrong_sums_are_named_with_their_rank(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run(model, monkeypatch, tmp_path, "shard and sums")
    assert result.state == "differs" and result.odd_rank == 1, result
    assert result.weights_bad == ["rank 1: model.layers.0.mlp.up_proj.weight"]
    assert "left rank 1 with a wrong result (zeros)" in result.why


def test_a_killed_rank_is_a_result(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run(model, monkeypatch, tmp_path, "killed")
    assert result.state == "died" and result.odd_rank == 1 and result.why == "rank 1 was ended by signal 9", result


def test_one_rank_is_not_tested(tmp_path: Path) -> None:
    assert tensor_parallel(str(tmp_path), PROMPTS, 4, 1, "float32", 0).state == "not_tested"


# ---------------------------------------------------------------- the verdict alone

TASK = RankTask("", PROMPTS, 2, 3, "float32", 0, "cpu", 60)
RIGHT = [[1, 2]]


def judged(*said: RankSaid | None, codes: tuple[int | None, ...] = (0, 0, 0), hung: bool = False, folder: Path = Path()) -> RanksResult:
    return verify_ranks._judged(TASK, said, codes, hung, str(folder))


def ranks(**more: Any) -> list[RankSaid]:
    first = {"tokens": RIGHT, "alone": RIGHT, "logit_distance": 0.25, "loaded": True, "weights_compared": 7}
    return [RankSaid(rank, **{**first, **more}) for rank in range(3)]


def test_what_agrees_agrees() -> None:
    result = judged(*ranks())
    assert result.state == "agrees" and result.logit_distance == 0.25 and result.why.startswith("7 tensors of each rank")


def test_a_rank_with_other_tokens_is_the_odd_one() -> None:
    other = msgspec.structs.replace(ranks()[2], tokens=[[1, 3]])
    result = judged(*ranks()[:2], other)
    assert (result.state, result.odd_rank) == ("differs", 2)


def test_tokens_that_differ_from_one_device_name_no_rank() -> None:
    result = judged(*ranks(alone=[[1, 3]]))
    assert (result.state, result.odd_rank) == ("differs", None) and "up to 0.25 apart" in result.why


def test_without_a_run_on_one_device_there_is_no_agreement() -> None:
    assert judged(*ranks(alone=None, logit_distance=None)).state == "not_tested"


def test_a_bad_part_comes_before_the_tokens() -> None:
    bad = msgspec.structs.replace(ranks()[1], weights_bad=["a.weight"])
    result = judged(ranks()[0], bad, ranks()[2])
    assert (result.state, result.odd_rank, result.weights_bad) == ("differs", 1, ["rank 1: a.weight"])
    assert result.why == "1 parts are not what the checkpoint holds, first rank 1: a.weight"


def test_a_model_that_no_rank_can_load_is_not_tested() -> None:
    result = judged(*ranks(loaded=False, error="OSError: no file"))
    assert result.state == "not_tested" and result.why == "the model cannot be split over 3 ranks: OSError: no file"


def test_the_rank_that_stopped_by_itself_is_named_and_not_those_that_missed_it() -> None:
    gone = ranks(error="rank-gone: rank 1 does not answer", gone=True)
    own = msgspec.structs.replace(gone[1], error="IndexError: out of range", gone=False)
    result = judged(gone[0], own, gone[2])
    assert (result.state, result.odd_rank, result.why) == ("died", 1, "rank 1 stopped: IndexError: out of range")


def test_where_every_rank_stops_by_itself_nobody_has_died() -> None:
    result = judged(*ranks(error="RuntimeError: shape"))
    assert (result.state, result.odd_rank, result.why) == ("not_tested", None, "every rank stopped by itself: RuntimeError: shape")


def test_a_lie_that_was_seen_comes_before_the_errors_that_follow_it() -> None:
    result = judged(*ranks(error="IndexError: out of range", lied=[Lied([2], "wrong", "错误")]))
    assert (result.state, result.odd_rank, result.why) == ("differs", 2, "a collective went wrong: wrong")


def test_a_rank_that_ends_without_a_word_is_named_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "printed.2").write_text("...\nSegmentation fault\n\n", encoding="utf-8")
    result = judged(*ranks()[:2], None, codes=(0, 0, 7), folder=tmp_path)
    assert (result.state, result.odd_rank, result.why) == ("died", 2, "rank 2 ended with code 7: Segmentation fault")


def test_ranks_that_hang_are_told_with_the_deadline() -> None:
    result = judged(ranks()[0], None, None, codes=(0, None, None), hung=True)
    assert (result.state, result.odd_rank, result.why) == ("died", None, "no answer after 60 s from rank 1 2")
