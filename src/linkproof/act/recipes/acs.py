"""ACS: the redirect bits of the ports on the ways of pairs that fail, least first. Pure.

In:      a Case.
Out:     acs-switch  the ports where the way turns round below a common switch
         acs-root    for pairs that meet only in the CPU: their root ports
         acs-path    unless acs-switch helped: every redirecting port from the two GPUs up to the root port
         acs-kernel  the same for good, on the kernel command line; written only where lockdown leaves nothing else
Unknown: a port whose register could not be read is named, and nothing is written to it.
Raises:  nothing.
Source:  PCI Express Base Specification 6, 6.12 and 7.7.11; Linux kernel-parameters.txt, and its commits on `disable_acs_redir` and `config_acs`.

Only bits of 0x2c (ReqRedir, CmpltRedir, EgressCtrl) that are set now: SrcValid and the others send no packet another way.
An upstream port takes part only where two functions of one device are the turning point: its bits rule traffic between the functions of its
own device, and nothing that comes up from below. The ACS registers of a GPU rule traffic between functions of that card alone: never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from msgspec import Struct, structs

from linkproof.act.recipes.acs_boot import at_boot
from linkproof.act.recipes.case import Case, Failing, measured, pairs_of, seen, undo_line
from linkproof.act.refusals import listed
from linkproof.mending import ConfigWord, Line, Refusal, Sentence, Step
from linkproof.parse.pci_config import ACS, ACS_CONTROL, REDIRECT, bit_names, dwords_acs, extended
from linkproof.parse.pci_tree import PciFunction, PciTree
from linkproof.parse.topology import Path, path

_NOT_THERE = ("no ACS capability", "no extended configuration space")
_WORDS = {
    "0x01": "storage", "0x02": "NIC", "0x03": "GPU", "0x04": "audio", "0x0b": "accelerator", "0x0c": "USB", "0x10": "crypto", "0x12": "accelerator",
}  # fmt: skip


class Ports(Struct, frozen=True):
    """Of one step. on: they redirect; hidden: their register could not be read; failing: the pairs whose ways they stand on."""

    on: tuple[PciFunction, ...]
    hidden: tuple[PciFunction, ...]
    failing: tuple[Failing, ...]

    @property
    def any(self) -> bool:
        return bool(self.on or self.hidden)


def acs(case: Case) -> Iterator[Step]:
    tree = case.found.tree
    ways = [(f, path(tree.functions[f.pair[0]], tree.functions[f.pair[1]])) for f in case.failing if set(f.pair) <= tree.functions.keys()]
    turned = [(f, way) for f, way in ways if way.turning]
    through_cpu = [(f, way) for f, way in ways if not way.turning and way.common not in tree.functions]
    near, far, whole = _ports(tree, turned, _turning), _ports(tree, through_cpu, _roots), _ports(tree, turned, _whole)
    switch = _step(case, "acs-switch", near, Sentence("let packets turn round at the switch ports {ports}", {"ports": _names(near)}))
    if near.any:
        yield switch
    if far.any:
        yield _step(
            case, "acs-root", far, Sentence("let packets between GPUs pass the root ports {ports} unredirected", {"ports": _names(far)})
        )
    if {p.bdf for p in whole.on} > {p.bdf for p in near.on} or (whole.on and not near.any):
        what = Sentence("let packets pass every port from the two GPUs up to the root port unredirected: {ports}", {"ports": _names(whole)})
        step = _step(case, "acs-path", whole, what)
        waits = near.any and (switch.changes or not step.changes)  # what can be done does not wait for what a person must do
        yield structs.replace(step, unless=switch.id) if waits else step
    decisive = near.on or whole.on
    for_good = {p.bdf: p for p in (*decisive, *far.on)}
    if for_good:
        failing = tuple(dict.fromkeys((*(near.failing if near.on else whole.failing), *far.failing)))
        yield from at_boot(case, tuple(for_good.values()), failing)


def _names(ports: Ports) -> str:
    return listed(p.bdf for p in ports.on or ports.hidden)


# ---------------------------------------------------------------- which ports


def _turning(tree: PciTree, way: Path) -> Iterable[str]:
    return way.turning


def _roots(tree: PciTree, way: Path) -> Iterable[str]:
    return [end.chain[0] for end in (tree.functions[way.a], tree.functions[way.b]) if end.chain]


def _whole(tree: PciTree, way: Path) -> Iterable[str]:
    return (*tree.functions[way.a].chain, *tree.functions[way.b].chain)


def decides(way: Path, port: PciFunction) -> bool:
    """Do this port's bits rule where packets of this pair go?"""
    if port.kind == "upstream_port":
        of_one_device = len({bdf.rpartition(".")[0] for bdf in way.turning}) == 1
        return of_one_device and len(set(way.turning)) == 2 and port.bdf in way.turning
    return port.kind in ("root_port", "downstream_port")


