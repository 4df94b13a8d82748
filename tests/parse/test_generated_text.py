import pytest

from linkproof.model import Event
from linkproof.parse import read
from linkproof.parse.clean import clean


def garbage(words: str) -> list[str]:
    return [f.value for f in read(clean("out", words)) if isinstance(f, Event) and f.kind == "garbage_text"]


@pytest.mark.parametrize("words, value", [
    ("!" * 40, "!"),
    ("???????????????", "?"),
    (">>> hello\n" + "G" * 30, "G"),
    ("Prompt: 'Hello', Generated text: '!!!!!!!!!!!!!!!!'", "!"),
    ('{"choices":[{"index":0,"message":{"role":"assistant","reasoning_content":null,"content":"!!!!!!!!!!!!!!!!!!!!', "!"),
    ('{"id": 1, "text": "!!!!!!!!!!!!!!!!!!"}', "!"),
    ("的的的的的的的的的的的的的的", "的"),
    ("回答：！！！！！！！！！！！！！！", "！"),
    ("Output: the the the the the the the the the the the the", "the"),
    ("Assistant: TheTheTheTheTheTheTheTheTheTheTheTheThe", "The"),
    ("Generated text: ' I am a a a a a a a a a a a a a'", "a"),
    ("Hello! My name is" + "!" * 40, "!"),
])  # fmt: skip
def test_one_token_over_and_over_is_garbage(words: str, value: str) -> None:
    assert garbage(words) == [value]


@pytest.mark.parametrize("words", [
    "-" * 60, "=" * 60, "*" * 60, "#" * 60, "." * 60, "~" * 60, "_" * 60, "+" * 60, "^" * 60, "/" * 60, "█" * 60, "│" * 60, "─" * 60, "•" * 30,
    "⠋" * 20, ">" * 60, "0" * 60, "x" * 40, "F" * 32,
    "AAAAB3NzaC1yc2EAAAADAQABAAABAAAAAAAAAAAAAAAAAAAAAAAA",
    "worker 01000000ffffffffffffffffffffffffffffffff",
    "it does not work!!!!!!!!!!!!!!",
    "!!!!!!!!!!!!!!! WARNING !!!!!!!!!!!!!!!",
    "!!!!!!! Segfault encountered !!!!!!!",
    "!!!!!!!!!!!!!!!!!!!!!!!!\n! NOTICE: read this    !\n!!!!!!!!!!!!!!!!!!!!!!!!",
    "@@@@@@@@@@@@@@@@@@@@@@@@@@@@\n@  WARNING: host changed   @\n@@@@@@@@@@@@@@@@@@@@@@@@@@@@",
    '"content": "Hello, how can I help you today?"',
    "Output: 1 1 1 1 1 1 1 1 1 1 1 1 1",
    "output: ------------------------",
    "no no no, that is not right",
])  # fmt: skip
def test_rulers_masks_codes_and_shouts_are_not(words: str) -> None:
    assert not garbage(words)
