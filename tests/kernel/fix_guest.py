"""Runs inside the guest: `linkproof fix` on real registers, groups and files. TEST_JOB names what happens in this boot.

    acs          plan, apply, rollback of ACS words; a probe that says it did not help; a second apply at once; vfio-pci; persist
    persisted    the boot after that: status, what the unit starts, status, rollback
    moved        the same on a machine with another card
    lockdown     what a locked-down kernel lets through
    iommu        data that an IOMMU loses, the cure at run time and its undo, the cure for the next boot
    passthrough  that next boot, and the undo
    back         the boot after the undo

The command is driven from its options on, as `linkproof fix ...` does it. Three things are stood in for: the displays are said to be NVIDIA's
(guest.StandIn), what `check` would have measured is handed in, and so is the probe that runs before and after a step. Two probes: `real` sends
data by the card's own engine; `by_acs` says what a switch does with these registers (packets turn round only if neither port redirects), as
QEMU routes no packet by ACS.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import subprocess
from base64 import encodebytes
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import msgspec

from kernel import inside, peer
from kernel.guest import StandIn as Nvidia
from linkproof import cli
from linkproof.act.apply import apply
from linkproof.act.doors import Machine
from linkproof.act.journal import Journal
from linkproof.act.plan import plan
from linkproof.checking import check
from linkproof.collect.bundle import pack
from linkproof.collect.host import Host, Live, Recorder
from linkproof.collect.mask import Mask
from linkproof.collect.mend import read_mend
from linkproof.errors import UsageError
from linkproof.fixing import command as fixing
from linkproof.measured import Card, Case, Outcome, Probed, Wrong
from linkproof.mending import Pair, Proved

GPUS = ("0000:04:00.0", "0000:05:00.0", "0000:0a:00.0")  # those with an engine
PORTS = {"0000:04:00.0": "0000:02:01.0", "0000:05:00.0": "0000:02:02.0"}  # below one switch
REDIRECT, CONTROL = 0x2C, 0x148 + 6
ENGINE = "0000:04:00.1"
UNIT = "/etc/systemd/system/multi-user.target.wants/linkproof-fix.service"
Way = Callable[[Pair], bool]  # does it arrive right?


def host() -> Nvidia:
    return Nvidia(Live())


def real(pair: Pair) -> bool:
    return peer.copy(*pair).right


def by_acs(pair: Pair) -> bool:
    ports = [PORTS[bdf] for bdf in pair if bdf in PORTS]
    words = [int.from_bytes(inside.registers_of(port)[CONTROL : CONTROL + 2], "little") for port in ports]
    return len(ports) < 2 or not any(word & REDIRECT for word in words)


def measured(way: Way) -> Probed:
    """What `check` would have found, each pair by the copy engine and through host memory."""
    outcomes = []
    for src, dst in permutations(range(len(GPUS)), 2):
        right = way((GPUS[src], GPUS[dst]))
        wrong = () if right else (Wrong("untouched", peer.SIZE_B, 0),)
        outcomes.append(Outcome(Case("staged", (src, dst)), "verified", rounds=1, size_B=peer.SIZE_B, verified_B=peer.SIZE_B))
        outcomes.append(
            Outcome(
                Case("push", (src, dst)),
                "verified" if right else "corrupt",
                wrong=wrong,
                rounds=1,
                bad_rounds=int(not right),
                size_B=peer.SIZE_B,
                verified_B=peer.SIZE_B,
            )
        )
    return Probed(tuple(Card(n, "test card", bdf=bdf) for n, bdf in enumerate(GPUS)), tuple(outcomes), backend="cuda")


def probe(way: Way) -> fixing.Probe:
    def run(pairs: tuple[Pair, ...]) -> Proved:
        right = {(src, dst, "push"): way((src, dst)) for src, dst in pairs}
        return Proved(frozenset(key for key, good in right.items() if not good), frozenset(key for key, good in right.items() if good))

    return run


def fix(*words: str, probed: Probed | None = None, way: Way | None = None, at: Host | None = None) -> dict[str, Any]:
    """`linkproof fix WORDS --format json`: exit code, what it printed, what it told meanwhile; or the error that a person would read."""
    options = cli._parser("en").parse_args(["fix", *words, "--format", "json"])
    printed: list[Any] = []
    told = io.StringIO()
    stand_in = fixing.StandIn(at or host(), Machine(), probed=probed, probe=probe(way) if way is not None else None)
    try:
        with contextlib.redirect_stderr(told):
            code = fixing.run(options, "en", printed.append, 100, stand_in)
    except UsageError as e:
        return {"code": e.exit_code, "error": e.ref, "what": e.what[0]}
    return {"code": code, "told": told.getvalue().splitlines(), **msgspec.json.decode(printed[0])}


def found(probed: Probed) -> dict[str, Any]:
    diagnosis = check(host(), probed).diagnosis
    causes = [(c.id, c.state, [f"{s.text} | {s.source.text}" for s in c.signs if s.speaks_for]) for c in diagnosis.causes]
    return {"verdict": diagnosis.verdict, "causes": causes}


def ready() -> None:
    """Disk and engines, as drivers leave them: what these change in configuration space is no part of what is compared."""
    inside.load("virtio_blk")
    inside.mount("/dev/vda")
    Path("/run/systemd/system").mkdir(parents=True)  # what says that systemd started the machine: here the test plays its part
    if Path("/sys/bus/pci/devices", ENGINE).exists() and "integrity]" not in Path("/sys/kernel/security/lockdown").read_text():
        for gpu in GPUS:
            peer.switch_on(gpu)
            peer.switch_on(peer.engine_of(gpu), master=True)


def copies() -> list[peer.Copied]:
    return [peer.copy(src, dst) for src, dst in permutations(GPUS, 2)]


def types() -> dict[str, str]:
    return {gpu: inside.group_type(gpu) for gpu in GPUS}


def text(path: str) -> str:
    return Path(path).read_text()


# ---------------------------------------------------------------- ACS


def acs() -> dict[str, Any]:
    ready()
    out: dict[str, Any] = {}
    reads = [inside.registers() for _ in range(3)]
    before, files = reads[-1], inside.files()
    out["moving"] = [inside.differences(reads[0], later) for later in reads[1:]]
    out["lspci_before"] = inside.lspci()
    recorder = Recorder(Live())
    out["planned"] = fix("plan", at=Nvidia(recorder))
    out["capture"] = encodebytes(pack(recorder.log, Mask(), "linkproof")).decode()
    probed = measured(by_acs)
    out["found"] = found(probed)
    out["plan"] = fix("plan", probed=probed)
    out["plan_changed"] = [inside.differences(before, inside.registers()), inside.files() != files]
    out["apply"] = fix("apply", "--step", "acs-switch", probed=probed, way=by_acs)
    out["applied"] = inside.differences(before, inside.registers())
    out["lspci_applied"] = inside.lspci()
    out["status"] = fix("status")
    out["rollback"] = fix("rollback")
    out["rolled_back"] = inside.differences(before, inside.registers())
    out["lspci_rolled_back"] = inside.lspci()
    out["status_then"] = fix("status")
    out["apply_real"] = fix("apply", "--step", "acs-switch", probed=probed, way=real)
    out["applied_real"] = inside.differences(before, inside.registers())
    out["status_real"] = fix("status")
    out["two"] = _two_at_once(probed)
    out["left_by_two"] = inside.differences(before, inside.registers())
    out["vfio"] = _vfio(probed, before)
    out["last"] = fix("apply", "--step", "acs-switch", probed=probed, way=by_acs)
    out["persist"] = fix("persist")
    out["persist_status"] = fix("status")
    out["unit"] = text(UNIT)
    return out


def _two_at_once(probed: Probed) -> dict[str, Any]:
    """The second one starts while the first one probes again, with its words written."""
    before = inside.registers()
    asked: list[Pair] = []
    second: dict[str, Any] = {}

    def slowly(pair: Pair) -> bool:
        asked.append(pair)
        if len(asked) == 3:  # both pairs before, and this is the first one after the write
            second["apply"] = _in_child(lambda: fix("apply", probed=probed, way=by_acs))
            second["rollback"] = _in_child(lambda: fix("rollback"))
            second["status"] = _in_child(lambda: fix("status"))
            second["registers"] = inside.differences(before, inside.registers())
        return by_acs(pair)

    first = fix("apply", "--step", "acs-switch", probed=probed, way=slowly)
    return {"first": first, "second": second, "rollback": fix("rollback")}


def _in_child(work: Callable[[], dict[str, Any]]) -> Any:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            with os.fdopen(writing, "wb") as f:
                f.write(msgspec.json.encode(work()))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as f:
        said = f.read()
    os.waitpid(pid, 0)
    return msgspec.json.decode(said)


def _vfio(probed: Probed, before: dict[str, bytes]) -> dict[str, Any]:
    """The second function of a card below the port is given to vfio-pci, as for a guest."""
    inside.load()
    device = Path("/sys/bus/pci/devices", ENGINE)
    (device / "driver_override").write_text("vfio-pci")
    Path("/sys/bus/pci/drivers_probe").write_text(ENGINE)
    out: dict[str, Any] = {"driver": (device / "driver").resolve().name}
    bound = inside.registers()
    out["plan"] = fix("plan", probed=probed)
    out["apply"] = fix("apply", "--step", "acs-switch", probed=probed, way=by_acs)
    out["changed"] = inside.differences(bound, inside.registers())
    out["accepted"] = fix("apply", "--step", "acs-switch", "--i-accept", "vfio", probed=probed, way=by_acs)
    out["changed_accepted"] = inside.differences(bound, inside.registers())
    out["rollback"] = fix("rollback")
    out["rolled_back"] = inside.differences(bound, inside.registers())
    (device / "driver" / "unbind").write_text(ENGINE)
    (device / "driver_override").write_text("\n")
    return out


# ---------------------------------------------------------------- after a reboot


def _as_systemd_would() -> dict[str, Any]:
    """What the unit's ExecStart says, with nothing in its environment. There is no systemd here."""
    unit = text(UNIT)
    command = next(line.removeprefix("ExecStart=") for line in unit.splitlines() if line.startswith("ExecStart="))
    done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={}, check=False)
    return {"code": done.returncode, "said": done.stdout}


