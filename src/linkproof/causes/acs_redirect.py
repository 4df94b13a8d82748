"""ACS redirect bits on a bridge above a GPU send peer traffic up to the root complex."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, peer_path_bad, peer_path_fine, pro
from linkproof.causes.reading import Reading
from linkproof.model import Acs, IbError, NotChecked, Sign

CLASS = "fabric"
PRIOR = -4.5


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    yield from peer_path_bad(f)
    yield from peer_path_fine(f)
    # a port above every GPU, or above none, does not lie on the way between two
    ports = [p for p in f.all(Acs) if p.above not in ("other", "every gpu")]
    turned = [p for p in ports if p.redirect == "on"]
    on = next((p for p in turned if p.kind != "root_port"), None) or next(iter(turned), None)
    off = next((p for p in ports if p.redirect == "off"), None)
    suspicion = f.trouble
    # between root ports every packet goes up anyway; their bits only decide whether the IOMMU sees it
    moot = on is not None and on.kind == "root_port" and f.iommu_harmless is not None
    if on and moot:
        yield pro(0.7, "{port} redirects, but it is a root port and the IOMMU lets addresses pass", on, port=on.port)
    elif on:
        yield pro(
            3.2 if suspicion else 1.5, "{port} redirects peer traffic up to the root complex", on, port=on.port or "ACSCtl", stands=True
        )
    elif off and not any(p.redirect == "unknown" for p in ports):
        yield con(4.0, "no redirect bit is set on the ports shown", off)
    else:
        yield NotChecked("acs_redirect", "the ACS control registers of the bridges above the GPUs are not known", do="sudo lspci -Dvvv")
    if crossing := f.pairs("redirects"):
        if crossing.follows:
            yield pro(3.0, "every pair that fails crosses a port that redirects, and no pair that passes does", crossing)
        elif not crossing.unknown and not crossing.failing_with:
            yield con(5.0, "no pair that fails crosses a port that redirects", crossing)
        elif not crossing.unknown and crossing.failing_without:
            yield con(3.0, "pairs that cross no port that redirects fail as well", crossing)
        elif not crossing.unknown and crossing.passing_with:
            yield con(1.5, "other pairs cross a port that redirects and pass", crossing)
    if slower := f.event("p2p_slower"):
        yield pro(2.5, "the direct way is slower than the way through the host: {value}", slower, value=slower.value)
    if cured := f.setting("acs_off", "cured"):
        yield pro(5.0, "clearing the ACS bits ended the failure", cured)
    elif same := f.setting("acs_off", "no_effect"):
        yield con(3.0, "clearing the ACS bits changed nothing", same)
    if f.io_page_fault:
        yield con(2.0, "the page fault names the IOMMU; redirect alone does not refuse an address", f.io_page_fault)
    gpudirect = f.first(IbError, call="completion")
    if on and gpudirect:
        yield pro(1.5, "transfers between GPU and network card fail, and they take the same bridges", gpudirect)
    if hint := f.event("nccl_ib_hint_acs"):
        yield pro(1.0, "NCCL hints at ACS after a failed completion", hint)
    if f.changed_driver:
        yield con(0.7, "only the driver changed before it began", f.changed_driver)
    if f.iommu_translating and not on:
        yield con(0.7, "the IOMMU alone explains it", f.iommu_translating)
    if f.amd and not on:
        yield con(0.7, "nothing speaks of ACS, and these cards fail in other ways more often", f.amd)
    if f.nvswitch and not on:
        yield con(1.5, "these cards reach each other over NVSwitch, not over PCIe bridges", f.nvswitch)
