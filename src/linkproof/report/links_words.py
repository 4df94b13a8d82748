"""The sentences about links: headline, what is wrong with the bytes, what that means, what to do. Every template is a literal of `t`.

In:      groups and routes of links_found.py, a Teller.
Out:     str. Bytes and counts have thousands separators; KiB and MiB are 2^10 and 2^20, GB is 10^9.
Unknown: a kind, counter or mode that is not known here is said by its own name.
Raises:  nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from linkproof.measured import BAD, MODES, Counter, Outcome, Probed, Wrong
from linkproof.report.links_found import RIGHT, Group, of_pairs, verified_links, wrong_links
from linkproof.report.masking import masked
from linkproof.report.say import Teller, say
from linkproof.routes import Cell, RouteTable, proof

Said = Literal["wrong", "verified", "partly", "no_link", "nothing"]
COPIES = ("push", "pull", "pool", "vmm", "chain")
KERNELS = ("store", "store16", "load", "load16", "views")


def size_words(size_B: int, t: Teller) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_B and size_B % unit == 0:
            return f"{size_B // unit:,} {name}"
    return t("{n} bytes", n=f"{size_B:,}")


def joined(parts: Iterable[str], t: Teller) -> str:
    return ("；" if t.lang == "zh" else "; ").join(parts)


def load_words(load: str, t: Teller) -> str:
    return {"alone": t("each link alone"), "both_ways": t("both directions at once"), "all": t("all links at once")}.get(load, load)


def told(cell: Cell | Outcome, t: Teller, modes: str = "", gpus: str = "") -> str:
    """Why it is what it is; modes, gpus: to say it of several."""
    template = cell.why
    args = {**cell.args, **({"mode": modes} if modes else {}), **({"gpu": gpus} if gpus else {})}
    return masked(say(template, args, t.lang))


# ---------------------------------------------------------------- the first line


def headline(probed: Probed, table: RouteTable, found: Sequence[Group], t: Teller) -> tuple[Said, str]:
    verified = verified_links(table)
    total = len(table.pairs)
    proven = proof(table)
    if proven.word == "one_gpu" and any(c.state != "not_tested" for c in table.cells.values()):
        return _one_card(table, found, t)
    bad = [g for g in found if g.state in BAD and g.counted]
    if bad:
        parts = _failures(table, bad, t)
        if verified:
            parts.append(t("{n} of {total} verified", n=len(verified), total=total))
        words = joined(parts, t)
        return "wrong", words[:1].upper() + words[1:]
    if not verified:
        return "nothing", _nothing(probed, t)
    modes = [m for m in MODES if MODES[m].judged and all(table.state(*p, m) in RIGHT for p in verified)]
    said = {"n": len(verified), "total": total}
    if proven.word == "no_p2p":
        words = t("{n} of {total} links are right through host memory; this machine offers no direct way between its GPUs", **said)
    elif modes == ["staged"]:
        words = t("{n} of {total} links are right through host memory; no direct way was verified on all of them", **said)
    elif len(modes) == 1:
        words = t("{n} of {total} links verified in 1 mode ({mode}): every byte right", mode=modes[0], **said)
    else:
        words = t("{n} of {total} links verified in {k} modes: every byte right", k=len(modes), **said)
    parts = [words]
    if slow := {c.gpus for c in table.slow}:
        parts.append(t("{n} slower than they should be", n=len(slow)))
    missing = list(dict.fromkeys(m.partition(" ")[0] for m in proven.missing))
    if total > len(verified):
        parts.append(t("{n} links not tested", n=total - len(verified)))
    elif missing:
        shown = ", ".join(missing[:4]) + (" ..." if len(missing) > 4 else "")
        parts.append(t("not proven: {modes}", modes=shown))
    return ("partly" if proven.word == "part" else "verified"), joined(parts, t)


def _one_card(table: RouteTable, found: Sequence[Group], t: Teller) -> tuple[Said, str]:
    bad = [m for g in found if g.state in BAD and g.counted for m in g.modes]
    if bad:
        return "wrong", t(
            "One GPU: there is no link to test, and the card fails with itself ({modes})", modes=", ".join(dict.fromkeys(bad))
        )
    right = {mode for (_, _, mode), c in table.cells.items() if c.state in RIGHT}
    return "no_link", t(
        "One GPU: there is no link to test. On the card itself {n} modes are right; that says nothing about links", n=len(right)
    )


def _nothing(probed: Probed, t: Teller) -> str:
    if not probed.cards:
        return t("Nothing could be tested: no GPU answers")
    reasons = [o for o in probed.outcomes if o.state in ("refused", "not_tested") and o.why]
    if not reasons:
        return t("Nothing was tested")
    most = max(reasons, key=lambda o: sum(p.why == o.why for p in reasons))
    return t("Nothing could be tested: {why}", why=told(most, t))


def _failures(table: RouteTable, bad: Sequence[Group], t: Teller) -> list[str]:
    """The control, if it fails, first; then per state how many links in which modes; then what takes more than two GPUs."""
    parts = []
    total = len(table.pairs)
    if control := wrong_links(table, ["staged"]):
        parts.append(t("the way through host memory itself fails on {n} of {total} links", n=len(control), total=total))
    for state in BAD:
        here = [g for g in bad if g.state == state and of_pairs(g.cells[0]) and g.modes[0] != "staged"]
        if here:
            modes = [m for m in MODES if any(m in g.modes for g in here)]
            links = {link for g in here for link in g.links}
            said = {"n": len(links), "total": total, "modes": ", ".join(modes)}
            if state == "corrupt":
                parts.append(t("wrong data on {n} of {total} links ({modes})", **said))
            elif state == "hung":
                parts.append(t("no end on {n} of {total} links ({modes})", **said))
            else:
                parts.append(t("a crash on {n} of {total} links ({modes})", **said))
        wide = list(dict.fromkeys(m for g in bad if g.state == state and not of_pairs(g.cells[0]) for m in g.modes))
        if wide:
            names = ", ".join(wide)
            if state == "corrupt":
                parts.append(t("wrong data from {modes}", modes=names))
            elif state == "hung":
                parts.append(t("no end of {modes}", modes=names))
            else:
                parts.append(t("a crash of {modes}", modes=names))
    return parts


# ---------------------------------------------------------------- what is wrong with the bytes


def kind_words(w: Wrong, t: Teller, now: int = 0) -> str:
    """now: number of the transfer, from 0. The data carry eight bits of it, so a number from 256 on, or one to come, names no transfer."""
    number = re.search(r"-?\d[\d,]*", w.detail.replace("+", ""))
    n = int(number[0].replace(",", "")) if number and w.kind in ("stale", "offset", "overrun") else 0
    if w.kind == "offset":
        words = (
            t("displaced: data from {n} bytes further on stand there", n=f"{n:,}")
            if n > 0
            else t("displaced: data from {n} bytes before stand there", n=f"{-n:,}")
        )
    elif w.kind == "overrun":
        words = t("written past its end") if n >= 0 else t("written before its beginning")
    elif w.kind == "other_pair":
        words = t("data meant for another link arrived ({link})", link=_arrow(w.detail))
    elif w.kind == "bits":
        bits = w.detail.split(",")
        words = (
            t("bit {n} of 64 is flipped", n=w.detail) if len(bits) == 1 else t("bits are flipped ({n} different ones of 64)", n=len(bits))
        )
    else:
        words = {
            "untouched": t("never arrived: what was put there beforehand (poison) is untouched"),
            "zero": t("zeros arrived instead of the data"),
            "stale": t("old data: those of transfer {n}", n=n + 1) if n < now < 256 else t("old data: those of an earlier transfer"),
            "torn": t("torn words: one part new, one part not"),
            "bystander": t("memory beside the target was overwritten, which no transfer had to touch"),
            "garbage": t("neither the data nor anything else that was sent"),
            "reordered": t("the flag came before its data"),
        }.get(w.kind, w.kind)
    if w.grain_B:
        words = t("{words}, in whole pages of {size}", words=words, size=size_words(w.grain_B, t))
    if 0 < w.rate < 1e-3:
        words = t("{words}; about 1 word in {n}", words=words, n=f"{round(1 / w.rate):,}")
    return words


def _arrow(detail: str) -> str:
    ends = re.findall(r"\d+", detail)
    return f"GPU{ends[0]} -> GPU{ends[1]}" if len(ends) == 2 else detail


def what_happened(g: Group, t: Teller) -> list[str]:
    """Of the first link of the group: how often, how many bytes of how many, which kind; from which size on; under which load."""
    cell = g.cells[0]
    out = [told(cell, t) if cell.why else _without_reason(g.state, t)]
    if g.state == "slow":
        return [t("every byte right, but {why}", why=out[0])]
    o = cell.told
    if o is None:
        return out
    if o.wrong and o.wrong[0].kind != "reordered":
        w = o.wrong[0]
        numbers = {"bad": f"{w.bad_B:,}", "first": f"{w.first_B:,}", "n": f"{o.round_ + 1:,}"}
        if 0 < w.bad_B <= o.size_B:
            out.append(
                t("the first of them (transfer {n}): {bad} of {size} bytes wrong, from byte {first} on", size=f"{o.size_B:,}", **numbers)
            )
        else:
            out.append(t("the first of them (transfer {n}): {bad} bytes wrong, from byte {first} on", **numbers))
        out.append(kind_words(w, t, o.round_))
        if len(o.wrong) > 1:
            out.append(t("also seen: {kinds}", kinds=joined((kind_words(w, t, o.round_) for w in o.wrong[1:]), t)))
    if o.smallest_bad_B and o.largest_ok_B:
        small, large = size_words(o.smallest_bad_B, t), size_words(o.largest_ok_B, t)
        if o.largest_ok_B < o.smallest_bad_B:
            out.append(t("right up to {large}, wrong from {small} on", small=small, large=large))
        else:
            out.append(t("smallest that was wrong: {small}; largest that was right: {large}", small=small, large=large))
    if g.only_under_load:
        loads = t(" or ").join(load_words(load, t) for load in g.loads)
        out.append(t("only under load ({loads}): the same link alone is right", loads=loads))
    if o.transport:
        out.append(t("NCCL went by {transport}", transport=o.transport))
    return out


def _without_reason(state: str, t: Teller) -> str:
    if state == "corrupt":
        return t("data arrived wrong")
    return {"hung": t("it did not end in time"), "died": t("the process that tried it ended with an error")}.get(state, state)


# ---------------------------------------------------------------- what it means, what to do


def means(g: Group, t: Teller) -> list[str]:
    if not g.counted:
        return [t("nothing depends on it: NCCL is right by default here, and would not choose this by itself")]
    if g.state == "slow":
        return [t("the data can be trusted; a direct way this slow is often sent up to the CPU and back")]
    if g.modes[0] == "staged":
        return [
            t(
                "host memory, a card or its way to the CPU is at fault; what is said of direct links of these GPUs is not sure before that is mended"
            )
        ]
    if g.state == "hung":
        return [t("a program that moves data this way waits forever")]
    if g.state == "died":
        return [t("a program that moves data this way ends with an error")]
    words = [_wrong_means(mode, t) for mode in g.modes]
    return list(dict.fromkeys(words))[:2]


def _wrong_means(mode: str, t: Teller) -> str:
    if mode in COPIES:
        return t("a model whose layers are split over these GPUs (device_map) can answer wrongly, with no error anywhere")
    if mode in KERNELS:
        return t("NCCL and the engines' own all-reduce move data this way: tensor-parallel models can answer wrongly")
    if mode.startswith("ipc"):
        return t("engines with one process for each GPU (vLLM, SGLang, torchrun) exchange wrong data this way")
    if mode.startswith("flags"):
        return t("all-reduce kernels add old data, or wait forever")
    return t("a model that is split over these GPUs (tensor parallel) can answer wrongly, with no error anywhere")


def remedies(g: Group, probed: Probed, t: Teller) -> list[str]:
    if not g.counted:
        return [t("do not force it with NCCL_PROTO or NCCL_P2P_LEVEL")]
    if g.state == "slow":
        return [t("look at the way between them: `linkproof topo`")]
    if g.modes[0] == "staged":
        return [t("test the cards first, one by one: `nvidia-smi -q -d ECC`, then another slot")]
    setting = _nccl_setting(g, probed, t)
    cell = g.cells[0]
    if probed.backend == "virtual":  # nothing of a simulated machine is kept
        return [setting] if setting else []
    again = f"linkproof check --mode {g.modes[0]}"
    if of_pairs(cell) and not g.only_under_load and len(set(cell.gpus)) == 2:
        again += f" --pair {cell.gpus[0]}:{cell.gpus[-1]}"
    off = setting or t("keep your engine off it now: `linkproof env --for ENGINE` prints the settings, if there are any")
    return [off, t("measure only this again: `{command}`", command=again)]


def _nccl_setting(g: Group, probed: Probed, t: Teller) -> str:
    """A setting that keeps NCCL off what failed, said only if NCCL was measured to be right without it."""
    arms = {o.case.arm: o.state for o in probed.outcomes if o.case.mode == "nccl" and o.case.arm and set(o.case.gpus) == set(g.links[0])}
    if g.modes != ("nccl",) or not arms:
        return ""
    bad = {arm for arm, state in arms.items() if state in BAD}
    good = {arm for arm, state in arms.items() if state in ("verified", "slow")}
    bad_ways, good_ways = ({arm.split("/")[0] for arm in found} - {"default"} for found in (bad, good))
    bad_protocols = {arm.split("/")[-1] for arm in bad}
    setting = ""
    if bad_ways == {"p2p"} and good_ways - {"p2p"}:
        setting = "NCCL_P2P_DISABLE=1"
    elif bad_ways == {"shm"} and good_ways - {"shm"}:
        setting = "NCCL_SHM_DISABLE=1"
    if len(bad_protocols) == 1 and bad_protocols <= {"LL", "LL128"} and bad_ways <= good_ways:
        setting = f"NCCL_PROTO=^{bad_protocols.pop()}"
    return t("without it NCCL is right here: set `{setting}`", setting=setting) if setting else ""


# ---------------------------------------------------------------- counters


def counter_name(name: str, t: Teller) -> str:
    return {
        "AER": t("PCIe errors (AER)"),
        "AER correctable": t("PCIe errors that were corrected (AER)"),
        "AER nonfatal": t("PCIe errors, not fatal (AER)"),
        "AER fatal": t("PCIe errors, fatal (AER)"),
        "PCIe replay": t("PCIe packets that had to be sent again"),
        "ECC uncorrected": t("GPU memory errors that could not be corrected (ECC)"),
        "remapped rows": t("GPU memory rows that were replaced"),
        "NVLink": t("NVLink state"),
        "NVLink CRC": t("NVLink checksum errors"),
        "NVLink replay": t("NVLink packets that had to be sent again"),
        "NVLink recovery": t("NVLink recoveries"),
        "link width": t("PCIe link width"),
        "kernel log": t("kernel log"),
    }.get(name, name)


def counter_words(c: Counter, t: Teller) -> str:
    """Of one that changed while data went. An AER count carries the kinds that rose: `5 (BadTLP +3)`."""
    what = counter_name(c.name, t) + (f", {masked(c.where)}" if c.where else "")
    before, after = c.before or "", c.after or ""
    lines = after.splitlines()
    if c.name == "kernel log" and lines and not before.isdigit():
        return t("{what}: {n} new lines, the first: {line}", what=what, n=len(lines), line=masked(lines[0]))
    number, _, kinds = after.partition(" ")
    if c.name == "link width" or not before.isdigit() or not number.isdigit() or int(number) < int(before):
        return t("{what}: {before} before, {after} after", what=what, before=masked(before), after=masked(after))
    words = t("{what}: {more} more, {after} in all", what=what, more=f"{int(number) - int(before):,}", after=f"{int(number):,}")
    return f"{words} {masked(kinds)}" if kinds else words
