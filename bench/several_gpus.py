"""Does all of linkproof hold on real links? `python bench/several_gpus.py [--out DIR] [--steps NAME ...] [--budget SECONDS]`, on 2 to 8 NVIDIA GPUs of one host.

    facts        what nvidia-smi and the system say of the machine
    collect      a capture of it; `check --quick` and `topo` of the capture against those of the machine
    topo         the matrix against nvidia-smi's, cell by cell; the tree and the plan of each pair against what NCCL dumps and takes
    check        every mode, every ordered pair, alone and together, as text and as JSON (kept)
    self_test    `check --self-test`
    bandwidth    of each ordered pair and of all-reduce, as `check` has it, against plain loops of torch
    verify       Qwen3-8B with random weights over all GPUs by device_map and by tensor parallel; Qwen3-32B by device_map if there is time
    guard        bench/guard.py with one stage a GPU, compiled and eager; clean hops; a lie on one real hop, healed
    ranks        bench/gpu_ranks.py
    deep         `check --deep`, if there is time

A step that hangs is ended at its limit, with all that it started, and the next one begins. What is said goes to the screen and to several_gpus.txt in
the folder; of each step some 400 lines, all of it in several_gpus_full.txt. guard has four steps: guard_compiled, guard_eager, guard_clean, hop_fault.
verify_32b, guard_compiled and deep are left out where time is short: then name them in another run. No setting of a GPU is changed, and NVLink
multicast stays off in everything that is started (OFF). Exit 1 if a step is not right.

    --try-out N  the same without GPUs, on a simulated machine and N virtual devices: tries this script, measures nothing
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, permutations
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

HERE = Path(__file__).resolve()
SRC = HERE.parents[1] / "src"
# NVLink multicast is set up in NVSwitches, which machines may share: what goes wrong there outlasts the process. Nothing here touches it.
OFF = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
MARK = "LINKPROOF_SEVERAL_GPUS"
LINES = 400  # of a step
FEWEST_LINES = 60  # of a command
FILE_MAX_B = 12 << 20
MIB = 1 << 20
SIM = "healthy-2xpcie"  # of --try-out
LINKPROOF = (sys.executable, "-m", "linkproof")
ANSI = re.compile(r"\x1b\[[0-9;]*m")

# ---------------------------------------------------------------- running a command


class Ran(NamedTuple):
    """rc None: it was ended at its limit."""

    rc: int | None
    text: str
    took_s: float

    @property
    def end(self) -> str:
        return f"{'ENDED AT ITS LIMIT' if self.rc is None else f'exit {self.rc}'}, {self.took_s:.1f} s"


def run(argv: Sequence[str], limit_s: float, env: dict[str, str] | None = None) -> Ran:
    """stdout and stderr together. What it started is gone afterwards, whatever its group."""
    mark, began = uuid.uuid4().hex, time.monotonic()
    path = os.pathsep.join(filter(None, (str(SRC), os.environ.get("PYTHONPATH", ""))))
    ours = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "LC_ALL": "C.UTF-8", MARK: mark}
    whole = {**os.environ, **ours, **(env or {}), **OFF}
    with tempfile.TemporaryFile() as out:
        try:
            child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, env=whole)
        except OSError as e:
            return Ran(127, f"{argv[0]}: {e.strerror}\n", 0.0)
        rc = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                rc = child.wait(max(1.0, limit_s))
        finally:
            took_s = time.monotonic() - began
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            sweep(mark)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
        out.seek(0)
        return Ran(rc, out.read(4 * FILE_MAX_B).decode(errors="replace"), took_s)


def sweep(mark: str) -> None:
    """Processes in sessions of their own, by what they were started with."""
    wanted = f"{MARK}={mark}".encode()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (place / "environ").read_bytes().split(b"\0"):
                os.kill(int(place.name), signal.SIGKILL)


def capped(text: str, most: int) -> str:
    """Head and tail."""
    lines = text.splitlines()
    if len(lines) > most:
        head = most * 2 // 3
        tail = most - head
        lines = [*lines[:head], f"... {len(lines) - most} lines left out here ...", *lines[-tail:]]
    return "\n".join(line if len(line) <= 1000 else f"{line[:1000]} ..." for line in lines)


class Bench:
    """What the steps share: the folder, the time, the two logs."""

    def __init__(self, out: Path, gpus: int, sim: bool) -> None:
        self.out, self.gpus, self.sim = out, gpus, sim
        self.until = self.room = 0.0
        out.mkdir(parents=True, exist_ok=True)
        self.log, self.full = (out / name for name in ("several_gpus.txt", "several_gpus_full.txt"))

    def say(self, text: str) -> None:
        print(text, flush=True)
        for file in (self.log, self.full):
            self._add(file, text)

    def _add(self, file: Path, text: str) -> None:
        if not file.exists() or file.stat().st_size < FILE_MAX_B:
            with file.open("a", encoding="utf-8") as f:
                f.write(text[:FILE_MAX_B] + "\n")

    def do(self, argv: Sequence[str], limit_s: float = 600.0, env: dict[str, str] | None = None, most: int = LINES) -> Ran:
        """Run and tell. Of a step's lines, those that are left; at least some."""
        words = " ".join([*(f"{k}={v}" for k, v in (env or {}).items()), shlex.join(argv)])
        command = words.replace(sys.executable, "python").replace(str(HERE), "several_gpus.py").replace(f"{HERE.parent}/", "bench/")
        ran = run(argv, min(limit_s, self.until - time.monotonic()), env)
        text = ANSI.sub("", ran.text).rstrip("\n")
        shown = capped(text, min(most, max(FEWEST_LINES, int(self.room))))
        self.room -= shown.count("\n") + 3
        for where, what in ((self.log, shown), (self.full, text)):
            self._add(where, f"\n$ {command}\n{what}\n[{ran.end}]")
        print(f"\n$ {command}\n{shown}\n[{ran.end}]", flush=True)
        return ran

    def linkproof(self, *args: str, limit_s: float = 600.0, most: int = LINES) -> Ran:
        return self.do((*LINKPROOF, *args), limit_s, most=most)

    def child(self, *args: str, limit_s: float = 600.0, env: dict[str, str] | None = None, most: int = LINES) -> Ran:
        return self.do((sys.executable, str(HERE), "--child", *args), limit_s, env, most)

    def quiet(self, *args: str, limit_s: float = 60.0) -> Ran:
        """linkproof, for what it prints; only a failure is shown."""
        ran = run((*LINKPROOF, *args), min(limit_s, self.until - time.monotonic()))
        self._add(self.full, f"\n$ linkproof {shlex.join(args)}\n{ran.text}\n[{ran.end}]")
        self.say(f"$ linkproof {shlex.join(args)}  [{ran.end}, {len(ran.text)} characters]")
        if ran.rc not in (0, 1, 3):
            self.say(capped(ran.text, FEWEST_LINES))
        return ran


