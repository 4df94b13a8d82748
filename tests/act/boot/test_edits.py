"""Edits of text files: idempotent, nothing else touched, undone to the byte. What the shell says of the edited file is what counts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linkproof.act.text.edits import NotUnderstood, edited, line_of, unedited
from linkproof.act.text.words import atoms, parsed, words
from linkproof.mending import TextFile

ACS = "pci=config_acs=x0x00xx@0000:16:00.0;x0x00xx@0000:17:00.0"
GRUB = TextFile("/etc/default/grub", "grub_default", ("iommu=pt",), ("iommu=nopt", "iommu.passthrough=0"))
GRUB_ACS = TextFile("/etc/default/grub", "grub_default", (ACS,))


def sourced(data: bytes, folder: Path, shell: str = "sh") -> str:
    """What a shell that reads the file then holds: as grub-mkconfig puts it on the kernel's line."""
    path = folder / "grub"
    path.write_bytes(data)
    script = '. "$1"; printf "%s\n%s" "$GRUB_CMDLINE_LINUX" "$GRUB_CMDLINE_LINUX_DEFAULT"'
    done = subprocess.run([shell, "-c", script, shell, str(path)], capture_output=True, check=True, timeout=20)
    return done.stdout.decode("latin-1")


# ---------------------------------------------------------------- /etc/default/grub


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n', b'GRUB_CMDLINE_LINUX_DEFAULT="quiet iommu=pt"\n'),
        (b"GRUB_CMDLINE_LINUX_DEFAULT='quiet'", b"GRUB_CMDLINE_LINUX_DEFAULT='quiet iommu=pt'"),
        (b"GRUB_CMDLINE_LINUX_DEFAULT=quiet\n", b'GRUB_CMDLINE_LINUX_DEFAULT=quiet" iommu=pt"\n'),
        (b"GRUB_CMDLINE_LINUX_DEFAULT=\n", b'GRUB_CMDLINE_LINUX_DEFAULT="iommu=pt"\n'),
        (b'GRUB_CMDLINE_LINUX_DEFAULT=""\n', b'GRUB_CMDLINE_LINUX_DEFAULT="iommu=pt"\n'),
        (b'GRUB_CMDLINE_LINUX="a"\nGRUB_TIMEOUT=5\n', b'GRUB_CMDLINE_LINUX="a iommu=pt"\nGRUB_TIMEOUT=5\n'),
        (b"GRUB_TIMEOUT=5\n", b'GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX_DEFAULT="iommu=pt"\n'),
        (b"", b'GRUB_CMDLINE_LINUX_DEFAULT="iommu=pt"\n'),
        (b'#GRUB_CMDLINE_LINUX_DEFAULT="x"\nGRUB_CMDLINE_LINUX=""\n', b'#GRUB_CMDLINE_LINUX_DEFAULT="x"\nGRUB_CMDLINE_LINUX="iommu=pt"\n'),
        (b'GRUB_CMDLINE_LINUX_DEFAULT="a" # why\n', b'GRUB_CMDLINE_LINUX_DEFAULT="a iommu=pt" # why\n'),
        (b'export GRUB_CMDLINE_LINUX_DEFAULT="a"\n', b'export GRUB_CMDLINE_LINUX_DEFAULT="a iommu=pt"\n'),
        (b'GRUB_CMDLINE_LINUX_DEFAULT="a \\\n  b"\n', b'GRUB_CMDLINE_LINUX_DEFAULT="a \\\n  b iommu=pt"\n'),
        (
            b'GRUB_CMDLINE_LINUX_DEFAULT="iommu=nopt"\nGRUB_CMDLINE_LINUX_DEFAULT="b"\n',
            b'GRUB_CMDLINE_LINUX_DEFAULT="iommu=nopt"\nGRUB_CMDLINE_LINUX_DEFAULT="b iommu=pt"\n',
        ),
        (
            b'GRUB_CMDLINE_LINUX_DEFAULT="a iommu=nopt"\nGRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT b"\n',
            b'GRUB_CMDLINE_LINUX_DEFAULT="a iommu=pt"\nGRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT b"\n',
        ),
        (
            b'GRUB_CMDLINE_LINUX="c iommu=nopt"\nGRUB_CMDLINE_LINUX_DEFAULT="a"\n',
            b'GRUB_CMDLINE_LINUX="c iommu=pt"\nGRUB_CMDLINE_LINUX_DEFAULT="a"\n',
        ),
        (b'GRUB_CMDLINE_LINUX_DEFAULT="$EXTRA"\n', b'GRUB_CMDLINE_LINUX_DEFAULT="$EXTRA iommu=pt"\n'),
        (b"GRUB_CMDLINE_LINUX_DEFAULT=a' 'iommu=nopt\n", b"GRUB_CMDLINE_LINUX_DEFAULT=a' iommu=pt'\n"),
        (b'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\r\nA=b\r\n', b'GRUB_CMDLINE_LINUX_DEFAULT="quiet iommu=pt"\r\nA=b\r\n'),
        (b'# \xff\xfe \xa0\nGRUB_CMDLINE_LINUX_DEFAULT="\xe9"\n', b'# \xff\xfe \xa0\nGRUB_CMDLINE_LINUX_DEFAULT="\xe9 iommu=pt"\n'),
        (b'A=1; GRUB_CMDLINE_LINUX_DEFAULT="a"; B=2\n', None),
    ],
)
def test_the_word_goes_where_the_shell_takes_it_from(before: bytes, after: bytes | None, tmp_path: Path) -> None:
    got = edited(GRUB, before)
    if after is not None:
        assert got == after
    assert edited(GRUB, got) == got
    assert unedited(GRUB, got, before, got) == before
    shell = sourced(got, tmp_path)
    assert "iommu=pt" in shell and "iommu=nopt" not in shell
    assert atoms(shell.replace("\r", "")) == atoms(line_of("grub_default", got).replace("\ue000", ""))


