"""Each recipe: a machine where its step appears with what it must hold, one where it must not, one where nobody can tell. And what a person
types: configuration of containers and services in the syntax of those who read it, undo lines that give back what was there."""

from __future__ import annotations

import configparser
import re
import shlex
from typing import Any

import pytest
import yaml

from evidence.build import DEVICES, INTEL, Machine
from linkproof.act.recipes.which import IN_THE_PROGRAM, MENDS
from linkproof.causes import causes
from linkproof.collect.host import Answer
from linkproof.mending import Command, ConfigWord, Step, SysfsText, TextFile
from linkproof.model import CudaError, Event, FabricManager, Fact, Gpu, Stage
from planned import BOTH, GPUS, NIC, PORTS, ROOT_PORT, SEEN, driver, plan_for, put, refs, steps, two_below_a_switch, typed, words

SENDS_UP = 0x2C
DMI = "/sys/class/dmi/id"
BAR_SMALL, BAR_WHOLE = Gpu(source=SEEN, fact="bar1_smaller_than_vram"), Gpu(source=SEEN, fact="bar1_covers_vram")
PATCHED, HMM_ON = Event(source=SEEN, kind="patched_driver", value="580.95-p2p"), Event(source=SEEN, kind="uvm_hmm", value="on")
NOT_READY = Event(source=SEEN, kind="fabric_not_ready")


def key(value: str) -> Event:
    return Event(source=SEEN, kind="registry_key", value=value)


# ---------------------------------------------------------------- which finding has which recipe


def test_every_cause_is_mended_on_the_machine_or_in_the_program_and_none_is_both() -> None:
    known = {cause.id for cause in causes()}
    assert set(MENDS) | IN_THE_PROGRAM == known
    assert not set(MENDS) & IN_THE_PROGRAM
    assert all(MENDS.values())


TOLD = {
    "p2p_driver_bug": "other-driver", "gsp_firmware_bug": "driver-firmware", "p2p_unsupported_platform": "unforce-peers",
    "vm_passthrough_p2p": "host-of-the-guest", "vm_topology_missing": "guest-topology", "pcie_link_error": "reseat-link",
    "slow_interconnect": "place-cards", "nvlink_fault": "nvlink-parts", "gpu_hardware_fault": "gpu-hardware", "mig_unsupported": "mig-off",
    "cumem_host_numa": "numa-memory", "container_isolation": "one-container", "firewall": "open-ports", "multi_node_rdma_config": "rdma-map",
    "driver_runtime_mismatch": "driver-parts", "rdma_memlock_limit": "memlock", "shm_too_small": "shm-container", "bar1_too_small": "bios-bar",
}  # fmt: skip


@pytest.mark.parametrize(("cause", "name"), TOLD.items())
def test_what_a_person_must_do_is_told_and_nothing_is_written(cause: str, name: str) -> None:
    step = steps(cause)[name]
    assert (step.finding, step.effect, step.changes, step.lasts) == (cause, "by_hand", (), "")
    assert typed(step) and words(step.undo)
    assert [words(why) for why in step.why][-2:] == ["it was seen", "seen in dmesg:7: a line that says it"]


@pytest.mark.parametrize("cause", TOLD)
@pytest.mark.parametrize("state", ["possible", "ruled_out"])
def test_a_finding_that_is_only_possible_or_ruled_out_asks_for_nothing(cause: str, state: str) -> None:
    assert steps(cause, state=state) == {}


@pytest.mark.parametrize("cause", sorted(IN_THE_PROGRAM))
def test_what_is_mended_in_the_program_is_no_step_and_a_note_says_where_to_read(cause: str) -> None:
    made = plan_for(cause)
    assert made.steps == ()
    assert any(f"linkproof causes {cause}" in words(note) for note in made.notes)


# ---------------------------------------------------------------- ACS


def written(step: Step) -> dict[str, tuple[int, int]]:
    return {c.bdf: (c.mask, c.want) for c in step.changes if isinstance(c, ConfigWord)}