def persisted() -> dict[str, Any]:
    ready()
    before = inside.registers()
    out: dict[str, Any] = {"status_before": fix("status"), "run": _as_systemd_would()}
    out["changed"] = inside.differences(before, inside.registers())
    out["lspci"] = inside.lspci()
    out["status"] = fix("status")
    out["again"] = _as_systemd_would()
    out["changed_again"] = inside.differences(before, inside.registers())
    Path("/sys/bus/pci/devices/0000:01:00.0/reset_subordinate").write_text("1")
    out["lspci_reset"], before = inside.lspci(), inside.registers()  # the ports' slot status has changed by it as well
    out["status_reset"] = fix("status")
    out["after_reset"] = _as_systemd_would()
    out["changed_after_reset"] = inside.differences(before, inside.registers())
    _setpci("0019")
    out["status_other_hand"], out["rollback_other_hand"] = fix("status"), fix("rollback")
    out["changed_other_hand"] = inside.differences(before, inside.registers())
    _setpci("001d")
    out["rollback"] = fix("rollback")
    out["rolled_back"] = inside.differences(before, inside.registers())
    out["status_after"] = fix("status")
    out["files"] = _files_not_ours()
    return out


def _setpci(word: str) -> None:
    """Another hand, at the first of the two ports."""
    argv = ["setpci", "-s", PORTS[GPUS[0]], f"ECAP_ACS+6.w={word}"]
    subprocess.run(argv, stderr=subprocess.DEVNULL, check=True)


