"""The same tensor printed from two GPUs -> whether the copy between them brought the values.

In:      torch's prints (`tensor([1., 2.], device='cuda:1')`, one line or many, with `...`, dtype and grad_fn), typed at a prompt or
         printed by a script; words of 8 or 16 hex digits labelled with a direction (`0->1 owner read: 00000000 00000000`).
Out:     Copy(via="peer", result="zeros" or "wrong") where the destination shows zeros, denormals, nan or other values than the
         source; Copy(via="host") where a copy through the CPU is shown, "ok" if its values are right.  pairs: "source-destination".
Unknown: equal prints of a direct copy prove little (the memory may have held the answer before) and give nothing; so does a tensor
         that was made on its device, one of another name, another shape, or a zero tensor with no word of a copy near it.
Raises:  nothing.
Source:  torch `_tensor_str.py`: the device is printed for every tensor that is not on the current default device.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Copy, Fact, Text
from linkproof.parse.rules import LINE_MAX, rx, source

ANCHORS = ("device='cuda:", 'device="cuda:', "device='hip:", "read-back:", "readback:", "owner read")
KEEP = (40, 6)

_NEAR = 40  # lines between two prints of one copy
_TALL = 40  # lines of one print
_MOST_NUMBERS = 2000  # torch prints 1000 at most unless told otherwise
_MOST_PRINTS = 4000
_RECENT = 16  # prints that are kept to compare with
_TINY, _REAL = 1e-30, 1e-3  # torn or stale memory reads as denormals; weights and activations do not

_DEVICE = r"device=['\"](?:cuda|hip):(\d{1,3})['\"]"
_PROMPT = r"^\s*(?:>>>|\.\.\.|In \[\d{1,6}\]:|Out\[\d{1,6}\]:|\$|>)?\s*"
_RESULT = {"": "ok", "zeros": "zeros", "torn": "wrong", "wrong": "wrong"}
_COMMAND = r"\.(?:to|cuda)\(|copy_\("
_MOVES = _COMMAND + r"|(?i:\b(?:mov|cop|transfer|send)\w*)"
_THROUGH_HOST = r"(?i)\bcpu\b|\bhost\b"
_MAKES = r"\btorch\.\w+\(|Parameter containing"
_PURE = r"^(?:print\()?(?:\w+\s*=\s*)?([A-Za-z_]\w*)(?:\[[\w:, ]{0,40}\])?(?:\.(?:to|cuda|cpu|clone|detach|contiguous)\([^()]{0,80}\))+\)?;?\s*$"
_NAME = r"^(?:print\()?([A-Za-z_]\w*)\)?;?\s*(?:$|#)"
_ASSIGN = r"^([A-Za-z_]\w*)\s*=\s*(.*)$"
_COMMENT = r"^([^#'\"]*(?:['\"][^'\"]*['\"][^#'\"]*)*?)\s*#.*$"
_LABEL = r"(?i)^\W{0,4}(?:actual )?(?:outputs?|results?|prints?|gives|输出|结果)\W{0,4}$"
_LITERAL = r"\btorch\.(?:tensor|Tensor|FloatTensor|as_tensor)\(\s*(\[[\[\]\d\s.,eE+-]{1,400}\])"
_ONES = r"\btorch\.ones\(\(?(\d{1,3})(?:, ?(\d{1,2}))?\s*[,)]"
_TARGET = r"(?:device\s?=\s?|\.to\(|\.cuda\()['\"]?(cpu|(?:cuda:)?\d{1,3}|cuda)?"
_TAIL = r"^(?:dtype|requires_grad|grad_fn|layout)=.*\)$"  # the last line of a print
_RULER = r"^[\s=*_-]*$"

_WORDS = r"(?i)\b(\d{1,3})\s?->\s?(\d{1,3})\b[^:]{0,60}?\b(writer|source|src|sent|expected|want|owner|dest\w{0,8}|dst|got|received)\b[^:]{0,30}:" \
    r"\s*((?:(?:0x)?[0-9a-f]{8}(?:[0-9a-f]{8})?\b\s*){1,16})"  # fmt: skip
_SENDING = ("writer", "source", "src", "sent", "expected", "want")


class _Print:
    """One printed tensor: its device, numbers, shape as far as visible, and how it came to be (peer, host, make or "")."""

    __slots__ = ("at", "device", "how", "name", "numbers", "pure", "shape", "start")

    def __init__(self, start: int, at: int, device: str, body: str) -> None:
        self.start, self.at, self.device = start, at, device
        self.numbers = _numbers(body)
        self.shape = (len(self.numbers), body.count("["), body.count("..."))
        self.how = self.name = ""
        self.pure = False


def _numbers(body: str) -> list[float]:
    out = []
    for word in body.replace("[", " ").replace("]", " ").replace(",", " ").split():
        if word in ("True", "False"):
            out.append(float(word == "True"))
        elif word != "..." and len(word) <= 40:
            try:
                out.append(float(word))
            except ValueError:
                continue
    return out


def _print(text: Text, at: int, device: str, before: str) -> _Print | None:
    """The print whose `device=` stands in line `at`; `before` is that line up to it."""
    parts, start = [before], at
    while "tensor(" not in parts[-1]:
        start -= 1
        if start < 0 or at - start > _TALL:
            return None
        words = text.lines[start].text[:LINE_MAX]
        if "device=" in words:
            return None
        parts.append(words)
    parts[-1] = parts[-1][parts[-1].rfind("tensor(") + len("tensor(") :]
    body = " ".join(reversed(parts))
    body = body[: body.rfind("]") + 1] if "]" in body else body.split(",", 1)[0]
    made = _Print(start, at, device, body)
    if not 0 < len(made.numbers) <= _MOST_NUMBERS:
        return None
    made.how, made.name, made.pure = _how(text, made)
    return made


def _how(text: Text, made: _Print) -> tuple[str, str, bool]:
    """How, name, whether the command did nothing but move: from the command above the print."""
    for above in range(made.start - 1, max(made.start - 6, -1), -1):
        words = text.lines[above].text[:LINE_MAX]
        if rx(_DEVICE).search(words) and "tensor(" in words and not rx(r"^\s*(?:>>>|In \[)").search(words):
            return "", "", False  # the print before; nothing was typed in between
        words = _typed(words)
        if rx(_RULER).match(words) or rx(_LABEL).match(words):
            continue
        if rx(_TAIL).match(words):
            return "", "", False
        if alone := rx(_NAME).match(words):
            return _assigned(text, above, alone[1])
        assigned = rx(_ASSIGN).match(words)
        pure = rx(_PURE).match(words)
        return _moved(words), pure[1] if pure else assigned[1] if assigned else "", bool(pure)
    return "", "", False


def _assigned(text: Text, above: int, name: str) -> tuple[str, str, bool]:
    """`>>> b` after `>>> b = a.to('cuda:1')` shows a copy of a."""
    for at in range(above - 1, max(above - 13, -1), -1):
        found = rx(_ASSIGN).match(_typed(text.lines[at].text[:LINE_MAX]))
        if found and found[1] == name:
            pure = rx(_PURE).match(found[2])
            how = _moved(found[2])
            return ("" if how == "make" else how), pure[1] if pure and how in ("peer", "host") else name, bool(pure)
    return "", name, False


def _typed(words: str) -> str:
    """A line without its prompt and without a comment behind it."""
    prompt = rx(_PROMPT).match(words)
    words = words[prompt.end() :].strip() if prompt else words.strip()
    comment = rx(_COMMENT).match(words)
    return comment[1].strip() if comment else words


def _written(text: Text, below: int, name: str) -> tuple[list[float], str] | None:
    """Values that the code itself gives to `name`, and the GPU it moved them to: `a = torch.tensor([1, 2])`, `a = a.to('cuda:0')`."""
    device = ""
    for at in range(below - 1, max(below - _NEAR, -1), -1):
        found = rx(_ASSIGN).match(_typed(text.lines[at].text[:LINE_MAX]))
        if not found or found[1] != name:
            continue
        targets = [m[1] or "cuda" for m in rx(_TARGET).finditer(found[2])]
        if targets and not device:
            device = "0" if targets[-1] == "cuda" else targets[-1].removeprefix("cuda:")
        if literal := rx(_LITERAL).search(found[2]):
            return _numbers(literal[1]), device
        if ones := rx(_ONES).search(found[2]):
            return [1.0] * (int(ones[1]) * int(ones[2] or 1)), device
        pure = rx(_PURE).match(found[2])
        if not pure:
            return None
        name = pure[1]
    return None


def _moved(command: str) -> str:
    if rx(_MAKES).search(command):
        return "make"
    if not rx(_MOVES).search(command):
        return ""
    if rx(_THROUGH_HOST).search(command):
        return "host"
    return "peer" if rx(_COMMAND).search(command) else ""  # words announce a copy; they do not say which print shows it


def _difference(good: list[float], other: list[float]) -> str:
    """ "" if equal as printed, else zeros | torn (denormals, nan: not a value of anything) | wrong."""
    if all(a == b or abs(a - b) <= 1e-3 * abs(a) or (a != a and b != b) for a, b in zip(good, other, strict=True)):
        return ""
    if not any(other):
        return "zeros"
    torn = any(b != b and a == a for a, b in zip(good, other, strict=True))
    tiny = any(0 < abs(b) < _TINY <= _REAL <= abs(a) for a, b in zip(good, other, strict=True))
    return "torn" if torn or tiny else "wrong"


def _sane(made: _Print) -> bool:
    return any(made.numbers) and all(x == x and (x == 0 or abs(x) >= _TINY) for x in made.numbers)


def _copy_is_told(text: Text, first: _Print, second: _Print) -> bool:
    """A line around the two prints says that something is moved, and not through the host."""
    for at in range(max(first.start - 3, 0), second.start):
        words = text.lines[at].text[:LINE_MAX]
        if rx(_MOVES).search(words) and not rx(_MAKES).search(words) and not rx(_THROUGH_HOST).search(words):
            return True
    return False


def _judge(text: Text, good: _Print, made: _Print, later: list[_Print]) -> str:
    """zeros | wrong | "" for a print that may be a direct copy of `good`."""
    found = _difference(good.numbers, made.numbers)
    if not found or made.how == "make":
        return ""
    other_name = bool(good.name and made.name and good.name != made.name)
    if made.how == "peer":
        if other_name or (found == "wrong" and not made.pure):
            return ""
    elif found == "wrong":
        return ""
    elif not _copy_is_told(text, good, made):
        again = any(p.device == made.device and p.shape == good.shape and not _difference(good.numbers, p.numbers) for p in later)
        if not again or made.name or good.how == "make":
            return ""
    return _RESULT[found]


def _prints(text: Text, hits: list[int]) -> list[_Print]:
    out = []
    for at in hits:
        words = text.lines[at].text[:LINE_MAX]
        begin, here = 0, []
        for found in rx(_DEVICE).finditer(words):
            made = _print(text, at, found[1], words[begin : found.start()])
            begin = found.end()
            if made is not None:
                here.append(made)
        for made in here[:-1]:  # `print(a, a.to('cuda:1'))`: the command speaks of the last one
            made.how, made.name, made.pure = "", "", False
        out += here
        if len(out) >= _MOST_PRINTS:
            break
    return out


def _copies(text: Text, hits: list[int]) -> Iterator[tuple[str, str, str, int]]:
    """(via, result, pairs, index of the line)."""
    prints = _prints(text, hits)
    for i, made in enumerate(prints):
        before = [p for p in prints[max(0, i - _RECENT) : i] if made.start - p.at <= _NEAR and p.shape == made.shape and _sane(p)]
        later = [p for p in prints[i + 1 : i + 1 + _RECENT] if p.start - made.at <= _NEAR and p.shape == made.shape]
        sources = [p for p in before if p.device != made.device and p.how != "peer"]
        good = sources[-1] if sources else None
        known = _written(text, made.start, made.name) if good is None and made.pure and made.how in ("peer", "host") else None
        if known is not None:
            values, device = known
            if device.isdecimal() and device != made.device and any(values) and len(values) == len(made.numbers):
                found = _difference(values, made.numbers)
                if found or made.how == "host":
                    yield made.how, _RESULT[found], f"{device}-{made.device}", made.at
        elif made.how == "host":
            if good is not None and not (good.name and made.name and good.name != made.name):
                found = _difference(good.numbers, made.numbers)
                if not found or (made.pure and made.name == good.name):
                    yield "host", _RESULT[found], f"{good.device}-{made.device}", made.at
        elif good is not None:
            if result := _judge(text, good, made, later):
                yield "peer", result, f"{good.device}-{made.device}", made.at
        elif made.how == "peer" and made.pure:
            # the source was never printed, but the same tensor through the host was
            right = next((p for p in later if p.how == "host" and p.device == made.device and p.name == made.name and _sane(p)), None)
            if right is not None and (found := _difference(right.numbers, made.numbers)):
                yield "peer", _RESULT[found], "some", made.at


def _hex_words(text: Text, hits: list[int]) -> Iterator[tuple[str, str, str, int]]:
    """A probe that prints what the writer sees and what the owner of the memory sees."""
    sent: dict[str, tuple[int, list[str]]] = {}
    for at in hits:
        found = rx(_WORDS).search(text.lines[at].text[:LINE_MAX])
        if not found:
            continue
        pair, words = f"{found[1]}-{found[2]}", [w.lower().removeprefix("0x") for w in found[4].split()]
        if found[3].lower() in _SENDING:
            sent[pair] = (at, words)
        elif pair in sent and at - sent[pair][0] <= _NEAR:
            right = sent[pair][1]
            if len(words) == len(right) and words != right and any(w.strip("0") for w in right):
                yield "peer", "wrong" if any(w.strip("0") for w in words) else "zeros", pair, at


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    given: set[tuple[str, str, str]] = set()
    for via, result, pairs, at in (*_copies(text, hits), *_hex_words(text, hits)):
        if (via, result, pairs) not in given:
            given.add((via, result, pairs))
            line = text.lines[at]
            yield Copy(source=source(text, line), rank=line.rank, via=via, result=result, pairs=pairs)
