"""Makes applied register words last over reboots: a systemd unit that writes them again, or the kernel's own parameter.

In:      the journal's words that are in force now, the machine as it is.
Out:     Plan of one step, `persist-unit` or `persist-kernel-parameter`, applied and rolled back like any other; Persisted for `fix status`.
Unknown: hardware that cannot be read is refused: what is persisted is bound to it.
Raises:  UsageError nothing-to-persist, persisted-otherwise, no-kernel-parameter, and what the journal raises.
Source:  systemd.unit(5): what stands in `multi-user.target.wants` is started at boot, no `systemctl enable` needed.
"""

from __future__ import annotations

from time import localtime, strftime, time

from msgspec import Struct, structs

from linkproof.act.boot import acs_words, command_line
from linkproof.act.doors import Machine
from linkproof.act.hardware import hardware_parts, key
from linkproof.act.journal import Journal
from linkproof.act.persist import persist_file, unit
from linkproof.act.persist.persist_file import PersistFile
from linkproof.act.persist.reapply import LastRun, again, last_run, pairs_through, standing
from linkproof.act.refusals import listed, refusals_now
from linkproof.act.status import status
from linkproof.collect.host import Host
from linkproof.collect.pci import read_pci
from linkproof.errors import UsageError
from linkproof.mending import ChangeStands, ConfigWord, Plan, Refusal, Sentence, Step, Symlink, SysfsText, TextFile
from linkproof.parse.pci_tree import tree
from linkproof.version import __version__

FINDING = "acs_redirect"
UNIT, PARAMETER = "persist-unit", "persist-kernel-parameter"
SYSTEMD = "/run/systemd/system"  # there only if systemd is what started this machine


def persist_plan(
    machine: Machine,
    journal: Journal,
    host: Host,
    *,
    kernel_parameter: bool = False,
    accepted: frozenset[str] = frozenset(),
    who: unit.Program | None = None,
) -> Plan:
    """kernel_parameter: by it even where a unit would do. accepted: risks that the person takes, now and at each boot. who: what the unit starts."""
    raw = read_pci(host)
    found = tree(raw.functions, raw.why)
    parts = hardware_parts(found)
    words, notes = _words(status(machine, journal), parts)
    asked = refusals_now(again(words, pairs_through(words, found)), host)
    others = tuple(r for r in asked if r.ref != "lockdown")
    if not key(parts):
        why = Sentence("the PCI devices cannot be read: {why}", {"why": raw.why or "?"})
        others = (Refusal("not_readable", why), *others)
    elif not words:
        others = (Refusal("off_path", Sentence("none of the ports is on a way between GPUs any more")), *others)
    if kernel_parameter or len(others) < len(asked):
        step, more = _by_parameter(words, others, host)
    else:
        step, more = _by_unit(words, parts, others, machine, host, accepted, who or unit.program()), ()
    return Plan((step,), hardware=key(parts), boot_id=machine.boot_id(), notes=(*notes, *more))


# ---------------------------------------------------------------- what is persisted


def _in_force(standing: tuple[ChangeStands, ...]) -> tuple[ConfigWord, ...]:
    """Of the words that linkproof wrote, those that stand there now; what several steps wrote to one register is one word."""
    found: dict[str, ConfigWord] = {}
    for word in (s.change for s in standing if s.state == "in_force"):
        if isinstance(word, ConfigWord):
            before = found.get(word.bdf, word)
            found[word.bdf] = structs.replace(word, mask=before.mask | word.mask, want=(before.want & ~word.mask) | word.want)
    return tuple(found.values())


def _words(standing: tuple[ChangeStands, ...], parts: dict[str, str]) -> tuple[tuple[ConfigWord, ...], tuple[Sentence, ...]]:
    """Those that are persisted, and in words those that are not."""
    words = _in_force(standing)
    if not words:
        raise UsageError(
            "nothing-to-persist",
            ("no register that linkproof wrote is in force now", "目前没有由 linkproof 写入且仍然生效的寄存器"),
            ("there is nothing that a reboot would take back", "没有会因重启而丢失的改动"),
            (
                "`linkproof fix apply` first. What it writes into boot files lasts by itself; `linkproof fix status` shows what is in place",
                "请先运行 `linkproof fix apply`。写入启动文件的改动本身就会保留；`linkproof fix status` 列出现状",
            ),
        )
    ports = {w.bdf for w in words}
    fit = tuple(w for w in words if persist_file.allowed(w, parts))
    unfit = [w.bdf for w in words if w not in fit]
    lost = [s.change.bdf for s in standing if isinstance(s.change, ConfigWord) and s.change.bdf not in ports]
    files = [s.change.path for s in standing if isinstance(s.change, SysfsText)]
    notes = (
        ("not persisted, as it stands on no way between GPUs: {names}", unfit),
        ("not persisted, as it is not in force now: {names}", lost),
        ("not persisted, and gone after a reboot: {names}", files),
    )
    return fit, tuple(Sentence(text, {"names": listed(dict.fromkeys(names))}) for text, names in notes if names)


