"""What a plan needs of a machine: read right, never guessed, never raised on; and kept by `linkproof collect`, so that a plan from a capture is the
plan of the machine itself but for the measurement and the boot that it was made in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import linkproof.machine
from evidence.build import DEVICES, Machine
from evidence.drawn import DRAWN
from fix_machine import SWITCH_PORTS, laid_out
from linkproof.act.plan import plan
from linkproof.checking import check
from linkproof.cli import main
from linkproof.collect.bundle import unpack
from linkproof.collect.host import Answer, Host, Live, Recorded
from linkproof.collect.mend import Group, MendEvidence, read_mend
from linkproof.measured import Probed
from linkproof.mending import Plan
from linkproof.sim.host import SimHost
from linkproof.sim.scenario import load, names
from planned import BOTH, GPUS, LSCPU, NIC, PORTS, ROOT_PORT, bad_between, driver, put, two_below_a_switch

EVIDENCE = Path(__file__).parent.parent / "evidence"
CAPTURES = sorted(path.parent.name for path in EVIDENCE.glob("*/manifest.json"))
LAYOUTS = sorted(path.name for path in (EVIDENCE / "boot").iterdir() if path.is_dir())
X86, ARM = LSCPU, "Architecture: aarch64\nVendor ID: HiSilicon\nFlags: fp asimd evtstrm aes\n"
CPUINFO = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu vme sse2 svm\n"
DETECT, DF = ("systemd-detect-virt",), ("df", "-kP", "/dev/shm")
STATE = ("systemctl", "show", "-p", "LoadState", "-p", "ActiveState", "nvidia-fabricmanager")


class Told:
    """path or command -> the answer; of all else another machine is asked."""

    def __init__(self, answers: dict[Any, Answer], other: Host) -> None:
        self.answers, self.other = answers, other

    def file(self, path: str) -> Answer:
        return self.answers.get(path) or self.other.file(path)

    def names(self, path: str) -> Answer:
        return self.answers.get(path) or self.other.names(path)

    def link(self, path: str) -> Answer:
        return self.answers.get(path) or self.other.link(path)

    def run(self, argv: tuple[str, ...], deadline_s: float = 5.0) -> Answer:
        return self.answers.get(argv) or self.other.run(argv, deadline_s)


def read(said: dict[Any, str | Answer]) -> MendEvidence:
    """Of a machine that says this and nothing else."""
    answers = {asked: answer if isinstance(answer, Answer) else Answer(answer.encode()) for asked, answer in said.items()}
    return read_mend(Told(answers, Machine()))


# ---------------------------------------------------------------- unknown


def test_of_a_machine_that_says_nothing_nothing_is_known() -> None:
    found = read({})
    assert found == MendEvidence(host=found.host)
    assert (found.virt, found.lockdown, found.cpus, found.shm_KiB, found.units) == ("", "", None, None, {})


def test_what_may_not_be_read_is_not_known_either() -> None:
    class Denied:
        def file(self, path: str) -> Answer:
            return Answer(None, "denied")

        names = link = file

        def run(self, argv: tuple[str, ...], deadline_s: float = 5.0) -> Answer:
            return Answer(None, "denied")

    found = read_mend(Denied())
    assert found == MendEvidence(host=found.host)


# ---------------------------------------------------------------- virtual machines


@pytest.mark.parametrize(
    ("said", "virt"),
    [
        ({DETECT: "none\n", ("lscpu",): X86}, "none"),
        ({DETECT: "kvm\n", ("lscpu",): X86}, "kvm"),
        ({DETECT: "microsoft\n"}, "microsoft"),
        ({DETECT: "none\n", ("lscpu",): X86 + "Hypervisor vendor: Xen\n"}, "none"),  # a Xen dom0 is the host
        ({DETECT: "docker\n", ("lscpu",): X86}, "none"),
        ({DETECT: "docker\n", ("lscpu",): X86 + "Hypervisor vendor:     KVM\n"}, "KVM"),
        ({DETECT: "wsl\n", ("lscpu",): X86 + "Hypervisor vendor: Microsoft\n"}, "Microsoft"),
        ({("lscpu",): X86}, "none"),
        ({("lscpu",): X86.replace("sse2", "sse2 hypervisor")}, "unknown"),
        ({"/proc/cpuinfo": CPUINFO}, "none"),
        ({"/proc/cpuinfo": CPUINFO.replace("vme", "hypervisor")}, "unknown"),
        ({("lscpu",): X86, "/sys/class/dmi/id/sys_vendor": "QEMU\n"}, "qemu"),
        ({("lscpu",): X86, "/sys/class/dmi/id/product_name": "VMware7,1\n"}, "vmware"),
        ({("lscpu",): X86, "/sys/class/dmi/id/sys_vendor": "Supermicro\n"}, "none"),
    ],
)
def test_bare_metal_and_guests_are_told_apart(said: dict[Any, str | Answer], virt: str) -> None:
    assert read(said).virt == virt


@pytest.mark.parametrize(
    "said",
    [
        {("lscpu",): ARM},
        {"/proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x48\nFeatures\t: fp asimd\n"},
        {("lscpu",): "lscpu: failed to determine number of CPUs: Permission denied\n"},
        {("lscpu",): "Architecture: x86_64\n"},
        {DETECT: "Failed to check for virtualization: Permission denied\n"},
        {DETECT: Answer(b"", "timeout")},
        {DETECT: "\n"},
    ],
    ids=["Arm has no flag for it", "Arm by cpuinfo", "lscpu failed", "cut", "the command failed", "it did not end", "it said nothing"],
)
def test_without_a_sign_for_either_a_guest_is_not_ruled_out(said: dict[Any, str | Answer]) -> None:
    assert read(said).virt == ""


def test_a_command_that_failed_does_not_hide_what_the_processor_says() -> None:
    failed = "Failed to check for virtualization: No such file or directory\n"
    assert read({DETECT: failed, ("lscpu",): X86}).virt == "none"
    assert read({DETECT: failed, ("lscpu",): X86 + "Hypervisor vendor: KVM\n"}).virt == "KVM"


@pytest.mark.parametrize(
    ("said", "arm"), [({("lscpu",): ARM}, True), ({("lscpu",): X86}, False), ({"/proc/cpuinfo": "CPU implementer : 0x41"}, True)]
)
def test_an_arm_machine_is_known_by_its_processor(said: dict[Any, str | Answer], arm: bool) -> None:
    assert read(said).arm is arm


# ---------------------------------------------------------------- containers

NAMESPACE = "/proc/self/ns/pid"


@pytest.mark.parametrize(
    ("said", "sign"),
    [
        ({DETECT: "docker\n"}, "systemd-detect-virt: docker"),
        ({DETECT: "podman\n"}, "systemd-detect-virt: podman"),
        ({DETECT: "kvm\n"}, ""),
        ({NAMESPACE: "/proc/1/ns/pid:[4026532890]"}, NAMESPACE),
        ({NAMESPACE: "/proc/1/ns/pid:[4026531836]"}, ""),
        ({"/.dockerenv": ""}, "/.dockerenv"),
        ({"/run/.containerenv": "engine=podman\n"}, "/run/.containerenv"),
        ({"/run/systemd/container": "lxc\n"}, "/run/systemd/container"),
        ({"/proc/self/cgroup": "0::/docker/5f5f5f\n"}, "/proc/self/cgroup"),
        ({"/proc/self/cgroup": "12:cpu:/kubepods/burstable/pod1/abc\n"}, "/proc/self/cgroup"),
        ({"/proc/self/cgroup": "0::/system.slice/containerd.service\n"}, "/proc/self/cgroup"),
        ({"/proc/self/cgroup": "0::/user.slice/user-1000.slice/session-1.scope\n"}, ""),
        ({"/proc/self/cgroup": "0::/system.slice/dockerish-thing.service\n"}, ""),
    ],
)
def test_a_container_is_known_by_any_of_its_signs(said: dict[Any, str | Answer], sign: str) -> None:
    assert read(said).container == sign


@pytest.mark.parametrize(
    ("mounts", "read_only"),
    [
        ("sysfs /sys sysfs rw,nosuid 0 0\n", False),
        ("sysfs /sys sysfs ro,nosuid 0 0\n", True),
        ("sysfs /sys sysfs ro 0 0\nsysfs /sys sysfs rw 0 0\n", False),
        ("sysfs /sys sysfs rw 0 0\nsysfs /sys sysfs ro 0 0\n", True),
        ("overlay / overlay ro 0 0\ncgroup /sys/fs/cgroup cgroup2 ro 0 0\n", False),
        ("sysfs /sys sysfs rw,errors=ro 0 0\n", False),
        ("sysfs /sys\n/sys ro\n", False),
        ("", False),
    ],
)
def test_of_several_mounts_over_sys_the_last_one_counts(mounts: str, read_only: bool) -> None:
    assert read({"/proc/mounts": mounts}).sys_read_only is read_only


# ---------------------------------------------------------------- the kernel, the processors, the memory

LOCK = "/sys/kernel/security/lockdown"


@pytest.mark.parametrize(
    ("said", "lockdown"),
    [
        ({LOCK: "[none] integrity confidentiality\n"}, "none"),
        ({LOCK: "none [integrity] confidentiality\n"}, "integrity"),
        ({LOCK: "none integrity [confidentiality]\n"}, "confidentiality"),
        ({LOCK: "none integrity\n"}, ""),
        ({"/proc/cmdline": "ro lockdown=integrity quiet\n"}, "integrity"),
        ({"/proc/cmdline": "nolockdown=integrity lockdown=none\n"}, ""),
        ({LOCK: "[none] integrity\n", "/proc/cmdline": "lockdown=integrity\n"}, "none"),
    ],
)
def test_lockdown_is_what_the_kernel_says_and_else_what_it_was_asked_for(said: dict[Any, str | Answer], lockdown: str) -> None:
    assert read(said).lockdown == lockdown


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0\n", 1), ("0-253\n", 254), ("0-127,256-383\n", 256), ("0,2,4\n", 3), ("0-0", 1), (" 0-7 \n", 8),
        ("", None), ("0-", None), ("-3", None), ("7-0", None), ("0-x", None), ("0-3,,5", None), ("0-99999999999", None), ("٠-٣", None), ("0 - 3 - 5", None),
    ],
)  # fmt: skip
def test_cpus_are_counted_from_ranges_and_never_guessed(text: str, cpus: int | None) -> None:
    assert read({"/sys/devices/system/cpu/possible": text}).cpus == cpus


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("Filesystem 1024-blocks Used Available Capacity Mounted on\ntmpfs 65536 0 65536 0% /dev/shm\n", 65536),
        ("Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/sda1 999 0 999 0% /\n", None),
        ("df: /dev/shm: No such file or directory\n", None),
        ("tmpfs many 0 0 0% /dev/shm\n", None),
        ("", None),
    ],
)
def test_shared_memory_is_that_of_its_own_mount(text: str, size: int | None) -> None:
    assert read({DF: text}).shm_KiB == size


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("LoadState=loaded\nActiveState=inactive\n", {"nvidia-fabricmanager": "inactive"}),
        ("ActiveState=active\nLoadState=loaded\n", {"nvidia-fabricmanager": "active"}),
        ("LoadState=not-found\nActiveState=inactive\n", {}),
        ("LoadState=masked\nActiveState=inactive\n", {}),
        ("System has not been booted with systemd as init system (PID 1). Can't operate.\nFailed to connect to bus: Host is down\n", {}),
        ("LoadState=loaded\n", {}),
        ("", {}),
    ],
)
def test_a_unit_that_is_not_installed_is_not_an_inactive_one(text: str, units: dict[str, str]) -> None:
    assert read({STATE: text}).units == units


def test_options_of_modules_are_read_from_files_that_modprobe_reads() -> None:
    folder = "/etc/modprobe.d"
    said: dict[Any, str | Answer] = {
        folder: "nvidia.conf\nREADME\nold.conf.bak\nsecret.conf\nzz.conf",
        f"{folder}/nvidia.conf": "options nvidia NVreg_EnableMSI=1\n",
        f"{folder}/secret.conf": Answer(None, "denied"),
        f"{folder}/old.conf.bak": "options nvidia x=1\n",
    }
    assert read(said).modprobe == {
        f"{folder}/nvidia.conf": "options nvidia NVreg_EnableMSI=1\n",
        f"{folder}/secret.conf": "",
        f"{folder}/zz.conf": "",
    }


def test_the_boards_maker_stands_in_where_the_systems_maker_is_not_told() -> None:
    at = "/sys/class/dmi/id"
    board: dict[Any, str | Answer] = {f"{at}/board_vendor": "ASRockRack\n", f"{at}/board_name": "ROME2D32GM-2T\n"}
    found = read(board)
    assert (found.vendor, found.product, found.board) == ("ASRockRack", "", "ASRockRack ROME2D32GM-2T")
    assert read({**board, f"{at}/sys_vendor": "Lenovo\n", f"{at}/product_name": "X\n"}).vendor == "Lenovo"


# ---------------------------------------------------------------- devices


def test_each_function_is_told_with_its_place_its_driver_and_what_it_lends() -> None:
    m = put(
        driver(two_below_a_switch(iommu="DMA"), NIC, "mlx5_core"),
        {f"{DEVICES}/{NIC}/sriov_numvfs": "4", f"{DEVICES}/{NIC}/removable": "fixed"},
    )
    found = read_mend(m)
    nic, gpu = found.functions[NIC], found.functions[GPUS[0]]
    assert (nic.driver, nic.vfs, nic.removable, nic.for_guest) == ("mlx5_core", 4, "fixed", False)
    assert (gpu.driver, gpu.vfs, gpu.removable) == ("nvidia", 0, "")
    assert gpu.path == f"pci0000:00/{ROOT_PORT}/0000:02:00.0/{PORTS[0]}/{GPUS[0]}"
    assert {f.bdf for f in found.below(PORTS[0])} == {GPUS[0]} and {NIC, *GPUS, *PORTS} <= {f.bdf for f in found.below(ROOT_PORT)}
    assert found.group_of.keys() == set(GPUS), "of GPUs only"
    assert found.groups[found.group_of[GPUS[0]]] == Group("DMA", ((GPUS[0], "nvidia"),))


def test_registers_are_read_of_the_ports_above_gpus_and_of_nothing_else() -> None:
    found = read_mend(DRAWN["acs-away-from-gpus"]())
    assert {f.bdf for f in found.functions.values() if f.config} == {"0000:16:01.0", "0000:17:00.0", "0000:18:00.0", "0000:18:01.0"}


def test_what_is_not_an_address_is_no_device(tmp_path: Path) -> None:
    laid_out(tmp_path, load("acs-redirect-4x4090"))
    (tmp_path / "sys/bus/pci/devices/x").mkdir()
    (tmp_path / "sys/bus/pci/devices/0000:00:00.9").mkdir()
    found = read_mend(Live(str(tmp_path)))
    assert set(SWITCH_PORTS) < found.functions.keys() and not {"x", "0000:00:00.9"} & found.functions.keys()


@pytest.mark.parametrize("name", names())
def test_of_every_simulated_machine_the_kind_and_the_devices_are_known(name: str) -> None:
    scenario = load(name)
    found = read_mend(SimHost(scenario))
    assert {g.bdf for g in scenario.gpus} <= found.functions.keys()
    if scenario.host.container:
        assert found.container
    else:
        assert found.virt == scenario.host.virt
    assert found.cmdline == scenario.host.cmdline and found.shm_KiB == scenario.host.shm_MiB * 1024
    assert all(found.groups[found.group_of[g.bdf]].type == g.iommu for g in scenario.gpus if g.iommu)


def test_a_simulated_machine_in_a_folder_is_read_as_the_one_in_memory(tmp_path: Path) -> None:
    scenario = load("acs-redirect-4x4090")
    laid_out(tmp_path, scenario)
    folder, memory = read_mend(Live(str(tmp_path))), read_mend(SimHost(scenario))
    assert folder.functions == memory.functions and folder.group_of == memory.group_of
    assert {name: group.type for name, group in folder.groups.items()} == {name: group.type for name, group in memory.groups.items()}
    assert (folder.lockdown, folder.cpus, folder.boot_id[:8], folder.virt) == ("none", 64, "11111111", "none")


# ---------------------------------------------------------------- recorded machines


def capture(name: str) -> Recorded:
    return Recorded(unpack((EVIDENCE / name / "manifest.json").read_bytes(), name))


@pytest.mark.parametrize("name", CAPTURES)
def test_of_an_older_capture_what_was_not_recorded_is_not_known(name: str) -> None:
    """They were made before there was `fix`: of the devices there is much, of the machine little, and nothing is made up."""
    host = capture(name)
    found = read_mend(host)
    assert set(found.functions) == set(check(host).tree.functions)
    assert (found.cpus, found.release, found.boot_id, found.vendor, found.units, found.modprobe) == (None, "", "", "", {}, {})
    assert found.lockdown in ("", "none") and found.container == ""
    unknown = [f for f in found.functions.values() if f.driver is None]
    assert all(f.for_guest is None for f in unknown) and unknown


@pytest.mark.parametrize(
    ("name", "virt"), [("one-gpu-in-a-vm", "kvm"), ("h200-in-a-vm", "unknown"), ("switches-acs-on", ""), ("dgx2-no-root", "")]
)
def test_a_recorded_guest_is_known_and_a_recorded_machine_that_does_not_say_is_not_bare_metal(name: str, virt: str) -> None:
    assert read_mend(capture(name)).virt == virt


@pytest.mark.parametrize("name", CAPTURES)
def test_nothing_of_an_older_capture_may_be_written_by_a_plan(name: str) -> None:
    host = capture(name)
    made = plan(check(host), read_mend(host), fresh=False)
    assert all(step.refusals for step in made.steps if step.changes) and not made.measured


# ---------------------------------------------------------------- hostile texts

TEXTS = (
    "/proc/cmdline", "/proc/cpuinfo", "/proc/mounts", "/proc/self/cgroup", "/proc/sys/kernel/osrelease", "/proc/sys/kernel/random/boot_id", LOCK,
    "/sys/devices/system/cpu/possible", "/sys/class/dmi/id/sys_vendor", "/sys/class/dmi/id/board_name", "/etc/modprobe.d/a.conf",
    f"{DEVICES}/{GPUS[0]}/class", f"{DEVICES}/{NIC}/sriov_numvfs", f"{DEVICES}/{NIC}/removable", f"{DEVICES}/{PORTS[0]}/config",
    "/sys/kernel/iommu_groups/1/type",
)  # fmt: skip
COMMANDS = (DETECT, DF, STATE, ("lscpu",))
LINKS = (f"{DEVICES}/{GPUS[0]}", f"{DEVICES}/{GPUS[0]}/driver", f"{DEVICES}/{GPUS[0]}/iommu_group", NAMESPACE)
FOLDERS = (DEVICES, "/etc/modprobe.d", "/sys/kernel/iommu_groups/1/devices")
PIECES = ("\n", "=", ":", "/", "-", ",", "[", "]", "0", "9" * 30, " ", "none", "docker", "../..", "\0", "\udcff", "é", "LoadState=loaded", "flags : hypervisor", GPUS[0],
          "iommu_groups/1", "sysfs /sys sysfs ro 0 0", "options nvidia", "{x}", "{", "\x1b[31m", "٣")  # fmt: skip
SHAPELESS = st.lists(st.sampled_from(PIECES), max_size=8).map(lambda parts: "".join(parts).encode("utf-8", "surrogateescape"))
ANSWERS = st.one_of(
    SHAPELESS.map(Answer), st.binary(max_size=40).map(Answer), st.sampled_from([Answer(None, "denied"), Answer(None, "timeout")])
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from((*TEXTS, *COMMANDS, *LINKS, *FOLDERS)), ANSWERS, min_size=1, max_size=8))
def test_whatever_the_machine_says_it_is_read_without_an_error_and_a_plan_comes_of_it(answers: dict[Any, Answer]) -> None:
    host = Told(answers, two_below_a_switch(iommu="DMA"))
    found = read_mend(host)
    assert found.cpus is None or found.cpus > 0
    assert all(f.vfs is None or f.vfs >= 0 for f in found.functions.values())
    assert found.group_of.keys() <= found.functions.keys() and set(found.group_of.values()) == found.groups.keys()
    made = plan(check(host, bad_between((0, 1))), found)
    for step in made.steps:
        for sentence in (step.what, *step.why, *step.risk, *(r.why for r in step.refusals)):
            assert sentence.text.format(**sentence.args)


# ---------------------------------------------------------------- what `collect` keeps


class Joined:
    """A machine whose /sys, /proc and commands are drawn, and whose boot files lie in a folder."""

    def __init__(self, drawn: Host, boot: Host) -> None:
        self.drawn, self.boot = drawn, boot

    def file(self, path: str) -> Answer:
        return self._first(self.drawn.file(path), self.boot.file(path))

    def names(self, path: str) -> Answer:
        return self._first(self.drawn.names(path), self.boot.names(path))

    def link(self, path: str) -> Answer:
        return self._first(self.drawn.link(path), self.boot.link(path))

    def run(self, argv: tuple[str, ...], deadline_s: float = 5.0) -> Answer:
        return self.drawn.run(argv, deadline_s)

    @staticmethod
    def _first(drawn: Answer, boot: Answer) -> Answer:
        return boot if drawn.data is None and drawn.why == "absent" else drawn


def server(**texts: str) -> Machine:
    """Bare metal with everything that a plan looks at, but no boot files. texts: files that it has too, or others in their place."""
    m = driver(two_below_a_switch(iommu="DMA-FQ"), NIC, "mlx5_core")
    del m.files["/etc/default/grub"], m.files["/boot/grub/grub.cfg"], m.files["/proc/cmdline"]
    for folder in ("/usr/sbin", "/boot", "/boot/grub"):
        del m.folders[folder]
    m.folders["/etc/modprobe.d"] = ["nvidia.conf"]
    m.commands |= {
        DF: Answer(b"Filesystem 1024-blocks Used Available Capacity Mounted on\ntmpfs 65536 0 65536 0% /dev/shm\n"),
        STATE: Answer(b"LoadState=loaded\nActiveState=failed\n"),
    }
    said = {
        "/etc/modprobe.d/nvidia.conf": "options nvidia NVreg_EnableMSI=1", "/sys/class/dmi/id/sys_vendor": "Supermicro",
        "/sys/class/dmi/id/product_name": "SYS-421GE-TNRT", "/proc/sys/kernel/random/boot_id": "11111111-2222-3333-4444-555555555555",
        f"{DEVICES}/{NIC}/sriov_numvfs": "2",
    }  # fmt: skip
    return put(m, {**said, **texts})


@pytest.fixture
def collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Host -> the capture that `linkproof collect` makes of it."""

    def made(host: Host) -> Recorded:
        monkeypatch.setattr(linkproof.machine, "Live", lambda root: host)
        file = tmp_path / "box.tar.gz"
        file.unlink(missing_ok=True)
        assert main(["collect", "-o", str(file), "--lang", "en"]) == 0
        capsys.readouterr()
        return Recorded(unpack(file.read_bytes(), "box"))

    yield made


