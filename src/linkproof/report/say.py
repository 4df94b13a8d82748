"""The words of every report, in the reader's language.

In:      an English template with {names}, their values, "en" or "zh".
Out:     the sentence. The English template stands in the code; `zh.json` holds the Chinese one under it.
Unknown: a template without a translation is said in English, a {name} without a value stays as it is: a report never fails for a word.
Raises:  nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache

LANGS = ("en", "zh")
_NAME = r"\{(\w+)\}"


def language(environ: Mapping[str, str] = os.environ) -> str:
    """From the locale: the first of LC_ALL, LC_MESSAGES, LANG that is set decides."""
    said = next((environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environ.get(name)), "")
    return "zh" if said.lower().startswith("zh") else "en"


@cache
def catalogue() -> dict[str, str]:
    from json import loads

    with open(os.path.join(os.path.dirname(__file__), "zh.json"), encoding="utf-8") as file:  # noqa: PTH118, PTH120, PTH123  start-up
        words: dict[str, str] = loads(file.read())
    return words


def say(template: str, args: Mapping[str, str] | None = None, lang: str = "en") -> str:
    if lang == "zh":
        template = catalogue().get(template, template)
    if "{" not in template:
        return template
    values = args or {}
    return re.sub(_NAME, lambda name: str(values.get(name[1], name[0])), template)


class Teller:
    """`say` with the language kept: `t("{n} lines", n=3)`."""

    def __init__(self, lang: str) -> None:
        self.lang = lang

    def __call__(self, template: str, /, **args: object) -> str:
        return say(template, {name: str(value) for name, value in args.items()}, self.lang)
