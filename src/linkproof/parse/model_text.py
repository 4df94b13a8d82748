"""Messages about a model's own limits: vocabulary, labels, sequence length, NaN.

In:      tokenizer warnings, `load_state_dict` size mismatches, loss functions on the CPU, context-length messages of transformers,
         vLLM, SGLang and llama.cpp, training logs (`'loss': nan`), printed tensors that hold nan, engines' NaN checks.
Out:     Event label_error, vocab_mismatch, seq_too_long, nan_seen, each once per (kind, value, rank); Input token_id_out_of_vocab.
         value: the numbers that the message prints, `longer > allowed` for lengths.
Unknown: a nan that belongs to no loss, norm, logit or tensor (a progress bar's speed, a table cell) is nothing.
Raises:  nothing.
Source:  transformers tokenization and generation warnings, torch `load_state_dict` and NLLLoss, vLLM and SGLang request checks.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Input, Source, Text
from linkproof.parse.rules import Match, Rule, anchors_of, distinct, run, rx

_N = r"(\d{1,12})"


def _lengths(found: Match | None, where: Source, rank: int | None) -> Fact | None:
    """Two printed lengths in either order: the longer one is the sequence, or nobody would complain."""
    if found is None:
        return None
    numbers = sorted((int(g) for g in found.groups() if g), reverse=True)
    return Event(source=where, rank=rank, kind="seq_too_long", value=" > ".join(str(n) for n in numbers))


def _rows(found: Match | None, where: Source, rank: int | None) -> Fact | None:
    """Only the first axis is the vocabulary; a mismatch of the second is another model."""
    if found is None or found[1] == found[2]:
        return None
    return Event(source=where, rank=rank, kind="vocab_mismatch", value=f"{found[1]} {found[2]}")


def _out_of_vocab(found: Match | None, where: Source, rank: int | None) -> Fact | None:
    return Input(source=where, rank=rank, fact="token_id_out_of_vocab", value=found[1] if found else "")


_EMBEDDING = r"(?:embed\w*|wte|lm_head|tok_embeddings|embed_out|output_layer|shared)"
_MEASURE = r"(?i)\b\w*(?:loss|grad_norm|gnorm|perplexity|ppl|logits?|logprobs?|entropy|reward|kl)\w*['\"]?\s{0,3}[:=]\s{0,3}"
_NAN_VALUE = _MEASURE + r"(?:tensor\()?\[?['\"]?-?nan\b"
_NAN_WORDS = r"(?i)\bnans?\b.{0,40}\b(?:detected|found|encountered|in (?:the )?(?:logits|loss|input|output|hidden|grad|tensor))|" \
    r"\b(?:detected|found|encountered|contains?|got|became|is|are|with)(?: a| any)? nans?(?:\b|/)(?:.{0,30}\b(?:logits|loss|tensor|values?|grad))?"  # fmt: skip
_NAN_SUBJECT = r"(?i)\b(?:loss|logits?|logprobs?|grad\w*|tensors?|activations?|hidden|prob\w*|outputs?|inputs?|weights?|sampl\w+)\b"
_NOT_NAN = r"(?i)\bno nans?|without nan|\bcheck\w*(?:_for)?[_ ]nan|nan[_ ](?:check|detection)\b|\bif\b.{0,60}nan|isnan\("
_NAN_TENSOR = r"(?:tensor|^\s*\[).*(?:\[|,)\s*nan\s*(?:,|\])|^\s*\[\s*nan\s*(?:,|\])|tensor\(nan\b|\[\d{1,6}\]nan\b"


def _nan(found: Match | None, where: Source, rank: int | None) -> Fact | None:
    return None if rx(_NOT_NAN).search(where.text) else Event(source=where, rank=rank, kind="nan_seen")


def _nan_words(found: Match | None, where: Source, rank: int | None) -> Fact | None:
    """A sentence must say what is NaN, or it is documentation."""
    return _nan(found, where, rank) if rx(_NAN_SUBJECT).search(where.text) else None


RULES: tuple[Rule, ...] = (
    Rule("is out of bounds", r"\bTarget (-?\d{1,12}) is out of bounds", "label_error"),
    Rule("cur_target", r"Assertion .{0,3}cur_target >= 0 && cur_target < n_classes.{0,3} failed.{0,200}\.c:\d", "label_error"),
    Rule("Class values must be smaller than num_classes", "", "label_error"),
    # vocabulary
    Rule("size mismatch for ", r"size mismatch for [\w.]{0,120}\b" + _EMBEDDING + r"\.weight: .{0,60}Size\(\[" + _N + r", \d+\]\)"
         r".{0,120}Size\(\[" + _N + r", \d+\]\)", _rows),
    Rule("size mismatch for ", r"size mismatch for [\w.]{0,120}" + _EMBEDDING + r"\.weight:?\s*$", "vocab_mismatch"),
    Rule("out of vocabulary", r"(?i)\btoken id " + _N + r" is out of vocabulary", _out_of_vocab),
    Rule("out of vocab", r"(?i)\btoken[_ ]ids?\b.{0,40}?" + _N + r".{0,40}out of vocab(?:\b|\s)", _out_of_vocab),
    # lengths
    Rule("Token indices sequence length is longer than", r"\(" + _N + r" > " + _N + r"\)", _lengths),
    Rule("maximum context length is", r"maximum context length is " + _N + r" tokens.{0,120}? " + _N + r" (?:tokens|input tokens|in the)", _lengths),
    Rule("is too long and exceeds limit of", r"\(" + _N + r" tokens\).{0,60}limit of " + _N, _lengths),
    Rule("longer than the maximum model length", r"\(length " + _N + r"\).{0,80}maximum model length of " + _N, _lengths),
    Rule("longer than the model's context length", r"\(" + _N + r" tokens\).{0,80}context length \(" + _N, _lengths),
    Rule("is greater than the derived max_model_len", r"max_model_len \(" + _N + r"\).{0,120}?=" + _N, _lengths),
    Rule("will exceed the model's predefined maximum length", r"maximum length \(" + _N + r"\)", "seq_too_long"),
    Rule("Sequence length must be less than max_position_embeddings", r"length`?: " + _N + r".{0,60}embeddings`?: " + _N, _lengths),
    Rule("this model only supports seq_len<=", r"seq_len=" + _N + r".{0,60}seq_len<=" + _N, _lengths),
    Rule("n_ctx_train", r"\(" + _N + r"\) > n_ctx_train \(" + _N + r"\)", _lengths),
    # NaN
    *(Rule(mark, _NAN_VALUE, _nan) for mark in (": nan", ":nan", "=nan", "= nan", "'nan'", '"nan"', ": NaN", ": NAN", "(nan", "[nan")),
    *(Rule(mark, _NAN_TENSOR, _nan) for mark in ("[nan", " nan,", " nan]", "tensor(nan", "]nan")),
    *(Rule(mark, _NAN_WORDS, _nan_words) for mark in ("NaN", " nan", "NANs", "nan values")),
)  # fmt: skip

ANCHORS = anchors_of(RULES)
KEEP = (0, 1)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    yield from distinct(run(RULES, text, hits, most=100), most=None)
