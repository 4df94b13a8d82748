"""The commands about a machine: `check`, `topo`, `collect`. Wires host, check and reports together; decides nothing."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterable

from linkproof import __version__
from linkproof.check import Checked, check
from linkproof.collect.host import Host, Live, Recorded, Recorder
from linkproof.errors import InputError, UsageError
from linkproof.report.layout import Piece, Row
from linkproof.report.say import Teller

HEALTHY, FINDING, CANNOT_TELL = 0, 1, 3


def _host(capture: str | None) -> Host:
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
    if options.command == "check" and options.capture is None and not options.quick:
        raise UsageError(
            "check-what",
            ("neither --quick nor --from is given", "没有给出 --quick 或 --from"),
            ("this release reads machines; it does not send data between GPUs", "本版本只读取机器信息，不在 GPU 之间传输数据"),
            (
                "`linkproof check --quick` for this machine, `--from CAPTURE` for another",
                "检查本机用 `linkproof check --quick`，检查别的机器用 `--from CAPTURE`",
            ),
        )
    checked = check(_host(options.capture))
    if options.command == "topo":
        return _topo(checked, options, lang, show)
    return _check(checked, options, lang, show, width)


def _check(checked: Checked, options: Namespace, lang: str, show: Callable[[str | Iterable[Row]], None], width: int) -> int:
    from linkproof.report.machine import as_json, machine_report, text

    said = machine_report(checked, lang)
    show(as_json(said) if options.format == "json" else text(said, lang, width, options.all))
    found = said.verdict == "faulty" or (bool(said.risks) and options.fail_on == "risk")
    return FINDING if found else HEALTHY if said.verdict == "healthy" else CANNOT_TELL


def _topo(checked: Checked, options: Namespace, lang: str, show: Callable[[str | Iterable[Row]], None]) -> int:
    from linkproof.parse.nccl_plan import pair_plans
    from linkproof.report.machine import as_json, machine_report
    from linkproof.report.topo import draw_matrix, draw_nccl, draw_tree, to_xml

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
        lines = [*draw_tree(checked.tree, {}, checked.modes, t), "", *draw_matrix(checked.tree)]
        legend = t("paths as nvidia-smi names them; * the ports where the way turns redirect peer traffic up (ACS)")
        chosen = draw_nccl(checked.tree, pair_plans(checked.tree, checked.diagnosis.facts, checked.cpu_vendor), t)
        rows: list[Row] = [*([Piece(line)] for line in lines), [], [Piece(legend, "quiet")]]
        show([*rows, *([[], *([Piece(line)] for line in chosen)] if chosen else [])])
    return HEALTHY


def _collect(options: Namespace, lang: str, show: Callable[[str | Iterable[Row]], None]) -> int:
    from linkproof.collect.bundle import pack
    from linkproof.collect.evidence import read_evidence
    from linkproof.collect.mask import Mask, names_of

    recorder = Recorder(Live("/"))
    read_evidence(recorder)
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
