"""A file of observations -> its entries and the line that each begins on.

In:      YAML (JSON is YAML too): a list of flat mappings. Words are taken as written: `12.10` and `off` stay what they are.
Out:     Observed. A list of words as a value becomes "a,b".
Unknown: what is no list of mappings is handed on as it is, for `parse.observations` to refuse with the known words.
Raises:  InputError for a file that cannot be read, is too big, or is no YAML.
Source:  YAML 1.1 as PyYAML reads it; nothing but its node tree is used, so an alias costs nothing and no object is made.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from linkproof.errors import InputError

MOST_B = 1 << 18
_NULL = ("", "~", "null")
_BOOL = {"true": "on", "yes": "on", "false": "off", "no": "off"}


class Observed(NamedTuple):
    data: object  # what YAML holds; a list if all is well
    lines: list[int]  # of each entry
    texts: list[str]  # the first line of each entry, as written


def observed(path: str) -> Observed:
    try:
        with open(path, "rb") as file:  # noqa: PTH123  a plain open is enough
            raw = file.read(MOST_B + 1)
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or str(e)
        raise _refused(path, f"cannot be read: {why}", f"无法读取：{why}") from e
    if len(raw) > MOST_B:
        raise _refused(path, "is larger than 256 KiB", "大于 256 KiB")
    text = raw.decode("utf-8-sig", "replace")
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)  # the C loader overflows its stack on deep nesting
        data = _plain(root, yaml)
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        mark = getattr(e, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise _refused(path, f"is no YAML at line {line}", f"第 {line} 行不是合法的 YAML") from e
    lines = [node.start_mark.line + 1 for node in root.value] if root is not None and isinstance(data, list) else []
    written = text.splitlines()
    return Observed(data, lines, [written[no - 1].strip().removeprefix("- ") if no <= len(written) else "" for no in lines])


def _plain(node: Any, yaml: Any) -> object:
    """The tree, two levels deep: a list of mappings of words."""
    if node is None:
        return None
    if isinstance(node, yaml.SequenceNode):
        return [_entry(item, yaml) for item in node.value]
    return _entry(node, yaml)


def _entry(node: Any, yaml: Any) -> object:
    if isinstance(node, yaml.MappingNode):
        return {_word(key, yaml): _word(value, yaml) for key, value in node.value}
    return _word(node, yaml)


def _word(node: Any, yaml: Any) -> str:
    if isinstance(node, yaml.SequenceNode):
        return ",".join(item.value for item in node.value if isinstance(item, yaml.ScalarNode))
    if not isinstance(node, yaml.ScalarNode):
        return "{...}"
    words = node.value.encode("utf-8", "replace").decode()
    if node.style is None:  # not quoted
        low = words.lower()
        return "" if low in _NULL else _BOOL.get(low, words)
    return str(words)


def _refused(path: str, en: str, zh: str) -> InputError:
    name = "".join(c if c.isprintable() else "\ufffd" for c in path)
    return InputError(
        "observations-unreadable",
        (f"{name} {en}", f"{name} {zh}"),
        ("nothing was diagnosed: what was observed could turn the verdict", "未作诊断：观察结果可能改变结论"),
        (
            "give a YAML list, e.g. `- {check: model, split: none, result: ok}`",
            "请给出 YAML 列表，例如 `- {check: model, split: none, result: ok}`",
        ),
    )