# ---------------------------------------------------------------- facts, capture


def facts(b: Bench) -> bool:
    """Right if nvidia-smi and torch answer; a command that is not there is told by itself."""
    query = "index,pci.bus_id,name,driver_version,vbios_version,pcie.link.gen.current,pcie.link.width.current,clocks.sm,mig.mode.current"
    right = b.child("versions", limit_s=90).rc == 0
    right = b.sim or (b.do(("nvidia-smi",), 20).rc == 0 and right)
    for how in (("-m",), *(("-p2p", c) for c in "rwna")):
        b.do(("nvidia-smi", "topo", *how), 20)
    b.do(("nvidia-smi", "nvlink", "-s"), 20)
    b.do(("nvidia-smi", f"--query-gpu={query}", "--format=csv"), 20)
    for words in ("uname -a", "nproc", "lspci -tv", "lscpu", "cat /proc/driver/nvidia/version", "df -h /dev/shm /tmp"):
        b.do(words.split(), 20)
    return right


def flat(value: Any, at: str = "") -> dict[str, Any]:
    """{"a": [1]} -> {".a[0]": 1}"""
    if isinstance(value, dict):
        return {k: v for name, inner in value.items() for k, v in flat(inner, f"{at}.{name}").items()}
    if isinstance(value, list):
        return {k: v for i, inner in enumerate(value) for k, v in flat(inner, f"{at}[{i}]").items()}
    return {at: value}


def differences(live: str, replay: str) -> list[str]:
    """[] if they are the same; of JSON what differs, value by value, else the lines."""
    if live == replay:
        return []
    try:
        a, b = flat(json.loads(live)), flat(json.loads(replay))
    except ValueError:
        a, b = ({f"line {i + 1}": line for i, line in enumerate(text.splitlines())} for text in (live, replay))
    places = [at for at in {**a, **b} if a.get(at) != b.get(at)]
    return [f"{at}: {a.get(at)!r} / {b.get(at)!r}" for at in places] or ["order or spaces only"]


def collect(b: Bench) -> bool:
    capture = b.out / "capture.tar.gz"
    capture.unlink(missing_ok=True)
    right = b.linkproof("collect", "-o", str(capture), limit_s=60).rc == 0
    if not right:
        return False
    for args in (("check", "--quick", "--format", "json"), ("topo", "--format", "json"), ("topo",), ("topo", "--format", "xml")):
        live = b.quiet(*args)
        again = ("check", *args[2:]) if args[0] == "check" else args
        replay = b.quiet(*again, "--from", str(capture))
        found = differences(live.text, replay.text)
        verdict = f"{len(found)} DIFFERENCES" if found else "the same, byte for byte"
        b.say(f"{' '.join(args)}: machine / capture: {verdict}, exit {live.rc} / {replay.rc}")
        for line in found[:20]:
            b.say(f"  {line[:300]}")
        right = right and not found and live.rc == replay.rc and live.rc in (0, 1, 3)
    b.linkproof("check", "--from", str(capture), limit_s=60)
    return right


# ---------------------------------------------------------------- topology