@pytest.mark.parametrize("shell", [s for s in ("dash", "bash") if shutil.which(s)])
def test_devices_joined_by_semicolons_keep_their_quotes_through_the_shell(shell: str, tmp_path: Path) -> None:
    """The value that grub-mkconfig prints still has quotes around it, so that GRUB does not end the command at `;`."""
    for quote in (b'"', b"'"):
        got = edited(GRUB_ACS, b"GRUB_CMDLINE_LINUX_DEFAULT=" + quote + b"quiet pci=nommconf" + quote + b"\n")
        assert sourced(got, tmp_path, shell).split("\n")[1] == f'quiet pci="nommconf,{ACS[4:]}"'


@pytest.mark.parametrize(
    "text",
    [
        'GRUB_CMDLINE_LINUX_DEFAULT="$(cat /etc/x)"\n',
        "GRUB_CMDLINE_LINUX_DEFAULT=`cat /etc/x`\n",
        'GRUB_CMDLINE_LINUX_DEFAULT="${A:-b}"\n',
        "GRUB_CMDLINE_LINUX_DEFAULT=$'a'\n",
        'if [ -e /x ]; then\n  GRUB_CMDLINE_LINUX_DEFAULT="a"\nfi\n',
        'if [ -e /x ]; then GRUB_CMDLINE_LINUX_DEFAULT="a"; fi\n',
        '[ -e /x ] && GRUB_CMDLINE_LINUX_DEFAULT="a"\n',
        '[ -e /x ] &&  \n  GRUB_CMDLINE_LINUX_DEFAULT="a"\n',
        '(\nGRUB_CMDLINE_LINUX_DEFAULT="a"\n)\n',
        'case x in\na)\nGRUB_CMDLINE_LINUX_DEFAULT="a"\nesac\n',
        'if a\nthen if b\nthen c\nfi\nGRUB_CMDLINE_LINUX_DEFAULT="a"\nfi\n',
        '{ if a\nthen c\nfi\nGRUB_CMDLINE_LINUX_DEFAULT="a"\n}\n',
        'GRUB_CMDLINE_LINUX_DEFAULT="a"\nreturn\nGRUB_CMDLINE_LINUX_DEFAULT="b"\n',
        'GRUB_CMDLINE_LINUX_DEFAULT="a" || true\n',
        'GRUB_CMDLINE_LINUX_DEFAULT="a"\n. /etc/more\n',
        'GRUB_CMDLINE_LINUX_DEFAULT="a"\nsource /etc/more\n',
        'GRUB_CMDLINE_LINUX_DEFAULT="a"\neval "$X"\n',
        'GRUB_CMDLINE_LINUX_DEFAULT="a"\nunset GRUB_CMDLINE_LINUX_DEFAULT\n',
        'GRUB_CMDLINE_LINUX_DEFAULT="a"\nprintf -v GRUB_CMDLINE_LINUX_DEFAULT b\n',
        'GRUB_CMDLINE_LINUX_DEFAULT="a\n',
        'f() { GRUB_CMDLINE_LINUX_DEFAULT="a"; }\nf\n',
        'cat <<GRUB\nGRUB_CMDLINE_LINUX_DEFAULT="a"\nGRUB\n',
        'GRUB_CMDLINE_LINUX_DEFAULT="a" GRUB_TIMEOUT=1\n',
        'GRUB_CMDLINE_LINUX_DEFAULT="a"\0\n',
        'X=iommu GRUB_CMDLINE_LINUX_DEFAULT="a" true\n',
        'GRUB_CMDLINE_LINUX_DEFAULT="iommu=$MODE"\n',
        "GRUB_TIMEOUT=${GRUB_CMDLINE_LINUX_DEFAULT:=a}\n",
        'GRUB_CMDLINE_LINUX_DEFAULT="a"b\\',
    ],
)
def test_a_file_that_only_the_shell_could_read_is_left_alone(text: str) -> None:
    with pytest.raises(NotUnderstood) as caught:
        edited(GRUB, text.encode())
    assert "/etc/default/grub is left alone" in caught.value.why.text.format(**caught.value.why.args)