def planned(host: Host, probed: Probed | None, iommu_off: bool = False) -> Plan:
    return plan(check(host, probed), read_mend(host), BOTH if probed is None else (), probed is not None, iommu_off)


def unnamed(made: Plan) -> Any:
    """Without the boot that it was made in; ids of disks and machines are masked in a capture."""
    text = msgspec.json.encode(made).decode().replace(f'"boot_id":"{made.boot_id}"', '"boot_id":""')
    return json.loads(re.sub(r"\b(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}|uuid-\d+|id-\d+)\b", "ID", text))


@pytest.mark.parametrize("measured", [True, False], ids=["measured", "not measured"])
@pytest.mark.parametrize("lockdown", ["none", "integrity"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_plan_from_a_capture_is_the_plan_of_the_machine(layout: str, lockdown: str, measured: bool, collected: Any) -> None:
    m = server(**{LOCK: f"[{lockdown}]"})
    host = Joined(m, Live(str(EVIDENCE / "boot" / layout / "root")))
    kept, probed = collected(host), bad_between((0, 1), (1, 0)) if measured else None
    for iommu_off in (False, True):
        live, replayed = planned(host, probed, iommu_off), planned(kept, probed, iommu_off)
        assert unnamed(replayed) == unnamed(live)
        assert (live.boot_id[:8], replayed.boot_id) == ("11111111", "")
        assert live.hardware and [step.id for step in live.steps][:2] == ["acs-switch", "acs-path"]
        boots = [step for step in live.steps if step.id in ("acs-kernel", "iommu-passthrough", "iommu-off")]
        assert len(boots) == 2 and all(step.by_hand for step in boots)


class AskedAlready(Live):
    """A machine in a folder whose boot files ask for passthrough already."""

    def file(self, path: str) -> Answer:
        answer = super().file(path)
        if answer.data is None or not path.startswith(("/boot", "/etc/default/grub", "/etc/kernel")):
            return answer
        return Answer(re.sub(rb"\b(rhgb|quiet|ro)\b(?=[ \"\n])", rb"\1 iommu=pt", answer.data))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_capture_keeps_the_boot_files_too_that_only_a_plan_for_other_words_reads(layout: str, collected: Any) -> None:
    host = Joined(server(**{LOCK: "[integrity]"}), AskedAlready(str(EVIDENCE / "boot" / layout / "root")))
    assert unnamed(planned(collected(host), None)) == unnamed(planned(host, None))


def test_a_capture_keeps_everything_that_was_read_for_mending(collected: Any) -> None:
    host = Joined(server(), Live(str(EVIDENCE / "boot" / "ubuntu" / "root")))
    live, kept = read_mend(host), read_mend(collected(host))
    asked = [name for name in MendEvidence.__struct_fields__ if name not in ("host", "boot_id", "cmdline")]
    assert {name: getattr(kept, name) for name in asked} == {name: getattr(live, name) for name in asked}
    assert live.units == {"nvidia-fabricmanager": "failed"} and live.shm_KiB == 65536 and live.modprobe and live.vendor and live.cpus == 64


@pytest.mark.parametrize("name", ["acs-redirect-4x4090", "iommu-translating-2xa6000", "shm-too-small", "vm-passthrough-p2p-zeros"])
def test_a_simulated_machine_gives_the_same_plan_from_its_capture(name: str, tmp_path: Path, collected: Any) -> None:
    laid_out(tmp_path / "root", load(name))
    for host in (SimHost(load(name)), Live(str(tmp_path / "root"))):
        kept = collected(host)
        live, replayed = (plan(check(h), read_mend(h), fresh=False, iommu_off=True) for h in (host, kept))
        assert unnamed(replayed) == unnamed(live)


def test_the_command_plans_from_the_file_that_collect_wrote(tmp_path: Path, collected: Any, capsys: pytest.CaptureFixture[str]) -> None:
    collected(Joined(server(), Live(str(EVIDENCE / "boot" / "ubuntu" / "root"))))
    assert main(["fix", "--from", str(tmp_path / "box.tar.gz"), "--format", "json", "--lang", "en"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["source"] == "capture" and not said["measured"]
    assert {"acs-switch", "acs-path", "iommu-passthrough"} <= {step["id"] for step in said["steps"]}
    assert {r["ref"] for step in said["steps"] if step["id"] == "acs-switch" for r in step["refusals"]} == {"unmeasured"}


def test_a_capture_holds_no_password_of_the_boot_loader(collected: Any) -> None:
    root = Live(str(EVIDENCE / "boot" / "ubuntu" / "root"))
    hash_ = "grub.pbkdf2.sha512.10000." + "A1" * 64 + "." + "B2" * 64
    menu = root.file("/boot/grub/grub.cfg").text + f'\nset superusers="root"\npassword_pbkdf2 root {hash_}\npassword alice opensesame\n'
    kept = collected(Joined(server(**{"/boot/grub/grub.cfg": menu}), root))
    log = json.dumps({k: a.text for k, a in kept.log.items()})
    assert "A1A1A1" not in log and "B2B2B2" not in log and "opensesame" not in log
    assert "menuentry" in kept.file("/boot/grub/grub.cfg").text, "the menu itself is kept"
