"""A file of observations is read word for word, with the line of each entry, and nothing in it can do harm."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import pytest

from linkproof.collect.observed import MOST_B, observed
from linkproof.errors import InputError


def _read(tmp_path: Path, text: str | bytes) -> tuple[object, list[int]]:
    path = tmp_path / "seen.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    found = observed(str(path))
    return found.data, found.lines


def test_words_stay_as_they_are_written(tmp_path: Path) -> None:
    data, _ = _read(tmp_path, "- {check: versions, cuda: 12.10, driver: 0535.1}\n- {check: acs, redirect: off}\n")
    assert data == [{"check": "versions", "cuda": "12.10", "driver": "0535.1"}, {"check": "acs", "redirect": "off"}]


def test_true_and_false_are_on_and_off_unless_quoted(tmp_path: Path) -> None:
    data, _ = _read(tmp_path, "- {a: true, b: no, c: 'no', d: ~, e: }\n")
    assert data == [{"a": "on", "b": "off", "c": "no", "d": "", "e": ""}]


def test_each_entry_knows_its_line(tmp_path: Path) -> None:
    _, lines = _read(tmp_path, "# tried\n\n- check: gpu\n  name: RTX 4090\n\n- {check: acs, redirect: on}\n")
    assert lines == [3, 6]


def test_json_is_read_too(tmp_path: Path) -> None:
    assert _read(tmp_path, '[{"check": "gpu", "count": 4}]')[0] == [{"check": "gpu", "count": "4"}]


def test_a_list_as_a_value_becomes_one_word(tmp_path: Path) -> None:
    assert _read(tmp_path, "- {check: model, gpus: [0, 1]}")[0] == [{"check": "model", "gpus": "0,1"}]


def test_an_empty_file_is_no_observations(tmp_path: Path) -> None:
    assert _read(tmp_path, "") == (None, [])
    assert _read(tmp_path, "# nothing yet\n") == (None, [])


@pytest.mark.parametrize(
    "text", ["{check: gpu", "- a\n b: - c\n\t", "[" * 100_000, "- {a: " + "[" * 50_000 + "]" * 50_000 + "}", "a: *nobody"]
)
def test_what_is_no_yaml_is_refused_with_its_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no YAML at line"):
        _read(tmp_path, text)


def test_aliases_of_aliases_cost_nothing(tmp_path: Path) -> None:
    rows = ["- &a [x, x, x, x, x, x, x, x, x]"] + [
        f"- &{b} [{', '.join(['*' + a] * 9)}]" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
    ]
    start = monotonic()
    _read(tmp_path, "\n".join(rows))
    assert monotonic() - start < 5


def test_a_tag_makes_no_object(tmp_path: Path) -> None:
    data, _ = _read(tmp_path, "- !!python/object/apply:os.system ['touch " + str(tmp_path / "made") + "']\n- {a: !!int x}\n")
    assert not (tmp_path / "made").exists()
    assert isinstance(data, list) and data[1] == {"a": "x"}


def test_half_characters_and_bytes_that_are_no_text_do_not_get_through(tmp_path: Path) -> None:
    data, _ = _read(tmp_path, b'- {a: "\\ud800", b: "\xff"}\n')
    str(data).encode()
    assert isinstance(data, list)


def test_a_file_that_is_too_big_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="256 KiB"):
        _read(tmp_path, "#" * (MOST_B + 1))


@pytest.mark.parametrize("path", ["/no/such/file", "/", "a\0b"])
def test_a_path_that_cannot_be_read_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        observed(path)
