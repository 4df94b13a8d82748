"""Every cause: a machine that shows it, one that must stay silent, one that cannot tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from linkproof.causes import causes
from linkproof.diagnose import SURE
from linkproof.explaining import explain
from linkproof.model import Diagnosis

MACHINES: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load((Path(__file__).parent / "machines.yaml").read_text(encoding="utf-8"))
IDS = sorted(c.id for c in causes())


def diagnosed(cause: str, kind: str) -> Diagnosis:
    machine = MACHINES[cause][kind]
    return explain({"pasted.txt": machine["t"]} if "t" in machine else {}, machine.get("o", []))


def test_every_cause_has_its_three_machines() -> None:
    assert sorted(MACHINES) == IDS
    assert all(set(kinds) == {"shows", "silent", "open"} for kinds in MACHINES.values())


@pytest.mark.parametrize("cause", IDS)
def test_a_machine_that_shows_it_is_named_first_and_likely(cause: str) -> None:
    first = diagnosed(cause, "shows").causes[0]
    assert first.id == cause and first.confidence >= SURE


@pytest.mark.parametrize("cause", IDS)
def test_look_alike_evidence_does_not_name_it(cause: str) -> None:
    named = {w.id: w.confidence for w in diagnosed(cause, "silent").causes if w.state != "ruled_out"}
    assert named.get(cause, 0.0) < 0.15


@pytest.mark.parametrize("cause", IDS)
def test_too_little_evidence_calls_nothing_likely(cause: str) -> None:
    diagnosis = diagnosed(cause, "open")
    assert diagnosis.verdict == "cannot_tell"
    assert all(w.confidence < SURE for w in diagnosis.causes)
    assert diagnosis.next, "it names the next step"
