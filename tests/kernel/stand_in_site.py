"""Runs inside the guest, in every program that the unit starts: the displays are NVIDIA's, as guest.StandIn says it to the programs of the tests.

It lies there as `sitecustomize`, which Python loads by itself; the unit's own command line stays as it is.
"""

from linkproof.collect.host import Answer, Live

_file = Live.file


def file(self: Live, path: str) -> Answer:
    answer = _file(self, path)
    return Answer(b"0x10de\n") if path.endswith("/vendor") and answer.text.strip() == "0x1234" else answer


Live.file = file  # type: ignore[method-assign]
