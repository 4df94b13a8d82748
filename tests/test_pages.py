"""The pages of the causes have one shape in both languages: headings, one sentence first, evidence by bands, bullets that match."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

import linkproof
from linkproof.causes import causes
from linkproof.cli import _parser
from linkproof.report.pages import HEADINGS, bullets, first_paragraph, sections

PAGES = Path(linkproof.__file__).parent / "causes"
IDS = [cause.id for cause in causes()]
LANGS = ("en", "zh")
BANDS = {"en": ("settles", "strong", "moderate", "weak"), "zh": ("定论", "强", "中等", "弱")}
GROUPS = {"en": ("For:", "Against:"), "zh": ("支持：", "反对：")}
WHAT, EVIDENCE, MEND, ROUTE_AROUND = 0, 2, 4, 5
LONGEST_SENTENCE = 200
CODE = re.compile(r"`[^`]*`")
# "Strong: ...", "Moderate each: ..." and "强：……", "各为中等：……": one word before the first colon is a weight
LEADING_WEIGHT = {"en": re.compile(r"([A-Z][a-z]+)(?: each)?: "), "zh": re.compile(r"(?:各为)?([^\W\d]{1,2})：")}

each_page = pytest.mark.parametrize(("cause", "lang"), [(cause, lang) for cause in IDS for lang in LANGS])
each_cause = pytest.mark.parametrize("cause", IDS)


def _text(cause: str, lang: str) -> str:
    return (PAGES / (f"{cause}.zh.md" if lang == "zh" else f"{cause}.md")).read_text(encoding="utf-8")


def _section(cause: str, lang: str, number: int) -> list[str]:
    return sections(_text(cause, lang))[HEADINGS[number][LANGS.index(lang)]]


def _groups(cause: str, lang: str) -> dict[str, tuple[str, ...]]:
    """Label of a group -> its bullets; what stands before the first label is under ""."""
    found: dict[str, list[str]] = {"": []}
    label = ""
    for line in _section(cause, lang, EVIDENCE):
        if line in GROUPS[lang]:
            label = line
            found[label] = []
        else:
            found[label].append(line)
    return {name: bullets(lines) for name, lines in found.items()}


@each_cause
def test_every_cause_has_an_english_and_a_chinese_page(cause: str) -> None:
    assert [lang for lang in LANGS if not _text(cause, lang).strip()] == []


@each_page
def test_the_headings_are_exactly_these_in_this_order(cause: str, lang: str) -> None:
    found = [line for line in _text(cause, lang).splitlines() if line.startswith("## ")]
    assert found == [f"## {names[LANGS.index(lang)]}" for names in HEADINGS]


@each_page
def test_the_first_line_is_the_id_and_a_title(cause: str, lang: str) -> None:
    first, second = _text(cause, lang).splitlines()[:2]
    assert re.fullmatch(rf"# {cause}: \S.*", first), first
    assert second == ""


@each_page
def test_text_follows_its_heading_at_once_and_a_blank_line_ends_it(cause: str, lang: str) -> None:
    lines = _text(cause, lang).splitlines()
    headings = [n for n, line in enumerate(lines) if line.startswith("## ")]
    assert [lines[n] for n in headings if not lines[n + 1].strip() or lines[n - 1].strip()] == []
    assert [lines[n] for n, line in enumerate(lines) if line in GROUPS[lang] and not lines[n + 1].startswith("- ")] == []


@each_page
def test_the_first_paragraph_is_one_sentence_on_one_line(cause: str, lang: str) -> None:
    what = _section(cause, lang, WHAT)
    sentence = first_paragraph(what)
    assert sentence == what[0]
    assert len(sentence) <= LONGEST_SENTENCE
    ends = re.findall(r"[。！？]", sentence) if lang == "zh" else re.findall(r"[.!?](?=\s|$)", sentence)
    assert len(ends) == 1 and sentence.endswith(("。", ".")), sentence


@each_cause
def test_both_languages_advise_in_as_many_bullets(cause: str) -> None:
    for number in (MEND, ROUTE_AROUND):
        en, zh = (bullets(_section(cause, lang, number)) for lang in LANGS)
        assert len(en) == len(zh) > 0, HEADINGS[number]


@each_cause
def test_both_languages_give_as_much_evidence(cause: str) -> None:
    en, zh = (_groups(cause, lang) for lang in LANGS)
    assert [len(en[label]) for label in ("", *GROUPS["en"])] == [len(zh[label]) for label in ("", *GROUPS["zh"])]


@each_page
def test_the_advice_is_bullets_only(cause: str, lang: str) -> None:
    loose = [
        line
        for number in (MEND, ROUTE_AROUND)
        for line in _section(cause, lang, number)
        if line.strip() and not line.startswith(("- ", "  "))
    ]
    assert loose == []


@each_page
def test_the_evidence_has_a_group_for_and_a_group_against(cause: str, lang: str) -> None:
    groups = _groups(cause, lang)
    assert tuple(groups) == ("", *GROUPS[lang])
    assert groups[""] == ()
    assert all(groups[label] for label in GROUPS[lang])


@each_page
def test_every_bullet_of_evidence_names_a_band(cause: str, lang: str) -> None:
    """Only where nothing speaks against a cause a single bullet may say so instead."""
    groups = _groups(cause, lang)
    silent = [
        bullet
        for label in GROUPS[lang]
        for bullet in groups[label]
        if not any(band in CODE.sub("", bullet).lower() for band in BANDS[lang])
    ]
    assert silent == [] or (silent == list(groups[GROUPS[lang][1]]) and len(silent) == 1), silent


@each_page
def test_a_bullet_that_starts_with_a_weight_uses_one_of_the_four_bands(cause: str, lang: str) -> None:
    weights = [LEADING_WEIGHT[lang].match(bullet) for label in GROUPS[lang] for bullet in _groups(cause, lang)[label]]
    assert {weight.group(1).lower() for weight in weights if weight} - set(BANDS[lang]) == set()


@each_page
def test_the_pages_name_only_commands_that_there_are(cause: str, lang: str) -> None:
    subparsers = [a for a in _parser("en")._actions if isinstance(a, argparse._SubParsersAction)]
    commands = {name for action in subparsers for name in action.choices}
    named = {word for span in CODE.findall(_text(cause, lang)) for word in re.findall(r"linkproof (\w+)", span)}
    assert commands
    assert named - commands == set()


@each_page
def test_no_page_holds_a_path_of_one_machine_or_the_host_of_a_registry(cause: str, lang: str) -> None:
    private = re.findall(r"/work/\S+|/tmp/v/\S+|/home/\w+|/Users/\w+", _text(cause, lang))
    hosts = re.findall(
        r"\b(?:pypi\.org|files\.pythonhosted\.org|download\.pytorch\.org|ghcr\.io|nvcr\.io|docker\.io|quay\.io)\b", _text(cause, lang)
    )
    assert private + hosts == []


@each_cause
def test_chinese_prose_has_full_width_punctuation(cause: str) -> None:
    body = _text(cause, "zh").removeprefix(f"# {cause}: ")
    prose = re.sub(r'"[^"\n]*"', "", CODE.sub("", body))
    assert re.findall(r"[\u4e00-\u9fff] ?[,;:()!?]|[,;:()!?] ?[\u4e00-\u9fff]|[\u4e00-\u9fff]\.(?=\s|$)", prose) == []