def matrix(text: str) -> dict[tuple[str, str], str]:
    """(row, column) -> cell, of the table that `nvidia-smi topo -m` and `linkproof topo` print."""
    columns: list[str] = []
    cells: dict[tuple[str, str], str] = {}
    for line in text.splitlines():
        words = ANSI.sub("", line).split()
        if not columns and words[:1] == ["GPU0"] and "X" not in words:
            columns = words[: words.index("CPU")] if "CPU" in words else words
        elif columns and words and words[0] in columns:
            cells |= {(words[0], column): cell for column, cell in zip(columns, words[1:], strict=False)}
    return cells


def compared(ours: dict[tuple[str, str], str], theirs: dict[tuple[str, str], str]) -> tuple[list[str], int]:
    """What to say of the two matrices; in how many cells they contradict each other. NV18/PHB of ours is NV18 of theirs."""
    names = [{row for row, _ in cells} for cells in (ours, theirs)]
    gpus, nics = ([sorted(n for n in of if n.startswith("GPU") is gpu) for of in names] for gpu in (True, False))
    if not ours or not theirs or gpus[0] != gpus[1]:
        return [f"GPUs: {', '.join(gpus[0]) or 'none'} / {', '.join(gpus[1]) or 'none'}"], 1
    lines, wrong, same = [], 0, 0
    wanted = set(gpus[0])
    if len(nics[0]) == len(nics[1]):
        wanted |= set(nics[0]) & set(nics[1])
    else:
        lines.append(
            f"network cards: {len(nics[0])} in the tree, {len(nics[1])} with nvidia-smi (RDMA only): their columns are not compared"
        )
    for row, column in sorted(theirs):
        if row == column or row not in wanted or column not in wanted:
            continue
        mine, its = ours.get((row, column), "-").rstrip("*"), theirs[row, column]
        if its.startswith("NV") and mine.partition("/")[0] != its:
            lines.append(f"{row} {column}: DIFFERS, {mine} with us, NVLink ({its}) with nvidia-smi")
            wrong += 1
        elif its.startswith("NV"):
            same += 1
        elif mine != its:
            lines.append(f"{row} {column}: DIFFERS, {mine} in the tree, {its} with nvidia-smi")
            wrong += 1
        else:
            same += 1
    return [*lines, f"{same} cells are the same, {wrong} differ"], wrong


def hanging(xml: str) -> dict[str, tuple[str, str, str, str]]:
    """GPU -> (NUMA node, switches above it, link speed, link width), of NCCL's form of a topology."""
    found: dict[str, tuple[str, str, str, str]] = {}

    def below(node: ElementTree.Element, numa: str, above: tuple[str, ...]) -> None:
        for inside in node:
            if inside.tag == "cpu":
                below(inside, inside.get("numaid", ""), ())
            elif inside.tag == "pci":
                busid = inside.get("busid", "").lower()
                if inside.get("class", "").startswith("0x03"):
                    found[busid] = (numa, " ".join(above), inside.get("link_speed", ""), inside.get("link_width", ""))
                else:
                    below(inside, numa, (*above, busid))

    below(ElementTree.fromstring(xml), "", ())
    return found


def routes(log: str) -> dict[tuple[int, int], set[str]]:
    """(GPU, GPU), the lower first -> ways in either direction, as NCCL's log names them. Ranks are numbered as the GPUs are."""
    from linkproof.probe.collectives import nccl_said

    found: dict[tuple[int, int], set[str]] = {}
    for way, pairs in nccl_said.routes(log).items():
        for a, b in pairs:
            found.setdefault((min(a, b), max(a, b)), set()).add(way)
    return found


def plans(topo_json: str, bdfs: Sequence[str]) -> dict[tuple[int, int], tuple[str, str]]:
    """(GPU, GPU) -> (transport, why), of `linkproof topo --format json`."""
    number = {bdf: i for i, bdf in enumerate(bdfs)}
    paths = json.loads(topo_json)["paths"]
    return {(number[p["a"]], number[p["b"]]): (p["nccl_default"], p["nccl_why"]) for p in paths if p["a"] in number and p["b"] in number}


def took(planned: dict[tuple[int, int], tuple[str, str]], found: dict[tuple[int, int], set[str]]) -> tuple[list[str], int]:
    lines, wrong = [], 0
    for pair, (transport, why) in sorted(planned.items()):
        ways = found.get(pair, set())
        agree = {way.partition("/")[0] for way in ways} == {transport}
        verdict = "as planned" if agree else "not told" if not ways or transport == "unknown" else "NOT AS PLANNED"
        wrong += verdict == "NOT AS PLANNED"
        lines.append(f"GPU{pair[0]} - GPU{pair[1]}: plan {transport} ({why}); NCCL: {', '.join(sorted(ways)) or 'says nothing'}: {verdict}")
    return lines or ["no pair has a plan"], wrong


def bdfs_of() -> list[str]:
    """PCI addresses in the order of nvidia-smi, as Linux writes them."""
    text = run(("nvidia-smi", "--query-gpu=pci.bus_id", "--format=csv,noheader"), 20).text
    return [line.strip().lower()[-12:] for line in text.splitlines() if line.count(":") == 2]


