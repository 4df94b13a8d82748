"""Code, command lines, model configurations and object prints that people paste -> dtype, token ids, table sizes, engine switches.

In:      Python, JSON or YAML of a model or engine configuration, shell commands (also over several lines with `\\`), container
         arguments (`- --flag`), a configuration dumped in a log, prints of tokenised inputs and of `nn.Embedding`.
Out:     Input dtype (fp16 bf16 fp32), max_token_id, pad_token_negative, vocab_rows, tokenizer_size, max_position, num_labels;
         Event device_map_used, data_parallel_used, vocab_mismatch (tokenizer larger than the embedding); Setting(effect="present")
         for flags of engines, spelled as on the command line.
Unknown: a flag in a sentence, in a warning's advice ("specify ..") or set to False is no setting; a printed tensor's dtype is not the
         model's; labels (-100) are not token ids.  NAME=value of an environment is another parser's.
Raises:  nothing.
Source:  transformers configuration keys, vLLM 0.33, SGLang 0.5.23, TensorRT-LLM, DeepSpeed and llama.cpp options.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Input, Line, Setting, Text
from linkproof.parse.rules import LINE_MAX, rx, source
from linkproof.parse.settings import split_setting

_DTYPES = {
    "float16": "fp16", "half": "fp16", "fp16": "fp16", "f16": "fp16", "bfloat16": "bf16", "bf16": "bf16", "float32": "fp32", "float": "fp32",
    "fp32": "fp32", "f32": "fp32",
}  # fmt: skip
_DTYPE = (
    r"\b(?:\w{0,20}_)?(?:dtype|load_type|data_type)['\"]?\s{0,3}[:=]\s{0,3}['\"]?(?:torch\.|tf\.|jnp\.)?(float16|half|bfloat16|float32|float|fp16|bf16|fp32)\b"
    r"|--(?:torch[_-])?dtype[ =]['\"]?(float16|half|bfloat16|float32|float|fp16|bf16)\b"
    r"|\bmixed[_-]precision['\"]?\s{0,3}[:= ]\s{0,3}['\"]?(fp16|bf16)\b"
    r"|\bfrom_pretrained\(.{0,300}\)\.(half|bfloat16|float)\(\)|\bmodel(?:\.\w{1,30}){0,3}\.(half|bfloat16)\(\)"
    r"|\bmodel\.to\((?:torch\.)(float16|bfloat16|float32)\)"
)
_SWITCH = r"(?i)['\"]?\b(fp16|bf16)\b['\"]?\s{0,3}[:=]\s{0,3}(?:true\b|\{)|--(fp16|bf16)(?:\s|$|=true)"
_NOT_MODEL = (
    r"tensor\(|\], ?dtype=|device=['\"](?:cuda|cpu)|^\s*dtype=torch\.\w+\)|kv_cache_dtype\W{1,4}(?:float|bf|fp)|(?i:lora_dtype|quant_dtype)"
)

# flag -> how Python and configuration dumps call it; True or a value other than the default of one
_FLAGS = {
    "--disable-custom-all-reduce": "disable_custom_all_reduce", "--enforce-eager": "enforce_eager", "--disable-cuda-graph": "disable_cuda_graph",
    "--enable-p2p-check": "enable_p2p_check", "--enable-nccl-nvls": "enable_nccl_nvls", "--enable-symm-mem": "enable_symm_mem",
    "--enable-torch-symm-mem": "enable_torch_symm_mem", "--enable-mscclpp": "enable_mscclpp", "--cpu-offload": "cpu_offload",
    "--enable-chunked-prefill": "enable_chunked_prefill", "--enable-prefix-caching": "enable_prefix_caching",
    "--disable-overlap-schedule": "disable_overlap_schedule", "--enable-dp-attention": "enable_dp_attention",
    "--enable-pcie-oneshot-allreduce": "enable_pcie_oneshot_allreduce",
}  # fmt: skip
_SIZES = {
    "--tensor-parallel-size": ("tensor_parallel_size", "-tp", "--tp-size", "--tp"),
    "--pipeline-parallel-size": ("pipeline_parallel_size", "-pp", "--pp-size"),
    "--data-parallel-size": ("data_parallel_size", "-dp", "--dp-size"),
}
_SIZE = r"(?:['\"]?\b{0}['\"]?\s?[:=]\s?|(?:^|[\s\"'`])(?:{1})[ =]|-\s[\"']?(?:{1})[ =])['\"]?(\d{{1,4}})\b"
_SPLIT = r"(?:^|\s)(?:-sm|--split-mode)[ =](none|row|layer|graph|tensor)\b"
_COMMAND = (
    r"(?i)\bpython[\d.]*\b|\bvllm\b|sglang|\btorchrun\b|\bllama-|\bdocker\b|\bollama\b|\btrtllm|\bdeepspeed\b|--model|\./\w|\\\s*$"
    r"|^\s*(?:-\s+)?[\"'`]?--?\w[\w-]*(?:[ =][\w./:-]+)?[\"'`]?,?\s*\\?$|\bargs\b|\bcommand\b"
)
_ADVICE = r"(?i)\bspecify\b|\bto silence\b|\bplease\b|\bconsider\b|\btry\b|\byou can\b|\bshould\b"

_IDS = r"\b(?:prompt_token_ids|prompt|input_ids|token_ids|output_ids)['\"]?\s{0,3}[:=]\s{0,3}(?:torch\.)?(?:tensor\()?\s*(\[[\[\s]*-?\d[^a-zA-Z'\"]*)"
_PAD = r"\bpad_?(?:token_)?id['\"]?\s{0,3}[:=]\s{0,3}(-\d{1,6})\b"
_VOCAB = r"\b(?:padded_)?vocab_size['\"]?\s{0,3}[:=]\s{0,3}(\d{2,9})\b"
_EMBEDDING = r"\(?\b(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|shared)\b\)?:?\s{0,3}(?:Vocab\w*|Parallel\w*)?Embedding\((\d{2,9}), ?\d"
_ROWS = (
    r"(?:embed_tokens|wte|word_embeddings|tok_embeddings|lm_head)\.weight\b.{0,40}(?:Size\(|shape[=: ]{1,3}\(?)\[?(\d{2,9}), ?\d{2,6}[\])]"
)
_TOKENIZER = r"\blen\((?:self\.)?\w{0,20}tokenizer\)\s{0,3}(?:[:=]{1,2}|is|->|#)?\s{0,3}(\d{2,9})\b"
_POSITIONS = r"\b(?:max_position_embeddings|n_positions|max_sequence_length)['\"]?\s{0,3}[:=]\s{0,3}(\d{2,9})\b"
_LABELS = r"\bnum_labels['\"]?\s{0,3}[:=]\s{0,3}(\d{1,9})\b"
_DEVICE_MAP = r"\bdevice_map['\"]?\s{0,3}[:=]\s{0,3}['\"]?(auto|balanced(?:_low_0)?|sequential|\{|\w{1,30})"
_LAYER_MAP = r"\{['\"](?:model|transformer|gpt_neox|language_model)[\w.]{0,60}['\"]: ?(?:\d{1,3}|['\"]cpu['\"])"
_DATA_PARALLEL = r"(?:^|[^\w])(?:(?:torch\.)?nn\.)?DataParallel\(|parallel/data_parallel\.py|parallel\\data_parallel\.py"

_NUMBERS = (
    ("vocab_rows", ("vocab_size",), _VOCAB), ("vocab_rows", ("Embedding(",), _EMBEDDING), ("vocab_rows", (".weight",), _ROWS),
    ("tokenizer_size", ("tokenizer)",), _TOKENIZER), ("max_position", ("max_position_embeddings", "n_positions"), _POSITIONS),
    ("num_labels", ("num_labels",), _LABELS),
)  # fmt: skip

ANCHORS = (
    "dtype", "load_type", "data_type", ".half()", ".bfloat16()", "model.to(torch.", "fp16", "bf16", "mixed_precision", "mixed-precision",
    *_FLAGS, *_FLAGS.values(), "tensor_parallel_size", "tensor-parallel-size", "-tp", "--tp", "pipeline_parallel_size", "pipeline-parallel-size",
    "-pp", "data_parallel_size", "data-parallel-size", "-sm ", "--split-mode", "prompt_token_ids", "input_ids", "token_ids", "prompt=[", "pad_token_id",
    "pad_id", "vocab_size", "Embedding(", "embed_tokens.weight", "lm_head.weight", "wte.weight", "word_embeddings.weight", "tokenizer)",
    "max_position_embeddings", "n_positions", "num_labels", "device_map", "DataParallel(", "data_parallel.py", "'model.embed_tokens'", "lm_head'",
)  # fmt: skip
KEEP = (0, 12)
_TALL = 40  # lines of one printed list of ids
_MOST_IDS = 20_000
_PLACEHOLDERS = (-100, -200)  # ignored labels; LLaVA's image token, replaced before the embedding


def _dtypes(words: str) -> list[str]:
    if rx(_NOT_MODEL).search(words):
        return []
    found = [next((g for g in m.groups() if g), "") for p in (_DTYPE, _SWITCH) for m in rx(p).finditer(words)]
    return [_DTYPES[word.lower()] for word in found if word.lower() in _DTYPES]


def _settings(words: str) -> Iterator[str]:
    """Settings of one line as flags, `--flag` or `--flag=value`."""
    command = bool(rx(_COMMAND).search(words))
    advice = bool(rx(_ADVICE).search(words))
    for flag, key in _FLAGS.items():
        if (key in words and rx(r"\b" + key + r"['\"]?\s?[:=]\s?[Tt]rue\b").search(words) and not advice) or (
            flag in words and command and not advice and rx(r"(?:^|[\s\"'`=])" + flag + r"(?:$|[\s\"'`,\\])").search(words)
        ):
            yield flag
    for flag, (key, *short) in _SIZES.items():
        if key in words or flag in words or any(s in words for s in short):
            found = rx(_SIZE.format(key, "|".join((flag, *short)))).search(words)
            if found and not advice:
                yield f"{flag}={found[1]}"
    if command and (mode := rx(_SPLIT).search(words)):
        yield f"-sm={mode[1]}"


def _ids(text: Text, at: int) -> list[int]:
    """Token ids of the list that begins in this line; a tensor print may go on for some lines."""
    words = text.lines[at].text[:LINE_MAX]
    found = rx(_IDS).search(words)
    body = found[1] if found else ""
    if not found:
        # `>>> input_ids` or `input_ids:` with the tensor on the next line
        if not rx(r"\b(?:input_ids|token_ids|prompt_token_ids)\b['\"]?\]?\)?\s{0,3}[:=]?\s*$").search(words) or at + 1 >= len(text.lines):
            return []
        after = text.lines[at + 1].text[:LINE_MAX]
        start = rx(r"^\s*(?:tensor\()?(\[[\[\s]*-?\d[^a-zA-Z'\"]*)").search(after)
        if not start:
            return []
        body, at = start[1], at + 1
    depth = body.count("[") - body.count("]")
    for below in range(at + 1, min(at + _TALL, len(text.lines))):
        if depth <= 0:
            break
        more = rx(r"^[\s\d,.\[\]-]*").match(text.lines[below].text[:LINE_MAX])
        part = more[0] if more else ""
        if not part.strip():
            break
        body += " " + part
        depth += part.count("[") - part.count("]")
    if rx(r"\d\.\d|\d\.(?:[^.]|$)").search(body):
        return []  # floats: embeddings or logits, not ids
    numbers = body.replace("[", " ").replace("]", " ").replace(",", " ").split()[:_MOST_IDS]
    return [int(w) for w in numbers if len(w) <= 13 and w.removeprefix("-").isdecimal()]


class _Best:
    """The largest number seen for one fact, and where."""

    __slots__ = ("line", "value")

    def __init__(self) -> None:
        self.value, self.line = -1, Line(0, "")

    def offer(self, value: int, line: Line) -> None:
        if value > self.value:
            self.value, self.line = value, line


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    given: set[tuple[str, str]] = set()
    largest, rows, tokens = _Best(), _Best(), _Best()

    def once(kind: str, value: str) -> bool:
        if (kind, value) in given:
            return False
        given.add((kind, value))
        return True

    for at in hits:
        line = text.lines[at]
        words = line.text[:LINE_MAX]
        where = source(text, line)
        for dtype in _dtypes(words):
            if once("dtype", dtype):
                yield Input(source=where, rank=line.rank, fact="dtype", value=dtype)
        for name in _settings(words):
            if once("setting", name):
                key, value = split_setting(name)
                yield Setting(source=where, rank=line.rank, name=name, effect="present", key=key, value=value)
        for fact, marks, pattern in _NUMBERS:
            if any(mark in words for mark in marks) and (found := rx(pattern).search(words)):
                if fact == "vocab_rows":
                    rows.offer(int(found[1]), line)
                elif fact == "tokenizer_size":
                    tokens.offer(int(found[1]), line)
                elif once(fact, found[1]):
                    yield Input(source=where, rank=line.rank, fact=fact, value=found[1])
        if (found := rx(_PAD).search(words)) and once("pad", found[1]):
            yield Input(source=where, rank=line.rank, fact="pad_token_negative", value=found[1])
        if "label" not in words and (ids := _ids(text, at)):
            largest.offer(max(ids), line)
            if min(ids) < 0 and min(ids) not in _PLACEHOLDERS and once("pad", str(min(ids))):
                yield Input(source=where, rank=line.rank, fact="pad_token_negative", value=str(min(ids)))
        if "device_map" in words and "hf_device_map" not in words and (found := rx(_DEVICE_MAP).search(words)):
            value = "custom" if found[1] == "{" else found[1]
            if value not in ("None", "str", "Optional", "cuda", "cpu", "device_map", "self") and once("device_map", ""):
                yield Event(source=where, rank=line.rank, kind="device_map_used", value=value)
        elif rx(_LAYER_MAP).search(words) and once("device_map", ""):
            devices = {m[1] for m in rx(r"['\"]: ?(\d{1,3})\b").finditer(words)}
            yield Event(source=where, rank=line.rank, kind="device_map_used", value=str(len(devices)))
        if ("DataParallel(" in words or "data_parallel" in words) and rx(_DATA_PARALLEL).search(words) and once("data_parallel", ""):
            yield Event(source=where, rank=line.rank, kind="data_parallel_used")
    for fact, best in (("max_token_id", largest), ("vocab_rows", rows), ("tokenizer_size", tokens)):
        if best.value >= 0:
            yield Input(source=source(text, best.line), rank=best.line.rank, fact=fact, value=str(best.value))
    if tokens.value > rows.value > 0:
        where = source(text, tokens.line)
        yield Event(source=where, rank=tokens.line.rank, kind="vocab_mismatch", value=f"{tokens.value} {rows.value}")
