"""What the READMEs show is what the code prints."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import readme  # noqa: E402


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_session_in_the_readme_is_the_output_of_the_command(lang: str) -> None:
    text = (ROOT / readme.READMES[lang]).read_text(encoding="utf-8")
    assert f"<!-- session: {lang} -->" in text
    assert readme.renewed(text, lang) == text, "run: python bench/readme.py"