def topo(b: Bench) -> bool:
    ours = b.linkproof("topo", limit_s=30)
    theirs = run(("nvidia-smi", "topo", "-m"), 20)
    lines, wrong = compared(matrix(ours.text), matrix(theirs.text))
    b.say("\n".join(["", "linkproof topo against nvidia-smi topo -m:", *(f"  {line}" for line in lines)]))
    as_json, as_xml = b.quiet("topo", "--format", "json"), b.quiet("topo", "--format", "xml")
    own, dump, log = (b.out / name for name in ("linkproof_topo.xml", "nccl_topo.xml", "nccl_log.txt"))
    own.write_text(as_xml.text)
    dump.unlink(missing_ok=True)
    log.write_text("")
    asked = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,ENV,GRAPH,P2P"}
    right = together(b, "touch", {**asked, "NCCL_TOPO_DUMP_FILE": str(dump)}, log, 60)
    lines, odd = took(plans(as_json.text, bdfs_of()), routes(log.read_text()))
    b.say("\n".join(["", "What NCCL takes, against the plan of `linkproof topo`:", *(f"  {line}" for line in lines)]))
    if dump.exists():
        odd += same_tree(b, as_xml.text, dump.read_text())
    else:
        b.say("NCCL left no topology file")
    b.linkproof("explain", *(str(file) for file in (log, dump) if file.exists()), limit_s=30, most=80)
    with tempfile.TemporaryDirectory() as folder:
        second = Path(folder) / "log"
        second.write_text("")
        fed = together(b, "touch", {**asked, "NCCL_TOPO_FILE": str(own)}, second, 45)
        ways, before = routes(second.read_text()), routes(log.read_text())
        told = "as before" if ways == before else f"{ways}, before {before}"
        b.say(f"NCCL with the topology file that linkproof wrote: {'works' if fed else 'FAILED'}; ways {told}")
    return right and fed and not wrong and not odd


def same_tree(b: Bench, ours: str, theirs: str) -> int:
    """How many GPUs hang elsewhere in NCCL's dump than in ours."""
    try:
        mine, its = hanging(ours), hanging(theirs)
    except ElementTree.ParseError as e:
        b.say(f"a topology file cannot be read: {e}")
        return 1
    b.say("\nGPUs as they hang (NUMA node, switches above, speed, width), linkproof / NCCL:")
    for gpu in sorted(mine.keys() | its.keys()):
        same = "same" if mine.get(gpu) == its.get(gpu) else "DIFFERS"
        b.say(f"  {gpu}: {same}: {mine.get(gpu, 'not there')} / {its.get(gpu, 'not there')}")
    links = re.findall(r"<nvlink [^>]*>", theirs)
    b.say(f"  NVLinks in NCCL's file: {len(links)} {' '.join(dict.fromkeys(links))}")
    return sum(mine.get(gpu, ("",) * 2)[:2] != its.get(gpu, ("",) * 2)[:2] for gpu in mine.keys() | its.keys())


# ---------------------------------------------------------------- check


def modes(b: Bench) -> list[str]:
    """[] for all, if torch says that multicast is off; else all but the one that uses it."""
    if b.sim or b.child("multicast", limit_s=60).rc == 0:
        return []
    from linkproof.measured import MODES

    b.say("multicast is not known to be off: nvls is left out")
    return [word for name in MODES if name != "nvls" for word in ("--mode", name)]


def check(b: Bench) -> bool:
    which, sim = modes(b), ["--sim", SIM] if b.sim else []
    text = b.linkproof("check", "--all", *sim, *which)
    ran = b.quiet("check", "--format", "json", *sim, *which, limit_s=600)
    (b.out / "check.json").write_text(ran.text[:FILE_MAX_B])
    try:
        said = json.loads(ran.text)
    except ValueError:
        return False
    links = said["links"]
    b.say(f"\nJSON: verdict {said['verdict']}; {links['headline']}")
    b.say(f"{links['links_verified']} of {links['links_total']} links verified, {links['links_wrong']} wrong")
    b.say(f"{links['took_s']} s by its own clock, plan {links['plan_s']} s")
    counted: dict[str, dict[str, int]] = {}
    for o in links["outcomes"]:
        name = f"{o['mode']} {o['arm'] or o['load']}"
        counted.setdefault(name, {})[o["state"]] = counted.get(name, {}).get(o["state"], 0) + 1
    b.say("\n".join(f"  {name:24} {', '.join(f'{n} {state}' for state, n in states.items())}" for name, states in counted.items()))
    for o in links["outcomes"]:
        if o["state"] not in ("verified", "not_tested"):
            b.say(f"  {o['mode']} {o['gpus']} {o['load']} {o['arm']}: {o['state']} {o['why']} {o['wrong']}")
    return {text.rc, ran.rc} <= {0, 1, 3} and not links["links_wrong"]


def self_test(b: Bench) -> bool:
    return b.linkproof("check", "--self-test", *(["--sim", SIM] if b.sim else [])).rc == 0


def deep(b: Bench) -> bool:
    return b.linkproof("check", "--deep", "--all", *(["--sim", SIM] if b.sim else []), *modes(b)).rc in (0, 1, 3)


# ---------------------------------------------------------------- bandwidth


