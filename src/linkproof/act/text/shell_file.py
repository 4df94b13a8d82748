"""A file of shell assignments, such as /etc/default/grub: where the words of a variable stand in it. Pure; never runs the shell.

In:      the text (one character a byte), and the names of variables.
Out:     Value: the assignments that make up what a variable holds at the end, each character with its place and its quotes.
         Several assignments: the last counts, with those before it that `+=` or `$NAME` carries on.
Unknown: `$NAME` inside a value is carried along unread, as one character.
Raises:  NotUnderstood where only running the shell could tell: a value out of `$(...)`, an assignment inside `if`, `eval`, another file read in ...
Source:  POSIX Shell Command Language, 2.2 Quoting, 2.9.1 Simple Commands; bash for `+=`.
"""

from __future__ import annotations

import re

from msgspec import Struct

from linkproof.mending import Sentence

_OPENS = {"if", "for", "while", "until", "case", "select", "{", "function"}
_CLOSES = {"fi", "done", "esac", "}"}
_LEADS = {"then", "else", "do", "!", "time"}  # a command follows
_READS_MORE = {".", "source", "eval", "unset", "return", "exit", "exec"}
_FUNCTION = re.compile(r"\w+[ \t]*\(\)")
FILE_MAX = 256 * 1024  # characters; such files are some hundred lines
_END = " \t\r\n;&|()<>"


class NotUnderstood(Exception):
    """A file that only its own program could read rightly: left alone. `why` is for a person; its {file} is named by who knows it."""

    def __init__(self, text: str, **args: str) -> None:
        super().__init__(text.format(**{"file": "file", **args}))
        self.why = Sentence(text, args)

    def of(self, path: str) -> NotUnderstood:
        return NotUnderstood(self.why.text, **{**self.why.args, "file": path})


class Char(Struct, frozen=True):
    """A character of a value; from, to: its place in the file; quote: what it stands in. text: of a `$NAME`, else "" ."""

    char: str
    start: int
    end: int
    quote: str
    name: str = ""


class Value(Struct, frozen=True):
    """One assignment. at, quote: where the first word goes if it is empty. top: not inside `if`, a loop or a function."""

    name: str
    plus: bool
    chars: tuple[Char, ...]
    at: int
    quote: str
    top: bool

    @property
    def text(self) -> str:
        return "".join(c.char for c in self.chars)


UNREAD = "\ue000"  # stands for a `$NAME`: a file read byte by byte has no such character


def _quoted_end(text: str, i: int) -> int:
    """The place behind what starts at i: a quoted piece, `$(...)`, `${...}`, backticks, or one character."""
    char = text[i]
    if char == "\\":
        return i + 2
    if char == "'":
        end = text.find("'", i + 1)
        return _found(end) + 1
    if char in '"`':
        i += 1
        while i < len(text) and text[i] != char:
            i = _quoted_end(text, i) if text[i] in "\\$" or (char == '"' and text[i] == "`") else i + 1
        return _found(i if i < len(text) else -1) + 1
    if char == "$" and text[i + 1 : i + 2] in ("(", "{"):
        close = ")" if text[i + 1] == "(" else "}"
        i += 2
        while i < len(text) and text[i] != close:
            i = _group_end(text, i) if text[i] == "(" else _quoted_end(text, i)
        return _found(i if i < len(text) else -1) + 1
    return i + 1


def _group_end(text: str, i: int) -> int:
    i += 1
    while i < len(text) and text[i] != ")":
        i = _group_end(text, i) if text[i] == "(" else _quoted_end(text, i)
    return _found(i if i < len(text) else -1) + 1


def _found(place: int) -> int:
    if place < 0:
        raise NotUnderstood("{file} is left alone: a quote or bracket in it is not closed")
    return place


def _leading(command: str) -> tuple[str, int]:
    """The word that says what a command does, and how much deeper it leads into if, loops and groups."""
    depth = 0
    for word in command.split(maxsplit=8):
        depth += (word in _OPENS) - (word in _CLOSES)
        if word not in _LEADS and word != "{":
            return word, depth
    return "", depth


def _command_end(text: str, i: int) -> int:
    """The place where a command ends, or a comment begins."""
    while i < len(text) and text[i] not in "\n;&|":
        if text[i] == "#" and text[i - 1 : i] in (" ", "\t", ""):
            break
        i = _quoted_end(text, i)
    return min(i, len(text))


def _line_end(text: str, i: int) -> int:
    end = text.find("\n", i)
    return len(text) if end < 0 else end


def assignments(text: str, names: tuple[str, ...]) -> list[Value]:
    """Every assignment of these variables, in order."""
    if len(text) > FILE_MAX:
        raise NotUnderstood("{file} is left alone: it is too long for such a file")
    try:
        return _assignments(text, names)
    except RecursionError:
        raise NotUnderstood("{file} is left alone: it holds more than assignments") from None


