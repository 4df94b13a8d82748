"""Real and rebuilt layouts of /boot and /etc (tests/evidence/boot): what loads the kernel is found, changed, seen as changed, and undone.

The programs of the distributions are not there. `run_stand_in` does to the files what grubby, update-grub and the others are documented to do.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from linkproof.act.boot import command_line, passthrough_words, words_in
from linkproof.act.boot.edit import BootEdit
from linkproof.act.text.edits import edited, line_of, unedited
from linkproof.act.text.words import with_words
from linkproof.collect.host import Answer, Host, Live, Recorded, Recorder
from linkproof.mending import Command, TextFile
from linkproof.report.say import say

EVIDENCE = Path(__file__).parent.parent.parent / "evidence" / "boot"
PT = passthrough_words()
ACS = "pci=config_acs=x0x00xx@0000:16:00.0;x0x00xx@0000:17:00.0"
MAIN = "/etc/default/grub"
ENTRY = "/boot/efi/loader/entries/0c71cd2d6b8e4b6f8d1b1c6a1f6f2a30-6.1.0-37-amd64.conf"
GRUBBY = "grubby --update-kernel=ALL --args=iommu=pt"
MKCONFIG = "grub2-mkconfig -o /boot/grub2/grub.cfg"

# layout -> loader, and what is changed: a file, or a command
LAYOUTS = {
    "arch": ("systemd-boot", ["/boot/loader/entries/arch.conf"]),
    "debian": ("grub", [MAIN, "update-grub"]),
    "debian-cloud": ("grub", [MAIN, "update-grub"]),
    "fedora": ("grubby", [GRUBBY]),
    "kylin-server": ("grub", [MAIN, MKCONFIG]),
    "openeuler": ("grub", [MAIN, "grub2-mkconfig -o /boot/efi/EFI/openEuler/grub.cfg"]),
    "openkylin": ("grub", [MAIN, "update-grub"]),
    "opensuse": ("grub", [MAIN, MKCONFIG]),
    "opensuse-sdbootutil": ("sdbootutil", ["/etc/kernel/cmdline", "sdbootutil update-all-entries"]),
    "pop-os": ("kernelstub", ["kernelstub --add-options iommu=pt"]),
    "rhel8": ("grubby", [GRUBBY]),
    "rocky9": ("grubby", [GRUBBY]),
    "silverblue": ("rpm-ostree", ["rpm-ostree kargs --append-if-missing=iommu=pt"]),
    "systemd-boot": ("systemd-boot", [ENTRY, "/etc/kernel/cmdline"]),
    "ubuntu": ("grub", [MAIN, "update-grub"]),
    "ubuntu-cloud": ("grub", ["/etc/default/grub.d/50-cloudimg-settings.cfg", "update-grub"]),
}


class Denied:
    """A host whose named files and folders may not be read."""

    def __init__(self, host: Host, *paths: str) -> None:
        self.host, self.paths = host, paths

    def file(self, path: str) -> Answer:
        return Answer(None, "denied") if path.startswith(self.paths) else self.host.file(path)

    def names(self, path: str) -> Answer:
        return Answer(None, "denied") if path.startswith(self.paths) else self.host.names(path)

    def link(self, path: str) -> Answer:
        return self.host.link(path)

    def run(self, argv: tuple[str, ...], deadline_s: float = 5.0) -> Answer:
        return self.host.run(argv, deadline_s)


def copied(name: str, tmp_path: Path) -> Path:
    root = tmp_path / name
    shutil.copytree(EVIDENCE / name / "root", root)
    return root


def plan(root: Path, add: tuple[str, ...] = PT.add, remove: tuple[str, ...] = PT.remove) -> BootEdit:
    return command_line(Live(str(root)), add, remove)


def targets(edit: BootEdit) -> list[str]:
    return [c.path if isinstance(c, TextFile) else " ".join(c.argv) if isinstance(c, Command) else "?" for c in edit.changes]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def value_of(data: bytes, folder: Path) -> str:
    path = folder / "sourced"
    path.write_bytes(data)
    script = '. "$1"; printf "%s %s" "$GRUB_CMDLINE_LINUX" "$GRUB_CMDLINE_LINUX_DEFAULT"'
    return subprocess.run(["sh", "-c", script, "sh", str(path)], capture_output=True, check=True, timeout=20).stdout.decode()


# ---------------------------------------------------------------- stand-ins


def run_stand_in(root: Path, argv: tuple[str, ...], folder: Path) -> None:
    {
        "grubby": _grubby,
        "update-grub": _mkconfig,
        "grub2-mkconfig": _mkconfig,
        "sdbootutil": _sdbootutil,
        "kernelstub": _kernelstub,
        "rpm-ostree": _kargs,
    }[argv[0]](root, argv, folder)


def _by_key(line: str, new: list[str], away: list[str]) -> str:
    """As grubby: exact words go, words of a key that is added are replaced, new ones stand at the end."""
    keys = {word.split("=")[0] for word in new}
    kept = [w for w in line.split() if w not in away and not (set(away) & {w.split("=")[0]}) and w.split("=")[0] not in keys]
    return " ".join([*kept, *new])


def _grubby(root: Path, argv: tuple[str, ...], folder: Path) -> None:
    said = dict(part.partition("=")[::2] for part in argv[1:])
    new, away = said.get("--args", "").split(), said.get("--remove-args", "").split()
    for entry in sorted((root / "boot/loader/entries").glob("*.conf")):
        text = entry.read_text()
        if "$kernelopts" not in text:
            entry.write_text(re.sub(r"^options (.*)$", lambda m: f"options {_by_key(m[1], new, away)}", text, flags=re.M))
    env = root / "boot/grub2/grubenv"
    env.write_text(re.sub(r"^kernelopts=(.*)$", lambda m: f"kernelopts={_by_key(m[1], new, away)}", env.read_text(), flags=re.M))
    if "--no-etc-grub-update" not in argv:
        default = root / "etc/default/grub"
        line = value_of(default.read_bytes(), folder)
        default.write_text(
            re.sub(r"^GRUB_CMDLINE_LINUX.*$", lambda m: f'GRUB_CMDLINE_LINUX="{_by_key(line, new, away)}"', default.read_text(), flags=re.M)
        )
    cmdline = root / "etc/kernel/cmdline"
    cmdline.parent.mkdir(parents=True, exist_ok=True)
    cmdline.write_text(_by_key(cmdline.read_text() if cmdline.exists() else "", new, away) + "\n")


def _mkconfig(root: Path, argv: tuple[str, ...], folder: Path) -> None:
    target = root / (argv[2].lstrip("/") if len(argv) > 1 else "boot/grub/grub.cfg")
    parts = [root / "etc/default/grub", *sorted((root / "etc/default/grub.d").glob("*.cfg"))]
    line = value_of(b"\n".join(part.read_bytes() for part in parts), folder)
    target.write_text(
        f"### BEGIN /etc/grub.d/10_linux ###\n\tlinux\t/boot/vmlinuz root=UUID=1 ro {line}\n\tlinux\t/boot/vmlinuz root=UUID=1 ro single\n"
    )


def _sdbootutil(root: Path, argv: tuple[str, ...], folder: Path) -> None:
    line = (root / "etc/kernel/cmdline").read_text().strip()
    for entry in (root / "boot/efi/loader/entries").glob("*.conf"):
        entry.write_text(re.sub(r"^options.*$", f"options    {line}", entry.read_text(), flags=re.M))


def _kernelstub(root: Path, argv: tuple[str, ...], folder: Path) -> None:
    path = root / "etc/kernelstub/configuration"
    told = json.loads(path.read_text())
    options = told["user"]["kernel_options"]
    named = argv[2].split()
    told["user"]["kernel_options"] = [w for w in options if w not in named] + (named if argv[1] == "--add-options" else [])
    path.write_text(json.dumps(told, indent=2))


def _kargs(root: Path, argv: tuple[str, ...], folder: Path) -> None:
    path = root / "proc/cmdline"
    words = path.read_text().split()
    for part in argv[2:]:
        how, _, word = part.partition("=")
        words = [w for w in words if w != word] + ([word] if how == "--append-if-missing" else [])
    path.write_text(" ".join(words) + "\n")


def apply(root: Path, edit: BootEdit, folder: Path) -> None:
    for change in edit.changes:
        if isinstance(change, TextFile):
            path = root / change.path.lstrip("/")
            path.write_bytes(edited(change, path.read_bytes()))
        elif isinstance(change, Command):
            run_stand_in(root, change.argv, folder)


# ---------------------------------------------------------------- every layout


def test_every_layout_is_tried() -> None:
    assert sorted(LAYOUTS) == sorted(path.name for path in EVIDENCE.iterdir())
    for name in LAYOUTS:
        assert (EVIDENCE / name / "about.md").read_text().strip()


def typed(edit: BootEdit) -> list[str]:
    return [line if isinstance(line, str) else say(line.text, line.args) for line in edit.by_hand]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_loader_is_found_by_what_is_there(name: str, tmp_path: Path) -> None:
    edit = plan(copied(name, tmp_path))
    assert edit.refusal is None
    assert (edit.loader, targets(edit)) == LAYOUTS[name]
    assert edit.by_hand[-1] == "sudo reboot" and any("iommu=pt" in line for line in typed(edit))


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_written_is_seen_as_written_and_goes_back(name: str, tmp_path: Path) -> None:
    root = copied(name, tmp_path)
    before = contents(root)
    edit = plan(root)
    apply(root, edit, tmp_path)
    again = plan(root)
    assert again.changes == () and again.refusal is None and again.loader == edit.loader
    after = contents(root)
    for change in edit.changes:
        if isinstance(change, TextFile):
            path = change.path.lstrip("/")
            assert unedited(change, after[path], before[path], after[path]) == before[path]
        elif isinstance(change, Command) and change.undo:
            run_stand_in(root, change.undo, tmp_path)
            assert plan(root).changes == edit.changes


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_capture_gives_the_same_plan(name: str, tmp_path: Path) -> None:
    recorder = Recorder(Live(str(copied(name, tmp_path))))
    live = command_line(recorder, PT.add, PT.remove)
    assert command_line(Recorded(recorder.log), PT.add, PT.remove) == live


@pytest.mark.parametrize("name", [name for name, (loader, _) in LAYOUTS.items() if loader == "grub"])
def test_the_shell_reads_the_edited_defaults_as_meant(name: str, tmp_path: Path) -> None:
    root = copied(name, tmp_path)
    before = value_of((root / "etc/default/grub").read_bytes(), tmp_path)
    edit = plan(root, (*PT.add, ACS))
    change = next(c for c in edit.changes if isinstance(c, TextFile))
    path = root / change.path.lstrip("/")
    old = path.read_bytes()
    new = edited(change, old)
    line = value_of(new, tmp_path)
    assert words_in(line, (*PT.add, ACS)) and f'pci="{ACS[4:]}"' in line
    if change.path == MAIN:
        assert line.split() == [*before.split(), "iommu=pt", f'pci="{ACS[4:]}"']
    assert [x for x in new.splitlines() if x not in old.splitlines()] == [x for x in new.splitlines() if b"iommu=pt" in x]


def test_devices_joined_by_semicolons_go_to_grubby_in_single_quotes(tmp_path: Path) -> None:
    """It writes the word between double quotes into /etc/default/grub: double quotes inside would end the value, and `;` the command."""
    root = copied("rocky9", tmp_path)
    edit = plan(root, (ACS,), ())
    assert targets(edit) == [f"grubby --update-kernel=ALL --args=pci='{ACS[4:]}'"]
    apply(root, edit, tmp_path)
    assert words_in(value_of((root / "etc/default/grub").read_bytes(), tmp_path), (ACS,))
    assert plan(root, (ACS,), ()).changes == ()


# ---------------------------------------------------------------- what is there already


def test_options_that_are_there_are_kept_in_the_word_that_grubby_gets(tmp_path: Path) -> None:
    root = copied("rocky9", tmp_path)
    for path in [*(root / "boot/loader/entries").iterdir(), root / "etc/default/grub", root / "etc/kernel/cmdline"]:
        path.write_text(path.read_text().replace("rhgb", "iommu=soft iommu=nopt"))
    edit = plan(root)
    assert targets(edit) == ["grubby --update-kernel=ALL --remove-args=iommu=soft iommu=nopt --args=iommu=soft,pt"]
    assert [n.args["words"] for n in edit.notes] == ["iommu=nopt"]
    (change,) = edit.changes
    assert isinstance(change, Command)
    assert change.undo == ("grubby", "--update-kernel=ALL", "--remove-args=iommu=soft,pt", "--args=iommu=soft iommu=nopt")
    assert {"/boot/loader/entries", "/etc/default/grub", "/etc/kernel/cmdline", "/boot/grub2/grubenv", "/boot/grub2/grub.cfg"} == set(
        change.watched
    )


def test_kernels_with_different_words_are_not_given_one_word(tmp_path: Path) -> None:
    root = copied("fedora", tmp_path)
    entry = next((root / "boot/loader/entries").glob("*rescue*"))
    entry.write_text(entry.read_text().replace("rhgb", "iommu=soft"))
    edit = plan(root)
    assert edit.refusal is not None and edit.refusal.ref == "entries_differ" and edit.changes == ()


def test_grubby_is_kept_off_a_default_file_that_it_would_spoil(tmp_path: Path) -> None:
    root = copied("rocky9", tmp_path)
    default = root / "etc/default/grub"
    default.write_text(default.read_text() + 'GRUB_CMDLINE_LINUX_DEFAULT="splash"\n')
    edit = plan(root)
    assert targets(edit) == [MAIN, f"{GRUBBY} --no-etc-grub-update"]
    apply(root, edit, tmp_path)
    assert 'GRUB_CMDLINE_LINUX_DEFAULT="splash iommu=pt"' in default.read_text() and "rl-swap" in default.read_text()
    assert plan(root).changes == ()


def test_a_menu_that_was_not_made_again_is_made_again(tmp_path: Path) -> None:
    root = copied("debian", tmp_path)
    default = root / "etc/default/grub"
    default.write_text(default.read_text().replace('"quiet"', '"quiet iommu=pt"'))
    assert targets(plan(root)) == ["update-grub"]
    run_stand_in(root, ("update-grub",), tmp_path)
    assert plan(root).changes == ()


def test_the_contrary_in_another_file_goes_too_and_is_named(tmp_path: Path) -> None:
    root = copied("ubuntu-cloud", tmp_path)
    default = root / "etc/default/grub"
    default.write_text(default.read_text().replace('LINUX=""', 'LINUX="iommu.passthrough=0"').replace("quiet splash", "quiet iommu=nopt"))
    edit = plan(root)
    assert targets(edit) == [MAIN, "/etc/default/grub.d/50-cloudimg-settings.cfg", "update-grub"]
    assert any(n.args.get("words") == "iommu.passthrough=0" for n in edit.notes)
    assert any("anew" in n.text for n in edit.notes)
    apply(root, edit, tmp_path)
    assert 'DEFAULT="quiet iommu=nopt"' in default.read_text(), "what a later file sets anew has no effect and is left as it is"
    assert plan(root).changes == ()


def test_a_file_that_only_adds_to_the_variable_does_not_take_the_word(tmp_path: Path) -> None:
    root = copied("ubuntu", tmp_path)
    (root / "etc/default/grub.d/kdump-tools.cfg").write_text(
        'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT crashkernel=512M-:192M"\n'
    )
    assert targets(plan(root)) == [MAIN, "update-grub"]


def test_a_key_that_stands_in_one_file_gets_its_option_there(tmp_path: Path) -> None:
    root = copied("ubuntu-cloud", tmp_path)
    default = root / "etc/default/grub"
    default.write_text(default.read_text().replace('LINUX=""', 'LINUX="pci=config_acs=x0x00xx@0000:99:00.0"'))
    edit = plan(root, (ACS,), ())
    assert targets(edit) == [MAIN, "update-grub"]
    apply(root, edit, tmp_path)
    assert line_of("grub_always_only", default.read_bytes()).count("config_acs") == 1, "a second config_acs would replace the first"


def test_drop_ins_that_grub_mkconfig_does_not_read_are_no_concern(tmp_path: Path) -> None:
    root = copied("opensuse", tmp_path)
    (root / "etc/default/grub.d").mkdir()
    (root / "etc/default/grub.d/x.cfg").write_text('GRUB_CMDLINE_LINUX_DEFAULT="a"\n')
    assert targets(plan(root)) == [MAIN, MKCONFIG]


def test_the_menu_is_the_one_that_the_distribution_links_to(tmp_path: Path) -> None:
    root = copied("openeuler", tmp_path)
    (root / "boot/grub2/grub.cfg").write_text("### BEGIN /etc/grub.d/10_linux ###\n")
    assert targets(plan(root))[1].endswith("/boot/efi/EFI/openEuler/grub.cfg")
    (root / "etc/grub2-efi.cfg").symlink_to("../boot/grub2/grub.cfg")
    assert targets(plan(root))[1] == MKCONFIG


def test_entries_that_grub_does_not_read_do_not_count(tmp_path: Path) -> None:
    root = copied("rocky9", tmp_path)
    (root / "boot/grub2/grub.cfg").write_text("### BEGIN /etc/grub.d/10_linux ###\nlinux /vmlinuz ro\n")
    default = root / "etc/default/grub"
    default.write_text(default.read_text().replace("BLSCFG=true", "BLSCFG=false"))
    assert targets(plan(root)) == [MAIN, MKCONFIG]


def test_entries_without_grubby_are_edited_themselves_unless_grubenv_holds_the_words(tmp_path: Path) -> None:
    root = copied("rocky9", tmp_path)
    (root / "usr/sbin/grubby").unlink()
    edit = plan(root)
    assert edit.loader == "grub" and [t.partition("/entries")[0] for t in targets(edit)] == ["/boot/loader", "/etc/kernel/cmdline"]
    root = copied("rhel8", tmp_path)
    (root / "usr/sbin/grubby").unlink()
    edit = plan(root)
    assert edit.refusal is not None and edit.refusal.ref == "no_grubby"


def test_the_running_loader_counts_and_not_what_else_is_installed(tmp_path: Path) -> None:
    root = copied("systemd-boot", tmp_path)
    shutil.copytree(EVIDENCE / "debian" / "root", root, dirs_exist_ok=True)
    assert plan(root).loader == "systemd-boot"
    shutil.rmtree(root / "sys")
    assert plan(root).loader == "grub"


# ---------------------------------------------------------------- refused in words


def refused(edit: BootEdit) -> str:
    assert edit.refusal is not None and edit.changes == ()
    assert edit.by_hand and edit.refusal.why.text.format(**edit.refusal.why.args)
    return edit.refusal.ref


def test_a_container_is_told_that_the_kernel_is_the_hosts(tmp_path: Path) -> None:
    root = copied("debian", tmp_path)
    (root / ".dockerenv").write_bytes(b"")
    assert refused(plan(root)) == "container"


def test_an_unknown_machine_gets_the_words_to_add_by_hand(tmp_path: Path) -> None:
    edit = plan(tmp_path)
    assert refused(edit) == "no_loader"
    assert typed(edit)[0] == "kernel command line: ... iommu=pt"
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text("BOOT_IMAGE=/vmlinuz root=/dev/sda1 iommu=nopt ro\n")
    assert typed(plan(tmp_path))[0] == "kernel command line: root=/dev/sda1 iommu=pt ro"


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("rocky9", "/boot/loader"),
        ("systemd-boot", "/boot/efi"),
        ("debian", MAIN),
        ("pop-os", "/etc/kernelstub"),
        ("opensuse-sdbootutil", "/etc/kernel"),
        ("silverblue", "/proc/cmdline"),
    ],
)
def test_what_may_not_be_read_is_not_guessed(name: str, hidden: str, tmp_path: Path) -> None:
    edit = command_line(
        Denied(Live(str(copied(name, tmp_path))), hidden, "/boot/loader" if name == "systemd-boot" else hidden), PT.add, PT.remove
    )
    assert refused(edit) == "not_readable"


def test_a_boot_folder_that_may_not_be_listed_is_not_called_unknown(tmp_path: Path) -> None:
    assert refused(command_line(Denied(Live(str(tmp_path)), "/boot"), PT.add, PT.remove)) == "not_readable"


def test_a_kernel_that_carries_its_command_line_must_be_built_again(tmp_path: Path) -> None:
    root = copied("systemd-boot", tmp_path)
    variable = next((root / "sys/firmware/efi/efivars").iterdir())
    shutil.copy(variable, variable.with_name(variable.name.replace("LoaderInfo", "StubInfo")))
    assert refused(plan(root)) == "unified_image"


@pytest.mark.parametrize(
    ("name", "path", "text"),
    [
        ("debian", "etc/default/grub", 'GRUB_CMDLINE_LINUX="$(cat /x)"\n'),
        ("ubuntu-cloud", "etc/default/grub.d/50-cloudimg-settings.cfg", 'if true; then\nGRUB_CMDLINE_LINUX_DEFAULT="a"\nfi\n'),
        ("rocky9", "etc/default/grub", 'GRUB_CMDLINE_LINUX="${A:-b}"\n'),
        ("pop-os", "etc/kernelstub/configuration", "[]"),
    ],
)
def test_a_file_that_cannot_be_understood_is_named_and_left_alone(name: str, path: str, text: str, tmp_path: Path) -> None:
    root = copied(name, tmp_path)
    (root / path).write_text(text)
    edit = plan(root)
    assert refused(edit) == "not_understood"
    assert edit.refusal is not None and edit.refusal.why.args["file"] == f"/{path}"


def test_rpm_ostree_is_not_given_a_word_that_needs_quotes(tmp_path: Path) -> None:
    assert refused(plan(copied("silverblue", tmp_path), (ACS,), ())) == "quoting"


def test_the_running_command_line_tells_whether_the_words_are_in_force() -> None:
    line = "BOOT_IMAGE=/boot/vmlinuz root=UUID=1 ro quiet\n"
    assert not words_in(line, *(PT.add, PT.remove))
    assert words_in(with_words(line, PT.add, PT.remove), PT.add, PT.remove)
