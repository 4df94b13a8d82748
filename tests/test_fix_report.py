"""What `fix` says: the JSON keeps its schema, the text says the same, and no state, risk or change is without words in both languages."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from linkproof.mending import (
    RISKS,
    STANDS,
    STEP_STATES,
    UNDO_STATES,
    Change,
    ChangeStands,
    ChangeUndone,
    Command,
    ConfigWord,
    Plan,
    Proved,
    Refusal,
    Sentence,
    Step,
    StepDone,
    Symlink,
    SysfsText,
    TextFile,
)
from linkproof.model import Consumer
from linkproof.report import fix, fix_words
from linkproof.report.fix import AppliedSaid, FixSaid, Maker, NextSaid, RolledBackSaid, StatusSaid
from linkproof.report.fix_text import pairs_words, text
from linkproof.report.layout import plain, width_of
from linkproof.report.say import Teller, catalogue

SCHEMA = Path(fix.__file__).with_name("fix.schema.json")
A, B = "0000:43:00.0", "0000:44:00.0"
BOTH = ((A, B), (B, A))
PORT = ConfigWord("0000:42:00.0", 0x156, 0x2C, 0, "1000:c030 pci0000:40/0000:40:01.1/0000:41:00.0/0000:42:00.0")
CHANGES: tuple[Change, ...] = (
    PORT,
    ConfigWord("0000:42:00.0", 0x50, 0x3, 0x1, "1000:c030 x", 0x10, 0x10),
    SysfsText("/sys/kernel/iommu_groups/7/type", "identity"),
    TextFile("/etc/default/grub", "grub", ("iommu=pt",), ("iommu=nopt",)),
    TextFile("/etc/linkproof/persist.json", "whole", content="{}\n"),
    Symlink("/etc/systemd/system/multi-user.target.wants/x.service", "../x.service"),
    Command(("update-grub",), (), ("/boot/grub/grub.cfg",)),
)
ENGINES = {"transformers": Consumer("at_risk", (), ("push",)), "torchrun": Consumer("safe_with", ("NCCL_P2P_DISABLE=1",), ("nccl",))}


def step(name: str = "acs-switch", **fields: Any) -> Step:
    given: dict[str, Any] = {
        "id": name, "what": Sentence("let packets turn round below {port}", {"port": "0000:42:00.0"}), "finding": "acs_redirect",
        "why": (Sentence("push is slow"),), "lasts": "until_reboot", "effect": "now", "undo": Sentence("the former word comes back"),
        "by_hand": ("sudo setpci -s 0000:42:00.0 ECAP_ACS+6.w=0:2c",), "changes": (PORT,), "pairs": BOTH, **fields,
    }  # fmt: skip
    return Step(**given)


GUEST = Refusal("vfio", Sentence("{bdf} is held by vfio-pci", {"bdf": "0000:45:00.0"}))
LOCKED = Refusal("lockdown", Sentence("the kernel is locked down"))
PLAN = Plan(
    (
        step(changes=CHANGES),
        step("iommu-passthrough", finding="iommu_translation", refusals=(GUEST,), effect="reboot", lasts="for_good", unless="acs-switch"),
        step("acs-root", refusals=(LOCKED,)),
        step("bios", changes=(), lasts="", effect="by_hand", by_hand=("BIOS: ACS = Disabled", Sentence("until then: NCCL_NVLS_ENABLE=0"))),
    ),
    BOTH,
    True,
    "key",
    "boot",
    (Sentence("a note"),),
)


def maker(lang: str = "en") -> Maker:
    return Maker(lang, {A: 0, B: 1})


def every_answer(lang: str) -> list[FixSaid]:
    m = maker(lang)
    stands = [ChangeStands("acs-switch", c, state, 1.7e9, "0x001d", "0x0011") for c in CHANGES for state in STANDS]
    probed = Proved(frozenset({(A, B, "push")}), frozenset({(A, B, "staged")}))
    done = [StepDone("acs-switch", state, (Sentence("because"),), probed, probed) for state in STEP_STATES]
    undone = [ChangeUndone("acs-switch", c, state, Sentence("because")) for c in CHANGES for state in UNDO_STATES]
    results = tuple(m.result(d, PLAN.steps[1], stands, frozenset()) for d in done)
    state, words = fix_words.apply_headline([(d.id, d.state) for d in done], m.t)
    after = (NextSaid("linkproof check", "measures"),)
    engines = fix.consumers_said(ENGINES)
    applied: dict[str, Any] = {
        "state": state,
        "headline": words,
        "results": results,
        "check_again": True,
        "notes": ("n",),
        "consumers": engines,
        "next": after,
    }
    said: list[FixSaid] = [m.plan(p, "machine", ENGINES, ("ACS: not allowed",), after) for p in (PLAN, Plan(()), Plan((), (), True))]
    said += [AppliedSaid(**applied), fix.PersistedSaid(**applied)]
    left, words = fix_words.rollback_headline([u.state for u in undone], m.t)
    said.append(RolledBackSaid(state=left, headline=words, changes=tuple(map(m.undone, undone)), next=after))
    now, words = fix_words.status_headline([s.state for s in stands], m.t)
    said.append(StatusSaid(state=now, headline=words, changes=tuple(map(m.stand, stands)), notes=("n",), next=after))
    return [*said, fix.ReappliedSaid(state="refused", headline="h", why=("w",), results=results, next=())]


def shown(said: FixSaid, lang: str = "en", width: int = 100, say_all: bool = True) -> str:
    return plain(text(said, lang, width, say_all))


# ---------------------------------------------------------------- JSON


def test_the_shipped_schema_is_the_one_that_the_types_make() -> None:
    if os.environ.get("UPDATE_EXPECTED"):
        SCHEMA.write_text(fix.schema(), encoding="utf-8")
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json.loads(fix.schema()), "run with UPDATE_EXPECTED=1"


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_json_of_every_answer_keeps_the_schema(lang: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    answers = [json.loads(fix.as_json(said)) for said in every_answer(lang)]
    for answer in answers:
        jsonschema.validate(answer, schema, cls=jsonschema.Draft202012Validator)
    assert {a["action"] for a in answers} == {"plan", "apply", "persist", "rollback", "status", "reapply"}
    assert all(a["schema"] == 1 for a in answers)


@pytest.mark.parametrize("broken", [{"schema": 2}, {"action": "mend"}, {"state": "fine"}, {"steps": None}])
def test_the_schema_refuses_what_is_no_answer(broken: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    answer = {**json.loads(fix.as_json(maker().plan(PLAN, "machine", {}))), **broken}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(answer, json.loads(SCHEMA.read_text(encoding="utf-8")), cls=jsonschema.Draft202012Validator)


def test_the_same_answer_gives_the_same_bytes() -> None:
    assert [fix.as_json(s) for s in every_answer("en")] == [fix.as_json(s) for s in every_answer("en")]


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("width", [60, 100])
def test_no_line_is_wider_than_the_terminal_but_a_command(lang: str, width: int) -> None:
    commands = {line for s in PLAN.steps for line in maker(lang).lines(s.by_hand)}
    for said in every_answer(lang):
        for line in shown(said, lang, width).splitlines():
            assert width_of(line) <= width or line.strip() in commands, line


def test_the_first_line_of_a_plan_says_what_will_happen_and_that_nothing_has() -> None:
    first = shown(maker().plan(PLAN, "machine", ENGINES)).splitlines()[0]
    assert first == "`fix apply` would do 1 step; 1 pair of GPUs measured bad. Nothing was changed yet"


def test_a_plan_of_refused_steps_promises_nothing() -> None:
    said = maker().plan(Plan((step(refusals=(LOCKED,)),), BOTH, True), "machine", {})
    assert said.state == "steps" and not said.steps[0].applies
    assert said.headline.startswith("`fix apply` would write nothing here")


def test_nothing_found_is_nothing_to_mend_only_where_something_was_measured() -> None:
    assert maker().plan(Plan((), (), True), "machine", {}).state == "nothing"
    assert maker().plan(Plan((), (), False), "machine", {}).state == "cannot_tell"
    assert maker().plan(Plan((), BOTH, True), "machine", {}).state == "cannot_tell"


def test_a_step_says_all_that_a_person_must_know_before_it() -> None:
    said = shown(maker().plan(PLAN, "machine", ENGINES))
    for words in (
        "1. let packets turn round below 0000:42:00.0  acs-switch", "`linkproof causes acs_redirect`", "push is slow",
        "ReqRedir CmpltRedir EgressCtrl off; no other bit", "until the next reboot; acts at once", "the former word comes back",
        "sudo setpci -s 0000:42:00.0 ECAP_ACS+6.w=0:2c", "step acs-switch did not help", "gets `iommu=pt`, loses `iommu=nopt`",
    ):  # fmt: skip
        assert words in said, words


def test_a_refusal_that_may_be_overruled_gives_the_exact_option_and_one_that_may_not_gives_none() -> None:
    said = maker().plan(PLAN, "machine", {})
    assert [(r.ref, r.accept) for s in said.steps for r in s.refusals] == [("vfio", "--i-accept vfio"), ("lockdown", "")]
    words = shown(said, width=400)
    assert "`--i-accept vfio`" in words and RISKS["vfio"][:30] in words and "--i-accept lockdown" not in words


def test_what_acts_when_is_told_apart() -> None:
    part = shown(maker().plan(PLAN, "machine", {})).partition("When it acts\n")[2].splitlines()[:3]
    assert [line.split() for line in part] == [
        ["at", "once", "acs-switch"],
        ["by", "a", "person", "bios"],
        ["refused", "iommu-passthrough,", "acs-root"],
    ]


def test_where_it_cannot_be_mended_the_safe_settings_and_the_guard_are_named() -> None:
    said = shown(maker().plan(Plan((step(refusals=(LOCKED,)),), BOTH, True), "machine", ENGINES))
    assert "`NCCL_P2P_DISABLE=1`" in said and "linkproof run -- CMD" in said and "linkproof env --for" in said


def test_registers_are_shown_in_hex_with_the_names_of_their_bits() -> None:
    stands = maker().stand(ChangeStands("acs-switch", PORT, "in_force", 1.7e9, "0x001d", "0x0011"))
    assert (stands.former, stands.now) == ("0x001d SrcValid ReqRedir CmpltRedir UpstreamFwd", "0x0011 SrcValid UpstreamFwd")
    assert stands.when == "2023-11-14T22:13:20+00:00"
    other = maker().stand(ChangeStands("x", CHANGES[1], "in_force", 0, "0x001d", "gone"))
    assert (other.former, other.now) == ("0x001d", "gone"), "bits of another register have other names"


def test_what_did_not_help_is_no_failure_where_a_later_step_did() -> None:
    became, t = [("s0", "did_not_help"), ("s1", "helped")], Teller("en")
    assert fix_words.apply_headline(became, t, {"s0"})[0] == "done"
    assert "tried and taken back: s0" in fix_words.apply_headline(became, t, {"s0"})[1]
    assert fix_words.apply_headline([("s0", "refused"), ("s1", "in_place")], t, {"s0"})[0] == "done"
    assert fix_words.apply_headline([("s0", "did_not_stick"), ("s1", "helped")], t)[0] == "not_all"


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ([], "nothing"), (["helped"], "done"), (["in_place"], "done"), (["helped", "not_needed", "by_hand"], "done"), (["by_hand"], "nothing"),
        (["helped", "refused"], "not_all"), (["helped", "did_not_help"], "not_all"), (["failed", "not_known"], "not_all"),
        (["helped", "not_known"], "not_known"),
    ],
)  # fmt: skip
def test_apply_is_done_only_if_nothing_is_left_and_all_is_known(states: list[str], state: str) -> None:
    assert fix_words.apply_headline([(f"s{n}", s) for n, s in enumerate(states)], Teller("en"))[0] == state


@pytest.mark.parametrize(
    ("states", "state"),
    [([], "nothing"), (["in_force", "waits_for_reboot"], "in_force"), (["in_force", "lost"], "not_all"), (["interrupted"], "not_all"),
     (["drifted", "not_readable"], "not_all"), (["in_force", "not_readable"], "not_readable")],
)  # fmt: skip
def test_status_is_in_force_only_if_everything_was_read_and_is(states: list[str], state: str) -> None:
    assert fix_words.status_headline(states, Teller("en"))[0] == state


def test_both_directions_of_a_pair_are_one() -> None:
    assert pairs_words([maker().pair(p) for p in BOTH]) == ["GPU0 <-> GPU1"]
    assert pairs_words([maker().pair(BOTH[1])]) == ["GPU1 -> GPU0"]
    assert pairs_words([Maker("en", {}).pair(p) for p in BOTH]) == [f"{A} <-> {B}"]


def test_what_a_file_or_a_device_says_steers_no_terminal_and_gives_no_secret_away() -> None:
    nasty = Sentence("{x}", {"x": "\x1b[2J hf_AbCdEfGhIjKlMnOpQrStUv"})
    said = shown(
        maker().plan(
            Plan((step(why=(nasty,), changes=(TextFile("/etc/\x1b[2Jx", "grub", ("a=\x1b[1m",)),), by_hand=("x \x1b[2J\r",)),)),
            "machine",
            {},
        )
    )
    assert "\x1b" not in said and "\r" not in said and "AbCdEf" not in said


# ---------------------------------------------------------------- languages


@pytest.mark.parametrize("words", [fix_words.step_words, fix_words.undo_words, fix_words.stands_words])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_state_has_words(words: Any, lang: str) -> None:
    states = {"step_words": STEP_STATES, "undo_words": UNDO_STATES, "stands_words": STANDS}[words.__name__]
    assert [s for s in states if words(s, Teller(lang)) == s] == []
    assert words("a state of another version", Teller(lang)) == "a state of another version"


def test_every_risk_is_said_in_chinese_too() -> None:
    assert [name for name, what in RISKS.items() if what not in catalogue()] == []


def test_chinese_says_what_english_says() -> None:
    for en, zh in zip(every_answer("en"), every_answer("zh"), strict=True):
        there, here = json.loads(fix.as_json(en)), json.loads(fix.as_json(zh))
        assert _shape(there) == _shape(here)
        assert any("\u4e00" <= c <= "\u9fff" for c in shown(zh, "zh").splitlines()[0]) or en.headline == "h"


def _shape(value: Any) -> Any:
    """All but the words: keys, lengths, names, numbers."""
    if isinstance(value, dict):
        return {
            k: v if k in ("id", "state", "ref", "accept", "command", "effect", "lasts", "src", "dst") else _shape(v)
            for k, v in value.items()
        }
    return [_shape(v) for v in value] if isinstance(value, list) else type(value).__name__
