"""The sentences of `check` that depend on more than one value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from linkproof.report.say import Teller


class Unread(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def why(self) -> str: ...
    @property
    def needs_root(self) -> bool: ...


def headline(verdict: str, risks: int, gpus: bool, pci: bool, t: Teller) -> str:
    """pci: whether the PCI devices could be read; silence about a bus nobody saw is not "nothing speaks against it"."""
    if verdict == "faulty":
        return t("A fault shows on this machine")
    if risks == 1:
        return t("No failure shows; one risk stands")
    if risks:
        return t("No failure shows; {n} risks stand", n=risks)
    if not pci:
        return t("Cannot tell: the PCI devices could not be read, and no data went between GPUs")
    if not gpus:
        return t("Cannot tell: no GPU was found here")
    return t("Nothing speaks against this machine, and nothing was measured: no data went between GPUs")


def proven_words(verdict: str, t: Teller, multicast_left: bool = False) -> str:
    """Of a machine whose links were tried. multicast_left: it has NVLink multicast, and that was not."""
    if verdict == "healthy" and multicast_left:
        return t(
            "Healthy: every way between the GPUs that this machine has was tried and is right, but for NVLink multicast, which was not tried"
        )
    if verdict == "healthy":
        return t("Healthy: every way between the GPUs that this machine has was tried and is right")
    if verdict == "faulty":
        return t("A fault shows on this machine")
    return t("Cannot tell whether this machine is healthy")


def unread_words(unread: Sequence[Unread], t: Teller) -> list[str]:
    """Grouped by reason; what root would give comes first, and a tool that is not installed is no news for each of its commands."""
    root = [u.name for u in unread if u.why == "denied" or (u.needs_root and u.why not in ("absent", "not recorded"))]
    late = [u.name for u in unread if u.why == "timeout"]
    failed = [f"{u.name} ({u.why})" for u in unread if u.why.startswith("failed")]
    absent = sorted({u.name.split(" ")[0] for u in unread if u.why == "absent"})
    old = sorted({u.name.split(" ")[0] for u in unread if u.why == "not recorded"})
    out = []
    if root:
        out.append(t("{names}: not allowed; run again as root, from a container on its host", names=", ".join(root)))
    if late:
        out.append(t("{names}: no answer in time", names=", ".join(late)))
    out += failed
    if absent:
        out.append(t("not there: {names}", names=", ".join(absent)))
    if old:
        out.append(t("not in this capture: {names}", names=", ".join(old)))
    return out
