"""Findings -> ordered steps, least change first. Pure, but for the boot loader's files, which are read through `mend.host`.

In:      what `check` found (Checked), what was read for mending (MendEvidence); pairs that a person named.
Out:     Plan. Steps that act now stand before those that need a reboot, and those before what a person must do.
Unknown: without a fresh measurement the steps come from the mechanism that stands, each with the refusal "unmeasured". A capture that holds
         no measurement is planned like that. No step at all is not "healthy": a note says which it is.
Raises:  nothing.
Source:  the Mend sections of the causes' pages; which recipe a cause has stands in `recipes/which.py`.

A pair fails here if data are wrong, do not come or come slowly in a direct mode, while its way through host memory is right. Pairs that
NVLink joins are not on PCIe: their ports are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import permutations

from msgspec import structs

from linkproof.act.hardware import hardware_key
from linkproof.act.recipes import bios
from linkproof.act.recipes.acs import decides
from linkproof.act.recipes.by_hand import GUEST, told
from linkproof.act.recipes.case import Case, Failing, Findings
from linkproof.act.recipes.which import IN_THE_PROGRAM, MENDS, Recipe
from linkproof.act.refusals import listed, refusals
from linkproof.collect.mend import MendEvidence
from linkproof.measured import BAD
from linkproof.mending import ConfigWord, Pair, Plan, Refusal, Sentence, Step
from linkproof.model import Topo, Weighed
from linkproof.parse.topology import path
from linkproof.routes import DIRECT, RouteTable

ON_PATH = ("acs_redirect", "iommu_translation", "p2p_broken_unattributed", "rocm_p2p_copy_broken")  # the pairs decide, not the weight alone
_ORDER = ("now", "restart", "reboot", "by_hand")
_RIGHT = ("verified", "slow")


def plan(checked: Findings, mend: MendEvidence, said_pairs: tuple[Pair, ...] = (), fresh: bool = True, iommu_off: bool = False) -> Plan:
    """said_pairs: PCI addresses of pairs that the person named; fresh: the route table of `checked` is of this machine as it is now."""
    routes = checked.routes if fresh else None
    bad = _failing(checked, routes)
    failing = _merged(bad, said_pairs)
    steps: list[Step] = []
    for cause in _causes(checked, routes, bool(failing)):
        concerned = failing if cause.id in ON_PATH else bad
        if cause.id in ON_PATH and not concerned and routes is None:
            concerned = _standing(checked)
        steps += _steps(Case(checked, mend, cause, concerned, iommu_off), MENDS[cause.id])
    made = [_refused(step, mend, routes is not None, bad) for step in _in_order(steps)]
    made += _instead(made, checked, mend, failing)
    return Plan(
        steps=tuple(made),
        pairs=tuple(f.pair for f in failing),
        measured=routes is not None,
        hardware=hardware_key(checked.tree),
        boot_id=mend.boot_id,
        notes=tuple(_notes(checked, made, failing, routes)),
    )


# ---------------------------------------------------------------- which pairs


def _failing(checked: Findings, routes: RouteTable | None) -> tuple[Failing, ...]:
    if routes is None:
        return ()
    bdfs = {c.index: c.bdf for c in routes.cards}
    out = []
    for src, dst in routes.pairs:
        modes = [f"{mode} {state}" for mode in DIRECT if (state := routes.state(src, dst, mode)) in ("corrupt", "hung", "died", "slow")]
        if modes and routes.state(src, dst, "staged") in _RIGHT and bdfs[src] and bdfs[dst] and not _joined(checked, bdfs[src], bdfs[dst]):
            out.append(Failing((bdfs[src], bdfs[dst]), f"GPU{src} -> GPU{dst}", tuple(modes)))
    return tuple(out)


def _joined(checked: Findings, src: str, dst: str) -> bool:
    """By NVLink or XGMI, as nvidia-smi or rocm-smi shows it: they number by address the cards that the driver has, CUDA may number otherwise."""
    number = {g.bdf: n for n, g in enumerate(g for g in checked.tree.gpus if g.driver in ("", "nvidia", "amdgpu"))}
    a, b = number.get(src, ""), number.get(dst, "")
    names = ("all", f"{a}-{b}", f"{b}-{a}")
    return any(isinstance(f, Topo) and f.path in ("NV", "XGMI") and f.pairs in names for f in checked.diagnosis.facts)


def _merged(bad: tuple[Failing, ...], said: tuple[Pair, ...]) -> tuple[Failing, ...]:
    """A person who names pairs means these and no other."""
    if not said:
        return bad
    measured = {f.pair: f for f in bad}
    return tuple(measured.get(pair) or Failing(pair, f"{pair[0]} -> {pair[1]}") for pair in dict.fromkeys(said))


def _standing(checked: Findings) -> tuple[Failing, ...]:
    """Nothing was measured: the pairs on whose way a mechanism stands, or could not be read."""
    tree = checked.tree
    found = []
    for a, b in permutations(tree.gpus, 2):
        ends = tree.functions[a.bdf], tree.functions[b.bdf]
        way = path(*ends)
        ports = [tree.functions[bdf] for bdf in (way.turning or tuple(end.chain[0] for end in ends if end.chain))]
        redirected = any(p.redirects and decides(way, p) for p in ports)
        if redirected or any(checked.modes.get(end.bdf) == "translating" for end in ends):
            found.append(Failing((a.bdf, b.bdf), f"{a.bdf} -> {b.bdf}"))
    return tuple(found)


# ---------------------------------------------------------------- which causes


def _causes(checked: Findings, routes: RouteTable | None, failing: bool) -> Iterator[Weighed]:
    """Those that are likely; those whose mechanism stands, where nothing else explains what fails; of the ways between GPUs also those that are merely possible where a pair
    fails, unless something else is confirmed: the recipes ask for the mechanism themselves, port by port."""
    named = {w.id: w for w in checked.diagnosis.causes}
    risks = {w.id: w for w in checked.risks}
    confirmed = any(w.state == "confirmed" and w.id not in ON_PATH for w in named.values())
    explained = any(w.state in ("confirmed", "likely") for w in named.values())
    out: dict[str, Weighed] = {}
    for cause in (*named.values(), *risks.values()):
        if cause.id in IN_THE_PROGRAM or cause.id not in MENDS or cause.state == "ruled_out":
            continue
        if cause.id in ON_PATH:
            wanted = (failing and not confirmed) or (routes is None and (cause.id in risks or cause.state in ("confirmed", "likely")))
        elif cause.state in ("confirmed", "likely"):
            wanted = checked.diagnosis.verdict != "healthy"
        else:
            wanted = cause.id in risks and not explained and checked.diagnosis.verdict != "healthy"
        if wanted:
            out.setdefault(cause.id, cause)
    yield from sorted(out.values(), key=lambda w: ON_PATH.index(w.id) if w.id in ON_PATH else len(ON_PATH))  # the port before the IOMMU


def _steps(case: Case, recipes: Iterable[Recipe]) -> Iterator[Step]:
    for recipe in recipes:
        yield from recipe(case)


def _in_order(steps: list[Step]) -> list[Step]:
    """Each once. A step stands behind the one that it waits for, since both act at the same time."""
    first: dict[str, Step] = {}
    for step in steps:
        first.setdefault(step.id, step)
    return sorted(first.values(), key=lambda s: _ORDER.index(s.effect))


# ---------------------------------------------------------------- refusals and notes


def _refused(step: Step, mend: MendEvidence, measured: bool, bad: tuple[Failing, ...]) -> Step:
    found = {r.ref: r for r in (*step.refusals, *refusals(step, mend))}
    if step.changes and step.finding in ON_PATH:
        if not measured:
            found["unmeasured"] = Refusal("unmeasured", Sentence("nothing was measured: no pair is known to fail"))
        elif unknown := [pair for pair in step.pairs if pair not in {f.pair for f in bad}]:
            words = ", ".join(f"{a} -> {b}" for a, b in unknown[:4])
            found["unmeasured"] = Refusal("unmeasured", Sentence("these pairs did not measure bad: {pairs}", {"pairs": words}))
    return structs.replace(step, refusals=tuple(found.values()))


def _instead(steps: list[Step], checked: Findings, mend: MendEvidence, failing: tuple[Failing, ...]) -> Iterator[Step]:
    """What remains where the steps are refused for good: the host's administrator, the BIOS."""
    names = {w.id: w for w in (*checked.diagnosis.causes, *checked.risks)}
    refused = {ref.ref: names[s.finding] for s in steps for ref in s.refusals if s.finding in names}
    if "guest" in refused and GUEST.id not in {s.id for s in steps}:
        yield from told(GUEST)(Case(checked, mend, refused["guest"], failing))
    closed = [s for s in steps if s.id.startswith("acs-") and {r.ref for r in s.refusals} & {"lockdown", "chipset"}]
    if closed and not any(s.id == "acs-kernel" and s.changes for s in steps):
        yield from bios.acs(Case(checked, mend, names[closed[0].finding], failing))


