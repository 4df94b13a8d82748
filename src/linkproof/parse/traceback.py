"""Python tracebacks in any program's log -> the exception line with its frames, per rank.

In:      plain tracebacks; those with a prefix before every line (`[rank0]: `, `(Worker_TP1 pid=7) ERROR 08-02 18:15:15 [x.py:1] `,
         `stderr: `, `| ` of exception groups); chained ones; cut ones without header; IPython's (`File x.py:12, in f(..)`, `x.py in f`);
         rich's boxes (`│ /x.py:12 in f │`).  Ranks may be interleaved: frames are gathered by rank, then by pid.
Out:     PyError for every exception line, innermost frame last, at most the 64 innermost; a bare `SomeError: message` without
         frames too. The same error of the same rank from the same place is given once; at most 200.
Unknown: frames whose exception line was cut away give no PyError; an unprinted message is "".
Raises:  nothing.
Source:  CPython `traceback` (3.6 .. 3.14), IPython `ultratb`, rich `traceback`, the logging formats of torchrun, vLLM and SGLang.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from linkproof.model import Fact, Frame, Line, PyError, Text
from linkproof.parse.rules import LINE_MAX, Match, rx, source

_HEADER = "Traceback (most recent call last)"
ANCHORS = (_HEADER, 'File "', "Error: ", "Error:", "Exception: ", "AssertionError", "NotImplementedError", "KeyboardInterrupt")
KEEP = (0, 8)

_FRAMES = 64
_MOST = 200
_AFTER_FRAME = 8  # code, carets and `[Previous line repeated ..]` stand between the last frame and its exception
_BOX = 600  # lines of one rich or IPython traceback

_PREFIX = (
    r"^(?:\[rank\d{1,5}\]:?\s?|\[\d{1,5}(?:,\d{1,5})?\](?:<std\w+>)?:\s?|\d{1,4}: |\([\w.]{1,60}(?: [^()]{0,80})?\)\s"
    r"|(?:ERROR|INFO|WARNING|CRITICAL|FATAL|DEBUG) \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,9})? \[?[\w./-]{1,80}:\d{1,6}\]\s?"
    r"|\[\d{4}-\d\d-\d\d[^\]]{0,60}\]\s?|\d{4}-\d\d-\d\d[T ][\d:.,+Z-]{5,40}\s|(?:stderr|stdout): ?|[\w.-]{1,40}\s{1,20}\| ?|\s{0,8}[|+] ?|> )*"
)
_FRAME = r'^\s*File "([^"]{1,400})", line (\d{1,7})(?:, in (.{1,200}))?'
_BOXED = r"^(?:File )?([~/.\w<][^\s:]{0,400}|[A-Z]:\\[^:]{0,400}|Cell In\s?\[\d{1,6}\]):(\d{1,7}),? in ([\w.<>]{1,120})"
_OLD_IPYTHON = r"^([~/<][^\s]{0,400}(?:\.py|>)) in ([\w.<>]{1,120})(?:\(|$)"
_ARROW = r"^-{2,6}>\s{0,6}(\d{1,7})(?:\s|$)"
_TYPE = r"(?:[A-Za-z_]\w{0,80}\.){0,12}[A-Za-z_]\w{0,80}(?:\([\w.]{1,120}\))?"
_EXCEPTION = r"^(" + _TYPE + r")(?::(?:\s(.*))?)?$"
_BARE = r"(?:^|[\]:|>-]\s{1,4}|\bE\s{1,8})((?:[A-Za-z_]\w{0,80}\.){0,12}[A-Za-z_]\w{1,80}(?:Error|Exception)(?:\([\w.]{1,120}\))?):\s(.*)$"
_PID = r"\bpid=(\d{1,8})"


def _key(line: Line, words: str) -> str:
    if line.rank is not None:
        return f"rank{line.rank}"
    found = rx(_PID).search(words[:120])
    return found[1] if found else ""


def _body(words: str) -> str:
    found = rx(_PREFIX).match(words)
    return words[found.end() :] if found else words


class _Reader:
    """State of one text: frames gathered per rank, lines already used, errors already given."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.open: dict[str, deque[Frame]] = {}
        self.used: set[int] = set()
        self.given: set[tuple[str, str, int | None, Frame | None]] = set()

    def error(self, at: int, found: Match, frames: deque[Frame] | None) -> Iterator[Fact]:
        line = self.text.lines[at]
        self.used.add(at)
        kind, message = str(found[1]), str(found[2] or "").strip()[:1000]
        place = tuple(frames or ())
        key = (kind, message[:200], line.rank, place[-1] if place else None)
        if key not in self.given and len(self.given) < _MOST:
            self.given.add(key)
            yield PyError(source=source(self.text, line), rank=line.rank, type=kind, message=message, frames=place)

    def frame(self, at: int, key: str, found: Match) -> Iterator[Fact]:
        """Keep the frame; the exception line may have no word that anchors it (`queue.Empty`), so look a few lines down."""
        frames = self.open.setdefault(key, deque(maxlen=_FRAMES))
        frames.append(Frame(found[1], int(found[2]), (found[3] or "").strip()))
        for below in range(at + 1, min(at + 1 + _AFTER_FRAME, len(self.text.lines))):
            line = self.text.lines[below]
            words = line.text[:LINE_MAX]
            if _key(line, words) != key:
                continue
            body = _body(words)
            if 'File "' in body or _HEADER in body:
                return
            if body[:1].isspace() or not body:
                continue
            exception = rx(_EXCEPTION).match(body)
            if exception and exception[1] != "Traceback":
                yield from self.error(below, exception, self.open.pop(key))
                return

    def boxed(self, at: int) -> Iterator[Fact]:
        """rich and IPython: one block, never interleaved. Reads down to the exception line."""
        frames: deque[Frame] = deque(maxlen=_FRAMES)
        for below in range(at + 1, min(at + _BOX, len(self.text.lines))):
            raw = self.text.lines[below].text[:LINE_MAX]
            if _HEADER in raw:
                return
            self.used.add(below)
            words = raw.strip(" │|\t❱")
            if found := rx(_BOXED).match(words):
                frames.append(Frame(found[1], int(found[2]), found[3]))
            elif found := rx(_OLD_IPYTHON).match(words):
                frames.append(Frame(found[1], 0, found[2]))
            elif frames and not frames[-1].line and (arrow := rx(_ARROW).match(words)):
                frames.append(Frame(frames[-1].file, int(arrow[1]), frames.pop().func))
            elif frames and raw[:1].isalpha() and (exception := rx(_EXCEPTION).match(_body(raw))) and rx(_BARE).search(raw + ": "):
                yield from self.error(below, exception, frames)
                return


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    reader = _Reader(text)
    for at in hits:
        if at in reader.used:
            continue
        line = text.lines[at]
        words = line.text[:LINE_MAX]
        key, body = _key(line, words), _body(words)
        if _HEADER in words:
            if body.lstrip().startswith(("Traceback", "Exception Group Traceback")):
                reader.open[key] = deque(maxlen=_FRAMES)
            else:
                yield from reader.boxed(at)
        elif found := rx(_FRAME).match(body):
            yield from reader.frame(at, key, found)
        elif reader.open.get(key) and (found := rx(_EXCEPTION).match(body)):
            yield from reader.error(at, found, reader.open.pop(key))
        elif (found := rx(_BARE).search(words)) and not found[1].startswith("nccl"):  # NCCL's own `ncclSystemError: ..`
            yield from reader.error(at, found, None)
