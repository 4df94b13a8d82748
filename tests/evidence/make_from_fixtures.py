"""Writes the folders of this package: `python tests/evidence/make_from_fixtures.py FIXTURES` (a folder of public recordings, see about.md of each).

Captures go through the same readers, masks and manifest as `linkproof collect`. expected.txt is written only if it is not there: a change
of it is for a person to confirm (UPDATE_EXPECTED=1 in the test that compares).
"""

from __future__ import annotations

import json
import sys
import tarfile
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import msgspec

sys.path[:0] = [str(Path(__file__).parents[1])]

from evidence.build import DEVICES, DOWN, ENDPOINT, ROOT, UP, Machine, config  # noqa: E402
from evidence.drawn import DRAWN  # noqa: E402
from linkproof.collect.bundle import Manifest, pack  # noqa: E402
from linkproof.collect.evidence import read_evidence  # noqa: E402
from linkproof.collect.host import Host, Live, Recorder  # noqa: E402
from linkproof.collect.mask import Mask  # noqa: E402

HERE = Path(__file__).parent
TIME = "2026-01-01T00:00:00Z"


def manifest(host: Host) -> bytes:
    """The capture's manifest, without the sources that this machine never had (a drawn machine has no commands)."""
    recorder = Recorder(host)
    read_evidence(recorder)
    with tarfile.open(fileobj=BytesIO(pack(recorder.log, Mask(), "linkproof"))) as tar:
        member = tar.extractfile("linkproof-capture/manifest.json")
        assert member is not None
        found = msgspec.json.decode(member.read(), type=Manifest)
    kept = [e for e in found.entries if e.data is not None]
    lines = ",\n  ".join(msgspec.json.encode(e).decode() for e in kept)
    return f'{{"capture": {found.capture}, "tool": "linkproof", "time": "{TIME}", "entries": [\n  {lines}\n]}}\n'.encode()


def save(name: str, host: Host, about: str) -> None:
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(manifest(host))
    (folder / "about.md").write_text(f"# {name}\n\n{about.strip()}\n", encoding="utf-8")


def qemu_lab(folder: Path, host_name: str) -> Machine:
    """A snapshot of the lab's virtual machine. Its display adapters (1234:1111, class 0380) stand in for GPUs: they are said to be NVIDIA's."""
    said = json.loads((folder / "snapshot.json").read_text(encoding="utf-8"))
    m = Machine()
    m.folders["/sys/class/iommu"] = said["class_iommu"]
    m.folders["/sys/firmware/acpi/tables"] = said["acpi"]
    m.files["/proc/cmdline"] = said["cmdline"].encode()
    for bdf, device in said["devices"].items():
        base = f"{DEVICES}/{bdf}"
        m.folders[DEVICES].append(bdf)
        m.links[base] = device["realpath"]
        for name, text in device.items():
            if name == "config_b64":
                m.files[f"{base}/config"] = b64decode(text)
            elif name == "iommu_group":
                m.links[f"{base}/iommu_group"] = f"/sys/kernel/iommu_groups/{text}"
            elif name == "driver":
                m.links[f"{base}/driver"] = f"/sys/bus/pci/drivers/{text}"
            elif name != "realpath" and isinstance(text, str):
                m.files[f"{base}/{name}"] = b"0x10de" if (name, text) == ("vendor", "0x1234") else text.encode()
    for number, group in said["iommu_groups"].items():
        m.files[f"/sys/kernel/iommu_groups/{number}/type"] = group["type"].encode()
    assert host_name
    return m