@pytest.mark.parametrize(
    "text",
    [
        'GRUB_DISTRIBUTOR="$(sed \'s, release .*$,,g\' /etc/system-release)"\nGRUB_CMDLINE_LINUX="a"\n',
        'GRUB_DISTRIBUTOR=`( . /etc/os-release; echo ${NAME:-Ubuntu} ) 2>/dev/null || echo Ubuntu`\nGRUB_CMDLINE_LINUX="a"\n',
        'GRUB_CMDLINE_LINUX="a"\nexport GRUB_CMDLINE_LINUX\n',
        'if [ -e /x ]; then\n  GRUB_TIMEOUT=3\nfi\nGRUB_CMDLINE_LINUX="a"\n',
        'GRUB_CMDLINE_LINUX="a"\n# . /etc/more\n# eval "GRUB_CMDLINE_LINUX=b"\n',
        'GRUB_TIMEOUT=5  # GRUB_CMDLINE_LINUX=b\nGRUB_CMDLINE_LINUX="a"\nX="$GRUB_CMDLINE_LINUX"\n',
        "GRUB_CMDLINE_LINUX='it'\\''s=1 \"b c\"'\n",
        'GRUB_CMDLINE_LINUX="cost=\\$5 back=\\\\ tick=\\` q=\\"a b\\""\n',
    ],
)
def test_shell_code_beside_the_variable_does_no_harm(text: str, tmp_path: Path) -> None:
    before = text.encode()
    got = edited(GRUB, before)
    assert sourced(got, tmp_path).split("\n")[0] == sourced(before, tmp_path).split("\n")[0] + " iommu=pt"
    assert unedited(GRUB, got, before, got) == before


@pytest.mark.skipif(not shutil.which("bash"), reason="only bash reads +=")
@pytest.mark.parametrize(
    ("before", "value"),
    [
        (b'GRUB_CMDLINE_LINUX="a iommu=nopt"\nGRUB_CMDLINE_LINUX+=" b"\n', "a iommu=pt b"),
        (b'GRUB_CMDLINE_LINUX="a"\nGRUB_CMDLINE_LINUX+=""\n', "a iommu=pt"),
        (b'GRUB_CMDLINE_LINUX="a iommu"\nGRUB_CMDLINE_LINUX+="=nopt b"\n', "a iommu=pt b"),
    ],
)
def test_a_bash_file_that_adds_with_plus_is_read_as_bash_reads_it(before: bytes, value: str, tmp_path: Path) -> None:
    assert sourced(edited(GRUB, before), tmp_path, "bash").split("\n")[0] == value


# ---------------------------------------------------------------- generated files

