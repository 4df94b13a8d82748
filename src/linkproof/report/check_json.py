"""The JSON Schema of `check --format json`, the one shipped as `check.schema.json`.

Out:     `schema`, made of the types of machine.py; a test holds the file equal.
Source:  MachineReport is the source; a change that takes something away or gives it another meaning is a new `schema` number.
"""

from __future__ import annotations

import msgspec

from linkproof.report.machine import MachineReport


def schema() -> str:
    """What stands in `check.schema.json`."""
    words = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "linkproof check --format json",
        **msgspec.json.schema(MachineReport),
    }
    return msgspec.json.format(msgspec.json.encode(words), indent=2).decode() + "\n"