def dgx2(path: Path) -> Machine:
    """An lstopo XML: its Bridge and PCIDev objects become functions of the same place; a user's view (no configuration space)."""
    m = Machine(root=False)
    del m.folders["/sys/class/iommu"]  # not recorded
    top = ElementTree.parse(path).getroot()

    def walk(node: ElementTree.Element, place: str, depth: int) -> None:
        for child in node.findall("object"):
            at, deeper = place, depth
            if child.get("type") == "NUMANode":
                m.numa = int(child.get("os_index", "0"))
            kind, bus = child.get("type"), child.get("bridge_pci", "")
            if kind == "Package":  # its NUMA node stands beside its bridges
                m.numa = int(next(n for n in child.findall("object") if n.get("type") == "NUMANode").get("os_index", "0"))
            if kind == "Bridge" and child.get("bridge_type") == "0-1":
                at, deeper = f"pci{bus[:5]}{bus[6:8]}", 0
            elif kind in ("Bridge", "PCIDev"):
                bdf, words = child.get("pci_busid", ""), child.get("pci_type", "").replace("[", "").replace("]", "").split()
                vendor, device = (int(x, 16) for x in words[1].split(":"))
                cls = int(words[0], 16) << 8
                port = ENDPOINT if kind == "PCIDev" else ROOT if depth == 0 else UP if depth % 2 else DOWN
                link = {"current_link_width": "16", "max_link_width": "16"} if kind == "Bridge" else {}
                m.function(place, bdf, cls, vendor, device, config(vendor, device, cls, port), **link)
                at, deeper = bdf, depth + 1
            walk(child, at, deeper)

    walk(top, "", 0)
    return m


def hwloc(archive: Path, at: Path) -> Live:
    """A tar of /sys and /proc that a user without rights took."""
    with tarfile.open(archive) as tar:
        keep = [
            t for t in tar if "/sys/bus/pci/" in t.name or "/sys/devices/pci" in t.name or t.name.endswith(("proc/meminfo", "proc/mounts"))
        ]
        tar.extractall(at, members=keep, filter="tar")
    return Live(str(next(p for p in at.iterdir() if p.is_dir())))


def nccl_nesting(fixtures: Path) -> str:
    """Published topology files as indented lines: `cpu NUMA` and, two spaces deeper each, `ADDRESS CLASS`."""
    out = []

    def walk(node: ElementTree.Element, depth: int) -> None:
        for child in node:
            if child.tag == "cpu":
                out.append(f"cpu {child.get('numaid')}")
            elif child.tag == "pci":
                out.append(f"{'  ' * depth}{child.get('busid', '').lower()} {child.get('class', '')[2:]}")
            else:
                continue
            walk(child, depth + 1)

    for path in sorted(p for name in ("rccl", "azhpc-images", "aws-ofi-nccl") for p in (fixtures / name).glob("*.xml")):
        if "graph" not in path.name:
            out.append(f"# {path.parent.name}/{path.name}")
            walk(ElementTree.parse(path).getroot(), 0)
    return "\n".join(out) + "\n"


def main(fixtures: Path) -> None:
    for name, draw in DRAWN.items():
        save(name, draw(), f"{' '.join((draw.__doc__ or '').split())}\n\nDrawn (`drawn.py`), no recording.")
    for boot in ("intel_iommu-on", "iommu-pt", "iommu-off", "config_acs-off"):
        words = f"Recorded as root in a virtual machine (QEMU 7.2, Linux 6.12.95), boot variant `{boot}`. Registers and groups are what Linux made\n"
        words += "of them. The display adapters (1234:1111) stand in for GPUs: their vendor reads 0x10de here, nothing else was changed."
        save(f"qemu-{boot.replace('_', '-')}", qemu_lab(fixtures / "qemu-lab" / boot, boot), words)
    words = "An NVIDIA DGX-2H, 16 V100 behind cascaded PLX switches, from `tests/hwloc/xml/nvidiaDGX2.xml` of open-mpi/hwloc (BSD-3-Clause), commit\n"
    words += "3b37b024: the tree of PCI objects only. Place and class as recorded; widths are not, and configuration space holds what the\n"
    words += "identity tells, 64 bytes as a user sees it."
    save("dgx2-no-root", dgx2(fixtures / "hwloc" / "nvidiaDGX2.xml"), words)
    for name, tar in (("xeon-phi-no-root", "32em64t-2n8c+dax+nvme+mic+dimms"), ("two-groups-no-root", "40intel64-2g2n4c+pcilocality")):
        words = f"Recorded by a user without rights: `tests/hwloc/linux/{tar}.tar.bz2` of open-mpi/hwloc (BSD-3-Clause), commit 3b37b024.\n"
        words += "Every configuration space has 64 bytes."
        with TemporaryDirectory() as at:
            save(name, hwloc(fixtures / "hwloc" / f"{tar}.tar.bz2", Path(at)), words)
    (HERE / "nccl_topologies.txt").write_text(nccl_nesting(fixtures), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