def test_the_ports_where_the_way_turns_come_first_and_the_whole_way_only_if_that_did_not_help() -> None:
    made = steps("acs_redirect")
    assert list(made) == ["acs-switch", "acs-path", "acs-kernel"]
    assert written(made["acs-switch"]) == dict.fromkeys(PORTS, (0x0C, 0))
    assert written(made["acs-path"]) == dict.fromkeys((ROOT_PORT, *PORTS), (0x0C, 0))
    assert (made["acs-switch"].unless, made["acs-path"].unless) == ("", "acs-switch")
    assert made["acs-switch"].pairs == BOTH and made["acs-kernel"].changes == ()
    assert any(f"{NIC} (NIC)" in words(risk) for risk in made["acs-path"].risk), "what loses its isolation besides the GPUs is named"
    assert not any(NIC in words(risk) for risk in made["acs-switch"].risk)


@pytest.mark.parametrize("word", [0x00, 0x01, 0x13, 0x51, None])
def test_ports_that_redirect_nothing_are_left_alone(word: int | None) -> None:
    assert not any(name.startswith("acs-") for name in steps("p2p_broken_unattributed", machine=two_below_a_switch(word, word)))


def test_ports_that_nobody_could_read_are_named_with_the_command_that_reads_them() -> None:
    made = steps("p2p_broken_unattributed", machine=two_below_a_switch(root_reads=False))
    step = made["acs-switch"]
    assert step.changes == () and step.effect == "by_hand" and refs(step) == {"not_readable"}
    assert typed(step) == ["sudo linkproof fix", *(f"sudo setpci -s {port} ECAP_ACS+6.w" for port in PORTS)]


def test_one_port_of_two_that_cannot_be_read_is_told_as_a_risk_of_the_other() -> None:
    m = two_below_a_switch()
    m.files[f"{DEVICES}/{PORTS[1]}/config"] = m.files[f"{DEVICES}/{PORTS[1]}/config"][:64]
    step = steps("acs_redirect", machine=m)["acs-switch"]
    assert written(step) == {PORTS[0]: (0x0C, 0)} and not step.refusals
    assert any(PORTS[1] in words(risk) and "could not be read" in words(risk) for risk in step.risk)


def two_below_a_chipset() -> Machine:
    """The root ports of an older Intel chipset keep their ACS registers in a form of their own."""
    m = two_below_a_switch(0, 0)
    for number, gpu in enumerate(GPUS):
        port = m.port("pci0000:00", f"0000:00:1c.{number}", acs=0x1D)
        m.files[f"{DEVICES}/{port}/device"] = b"0xa115\n"
        at = f"{DEVICES}/{port}/config"
        m.files[at] = INTEL.to_bytes(2, "little") + (0xA115).to_bytes(2, "little") + m.files[at][4:]
        m.links[f"{DEVICES}/{gpu}"] = f"/sys/devices/pci0000:00/{port}/{gpu}"
    return m


def test_a_chipset_with_registers_of_its_own_form_is_not_written_and_the_bios_remains() -> None:
    made = steps("p2p_broken_unattributed", machine=put(two_below_a_chipset(), {f"{DMI}/sys_vendor": "Supermicro"}))
    assert made["acs-root"].changes == () and refs(made["acs-root"]) == {"chipset"}
    assert all("setpci" not in line for line in typed(made["acs-root"]))
    assert typed(made["bios-acs"])[0].startswith("BIOS (Supermicro): ") and "ACS" in typed(made["bios-acs"])[0]


SETPCI = re.compile(r"sudo setpci -s (\S+) ECAP_ACS\+6\.w=([0-9a-f]{4}):([0-9a-f]{4})(?: +# .*)?")


@pytest.mark.parametrize("word", [0x1D, 0x0C, 0x2C, 0x7F, 0x24, 0x53 | 0x08])
def test_the_typed_lines_do_what_the_step_does_and_those_after_them_give_back_the_former_word(word: int) -> None:
    step = steps("acs_redirect", machine=two_below_a_switch(word, 0))["acs-switch"]
    lines = [found for line in typed(step) if (found := SETPCI.fullmatch(line))]
    assert len(lines) == len(typed(step)) == 4
    register = dict.fromkeys(PORTS, word)
    states = []
    for line in lines:
        value, mask = int(line[2], 16), int(line[3], 16)
        register[line[1]] = register[line[1]] & ~mask | value & mask
        states.append(dict(register))
    assert states[1] == dict.fromkeys(PORTS, word & ~SENDS_UP)
    assert states[3] == dict.fromkeys(PORTS, word)


