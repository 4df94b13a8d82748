"""Its place makes `evidence` (drawn and recorded machines) importable from every test. And a skip inside thousands of dots is not seen: it is told."""

from __future__ import annotations

import signal

import pytest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what runs in its background: children would be deaf to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

NOT_VERIFIED = "unit not verified"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", ()) if isinstance(r.longrepr, tuple) and NOT_VERIFIED in r.longrepr[2]]
    if skipped:
        terminalreporter.section("systemd unit not verified", yellow=True, bold=True)
        terminalreporter.write_line(f"{len(skipped)} of these tests. {skipped[0].longrepr[2].removeprefix('Skipped: ')}", yellow=True)
