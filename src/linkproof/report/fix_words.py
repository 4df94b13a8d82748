"""The sentences of `fix`: headlines, states, what a change writes, what a risk is. Every template is a literal of `t`.

In:      words of mending.py (states, changes, risks), counts, a Teller.
Out:     str. Registers in hex with the names of their bits as lspci prints them.
Unknown: a state or risk that is not known here is said by its own name; a value that is no number stays as it is.
Raises:  nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from shlex import join
from typing import Literal, Protocol

from linkproof.mending import RISKS, Change, Command, ConfigWord, Pair, Symlink, SysfsText
from linkproof.parse.pci_config import ACS, ACS_BITS, bit_names
from linkproof.report.say import Teller

ACS_CONTROL = 6


class Applicable(Protocol):
    @property
    def applies(self) -> bool: ...
    @property
    def changes(self) -> Sequence[object]: ...
    @property
    def effect(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def unless(self) -> str: ...


# ---------------------------------------------------------------- registers, files, commands


def _acs(change: Change) -> bool:
    return isinstance(change, ConfigWord) and change.capability == ACS and change.inside == ACS_CONTROL


def named_bits(mask: int) -> str:
    """Of an ACS control word; bits that lspci has no name for by their number."""
    return " ".join(ACS_BITS[n] if n < len(ACS_BITS) else f"bit{n}" for n in range(16) if mask >> n & 1)


def change_words(change: Change, t: Teller) -> tuple[str, str, str]:
    """(kind, target, what is written there)."""
    if isinstance(change, ConfigWord):
        word = t("ACS control word at 0x{at}", at=f"{change.offset:x}") if _acs(change) else t("word at 0x{at}", at=f"{change.offset:x}")
        on, off = change.want & change.mask, change.mask & ~change.want
        names = named_bits if _acs(change) else lambda bits: f"0x{bits:04x}"
        parts = [t("{bits} off", bits=names(off))] if off else []
        parts += [t("{bits} on", bits=names(on))] if on else []
        return "config_word", change.bdf, t("{word}: {bits}; no other bit", word=word, bits=", ".join(parts))
    if isinstance(change, SysfsText):
        return "sysfs_text", change.path, t("becomes `{want}`", want=change.want)
    if isinstance(change, Symlink):
        return "symlink", change.path, t("a link to {target}", target=change.target)
    if isinstance(change, Command):
        watched = ", ".join(change.watched)
        return "command", join(change.argv), t("is run; it writes {files}", files=watched) if watched else t("is run")
    if change.edit == "whole":
        return "text_file", change.path, t("is written, {n} bytes", n=len(change.content.encode()))
    parts = [t("gets {words}", words=_quoted(change.add))] if change.add else []
    parts += [t("loses {words}", words=_quoted(change.remove))] if change.remove else []
    return "text_file", change.path, t("{edits}; the rest stays as it is", edits=", ".join(parts) or change.edit)


def _quoted(parts: Sequence[str]) -> str:
    return " ".join(f"`{part}`" for part in parts)


def value_words(change: Change, value: str, t: Teller) -> str:
    """A register with the names of its bits: `0x001d SrcValid ReqRedir CmpltRedir UpstreamFwd`."""
    counted = re.fullmatch(r"(\d+) (bytes|files?)", value)
    if counted:
        return t("{n} bytes", n=counted[1]) if counted[2] == "bytes" else t("files: {n}", n=counted[1])
    if value == "absent":
        return t("not there")
    if not _acs(change) or not re.fullmatch(r"0x[0-9a-f]{1,4}", value):
        return value
    return f"{value} {bit_names(int(value, 16))}"


def pair_words(pair: Pair, gpus: tuple[int, int] | None) -> str:
    return f"{pair[0]} -> {pair[1]}" if gpus is None else f"GPU{gpus[0]} -> GPU{gpus[1]}"


# ---------------------------------------------------------------- states


def step_words(state: str, t: Teller) -> str:
    words = {
        "helped": t("helped: probed again, and right"),
        "in_place": t("in place: written and read back; it acts after the next reboot or restart"),
        "not_known": t("written and read back; whether it helped is not known"),
        "not_needed": t("not needed: nothing was written"),
        "by_hand": t("a person must do it: nothing was written"),
        "refused": t("refused: nothing was written"),
        "did_not_help": t("did not help: taken back at once"),
        "did_not_stick": t("did not stick: taken back at once"),
        "failed": t("it failed"),
    }
    return words.get(state, state)


def at_work_words(state: str, t: Teller) -> str:
    """While it works: what it does, or what has become of the step."""
    words = {
        "measuring": t("measures the pairs"),
        "writing": t("writes"),
        "measuring_again": t("measures the pairs again"),
        "taking_back": t("takes it back"),
    }
    return words.get(state) or step_words(state, t)


def undo_words(state: str, t: Teller) -> str:
    words = {
        "restored": t("the former value is back"),
        "as_before": t("held the former value already"),
        "changed_since": t("another hand changed it since: left alone"),
        "other_device": t("another device stands at that address: left alone"),
        "failed": t("could not be taken back"),
    }
    return words.get(state, state)


def stands_words(state: str, t: Teller) -> str:
    words = {
        "in_force": t("in force"),
        "waits_for_reboot": t("in place; it acts after the next reboot"),
        "lost": t("lost: a reboot, reset or rescan put the former value back"),
        "drifted": t("drifted: neither the former value nor ours"),
        "interrupted": t("interrupted: an apply or rollback ended in the middle of it"),
        "not_readable": t("cannot tell: not readable"),
    }
    return words.get(state, state)


def risk_words(ref: str, t: Teller) -> str:
    """What a person accepts with `--i-accept REF`; "" for a refusal that nobody may overrule."""
    what = RISKS.get(ref, "")
    return t(what) if what else ""


def lasts_words(lasts: str, t: Teller) -> str:
    return {"until_reboot": t("until the next reboot"), "for_good": t("for good, until it is rolled back")}.get(lasts, "")


def effect_words(effect: str, t: Teller) -> str:
    words = {
        "now": t("acts at once"),
        "reboot": t("acts after the next reboot"),
        "restart": t("acts after a restart of the program, container or service"),
        "by_hand": t("acts once a person has done it"),
    }
    return words.get(effect, effect)


# ---------------------------------------------------------------- headlines


def steps_count(n: int, t: Teller) -> str:
    return t("1 step") if n == 1 else t("{n} steps", n=n)


def pairs_count(n: int, t: Teller) -> str:
    return t("1 pair of GPUs") if n == 1 else t("{n} pairs of GPUs", n=n)


def changes_count(n: int, t: Teller) -> str:
    return t("1 change") if n == 1 else t("{n} changes", n=n)


def plan_headline(state: str, steps: Sequence[Applicable], pairs: int, measured: bool, t: Teller) -> str:
    """What `fix apply` would do, in one sentence."""
    if state == "nothing":
        return t("Nothing to mend: no pair of GPUs measured bad. Nothing was changed")
    if state == "cannot_tell" and measured:
        return t(
            "Cannot tell what to mend: {pairs} measured bad, and no cause that a step could mend was found", pairs=pairs_count(pairs, t)
        )
    if state == "cannot_tell":
        return t("Cannot tell: nothing was measured, and nothing that was read asks for a step")
    can = {s.id for s in steps if s.applies}
    ready = [s for s in steps if s.applies and s.unless not in can]
    more = len(can) - len(ready)
    if not ready:
        words = t("`fix apply` would write nothing here: {steps} refused or left to a person", steps=steps_count(len(steps), t))
    else:
        words = t("`fix apply` would do {steps}", steps=steps_count(len(ready), t))
        words += t(", and {steps} more only if that does not help", steps=more) if more else ""
        words += t("; nothing of it acts before a reboot") if all(s.effect == "reboot" for s in ready) else ""
    about = t("; {pairs} measured bad", pairs=pairs_count(pairs, t)) if pairs else ""
    return words + (about if measured else t("; nothing was measured, so it may mend nothing")) + t(". Nothing was changed yet")


def apply_headline(
    became: Sequence[tuple[str, str]], t: Teller, outdone: Collection[str] = ()
) -> tuple[Literal["done", "not_all", "not_known", "nothing"], str]:
    """became: (id, state) of the steps in order. outdone: refused or without help where a later one took their place: told, and nothing is left to do for them."""
    if not became:
        return "nothing", t("There was nothing to do. Nothing was changed")

    def ids(*states: str) -> str:
        return ", ".join(step for step, state in became if state in states)

    helped, placed, unknown = ids("helped"), ids("in_place"), ids("not_known")
    refused, back, failed = ids("refused"), ids("did_not_help", "did_not_stick"), ids("failed")
    parts = [t("helped, as the probe shows: {steps}", steps=helped)] if helped else []
    parts += [t("in place, to act after a reboot or restart: {steps}", steps=placed)] if placed else []
    parts += [t("written, and it is not known whether it helped: {steps}", steps=unknown)] if unknown else []
    parts += [t("refused: {steps}", steps=refused)] if refused else []
    parts += [t("tried and taken back: {steps}", steps=back)] if back else []
    parts += [t("failed: {steps}", steps=failed)] if failed else []
    if not parts:
        return "nothing", t("Nothing was written: what there is to do is not needed any more, or a person must do it")
    words = joined(parts, t)
    left = [step for step, state in became if state in ("refused", "did_not_help", "did_not_stick", "failed") and step not in outdone]
    return "not_all" if left else "not_known" if unknown else "done", words[:1].upper() + words[1:]


def rollback_headline(states: Sequence[str], t: Teller) -> tuple[Literal["back", "not_all", "nothing"], str]:
    if not states:
        return "nothing", t("Nothing to take back: no change of linkproof is in place")
    back = sum(s in ("restored", "as_before") for s in states)
    if back == len(states):
        return "back", t("All former values are back ({n} of {n})", n=back)
    return "not_all", t("{back} of {n} former values are back; see the others", back=back, n=len(states))


def status_headline(states: Sequence[str], t: Teller) -> tuple[Literal["nothing", "in_force", "not_all", "not_readable"], str]:
    if not states:
        return "nothing", t("No change of linkproof is in place on this machine")
    gone = [s for s in states if s in ("lost", "drifted", "interrupted")]
    if gone:
        return "not_all", t("Not as it was left: {bad} of {changes}", bad=len(gone), changes=changes_count(len(states), t))
    if blind := states.count("not_readable"):
        return "not_readable", t("Cannot tell: of {changes} {bad} not readable", bad=blind, changes=changes_count(len(states), t))
    waits = states.count("waits_for_reboot")
    said = changes_count(len(states), t)
    if waits:
        return "in_force", t("{changes} in place; {waits} to act after the next reboot", changes=said, waits=waits)
    return "in_force", t("In force: {changes}", changes=said)


def reapply_headline(state: str, t: Teller) -> str:
    words = {
        "done": t("Every persisted register holds its word"),
        "refused": t("Refused: nothing was written"),
        "not_all": t("Not every persisted register took its word"),
        "nothing": t("Nothing was written: nothing is persisted that is still in place"),
    }
    return words.get(state, state)


def joined(parts: Sequence[str], t: Teller) -> str:
    return ("；" if t.lang == "zh" else "; ").join(parts)
