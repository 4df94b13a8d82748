"""Causes, their pages and the recorded cases name the same things, and the README knows every command and flag.

The shape of a page is tested in test_pages.py, what the README shows in test_readme.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

import linkproof
from linkproof.act.recipes.acs import acs
from linkproof.act.recipes.fabric import fabric_manager
from linkproof.act.recipes.iommu import iommu, iommu_back
from linkproof.act.recipes.memory import shm
from linkproof.act.recipes.nvidia import static_bar1
from linkproof.act.recipes.which import MENDS
from linkproof.causes import CLASSES, causes
from linkproof.cli import _parser
from linkproof.report.pages import page

ROOT = Path(__file__).resolve().parent.parent
PAGES = Path(linkproof.__file__).parent / "causes"
IDS = [cause.id for cause in causes()]
LANGS = ("en", "zh")
LONGEST_TITLE = 72  # it stands in the verdict line and in the list of causes


@pytest.mark.parametrize("lang", LANGS)
@pytest.mark.parametrize("cause", IDS)
def test_every_page_gives_a_title_a_sentence_and_advice(cause: str, lang: str) -> None:
    about = page(cause, lang)
    assert about.title != cause and len(about.title) <= LONGEST_TITLE
    assert about.what and about.fix and about.workaround


def test_no_page_stands_without_its_cause() -> None:
    pages = {path.name.removesuffix(".md").removesuffix(".zh") for path in PAGES.glob("*.md")}
    assert pages - set(IDS) == set()


def test_every_cause_has_a_known_class_and_every_recorded_cause_is_known() -> None:
    assert {cause.cls for cause in causes()} == set(CLASSES)
    lines = (ROOT / "tests" / "cases" / "CAUSES.md").read_text(encoding="utf-8").splitlines()
    recorded = {line.split("`")[1] for line in lines if line.startswith("- `")} - {"undecided"}
    assert recorded - set(IDS) == set()


def _flags() -> Iterator[str]:
    parser = _parser("en")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield f"linkproof {name}"
                yield from (option for its in command._actions for option in its.option_strings if option.startswith("--"))
        else:
            yield from (option for option in action.option_strings if option.startswith("--"))


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readme_knows_every_command_and_flag(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    assert [flag for flag in dict.fromkeys(_flags()) if flag not in text and flag != "--help"] == []


@pytest.mark.parametrize("lang", LANGS)
def test_every_command_helps_in_both_languages(lang: str) -> None:
    parser = _parser(lang)
    assert ("用法：" if lang == "zh" else "usage: ") in parser.format_help()


def test_a_page_whose_cause_is_mended_by_a_command_names_the_command() -> None:
    writes = {acs, iommu, iommu_back, fabric_manager, shm, static_bar1}
    mended = [cause for cause, recipes in MENDS.items() if writes & set(recipes)]
    untold = [
        f"{cause} {lang}" for cause in mended for lang in LANGS if not any("linkproof fix" in words for words in page(cause, lang).fix)
    ]
    assert len(mended) > 5 and untold == []
