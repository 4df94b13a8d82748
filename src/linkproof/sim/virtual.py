"""The GPUs of a simulated machine, for a probe: memory in files, links that carry bytes as the scenario says. Implements `probe.devices.Devices`.

    create(load("acs-redirect-4x4090"), folder); gpus = Virtual(folder)

In:      a folder that `create` has made. All processes of a run open the same one. A file `lost-N` in it unplugs GPU N.
Out:     as Devices. `timed_s` is computed from the links of the scenario, nobody waits for it; everything else really happens.
Raises:  DeviceLost, MemoryError, NotPossible, NotTested as Devices; UsageError if the folder holds no machine.
         A fault `hang` really hangs: the deadline of a worker is what ends it.
Source:  rates are those of real links of the kind, told in each scenario. `after` and `probability` of faults count per process.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from linkproof.errors import UsageError
from linkproof.measured import Card
from linkproof.probe.devices import HANDLES, KINDS, Buffer, DeviceLost, NotPossible, NotTested
from linkproof.probe.faults import LOST, Fault, Injector, Mirror, hang, pass_messages
from linkproof.probe.payload import MULTIPLIER
from linkproof.sim.memory import Block, make
from linkproof.sim.scenario import MiB, Scenario

U8 = NDArray[np.uint8]
MACHINE, EVENTS = "machine.json", "events"
OWN_GBps = 400.0  # a card with itself
JITTER = 0.01
CHUNK = 1 << 16  # words made at a time: two arrays of them stay in the processor's cache
NVIDIA_ONLY = ("pool", "vmm", "ipc_vmm", "flags", "atomics")


def create(scenario: Scenario, folder: str | Path) -> None:
    """Put the machine into a folder (made if need be)."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / MACHINE).write_bytes(msgspec.json.encode(scenario))


def machine_in(folder: Path) -> Scenario:
    try:
        return msgspec.json.decode((folder / MACHINE).read_bytes(), type=Scenario)
    except (OSError, msgspec.DecodeError) as e:
        raise UsageError(
            "no-machine-here",
            (f"{folder}: no simulated machine ({e})", f"{folder}：没有模拟机器（{e}）"),
            ("nothing was tested", "没有进行任何测试"),
            ("name a scenario, or a folder that was made from one", "请指定场景名，或由场景生成的文件夹"),
        ) from None


