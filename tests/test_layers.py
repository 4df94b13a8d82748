"""Rooms import downwards only, and what must start fast or stay pure imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "torch",
    "rich",
    "re2",
    "msgspec",
    "ahocorasick_rs",
    "yaml",
    "hyperscan",
    "pathlib",
    "dataclasses",
    "inspect",
    "subprocess",
    "socket",
)


def _loaded_after(code: str) -> set[str]:
    """Top-level modules that are loaded once this ran and were not before."""
    script = f"import sys; before = set(sys.modules); {code}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split("\n")[-2].split()}


def test_rooms_import_downwards_only() -> None:
    pytest.importorskip("importlinter")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not _loaded_after("import linkproof") & set(HEAVY)


def test_asking_for_the_version_loads_nothing_heavy() -> None:
    code = "from linkproof.cli import main; main(['--version'])"
    assert not _loaded_after(code) & {*HEAVY, "importlib.resources"} - {"pathlib"}


def test_explaining_into_a_pipe_loads_neither_rich_nor_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("CUDA error: device-side assert triggered\n", encoding="utf-8")
    code = f"from linkproof.cli import main; main(['explain', {str(tmp_path / 'a.log')!r}])"
    assert not _loaded_after(code) & {"torch", "rich", "yaml", "hyperscan"}
