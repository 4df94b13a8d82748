"""The hardware that a mend is bound to: GPUs, the ports on the ways between them, network cards below the same ports; one key, and its parts.

In:      PciTree.
Out:     parts: `GPU 0000:41:00.0` -> `10de:2330 pci0000:40/0000:40:01.0/0000:41:00.0` (vendor:device and place); the key is a hash of them.
         Driver, kernel, boot, ACS words, IOMMU, link width and speed are not in it, nor whether root read the tree.
Unknown: a device whose numbers or place could not be read has the part "", and then there is no key (""), which equals nothing, not even
         itself. The same if there is no tree, or no GPU in it.
Raises:  nothing.
Source:  /sys/devices: a place is the chain of ports from the host bridge down, and does not change with the bus numbers of other cards alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import msgspec

from linkproof.mending import Sentence
from linkproof.parse.pci_facts import paths_of_interest
from linkproof.parse.pci_tree import PciFunction, PciTree

GPU, PORT, NIC = "GPU", "port", "NIC"
NAMED_MAX = 8  # of the parts that changed; the others are counted
_GONE = {GPU: "GPU {bdf} is gone", PORT: "port {bdf} is gone", NIC: "network card {bdf} is gone"}
_NEW = {GPU: "GPU {bdf} is new ({now})", PORT: "port {bdf} is new on a way between GPUs ({now})", NIC: "network card {bdf} is new ({now})"}
_OTHER = {
    GPU: "GPU {bdf} is now {now} (was {before})",
    PORT: "port {bdf} is now {now} (was {before})",
    NIC: "network card {bdf} is now {now} (was {before})",
}


def identity(function: PciFunction) -> str:
    """`vendor:device` and place, as `mending.ConfigWord.identity`; "" if one of them is not known."""
    if not function.vendor or not function.host_bridge:
        return ""
    return f"{function.vendor:04x}:{function.device:04x} {'/'.join((function.host_bridge, *function.chain, function.bdf))}"


def hardware_parts(tree: PciTree) -> dict[str, str]:
    """GPUs, network cards that a GPU reaches without the CPU, and the ports on the ways between them; in the order of kind and address."""
    kinds = {gpu.bdf: GPU for gpu in tree.gpus}
    for way in paths_of_interest(tree):
        kinds.setdefault(way.b, NIC)
        kinds.update(dict.fromkeys(way.ports, PORT))
    order = (GPU, PORT, NIC)
    return {f"{kind} {bdf}": identity(tree.functions[bdf]) for bdf, kind in sorted(kinds.items(), key=lambda k: (order.index(k[1]), k[0]))}


def key(parts: Mapping[str, str]) -> str:
    """ "" if something is not known: what is not known matches nothing."""
    if not parts or not all(parts.values()):
        return ""
    return sha256(msgspec.json.encode(sorted(parts.items()))).hexdigest()[:16]


def hardware_key(tree: PciTree) -> str:
    return key(hardware_parts(tree))


def changed(saved: Mapping[str, str], tree: PciTree) -> tuple[Sentence, ...]:
    """What is not as it was, in words; () only if both are known and the same."""
    if tree.why:
        return (Sentence("the PCI devices cannot be read: {why}", {"why": tree.why}),)
    now = hardware_parts(tree)
    if not key(saved):
        return (Sentence("what hardware it was made for is not known"),)
    said = [_difference(name, saved.get(name), now.get(name), tree) for name in {**saved, **now} if saved.get(name) != now.get(name)]
    if len(said) > NAMED_MAX:
        said[NAMED_MAX - 1 :] = [Sentence("and {n} other devices differ", {"n": str(len(said) - NAMED_MAX + 1)})]
    return tuple(said)


def _difference(name: str, before: str | None, now: str | None, tree: PciTree) -> Sentence:
    kind, _, bdf = name.partition(" ")
    if now == "":
        return Sentence("{bdf} cannot be read", {"bdf": bdf})
    if now is None and bdf in tree.functions:  # the card at its end is gone
        return Sentence("{bdf} is on no way between GPUs any more", {"bdf": bdf})
    if now is None:
        return Sentence(_GONE[kind], {"bdf": bdf})
    (numbers, _, place), (numbers_before, _, place_before) = now.partition(" "), (before or "").partition(" ")
    if before is None:
        return Sentence(_NEW[kind], {"bdf": bdf, "now": numbers})
    if numbers != numbers_before:
        return Sentence(_OTHER[kind], {"bdf": bdf, "now": numbers, "before": numbers_before})
    return Sentence("{bdf} now stands at {now} (was {before})", {"bdf": bdf, "now": place, "before": place_before})
