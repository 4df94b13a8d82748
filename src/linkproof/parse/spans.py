"""Small helpers of the parsers that read blocks of lines. Not a parser itself."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.parse.rules import rx

_ANSI = r"(?:\x1b|\^\[|\\033|\\x1b|\\e)?\[[0-9;]{0,12}[mK]"


def windows(hits: list[int], before: int, after: int, size: int) -> Iterator[range]:
    """Runs of line indexes around the hits, merged, so that no line is visited twice however many hits there are."""
    start, stop = -1, -1
    for hit in hits:
        low, high = max(0, hit - before), min(size, hit + after + 1)
        if low <= stop:
            stop = max(stop, high)
            continue
        if stop > start >= 0:
            yield range(start, stop)
        start, stop = low, high
    if stop > start >= 0:
        yield range(start, stop)


def bdf(words: str) -> str:
    """`00000000:0A:00.0` -> `0000:0a:00.0`; `0A:00.0` -> `0a:00.0`; `PCI:0000:03:00` -> `0000:03:00.0`; else ""."""
    found = rx(r"(?i)(?:\b([0-9a-f]{4,8}):)?\b([0-9a-f]{2}):([0-9a-f]{2})(?:\.([0-7]))?(?:$|[^0-9a-f.:])").search(words[:120])
    if found is None:
        return ""
    domain, bus, device, function = found.groups()
    if domain is None and function is None:
        return ""  # `12:34` may be a clock
    if domain is not None:
        domain = domain.lower()
        domain = domain[-4:] if domain[:-4].strip("0") == "" else domain
    name = f"{bus.lower()}:{device.lower()}.{function or '0'}"
    return f"{domain}:{name}" if domain else name


def without_ansi(words: str) -> str:
    """Drops colour and underline codes, also when the escape character itself was lost in a paste (`[4mGPU0`)."""
    if "[" not in words:
        return words
    out, at = [], 0
    for code in rx(_ANSI).finditer(words):
        out.append(words[at : code.start()])
        at = code.end()
    out.append(words[at:])
    return "".join(out)
