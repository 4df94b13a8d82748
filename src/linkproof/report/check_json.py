"""The JSON Schema of `check --format json`, the one shipped as `check.schema.json`.

Out:     `schema`, made of the types of machine.py; a test holds the file equal.
Source:  MachineReport is the source; a change that takes something away or gives it another meaning is a new `schema` number.
"""

from __future__ import annotations

from linkproof.report.contract import published
from linkproof.report.machine import MachineReport


def schema() -> str:
    """What stands in `check.schema.json`."""
    return published(MachineReport, "check")