def bandwidth(b: Bench) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "copies.json"
        right = b.child("copies", str(kept), limit_s=90).rc == 0
        plain = json.loads(kept.read_text()) if kept.exists() else {}
        right = together(b, "sums", {"BENCH_KEPT": str(Path(folder) / "sums.json")}, None, 90) and right
        kept = Path(folder) / "sums.json"
        sums = json.loads(kept.read_text()) if kept.exists() else {}
    file = b.out / "check.json"
    links = (json.loads(file.read_text()).get("links") or {}) if file.exists() else {}
    b.say("\n".join(speeds(links, plain, sums)))
    return right


def speeds(links: dict[str, Any], plain: dict[str, float], sums: dict[str, float]) -> list[str]:
    """plain: "0 1" -> GB/s; sums: MiB -> GB/s of the bus."""
    own = {(s["src"], s["dst"], s["mode"]): s for s in links.get("speeds", []) if s["load"] == "alone"}
    names = list(dict.fromkeys(mode for _, _, mode in own))
    lines = ["", "GB/s, from -> to: 256 MiB by dst.copy_(src), median; then `check`, each mode, with its ratio to that"]
    for pair, gbps in plain.items():
        src, dst = map(int, pair.split())
        cells = [(mode, own[src, dst, mode]) for mode in names if (src, dst, mode) in own]
        told = "  ".join(
            f"{mode} {s['bw_GBps']:.1f} ({s['bw_GBps'] / gbps:.2f}, {s['size_B'] // MIB} MiB; 8 B {s['lat_us']} us)" for mode, s in cells
        )
        lines.append(f"  {src} -> {dst}  {gbps:8.1f}  {told or 'check.json has none'}")
    for src, dst, mode in own:
        if not plain and src != dst:
            lines.append(f"  {src} -> {dst}  {mode} {own[src, dst, mode]['bw_GBps']:.1f}, nothing to compare with")
    lines.append("all-reduce, bus GB/s: torch " + (", ".join(f"{size} MiB {gbps:.1f}" for size, gbps in sums.items()) or "not measured"))
    for g in links.get("groups", []):
        if g["bw_GBps"]:
            size = str(g.get("bw_size_B", 0) // MIB)
            beside = f", {g['bw_GBps'] / sums[size]:.2f} of torch's at {size} MiB" if sums.get(size) else f", {size} MiB"
            lines.append(f"  check: {g['mode']} {g['arm']:16} {g['used']:24} {g['bw_GBps']:.1f}{beside}")
    return lines


# ---------------------------------------------------------------- models


def verify(b: Bench) -> bool:
    if b.sim:
        return b.linkproof("verify", "qwen3-0.6b", "--devices", f"virtual:{b.gpus}", "--tp", str(b.gpus)).rc == 0
    ran = b.linkproof("verify", "qwen3-8b", "--tp", str(b.gpus), "--timeout", inside(b, 40))
    if ran.rc is None:  # it says all at its end: then at least this much
        b.until = time.monotonic() + 60
        b.linkproof("verify", "qwen3-0.6b", "--tp", str(b.gpus), "--timeout", "40")
    return ran.rc == 0


def inside(b: Bench, spare_s: float) -> str:
    """Seconds of this step that are left, for what has a deadline of its own and says more if it reaches that."""
    return str(int(max(20.0, b.until - time.monotonic() - spare_s)))


def verify_32b(b: Bench) -> bool:
    return b.sim or b.linkproof("verify", "qwen3-32b", "--new", "4", "--no-sample", "--timeout", inside(b, 15)).rc == 0


def guard_bench(*args: str) -> Callable[[Bench], bool]:
    def does(b: Bench) -> bool:
        stages = [] if "--clean" in args else ["--stages", str(b.gpus)]
        return b.do((sys.executable, str(HERE.parent / "guard.py"), *stages, *(small(args) if b.sim else args))).rc == 0

    return does


def small(args: Sequence[str]) -> list[str]:
    number = "200" if "--clean" in args else "1"
    one_card = ["--one-card"] if "--compiled" in args else []
    return ["--tiny", *(number if arg.isdecimal() else arg for arg in args), "--layers", "4", "--new", "8", "--prompt", "32", *one_card]


def hop_fault(b: Bench) -> bool:
    return b.child("lie", "vgpu" if b.sim else "cuda", str(b.gpus)).rc == 0


def ranks(b: Bench) -> bool:
    return b.sim or b.do((sys.executable, str(HERE.parent / "gpu_ranks.py"))).rc == 0


class Step(NamedTuple):
    """need_s: with less it is not begun. spare: left out first where time is short."""

    name: str
    group: str
    does: Callable[[Bench], bool]
    limit_s: float
    need_s: float
    spare: bool = False


STEPS = (
    Step("facts", "facts", facts, 90, 10),
    Step("collect", "collect", collect, 90, 15),
    Step("topo", "topo", topo, 150, 45),
    Step("check", "check", check, 240, 60),
    Step("self_test", "self_test", self_test, 90, 30),
    Step("bandwidth", "bandwidth", bandwidth, 120, 35),
    Step("verify", "verify", verify, 240, 110),
    Step("verify_32b", "verify", verify_32b, 400, 280, spare=True),
    Step("guard_compiled", "guard", guard_bench("--compiled", "--seconds", "40"), 240, 140, spare=True),
    Step("guard_eager", "guard", guard_bench("--seconds", "25"), 120, 50),
    Step("guard_clean", "guard", guard_bench("--clean", "20000"), 60, 20),
    Step("hop_fault", "guard", hop_fault, 90, 25),
    Step("ranks", "ranks", ranks, 90, 30),
    Step("deep", "deep", deep, 400, 110, spare=True),
)

# ---------------------------------------------------------------- children


def together(b: Bench, name: str, env: dict[str, str], log: Path | None, limit_s: float) -> bool:
    """One process a GPU, each of them `name`; what NCCL wrote goes to `log`."""
    if b.sim:
        b.say(f"{name}: needs NCCL, not tried")
        return True
    with tempfile.TemporaryDirectory() as folder:
        ran = b.child("launch", name, str(b.gpus), folder, limit_s=limit_s, env=env, most=120)
        if log is not None:
            said = "".join(file.read_text(errors="replace") for file in sorted(Path(folder).glob("nccl.*.log")))
            log.write_text(said[:FILE_MAX_B])
            b.say("  " + capped(said, 40).replace("\n", "\n  "))
        return ran.rc == 0


def launch(name: str, count: str, folder: str) -> int:
    children = [subprocess.Popen([sys.executable, str(HERE), "--child", name, str(rank), count, folder]) for rank in range(int(count))]
    return max(abs(child.wait()) for child in children)


def joined(rank: str, count: str, folder: str) -> tuple[int, int, Any, Any]:
    """(rank, ranks, torch, torch.distributed), through NCCL."""
    os.environ["NCCL_DEBUG_FILE"] = f"{folder}/nccl.{rank}.log"  # before NCCL is loaded
    import torch
    import torch.distributed as dist

    me, n = int(rank), int(count)
    torch.cuda.set_device(me)
    store = dist.FileStore(f"{folder}/store", n)  # type: ignore[attr-defined]
    dist.init_process_group("nccl", store=store, rank=me, world_size=n, device_id=torch.device("cuda", me))
    return me, n, torch, dist


def touch(rank: str, count: str, folder: str) -> int:
    """A small all-reduce, and a message from each rank to each other, so that NCCL joins every pair."""
    me, n, torch, dist = joined(rank, count, folder)
    x = torch.full((1 << 18,), float(me + 1), device="cuda")
    dist.all_reduce(x)
    good = bool((x == n * (n + 1) / 2).all())
    for step in range(1, n):
        to, source = (me + step) % n, (me - step) % n
        sent, got = torch.full((1 << 16,), float(me), device="cuda"), torch.full((1 << 16,), -1.0, device="cuda")
        for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, sent, to), dist.P2POp(dist.irecv, got, source)]):
            work.wait()
        good = good and bool((got == source).all())
    torch.cuda.synchronize()
    print(f"rank {me}: {'sums and messages right' if good else 'WRONG DATA'}", flush=True)
    dist.destroy_process_group()
    return 0 if good else 1


