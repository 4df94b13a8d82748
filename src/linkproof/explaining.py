"""From texts to a diagnosis: wires collect, parse, causes and diagnose together. Decides nothing, prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from linkproof.diagnose import diagnose
from linkproof.model import Diagnosis, Fact, Text
from linkproof.parse import anchors, read

if TYPE_CHECKING:
    from linkproof.collect.host import Answer
    from linkproof.collect.inputs import Raw

Progress = Callable[[str, int], None]  # (name of the text at hand, bytes of it that were read since the last call)


def explain_texts(
    texts: Iterable[Text], observations: Iterable[Fact] = (), skipped: Callable[[], Iterable[tuple[str, str, str]]] = tuple
) -> Diagnosis:
    """Texts already cleaned, facts already made of observations -> Diagnosis. skipped: asked once all texts are read."""
    from msgspec.structs import replace

    facts: list[Fact] = list(observations)
    names = []
    for text in texts:
        facts.extend(read(text))
        names.append((text.name, max(text.total_lines, len(text.lines))))
    return replace(diagnose(facts, names), skipped=tuple(skipped()))


def explain_inputs(
    paths: Sequence[str], stdin: BinaryIO | None = None, observations_file: str | None = None, progress: Progress | None = None
) -> Diagnosis:
    """Files, folders, archives and `-` -> Diagnosis. Of a long log only the lines that matter to a parser are kept in memory.

    Errors   InputError, NothingToRead, ObservationError
    """
    from linkproof.collect.inputs import inputs, lines_of
    from linkproof.parse.clean import clean

    told = [] if observations_file is None else _observed(observations_file)
    captures, paths = _captures(paths)
    for log in captures:
        told += _facts_of_capture(log)
    left_out: list[Any] = []

    def texts() -> Iterator[Text]:
        for raw in inputs(paths, stdin=stdin, skipped=left_out, allow_empty=bool(told)):
            lines, total = lines_of(_counted(raw, progress) if progress else raw, anchors())
            yield clean(raw.name, lines, total_lines=total)

    return explain_texts(texts(), told, lambda: [tuple(s) for s in left_out])


def _captures(paths: Sequence[str]) -> tuple[list[dict[str, Answer]], list[str]]:
    """The captures among these paths, as what they recorded, and the other paths."""
    from linkproof.collect.bundle import is_capture, unpack

    captures, others = [], []
    for path in paths:
        if path != "-" and is_capture(path):
            with open(path, "rb") as file:  # noqa: PTH123  start-up
                captures.append(unpack(file.read(), path))
        else:
            others.append(path)
    return captures, others


def _facts_of_capture(log: dict[str, Answer]) -> list[Fact]:
    from linkproof.collect.evidence import read_evidence
    from linkproof.collect.host import Recorded
    from linkproof.facts import facts_from

    return facts_from(read_evidence(Recorded(log)))[0]


def _observed(path: str) -> list[Fact]:
    """Facts whose source is the line of the file."""
    from msgspec.structs import replace

    from linkproof.collect.observed import observed
    from linkproof.model import Source
    from linkproof.parse.observations import observations

    read_in = observed(path)
    entries = zip(observations(read_in.data, path), read_in.lines, read_in.texts, strict=True)
    return [replace(fact, source=Source(path, line, text[:300])) for fact, line, text in entries]


def _counted(raw: Raw, progress: Progress) -> Raw:
    if raw.data is not None:
        progress(raw.name, len(raw.data))
        return raw

    def chunks() -> Iterator[bytes]:
        for chunk in raw.chunks():
            progress(raw.name, len(chunk))
            yield chunk

    return raw._replace(chunks=chunks)


def explain_more(diagnosis: Diagnosis, facts: Iterable[Fact]) -> Diagnosis:
    """The same texts, and more facts: an answer to a question."""
    from msgspec.structs import replace

    return replace(diagnose((*diagnosis.facts, *facts), diagnosis.texts), skipped=diagnosis.skipped)


def explain(texts: str | Iterable[str] | Mapping[str, str], observations: Iterable[Mapping[str, Any]] = ()) -> Diagnosis:
    """Diagnose texts that are at hand as strings.

    texts         one text, several, or {name: text}; of any kind, mixed as pasted
    observations  mappings in the words of an observation, e.g. {"check": "model", "split": "none", "result": "ok"}
    Errors        ObservationError for an unknown word
    """
    from linkproof.parse.clean import clean
    from linkproof.parse.observations import observations as facts_of

    if isinstance(texts, str):
        named = {"<text>": texts}
    elif isinstance(texts, Mapping):
        named = dict(texts)
    else:
        named = {f"<text {i}>": text for i, text in enumerate(texts, 1)}
    return explain_texts((clean(name, text) for name, text in named.items()), facts_of(list(observations), "observations"))