# ---------------------------------------------------------------- by a unit


def _by_unit(
    words: tuple[ConfigWord, ...],
    parts: dict[str, str],
    refusals: tuple[Refusal, ...],
    machine: Machine,
    host: Host,
    accepted: frozenset[str],
    who: unit.Program,
) -> Step:
    taken = tuple(r.ref for r in refusals if r.ref in accepted and r.may_be_accepted)
    wanted = PersistFile(persist_file.SCHEMA, __version__, float(round(time())), machine.boot_id(), key(parts), parts, words, taken)
    if host.names(SYSTEMD).data is None:
        why = Sentence(
            "systemd does not run this machine: --kernel-parameter, or let your own start-up run `linkproof fix reapply` as root"
        )
        refusals = (*refusals, Refusal("no_systemd", why))
    refusals = (*refusals, *unit.unfit(who, machine))
    return Step(
        id=UNIT,
        what=Sentence("write the ACS control words of these ports again at each boot, if the hardware is still the same: {ports}", {"ports": _ports(words)}),
        finding=FINDING,
        why=(_why(words),),
        lasts="for_good",
        effect="reboot",
        undo=Sentence("`linkproof fix rollback` removes the unit and its file"),
        by_hand=tuple(f"setpci -s {w.bdf} ECAP_ACS+6.w=0000:{w.mask:04x}" for w in words),
        changes=(
            TextFile(persist_file.PATH, "whole", content=_content(wanted, machine)),
            _same_or_new(TextFile(unit.PATH, "whole", content=unit.unit_text(who)), machine),
            Symlink(unit.WANTED, f"../{unit.NAME}"),
        ),
        risk=(
            Sentence("a hot reset, an AER recovery, a rescan or suspend puts the bits back until the unit is restarted: let monitoring call `linkproof fix status`"),
        ),
        unsafe_when=(Sentence("guests are to get devices below these ports later on"),),
        refusals=refusals,
    )  # fmt: skip


def _ports(words: tuple[ConfigWord, ...]) -> str:
    return listed(w.bdf for w in words)


def _why(words: tuple[ConfigWord, ...]) -> Sentence:
    return Sentence("`fix apply` wrote the ACS control words of {ports}, and a reboot takes them back", {"ports": _ports(words)})


def _content(wanted: PersistFile, machine: Machine) -> str:
    """The file that is there, if it says the same: persisting twice changes nothing, not even when it was."""
    there, why_not = persist_file.read(machine)
    if why_not is not None or (there is not None and not _same(there, wanted)):
        raise _otherwise(persist_file.PATH)
    now = machine.file(persist_file.PATH) if there is not None else None
    return persist_file.text(wanted) if now is None else now.data.decode("utf-8", "replace")


def _same(a: PersistFile, b: PersistFile) -> bool:
    return (a.hardware, set(map(_bits, a.words)), a.accepted) == (b.hardware, set(map(_bits, b.words)), b.accepted)


def _bits(word: ConfigWord) -> tuple[str, int, int]:
    return word.bdf, word.mask, word.want


def _same_or_new(change: TextFile, machine: Machine) -> TextFile:
    there = machine.file(change.path) if machine.kind(change.path) else None
    if there is not None and there.data != change.content.encode():
        raise _otherwise(change.path)
    return change


def _otherwise(path: str) -> UsageError:
    return UsageError(
        "persisted-otherwise",
        (f"{path} is there already and says something else", f"{path} 已存在，且内容不同"),
        ("nothing was done", "没有执行任何操作"),
        (
            f"`linkproof fix rollback --step {UNIT}`, then `linkproof fix persist` again",
            f"请先运行 `linkproof fix rollback --step {UNIT}`，再运行 `linkproof fix persist`",
        ),
    )


# ---------------------------------------------------------------- by the kernel


def _by_parameter(words: tuple[ConfigWord, ...], refusals: tuple[Refusal, ...], host: Host) -> tuple[Step, tuple[Sentence, ...]]:
    release = host.file("/proc/sys/kernel/osrelease").text.strip()
    wish = acs_words(tuple((w.bdf, w.mask) for w in words), release)
    if wish.refusal is not None:
        raise _no_parameter(wish.refusal, release, len(words))
    edit = command_line(host, wish.add, wish.remove)
    refusals = (*refusals, *((edit.refusal,) if edit.refusal is not None else ()))
    step = Step(
        id=PARAMETER,
        what=Sentence("let the kernel clear the redirect bits at each boot: {ports}", {"ports": _ports(words)}),
        finding=FINDING,
        why=(_why(words),),
        lasts="for_good",
        effect="reboot",
        undo=Sentence("`linkproof fix rollback` takes the words out of the boot loader's files; the former state is back after a reboot"),
        by_hand=edit.by_hand,
        changes=edit.changes,
        risk=(
            Sentence("the named ports and all below them become one IOMMU group: none of these devices can be given to a guest by itself"),
            Sentence("PCI addresses can move when cards are added or removed: the parameter then names other ports"),
        ),
        unsafe_when=(Sentence("guests or other tenants use devices below these ports"),),
        refusals=refusals,
    )  # fmt: skip
    there = edit.refusal is None and not edit.changes
    said = (Sentence("the boot loader's files ask for it already: {words}", {"words": " ".join(wish.add)}),) if there else ()
    return step, (*said, *wish.notes, *edit.notes)