def sums(rank: str, count: str, folder: str) -> int:
    """Bus bandwidth: 2 (n - 1) / n of the bytes over the time; medians of events on every rank, the slowest rank's."""
    me, n, torch, dist = joined(rank, count, folder)
    kept: dict[str, float] = {}
    for size_MiB, times in ((16, 50), (64, 50), (1024, 20)):
        x = torch.ones(size_MiB * MIB // 2, dtype=torch.bfloat16, device="cuda")
        dist.all_reduce(x)
        good = bool((x == n).all())
        x.zero_()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 6)]
        for mark in marks:
            mark.record()
            dist.all_reduce(x)
        torch.cuda.synchronize()
        ms = median(a.elapsed_time(b) for a, b in pairwise(marks[5:]))
        slowest = torch.tensor([ms], device="cuda")
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        kept[str(size_MiB)] = 2 * (n - 1) / n * size_MiB * MIB / float(slowest) / 1e6
        if me == 0:
            words = f"bus {kept[str(size_MiB)]:.1f} GB/s, sums {'right' if good else 'WRONG'}"
            print(f"{size_MiB} MiB bf16, {n} ranks: {float(slowest):.3f} ms, {words}", flush=True)
    if me == 0:
        Path(os.environ["BENCH_KEPT"]).write_text(json.dumps(kept))
    dist.destroy_process_group()
    return 0