@pytest.mark.parametrize(
    ("release", "word"),
    [
        ("4.19.0", None),
        ("6.8.0-60-generic", "disable_acs_redir=0000:03:00.0;0000:03:01.0"),
        ("6.12.10", None),
        ("6.12.30", "0000:03:00.0;x0x00xx@0000:03:01.0"),
        ("", None),
    ],
)
@pytest.mark.parametrize("lockdown", ["none", "integrity"])
def test_the_kernels_own_parameter_is_written_where_lockdown_leaves_nothing_else_and_works_in_that_kernel(
    release: str, word: str | None, lockdown: str
) -> None:
    made = steps("acs_redirect", release=release, lockdown=lockdown)
    step = made.get("acs-kernel")
    assert (step is None) == (word is None)
    if step is not None and word is not None:
        assert any(word in line for line in typed(step))
        assert [type(c) for c in step.changes] == ([TextFile, Command] if lockdown == "integrity" else [])
        assert step.effect == ("reboot" if lockdown == "integrity" else "by_hand")
    assert ("bios-acs" in made) == (lockdown == "integrity" and word is None), "the BIOS where the kernel has no parameter either"


# ---------------------------------------------------------------- IOMMU


def translating(drivers: str = "", **more: Any) -> Machine:
    """drivers: what holds the GPUs."""
    m = two_below_a_switch(0, 0, iommu="DMA-FQ", **more)
    for gpu in GPUS:
        if drivers:
            driver(m, gpu, drivers)
        else:
            del m.links[f"{DEVICES}/{gpu}/driver"]
    return m


def test_groups_that_no_driver_holds_are_set_to_passthrough_now() -> None:
    m = translating()
    step = steps("iommu_translation", machine=m)["iommu-identity"]
    groups = [m.links[f"{DEVICES}/{gpu}/iommu_group"] for gpu in GPUS]
    assert step.changes == tuple(SysfsText(f"{group}/type", "identity") for group in groups)
    assert (step.effect, step.lasts, step.pairs) == ("now", "until_reboot", BOTH)
    assert typed(step) == [
        *(f"echo identity | sudo tee {group}/type" for group in groups),
        *(f"echo DMA-FQ | sudo tee {group}/type  # undo" for group in groups),
    ]


def test_groups_that_a_driver_holds_are_words_which_name_it() -> None:
    step = steps("iommu_translation", machine=translating("nvidia"))["iommu-identity"]
    assert step.changes == () and all(f"{gpu} (nvidia)" in words(step.what) for gpu in GPUS)
    assert typed(step)[0] == "sudo modprobe -r nvidia_uvm nvidia_drm nvidia_modeset nvidia"
    port_too = translating()
    group = port_too.links[f"{DEVICES}/{GPUS[0]}/iommu_group"]
    port_too.folders[f"{group}/devices"].append(PORTS[0])
    driver(port_too, PORTS[0], "pcieport")
    assert steps("iommu_translation", machine=port_too)["iommu-identity"].changes, "the port's own driver does not hold it"


class Hidden(Machine):
    """Some paths may not be read."""

    denied: tuple[str, ...] = ()

    def names(self, path: str) -> Answer:
        return Answer(None, "denied") if path.startswith(self.denied) else super().names(path)

    def link(self, path: str) -> Answer:
        return Answer(None, "denied") if path.startswith(self.denied) else super().link(path)


@pytest.mark.parametrize("what", ["members", "driver"])
def test_groups_of_which_something_could_not_be_read_are_not_changed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planned.Machine", Hidden)
    m = translating()
    assert isinstance(m, Hidden)
    group = m.links[f"{DEVICES}/{GPUS[0]}/iommu_group"]
    m.denied = (f"{group}/devices" if what == "members" else f"{DEVICES}/{GPUS[0]}/driver",)
    assert steps("iommu_translation", machine=m)["iommu-identity"].changes == ()


def test_only_the_group_of_a_gpu_that_is_translated_is_changed() -> None:
    m = translating()
    other = m.links[f"{DEVICES}/{GPUS[1]}/iommu_group"]
    m.files[f"{other}/type"] = b"identity\n"
    changes = steps("iommu_translation", machine=m)["iommu-identity"].changes
    assert changes == (SysfsText(f"{m.links[f'{DEVICES}/{GPUS[0]}/iommu_group']}/type", "identity"),)


@pytest.mark.parametrize("kind", ["identity", ""])
def test_where_nothing_is_translated_the_iommu_is_left_alone(kind: str) -> None:
    assert not any(name.startswith("iommu-") for name in steps("iommu_translation", machine=two_below_a_switch(0, 0, iommu=kind)))