def events(folder: Path) -> list[tuple[str, str]]:
    """What the links of a machine have told since it was made: (counter, where), or ("log", line)."""
    try:
        lines = (folder / EVENTS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [(kind, said) for kind, _, said in (line.partition("\t") for line in lines)]


class _Base:
    chunk = np.arange(CHUNK, dtype=np.uint64)


def _words(out: NDArray[np.uint64], spare: NDArray[np.uint64], key_word: int, first: int, invert: bool) -> None:
    """payload.words, in place: `out` is at most CHUNK long."""
    with np.errstate(over="ignore"):
        np.add(_Base.chunk[: len(out)], np.uint64(first), out=out)
        np.bitwise_xor(out, np.uint64(key_word), out=out)
        np.multiply(out, np.uint64(MULTIPLIER), out=out)
    np.right_shift(out, np.uint64(32), out=spare)
    np.bitwise_xor(out, spare, out=out)
    if invert:
        np.invert(out, out=out)


class Virtual:
    backend = "virtual"

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.scenario = machine_in(self.folder)
        self.injector = Injector(self.scenario.faults, seed=len(self.scenario.gpus))
        self.mirror = Mirror()
        self._blocks: list[Block] = []
        self._logged: set[str] = set()
        self._jitter = np.random.default_rng(7)

    @property
    def loaded(self) -> bool:
        return self.injector.loaded

    @loaded.setter
    def loaded(self, value: bool) -> None:
        self.injector.loaded = value

    # ------------------------------------------------ the machine
    def cards(self) -> list[Card]:
        return [
            Card(i, g.name, f"GPU-{i:08x}-0000-4000-8000-{abs(hash_of(g.bdf)):012x}", g.bdf, g.memory_B, g.capability, g.busy)
            for i, g in enumerate(self.scenario.gpus)
        ]

    def peer_claimed(self, src: int, dst: int) -> bool | None:
        return src == dst or self.scenario.between(src, dst).claimed

    def counters(self) -> list[tuple[str, str, int]]:
        """(name, where, value): error counters of the links, and how many lines the kernel has logged about them."""
        counts = {(key.partition("@")[0], key.partition("@")[2]): value for key, value in self.scenario.host.counters.items()}
        for fault in self.scenario.faults:
            for name, where in fault.counts.items():
                counts.setdefault((name, where), 0)
        logged = len(self.scenario.host.kernel_log)
        for kind, said in events(self.folder):
            if kind == "log":
                logged += 1
            else:
                counts[kind, said] = counts.get((kind, said), 0) + 1
        return [(name, where, value) for (name, where), value in counts.items()] + [("kernel log", "", logged)]

    def there(self, *gpus: int) -> None:
        for gpu in gpus:
            if (self.folder / f"lost-{gpu}").exists():
                raise DeviceLost(f"GPU {gpu}")

    def _may(self, what: str) -> None:
        if what in NVIDIA_ONLY and self.scenario.gpus[0].vendor != "nvidia":
            raise NotTested("{what}: only NVIDIA GPUs have it, or only there it is written", what=what)
        if what in self.scenario.refused:
            raise NotPossible("this machine refuses {what}", what=what)

    def _peers(self, src: int, dst: int) -> None:
        if not self.peer_claimed(src, dst):
            raise NotPossible("the driver offers no peer access between GPU {src} and GPU {dst}", src=str(src), dst=str(dst))

    # ------------------------------------------------ memory
    def alloc(self, gpu: int, size_B: int, kind: str = "plain") -> Block:
        self.there(gpu)
        assert kind in (*KINDS, *HANDLES)
        self._may(kind)
        g = self.scenario.gpus[gpu]
        block = make(self.folder, gpu, size_B, g.memory_B, g.reserved_MiB * MiB)
        self._blocks = [*(b for b in self._blocks if b.size_B and len(b.data)), block]
        return block

    def put(self, buffer: Buffer, at_B: int, data: U8) -> None:
        self.there(buffer.gpu)
        _bytes(buffer)[at_B : at_B + len(data)] = data

    def get(self, buffer: Buffer, at_B: int, size_B: int) -> U8:
        self.there(buffer.gpu)
        return _bytes(buffer)[at_B : at_B + size_B].copy()

    def fill(self, buffer: Buffer, key_word: int, first: int, count: int, invert: bool = False) -> None:
        self.there(buffer.gpu)
        memory, spare = _bytes(buffer)[first * 8 : (first + count) * 8].view(np.uint64), np.empty(CHUNK, np.uint64)
        for at in range(0, count, CHUNK):
            out = memory[at : at + CHUNK]
            _words(out, spare[: len(out)], key_word, first + at, invert)

    def wrong(self, buffer: Buffer, key_word: int, first: int, count: int, invert: bool = False) -> tuple[int, int]:
        self.there(buffer.gpu)
        memory = _bytes(buffer)[first * 8 : (first + count) * 8].view(np.uint64)
        want, spare, bad, where = np.empty(CHUNK, np.uint64), np.empty(CHUNK, np.uint64), 0, -1
        for at in range(0, count, CHUNK):
            here = memory[at : at + CHUNK]
            _words(want[: len(here)], spare[: len(here)], key_word, first + at, invert)
            differs = here != want[: len(here)]
            if differs.any():
                where = first + at + int(np.argmax(differs)) if where < 0 else where
                bad += int(differs.sum())
        return bad, where

    # ------------------------------------------------ the paths on trial
    def carry(self, names: tuple[str, ...], src: int, dst: Buffer, at_B: int, data: U8) -> Fault | None:
        """Bytes of src's GPU over the link into dst; with what the link's faults make of them, tell and log. Gives the fault that acted."""
        fault = self.injector.carry(names, src, dst.gpu, _bytes(dst), at_B, data, dst.address_B) if src != dst.gpu else None
        if src == dst.gpu:
            _bytes(dst)[at_B : at_B + len(data)] = data
        if fault is not None:
            self._told(fault, src)
        return fault

    def _told(self, fault: Fault, src: int) -> None:
        counts, log = getattr(fault, "counts", {}), getattr(fault, "log", "")
        lines = [f"{name}\t{where}" for name, where in counts.items()]
        if log and (line := log.replace("{bdf}", self.scenario.gpus[src].bdf)) not in self._logged:  # the kernel's rate limit
            self._logged.add(line)
            lines.append(f"log\t{line}")
        if lines:
            with (self.folder / EVENTS).open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))

    def move(self, how: str, src: Buffer, src_at_B: int, dst: Buffer, dst_at_B: int, size_B: int, wait: bool = True) -> None:
        self.there(src.gpu, dst.gpu)
        self._may(how)
        if how != "staged":
            self._peers(src.gpu, dst.gpu)
        data = _bytes(src)[src_at_B : src_at_B + size_B]
        fault = self.carry((how,), src.gpu, dst, dst_at_B, data)
        if fault is not None and fault.kind == "mirror":
            if how.startswith("load") or how == "pull":  # the reader sees a memory of its own
                _bytes(dst)[dst_at_B : dst_at_B + size_B] = self.mirror.view(dst.gpu, src, src_at_B, size_B)
            else:
                self.mirror.write(src.gpu, dst, dst_at_B, data)

    def look(self, gpu: int, buffer: Buffer, at_B: int, size_B: int) -> U8:
        self.there(gpu, buffer.gpu)
        self._peers(gpu, buffer.gpu)
        writing = self.injector.acting(("store", "store16"), gpu, buffer.gpu, counted=False)
        if writing is not None and writing.kind == "mirror":
            return self.mirror.view(gpu, buffer, at_B, size_B)
        seen, data = np.zeros(size_B, np.uint8), _bytes(buffer)[at_B : at_B + size_B]
        if gpu == buffer.gpu:
            return data.copy()
        self.injector.carry(("load",), buffer.gpu, gpu, seen, 0, data, buffer.address_B + at_B)
        return seen

    def add(self, gpu: int, buffer: Buffer, times: int) -> int:
        self.there(gpu, buffer.gpu)
        self._may("atomics")
        self._peers(gpu, buffer.gpu)
        if gpu != buffer.gpu and not self.scenario.between(gpu, buffer.gpu).atomics:
            raise NotPossible("the link between GPU {src} and GPU {dst} carries no atomic operations", src=str(gpu), dst=str(buffer.gpu))
        fault = self.injector.acting(("atomics",), gpu, buffer.gpu)
        if fault is not None and fault.kind == "hang":
            hang()
        first = _bytes(buffer)[:4].view(np.uint32)
        first += np.uint32(times if fault is not None and fault.kind in LOST else 2 * times)
        return int(first[0])

    def messages(self, a: Buffer, b: Buffer, rounds: int, size_B: int, deadline_s: float, key_word: int) -> tuple[int, int]:
        self.there(a.gpu, b.gpu)
        self._may("flags")
        self._peers(a.gpu, b.gpu)
        sides = (a, b)
        waiting = [self.injector.acting(("flags",), x.gpu, y.gpu, counted=False) for x, y in ((a, b), (b, a))]
        if any(f is not None and f.kind == "hang" for f in waiting):
            time.sleep(deadline_s)  # two kernels that wait for each other until their watchdog ends them
            return 0, 0

        def late(side: int) -> bool:
            fault = self.injector.acting(("flags",), sides[1 - side].gpu, sides[side].gpu)
            return fault is not None and fault.kind == "reorder"

        def carry(side: int, at_B: int, data: U8) -> None:
            self.carry(("flags",), sides[1 - side].gpu, sides[side], at_B, data)

        def get(side: int, at_B: int, size_B: int) -> U8:
            return _bytes(sides[side])[at_B : at_B + size_B]

        return pass_messages(carry, get, late, rounds, size_B, deadline_s, key_word)

    def sync(self) -> None:
        """Every move is done when it returns; only a lost GPU shows here."""
        self.there(*{block.gpu for block in self._blocks})

    def timed_s(self, how: str, pairs: list[tuple[Buffer, Buffer]], size_B: int, times: int) -> float:
        routes = [(s.gpu, d.gpu) for s, d in pairs]
        for src, dst in routes:
            self.there(src, dst)
            if how != "staged":
                self._peers(src, dst)
        slowest = max(size_B / (self._rate_GBps(how, pair, routes) * 1e9) + self._lat_s(how, pair) for pair in routes)
        return float(times * slowest * (1 + JITTER * self._jitter.random()))

    def _lat_s(self, how: str, pair: tuple[int, int]) -> float:
        lat_us = 1.0 if pair[0] == pair[1] else self.scenario.between(*pair).lat_us
        return (lat_us * 3 if how == "staged" else lat_us) / 1e6

    def _rate_GBps(self, how: str, pair: tuple[int, int], routes: list[tuple[int, int]]) -> float:
        """Of one pair while all `routes` are busy: what it shares with others is divided among them."""
        src, dst = pair
        if src == dst:
            return OWN_GBps
        link, slower = self.scenario.between(src, dst), self.injector.slowness((how,), src, dst)
        if how == "staged":
            return min(link.staged_GBps, self.scenario.host_GBps / len(routes)) / slower
        rate = link.bw_GBps
        out, into = sum(s == src for s, _ in routes), sum(d == dst for _, d in routes)  # each GPU has one link, one way each
        rate = min(rate, rate / max(1, out), rate / max(1, into))
        for shared in self.scenario.shared:
            if f"{src}->{dst}" in shared.pairs:
                rate = min(rate, shared.bw_GBps / sum(f"{s}->{d}" in shared.pairs for s, d in routes))
        return rate / slower

    # ------------------------------------------------ between processes
    def share(self, buffer: Buffer, handle: str) -> bytes:
        self.there(buffer.gpu)
        self._may(handle)
        assert isinstance(buffer, Block)
        return buffer.path.name.encode()

    def open(self, gpu: int, shared: bytes, handle: str) -> Block:
        self._may(handle)
        try:
            block = Block(self.folder / Path(shared.decode()).name, made=False)
        except (FileNotFoundError, ValueError):
            raise NotPossible("the other process's memory is gone") from None
        self.there(gpu, block.gpu)
        self._peers(gpu, block.gpu)
        self._blocks.append(block)
        return block

    def close(self) -> None:
        for block in self._blocks:
            block.free()
        self._blocks = []


def _bytes(buffer: Buffer) -> U8:
    assert isinstance(buffer, Block)
    return buffer.data


def hash_of(text: str) -> int:
    """The same in every process."""
    return int.from_bytes(text.encode()[-6:], "big")