def copies(kept: str) -> int:
    import torch

    found: dict[str, float] = {}
    good = True
    for src, dst in permutations(range(torch.cuda.device_count()), 2):
        a = torch.randint(256, (256 * MIB,), dtype=torch.uint8, device=f"cuda:{src}")
        b = torch.empty_like(a, device=f"cuda:{dst}")
        with torch.cuda.device(src):
            marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(25)]
            for before, after in marks:
                before.record()
                b.copy_(a)
                after.record()
            torch.cuda.synchronize()
        torch.cuda.synchronize(dst)
        took_ms = median(before.elapsed_time(after) for before, after in marks[3:])
        good = good and torch.equal(a.cpu(), b.cpu())
        found[f"{src} {dst}"] = a.numel() / took_ms / 1e6
        peer = torch.cuda.can_device_access_peer(dst, src)
        print(f"{src} -> {dst}: {took_ms:.3f} ms for 256 MiB, {found[f'{src} {dst}']:.1f} GB/s, peer access {peer}", flush=True)
    Path(kept).write_text(json.dumps(found))
    print("data right" if good else "WRONG DATA")
    return 0 if good and found else 1


def versions() -> int:
    from importlib.metadata import PackageNotFoundError, version

    names = ["torch", "triton", "transformers", "accelerate", "numpy", "nvidia-nccl-cu13", "nvidia-ml-py", "msgspec", "google-re2"]
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            print(f"{name} {version(name)}")
    import torch

    import linkproof

    print(f"linkproof {linkproof.__version__}; Python {sys.version.split()[0]}; CUDA of torch {torch.version.cuda}")
    if torch.cuda.is_available():
        print(f"NCCL of torch {'.'.join(map(str, torch.cuda.nccl.version()))}")
        for i in range(torch.cuda.device_count()):
            print(f"cuda:{i} {torch.cuda.get_device_properties(i)}")
    print({name: os.environ.get(name) for name in OFF})
    return 0


def multicast() -> int:
    """0 only if torch says of every GPU that it would not use it. Makes no multicast object: asks for an attribute."""
    import torch
    from torch._C._autograd import DeviceType
    from torch._C._distributed_c10d import _SymmetricMemory

    there = [_SymmetricMemory.has_multicast_support(DeviceType.CUDA, i) for i in range(torch.cuda.device_count())]
    print(f"torch would use NVLink multicast: {there}; NCCL_NVLS_ENABLE={os.environ.get('NCCL_NVLS_ENABLE')}")
    return 0 if there and not any(there) and os.environ.get("NCCL_NVLS_ENABLE") == "0" else 1


@contextlib.contextmanager
def lying(link_name: str, once: bool) -> Iterator[list[int]]:
    """What comes over this link: zeros from the 10th hop on, or one number of the 10th changed. Gives where hops are counted."""
    import linkproof.guard.session as session

    place: Any = session
    honest, seen = place.transport, [0]

    def lossy(t: Any, link: Any, staged: bool) -> Any:
        copy = honest(t, link, staged)
        if link.name == link_name and not staged:
            seen[0] += 1
            if once and seen[0] == 10:
                copy.view(-1)[-1:].add_(1)
            elif not once and seen[0] >= 10:
                copy.zero_()
        return copy

    place.transport = lossy
    try:
        yield seen
    finally:
        place.transport = honest