LINES: dict[str, tuple[dict[str, Any], str, str]] = {  # what was read, the line that GRUB had -> the line that it gets
    "x86": ({}, "quiet", "quiet iommu=pt"),
    "Arm": ({"arm": True}, "quiet", "quiet iommu.passthrough=1"),
    "the contrary": ({"cmdline": "quiet iommu=nopt"}, "quiet iommu=nopt", "quiet iommu=pt"),
    "a list": ({"cmdline": "iommu=soft,nopt quiet"}, "iommu=soft,nopt quiet", "iommu=soft,pt quiet"),
}


@pytest.mark.parametrize("name", LINES)
def test_passthrough_for_good_is_asked_for_in_the_machines_own_word(name: str) -> None:
    read, before, after = LINES[name]
    m = put(translating("nvidia"), {"/etc/default/grub": f'GRUB_CMDLINE_LINUX_DEFAULT="{before}"'})
    step = steps("iommu_translation", machine=m, **read)["iommu-passthrough"]
    assert [type(c) for c in step.changes] == [TextFile, Command] and (step.effect, step.lasts) == ("reboot", "for_good")
    assert typed(step)[0] == f'/etc/default/grub: GRUB_CMDLINE_LINUX_DEFAULT="{after}"'


@pytest.mark.parametrize("cmdline", ["quiet iommu=pt", "iommu.passthrough=1", "iommu=soft,pt"])
def test_a_kernel_that_was_asked_already_and_translates_all_the_same_is_a_matter_of_the_bios(cmdline: str) -> None:
    step = steps("iommu_translation", machine=translating("nvidia"), cmdline=cmdline)["iommu-passthrough"]
    assert step.changes == () and "asked for passthrough already" in words(step.what) and typed(step)[0].startswith("BIOS")


def test_boot_files_that_ask_for_it_already_want_a_reboot_and_nothing_else() -> None:
    m = put(translating("nvidia"), {"/etc/default/grub": 'GRUB_CMDLINE_LINUX_DEFAULT="iommu=pt"'})
    m.files["/boot/grub/grub.cfg"] = b"### BEGIN /etc/grub.d/10_linux ###\n\tlinux /boot/vmlinuz root=/dev/sda1 ro iommu=pt\n"
    step = steps("iommu_translation", machine=m)["iommu-passthrough"]
    assert step.changes == () and step.refusals == () and "sudo reboot" in typed(step)


def test_a_loader_that_is_not_known_gets_words_and_a_refusal() -> None:
    m = translating("nvidia")
    del m.files["/etc/default/grub"], m.files["/boot/grub/grub.cfg"]
    step = steps("iommu_translation", machine=m)["iommu-passthrough"]
    assert step.changes == () and refs(step) == {"no_loader"} and any("iommu=pt" in line for line in typed(step))


@pytest.mark.parametrize(
    ("maker", "word"), [("GenuineIntel", "intel_iommu=off"), ("AuthenticAMD", "amd_iommu=off"), ("HygonGenuine", "amd_iommu=off")]
)
def test_off_is_planned_only_for_who_asks_for_it_in_the_word_of_the_maker(maker: str, word: str) -> None:
    m = translating("nvidia")
    m.commands[("lscpu",)] = Answer(f"Architecture: x86_64\nVendor ID: {maker}\n".encode())
    assert "iommu-off" not in steps("iommu_translation", machine=m)
    step = steps("iommu_translation", machine=m, iommu_off=True)["iommu-off"]
    assert step.changes and word in typed(step)[0]


def test_off_has_no_word_on_arm() -> None:
    step = steps("iommu_translation", machine=translating("nvidia"), iommu_off=True, arm=True)["iommu-off"]
    assert step.changes == () and "no parameter" in words(step.what)


def test_an_iommu_that_was_switched_off_and_is_missed_comes_back_in_passthrough() -> None:
    m = put(two_below_a_switch(), {"/etc/default/grub": 'GRUB_CMDLINE_LINUX_DEFAULT="quiet amd_iommu=off"'})
    step = steps("iommu_off_side_effect", machine=m, cmdline="quiet amd_iommu=off")["iommu-back"]
    assert step.changes and typed(step)[0] == '/etc/default/grub: GRUB_CMDLINE_LINUX_DEFAULT="quiet iommu=pt"'
    assert any("amd_iommu=off" in words(risk) for risk in step.risk), "what is taken out is named"


