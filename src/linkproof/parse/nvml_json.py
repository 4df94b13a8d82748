"""NVML's answers (the JSON of `collect/nvml.py`) -> facts.

In:      one JSON object on one line, `{"driver": ..., "gpus": [...], "p2p": {...}}` or `{"error": ...}`.
Out:     Versions, Gpu (names, BAR1, ECC, display, MIG, NVLink errors and checksums), PeerAccess in all, Topo of pairs that NVLink joins, Platform, Events.
Unknown: what a card did not say is not in the JSON and gives no fact.
Raises:  ParseError if the line is no such object.
Source:  NVML API reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from linkproof.errors import ParseError
from linkproof.model import Event, Fact, Gpu, PeerAccess, Platform, Seen, Source, Text, Topo, Versions
from linkproof.parse.spans import bdf

ANCHORS = ('"gpus": [', '"error": "')
KEEP = (0, 0)
NAME = "NVML"
MIB = 1 << 20
MANY_REPLAYS = 100  # as for `nvidia-smi -q`: single ones happen on good links


_LOST = ("gpu is lost", "fallen off the bus")


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    if text.name != NAME:
        return
    line = text.lines[hits[0]]
    said = _object(line.text)
    if "error" in said:
        yield from _error(str(said["error"]), text.name)
        return
    yield Seen(source=Source(text.name, line.no, ""), kind="NVML")
    yield from _facts(said, text.name)


def names(text: str) -> dict[str, str]:
    """Address -> name of each card, of the JSON; {} if it holds none."""
    try:
        cards = _cards(_object(text))
    except ParseError:
        return {}
    return {bdf(str(g.get("pci", ""))): str(g["name"]) for g in cards if g.get("name") and bdf(str(g.get("pci", "")))}


def _object(words: str) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(words.encode())
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as e:
        raise ParseError(str(e)) from None
    if not isinstance(said, dict):
        raise ParseError("not an object")
    return said


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _cards(said: dict[str, Any]) -> list[dict[str, Any]]:
    gpus = said.get("gpus")
    return [g for g in gpus if isinstance(g, dict)] if isinstance(gpus, list) else []


def _error(why: str, name: str) -> Iterator[Fact]:
    where = Source(name, 1, why[:300])
    if "version mismatch" in why.lower():
        yield Event(source=where, kind="driver_mismatch", value=why[:100])
    elif "driver not loaded" in why.lower():
        yield Event(source=where, kind="no_cuda_device", value=why[:100])


def _facts(said: dict[str, Any], name: str) -> Iterator[Fact]:
    def at(words: str) -> Source:
        return Source(name, 1, words[:300])

    gpus, driver, cuda = _cards(said), said.get("driver"), said.get("cuda")
    cuda_version = f"{cuda // 1000}.{cuda % 1000 // 10}" if isinstance(cuda, int) else ""
    if driver or cuda_version:
        yield Versions(source=at(f"driver {driver}"), driver=str(driver or ""), cuda=cuda_version)
    models = [str(g["name"]) for g in gpus if g.get("name")]
    for model in dict.fromkeys(models):
        yield Gpu(source=at(f"{models.count(model)} x {model}"), name=model, count=models.count(model))
    if len(set(models)) > 1:
        yield Gpu(source=at(", ".join(dict.fromkeys(models))), fact="mixed_models", count=len(models))
    for g in gpus:
        yield from _card(g, at)
    for who, why in _dict(said.get("errors")).items():
        if any(words in str(why).lower() for words in _LOST) and "p2p" not in who:
            yield Event(source=at(f"{who}: {why}"), kind="gpu_fell_off", value=who[:20])
    if any(g.get("virtualization") == 1 for g in gpus):
        yield Platform(source=at("virtualization mode: passthrough"), kind="vm", note="GPU passed through")
    yield from _pairs(_dict(said.get("p2p")), at)
    yield from _joined(_dict(_dict(said.get("p2p")).get("nvlink")), gpus, at)


def _card(g: dict[str, Any], at: Callable[[str], Source]) -> Iterator[Fact]:
    who = f"GPU{g.get('index')} {bdf(str(g.get('pci', '')))}".strip()
    bar1, memory = g.get("bar1_B"), g.get("memory_B")
    if isinstance(bar1, int) and isinstance(memory, int) and memory:
        value = f"{bar1 // MIB} MiB of {memory // MIB} MiB"
        yield Gpu(source=at(f"{who}: BAR1 {value}"), fact="bar1_covers_vram" if bar1 >= memory else "bar1_smaller_than_vram", value=value)
    if g.get("ecc_uncorrected") or g.get("remap_failed"):
        words = f"{who}: {g.get('ecc_uncorrected', 0)} uncorrected, remap failed: {g.get('remap_failed', False)}"
        yield Gpu(source=at(words), fact="ecc_errors", value=str(g.get("ecc_uncorrected", 0)))
    if g.get("mig") == 1:
        yield Gpu(source=at(f"{who}: MIG on"), fact="mig")
    replays = g.get("pcie_replays")
    if isinstance(replays, int) and replays >= MANY_REPLAYS:
        yield Event(source=at(f"{who}: {replays} replays"), kind="pcie_replays", value=f"{who}: {replays}")
    yield from _links(_dict(g.get("nvlinks")), who, at)
    fabric = _dict(g.get("fabric"))
    if fabric.get("state") in (1, 2) or (fabric.get("state") == 3 and fabric.get("status")):
        yield Event(source=at(f"{who}: fabric state {fabric}"), kind="fabric_not_ready")
    width, best = g.get("pcie_width"), g.get("pcie_width_max")
    if isinstance(width, int) and isinstance(best, int) and 0 < width < best:
        yield Event(source=at(f"{who}: x{width} of x{best}"), kind="link_downgraded", value=f"{who} x{width} of x{best}")


def _links(said: dict[str, Any], who: str, at: Callable[[str], Source]) -> Iterator[Fact]:
    """Links that are down beside others that are up (a card whose links are all down has no bridge on it), and error counters.

    A damaged packet is sent again, so damaged packets alone (`crc_flit`) are no fault yet: nvlink_crc. `crc_data` says nothing: on two H200
    whose every byte arrived right and at full speed, 35 of 36 links counted some before any traffic (up to 32, one rose to 442 under
    200 GB), while `nvidia-smi nvlink -e` printed 0 replays, 0 recoveries and 0 CRC errors for all of them (driver 580.159.04).
    """
    links = {number: _dict(link) for number, link in said.items()}
    active = [number for number, link in links.items() if link.get("active")]
    if active and len(active) < len(links):
        down = ", ".join(number for number in links if number not in active)
        yield Event(source=at(f"{who}: links {down} inactive"), kind="nvlink_down", value=f"{who} links {down}")
    for number, link in links.items():
        for fact, words in (("nvlink_errors", ("replay", "recovery")), ("nvlink_crc", ("crc_flit",))):
            if counted := " ".join(f"{k}={link[k]}" for k in words if link.get(k)):
                value = f"{who} link {number}: {counted}"
                yield Gpu(source=at(value), fact=fact, value=value)


def _pairs(p2p: dict[str, Any], at: Callable[[str], Source]) -> Iterator[Fact]:
    for word in ("read", "write"):
        answers = [str(status) for status in _dict(p2p.get(word)).values()]
        told = [status for status in answers if status != "U"]  # not known is no answer
        if not told:
            continue
        good = told.count("OK")
        claimed = "all" if good == len(answers) else "some" if good else "none"
        status = next((s for s in told if s != "OK"), "OK")
        yield PeerAccess(source=at(f"P2P {word}: {good} of {len(answers)} ordered pairs, {status}"), claimed=claimed, status=status)


def _joined(answers: dict[str, Any], gpus: list[dict[str, Any]], at: Callable[[str], Source]) -> Iterator[Fact]:
    """Pairs between which the driver says OK to NVLink, where both cards have active links.

    Two cards: all that are active join them, over a switch or a bridge. Among more the other end of a link is not told, so neither is the
    number (over a switch it is all of them, in a mesh of four A100 a third).
    """
    active = {str(g.get("index")): sum(bool(_dict(link).get("active")) for link in _dict(g.get("nvlinks")).values()) for g in gpus}
    found = []
    for pair, status in answers.items():
        a, _, b = pair.partition("-")
        links = min(active.get(a, 0), active.get(b, 0))
        if status == "OK" and a.isdecimal() and b.isdecimal() and int(a[:4]) < int(b[:4]) and links:
            found.append(pair)
            yield Topo(source=at(f"NVLink {pair}: OK"), path="NV", pairs=pair, links=links if len(gpus) == 2 else 0)
    if found and len(found) == len(gpus) * (len(gpus) - 1) // 2:
        yield Topo(source=at(f"NVLink: {len(found)} of {len(found)} pairs, OK"), path="NV", pairs="all")
