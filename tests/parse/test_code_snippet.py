import pytest

from linkproof.model import Event, Fact, Input, Setting
from linkproof.parse import read
from linkproof.parse.clean import clean


def facts(words: str) -> list[Fact]:
    return read(clean("snippet", words))


def inputs(words: str) -> list[tuple[str, str]]:
    return [(f.fact, f.value) for f in facts(words) if isinstance(f, Input)]


def settings(words: str) -> list[tuple[str, str]]:
    return [(f.key, f.value) for f in facts(words) if isinstance(f, Setting) and f.key.startswith("-")]


def kinds(words: str) -> list[tuple[str, str]]:
    return [(f.kind, f.value) for f in facts(words) if isinstance(f, Event)]


@pytest.mark.parametrize("words, dtype", [
    ("load_type = torch.float16", "fp16"),
    ("model = AutoModelForCausalLM.from_pretrained(p, torch_dtype=torch.bfloat16)", "bf16"),
    ("model = AutoModelForCausalLM.from_pretrained(p).half()", "fp16"),
    ("model = model.half()", "fp16"),
    ('  "torch_dtype": "float32",', "fp32"),
    ("vllm serve m --dtype half", "fp16"),
    ("python run.py --dtype=bfloat16", "bf16"),
    ("fp16: true", "fp16"),
    ("  --bf16 \\", "bf16"),
    ("mixed_precision: fp16", "fp16"),
    ("LLM engine (v0.6.0) with config: model='m', dtype=torch.float16, max_seq_len=4096", "fp16"),
])  # fmt: skip
def test_the_dtype_of_the_model(words: str, dtype: str) -> None:
    assert inputs(words) == [("dtype", dtype)]


@pytest.mark.parametrize("words", [
    "tensor([1.], device='cuda:0', dtype=torch.float16)",
    "       dtype=torch.float16)",
    "kv_cache_dtype='fp8', dtype='auto'",
    "fp16: false",
    "half of the layers are on the CPU",
])  # fmt: skip
def test_a_printed_tensor_or_a_false_switch_is_not_the_models_dtype(words: str) -> None:
    assert not [i for i in inputs(words) if i[0] == "dtype"]


def test_flags_of_a_command_are_present() -> None:
    words = "python -m vllm.entrypoints.openai.api_server --model m --tensor-parallel-size 2 --disable-custom-all-reduce --enforce-eager"
    assert set(settings(words)) == {("--tensor-parallel-size", "2"), ("--disable-custom-all-reduce", ""), ("--enforce-eager", "")}


@pytest.mark.parametrize("words, key, value", [
    ("llm = LLM(model='m', tensor_parallel_size=4)", "--tensor-parallel-size", "4"),
    ("    enforce_eager=True,", "--enforce-eager", ""),
    ("server_args={'tp_size': 2, 'disable_custom_all_reduce': True}", "--disable-custom-all-reduce", ""),
    ("vllm serve m -tp 2", "--tensor-parallel-size", "2"),
    ("vllm serve m -pp 2", "--pipeline-parallel-size", "2"),
    ("./llama-server -m m.gguf -sm row", "-sm", "row"),
    ("      - --tensor-parallel-size=4", "--tensor-parallel-size", "4"),
    ('args: ["--model", "m", "--enable-p2p-check"]', "--enable-p2p-check", ""),
    ("  --disable-custom-all-reduce \\", "--disable-custom-all-reduce", ""),
])  # fmt: skip
def test_code_and_command_lines_spell_one_setting(words: str, key: str, value: str) -> None:
    assert (key, value) in settings(words)


@pytest.mark.parametrize("words", [
    "I tried --disable-custom-all-reduce but it did not help",
    "To silence this warning, specify disable_custom_all_reduce=True explicitly.",
    "ServerArgs(disable_custom_all_reduce=False, enable_p2p_check=False)",
    "please consider --enforce-eager with vllm",
])  # fmt: skip
def test_a_sentence_advice_or_a_false_value_is_no_setting(words: str) -> None:
    assert not settings(words)


@pytest.mark.parametrize("words, expected", [
    ("prompt=[0, 0, 32000, 32001, 32002],", [("max_token_id", "32002")]),
    ("prompt_token_ids=[1, 22557, -1]", [("pad_token_negative", "-1"), ("max_token_id", "22557")]),
    ("input_ids: tensor([[1, 2, 50257]])", [("max_token_id", "50257")]),
    (">>> batch.input_ids\ntensor([[    1,  22557, 32005,\n          7,  2]], device='cuda:0')", [("max_token_id", "32005")]),
    ("pad_token_id=-1", [("pad_token_negative", "-1")]),
    ('  "vocab_size": 151936,', [("vocab_rows", "151936")]),
    ("    (embed_tokens): Embedding(32000, 4096, padding_idx=0)", [("vocab_rows", "32000")]),
    ('"max_position_embeddings": 4096,', [("max_position", "4096")]),
    ("num_labels=3", [("num_labels", "3")]),
])  # fmt: skip
def test_numbers_of_tokens_and_tables(words: str, expected: list[tuple[str, str]]) -> None:
    assert inputs(words) == expected


@pytest.mark.parametrize("words", [
    "    (wpe): Embedding(1024, 768)",
    "labels: tensor([[-100, 5, 9]])",
    "input_ids=[-200, -100]  # placeholders",
    "prompt='Hello'",
    "inputs_embeds = [0.1, 0.2]",
    "pad_token_id=0",
])  # fmt: skip
def test_positions_labels_placeholders_and_floats_are_no_token_ids(words: str) -> None:
    assert not [i for i in inputs(words) if i[0] in ("vocab_rows", "pad_token_negative") or (i[0] == "max_token_id" and int(i[1]) > 0)]


def test_a_tokenizer_larger_than_the_embedding_is_a_mismatch() -> None:
    assert kinds("len(tokenizer) = 32003\n(embed_tokens): Embedding(32000, 4096)") == [("vocab_mismatch", "32003 32000")]
    assert not kinds("len(tokenizer) = 151669\n(embed_tokens): Embedding(151936, 4096)")


@pytest.mark.parametrize("words, kind, value", [
    ('model = from_pretrained(p, device_map="auto")', "device_map_used", "auto"),
    ("device_map={'': 0}", "device_map_used", "custom"),
    ("{'model.embed_tokens': 0, 'model.layers.0': 0, 'model.layers.20': 1, 'lm_head': 1}", "device_map_used", "2"),
    ("model = nn.DataParallel(model)", "data_parallel_used", ""),
    ('  File "/x/torch/nn/parallel/data_parallel.py", line 171, in forward', "data_parallel_used", ""),
])  # fmt: skip
def test_how_a_model_was_spread(words: str, kind: str, value: str) -> None:
    assert kinds(words) == [(kind, value)]


@pytest.mark.parametrize("words", ["model = DistributedDataParallel(model)", "device_map=None", "device_map=device_map,"])
def test_other_ways_are_not_taken_for_it(words: str) -> None:
    assert not kinds(words)