def test_an_iommu_that_nothing_on_the_command_line_switched_off_is_switched_on_in_the_bios() -> None:
    step = steps("iommu_off_side_effect")["iommu-back"]
    assert step.changes == () and "switch the IOMMU on in the BIOS" in words(step.what)
    assert [line.rpartition(" = ")[2] for line in typed(step)] == ["Enabled"]


# ---------------------------------------------------------------- BIOS


@pytest.mark.parametrize("cause", ["bar1_too_small", "p2p_patched_driver_config", "rocm_p2p_copy_broken"])
def test_a_bar_that_does_not_cover_the_memory_or_is_not_known_asks_for_the_bios(cause: str) -> None:
    assert "bios-bar" in steps(cause, BAR_SMALL) and "bios-bar" in steps(cause)
    assert "bios-bar" in steps(cause, BAR_SMALL, BAR_WHOLE), "of one of the cards"
    assert "bios-bar" not in steps(cause, BAR_WHOLE)


# sys_vendor, product_name, board_vendor, board_name -> whose menus
BOARDS = {
    ("Supermicro", "SYS-421GE-TNRT", "Supermicro", "X13DEG-OA"): "Supermicro",
    ("Dell Inc.", "PowerEdge XE9680", "Dell Inc.", "0TMP3N"): "Dell",
    ("HPE", "ProLiant DL380a Gen11", "HPE", "ProLiant DL380a Gen11"): "HPE",
    ("Hewlett-Packard", "HP Z840 Workstation", "Hewlett-Packard", "2129"): "HPE",
    ("HP", "HP Z8 G4 Workstation", "HP", "81C7"): "HPE",
    ("Lenovo", "ThinkSystem SR675 V3", "Lenovo", "SB27B31174"): "Lenovo",
    ("ASUSTeK COMPUTER INC.", "ESC8000A-E12", "ASUSTeK COMPUTER INC.", "K14PG-D24"): "ASUS",
    ("System manufacturer", "System Product Name", "ASUSTeK COMPUTER INC.", "PRIME X570-P"): "ASUS",
    ("Giga Computing", "G493-ZB3-AAP1-000", "Giga Computing", "MZ93-CB3-000"): "Gigabyte",
    ("Gigabyte Technology Co., Ltd.", "X570 AORUS PRO", "Gigabyte Technology Co., Ltd.", "X570 AORUS PRO"): "Gigabyte",
    ("To Be Filled By O.E.M.", "To Be Filled By O.E.M.", "ASRockRack", "ROME2D32GM-2T"): "ASRock Rack",
    ("Inspur", "NF5688M7", "Inspur", "YZMB-02382-10N"): "Inspur / KAYTUS",
    ("IEIT SYSTEMS", "NF5468G7", "IEIT SYSTEMS", ""): "Inspur / KAYTUS",
    ("New H3C Technologies Co., Ltd.", "UniServer R5500 G6", "New H3C Technologies Co., Ltd.", "RS54M3C2SB"): "H3C",
    ("xFusion", "G5500 V7", "xFusion", "BC13MBSBA"): "xFusion / Huawei",
    ("Huawei", "TaiShan 200 (Model 2280)", "Huawei", "BC82AMDDA"): "xFusion / Huawei",
    ("", "", "Supermicro", "H12DSG-O-CPU"): "Supermicro",
    ("Lenovo", "a server on a board of", "ASUSTeK COMPUTER INC.", "another maker"): "Lenovo",
    ("An Integrator", "sold as a Dell", "Giga Computing", "MZ73-LM0-000"): "Gigabyte",
    ("Some Maker", "Some Product", "", ""): "",
    ("", "", "", ""): "",
}


def of_board(names: tuple[str, ...], machine: Machine | None = None) -> Machine:
    fields = ("sys_vendor", "product_name", "board_vendor", "board_name")
    return put(machine or two_below_a_switch(), {f"{DMI}/{f}": name for f, name in zip(fields, names, strict=True) if name})


