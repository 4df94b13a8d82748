"""Writes what the code prints into the READMEs, so that they show what a reader will see.

python bench/readme.py            rewrites the blocks between `<!-- session: LANG -->` and `<!-- end -->`
python bench/readme.py --check    exit 1 if a README shows something else
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READMES = {"en": "README.md", "zh": "README.zh-CN.md"}
CASE = "tests/cases/c-057-pytorch13045"
COMMAND = ("explain", f"{CASE}/evidence", "--observations", f"{CASE}/observations.yaml")


def session(lang: str) -> str:
    """The command as one types it, and all that it prints."""
    env = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "linkproof", *COMMAND, "--lang", lang],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode != 1:
        raise SystemExit(f"linkproof ended with {done.returncode}: {done.stderr}")
    shown = "" if lang == "en" else f" --lang {lang}"
    return f"```\n$ linkproof {' '.join(COMMAND)}{shown}\n{done.stdout.rstrip()}\n```"


def renewed(text: str, lang: str) -> str:
    """A README with its session block as the code prints it now."""
    block = f"<!-- session: {lang} -->\n{session(lang)}\n<!-- end -->"
    return re.sub(rf"<!-- session: {lang} -->.*?<!-- end -->", lambda _: block, text, count=1, flags=re.DOTALL)


def main() -> int:
    stale = []
    for lang, name in READMES.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        new = renewed(text, lang)
        if new != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(new, encoding="utf-8")
    print("renewed: " + ", ".join(stale) if stale else "up to date")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
