"""Every sentence that a person can meet has its Chinese one, with the same {names}, and the catalogue holds nothing else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import linkproof
from linkproof.diagnose.question_list import QUESTIONS
from linkproof.report.say import Teller, catalogue, language, say

SRC = Path(linkproof.__file__).parent
# function -> place of the template among its arguments; it may also be given as text=
TEMPLATE_AT = {
    "pro": 1, "con": 1, "NotChecked": 1, "Sign": 2, "Next": 0, "Note": 0, "_note": 0, "t": 0, "say": 0, "Mode": 1, "Trial": 0,
    "Outcome": 2, "NotPossible": 0, "NotTested": 0, "Cell": 4, "_as": 1, "Wound": 0, "NotAsItShould": 0, "Finding": 1, "_not": 0,
    "_untested": 1, "doing": 0, "Sentence": 0,
}  # fmt: skip
TEMPLATE_AT_IN_ACT = {"Failed": 0, "DidNotStick": 0, "OtherDevice": 0, "NotUnderstood": 0, "_none": 0}  # elsewhere these names are others'
HANDED_ON = ("text", "template", "why", "what", "arm", "case", "state", "name")


Tables = dict[str, list[str]]


def _literals(node: ast.expr, tables: Tables | None = None) -> list[str] | None:
    """tables: of the same file, name -> the sentences of a dict; `HEADS[state]` is each of them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        return (tables or {}).get(node.value.id)
    if isinstance(node, ast.IfExp):
        body, other = _literals(node.body), _literals(node.orelse)
        return None if body is None or other is None else body + other
    return None


def _tables(tree: ast.Module) -> Tables:
    found: Tables = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and isinstance(node.targets[0], ast.Name):
            values = [v.value for v in node.value.values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
            if len(values) == len(node.value.values):
                found[node.targets[0].id] = values
    return found


def _handed_on(node: ast.expr) -> bool:
    """A template that comes from elsewhere: the parameter of a helper, the field of something already made."""
    return (isinstance(node, ast.Name) and node.id in HANDED_ON) or (isinstance(node, ast.Attribute) and node.attr in HANDED_ON)


def _calls(path: Path) -> Iterator[tuple[ast.Call, ast.expr, list[str] | None]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tables = _tables(tree)
    places = TEMPLATE_AT | (TEMPLATE_AT_IN_ACT if "act" in path.parts else {})
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if name not in places:
            continue
        given = [keyword.value for keyword in node.keywords if keyword.arg == "text"] or node.args[places[name] :]
        if given:
            yield node, given[0], _literals(given[0], tables)


def _reasons(path: Path) -> Iterator[ast.expr]:
    """What is put into a variable first, and handed on from there."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                names, values = (target.elts, node.value) if isinstance(target, ast.Tuple) else ([target], node.value)
                given = values.elts if isinstance(values, ast.Tuple) and len(names) > 1 else [values]
                yield from (v for n, v in zip(names, given, strict=False) if isinstance(n, ast.Name) and n.id in ("why", "text"))


def _spoken() -> dict[str, str]:
    """Template -> where it stands."""
    out: dict[str, str] = {}
    for path in sorted(SRC.rglob("*.py")):
        reasons = [(value, _literals(value)) for value in _reasons(path)]
        reasons = [(value, said) for value, said in reasons if any(" " in words for words in said or ())]
        for argument, templates in (*((argument, said) for _, argument, said in _calls(path)), *reasons):
            for template in filter(None, templates or ()):
                out.setdefault(template, f"{path.relative_to(SRC)}:{argument.lineno}")
    for question in QUESTIONS.values():
        out.setdefault(question.text, f"question {question.key}")
        for answer in question.answers:
            out.setdefault(answer.text, f"answer to {question.key}")
    return out


def _constants() -> set[str]:
    """Every text in the code: a sentence may go through a table before it is said."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SRC.rglob("*.py")))
    return {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def _names(template: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", template))


def test_every_template_is_a_literal_so_that_it_can_be_found_and_translated() -> None:
    hidden = [
        f"{path.relative_to(SRC)}:{node.lineno}: {ast.unparse(argument)[:60]}"
        for path in sorted(SRC.rglob("*.py"))
        for node, argument, said in _calls(path)
        if said is None and not _handed_on(argument)
    ]
    assert not hidden, "\n".join(hidden)


def test_every_template_has_a_chinese_sentence() -> None:
    zh = catalogue()
    missing = [f"{where}  {template!r}" for template, where in _spoken().items() if not zh.get(template, "").strip()]
    assert not missing, f"{len(missing)} without Chinese:\n" + "\n".join(missing)


def test_the_chinese_sentence_has_the_same_names_in_braces() -> None:
    odd = [f"{en!r}: {zh!r}" for en, zh in catalogue().items() if _names(en) != {n.removesuffix("_zh") for n in _names(zh)}]
    assert not odd, "\n".join(odd)


def test_the_chinese_sentence_is_chinese() -> None:
    words = {en: zh for en, zh in catalogue().items() if re.sub(r"\{\w+\}", "", en).strip(" :")}  # mere punctuation has no language
    latin = [f"{en!r}: {zh!r}" for en, zh in words.items() if not any("\u4e00" <= c <= "\u9fff" for c in zh)]
    assert not latin, "\n".join(latin)


def test_the_catalogue_holds_no_sentence_that_nobody_says() -> None:
    orphans = sorted(set(catalogue()) - set(_spoken()) - _constants())
    assert not orphans, f"{len(orphans)} orphans:\n" + "\n".join(map(repr, orphans))


def test_a_template_without_translation_is_said_in_english() -> None:
    assert say("no such sentence {n}", {"n": "3"}, "zh") == "no such sentence 3"


def test_a_name_without_a_value_stays_and_braces_in_a_value_are_left_alone() -> None:
    assert say("{a} and {b}", {"a": "{b}"}) == "{b} and {b}"


def test_values_are_filled_in_chinese_too() -> None:
    assert "7" in Teller("zh")("{n} lines", n=7)


def test_the_language_comes_from_the_first_locale_variable_that_is_set() -> None:
    assert language({"LANG": "zh_CN.UTF-8"}) == "zh"
    assert language({"LC_ALL": "en_US.UTF-8", "LANG": "zh_CN.UTF-8"}) == "en"
    assert language({"LC_MESSAGES": "zh_TW", "LANG": "C"}) == "zh"
    assert language({"LC_ALL": "", "LANG": "zh_CN"}) == "zh"
    assert language({}) == "en"