@pytest.mark.parametrize(("names", "maker"), BOARDS.items())
def test_the_bios_is_described_in_the_words_of_the_maker_of_the_machine(names: tuple[str, ...], maker: str) -> None:
    bar = steps("bar1_too_small", machine=of_board(names))["bios-bar"]
    acs = steps("acs_redirect", machine=of_board(names), lockdown="integrity", release="6.12.10")["bios-acs"]
    before = f"BIOS ({maker}): " if maker else "BIOS: "
    for step in (bar, acs):
        assert typed(step) and all(line.startswith(before) and "=" in line for line in typed(step))
        told = words(step.risk[-1])
        assert all((name or "?") in told for name in names[:2]), "the words of the board, so that a person can check"
    assert "4G" in typed(bar)[0] or "above 4" in typed(bar)[0] or "MM Config Base" in typed(bar)[0]
    assert "ACS" in typed(acs)[0] or "Access Control" in typed(acs)[0]


def test_a_kunpeng_server_is_told_the_name_of_its_own_switch_for_the_smmu() -> None:
    huawei = of_board(("Huawei", "TaiShan 200 (Model 2280)", "Huawei", "BC82AMDDA"))
    assert "Support Smmu" in typed(steps("acs_redirect", machine=huawei, lockdown="integrity", release="6.12.10", arm=True)["bios-acs"])[1]


# ---------------------------------------------------------------- Fabric Manager, multicast

FABRIC: dict[str, tuple[tuple[Fact, ...], dict[str, Any], str, bool]] = {  # facts, what was read -> step, whether it starts the service
    "stopped": ((), {"units": {"nvidia-fabricmanager": "inactive"}}, "fabric-manager", True),
    "failed": ((), {"units": {"nvidia-fabricmanager": "failed"}}, "fabric-manager", True),
    "runs, and the GPUs do not see it": ((NOT_READY,), {"units": {"nvidia-fabricmanager": "active"}}, "gpu-reset", False),
    "runs, and CUDA says 802": (
        (CudaError(source=SEEN, name="cudaErrorSystemNotReady", code=802),), {"units": {"nvidia-fabricmanager": "active"}}, "gpu-reset", False,
    ),
    "runs": ((), {"units": {"nvidia-fabricmanager": "active"}}, "", False),
    "is starting": ((), {"units": {"nvidia-fabricmanager": "activating"}}, "", False),
    "not installed, or not known": ((), {"units": {}}, "fabric-manager", False),
    "of another version": (
        (FabricManager(source=SEEN, state="version_mismatch"),), {"units": {"nvidia-fabricmanager": "failed"}}, "fabric-manager", False,
    ),
    "a guest": ((), {"units": {"nvidia-fabricmanager": "inactive"}, "virt": "kvm"}, "fabric-manager", False),
}  # fmt: skip


@pytest.mark.parametrize("name", FABRIC)
def test_fabric_manager_is_started_only_where_it_is_there_and_does_not_run(name: str) -> None:
    facts, read, step_id, starts = FABRIC[name]
    made = steps("fabric_manager_down", *facts, **read)
    assert list(made) == ([step_id] if step_id else [])
    changes = [c for step in made.values() for c in step.changes]
    start = Command(("systemctl", "start", "nvidia-fabricmanager"), undo=("systemctl", "stop", "nvidia-fabricmanager"))
    assert changes == ([start] if starts else [])


def test_gpus_joined_by_nvlink_are_reset_together_by_a_person_with_their_users_stopped() -> None:
    made = steps("nvls_multicast")
    assert list(made) == ["gpu-reset", "imex-nodes"]
    lines = typed(made["gpu-reset"])
    stop, reset, start = (
        next(i for i, line in enumerate(lines) if part in line) for part in ("stop nvidia-fab", "--gpu-reset", "start nvidia-fab")
    )
    assert stop < reset < start and made["gpu-reset"].changes == () and made["gpu-reset"].unsafe_when


# ---------------------------------------------------------------- memory


def test_a_small_shm_of_the_host_is_enlarged_in_place_and_set_back_by_its_undo() -> None:
    step = steps("shm_too_small", shm_KiB=65536)["shm-host"]
    assert step.changes == (
        Command(("mount", "-o", "remount,size=50%", "/dev/shm"), undo=("mount", "-o", "remount,size=65536k", "/dev/shm"), deadline_s=20.0),
    )
    assert typed(step)[:2] == ["sudo mount -o remount,size=50% /dev/shm", "sudo mount -o remount,size=65536k /dev/shm  # undo"]
    fstab = typed(step)[2].partition(": ")[2].split()
    assert len(fstab) == 6 and fstab[:3] == ["tmpfs", "/dev/shm", "tmpfs"]