def _notes(checked: Findings, steps: list[Step], failing: tuple[Failing, ...], routes: RouteTable | None) -> Iterator[Sentence]:
    verdict = checked.diagnosis.verdict
    if routes is None:
        yield Sentence(
            "nothing was measured on this machine as it is now: run `linkproof check` first; what stands here comes from what was read"
        )
    elif verdict == "healthy":
        yield Sentence("every pair of GPUs was measured right: nothing needs mending")
    planned = {s.finding for s in steps}
    standing = [w.id for w in checked.risks if w.id in MENDS and w.id not in planned]
    if standing and verdict == "healthy":
        yield Sentence("left alone, since the data arrive right all the same: {causes}", {"causes": ", ".join(standing)})
    elif standing and planned:
        yield Sentence(
            "stands as well, and is left alone until the steps above are done and measured: {causes}", {"causes": ", ".join(standing)}
        )
    if any(isinstance(c, ConfigWord) for s in steps for c in s.changes):
        yield Sentence(
            "what is written to a register is gone after a reboot: once a step has helped, `linkproof fix persist` repeats it at each boot"
        )
    for bdf in dict.fromkeys(bdf for f in failing for bdf in f.pair if bdf not in checked.tree.functions):
        yield Sentence("{gpu} is not among the PCI functions that could be read: nothing is planned for it", {"gpu": bdf})
    if routes is not None:
        yield from _not_mended(checked, routes)
    for cause in checked.diagnosis.causes:
        if cause.id in IN_THE_PROGRAM and cause.state in ("confirmed", "likely"):
            text = "{cause} is mended in the program, not on the machine: `linkproof causes {cause}` says how"
            yield Sentence(text, {"cause": cause.id})
    if routes is not None and verdict == "cannot_tell" and not steps:
        yield Sentence("what was measured does not tell whether something is wrong: `linkproof check` says what would")
    if verdict == "faulty" and not failing and not any(s.changes and not s.refusals for s in steps):
        yield Sentence(
            "nothing here can be applied as it is; until it is mended, `linkproof env --for ENGINE` gives settings that avoid the bad ways"
        )
        yield Sentence("`linkproof run -- COMMAND` checks the copies of a model while it runs")


def _not_mended(checked: Findings, routes: RouteTable) -> Iterator[Sentence]:
    """Pairs that are bad and that no port is to blame for."""
    bad = {(a, b) for a, b in routes.pairs if any(routes.state(a, b, mode) in BAD for mode in DIRECT)}
    bdfs = {c.index: c.bdf for c in routes.cards}
    if joined := [f"GPU{a} -> GPU{b}" for a, b in sorted(bad) if _joined(checked, bdfs[a], bdfs[b])]:
        yield Sentence("these pairs are joined by NVLink or XGMI, so no PCIe port is touched for them: {pairs}", {"pairs": listed(joined)})
    if both := [f"GPU{a} -> GPU{b}" for a, b in sorted(bad) if routes.state(a, b, "staged") not in _RIGHT]:
        text = "the way through host memory is not right either, so their link is not accused: {pairs}"
        yield Sentence(text, {"pairs": listed(both)})
