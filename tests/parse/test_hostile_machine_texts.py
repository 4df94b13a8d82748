"""Whatever the text, the parsers of the machine's texts end without an error, and in a time that grows with the text only."""

from __future__ import annotations

from importlib import import_module
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linkproof.model import Fact, Line, Text

PARSERS = (
    "collect_env", "environ", "fabric_manager", "host_limits", "iommu_sysfs", "kernel_cmdline", "kernel_iommu", "kernel_log", "lspci",
    "nvidia_smi", "nvidia_smi_nvlink", "nvidia_smi_query", "nvidia_smi_topo", "p2p_bandwidth", "peer_tests", "platform_signs", "rocm_smi",
)  # fmt: skip
PIECES = (
    "GPU0", "GPU1\t", " X ", "PIX", "OK", "00:01.0 ", "0000:0a:00.0: ", "PCI bridge: a", "VGA compatible controller: NVIDIA Corporation [A 1]", "=", "1", "0",
    "99999999999999999999", "-1", "nan", "\t", "  ", "|", "\"", "'", ":", "/", "\\", "\x1b[4m", "MiB / ", "W / ", "%", "Default", " : ", "\u00e9", "N/A", "unlimited",
    "type", "total 0", "secondary=ff, subordinate=00", "Width x16", "[size=256M]", "00: 00 ff", "shm   64M", "size: 0 MB", "cpus: 1", "true", "Errors: 5",
)  # fmt: skip


def parse(name: str, lines: list[str]) -> list[Fact]:
    module = import_module(f"linkproof.parse.{name}")
    text = Text("hostile", [Line(number, words) for number, words in enumerate(lines, 1)], len(lines))
    hits = [index for index, words in enumerate(lines) if any(anchor in words for anchor in module.ANCHORS)]
    return list(module.parse(text, hits)) if hits else []


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
def test_any_mixture_of_words_is_read_without_an_error(name: str, data: st.DataObject) -> None:
    anchors = import_module(f"linkproof.parse.{name}").ANCHORS
    line = st.lists(st.one_of(st.sampled_from(anchors), st.sampled_from(PIECES), st.text(max_size=8)), max_size=9).map("".join)
    lines = [words.replace("\n", " ") for words in data.draw(st.lists(line, min_size=1, max_size=12))]
    for fact in parse(name, lines):
        assert fact.source.file == "hostile" and 1 <= fact.source.line <= len(lines)


@pytest.mark.parametrize("name", PARSERS)
def test_twice_the_text_takes_about_twice_the_time(name: str) -> None:
    anchors = import_module(f"linkproof.parse.{name}").ANCHORS

    def took_s(lines: int) -> float:
        words = [f"{anchors[n % len(anchors)]} {PIECES[n % len(PIECES)]} 0000:{n % 256:02x}:00.0 {n}" for n in range(lines)]
        start = perf_counter()
        parse(name, words)
        return perf_counter() - start

    took_s(200)  # patterns are compiled at their first use
    small, large = min(took_s(1500) for _ in range(2)), min(took_s(6000) for _ in range(2))
    assert large < 12 * small + 0.2  # four times the lines; a quadratic parser needs sixteen


@pytest.mark.parametrize("name", PARSERS)
def test_one_very_long_line_is_looked_at_in_part(name: str) -> None:
    anchors = import_module(f"linkproof.parse.{name}").ANCHORS
    start = perf_counter()
    for anchor in anchors[:6]:
        parse(name, [anchor * 40_000, (anchor + " ") * 40_000, anchor + "9" * 400_000])
    assert perf_counter() - start < 10