def _assignments(text: str, names: tuple[str, ...]) -> list[Value]:
    start_of = re.compile(rf"(?:export[ \t]+)?({'|'.join(names)})(\+?)=")
    said = re.compile(rf"\b(?:{'|'.join(names)})\b")
    sets = re.compile(rf"\b(?:{'|'.join(names)})[+:]?=")
    bare = re.compile(rf"export(?:[ \t]+(?:{'|'.join(names)}))+[ \t\r]*$")
    found: list[Value] = []
    depth = parens = i = 0
    if "\0" in text or "<<" in re.sub(r"#.*", "", text):
        raise NotUnderstood("{file} is left alone: it holds more than assignments")
    while i < len(text):
        if text[i] in " \t\r\n;&|()":
            parens = parens + 1 if text[i] == "(" else max(0, parens - 1) if text[i] == ")" else parens
            i += 1
            continue
        if text[i] == "#":
            i = _line_end(text, i)
            continue
        match = start_of.match(text, i)
        if match:
            value, i = _value(text, match, depth == parens == 0)
            found.append(value)
            continue
        end = _command_end(text, i)
        command = text[i:end]
        first, inner = _leading(command)
        depth += inner
        if first in _READS_MORE or (first == "function" or _FUNCTION.match(text, i)):
            raise NotUnderstood("{file} is left alone: it runs shell code (`{code}`) that may set the variable", code=command.strip()[:60])
        plain = re.match(r"(?:export[ \t]+)?[A-Za-z_][A-Za-z0-9_]*\+?=", command)
        if sets.search(command) or (not plain and said.search(command) and not bare.match(command)):
            raise NotUnderstood("{file} is left alone: it uses the variable in shell code (`{code}`)", code=command.strip()[:60])
        i = end
    return found


def _value(text: str, match: re.Match[str], top: bool) -> tuple[Value, int]:
    chars: list[Char] = []
    i = at = match.end()
    open_quote = ""
    first_at, first_quote = at, ""
    while i < len(text):
        char = text[i]
        if not open_quote and char in _END:
            break
        if not open_quote and char in "'\"":
            if text[i - 1 : i] == "$":
                raise NotUnderstood("{file} is left alone: its value is written in a form that only bash reads")
            open_quote, i = char, i + 1
            if not chars:
                first_at, first_quote = i, open_quote
        elif char == open_quote:
            open_quote, i = "", i + 1
        elif open_quote == "'":
            chars.append(Char(char, i, i + 1, "'"))
            i += 1
        elif char == "\\":
            i = _escaped(text, i, open_quote, chars)
        elif char == "$":
            i = _dollar(text, i, open_quote, chars)
        elif char == "`":
            raise NotUnderstood("{file} is left alone: its value is made by a command that it runs")
        else:
            chars.append(Char(char, i, i + 1, open_quote))
            i += 1
    if open_quote:
        raise NotUnderstood("{file} is left alone: a quote or bracket in it is not closed")
    end = _command_end(text, i)
    rest = text[i:end].strip()
    if rest:
        raise NotUnderstood("{file} is left alone: more stands behind the value (`{code}`)", code=rest[:60])
    before = match.start()
    while before and text[before - 1] in " \t\r\n":
        before -= 1
    if text[end : end + 1] in ("&", "|") or text[before - 1 : before] in ("&", "|"):
        raise NotUnderstood("{file} is left alone: it uses the variable in shell code (`{code}`)", code=text[match.start() : i][:60])
    if not chars:
        first_quote = first_quote if first_at != at else ""
    return Value(match[1], bool(match[2]), tuple(chars), first_at, first_quote, top), end


def _escaped(text: str, i: int, quote: str, chars: list[Char]) -> int:
    following = text[i + 1 : i + 2]
    if following == "\n":  # a continued line
        return i + 2
    if not quote or following in ('"', "\\", "$", "`"):
        if not following:
            raise NotUnderstood("{file} is left alone: it ends in the middle of a value")
        chars.append(Char(following, i, i + 2, quote))
        return i + 2
    chars.append(Char("\\", i, i + 1, quote))
    return i + 1


def _dollar(text: str, i: int, quote: str, chars: list[Char]) -> int:
    name = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))").match(text, i)
    if name:
        chars.append(Char(UNREAD, i, name.end(), quote, name[1] or name[2]))
        return name.end()
    following = text[i + 1 : i + 2]
    if following in ("(", "{", "'") or (following and following in "0123456789@*#?-$!") or (following == '"' and not quote):
        raise NotUnderstood("{file} is left alone: its value is made by shell code (`{code}`)", code=text[i : i + 30].split("\n")[0])
    chars.append(Char("$", i, i + 1, quote))
    return i + 1


def in_force(values: list[Value], name: str) -> list[Value]:
    """The assignments that make up what the variable holds at the end."""
    mine = [value for value in values if value.name == name]
    if any(not value.top for value in mine):
        raise NotUnderstood("{file} is left alone: the variable is set inside shell code (if, a loop or a function)")
    kept: list[Value] = []
    for value in reversed(mine):
        kept.insert(0, value)
        if not value.plus and not any(c.name == name for c in value.chars):
            break
    return kept


def quoted(text: str, quote: str) -> str:
    """Text as it is written inside these quotes; "" is outside of any, and gets its own."""
    if quote == "'":
        return text.replace("'", "'\\''")
    inside = re.sub(r'([\\"$`])', r"\\\1", text)
    return inside if quote else f'"{inside}"'
