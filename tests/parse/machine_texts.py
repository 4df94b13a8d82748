"""What the tests of the machine's texts share: from words as pasted to facts, through cleaning and every parser."""

from __future__ import annotations

from typing import TypeVar

from linkproof.model import Event, Fact
from linkproof.parse import read
from linkproof.parse.clean import clean

F = TypeVar("F", bound=Fact)


def of(kind: type[F], words: str) -> list[F]:
    return [fact for fact in read(clean("text", words)) if isinstance(fact, kind)]


def events(words: str) -> list[tuple[str, str]]:
    return [(event.kind, event.value) for event in of(Event, words)]
