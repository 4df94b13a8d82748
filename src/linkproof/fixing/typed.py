"""What was typed after `fix`: options that do nothing there, risks, steps and pairs that are not known, and commands to type in turn.

Raises:  UsageError: only-this-machine, option-does-nothing, no-such-risk, no-such-step, no-such-pair, needs-root.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterable
from shlex import quote

from linkproof.act.journal import FOLDER
from linkproof.checking import Checked
from linkproof.errors import UsageError
from linkproof.mending import RISKS, Pair

OPTIONS = {  # what each action looks at, beside --format and --lang
    "plan": ("--from", "--sim", "--pair", "--iommu-off", "--all"),
    "apply": ("--step", "--pair", "--i-accept", "--iommu-off", "--all"),
    "rollback": ("--step",),
    "status": (),
    "persist": ("--kernel-parameter", "--i-accept"),
    "reapply": (),
}


def refuse_what_does_nothing(options: Namespace, action: str) -> None:
    given = [("--from", options.capture), ("--sim", options.sim), ("--pair", options.pair), ("--iommu-off", options.iommu_off),
             ("--step", options.step), ("--i-accept", options.accept), ("--kernel-parameter", options.kernel_parameter),
             ("--all", options.all and options.format == "text"), ("--all --format json", options.all and options.format == "json")]  # fmt: skip
    idle = next((name for name, value in given if value and name not in OPTIONS[action]), None)
    if idle in ("--from", "--sim") and action in ("apply", "persist"):
        raise UsageError(
            "only-this-machine",
            (
                f"`fix {action}` changes this machine, and {idle} names another one",
                f"`fix {action}` 修改的是本机，而 {idle} 指定的是另一台机器",
            ),
            ("nothing was done", "没有执行任何操作"),
            (f"leave {idle} out, or plan with `linkproof fix {idle} ...`", f"请去掉 {idle}，或用 `linkproof fix {idle} ...` 只生成方案"),
        )
    if idle is not None:
        raise UsageError(
            "option-does-nothing",
            (f"{idle} does nothing beside `fix {action}`", f"{idle} 与 `fix {action}` 同用时不起作用"),
            ("nothing was done", "没有执行任何操作"),
            (f"leave {idle} out", f"请去掉 {idle}"),
        )


def known_risks(accepted: Iterable[str]) -> None:
    for name in accepted:
        if name not in RISKS:
            known = ", ".join(RISKS)
            raise UsageError(
                "no-such-risk",
                (f"--i-accept {name}: the risks are {known}", f"--i-accept {name}：可接受的风险有 {known}"),
                ("nothing was done", "没有执行任何操作"),
                (
                    "the plan names the one that a refused step asks for: `linkproof fix`",
                    "方案中会写出被拒绝步骤所需的名称：`linkproof fix`",
                ),
            )


def known_steps(asked: Iterable[str], known: Iterable[str]) -> None:
    known = list(dict.fromkeys(known))
    for name in asked:
        if name not in known:
            listed = ", ".join(known) or "-"
            raise UsageError(
                "no-such-step",
                (f"--step {name}: the steps are {listed}", f"--step {name}：可用的步骤有 {listed}"),
                ("nothing was done", "没有执行任何操作"),
                ("name one of them", "请写出其中一个"),
            )


def needs_root(options: Namespace, action: str) -> None:
    words = " ".join([as_root(f"fix {action}"), *repeated(options)])
    raise UsageError(
        "needs-root",
        (
            f"`fix {action}` writes registers, boot files or its journal in {FOLDER}, and only root may do that",
            f"`fix {action}` 需要写寄存器、启动文件或 {FOLDER} 中的日志，只有 root 可以这样做",
        ),
        ("nothing was done", "没有执行任何操作"),
        (words, words),
    )


def repeated(options: Namespace) -> list[str]:
    """The options that were typed, so that a command of ours asks for the same again."""
    words = [f"--step {quote(s)}" for s in options.step]
    words += [f"--pair {quote(p)}" for p in options.pair]
    words += [f"--i-accept {a}" for a in options.accept]
    words += ["--iommu-off"] if options.iommu_off else []
    return words + (["--kernel-parameter"] if options.kernel_parameter else [])


def as_root(words: str) -> str:
    """The same interpreter: root's PATH seldom knows a virtual environment."""
    return f"linkproof {words}" if os.geteuid() == 0 else f"sudo {quote(sys.executable)} -m linkproof {words}"


def pairs_named(options: Namespace, checked: Checked) -> tuple[Pair, ...]:
    """GPU numbers as `check` has them; without a measurement in the order of PCI addresses, as nvidia-smi counts."""
    if not options.pair:
        return ()
    from linkproof import probing

    asked = probing.wish(Namespace(mode=[], pair=options.pair, deep=False, force=False)).pairs
    cards = checked.probed.cards if checked.probed is not None else ()
    bdfs = {c.index: c.bdf for c in cards if c.bdf} or dict(enumerate(f.bdf for f in checked.tree.gpus))
    for src, dst in asked:
        if src == dst or not {src, dst} <= set(bdfs):
            known = ", ".join(map(str, sorted(bdfs)))
            raise UsageError(
                "no-such-pair",
                (
                    f"--pair {src}:{dst}: the GPUs are {known}" if known else f"--pair {src}:{dst}: no GPU is known here",
                    f"--pair {src}:{dst}：GPU 编号为 {known}" if known else f"--pair {src}:{dst}：这里没有已知的 GPU",
                ),
                ("nothing was done", "没有执行任何操作"),
                ("name two of them, source first", "请写出其中两个，源在前")
                if known
                else ("`linkproof topo` shows what can be read", "`linkproof topo` 显示能读到的设备"),
            )
    return tuple((bdfs[src], bdfs[dst]) for src, dst in asked)
