"""`check` with traffic, on this machine or a simulated one, and its self-test. Wires plan, workers, diagnosis and report; decides nothing."""

from __future__ import annotations

import secrets
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from linkproof import routes_cache
from linkproof.checking import Checked, check
from linkproof.collect.host import Host, Live
from linkproof.errors import UsageError
from linkproof.measured import MODES, Probed
from linkproof.probe.plan import Plan, Wish
from linkproof.progress import trying
from linkproof.prove import SIMULATED_NCCL, Told, planned, prove
from linkproof.report.layout import Piece, Row, wrapped
from linkproof.report.say import Teller

NO_TORCH = "PyTorch is not there for this Python, so no data could go between the GPUs: install linkproof where your model runs"
Show = Callable[[str | Iterable[Row]], None]


def wish(options: Namespace) -> Wish:
    """What the command line asks for. Raises UsageError."""
    unknown = [m for m in options.mode if m not in MODES]
    if unknown:
        known = ", ".join(MODES)
        raise UsageError(
            "no-such-mode",
            (f"--mode {unknown[0]}: the modes are {known}", f"--mode {unknown[0]}：可用的模式有 {known}"),
            ("nothing was tested", "没有进行任何测试"),
            ("name one of them", "请写出其中一个"),
        )
    return Wish(tuple(_pair(text) for text in options.pair), tuple(options.mode), options.deep, options.force)


def refuse_what_does_nothing(options: Namespace, silent: bool) -> None:
    """An option that only traffic can answer, beside one that allows none. Raises UsageError."""
    given = [("--deep", options.deep), ("--pair", options.pair), ("--mode", options.mode), ("--force", options.force),
             ("--plan", options.plan), ("--self-test", options.self_test), ("--for", options.engine)]  # fmt: skip
    idle = [name for name, value in given if value] if silent else []
    if options.self_test:
        idle += [name for name, value in given[:5] if value] + (["--for"] if options.engine else [])
        idle += ["--format json"] if options.format == "json" else []
    elif options.plan:
        idle += (["--for"] if options.engine else []) + (["--format json"] if options.format == "json" else [])
    if idle:
        beside = "--quick/--from" if silent else "--self-test" if options.self_test else "--plan"
        raise UsageError(
            "option-does-nothing",
            (f"{idle[0]} does nothing beside {beside}", f"{idle[0]} 与 {beside} 同用时不起作用"),
            ("nothing was done", "没有执行任何操作"),
            (f"leave {idle[0]} out, or {beside}", f"请去掉 {idle[0]}，或去掉 {beside}"),
        )


def _pair(text: str) -> tuple[int, int]:
    src, colon, dst = text.partition(":")
    if not (colon and src.isdecimal() and dst.isdecimal() and len(text) < 12):
        raise UsageError(
            "not-a-pair",
            (f"--pair {text}: a pair is written 0:1, source first", f"--pair {text}：写法为 0:1，源在前"),
            ("nothing was tested", "没有进行任何测试"),
            ("write two GPU numbers with a colon between", "请写两个 GPU 编号，中间用冒号"),
        )
    return int(src), int(dst)


@contextmanager
def machine(sim: str | None) -> Iterator[tuple[Host, str]]:
    """(what is read, how its devices are reached): this machine, or a simulated one that goes when this ends."""
    if sim is None:
        yield Live("/"), "cuda"
        return
    from linkproof.sim.host import SimHost
    from linkproof.sim.scenario import load
    from linkproof.sim.virtual import create

    scenario = load(sim)
    with tempfile.TemporaryDirectory(prefix="linkproof-sim-") as folder:
        create(scenario, folder)
        yield SimHost(scenario, folder), f"sim:{folder}"


def probed_check(options: Namespace, lang: str) -> Checked:
    wanted = wish(options)
    with trying(lang) as tell:
        return _probed(options.sim, wanted, tell)


