"""The command `verify`: from its options to `linkproof.verify`, from what that gives to a report; decides nothing.

Exit codes: 0 healthy, 1 faulty, 3 cannot tell (2 wrong usage, 4 our own fault).
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from linkproof.errors import model_packages
from linkproof.report.layout import Row
from linkproof.report.say import Teller
from linkproof.verified import Doing

EXIT_CODE = {"healthy": 0, "faulty": 1, "cannot_tell": 3}


def run(options: Namespace, lang: str, show: Callable[[str | Iterable[Row]], None], width: int) -> int:
    """options: model, devices, stages, device_map, prompt, new, sample, seed, dtype, fault, tp, timeout, format."""
    from linkproof.report.verify import as_json, text, verify_report
    from linkproof.verify.run import verify

    model_packages()
    with _telling(lang) as tell:
        verified = verify(
            options.model,
            devices=options.devices,
            stages=options.stages,
            device_map=options.device_map,
            prompts=options.prompt,
            new=options.new,
            sample=options.sample,
            seed=options.seed,
            dtype=options.dtype,
            faults=options.fault,
            tp=options.tp,
            deadline_s=options.timeout,
            tell=tell,
        )
    said = verify_report(verified, lang)
    show(as_json(said) if options.format == "json" else text(said, lang, width))
    return EXIT_CODE[verified.verdict]


@contextmanager
def _telling(lang: str) -> Iterator[Callable[[Doing], None]]:
    """One line on stderr, in a terminal only; gone at the end."""
    t = Teller(lang)
    shown = sys.stderr is not None and sys.stderr.isatty()

    def tell(doing: Doing) -> None:
        if shown:
            print(f"\r\x1b[K{doing.done + 1}/{doing.total} {t(doing.text)} ...", end="", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
