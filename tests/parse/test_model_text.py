import pytest

from linkproof.model import Event, Fact, Input
from linkproof.parse import read
from linkproof.parse.clean import clean


def facts(words: str) -> list[Fact]:
    return read(clean("log", words))


def events(words: str) -> list[tuple[str, str]]:
    return [(f.kind, f.value) for f in facts(words) if isinstance(f, Event)]


@pytest.mark.parametrize("words, kind, value", [
    ("IndexError: Target 5 is out of bounds.", "label_error", "5"),
    ("RuntimeError: Class values must be smaller than num_classes.", "label_error", ""),
    ("\tsize mismatch for model.embed_tokens.weight: copying a param with shape torch.Size([32001, 4096]) from checkpoint, the shape in current "
     "model is torch.Size([32000, 4096]).", "vocab_mismatch", "32001 32000"),
    ("Token indices sequence length is longer than the specified maximum sequence length for this model (1024 > 512). Running", "seq_too_long",
     "1024 > 512"),
    ("This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in the messages).", "seq_too_long", "5000 > 4096"),
    ("Input prompt (5000 tokens) is too long and exceeds limit of 4096", "seq_too_long", "5000 > 4096"),
    ("llama_context: n_ctx_per_seq (32768) > n_ctx_train (2048) -- possible training context overflow", "seq_too_long", "32768 > 2048"),
    ("{'loss': nan, 'learning_rate': 1e-05}", "nan_seen", ""),
    ("{'loss': 0.0, 'grad_norm': nan}", "nan_seen", ""),
    (" iteration 10/ 100 | lm loss: NaN |", "nan_seen", ""),
    ("tensor([[0.1, nan, 3.]], device='cuda:1')", "nan_seen", ""),
    ("Detected errors during sampling! NaN in the logits.", "nan_seen", ""),
    ("[1]nan,[2]nan,[3]nan", "nan_seen", ""),
])  # fmt: skip
def test_a_message_about_a_limit_becomes_its_event(words: str, kind: str, value: str) -> None:
    assert events(words) == [(kind, value)]


def test_a_token_id_out_of_vocabulary_is_an_input() -> None:
    found = [f for f in facts("ValueError: Token id 151936 is out of vocabulary") if isinstance(f, Input)]
    assert [(f.fact, f.value) for f in found] == [("token_id_out_of_vocab", "151936")]


@pytest.mark.parametrize("words", [
    "\tsize mismatch for model.embed_tokens.weight: copying a param with shape torch.Size([32000, 5120]) from checkpoint, the shape in current "
    "model is torch.Size([32000, 4096]).",
    "\tsize mismatch for layers.0.q_proj.weight: copying a param with shape torch.Size([1, 4096]) from checkpoint, the shape in current model is "
    "torch.Size([2, 4096]).",
    "llama_context: n_ctx_per_seq (16384) < n_ctx_train (32768) -- the full capacity of the model will not be utilized",
    "IndexError: index 5 is out of bounds for axis 0 with size 5",
    "check_for_nan_in_loss=True",
    "enable_nan_detection=False",
    "no NaN in loss",
    "Processed prompts: 0%| est. speed input: nan toks/s",
    "nanoflow banana ETA: nan",
    "val mAP: [0.3, 0.5]",
])  # fmt: skip
def test_a_message_that_only_resembles_one_gives_nothing(words: str) -> None:
    assert not events(words)