PARAMETER = st.sampled_from(
    [
        "quiet",
        "splash",
        "iommu=nopt",
        "iommu=soft",
        "iommu.passthrough=0",
        "root=UUID=1-2",
        "console=ttyS0,115200",
        "pci=nommconf",
        "nvidia-drm.modeset=1",
    ]
)
VALUE = st.lists(PARAMETER, max_size=5).map(" ".join)
QUOTED = st.tuples(VALUE, st.sampled_from(['"', "'"])).map(lambda p: p[1] + p[0] + p[1])
OURS = st.tuples(st.sampled_from(["GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT"]), QUOTED, st.sampled_from(["", "  # note"])).map(
    lambda p: f"{p[0]}={p[1]}{p[2]}"
)
ALSO = st.tuples(st.sampled_from(["GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT"]), VALUE).map(lambda p: f'{p[0]}="${p[0]} {p[1]}"')
OTHER = st.sampled_from(
    ["", "# comment \xe9\xff", '#GRUB_CMDLINE_LINUX_DEFAULT="iommu=nopt"', "GRUB_TIMEOUT=5", "GRUB_DISTRIBUTOR=`echo a || echo b`", "\t"]
)
FILE = st.tuples(st.lists(st.one_of(OURS, ALSO, OTHER), max_size=7), st.sampled_from(["\n"]), st.booleans()).map(
    lambda p: (p[1].join(p[0]) + (p[1] if p[2] else "")).encode("latin-1")
)


@settings(max_examples=150, deadline=None)
@given(FILE, st.sampled_from([GRUB, GRUB_ACS]))
def test_any_file_is_edited_once_and_goes_back_to_the_byte(before: bytes, change: TextFile) -> None:
    after = edited(change, before)
    assert edited(change, after) == after
    assert unedited(change, after, before, after) == before
    assert [line for line in before.splitlines() if line.startswith(b"#")] == [line for line in after.splitlines() if line.startswith(b"#")]
    foreign = b"# from another hand\n" + after
    assert unedited(change, foreign, before, after) == b"# from another hand\n" + before


