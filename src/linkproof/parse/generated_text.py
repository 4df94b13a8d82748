"""Model output that is one character, token or word over and over.

In:      plain lines that are nothing but the run, lines with a prompt before it, JSON answers of OpenAI-like servers
         (`"content":"!!!!!!`), `Generated text: '...'`, `Output:`, `Assistant:` and the like, in English or Chinese.
Out:     Event garbage_text, value: the character or the word; once per value, at most 20.
Unknown: rulers, boxes, progress bars, carets of tracebacks, masks (`xxxx`), padding in base64 or hex, banners (the same character
         before and after words, or lines of it around lines that begin with it), and a shout after a sentence are not output.
Raises:  nothing.
Source:  what broken transfers and overflowing activations give: NaN logits decode to token 0, which is `!` in many vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

from linkproof.model import Event, Fact, Line, Text
from linkproof.parse.rules import LINE_MAX, rx, source

_MIN = 12
_MIN_HAN = 6  # no Chinese word repeats one of these six times
_SHOUT = 24  # after words in the same line a person may have leant on the key
# characters that runs are made of; not those of rulers, boxes, bars, carets, masks (x), hex (0 f) or base64 padding (A =)
_LOUD = "!?$@&;,，。！？、"
_LETTERS = "BCDEGHIJKLMNOPQRSTUVWYZabcdeghijklmnopqrstuvwyz"
_HAN = "的是了一不我你他在有人这中大来上个国说们为和地到以要就出会可也对生能而子得着下自之年过发后作里"

_LABELS = (
    '"content":', '"text":', '"generated_text":', "'generated_text':", '"response":', '"reasoning_content":', "Generated text:",
    "generated text:", "Output:", "output:", "Answer:", "answer:", "Response:", "response:", "Assistant:", "ASSISTANT:", "assistant:",
    "Completion:", "回答", "输出", "助手", "回复",
)  # fmt: skip
ANCHORS = (*(c * _MIN for c in _LOUD + _LETTERS), *(c * _MIN_HAN for c in _HAN), "\ufffd" * _MIN_HAN, *_LABELS)
KEEP = (2, 2)
_MOST = 20

_AFTER = r"(?s)^[\s\"'：:]{0,8}(.*)$"
_PROMPT = r"^\s*(?:>>>|>|<\|?assistant\|?>|###|\w{1,24}:|[-*])?\s*[\"'“]?$"


@cache
def _runs() -> Callable[[str], Iterator[object]]:
    """Runs of six or more. A back reference needs `re`; one group, one repeat: each character is looked at six times at most."""
    import re

    return re.compile(r"(.)\1{5,}").finditer


def _run(words: str, minimum: int) -> tuple[str, int, int] | None:
    """The longest run of one character of at least `minimum`: (character, start, end)."""
    best = ("", 0, 0)
    for found in _runs()(words):
        start, end = found.span()  # type: ignore[attr-defined]
        if end - start > best[2] - best[1]:
            best = (words[start], start, end)
    return best if best[2] - best[1] >= minimum else None


def _can_be_token(char: str) -> bool:
    """Not a ruler, not white space, not box drawing, bars or braille spinners."""
    return char in _LOUD or char == "\ufffd" or char in _LETTERS or "\u3400" <= char <= "\u9fff" or "\uac00" <= char <= "\ud7a3"


def _answer(words: str) -> str | None:
    """What follows the first label that names model output."""
    places = [(words.find(label), label) for label in _LABELS if label in words]
    if not places:
        return None
    at, label = min(places)
    if label in ('"reasoning_content":', '"text":', '"response":') and '"content":' in words:
        at, label = words.find('"content":'), '"content":'
    found = rx(_AFTER).match(words[at + len(label) :])
    return str(found[1]) if found else ""


def _is_word(word: str) -> bool:
    """Letters or loud characters; numbers in a row are a result as often as they are garbage."""
    return len(word) <= 24 and (word.replace("'", "").isalpha() or all(c in _LOUD for c in word))


def _repeated_word(answer: str) -> str:
    """One word ten times in a row, spaced or not: `the the the ..`, `TheTheThe..`."""
    words = answer.replace("\\n", " ").split()[:400]
    streak = 1
    for before, word in pairwise(words):
        streak = streak + 1 if word == before else 1
        if streak >= 10 and _is_word(word):
            return word[:24]
    head = answer[:400].strip("\"' ")
    for size in range(2, 13):  # no spaces between tokens
        piece = head[:size]
        if len(head) >= 10 * size and piece.isalpha() and head[: 10 * size] == piece * 10 and len(set(piece)) > 1:
            return piece
    return ""


def _banner(text: Text, at: int, char: str) -> bool:
    """Lines near by that begin with the same character and go on with words: a notice drawn with it."""
    for near in range(max(0, at - 4), min(len(text.lines), at + 5)):
        words = text.lines[near].text[:LINE_MAX].strip()
        if near != at and words[:1] == char and any(c.isalnum() and c != char for c in words):
            return True
    return False


def _garbage(text: Text, at: int, line: Line) -> str:
    words = line.text[:LINE_MAX]
    answer = _answer(words)
    if answer is not None:
        found = _run(answer, _MIN)
        if found and _can_be_token(found[0]) and not answer[: found[1]].strip(" \"'\\n"):
            return found[0]
        if word := _repeated_word(answer):
            return word
        # the run may begin after some right words
        return found[0] if found and _can_be_token(found[0]) and found[2] - found[1] >= _SHOUT and found[0] in _LOUD else ""
    found = _run(words, _MIN if words.isascii() else _MIN_HAN)
    if not found or not _can_be_token(found[0]):
        return ""
    char, start, end = found
    if char in _LETTERS and (end - start < _MIN or words[:start].strip(" >\"'") or words[end:].strip(" \"'.!")):
        return ""  # letters only as the whole line: anything else is base64, a mask or a name
    if end - start < _MIN and char not in _HAN and char != "\ufffd":
        return ""
    if any(c.isalnum() and c != char for c in words[end:]) or _banner(text, at, char):
        return ""
    before = words[:start]
    if rx(_PROMPT).match(before) or not any(c.isalnum() for c in before):
        return char
    return char if end - start >= _SHOUT else ""


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    given: set[str] = set()
    for at in hits:
        if len(given) >= _MOST:
            return
        line = text.lines[at]
        value = _garbage(text, at, line)
        if value and value not in given:
            given.add(value)
            yield Event(source=source(text, line), rank=line.rank, kind="garbage_text", value=value)
