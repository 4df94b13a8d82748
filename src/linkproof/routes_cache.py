"""The route table on disk, with the parts of its key, so that a table of another day is known to be one.

In:      Probed and the parts of its key.
Out:     `$XDG_CACHE_HOME/linkproof/routes.json`, or below `~/.cache`; readable by its owner only.
Unknown: a file that is absent, damaged, too large, another's, or whose key does not fit its parts is no table (None).
Raises:  nothing: a cache that cannot be read or written is no cache.
Source:  XDG Base Directory Specification: a relative path in the variable is to be ignored.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import mkstemp
from time import time

import msgspec
from msgspec import Struct

from linkproof.measured import MODES, STATES, Probed
from linkproof.routes import key

SCHEMA = 1
LARGEST_B = 32 << 20


class Kept(Struct, frozen=True):
    schema: int
    when: float  # seconds since 1970
    key: str
    parts: dict[str, str]
    probed: Probed


def file_path(environ: Mapping[str, str] = os.environ) -> Path:
    home = environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if home.startswith("/") else Path(environ.get("HOME") or "~").expanduser() / ".cache"
    return base / "linkproof" / "routes.json"


def save(probed: Probed, parts: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> bool:
    """False if it could not be kept. The file is the old one or the new one, never a half."""
    kept = Kept(SCHEMA, time(), key(parts), dict(parts), msgspec.structs.replace(probed, key=key(parts)))
    temporary = ""
    try:
        target = file_path(environ)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, temporary = mkstemp(prefix=".routes-", dir=target.parent)  # 0600 by itself
        with os.fdopen(number, "wb") as file:
            file.write(msgspec.json.encode(kept))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except (OSError, RuntimeError, ValueError):  # RuntimeError: no home
        with suppress(OSError):
            if temporary:
                Path(temporary).unlink()
        return False
    return True


def load(environ: Mapping[str, str] = os.environ) -> tuple[Probed, dict[str, str], float] | None:
    """The table that was kept, the parts of its key, and when (seconds since 1970)."""
    try:
        number = os.open(file_path(environ), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(number, "rb") as file:
            about = os.fstat(number)
            others_write = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or others_write or about.st_size > LARGEST_B:
                return None
            kept = msgspec.json.decode(file.read(LARGEST_B + 1), type=Kept)
    except (OSError, RuntimeError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None
    return (kept.probed, kept.parts, kept.when) if _sound(kept) else None


def _sound(kept: Kept) -> bool:
    numbers = {c.index for c in kept.probed.cards}
    return (
        kept.schema == SCHEMA
        and kept.key == key(kept.parts) == kept.probed.key
        and len(numbers) == len(kept.probed.cards)
        and all(o.case.mode in MODES and o.state in STATES and o.case.gpus and numbers >= set(o.case.gpus) for o in kept.probed.outcomes)
    )


def stale(saved: Mapping[str, str], now: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(part, before, now) of what changed; [] if the table still holds. "" is what could not be known, and is no match for what could."""
    return [(name, saved.get(name, ""), now.get(name, "")) for name in {**saved, **now} if saved.get(name, "") != now.get(name, "")]