@settings(max_examples=40, deadline=None)
@given(before=FILE)
def test_what_the_shell_holds_is_what_we_read(before: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("grub")
    old, after = sourced(before, folder), edited(GRUB, before)
    new = sourced(after, folder)
    touched = ("iommu", "iommu.passthrough")
    assert [(w.key, w.value) for w in words(new) if w.key not in touched] == [(w.key, w.value) for w in words(old) if w.key not in touched]
    held = {(w.key, option) for w in words(new) for option in (w.value or "").split(",")}
    assert ("iommu", "pt") in held and ("iommu", "nopt") not in held and ("iommu.passthrough", "0") not in held


SHELL = st.lists(
    st.sampled_from([".", "=1", " ", "\n", '"', "'", "\\", "$", "$X", "${X}", "#", ";", "&", "`", "(", ")", "\t", "é"]), max_size=9
).map("".join)


@settings(max_examples=400, deadline=None)
@given(value=SHELL)
def test_a_value_is_read_as_the_shell_reads_it_or_not_at_all(value: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = f"X=one\nGRUB_CMDLINE_LINUX={value}\n".encode()
    try:
        ours = line_of("grub_default", data)
    except NotUnderstood:
        return
    folder = tmp_path_factory.mktemp("grub")
    try:
        theirs = sourced(data, folder)
    except subprocess.CalledProcessError:  # no shell could read that file
        return
    assert theirs.rpartition("\n")[0] == ours.replace("\ue000", "one")


def test_after_another_hand_only_our_words_go_and_theirs_stay() -> None:
    before = b'# mine\nGRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX_DEFAULT="quiet iommu=nopt splash"\n'
    after = edited(GRUB, before)
    assert after == b'# mine\nGRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX_DEFAULT="quiet iommu=pt splash"\n'
    now = after.replace(b"GRUB_TIMEOUT=5", b"GRUB_TIMEOUT=9").replace(b"splash", b"splash nomodeset")
    assert unedited(GRUB, now, before, after) == b'# mine\nGRUB_TIMEOUT=9\nGRUB_CMDLINE_LINUX_DEFAULT="quiet iommu=nopt splash nomodeset"\n'


def test_after_another_hand_between_two_lines_of_ours_both_go() -> None:
    before = b'GRUB_CMDLINE_LINUX="iommu=nopt"\nA=1\nGRUB_CMDLINE_LINUX_DEFAULT="a iommu.passthrough=0"\n'
    after = edited(GRUB, before)
    assert b"iommu=pt" in after and b"nopt" not in after and b"passthrough" not in after
    assert unedited(GRUB, after.replace(b"A=1", b"A=2"), before, after) == before.replace(b"A=1", b"A=2")


def test_after_another_hand_took_our_word_out_what_we_removed_comes_back() -> None:
    before = b'GRUB_CMDLINE_LINUX="quiet iommu.passthrough=0"\n'
    after = edited(GRUB, before)
    assert unedited(GRUB, b'GRUB_CMDLINE_LINUX="quiet"\n', before, after) == b'GRUB_CMDLINE_LINUX="quiet iommu.passthrough=0"\n'


def test_a_device_of_ours_goes_and_one_that_came_later_stays() -> None:
    before = b'GRUB_CMDLINE_LINUX="pci=nommconf"\n'
    after = edited(GRUB_ACS, before)
    now = after.replace(b"17:00.0", b"17:00.0;x0x00xx@0000:99:00.0")
    assert unedited(GRUB_ACS, now, before, after) == b'GRUB_CMDLINE_LINUX="pci=nommconf,config_acs=x0x00xx@0000:99:00.0"\n'


def test_a_file_that_became_unreadable_cannot_be_undone_by_us() -> None:
    before = b'GRUB_CMDLINE_LINUX="a"\n'
    after = edited(GRUB, before)
    assert unedited(GRUB, b'GRUB_CMDLINE_LINUX="$(x) iommu=pt"\n', before, after) is None


# ---------------------------------------------------------------- other files


def test_options_of_a_boot_entry_are_edited_and_nothing_else() -> None:
    change = TextFile("/e", "options_lines", ("iommu=pt",), ("iommu=nopt",))
    before = b"title x\noptions    root=a ro\nlinux /v\noptions iommu=nopt quiet \ninitrd /i"
    after = edited(change, before)
    assert after == b"title x\noptions    root=a ro\nlinux /v\noptions iommu=pt quiet \ninitrd /i"
    assert edited(change, after) == after and unedited(change, after, before, after) == before
    assert edited(change, b"title x\r\nlinux /v\r\n") == b"title x\r\nlinux /v\r\noptions iommu=pt\r\n"
    assert edited(change, b"linux /v\noptions\n") == b"linux /v\noptions\noptions iommu=pt\n"
    assert edited(change, b"linux /v\noptions a $kernelopts $tuned_params\n") == b"linux /v\noptions a $kernelopts $tuned_params iommu=pt\n"


def test_the_command_line_of_kernels_to_come_keeps_its_comments_and_lines() -> None:
    change = TextFile("/etc/kernel/cmdline", "cmdline_file", ("iommu=pt",), ("iommu=nopt",))
    assert edited(change, b"root=a ro") == b"root=a ro iommu=pt"
    assert edited(change, b"# iommu=nopt\nroot=a\n\nro iommu=nopt\n") == b"# iommu=nopt\nroot=a\n\nro iommu=pt\n"
    assert edited(change, b"") == b"iommu=pt\n"
    assert edited(change, None) == b"iommu=pt\n"


LINES = st.lists(st.sampled_from(["title x", "options a iommu=nopt", "options  b", "options", "linux /v", "# options c", ""]), max_size=6)


@settings(max_examples=150, deadline=None)
@given(LINES, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.sampled_from(["options_lines", "cmdline_file"]))
def test_any_entry_is_edited_once_and_goes_back_to_the_byte(lines: list[str], end: str, closed: bool, edit: str) -> None:
    before = (end.join(lines) + (end if closed else "")).encode()
    change = TextFile("/e", edit, ("iommu=pt",), ("iommu=nopt",))
    after = edited(change, before)
    assert edited(change, after) == after
    assert unedited(change, after, before, after) == before
    assert {parsed(w)[0] for w in line_of(edit, after).split()} >= {"iommu"}


def test_a_whole_file_is_written_where_none_is_and_never_over_another() -> None:
    change = TextFile("/etc/x.conf", "whole", content="a\n")
    assert edited(change, None) == b"a\n" == edited(change, b"a\n")
    with pytest.raises(NotUnderstood):
        edited(change, b"b\n")
    assert unedited(change, b"c\n", None, b"a\n") is None


def test_an_edit_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="no such edit"):
        edited(TextFile("/x", "nonsense", ("a",)), b"")
