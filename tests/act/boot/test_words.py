"""A kernel command line as words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linkproof.act.text.words import atoms, parsed, splices, with_words, words, words_in

PT = (("iommu=pt",), ("iommu=nopt", "iommu.passthrough=0"))
ACS = "pci=config_acs=x0x00xx@0000:16:00.0"


@pytest.mark.parametrize(
    ("line", "add", "remove", "result"),
    [
        ("ro quiet", *PT, "ro quiet iommu=pt"),
        ("", *PT, "iommu=pt"),
        ("  ro   quiet  \n", *PT, "  ro   quiet iommu=pt  \n"),
        ("ro iommu=nopt quiet", *PT, "ro iommu=pt quiet"),
        ("ro iommu=soft quiet", *PT, "ro iommu=soft,pt quiet"),
        ("iommu=soft,nopt", *PT, "iommu=soft,pt"),
        ("iommu.passthrough=0 quiet iommu=pt", *PT, "quiet iommu=pt"),
        ("intel_iommu=off quiet", *PT, "intel_iommu=off quiet iommu=pt"),
        ("quiet -- iommu=nopt", *PT, "quiet iommu=pt -- iommu=nopt"),
        ("-- single", *PT, "iommu=pt -- single"),
        ("ro iommu.passthrough=off", ("iommu.passthrough=1",), (), "ro iommu.passthrough=1"),
        ("ro nvidia_drm.modeset=0", ("nvidia-drm.modeset=1",), (), "ro nvidia_drm.modeset=1"),
        ("pci=nommconf ro", (ACS,), (), "pci=nommconf,config_acs=x0x00xx@0000:16:00.0 ro"),
        ("pci=noats pci=nommconf", (ACS,), (), "pci=noats pci=nommconf,config_acs=x0x00xx@0000:16:00.0"),
        ("pci=config_acs=1xxxxxx@16:00.0", (ACS,), (), "pci=config_acs=10x00xx@0000:16:00.0"),
        ("pci=config_acs=1@pci:0:0", (ACS,), (), 'pci="config_acs=x0x00xx@0000:16:00.0;1@pci:0:0"'),
        ("a pci=disable_acs_redir=0000:01:00.0", ("pci=disable_acs_redir=0000:02:00.0",), (), 'a pci="disable_acs_redir=0000:01:00.0;0000:02:00.0"'),
        ("console=tty0 console=ttyS0 a", *PT, "console=tty0 console=ttyS0 a iommu=pt"),
        ('dyndbg="file x +p; file y +p" a', *PT, 'dyndbg="file x +p; file y +p" a iommu=pt'),
        ("a amd_iommu=on b", ("amd_iommu=off",), ("amd_iommu=on",), "a amd_iommu=off b"),
        ("quiet nomodeset x=1", (), ("nomodeset",), "quiet x=1"),
        ("nomodeset", (), ("nomodeset",), ""),
        ("a b c", (), ("a", "b"), "c"),
        ("a b c", (), ("b", "c"), "a"),
    ],
)  # fmt: skip
def test_words_go_in_and_out_as_the_kernel_reads_them(line: str, add: tuple[str, ...], remove: tuple[str, ...], result: str) -> None:
    assert with_words(line, add, remove) == result
    assert words_in(result, add, remove)
    assert with_words(result, add, remove) == result


@pytest.mark.parametrize(
    "line",
    [
        "iommu=pt",
        "iommu=soft,pt quiet",
        "iommu=soft iommu=pt",
        '"iommu=pt"',
        'iommu="pt"',
    ],
)
def test_a_word_that_is_there_is_seen_in_any_spelling(line: str) -> None:
    assert words_in(line, *PT)
    assert with_words(line, *PT) == line


@pytest.mark.parametrize(
    "line", ["", "iommu=nopt", "aiommu=pt", "iommu=ptx", "xiommu=pt", "iommu=pt iommu.passthrough=0", "quiet -- iommu=pt"]
)
def test_a_word_that_is_not_in_force_is_not_seen(line: str) -> None:
    assert not words_in(line, *PT)


def test_dash_and_underscore_are_alike_in_a_key_and_not_in_a_value() -> None:
    assert parsed("nvidia-drm.fb-dev=a-b") == ("nvidia_drm.fb_dev", "a-b")
    assert words_in("nvidia_drm.modeset=1", ("nvidia-drm.modeset=1",))
    assert not words_in("x=a_b", ("x=a-b",))


@pytest.mark.parametrize("value", ["1", "y", "Yes", "on", "true"])
def test_a_truth_is_read_as_the_kernel_reads_it(value: str) -> None:
    assert words_in(f"iommu.passthrough={value}", ("iommu.passthrough=1",))
    assert not words_in(f"iommu.passthrough={value}", ("iommu.passthrough=0",))


def test_one_device_is_taken_out_of_an_acs_option_and_the_others_stay() -> None:
    line = 'pci="config_acs=x0x00xx@0000:16:00.0;x0x00xx@0000:17:00.0,nommconf"'
    assert with_words(line, (), (ACS,)) == "pci=config_acs=x0x00xx@0000:17:00.0,nommconf"


WORD = st.sampled_from(
    ["ro", "quiet", "iommu=pt", "iommu=nopt", "iommu=soft,nopt", "iommu.passthrough=0", "pci=nommconf", "intel_iommu=on",
     ACS, 'pci="config_acs=1xxxxxx@0000:17:00.0;x0x00xx@0000:16:00.0"', "console=tty0", 'a="b c"', "root=UUID=1", "nvidia-drm.modeset=1"]
)  # fmt: skip
LINE = st.lists(st.tuples(WORD, st.sampled_from([" ", "  ", "\t"])), max_size=8).map(lambda parts: "".join(w + s for w, s in parts))
ADD = st.lists(
    st.sampled_from(["iommu=pt", "iommu.passthrough=1", ACS, "pci=disable_acs_redir=0000:16:00.0", "intel_iommu=off"]),
    max_size=3,
    unique=True,
)
REMOVE = st.lists(st.sampled_from(["iommu=nopt", "intel_iommu=on", "quiet"]), max_size=2, unique=True)


@settings(max_examples=300, deadline=None)
@given(LINE, ADD, REMOVE)
def test_again_changes_nothing_and_strangers_stay_in_order(line: str, add: list[str], remove: list[str]) -> None:
    once = with_words(line, add, remove)
    assert splices(once, add, remove) == []
    touched = {parsed(word)[0] for word in (*add, *remove)}
    assert [(w.key, w.value) for w in words(once) if w.key not in touched] == [
        (w.key, w.value) for w in words(line) if w.key not in touched
    ]


@settings(max_examples=300, deadline=None)
@given(LINE, ADD, REMOVE)
def test_what_changed_is_told_by_the_difference_and_goes_back_by_it(line: str, add: list[str], remove: list[str]) -> None:
    once = with_words(line, add, remove)
    had, has = atoms(line), atoms(once)
    back = with_words(once, list((had - has).elements()), list((has - had).elements()))
    assert set(atoms(back)) == set(had)