def _ports(tree: PciTree, ways: list[tuple[Failing, Path]], chosen: Callable[[PciTree, Path], Iterable[str]]) -> Ports:
    on: dict[str, PciFunction] = {}
    hidden: dict[str, PciFunction] = {}
    concerned: dict[str, Failing] = {}
    for failing, way in ways:
        for port in (tree.functions[bdf] for bdf in chosen(tree, way)):
            if not decides(way, port) and (port.kind or not port.is_bridge):
                continue
            if port.redirects and port.kind:
                on[port.bdf] = port
            elif port.acs is None and port.acs_why not in _NOT_THERE:
                hidden[port.bdf] = port
            else:
                continue
            concerned["-".join(failing.pair)] = failing
    return Ports(tuple(on.values()), tuple(hidden.values()), tuple(concerned.values()))


# ---------------------------------------------------------------- the step


def _step(case: Case, name: str, ports: Ports, what: Sentence) -> Step:
    changes, refusals = [], list[Refusal]()
    for port in ports.on:
        change = _change(case, port)
        if change is not None:
            changes.append(change)
    own_way = [p.bdf for p in ports.hidden if dwords_acs(p.vendor, p.device)]
    hidden = [p.bdf for p in ports.hidden if p.bdf not in own_way] + [p.bdf for p in ports.on if p.bdf not in {c.bdf for c in changes}]
    if not changes and own_way:
        text = "the chipset keeps the ACS registers of {ports} in its own way, and they are not written: the BIOS remains"
        refusals.append(Refusal("chipset", Sentence(text, {"ports": listed(own_way)})))
    if not changes and hidden:
        text = "the ACS registers of {ports} could not be read ({reason}): plan again as root"
        reason = next((p.acs_why for p in ports.hidden if p.bdf not in own_way), "")
        refusals.append(Refusal("not_readable", Sentence(text, {"ports": listed(hidden), "reason": reason or "?"})))
    return Step(
        id=name,
        what=what,
        finding=case.cause.id,
        why=(*measured(ports.failing), *(_said(p) for p in ports.on), *seen(case.cause, "/config")),
        lasts="until_reboot" if changes else "",
        effect="now" if changes else "by_hand",
        undo=Sentence("`linkproof fix rollback` writes the former words back; so does a reboot"),
        by_hand=tuple(_by_hand(ports.on, changes)) or _to_read(ports.hidden),
        changes=tuple(changes),
        risk=_risk(case, ports, (*own_way, *hidden) if changes else ()),
        unsafe_when=(
            Sentence("guests or other tenants use devices below these ports"),
            Sentence("a port leads outside of the case (Thunderbolt, a cable to another box that is not yours)"),
        ),
        refusals=tuple(refusals),
        pairs=pairs_of(ports.failing),
    )


def _change(case: Case, port: PciFunction) -> ConfigWord | None:
    """None if the register was not found in what the plan itself read: then nobody can say where to write."""
    function = case.mend.functions.get(port.bdf)
    at = next(extended(function.config, ACS), None) if function is not None else None
    if function is None or at is None or port.acs is None:
        return None
    identity = f"{port.vendor:04x}:{port.device:04x} {function.path}"
    return ConfigWord(port.bdf, at + ACS_CONTROL, port.acs & REDIRECT, 0, identity, ACS, ACS_CONTROL)


def _said(port: PciFunction) -> Sentence:
    word, bits = port.acs or 0, (port.acs or 0) & REDIRECT
    return Sentence(
        "{port}: ACS control is {word}; {bits} send packets between GPUs up to the CPU",
        {"port": port.bdf, "word": f"0x{word:04x}", "bits": bit_names(bits)},
    )


def _by_hand(ports: tuple[PciFunction, ...], changes: list[ConfigWord]) -> Iterator[Line]:
    words = {p.bdf: p.acs or 0 for p in ports}
    for c in changes:
        yield f"sudo setpci -s {c.bdf} ECAP_ACS+6.w=0000:{c.mask:04x}"
    for c in changes:
        yield undo_line(f"sudo setpci -s {c.bdf} ECAP_ACS+6.w={words[c.bdf]:04x}:{c.mask:04x}")


def _to_read(ports: tuple[PciFunction, ...]) -> tuple[str, ...]:
    """No redirect bit is known: the way to see it."""
    return ("sudo linkproof fix", *(f"sudo setpci -s {p.bdf} ECAP_ACS+6.w" for p in ports if not dwords_acs(p.vendor, p.device)))


def _risk(case: Case, ports: Ports, untold: Iterable[str]) -> tuple[Sentence, ...]:
    """What else stands below the ports, by address: between those and the GPUs the isolation goes."""
    ends = {bdf.rpartition(".")[0] for f in ports.failing for bdf in f.pair}
    others = {
        f.bdf: f"{f.bdf} ({_WORDS.get(f.cls[:4], f.cls or '?')})"
        for port in ports.on or ports.hidden
        for f in case.mend.below(port.bdf)
        if f.bdf.rpartition(".")[0] not in ends and not f.cls.startswith("0x0604")
    }
    out = [Sentence("devices below these ports can then reach each other's memory without the IOMMU looking at it")]
    if others:
        text = "besides the GPUs of these pairs this holds for {devices}"
        out.append(Sentence(text, {"devices": listed(others.values())}))
    if untold := list(untold):
        text = "{ports} could not be read or is not written: if it redirects too, this alone may not help"
        out.append(Sentence(text, {"ports": listed(untold)}))
    out.append(Sentence("a reset of a bridge above, an AER recovery and a rescan put the bits back: `linkproof fix status` tells"))
    return tuple(out)
