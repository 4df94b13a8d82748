"""What the READMEs show is what the code prints."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import readme  # noqa: E402
from linkproof.diagnose.consumers import WAYS  # noqa: E402
from linkproof.report.env import FORMATS  # noqa: E402
from linkproof.sim.scenario import names  # noqa: E402


def text(lang: str) -> str:
    return (ROOT / readme.READMES[lang]).read_text(encoding="utf-8")


@pytest.mark.parametrize("block", readme.BLOCKS)
@pytest.mark.parametrize("lang", readme.READMES)
def test_a_block_in_the_readme_is_what_the_code_prints(lang: str, block: str) -> None:
    shown = text(lang).partition(f"<!-- {block}: {lang} -->\n")[2].partition("\n<!-- end -->")[0]
    assert shown == readme.BLOCKS[block](lang), "run: python bench/readme.py"


@pytest.mark.parametrize("lang", readme.READMES)
def test_the_readme_knows_every_engine_form_of_env_and_how_many_machines_are_simulated(lang: str) -> None:
    said = text(lang)
    assert [engine for engine in WAYS if f"`{engine}`" not in said] == []
    assert ", ".join(FORMATS) in said
    assert f" {len(names())} " in next(line for line in said.splitlines() if line.startswith(f"linkproof {' '.join(readme.CHECK)}"))


def test_both_readmes_have_the_same_sections_tables_and_commands() -> None:
    shapes = []
    for lang in readme.READMES:
        lines = text(lang).splitlines()
        heads = [line.partition(" ")[0] for line in lines if line.startswith("#")]
        rows = sum(line.startswith("|") for line in lines)
        bullets = sum(line.startswith("- ") for line in lines)
        commands = [line.partition("  ")[0] for line in lines if line.startswith(("linkproof ", "make "))]
        shapes.append((heads, rows, bullets, commands))
    assert shapes[0] == shapes[1]
