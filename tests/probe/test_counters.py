"""Counters read from a tree of files and from the stub of NVML: what rose is told, what cannot be read is None and never 0."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from linkproof import proc
from linkproof.measured import Counter
from linkproof.probe import nvml_counters
from linkproof.probe.counters import compare, read, worrying
from linkproof.probe.nvml_counters import Row

PORT, GPU = "0000:00:01.0", "0000:01:00.0"
STUB = Path(__file__).parent.parent / "collect" / "nvml_stub.c"
COR = "RxErr 0\nBadTLP {bad}\nBadDLLP 0\nRollover 0\nTimeout 1\nNonFatalErr 0\nCorrIntErr 0\nHeaderOF 0\nTOTAL_ERR_COR {total}\n"
UNC = "Undefined 0\nDLP 0\nCmpltTO {n}\nACSViol 0\nTOTAL_ERR_{kind} {n}\n"
NVML_ROWS: list[Row] = [("NVML", "GPU 0", "answers"), ("PCIe replay", "GPU 0", "3"), ("NVLink", "GPU 0 link 0", "active")]


class Tree:
    """A root port and a GPU below it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        gpu = root / "sys/devices/pci0000:00" / PORT / GPU
        self.folders = {PORT: gpu.parent, GPU: gpu}
        (root / "sys/bus/pci/devices").mkdir(parents=True)
        gpu.mkdir(parents=True)
        (root / "dev").mkdir()
        for bdf, folder in self.folders.items():
            (root / "sys/bus/pci/devices" / bdf).symlink_to(folder)
            self.put(bdf, vendor="0x10de" if bdf == GPU else "0x8086", current_link_width="16", current_link_speed="2.5 GT/s PCIe")
            self.errors(bdf)
        self.log("6,10,100,-;usb 1-1: new device\n SUBSYSTEM=usb\n DEVICE=+usb:1-1\n4,11,200,-;NVRM: Xid (PCI:0000:01:00): 31, old\n")

    def put(self, bdf: str, **files: str) -> None:
        for name, text in files.items():
            (self.folders[bdf] / name).write_text(text + "\n")

    def errors(self, bdf: str, bad: int = 0, timeouts: int = 0) -> None:
        self.put(bdf, aer_dev_correctable=COR.format(bad=bad, total=bad + 1), aer_dev_fatal=UNC.format(n=0, kind="FATAL"))
        self.put(bdf, aer_dev_nonfatal=UNC.format(n=timeouts, kind="NONFATAL"))

    def log(self, text: str) -> None:
        with (self.root / "dev/kmsg").open("a") as file:
            file.write(text)

    def read(self, nvml: list[Row] = NVML_ROWS) -> list[Row]:
        return read([GPU], str(self.root), lambda gpus: nvml)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_a_quiet_machine_has_nothing_to_tell(tree: Tree) -> None:
    before = tree.read()
    assert {where for _, where, _ in before} == {PORT, GPU, "GPU 0", "GPU 0 link 0", ""}
    assert None not in {value for _, _, value in before}
    tree.put(GPU, current_link_speed="32.0 GT/s PCIe")  # it woke up
    tree.log("6,12,300,-;usb 1-1: gone\n")
    assert compare(before, tree.read()) == ()


def test_what_rose_is_told_with_its_kinds_on_the_gpu_and_on_the_bridge_above(tree: Tree) -> None:
    before = tree.read()
    tree.errors(PORT, bad=3)
    tree.errors(GPU, timeouts=2)
    told = compare(before, tree.read())
    assert told == (
        Counter("AER correctable", PORT, "1", "4 (BadTLP +3)"),
        Counter("AER nonfatal", GPU, "0", "2 (CmpltTO +2)"),
    )
    assert all(map(worrying, told))


def test_a_narrower_link_worries_and_a_wider_one_does_not(tree: Tree) -> None:
    wide = tree.read()
    tree.put(PORT, current_link_width="8")
    narrow = tree.read()
    assert compare(wide, narrow) == (Counter("link width", PORT, "16", "8"),)
    assert worrying(*compare(wide, narrow))
    assert not worrying(*compare(narrow, wide))


@pytest.mark.parametrize("width", ["0", "63", "255", "Unknown"])
def test_a_width_that_is_none_could_not_be_read(tree: Tree, width: str) -> None:
    before = tree.read()
    tree.put(GPU, current_link_width=width)
    (told,) = compare(before, tree.read())
    assert told.after is None
    assert worrying(told)


def test_a_gpu_that_fell_off_the_bus_is_told(tree: Tree) -> None:
    before = tree.read()
    shutil.rmtree(tree.folders[GPU])
    (tree.root / "sys/bus/pci/devices" / GPU).unlink()
    told = compare(before, tree.read([("NVML", "GPU 0", None)]))
    assert {c.name for c in told if worrying(c)} == {"AER correctable", "AER nonfatal", "AER fatal", "link width", "NVML"}


def test_without_aer_in_the_kernel_one_thing_is_not_known_and_it_is_no_fault(tree: Tree) -> None:
    for folder in tree.folders.values():
        for name in ("aer_dev_correctable", "aer_dev_nonfatal", "aer_dev_fatal"):
            (folder / name).unlink()
    told = compare(tree.read(), tree.read())
    assert told == (Counter("AER", PORT, None, None), Counter("AER", GPU, None, None))
    assert not any(map(worrying, told))


