"""What `check` says of a machine: the JSON contract, and the text made of it.

In:      a Checked (diagnosis, PCI tree, risks, what could not be read) and a language.
Out:     MachineReport; `as_json` its bytes; `text` its rows.
Unknown: a source that gave nothing stands in `unread` with its reason; a path whose ports could not be read says so.
Raises:  nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec
from msgspec import Struct

from linkproof.measured import Probed
from linkproof.model import PCI_DEVICES, Diagnosis, Gpu, Versions, Weighed
from linkproof.parse.nccl_plan import PairPlan, pair_plans
from linkproof.parse.pci_tree import PciTree
from linkproof.parse.topology import Joined, joined, pairs
from linkproof.report.contract import CauseSaid, Report, cause_said, report_of
from linkproof.report.layout import Piece, Row, wrapped
from linkproof.report.links import detail_rows, found_rows
from linkproof.report.links_json import LinksSaid, links_said
from linkproof.report.machine_words import Unread, headline, proven_words, unread_words
from linkproof.report.say import Teller
from linkproof.report.text import Sheet, engines, noted, sections
from linkproof.report.topo import why_words
from linkproof.routes import RouteTable


class Checked(Protocol):
    """What `linkproof.checking.check` gives; the report does not know who made it."""

    @property
    def diagnosis(self) -> Diagnosis: ...
    @property
    def tree(self) -> PciTree: ...
    @property
    def risks(self) -> tuple[Weighed, ...]: ...
    @property
    def unread(self) -> Sequence[Unread]: ...
    @property
    def cpu_vendor(self) -> str: ...
    @property
    def probed(self) -> Probed | None: ...
    @property
    def routes(self) -> RouteTable | None: ...


class PathSaid(Struct, frozen=True):
    """Between two GPUs. smi: the PCIe path as nvidia-smi names it; nccl: as NCCL does. redirects: ports on the way that turn peer traffic
    up; null: not readable.

    nccl_default: what NCCL chooses with these settings, before any byte goes: P2P SHM NET unknown.
    nvlink: does NVLink join the two (nvidia-smi then names NV# instead of the PCIe path); null: not read. nvlinks: by how many links, 0 if
    by none or if the number is not known.
    """

    a: str
    b: str
    smi: str
    nccl: str
    ports: tuple[str, ...]
    redirects: tuple[str, ...] | None
    nccl_default: str
    nccl_why: str
    nvlink: bool | None
    nvlinks: int


class UnreadSaid(Struct, frozen=True):
    name: str
    why: str
    needs_root: bool


class MachineReport(Struct, frozen=True):
    schema: Literal[1]
    verdict: Literal["healthy", "faulty", "cannot_tell"]
    gpus: tuple[str, ...]
    versions: dict[str, str]
    paths: tuple[PathSaid, ...]
    risks: tuple[CauseSaid, ...]
    unread: tuple[UnreadSaid, ...]
    report: Report
    links: LinksSaid | None = None


def _paths(tree: PciTree, plans: Sequence[PairPlan], nvlinks: Mapping[tuple[str, str], Joined], t: Teller) -> tuple[PathSaid, ...]:
    out = []
    for p, chosen in zip(pairs(tree), plans, strict=True):
        ports = [tree.functions[b] for b in p.turning]
        unknown = any(f.redirects is None and f.acs_why != "no ACS capability" for f in ports)
        redirects = None if unknown else tuple(f.bdf for f in ports if f.redirects)
        nvlink = nvlinks[p.a, p.b]
        why = why_words(chosen, t)
        out.append(PathSaid(p.a, p.b, p.smi, p.nccl, p.ports, redirects, chosen.plan.transport, why, nvlink.nvlink, nvlink.links))
    return tuple(out)


def machine_report(checked: Checked, lang: str) -> MachineReport:
    facts = checked.diagnosis.facts
    versions: dict[str, str] = {}
    for v in (f for f in facts if isinstance(f, Versions)):
        for name in ("driver", "cuda", "nccl", "torch", "rocm", "engine"):
            if getattr(v, name) and name not in versions:
                versions[name] = getattr(v, name)
    names = {g.name: max(g.count, 1) for g in facts if isinstance(g, Gpu) and g.name and not g.fact}
    if not names:  # no driver answers; the bus knows vendor and device
        kinds = [f"{g.vendor:04x}:{g.device:04x}" for g in checked.tree.gpus]
        names = {f"GPU {kind}": kinds.count(kind) for kind in kinds}
    return MachineReport(
        schema=1,
        verdict=checked.diagnosis.verdict,  # type: ignore[arg-type]
        gpus=tuple(f"{count} x {name}" for name, count in names.items()),
        versions=versions,
        paths=_paths(checked.tree, pair_plans(checked.tree, facts, checked.cpu_vendor), joined(checked.tree, facts), Teller(lang)),
        risks=tuple(cause_said(w, lang) for w in checked.risks),
        unread=tuple(UnreadSaid(u.name, u.why, u.needs_root) for u in checked.unread),
        report=report_of(checked.diagnosis, lang),
        links=links_said(checked.probed, lang, checked.routes) if checked.probed is not None else None,
    )


def _multicast_left(links: LinksSaid) -> bool:
    tried = any(o.mode == "nvls" and o.state != "not_tested" for o in links.outcomes)
    return not tried and any(c.multicast for c in links.cards)


def as_json(said: MachineReport) -> str:
    return msgspec.json.format(msgspec.json.encode(said), indent=2).decode() + "\n"


def text(said: MachineReport, lang: str, width: int = 100, say_all: bool = False) -> list[Row]:
    """Verdict, risks with what stands and what to do, then the diagnosis if there is one, then what was not read."""
    t = Teller(lang)
    pci = all(u.name != PCI_DEVICES for u in said.unread)
    style = {"faulty": "bad", "healthy": "good"}.get(said.verdict, "open")
    if said.links is None:
        words = headline(said.verdict, len(said.risks), bool(said.gpus), pci, t)
    else:
        words = proven_words(said.verdict, t, _multicast_left(said.links))
    rows: list[Row] = wrapped([Piece(words, style)], width)
    about = ", ".join([*said.gpus, *(f"{k} {v}" for k, v in said.versions.items())])
    rows += wrapped([Piece(about or t("no GPU was found"), "quiet")], width, 2)
    sheet = Sheet(said.report, width, t, say_all, whole_names=True)
    if said.links is not None:
        sheet.rows.append([])
        found_rows(said.links, sheet)
        if said.report.consumers and said.verdict != "faulty":  # with a fault, its section tells them
            sheet.head(t("What that means for each engine"))
            engines(sheet, said.report)
    redirecting = list(dict.fromkeys(port for p in said.paths for port in p.redirects or ()))
    for risk in said.risks:
        sheet.rows += [[], *wrapped([Piece(f"{t('Risk')}: {risk.title}", "head"), Piece(f"  {risk.id}", "quiet")], width)]
        for sign in risk.signs:
            if sign.speaks_for and sign.stands:
                sheet.item(sign.text, "!")
                sheet.cite(sign.source, 6)
        if risk.id == "acs_redirect" and len(redirecting) > 1:
            ports = ", ".join(redirecting if say_all else redirecting[:8]) + ("" if say_all or len(redirecting) <= 8 else " ...")
            sheet.item(t("{n} ports where a way between GPUs turns do so: {ports}", n=len(redirecting), ports=ports), "!")
        for words in risk.fix[: None if say_all else 1]:
            sheet.item(words, "→", indent=4)
    if said.verdict == "faulty":
        sheet.rows.append([])
        sections(sheet, said.report)
    else:
        noted(sheet, said.report)
    if said.links is not None:
        detail_rows(said.links, sheet)
    unread = unread_words(said.unread, t)
    if unread:
        sheet.head(t("Not read"))
        for line in unread[: None if say_all else 8]:
            sheet.item(line)
        sheet.more(len(unread) - 8 if not say_all else 0)
    return rows + sheet.rows
