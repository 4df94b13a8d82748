"""What a machine's own settings get wrong: NCCL variables that nobody reads or that do not act, and words about the IOMMU that facts contradict.

Source: `parse/nccl_variables.py` for the variables; Linux `Documentation/admin-guide/kernel-parameters.txt` and
`Documentation/ABI/testing/sysfs-kernel-iommu_groups`: the command line is what was asked for, a group's type and a page fault what is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from linkproof.causes.reading import Reading
from linkproof.model import Fact, Note, Setting
from linkproof.parse.nccl_variables import foreign, ineffective, known, misspelt

_MOST = 3  # of one kind


def _note(text: str, fact: Fact, **args: str) -> Note:
    return Note(text, fact.source, args)


def _where(fact: Fact) -> str:
    """The source in words: its file, and the line where it has one."""
    line = f":{fact.source.line}" if fact.source.line else ""
    said = f" ({fact.source.text[:100]})" if fact.source.text else ""
    return f"{fact.source.file}{line}{said}"


def _of_nccl(f: Reading) -> list[Setting]:
    """Each variable once, the first of a name; enough of them for any real machine."""
    out: dict[str, Setting] = {}
    for setting in f.all(Setting):
        if setting.key.startswith("NCCL_"):
            out.setdefault(setting.key, setting)
    return list(out.values())[:100]


def names(f: Reading) -> Iterator[Note]:
    """Variables that NCCL does not know."""
    told = 0
    for setting in _of_nccl(f):
        name = setting.key
        if name in known() or foreign(name) or ineffective(name, setting.value) or told >= _MOST:
            continue
        if meant := misspelt(name):
            told += 1
            yield _note("{name} is no variable that NCCL knows; {meant} is meant?", setting, name=name, meant=meant)
        elif not f.amd and len(name) > 8:
            told += 1
            yield _note("{name} is no variable that NCCL up to 2.32 reads: only a plugin or a framework could", setting, name=name)


def values(f: Reading) -> Iterator[Note]:
    """Variables that NCCL knows, with a value that does not do what it says."""
    for setting in _of_nccl(f):
        name, value = setting.key, setting.value[:80]
        why = ineffective(name, setting.value)
        if why == "only_one":
            yield _note("NCCL_P2P_DISABLE={value}: only the value 1 acts", setting, value=value)
        elif why == "no_level" and name == "NCCL_P2P_LEVEL":
            yield _note(
                "NCCL_P2P_LEVEL={value} is no level that NCCL knows (upper case, e.g. PXB): it is ignored without a word",
                setting,
                value=value,
            )
        elif why == "no_level":
            yield _note("{name}={value} is no level that NCCL knows: it is ignored without a word", setting, name=name, value=value)
        elif why == "no_debug_level":
            yield _note("NCCL_DEBUG={value} is no level that NCCL knows; INFO and WARN are", setting, value=value)
        elif why == "read_as_zero":
            yield _note("{name} takes a number: NCCL reads {value} as 0", setting, name=name, value=value)
        elif why == "gone":
            yield _note("{name} is read by no release of NCCL: it has no effect", setting, name=name)


def iommu(f: Reading) -> Iterator[Note]:
    """Two sources that disagree about the IOMMU; the one that shows what is, not what was asked, is right."""
    asked, seen = f.iommu_asked, f.iommu_seen
    fault, active = f.io_page_fault, f.event("iommu_enabled")
    if asked is not None:
        line = f"{_where(asked)}: {asked.parameter}" if asked.parameter not in asked.source.text[:100] else _where(asked)
        if seen is not None and seen.mode != asked.mode:
            yield _note(
                "the kernel command line and the machine disagree about the IOMMU: it translates, whatever was asked ({asked}; {seen})"
                if seen.mode == "translating"
                else "the kernel command line and the machine disagree about the IOMMU: addresses pass, whatever was asked ({asked}; {seen})",
                seen,
                asked=line,
                seen=_where(seen),
            )
            return
        proof = (fault if asked.mode in ("off", "passthrough") else None) or (active if asked.mode == "off" and seen is None else None)
        if proof is not None:
            yield _note(
                "the IOMMU was asked out of the way and is at work: wrong option for this CPU, or not booted with it ({asked}; {seen})",
                proof,
                asked=line,
                seen=_where(proof),
            )
            return
    told = f.setting("iommu_off", "present")
    at_work: Fact | None = fault
    if at_work is None:
        at_work = active if seen is None else seen if seen.mode != "off" else None
    if told is not None and at_work is not None:
        yield _note("{name} was set, and an IOMMU is at work all the same ({seen})", told, name=told.name, seen=_where(at_work))


RULES: tuple[Callable[[Reading], Iterator[Note]], ...] = (iommu, names, values)
