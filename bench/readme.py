"""Writes what the code prints into the READMEs, so that they show what a reader will see.

python bench/readme.py            rewrites the blocks between `<!-- NAME: LANG -->` and `<!-- end -->`
python bench/readme.py --check    exit 1 if a README shows something else

Blocks: `check`, `fix` and `explain` are excerpts of a command's output, section by section and with `...` where some are left out; `modes` is
the table of what `check` tries. What differs from run to run (how long it took) lies in what is left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from linkproof.checking import Checked
from linkproof.cli import _parser
from linkproof.fixing.command import Found, found_for, gpu_numbers, plan_of
from linkproof.measured import MODES
from linkproof.mending import Plan
from linkproof.probing import probed_check
from linkproof.report.fix import Maker
from linkproof.report.fix_text import text as fix_text
from linkproof.report.layout import plain
from linkproof.report.machine import machine_report, text
from linkproof.report.say import Teller, say

ROOT = Path(__file__).resolve().parent.parent
READMES = {"en": "README.md", "zh": "README.zh-CN.md"}
CHECK = ("check", "--sim", "iommu-translating-2xa6000")
CASE = "tests/cases/c-057-pytorch13045"
FIX = ("fix", "--sim", "acs-redirect-4x4090")
EXPLAIN = ("explain", f"{CASE}/evidence", "--observations", f"{CASE}/observations.yaml")
WIDTH = 100
WHY, DO = "Why", "What to do now"


@cache
def checked() -> Checked:
    """One run serves both languages: a hang that is found takes its seconds."""
    return probed_check(_parser("en").parse_args(CHECK), "en")


def check_session(lang: str) -> str:
    t = Teller(lang)
    said = plain(text(machine_report(checked(), lang), lang, WIDTH))
    verdict, links, first, *rest = said.rstrip().split("\n\n")
    links = "\n".join(line for line in links.split("\n") if not line.startswith(" "))  # indented: extent and time
    cause = next(block for block in rest if "iommu_translation · " in block)
    wanted = [cause, *(block for head in (WHY, DO) for block in rest if block.startswith(f"{t(head)}\n"))]
    return _shown(CHECK, lang, [verdict, links, first], wanted)


@cache
def found() -> tuple[Found, Plan]:
    """One run serves both languages here, too."""
    options = _parser("en").parse_args(FIX)
    with found_for(options, "en", None) as machine:
        return machine, plan_of(options, machine)


def fix_session(lang: str) -> str:
    machine, made = found()
    numbers = gpu_numbers(machine.checked)
    said = Maker(lang, numbers).plan(made, machine.source, machine.checked.diagnosis.consumers)
    headline, first, *_ = plain(fix_text(said, lang, WIDTH)).split("\n\n")
    return _shown(FIX, lang, [headline, first])


def explain_session(lang: str) -> str:
    """The command as one types it."""
    env = {**os.environ, "COLUMNS": str(WIDTH), "NO_COLOR": "1", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "linkproof", *EXPLAIN, "--lang", lang],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode != 1:
        raise SystemExit(f"linkproof ended with {done.returncode}: {done.stderr}")
    verdict, why, *_ = done.stdout.rstrip().split("\n\n")
    return _shown(EXPLAIN, lang, [verdict, why])


def _shown(command: tuple[str, ...], lang: str, *parts: list[str]) -> str:
    shown = "" if lang == "en" else f" --lang {lang}"
    lines = "\n\n...\n\n".join("\n\n".join(part) for part in parts)
    return f"```\n$ linkproof {' '.join(command)}{shown}\n{lines}\n\n...\n```"


def modes_table(lang: str) -> str:
    head = {"en": "| mode | how the data go from GPU to GPU |", "zh": "| 模式 | 数据怎样从一张 GPU 到另一张 |"}[lang]
    rows = [f"| `{m.name}`{'¹' if m.nvidia else ''}{'' if m.judged else '²'} | {say(m.what, {}, lang)} |" for m in MODES.values()]
    return "\n".join([head, "|---|---|", *rows])


BLOCKS = {"check": check_session, "fix": fix_session, "explain": explain_session, "modes": modes_table}


def renewed(readme: str, lang: str) -> str:
    """A README with its blocks as the code prints them now."""
    for name, made in BLOCKS.items():
        before, mark, rest = readme.partition(f"<!-- {name}: {lang} -->\n")
        _, end, behind = rest.partition("<!-- end -->")
        if not (mark and end):
            raise SystemExit(f"{READMES[lang]} has no block {name}")
        readme = f"{before}{mark}{made(lang)}\n{end}{behind}"
    return readme


def main() -> int:
    stale = []
    for lang, name in READMES.items():
        path = ROOT / name
        readme = path.read_text(encoding="utf-8")
        new = renewed(readme, lang)
        if new != readme:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    print("renewed: " + ", ".join(stale) if stale else "up to date")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
