"""One rank of a gang: where it stands, the data that it sends, and what it says of what arrived.

In:      Case, Setup, rank, folder that all ranks share (empty before): they meet through a file in it, no port is opened.
Out:     windows of 64-bit words (poison around payload), parts of sums, the Outcome of this rank; notes on disk of what it does now.
Unknown: nothing is repaired or retried: a rank that waits for ever is ended by the runner.
Raises:  what torch.distributed raises (RuntimeError); engines.py raises Unusable.
Source:  payload.py and sums.py, the same numbers made with torch on the rank's own device; a test holds them equal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from time import perf_counter

import msgspec
import numpy as np
import torch
import torch.distributed as dist

from linkproof.measured import Case, Outcome, Wrong
from linkproof.probe.collectives import sums
from linkproof.probe.collectives.nccl_said import note_path
from linkproof.probe.payload import MULTIPLIER, WORD_B, Key, classify
from linkproof.probe.setup import Setup

GUARD_W = 64  # words of poison before and behind every target
PIECE = 1 << 24
LOOK_W = 1 << 20  # words of a wrong transfer that are looked at closely
SAMPLE = 4096
NOTE_B = 160
ONE_CARD_ROUNDS = 4

Region = tuple[int, int, Key]  # words begin..end of a window that this key's payload fills


class Unusable(Exception):
    """What is to be tried is not here or has another interface ("not_tested"), or cannot be had on this machine ("refused")."""

    def __init__(self, state: str, why: str, **values: str) -> None:
        super().__init__(why)
        self.state, self.why, self.values = state, why, values


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _hash(key: Key, index: torch.Tensor) -> torch.Tensor:
    """payload.words at these places (int64 wraps as uint64 does)."""
    x = (index ^ _signed(key.word)) * _signed(MULTIPLIER)
    return x ^ ((x >> 32) & 0xFFFFFFFF)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Ranks:
    """One rank: its device, its data, its notes and what it found. All ranks run the same schedule to the end, also past a wrong transfer."""

    def __init__(self, case: Case, setup: Setup, member: int, members: int, folder: str, backend: str) -> None:
        self.case, self.setup, self.me, self.ranks, self.folder = case, setup, member, members, folder
        self.effort = setup.effort
        if one_card(case) and not setup.effort.sweep:  # they take turns on it: each wait for the other costs a time slice
            self.effort = msgspec.structs.replace(setup.effort, rounds_small=min(setup.effort.rounds_small, ONE_CARD_ROUNDS), rounds_big=1)
        self.device = torch.device("cpu") if setup.devices == "gloo" else torch.device("cuda", case.gpus[member])
        self.begun, self.now, self.bad, self.verified_B = perf_counter(), 0, 0, 0
        self.smallest_bad_B = self.largest_ok_B = 0
        self.op, self.size_B = "", 0
        self.first: Outcome | None = None
        self._note = os.open(note_path(folder, member), os.O_CREAT | os.O_WRONLY, 0o600)
        self.note("start", 0)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.store = dist.FileStore(str(Path(folder) / "store"), members)  # type: ignore[attr-defined]
        more = {"device_id": self.device} if backend == "nccl" else {}  # with it, the communicator is made at once
        dist.init_process_group(backend, store=self.store, rank=member, world_size=members, **more)  # type: ignore[arg-type]

    def note(self, op: str, size_B: int) -> None:
        """On disk before it begins, for `hung`."""
        self.op, self.size_B = op, size_B
        os.pwrite(self._note, json.dumps({"op": op, "size_B": size_B, "round": self.now}).ljust(NOTE_B).encode(), 0)

    def next(self, op: str, size_B: int) -> None:
        """A new transfer: its number makes its data new."""
        self.now += 1
        self.note(op, size_B)

    def agree(self, name: str, text: str) -> list[str]:
        """What every rank says, by way of the file: no GPU and no network takes part."""
        self.store.set(f"said.{name}.{self.me}", text)
        return [self.store.get(f"said.{name}.{rank}").decode() for rank in range(self.ranks)]

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def key(self, src: int, dst: int, now: int | None = None) -> Key:
        return Key(self.setup.seed, src, dst, self.now if now is None else now)

    # ------------------------------------------------ data
    def window(self, words: int, regions: Sequence[Region]) -> torch.Tensor:
        """What a target must hold afterwards: payload in the regions, poison around them."""
        out = torch.empty(words, dtype=torch.int64, device=self.device)
        self.fill(out, 0, words, regions[0][2])
        out.bitwise_not_()
        for begin, end, key in regions:
            self.fill(out, begin, end, key)
        return out

    def poisoned(self, want: torch.Tensor, regions: Sequence[Region]) -> torch.Tensor:
        out = want.clone()
        for begin, end, _ in regions:
            out[begin:end].bitwise_not_()
        return out

    def fill(self, out: torch.Tensor, begin: int, end: int, key: Key) -> None:
        for at in range(begin, end, PIECE):
            index = torch.arange(at, min(end, at + PIECE), dtype=torch.int64, device=self.device)
            out[at : at + len(index)] = _hash(key, index)

    def part(self, dtype: torch.dtype, rank: int, begin: int, end: int, now: int | None = None) -> torch.Tensor:
        """sums.part by torch, as int64."""
        h = _hash(self.key(rank, rank, now), torch.arange(begin, end, dtype=torch.int64, device=self.device))
        if dtype == torch.int64:
            return h
        if dtype == torch.int32:
            return ((h >> sums.INT32_SHIFT) & sums.INT32_BITS) // self.ranks
        return 1 + ((h >> sums.FLOAT_SHIFT) & sums.INT32_BITS) % max(1, sums.EXACT // self.ranks)

    def numbers(self, out: torch.Tensor, ranks: Iterable[int]) -> None:
        """The sum of these ranks' parts, in out's dtype."""
        who = list(ranks)
        for at in range(0, out.numel(), PIECE):
            end = min(out.numel(), at + PIECE)
            total = self.part(out.dtype, who[0], at, end)
            for rank in who[1:]:
                total += self.part(out.dtype, rank, at, end)
            out[at:end] = total.to(out.dtype)

    # ------------------------------------------------ verdict
    def check(self, got: torch.Tensor, want: torch.Tensor, told: Callable[[int, int], tuple[Wrong, ...]], op: str, size_B: int) -> None:
        """got, want: int64 windows. told(first, words) names what stands in `words` words around the first wrong one."""
        self.verified_B += got.numel() * WORD_B
        differs = got != want
        if not int(differs.sum()):
            self.largest_ok_B = max(self.largest_ok_B, size_B)
            return
        self.bad += 1
        self.smallest_bad_B = min(self.smallest_bad_B or size_B, size_B)
        if self.first is None:
            at = int(differs.to(torch.uint8).argmax())
            wrong = told(at, LOOK_W)
            self.first = Outcome(self.case, "corrupt", "", {}, wrong, size_B, self.now, op=op)

    def payload_told(self, got: torch.Tensor, regions: Sequence[Region]) -> Callable[[int, int], tuple[Wrong, ...]]:
        """classify, for the region in which the first wrong word lies (or the guard next to it)."""

        def told(first: int, words: int) -> tuple[Wrong, ...]:
            lo, hi, key = next((r for r in regions if first < r[1]), regions[-1])
            start, stop = (0, lo) if first < lo else (lo, hi) if first < hi else (hi, got.numel())
            begin = max(start, first - words // 2)
            end = min(stop, begin + words)
            data = got[begin:end].cpu().numpy().view(np.uint8)
            found = classify(data, key, lo * WORD_B, hi * WORD_B, begin * WORD_B, got.data_ptr())
            return tuple(msgspec.structs.replace(w, first_B=w.first_B - lo * WORD_B) for w in found)

        return told

    def sum_told(self, got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype, guard_W: int) -> Callable[[int, int], tuple[Wrong, ...]]:
        def told(first: int, words: int) -> tuple[Wrong, ...]:
            data = slice(guard_W, got.numel() - guard_W)
            if not data.start <= first < data.stop:
                return (Wrong("overrun", WORD_B, (first - guard_W) * WORD_B),)
            g, w = got[data].view(dtype).cpu(), want[data].view(dtype).cpu()
            size = dtype.itemsize
            begin = (first - guard_W) * WORD_B // size
            bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
            at = begin + (g[begin:].view(bits) != w[begin:].view(bits)).nonzero().flatten()
            sample = at[:SAMPLE]
            values = g[sample].to(torch.float64 if dtype.is_floating_point else torch.int64).numpy()
            kind, detail = sums.name(
                values, sample.numpy(), dtype_name(dtype), lambda rank, now: self.key(rank, rank, now), self.me, self.ranks, self.now
            )
            rate = round(len(at) / max(1, g.numel()), 9)
            return (Wrong(kind, len(at) * size, int(at[0]) * size, detail, 0, rate),)

        return told

    def outcome(self, transport: str = "", args: dict[str, str] | None = None, bw_GBps: float | None = None) -> Outcome:
        took_s = perf_counter() - self.begun
        base = self.first or Outcome(self.case, "verified", size_B=self.largest_ok_B)
        told = {"op": base.op, "bad": f"{self.bad:,}", "rounds": f"{self.now:,}", "rank": str(self.me)} if self.bad else {}
        return msgspec.structs.replace(
            base,
            why="{op}: {bad} of {rounds} transfers arrived wrong at rank {rank}" if self.bad else "",
            args=told | (args or {}),
            rounds=self.now,
            bad_rounds=self.bad,
            smallest_bad_B=self.smallest_bad_B,
            largest_ok_B=self.largest_ok_B,
            verified_B=self.verified_B,
            took_s=took_s,
            transport=transport,
            bw_GBps=bw_GBps,
        )

    def leave(self, all_right: bool) -> None:
        """all_right: on every rank. A communicator that has lost data may never let go, and the finding must not wait for it."""
        os.close(self._note)
        if all_right:
            dist.destroy_process_group()


def nccl_version() -> tuple[int, ...] | None:
    """Of the library that torch was built with or loaded; None without NCCL. Does not touch a GPU."""
    try:
        version = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    except (AttributeError, RuntimeError):
        return None
    return tuple(int(part) for part in version[:3]) if isinstance(version, tuple) else None


def one_card(case: Case) -> bool:
    """Several ranks on one GPU."""
    return len(set(case.gpus)) < len(case.gpus)