def test_only_new_lines_that_tell_something_are_told_and_not_all(tree: Tree) -> None:
    before = tree.read()
    tree.log(
        "4,12,300,-;pcieport 0000:00:01.0: AER: Correctable error message received from 0000:01:00.0\n SUBSYSTEM=pci\n6,13,1,-;noise\n"
    )
    tree.log("".join(f"4,{n},400,-;NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.\n" for n in range(14, 114)))
    (told,) = compare(before, tree.read())
    assert (told.name, told.before) == ("kernel log", "")
    lines = (told.after or "").splitlines()
    assert len(lines) == 50
    assert "AER: Correctable" in lines[0]
    assert worrying(told)


def test_the_trace_of_a_test_that_we_killed_does_not_worry(tree: Tree) -> None:
    before = tree.read()
    tree.log("4,12,300,-;NVRM: Xid (PCI:0000:01:00): 45, pid=4711, name=python, Ch 00000008\n")
    assert not worrying(*compare(before, tree.read()))
    tree.log("4,13,300,-;AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000c address=0x3c000000000 flags=0x0020]\n")
    assert worrying(*compare(before, tree.read()))


def test_a_kernel_log_that_may_not_be_read_is_unknown(tree: Tree) -> None:
    (tree.root / "dev/kmsg").unlink()
    assert compare(tree.read(), tree.read()) == (Counter("kernel log", "", None, None),)


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK), reason="needs to read /dev/kmsg")
def test_the_kernel_log_of_this_machine_can_be_read_to_its_end() -> None:
    assert {name: value for name, _, value in read([])}["kernel log"] is not None


def test_an_nvlink_that_goes_down_and_a_replay_are_told(tree: Tree) -> None:
    after: list[Row] = [("NVML", "GPU 0", "answers"), ("PCIe replay", "GPU 0", "10"), ("NVLink", "GPU 0 link 0", "inactive")]
    told = compare(tree.read(), tree.read(after))
    assert [(c.name, c.before, c.after) for c in told] == [("PCIe replay", "3", "10"), ("NVLink", "active", "inactive")]
    assert all(map(worrying, told))


def test_nvml_that_stops_answering_is_told_once_for_all_that_hangs_on_it(tree: Tree) -> None:
    told = compare(tree.read(), tree.read([("NVML", "GPU 0", None)]))
    assert told == (Counter("NVML", "GPU 0", "answers", None),)
    assert worrying(*told)
    never = compare(*[tree.read([("NVML", "GPU 0", None)])] * 2)
    assert never == (Counter("NVML", "GPU 0", None, None),)
    assert not worrying(*never)


def test_another_root_has_no_nvml_and_a_machine_without_nvidia_is_not_asked(tree: Tree) -> None:
    assert ("NVML", "GPU 0", None) in read([GPU], str(tree.root))
    tree.put(GPU, vendor="0x1002")
    assert "NVML" not in {name for name, _, _ in read([GPU], str(tree.root))}


# ---------------------------------------------------------------- NVML


class Binding(SimpleNamespace):
    """A pynvml of one card whose link counters are told by field values only."""

    class NVMLError(Exception):
        def __init__(self, value: int) -> None:
            super().__init__(value)
            self.value = value

    NVML_NVLINK_MAX_LINKS = 3

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByPciBusId(self, bdf: str) -> str:
        if bdf != GPU:
            raise self.NVMLError(15)
        return bdf

    def nvmlDeviceGetPcieReplayCounter(self, handle: str) -> int:
        raise self.NVMLError(999)

    def nvmlDeviceGetTotalEccErrors(self, handle: str, kind: int, since: int) -> int:
        raise self.NVMLError(3)

    def nvmlDeviceGetRemappedRows(self, handle: str) -> tuple[int, int, int, int]:
        return (1, 2, 0, 0)

    def nvmlDeviceGetNvLinkState(self, handle: str, link: int) -> int:
        if link == 2:
            raise self.NVMLError(2)
        return 1 - link

    def nvmlDeviceGetNvLinkErrorCounter(self, handle: str, link: int, counter: int) -> int:
        raise self.NVMLError(3)

    def nvmlDeviceGetFieldValues(self, handle: str, fields: list[tuple[int, int]]) -> list[SimpleNamespace]:
        ((field, _link),) = fields
        return [SimpleNamespace(nvmlReturn=3 if field == 162 else 0, valueType=3, value=SimpleNamespace(ullVal=field))]


def test_what_a_card_lacks_is_left_out_and_what_it_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Binding())
    assert nvml_counters.ask([GPU, "0000:02:00.0"]) == [
        ("NVML", "GPU 0", "answers"),
        ("PCIe replay", "GPU 0", None),
        ("remapped rows", "GPU 0", "3"),
        ("NVLink", "GPU 0 link 0", "active"),
        ("NVLink", "GPU 0 link 1", "inactive"),
        ("NVLink replay", "GPU 0 link 0", "161"),
        ("NVLink recovery", "GPU 0", None),
        ("NVLink CRC", "GPU 0 link 0", "163"),
        ("NVML", "GPU 1", None),
    ]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_real_binding_over_a_library_that_hangs_ends_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(library), str(STUB)], check=True)
    argv = (sys.executable, "-m", "linkproof.probe.nvml_counters", GPU)
    env = {"LD_LIBRARY_PATH": str(tmp_path)}
    done = proc.run(argv, deadline_s=10, env=env)
    assert done.out is not None
    assert done.out.strip() == b'[["NVML","GPU 0",null]]'  # this stub does not know how to find a card by its address
    assert proc.run(argv, deadline_s=1.0, env={**env, "NVML_STUB_HANG": "1"}).why == "timeout"
    monkeypatch.setattr("linkproof.probe.counters.NVML_DEADLINE_S", 1.0)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("NVML_STUB_HANG", "1")
    assert ("NVML", "GPU 0", None) in read(["ffff:01:00.0"])
