"""The systemd unit that writes the persisted words at each boot: its text, and whether what it starts is fit to be started by root.

In:      Program: the Python that runs now, and the folders that it and linkproof are loaded from.
Out:     the unit's text; Refusals.
Unknown: whether SELinux lets systemd start this Python shows only at the next boot: `linkproof fix status` says whether the unit has run.
Raises:  nothing.
Source:  systemd.unit(5), systemd.service(5), systemd.exec(5), systemd.syntax(7); Python's `-P` (3.11), `-I`.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from linkproof import version
from linkproof.act.doors import Machine
from linkproof.act.persist.persist_file import PATH as KEPT
from linkproof.mending import Refusal, Sentence

NAME = "linkproof-fix.service"
PATH = f"/etc/systemd/system/{NAME}"
WANTED = f"/etc/systemd/system/multi-user.target.wants/{NAME}"
# what uses the GPUs, or starts programs that do; those that a machine does not have are ignored
BEFORE = (
    "nvidia-persistenced", "nvidia-fabricmanager", "nvidia-dcgm", "docker", "containerd", "crio", "kubelet", "k3s", "k3s-agent",
    "rke2-server", "rke2-agent", "slurmd", "pbs",
)  # fmt: skip
_FLEETING = ("/tmp/", "/var/tmp/", "/run/", "/dev/")  # gone after a boot, or hidden by PrivateTmp
_PLAIN = re.compile(r"/[^\x00-\x1f\x7f\"'\\$]*")
TRIAL_S = 60.0


class Program(Struct, frozen=True):
    """python: as it was started, so that a virtual environment stays one. safe: keeps the folder that we stand in out of what is imported.

    files: what root will load at boot: interpreter, what its link leads to, its library, the packages; each must be mounted first.
    """

    python: str
    safe: str
    files: tuple[str, ...]

    @property
    def argv(self) -> tuple[str, ...]:
        return (self.python, self.safe, "-m", "linkproof", "fix", "reapply")


def program() -> Program:
    """The one that runs now. Before Python 3.11 only `-I` keeps the working folder out; it leaves out root's own packages too."""
    python = os.path.abspath(sys.executable)  # noqa: PTH100  its link is not followed: that would lead out of a virtual environment
    loaded = [os.path.dirname(os.path.realpath(str(module.__file__))) for module in (os, msgspec, version)]  # noqa: PTH120
    files = dict.fromkeys((python, os.path.realpath(python), *loaded))
    return Program(python, "-P" if sys.version_info >= (3, 11) else "-I", tuple(files))


def unfit(who: Program, machine: Machine) -> tuple[Refusal, ...]:
    """Why systemd must not, or could not, start this program as root."""
    odd = [path for path in who.files if not _PLAIN.fullmatch(path)]
    if odd or not who.python:
        return (
            Refusal("path", Sentence("systemd would read this path in another way: {path}", {"path": ascii((odd or [who.python])[0])})),
        )
    out = []
    if fleeting := next((path for path in who.files if path.startswith(_FLEETING)), ""):
        out.append(Refusal("fleeting", Sentence("{path} is not there at boot: install linkproof somewhere that stays", {"path": fleeting})))
    if theirs := next((at for path in who.files if (at := others_change(path))), ""):
        why = "root would run at each boot what others than root can change: {path}. Install linkproof where only root writes, for example in /opt"
        out.append(Refusal("not_roots", Sentence(why, {"path": theirs})))
    if not out and (why_not := _tried(who, machine)):
        out.append(
            Refusal("does_not_start", Sentence("started as systemd would start it, linkproof does not run: {why}", {"why": why_not}))
        )
    return tuple(out)


def _tried(who: Program, machine: Machine) -> str:
    """An empty environment, as a unit has: what only PYTHONPATH finds is not found then."""
    done = machine.run(("/usr/bin/env", "-i", *who.argv[:4], "--version"), TRIAL_S)
    said = (done.out or b"").decode("utf-8", "replace").strip()
    if done.why or done.code:
        return done.why or (said.splitlines() or [f"exit code {done.code}"])[-1][:200]
    return "" if said == f"linkproof {version.__version__}" else f"it says {said[:60]!r}"


def others_change(path: str) -> str:
    """The first file or folder on the way to `path` that somebody else than root may change or replace, "" if there is none."""
    at = Path(path)
    for part in (*reversed(at.parents), at):
        try:
            about = part.lstat()
        except OSError:
            return str(part)
        if stat.S_ISLNK(about.st_mode):  # its target is a path of its own in `Program.files`; only its owner and folder matter
            writable = False
        else:
            sticky = stat.S_ISDIR(about.st_mode) and about.st_mode & stat.S_ISVTX
            by_group = about.st_mode & stat.S_IWGRP and not sticky and _people(about.st_gid)
            writable = bool(by_group or (about.st_mode & stat.S_IWOTH and not sticky))
        if about.st_uid != 0 or writable:
            return str(part)
    return ""


def _people(gid: int) -> bool:
    """Does a group hold anyone but root? (Debian lets `staff`, which is empty, write below /usr/local.)"""
    try:
        members = set(grp.getgrgid(gid).gr_mem)
    except KeyError:
        return gid != 0
    members |= {user.pw_name for user in pwd.getpwall() if user.pw_gid == gid}
    return bool(members - {"root"})


def quoted(path: str) -> str:
    """As one word of a unit file: `%` begins a specifier there."""
    return '"' + path.replace("%", "%%") + '"'


def unit_text(who: Program) -> str:
    command = " ".join((quoted(who.python), *who.argv[1:]))
    return f"""\
# Written by `linkproof fix persist`; `linkproof fix rollback` takes it away again.
# It clears the ACS redirect bits that are named in {KEPT}, only while the hardware is the same as when
# they were found to help; if it is not, or a refusal stands, nothing is written and this unit fails with the reason.
#
# It runs once, at boot. A hot reset, AER or DPC recovery, remove and rescan, or suspend loses the bits again later on.
# Let monitoring call `linkproof fix status`: it exits with 1 then, and `systemctl restart {NAME}` writes them again.

[Unit]
Description=Let the GPUs reach each other directly (linkproof fix)
ConditionPathExists={KEPT}
ConditionVirtualization=!container
RequiresMountsFor={" ".join(quoted(path) for path in who.files)}
Before={" ".join(f"{name}.service" for name in BEFORE)}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={command}
TimeoutStartSec=3min
StateDirectory=linkproof/fix
StateDirectoryMode=0700
# /sys must stay writable, so ProtectKernelTunables=, PrivateNetwork= (a /sys of its own) and a capability set
# without CAP_SYS_ADMIN are not here: with them it could not read or write configuration space.
ProtectSystem=strict
PrivateTmp=yes
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX AF_NETLINK
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
ProtectControlGroups=yes

[Install]
WantedBy=multi-user.target
"""