@pytest.mark.parametrize(
    "read",
    [{"shm_KiB": 1 << 20}, {"shm_KiB": None}, {"shm_KiB": 65536, "container": "/.dockerenv"}],
    ids=["large", "not known", "a container's"],
)
def test_a_shm_that_is_large_or_not_known_or_a_containers_is_not_touched(read: dict[str, Any]) -> None:
    assert list(steps("shm_too_small", **read)) == ["shm-container"]


# ---------------------------------------------------------------- NVIDIA's modules


def test_a_patched_driver_gets_its_keys_in_a_file_of_our_own_and_keeps_those_that_it_has() -> None:
    facts = (PATCHED, BAR_WHOLE, key("ForceP2P=0x11"), key("EnableResizableBar=1"), key("RMForceStaticBar1=0"))
    step = steps("p2p_patched_driver_config", *facts)["nvidia-static-bar1"]
    line = 'options nvidia NVreg_RegistryDwords="ForceP2P=0x11;RMForceStaticBar1=1;PeerMappingOverride=1"'
    assert step.changes == (TextFile("/etc/modprobe.d/linkproof-nvidia.conf", "whole", content=f"{line}\n"),)
    assert (step.effect, step.lasts) == ("reboot", "for_good") and step.pairs == BOTH
    assert shlex.split(typed(step)[0])[1] == line, "the shell hands the line on as it is"


@pytest.mark.parametrize(
    "facts",
    [
        (BAR_WHOLE,),
        (PATCHED, BAR_SMALL),
        (PATCHED, BAR_WHOLE, key("RMForceStaticBar1=1"), key("PeerMappingOverride=1")),
    ],
    ids=["not patched", "BAR1 too small", "loaded already"],
)
def test_the_keys_are_for_patched_drivers_that_lack_them_and_whose_bar_is_whole(facts: tuple[Fact, ...]) -> None:
    assert "nvidia-static-bar1" not in steps("p2p_patched_driver_config", *facts)


@pytest.mark.parametrize(
    ("text", "is_there"),
    [
        ('options nvidia NVreg_RegistryDwords="ForceP2P=0x11"\n', True),
        ("options  nvidia  NVreg_EnableMSI=1 NVreg_RegistryDwords=a\n", True),
        ('# options nvidia NVreg_RegistryDwords="ForceP2P=0x11"\n', False),
        ("options nvidia_drm NVreg_RegistryDwords=1\n", False),
        ("options nvidia NVreg_RegistryDwordsPerDevice=1\n", False),
        ("options nvidia\n", False),
    ],
)
def test_a_file_of_somebody_else_that_sets_the_option_is_named_and_left_alone(text: str, is_there: bool) -> None:
    step = steps("p2p_patched_driver_config", PATCHED, BAR_WHOLE, modprobe={"/etc/modprobe.d/p2p.conf": text})["nvidia-static-bar1"]
    assert (step.changes == ()) == is_there == (step.effect == "by_hand")
    assert ("/etc/modprobe.d/p2p.conf" in words(step.what)) == is_there


@pytest.mark.parametrize(
    "failed", [CudaError(source=SEEN, name="unknown error", code=999), Stage(source=SEEN, at="cuda_init", result="error", code="999")]
)
def test_heterogeneous_memory_is_switched_off_where_it_is_on_and_something_fails_by_it(failed: Fact) -> None:
    step = steps("driver_runtime_mismatch", HMM_ON, failed)["uvm-hmm"]
    assert step.changes == (TextFile("/etc/modprobe.d/linkproof-uvm.conf", "whole", content="options nvidia_uvm uvm_disable_hmm=1\n"),)
    assert "uvm-hmm" not in steps("driver_runtime_mismatch", failed), "whether it is on is not known"
    assert "uvm-hmm" not in steps("driver_runtime_mismatch", HMM_ON), "nothing fails by it"
    off = Event(source=SEEN, kind="uvm_hmm", value="off")
    assert "uvm-hmm" not in steps("driver_runtime_mismatch", off, failed)


@pytest.mark.parametrize("text", ["options nvidia-uvm uvm_disable_hmm=0\n", "options nvidia_uvm uvm_perf=1 uvm_disable_hmm=0\n"])
def test_a_module_is_the_same_with_dash_and_underscore(text: str) -> None:
    failed = CudaError(source=SEEN, name="unknown error", code=999)
    assert steps("driver_runtime_mismatch", HMM_ON, failed, modprobe={"/etc/modprobe.d/a.conf": text})["uvm-hmm"].changes == ()