def _files_not_ours() -> list[str]:
    return sorted(path for path in inside.files() if not path.startswith("/var/lib/linkproof"))


def moved() -> dict[str, Any]:
    ready()
    before = inside.registers()
    out: dict[str, Any] = {"run": _as_systemd_would(), "changed": inside.differences(before, inside.registers())}
    out["status"] = fix("status")
    out["rollback"] = fix("rollback")
    out["rolled_back"] = inside.differences(before, inside.registers())
    return out | {"files": _files_not_ours()}


# ---------------------------------------------------------------- lockdown


def lockdown() -> dict[str, Any]:
    ready()
    before = inside.registers()
    probed = measured(by_acs)
    out: dict[str, Any] = {"plan": fix("plan", probed=probed), "apply": fix("apply", "--step", "acs-switch", probed=probed, way=by_acs)}
    out["changed"] = inside.differences(before, inside.registers())
    made = plan(check(host(), probed), read_mend(host()))
    forced = msgspec.structs.replace(made, steps=tuple(msgspec.structs.replace(s, refusals=()) for s in made.steps if s.id == "acs-switch"))
    machine = Machine()
    out["forced"] = apply(forced, machine, Journal(machine=machine), probe(by_acs), frozenset(), ask_again=lambda step: ())
    out["changed_forced"] = inside.differences(before, inside.registers())
    out["status"] = fix("status")
    out["rollback"] = fix("rollback")
    return out


# ---------------------------------------------------------------- IOMMU


def iommu() -> dict[str, Any]:
    ready()
    before, files = inside.registers(), inside.files()
    out: dict[str, Any] = {"copies": copies(), "types": types(), "bars": {gpu: peer.bar(gpu) for gpu in GPUS}}
    probed = measured(real)
    out["dmesg"] = inside.dmesg()
    out["found"] = found(probed)
    out["plan"] = fix("plan", probed=probed)
    out["apply"] = fix("apply", probed=probed, way=real)
    out["types_applied"], out["copies_applied"] = types(), copies()
    out["registers_applied"] = inside.differences(before, inside.registers())
    out["files_applied"] = _not_ours(inside.files()) != _not_ours(files)
    out["status"] = fix("status")
    out["rollback"] = fix("rollback")
    out["types_rolled_back"], out["copies_rolled_back"] = types(), copies()
    out["boot"] = fix("apply", "--step", "iommu-passthrough", probed=probed, way=real)
    out["boot_status"] = fix("status")
    out["types_boot"] = types()
    return out


def _not_ours(files: dict[str, Any]) -> dict[str, Any]:
    return {path: found[:4] for path, found in files.items() if not path.startswith("/var/lib/linkproof")}


def passthrough() -> dict[str, Any]:
    ready()
    out: dict[str, Any] = {"cmdline": text("/proc/cmdline"), "types": types(), "copies": copies(), "status": fix("status")}
    out["rollback"] = fix("rollback")
    out["status_after"] = fix("status")
    return out | {"types_after": types()}


def back() -> dict[str, Any]:
    ready()
    out: dict[str, Any] = {"cmdline": text("/proc/cmdline"), "types": types(), "copies": copies(), "status": fix("status")}
    return out | {"dmesg": inside.dmesg()}


if __name__ == "__main__":
    jobs = (acs, persisted, moved, lockdown, iommu, passthrough, back)
    inside.report({job.__name__: job for job in jobs})
