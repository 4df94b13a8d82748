"""The commands about a machine: `check`, `topo`, `collect`, `env`. Wires host, probe, check and reports together; decides nothing."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterable

from linkproof import __version__
from linkproof.checking import Checked, check
from linkproof.collect.host import Host, Live, Recorded, Recorder
from linkproof.errors import InputError, NotMeasured, UsageError
from linkproof.measured import Probed
from linkproof.model import Consumer
from linkproof.report.layout import Piece, Row
from linkproof.report.say import Teller

HEALTHY, FINDING, CANNOT_TELL = 0, 1, 3
ENGINE_CODES = {"safe": HEALTHY, "safe_with": HEALTHY, "at_risk": FINDING}


def host_of(capture: str | None) -> Host:
    """This machine, or a capture of one. Raises InputError."""
    if capture is None:
        return Live("/")
    from linkproof.collect.bundle import unpack

    try:
        path = os.path.join(capture, "manifest.json") if os.path.isdir(capture) else capture  # noqa: PTH112, PTH118
        with open(path, "rb") as file:  # noqa: PTH123
            data = file.read()
    except OSError as e:
        raise InputError(
            "capture-unreadable",
            (f"{capture}: {e.strerror}", f"{capture}：{e.strerror}"),
            ("nothing was read", "没有读取任何内容"),
            ("name a file that `linkproof collect -o FILE` wrote", "请指定由 `linkproof collect -o FILE` 写出的文件"),
        ) from None
    return Recorded(unpack(data, capture))


def run(options: Namespace, lang: str, show: Callable[[str | Iterable[Row]], None], width: int) -> int:
    if options.command == "collect":
        return _collect(options, lang, show)
    if options.command == "env":
        return _env(options, lang, show)
    if options.command == "check":
        return _check(options, lang, show, width)
    return _topo(check(host_of(options.capture)), options, lang, show)


def _check(options: Namespace, lang: str, show: Callable[[str | Iterable[Row]], None], width: int) -> int:
    from linkproof import probing
    from linkproof.report.machine import as_json, machine_report, text

    silent = options.quick or options.capture is not None
    probing.refuse_what_does_nothing(options, silent)
    if options.self_test:
        return probing.self_test(options, lang, show, width)
    if options.plan:
        return probing.show_plan(options, lang, show, width)
    if options.engine is not None:
        _known(options.engine)
    checked = check(host_of(options.capture)) if silent else probing.probed_check(options, lang)
    said = machine_report(checked, lang)
    show(as_json(said) if options.format == "json" else text(said, lang, width, options.all))
    if options.engine is not None:
        return ENGINE_CODES.get(_engine(checked, options.engine).state, CANNOT_TELL)
    found = said.verdict == "faulty" or (bool(said.risks) and options.fail_on == "risk")
    return FINDING if found else HEALTHY if said.verdict == "healthy" else CANNOT_TELL


def _known(engine: str) -> None:
    """Before minutes are spent on the links. Raises UsageError."""
    from linkproof.diagnose.consumers import WAYS

    if engine not in WAYS:
        known = ", ".join(WAYS)
        raise UsageError(
            "unknown-engine",
            (f"--for {engine}: the engines are {known}", f"--for {engine}：可用的引擎有 {known}"),
            ("nothing can be said of it", "无法给出结论"),
            ("name the one whose communication it uses: torchrun for plain NCCL", "请写出其通信所用的引擎：纯 NCCL 请写 torchrun"),
        )


def _engine(checked: Checked, engine: str) -> Consumer:
    """What one engine may do here; unknown where nothing was measured. Raises UsageError."""
    _known(engine)
    return checked.diagnosis.consumers.get(engine, Consumer("unknown"))


def _env(options: Namespace, lang: str, show: Callable[[str | Iterable[Row]], None]) -> int:
    """From the route table that `check` kept, if it still holds."""
    from linkproof import routes_cache
    from linkproof.report.env import settings_text

    kept = routes_cache.load()
    if kept is None:
        _engine(check(Live("/"), Probed((), ())), options.engine)
        raise NotMeasured(
            "not-measured",
            ("nothing was measured on this machine yet, or not by this user", "尚未在本机（或尚未由该用户）进行测量"),
            ("which settings are safe is not known", "无法得知哪些设置是安全的"),
            ("run `linkproof check`, then this again", "请先运行 `linkproof check`，再运行本命令"),
        )
    probed, parts, _ = kept
    checked = check(Live("/"), probed)
    if changed := routes_cache.stale(parts, checked.key_parts):
        part, before, now = changed[0]
        before, now = (words if len(words) < 60 else words[:57] + "..." for words in (before or "?", now or "?"))
        raise NotMeasured(
            "measured-before-a-change",
            (
                f"since the last `check` this changed: {part} (was {before}, is {now})",
                f"上次 `check` 之后发生了变化：{part}（原为 {before}，现为 {now}）",
            ),
            ("what was measured then may not hold now", "当时的测量结果可能已不成立"),
            ("run `linkproof check`, then this again", "请先运行 `linkproof check`，再运行本命令"),
        )
    consumer = _engine(checked, options.engine)
    show(settings_text(consumer, options.engine, options.format, lang))
    return ENGINE_CODES.get(consumer.state, CANNOT_TELL)


def _topo(checked: Checked, options: Namespace, lang: str, show: Callable[[str | Iterable[Row]], None]) -> int:
    from linkproof.parse.nccl_plan import pair_plans
    from linkproof.parse.topology import joined
    from linkproof.report.machine import as_json, machine_report
    from linkproof.report.topo import draw_matrix, draw_nccl, draw_tree, matrix_legend, to_xml

    t = Teller(lang)
    if options.format == "json":
        show(as_json(machine_report(checked, lang)))
    elif options.format == "xml":
        show(to_xml(checked.tree, checked.cpu_vendor))
    elif not checked.tree.gpus:
        why = checked.tree.why or t("no GPU among its {n} PCI functions", n=len(checked.tree.functions))
        show([[Piece(t("There is no tree to draw: {why}", why=why), "open")]])
        return CANNOT_TELL
    else:
        nvlinks = joined(checked.tree, checked.diagnosis.facts)
        lines = [*draw_tree(checked.tree, {}, checked.modes, t), "", *draw_matrix(checked.tree, nvlinks)]
        legend = matrix_legend(checked.tree, nvlinks, t)
        chosen = draw_nccl(checked.tree, pair_plans(checked.tree, checked.diagnosis.facts, checked.cpu_vendor), t)
        rows: list[Row] = [*([Piece(line)] for line in lines), [], *([Piece(line, "quiet")] for line in legend)]
        show([*rows, *([[], *([Piece(line)] for line in chosen)] if chosen else [])])
    return HEALTHY


def _collect(options: Namespace, lang: str, show: Callable[[str | Iterable[Row]], None]) -> int:
    from linkproof.act import boot
    from linkproof.collect.bundle import pack
    from linkproof.collect.evidence import read_evidence
    from linkproof.collect.mask import Mask, names_of
    from linkproof.collect.mend import read_mend

    recorder = Recorder(Live("/"))
    read_evidence(recorder)
    read_mend(recorder)
    boot.read(recorder)
    data = pack(recorder.log, Mask(*names_of()), f"linkproof {__version__}")
    try:
        with open(options.output, "xb") as file:  # noqa: PTH123  an existing file is never overwritten
            file.write(data)
    except OSError as e:
        raise UsageError(
            "cannot-write",
            (f"{options.output}: {e.strerror}", f"{options.output}：{e.strerror}"),
            ("the capture was not kept", "采集结果未保存"),
            ("name a new file in a folder that you may write to", "请指定一个可写目录中的新文件"),
        ) from None
    denied = sum(1 for a in recorder.log.values() if a.why == "denied")
    t = Teller(lang)
    rows = [[Piece(t("{file}: {n} sources, {size} KB; secrets, serial numbers, host and user names are masked",
                     file=options.output, n=len(recorder.log), size=len(data) // 1000))]]  # fmt: skip
    if denied:
        rows.append([Piece(t("{n} sources were not allowed; as root the capture holds more (ACS above all)", n=denied), "open")])
    show(rows)
    return HEALTHY