# ---------------------------------------------------------------- what is typed elsewhere, in the syntax of who reads it


def pieces(cause: str, name: str, who: str) -> list[str]:
    """What stands behind the words that say where it goes."""
    found = [line for line in typed(steps(cause)[name]) if who in re.split(r":\s", line)[0]]
    return [re.split(r":\s", line, maxsplit=1)[1] for line in found]


def test_shared_memory_for_a_pod_is_a_volume_in_memory_that_its_container_mounts() -> None:
    (piece,) = pieces("shm_too_small", "shm-container", "Kubernetes")
    pod = yaml.safe_load(piece)
    (mount,), (volume,) = pod["containers"][0]["volumeMounts"], pod["volumes"]
    assert mount == {"name": volume["name"], "mountPath": "/dev/shm"}
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}


def test_compose_reads_its_pieces_as_keys_of_a_service() -> None:
    (shm,) = pieces("shm_too_small", "shm-container", "compose")
    assert yaml.safe_load(shm) == {"shm_size": "16gb"}
    (limits,) = pieces("rdma_memlock_limit", "memlock", "compose")
    assert yaml.safe_load(limits) == {"ulimits": {"memlock": {"soft": -1, "hard": -1}}}
    (one,) = pieces("container_isolation", "one-container", "compose")
    assert yaml.safe_load(one) == {"ipc": "host", "pid": "host", "network_mode": "host"}


@pytest.mark.parametrize(
    ("cause", "name", "capability"), [("rdma_memlock_limit", "memlock", "IPC_LOCK"), ("cumem_host_numa", "numa-memory", "SYS_NICE")]
)
def test_kubernetes_reads_a_security_context(cause: str, name: str, capability: str) -> None:
    (piece,) = pieces(cause, name, "Kubernetes")
    assert yaml.safe_load(piece) == {"securityContext": {"capabilities": {"add": [capability]}}}


UNITS = {
    ("shm_too_small", "shm-container"): {("TemporaryFileSystem", "/dev/shm:size=16G,mode=1777")},
    ("rdma_memlock_limit", "memlock"): {("LimitMEMLOCK", "infinity")},
}


@pytest.mark.parametrize(("step", "wanted"), UNITS.items())
def test_a_piece_of_a_systemd_unit_holds_values_and_no_remark_behind_them(step: tuple[str, str], wanted: set[tuple[str, str]]) -> None:
    """systemd knows no remark at the end of a line: it would be part of the value."""
    found = [line[line.index("[Service]") :] for line in typed(steps(step[0])[step[1]]) if "[Service]" in line]
    assert found
    for piece in found:
        unit = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#", ";"), inline_comment_prefixes=None)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(piece)
        assert unit.sections() == ["Service"] and set(unit["Service"].items()) == wanted


def test_docker_gets_options_that_it_has() -> None:
    shm, memlock, numa, one = (
        pieces(*where, "docker")[0].partition("  (")[0]
        for where in (
            ("shm_too_small", "shm-container"),
            ("rdma_memlock_limit", "memlock"),
            ("cumem_host_numa", "numa-memory"),
            ("container_isolation", "one-container"),
        )
    )
    assert shlex.split(shm) == ["docker", "run", "--shm-size=16g", "..."]
    assert shlex.split(memlock) == ["docker", "run", "--ulimit", "memlock=-1:-1", "..."]
    assert shlex.split(numa) == ["docker", "run", "--cap-add", "SYS_NICE", "..."]
    assert shlex.split(one) == ["docker", "run", "--gpus", "all", "--ipc=host", "..."]


@pytest.mark.parametrize("cause", sorted(MENDS))
def test_every_line_that_begins_like_a_command_is_one_that_a_shell_can_read(cause: str) -> None:
    for machine in (two_below_a_switch(), translating(), translating("nvidia")):
        for step in steps(cause, PATCHED, HMM_ON, NOT_READY, BAR_WHOLE, machine=machine, iommu_off=True, shm_KiB=65536).values():
            for line in typed(step):
                if line.startswith(("sudo ", "echo ", "docker ", "nvidia-smi ", "cat ", "apt ")):
                    assert shlex.split(line, comments=True)