def _probed(sim: str | None, wanted: Wish, tell: Told) -> Checked:
    with machine(sim) as (host, devices):
        if devices == "cuda" and find_spec("torch") is None:
            return check(host, Probed((), (), notes=((NO_TORCH, {}),)))
        probed = prove(devices, wanted, tell)
        checked = check(host, probed)
    whole = not (wanted.pairs or wanted.modes)
    if devices == "cuda" and whole and probed.cards:
        routes_cache.save(probed, checked.key_parts)
    return checked


def check_machine(
    *,
    sim: str | None = None,
    quick: bool = False,
    deep: bool = False,
    pairs: Sequence[tuple[int, int]] = (),
    modes: Sequence[str] = (),
    force: bool = False,
) -> Checked:
    """`linkproof.check()`: what the command does, as a typed result: `.diagnosis` (verdict, causes, consumers), `.routes`, `.probed`, `.risks`.

    sim: name or file of a simulated machine; quick: sends nothing; pairs: (source, destination) GPU numbers; modes: as `--mode`. Takes seconds
    to minutes. Raises UsageError for a pair, mode or scenario that is not there.
    """
    if quick:
        return check(Live("/"))
    asked = Namespace(mode=list(modes), pair=[f"{src}:{dst}" for src, dst in pairs], deep=deep, force=force)
    return _probed(sim, wish(asked), lambda done, of, case: None)


# ---------------------------------------------------------------- plan and self-test


def show_plan(options: Namespace, lang: str, show: Show, width: int) -> int:
    """What would be tried, in order, with its cost. Nothing is sent."""
    from linkproof.probe.setup import Setup
    from linkproof.probe.workers.worker import Runner

    with machine(options.sim) as (_, devices), Runner(Setup(devices, 0)) as runner:
        cards, backend = runner.cards()
        virtual = backend == "virtual"  # then: what it would take on such a machine
        todo = planned(cards, "cuda" if virtual else backend, wish(options), SIMULATED_NCCL if virtual else None)
    show(plan_rows(todo, len(cards), Teller(lang), width))
    return 0 if todo.jobs else 3


def plan_rows(todo: Plan, cards: int, t: Teller, width: int) -> list[Row]:
    rows = wrapped([Piece(t("{n} cases on {gpus} GPUs, about {s} s", n=len(todo.jobs), gpus=cards, s=f"{todo.cost_s:.0f}"), "head")], width)
    groups: dict[tuple[str, str], list[float]] = {}
    for job in todo.jobs:
        groups.setdefault((job.case.mode, job.case.load), []).append(job.cost_s)
    loads = {"alone": "", "both_ways": t("both directions at once"), "all": t("all pairs at once")}
    for (mode, load), costs in groups.items():
        words = t(MODES[mode].what) + (f", {loads[load]}" if loads[load] else "")
        rows += wrapped([Piece(f"{mode:<16}{len(costs):>4} x {sum(costs) / len(costs):5.2f} s  "), Piece(words, "quiet")], width, 2, 33)
    for mode in dict.fromkeys(o.case.mode for o in todo.left_out):
        o = next(o for o in todo.left_out if o.case.mode == mode)
        rows += wrapped([Piece(f"{mode:<16}{t('left out')}: {t(o.why, **o.args)}", "open")], width, 2, 18)
    return rows


def self_test(options: Namespace, lang: str, show: Show, width: int) -> int:
    """0: every fault was named and the clean arm was clean; 1: one was not; 3: one could not be tried, or none."""
    from linkproof.report.links_self_test import self_test_rows
    from linkproof.self_test import prove_the_verifier

    with machine(options.sim) as (_, devices), trying(lang) as tell:
        results = prove_the_verifier(devices, secrets.randbits(64), tell)
    show(self_test_rows(results, Teller(lang), width))
    if not all(r.named for r in results if r.possible):
        return 1
    return 0 if results and all(r.possible for r in results) else 3