def lie(kind: str, count: str) -> int:
    """A small Qwen3 over all devices: its tokens on one, bare over all, and guarded over all while a hop lies."""
    import torch
    from accelerate import dispatch_model
    from accelerate.hooks import remove_hook_from_submodules
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from linkproof.guard.watch import guard

    stages = int(count)
    if kind == "vgpu":
        from linkproof.sim.torch_device import install

        install(stages)
    torch.backends.cuda.enable_cudnn_sdp(False)  # its bits differ from run to run
    layers = max(8, stages)
    width = 1024 if kind == "cuda" else 128
    shape: dict[str, Any] = {"hidden_size": width, "intermediate_size": 3 * width, "head_dim": 64}
    shape |= {"num_attention_heads": width // 64, "num_key_value_heads": width // 128}
    tokens: dict[str, Any] = {"vocab_size": 32000, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model: Any = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=layers, **shape, **tokens)).eval()
    torch.set_default_dtype(torch.float32)
    ids = torch.randint(1, 32000, (1, 64), generator=torch.Generator().manual_seed(1))

    def split(over: int) -> None:
        remove_hook_from_submodules(model)
        where = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": over - 1, "lm_head": over - 1}
        where |= {f"model.layers.{i}": i * over // layers for i in range(layers)}
        places = {name: f"{kind}:{stage}" for name, stage in where.items()}
        dispatch_model(model, places, main_device=f"{kind}:0", force_hooks=True, skip_keys=model._skip_keys_device_placement)

    def answer() -> Any:
        return model.generate(ids.to(f"{kind}:0"), max_new_tokens=32, do_sample=False, use_cache=True).cpu()[0, 64:]

    split(1)
    one = answer()
    again = torch.equal(answer(), one)
    split(stages)
    bare = answer()
    print(f"{layers} layers, width {width}, over {stages} x {kind}; 32 tokens, {len(set(one.tolist()))} of them distinct")
    print(f"one device twice: {said(again)}; bare over all, to one device: {said(torch.equal(bare, one))}", flush=True)
    right = again and torch.equal(bare, one)
    name = f"{kind}:0 -> {kind}:1"
    for mode in ("deferred", "strict"):
        with guard(model, mode) as watch:
            good = torch.equal(answer(), one) and not watch.events
        print(f"{mode}, nothing wrong: {said(good)}; {watch.metrics.line()}", flush=True)
        right = right and good
        for once in (False, True):
            with lying(name, once) as seen, guard(model, mode) as watch:
                got = answer()
            counts, kinds = watch.metrics.counts, sorted({e.kind for e in watch.events})
            healed = torch.equal(got, one) and bool(watch.events) and all(e.link == name for e in watch.events)
            fault = "one number of the 10th hop" if once else "zeros from the 10th hop on"
            print(
                f"{mode}, {name}: {fault} ({seen[0]} hops there): tokens {said(torch.equal(got, one))}; seen as {', '.join(kinds) or 'NOTHING'}"
            )
            ways = ", ".join(watch.demoted) or "none"
            print(f"  demoted {ways}; {counts.mismatches} mismatches, {counts.reruns} reruns", flush=True)
            right = right and healed
    with lying(name, False), guard(model, "observe", "warn") as watch:
        got = answer()
    bites = not torch.equal(got, one)
    print(
        f"the same zeros, only observed: {'other tokens, as it must be' if bites else 'THE LIE DOES NOT BITE'}; {len(watch.events)} events"
    )
    return 0 if right and bites else 1


def said(equal: bool) -> str:
    return "equal" if equal else "NOT EQUAL"


CHILDREN: dict[str, Callable[..., int]] = {
    "launch": launch, "touch": touch, "sums": sums, "copies": copies, "versions": versions, "multicast": multicast, "lie": lie,
}  # fmt: skip

# ---------------------------------------------------------------- all of it


def chosen(names: Sequence[str]) -> list[Step]:
    return [step for step in STEPS if not names or step.name in names or step.group in names]


def limit(step: Step, left_s: float, later: Sequence[Step]) -> float | None:
    """How long it may take; None: it is left out. What comes later keeps what it needs, as far as that goes."""
    free_s = left_s - sum(other.need_s for other in later if not other.spare)
    if left_s < step.need_s or (step.spare and free_s < step.need_s):
        return None
    return min(step.limit_s, max(step.need_s, free_s))


def go(b: Bench, steps: Sequence[Step], budget_s: float) -> list[tuple[str, str, float]]:
    began, ended = time.monotonic(), []
    for number, step in enumerate(steps):
        left_s = budget_s - (time.monotonic() - began)
        may_s = limit(step, left_s, steps[number + 1 :])
        if may_s is None:
            b.say(f"\n======== {step.name}: left out, {left_s:.0f} s are left and it needs {step.need_s:.0f} beside what follows")
            ended.append((step.name, "left out", 0.0))
            continue
        b.say(f"\n======== {step.name}  ({time.strftime('%H:%M:%S')}, {left_s:.0f} s left, at most {may_s:.0f} for this)")
        at = time.monotonic()
        b.until, b.room = at + may_s, LINES
        try:
            state = "right" if step.does(b) else "NOT RIGHT"
        except Exception:
            b.say(traceback.format_exc())
            state = "FAILED"
        ended.append((step.name, state, time.monotonic() - at))
        b.say(f"-------- {step.name}: {state}, {ended[-1][2]:.1f} s")
    return ended


def stop(*_: object) -> None:
    raise SystemExit(143)


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return CHILDREN[sys.argv[2]](*sys.argv[3:])
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--out", type=Path, default=HERE.parent / "out")
    parse.add_argument("--steps", nargs="+", default=[], metavar="NAME", help=", ".join(s.name for s in STEPS))
    parse.add_argument("--budget", type=float, default=510.0, help="seconds for all of them")
    parse.add_argument("--try-out", type=int, default=0, metavar="N")
    args = parse.parse_args()
    if unknown := sorted(set(args.steps) - {name for s in STEPS for name in (s.name, s.group)}):
        parse.error(f"no such step: {', '.join(unknown)}")
    sys.path[:0] = [str(SRC)]
    os.environ |= OFF
    signal.signal(signal.SIGTERM, stop)
    listed = run(("nvidia-smi", "-L"), 30)
    gpus = args.try_out or sum(line.startswith("GPU ") for line in listed.text.splitlines())
    b = Bench(args.out, gpus, bool(args.try_out))
    b.say(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  python bench/several_gpus.py {shlex.join(sys.argv[1:])}")
    b.say(f"{gpus} {'virtual devices, nothing here is a measurement' if b.sim else 'GPUs'}; {' '.join(f'{k}={v}' for k, v in OFF.items())}")
    if gpus < 2:
        b.say(f"this needs two GPUs or more: {listed.text.strip() or 'nvidia-smi says nothing'}")
        return 1
    ended = go(b, chosen(args.steps), args.budget)
    b.say("\n".join(["", "step             wall s  end", *(f"{name:16} {took_s:6.1f}  {state}" for name, state, took_s in ended)]))
    b.say("in the folder: " + ", ".join(f"{file.name} ({file.stat().st_size} B)" for file in sorted(args.out.iterdir()) if file.is_file()))
    return 0 if all(state in ("right", "left out") for _, state, _ in ended) else 1


if __name__ == "__main__":
    sys.exit(main())