def _no_parameter(refusal: Refusal, release: str, ports: int) -> UsageError:
    return UsageError(
        "no-kernel-parameter",
        (
            refusal.why.text.format(**refusal.why.args),
            f"Linux {release or '?'} 没有能用于这 {ports} 个端口的内核参数",
        ),
        ("nothing was done", "没有执行任何操作"),
        (
            "`linkproof fix persist` without --kernel-parameter (a systemd unit); under lockdown a newer kernel or the BIOS",
            "不加 --kernel-parameter 运行 `linkproof fix persist`（使用 systemd 单元）；若内核处于 lockdown，则需更新内核或使用 BIOS 设置",
        ),
    )


# ---------------------------------------------------------------- for `fix status`


class Persisted(Struct, frozen=True):
    """state: none, sound, or wrong (something here needs a hand: `words` say what). last: how the unit ended when it last ran."""

    state: str
    words: tuple[Sentence, ...] = ()
    last: LastRun | None = None


def persisted(machine: Machine, journal: Journal) -> Persisted:
    """What will happen at the next boot, and what happened at this one."""
    kept, why_not = persist_file.read(machine)
    link, there = machine.link(unit.WANTED), machine.kind(unit.PATH)
    if kept is None and why_not is None and not link and not there:
        return Persisted("none")
    last, wrong = last_run(machine, journal), list[Sentence]()
    if why_not is not None:
        wrong.append(why_not)
    elif kept is None:
        wrong.append(Sentence("{path} is gone: the unit does nothing at boot", {"path": persist_file.PATH}))
    if not there:
        wrong.append(Sentence("{path} is gone: nothing is written at boot", {"path": unit.PATH}))
    elif not link:
        wrong.append(Sentence("{path} is gone: the unit is not started at boot", {"path": unit.WANTED}))
    words = []
    if kept is not None:
        words.append(Sentence("persisted on {when}: {ports}", {"when": _when(kept.when), "ports": _ports(kept.words)}))
        now = status(machine, journal)
        wrong += _differs(kept, now, standing(journal.read()))
        boot = machine.boot_id()
        if kept.boot_id == boot and (last is None or last.boot_id != boot):
            words.append(Sentence("the unit runs at the next boot for the first time"))
        elif last is None or last.boot_id != boot:
            wrong.append(
                Sentence("the unit did not run at this boot, or did not come to its end: `systemctl status {name}`", {"name": unit.NAME})
            )
        else:
            (words if last.state == "done" else wrong).extend(_told(last))
            if lost := [w.bdf for w in kept.words if last.state == "done" and w.bdf in _lost(now)]:
                text = "lost since: {ports}. `systemctl restart {name}` writes them again"
                wrong.append(Sentence(text, {"ports": listed(lost), "name": unit.NAME}))
    return Persisted("wrong" if wrong else "sound", (*words, *wrong), last)


def _lost(standing_now: tuple[ChangeStands, ...]) -> set[str]:
    return {s.change.bdf for s in standing_now if isinstance(s.change, ConfigWord) and s.state == "lost"}


def _when(at: float) -> str:
    return strftime("%Y-%m-%d %H:%M", localtime(at))


def _told(last: LastRun) -> tuple[Sentence, ...]:
    heads = {
        "done": "at this boot the unit ran ({when}), and the ACS control words stood as wanted then",
        "refused": "at this boot the unit ran ({when}) and wrote nothing",
        "not_all": "at this boot the unit ran ({when}), and not every ACS control word took",
        "nothing": "at this boot the unit ran ({when}) and had nothing to write",
    }
    return (Sentence(heads[last.state], {"when": _when(last.when)}), *last.why)


def _differs(kept: PersistFile, standing_now: tuple[ChangeStands, ...], owners: dict[str, str]) -> list[Sentence]:
    """Between what the next boot writes and what stands in the journal."""
    bits = set(map(_bits, kept.words))
    more = [w.bdf for w in _in_force(standing_now) if _bits(w) not in bits]
    gone = [w.bdf for w in kept.words if w.bdf not in owners]
    out = []
    if more:
        out.append(Sentence("applied, and not persisted like this: {ports}", {"ports": listed(more)}))
    if gone:
        out.append(Sentence("persisted, and rolled back since, so no longer written at boot: {ports}", {"ports": listed(gone)}))
    return out
