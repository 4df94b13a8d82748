"""A report says the same in every form, keeps to its width, shows no secret, and its JSON keeps its contract."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import linkproof.report.contract as contract
from linkproof.diagnose import diagnose
from linkproof.explaining import explain, explain_inputs
from linkproof.model import Consumer, Diagnosis, Event, Fact, Next, NotChecked, Note, Sign, Source, Weighed
from linkproof.report.contract import Report, as_json, report_of
from linkproof.report.layout import Piece, plain, width_of, wrapped
from linkproof.report.markdown import code, markdown
from linkproof.report.masking import masked
from linkproof.report.pages import bullets, first_paragraph, page
from linkproof.report.text import text
from linkproof.report.words import band, percent

CASES = Path(__file__).parent / "cases"
SCHEMA = Path(contract.__file__).with_name("explain.schema.json")
IOMMU = "[11.8] nvidia 0000:0a:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000f address=0xea13a000 flags=0x0020]"
SPLIT_FAILS = ({"check": "model", "split": "none", "result": "ok"}, {"check": "model", "split": "pipeline", "result": "garbage"})


def _case(name: str) -> Diagnosis:
    observations = CASES / name / "observations.yaml"
    evidence = [str(path) for path in [CASES / name / "evidence"] if path.exists()]
    return explain_inputs(evidence, observations_file=str(observations) if observations.exists() else None)


def _cause(name: str, confidence: float, state: str, signs: tuple[Sign, ...] = ()) -> Weighed:
    return Weighed(name, "fabric", 1.0, confidence, state, signs)


def _text(report: Report, lang: str = "en", width: int = 100, say_all: bool = False) -> str:
    return plain(text(report, lang, width, say_all))


def _many_signs(n: int) -> Diagnosis:
    signs = tuple(Sign(True, 5 - i / 10, f"reason number {i} of them", Source("a.log", i + 1, f"line {i}")) for i in range(n))
    return Diagnosis("faulty", (_cause("acs_redirect", 0.8, "likely", signs),), texts=(("a.log", 90),))


# ---------------------------------------------------------------- JSON


def test_the_shipped_schema_is_the_one_that_the_types_make() -> None:
    if os.environ.get("UPDATE_EXPECTED"):
        SCHEMA.write_text(contract.schema(), encoding="utf-8")
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json.loads(contract.schema()), "run with UPDATE_EXPECTED=1"


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("name", sorted(path.name for path in CASES.glob("c-0[1-4]*")))
def test_the_json_of_a_recorded_case_keeps_the_schema(name: str, lang: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    answer = json.loads(as_json(report_of(_case(name), lang)))
    jsonschema.validate(answer, json.loads(SCHEMA.read_text(encoding="utf-8")), cls=jsonschema.Draft202012Validator)
    assert answer["schema"] == 1


def test_the_schema_refuses_an_answer_without_a_verdict() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    answer = json.loads(as_json(report_of(explain(IOMMU), "en")))
    del answer["verdict"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(answer, json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_the_same_texts_give_the_same_bytes() -> None:
    assert as_json(report_of(explain(IOMMU, SPLIT_FAILS), "en")) == as_json(report_of(explain(IOMMU, SPLIT_FAILS), "en"))


def test_ruled_out_causes_come_last_and_the_others_best_first() -> None:
    causes = (_cause("firewall", 0.0, "ruled_out"), _cause("acs_redirect", 0.6, "likely"), _cause("bar1_too_small", 0.2, "possible"))
    report = report_of(Diagnosis("faulty", causes), "en")
    assert [cause.id for cause in report.causes] == ["acs_redirect", "bar1_too_small", "firewall"]


def test_a_ruled_out_cause_gives_no_advice() -> None:
    report = report_of(Diagnosis("cannot_tell", (_cause("acs_redirect", 0.0, "ruled_out"), _cause("firewall", 0.2, "possible"))), "en")
    advice = {cause.id: bool(cause.fix or cause.workaround) for cause in report.causes}
    assert advice == {"acs_redirect": False, "firewall": True}


def test_a_decisive_sign_stands_before_a_heavier_one() -> None:
    signs = (Sign(True, 5.0, "heavy", Source("a", 1)), Sign(True, 1.0, "decisive", Source("a", 2), {}, True))
    report = report_of(Diagnosis("faulty", (_cause("acs_redirect", 0.9, "confirmed", signs),)), "en")
    assert [sign.text for sign in report.causes[0].signs] == ["decisive", "heavy"]


def test_a_text_in_which_nothing_was_found_is_said_to_be_not_recognised() -> None:
    report = report_of(explain({"a.log": IOMMU, "b.txt": "the weather is fine"}), "en")
    assert {read.name: read.recognised for read in report.texts} == {"a.log": True, "b.txt": False}


# ---------------------------------------------------------------- text


def test_the_sections_come_in_the_order_in_which_a_person_asks() -> None:
    source = Source("a.log", 3, "the line")
    signs = (Sign(True, 4.0, "it speaks for it", source), Sign(False, 1.0, "it speaks against it", source))
    other = _cause("bar1_too_small", 0.2, "possible", (Sign(True, 1.0, "another reason", source),))
    out = _cause("firewall", 0.0, "ruled_out", (Sign(False, 4.0, "one host only", source),))
    diagnosis = Diagnosis(
        "faulty",
        (_cause("acs_redirect", 0.7, "likely", signs), other, out),
        next=(Next("a question?", ("acs_redirect", "bar1_too_small")),),
        not_checked=(NotChecked("acs_redirect", "a gap", do="lspci"),),
        notes=(Note("a note", source),),
        texts=(("a.log", 9),),
        skipped=(("core.1", "a core dump", "核心转储"),),
    )
    said = _text(report_of(diagnosis, "en"))
    heads = ["Likely cause", "Why", "What speaks against it", "What to do now", "What mends it for good", "What else it could be",
             "Often suspected", "What would make it certain", "Worth knowing", "Not checked", "Read: 1 text, 9 lines", "Not read: core.1"]  # fmt: skip
    places = [said.index(head) for head in heads]
    assert places == sorted(places)


def test_the_verdict_is_the_first_line_and_names_cause_and_confidence() -> None:
    first = _text(report_of(explain(IOMMU, SPLIT_FAILS), "en")).splitlines()[0]
    assert page("iommu_translation", "en").title in first and first.endswith("%)")


def test_a_sign_cites_file_and_line() -> None:
    said = _text(report_of(explain({"logs/dmesg.txt": "\n\n" + IOMMU}, SPLIT_FAILS), "en"))
    assert "dmesg.txt:3  [11.8] nvidia 0000:0a:00.0" in said


def test_two_files_of_one_name_are_cited_by_their_paths() -> None:
    said = _text(report_of(explain({"a/dmesg": IOMMU, "b/dmesg": IOMMU}, SPLIT_FAILS), "en"))
    assert "a/dmesg:1" in said


def test_a_long_list_of_signs_is_cut_and_says_how_many_are_left() -> None:
    said = _text(report_of(_many_signs(9), "en"))
    assert "reason number 5" in said and "reason number 6" not in said
    assert "... and 3 more (--all)" in said


def test_all_shows_every_sign_and_whole_lines() -> None:
    long_line = "x" * 120 + " the end"
    diagnosis = _many_signs(9)
    report = report_of(
        Diagnosis("faulty", (*diagnosis.causes, _cause("firewall", 0.1, "possible", (Sign(True, 1.0, "a", Source("b", 1, long_line)),)))),
        "en",
    )
    said = _text(report, say_all=True)
    assert "reason number 8" in said and "(--all)" not in said


def test_a_cited_line_takes_two_rows_at_most_unless_all_is_wanted() -> None:
    sign = Sign(True, 4.0, "a sign", Source("a.log", 1, "word " * 55 + "END"))
    report = report_of(Diagnosis("faulty", (_cause("acs_redirect", 0.7, "likely", (sign,)),)), "en")
    assert "END" not in _text(report) and "…" in _text(report)
    assert "END" in _text(report, say_all=True)


def test_an_open_verdict_gives_no_cure() -> None:
    report = report_of(Diagnosis("cannot_tell", (_cause("acs_redirect", 0.3, "possible"),)), "en")
    said = _text(report)
    assert "Cannot tell yet. Leading: " in said
    assert "What mends it for good" not in said and "Worth trying meanwhile" in said


def test_without_a_leader_nothing_is_called_leading() -> None:
    said = _text(report_of(Diagnosis("cannot_tell", (_cause("acs_redirect", 0.02, "possible"),)), "en"))
    assert "Leading" not in said and "What it could be" in said


def test_nothing_recognised_is_not_called_healthy() -> None:
    said = _text(report_of(explain("the weather is fine"), "en"))
    assert "That is not a sign of health" in said and "Healthy" not in said


def test_healthy_is_said_only_of_a_healthy_verdict() -> None:
    observations = (
        {"check": "copy", "via": "peer", "result": "ok", "pairs": "all"},
        {"check": "collective", "engine": "nccl", "result": "ok"},
    )
    assert _text(report_of(explain([], observations), "en")).startswith("Healthy: ")


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("width", [40, 72, 100])
@pytest.mark.parametrize("name", ["c-018-pytorch87363", "c-057-pytorch13045", "c-102-productionstack276"])
def test_no_row_is_wider_than_asked_but_commands_that_are_copied(name: str, width: int, lang: str) -> None:
    rows = _text(report_of(_case(name), lang), lang, width).splitlines()
    wide = [row for row in rows if width_of(row) > width and not row.lstrip().startswith("$ ")]
    assert wide == []


@pytest.mark.parametrize("name", ["c-018-pytorch87363", "c-057-pytorch13045", "c-102-productionstack276"])
def test_a_usual_report_fits_on_a_page_or_two(name: str) -> None:
    assert 20 <= len(text(report_of(_case(name), "en"), "en")) <= 70


def test_every_form_names_the_same_causes() -> None:
    report = report_of(_case("c-018-pytorch87363"), "en")
    titles = [cause.title for cause in report.causes]
    said, marked, data = _text(report, width=1000, say_all=True), markdown(report, "en", "1"), json.loads(as_json(report))
    assert [title for title in titles if title not in said or title not in marked] == []
    assert [cause["title"] for cause in data["causes"]] == titles


def test_the_chinese_report_has_no_english_sentence_left() -> None:
    said = _text(report_of(_case("c-018-pytorch87363"), "zh"), "zh")
    assert not [
        line for line in said.splitlines() if line and not line.lstrip().startswith(("$", "0", "p2p")) and line.isascii() and ". " in line
    ]
    assert said.splitlines()[0].startswith(("很可能的原因", "已确认的原因"))


def test_how_strong_a_sign_is_shows_without_colour() -> None:
    def sign(speaks_for: bool, weight: float, decisive: bool = False) -> str:
        return band(contract.SignSaid(speaks_for, weight, "", contract.Cite("", 0, ""), decisive))

    assert [sign(True, 0.7), sign(True, 2.0), sign(True, 4.0), sign(True, 0.1, True)] == ["+", "++", "+++", "+++"]
    assert [sign(False, 0.7), sign(False, 2.0), sign(False, 4.0)] == ["-", "--", "---"]


def test_nothing_is_ever_a_hundred_percent() -> None:
    assert [percent(1.0), percent(0.782), percent(0.001)] == ["99 %", "78 %", "< 1 %"]


def test_engines_are_a_table_only_where_a_setting_helps_one() -> None:
    cause = (_cause("acs_redirect", 0.8, "likely"),)
    switch = Diagnosis("faulty", cause, consumers={"vllm": Consumer("at_risk", ("A=1",)), "llama.cpp": Consumer("not_reached")})
    none = Diagnosis("faulty", cause, consumers={"vllm": Consumer("at_risk"), "llama.cpp": Consumer("not_reached")})
    assert "vllm          set now: `A=1`" in _text(report_of(switch, "en"))
    assert "Reaches vllm. Does not reach llama.cpp." in _text(report_of(none, "en"))


# ---------------------------------------------------------------- secrets and hostile words

SECRETS = {
    "HF_TOKEN=hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123": "AbCdEfGhIj",
    "export OPENAI_API_KEY=sk-proj-abcdefghijklmnopqrst": "abcdefghijklm",
    "remote: ghp_abcdefghijklmnopqrstuvwxyz0123456789": "abcdefghijk",
    "github_pat_11AAAAAAA0abcdefghijkl_mnop": "abcdefghijkl",
    "AWS key AKIAIOSFODNN7EXAMPLE used": "IOSFODNN7",
    "Authorization: Bearer abcdef.ghijkl-mnopqr": "ghijkl",
    "git clone https://me:hunter2hunter2@example.org/x": "hunter2",
    'password: "correcthorsebattery"': "correcthorse",
    "NGC nvapi-abcdefghijklmnop_qrstu": "abcdefghijkl",
    "WANDB_API_KEY=0123456789abcdef0123456789abcdef01234567": "89abcdef",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc": "IUzI1NiJ9",
}


@pytest.mark.parametrize(("line", "secret"), SECRETS.items())
def test_a_secret_is_masked_in_every_form(line: str, secret: str) -> None:
    signs = (Sign(True, 4.0, "a value {value}", Source("a.log", 1, line), {"value": line}),)
    diagnosis = Diagnosis("faulty", (_cause("acs_redirect", 0.7, "likely", signs),), notes=(Note("a note", Source("a.log", 1, line)),))
    report = report_of(diagnosis, "en")
    for form in (_text(report), _text(report, say_all=True), markdown(report, "en", "1"), as_json(report)):
        assert secret not in form and "***" in form


@pytest.mark.parametrize(
    "line",
    ["pad_token=0 max_tokens=4096", "tokenizer: LlamaTokenizerFast", "hf_hub_download failed", "NCCL_P2P_LEVEL=SYS", "token id 151936 > 151643",
     "key_states = past_key_value", "https://example.org:8080/x"],
)  # fmt: skip
def test_what_is_no_secret_stays(line: str) -> None:
    assert masked(line) == line


def test_a_token_that_was_cut_with_its_line_is_masked_too() -> None:
    assert masked("x" * 290 + " hf_AbCdEfG").endswith(" hf_***")


def test_nothing_in_a_line_steers_the_terminal() -> None:
    assert masked("a\x1b[2Jb\x07\u202ec\td") == "a[2Jbc d"


def test_a_cited_line_cannot_end_its_code_in_markdown() -> None:
    assert code("a ``b`` c") == "```a ``b`` c```"
    assert code("`x") == "`` `x ``"


def test_markdown_keeps_tags_and_mentions_of_the_text_inert() -> None:
    signs = (Sign(True, 4.0, "a value {value}", Source("a.log", 1, "<img src=x> @someone"), {"value": "<b>@someone</b> `"}),)
    said = markdown(report_of(Diagnosis("faulty", (_cause("acs_redirect", 0.7, "likely", signs),)), "en"), "en", "1")
    assert "`<img src=x> @someone`" in said
    assert "value <b>" not in said and "\\<b>@\u200bsomeone" in said


# ---------------------------------------------------------------- pieces


def test_chinese_is_broken_between_characters_and_never_before_punctuation() -> None:
    rows = plain(wrapped([Piece("在翻译模式下，IOMMU 会丢弃数据。这里是第二句。")], 14)).splitlines()
    assert all(width_of(row) <= 14 for row in rows)
    assert not [row for row in rows if row[:1] in "，。"]
    assert "".join(rows).replace(" ", "") == "在翻译模式下，IOMMU会丢弃数据。这里是第二句。"


def test_a_command_is_not_torn_if_it_fits_on_a_line() -> None:
    rows = plain(wrapped([Piece("then run `sudo lspci -Dvvv` as root")], 24)).splitlines()
    assert rows == ["then run", "`sudo lspci -Dvvv` as", "root"]


def test_a_word_wider_than_a_line_is_split() -> None:
    assert max(map(len, plain(wrapped([Piece("a" * 95)], 40, 2)).splitlines())) == 40


def test_a_bullet_over_several_lines_is_one_bullet() -> None:
    assert bullets(["- one", "  goes on", "- two", "", "no bullet"]) == ("one goes on", "two")
    assert bullets(["- 第一行", "  接着写"]) == ("第一行接着写",)


def test_the_first_paragraph_ends_at_a_blank_line() -> None:
    assert first_paragraph(["", "One", "sentence.", "", "More."]) == "One sentence."


def test_a_cause_without_a_page_is_called_by_its_id() -> None:
    assert page("no_such_cause", "zh").title == "no_such_cause"


def test_a_diagnosis_of_no_facts_can_be_shown_in_every_form() -> None:
    facts: list[Fact] = [Event(source=Source("a", 1), kind="graph_capture")]
    for diagnosis in (diagnose([]), diagnose(facts)):
        report = report_of(diagnosis, "zh")
        forms: list[Any] = [_text(report, "zh"), markdown(report, "zh", "1"), as_json(report)]
        assert all(forms)
