"""Arguments, exit codes, wiring; decides nothing.

Exit codes: 0 healthy, 1 a finding, 2 wrong usage, 3 cannot tell, 4 our own fault (130 after Ctrl-C).
What a command needs is imported when it runs: `--version` and `--help` load nothing but argparse.
"""

from __future__ import annotations

import os
import sys
from argparse import REMAINDER, ArgumentParser, Namespace, RawDescriptionHelpFormatter, _SubParsersAction
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

from linkproof import __version__
from linkproof.errors import LinkproofError, UsageError
from linkproof.report.say import LANGS, Teller, language

if TYPE_CHECKING:
    from linkproof.model import Diagnosis
    from linkproof.report.layout import Row

HEALTHY, FINDING, USAGE, CANNOT_TELL, OUR_FAULT, INTERRUPTED = 0, 1, 2, 3, 4, 130
EXIT_CODE = {"healthy": HEALTHY, "faulty": FINDING, "cannot_tell": CANNOT_TELL}
WIDEST = 100
ENGINES = ("transformers", "torchrun", "vllm", "sglang", "llama.cpp", "exllama")
ENV_FORMS = ("shell", "json", "docker", "k8s", "systemd", "compose")


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    lang = _language(argv)
    try:
        code = _run(argv, lang)
        sys.stdout.flush()
        return code
    except LinkproofError as e:
        print(e.told(lang), file=sys.stderr)
        return e.exit_code
    except BrokenPipeError:  # `| head`: the reader has what it wanted
        _close_stdout()
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as e:  # argparse, after --help and --version
        return e.code if isinstance(e.code, int) else USAGE
    except Exception as e:
        if os.environ.get("LINKPROOF_DEBUG"):
            raise
        from linkproof.report.masking import masked

        t = Teller(lang)
        what = masked(f"{type(e).__name__}: {e}")[:200]
        print(t("linkproof {version} failed ({what}). This is a fault of linkproof: please report it, with what LINKPROOF_DEBUG=1 prints.",
                version=__version__, what=what), file=sys.stderr)  # fmt: skip
        return OUR_FAULT


def _close_stdout() -> None:
    """So that nothing complains at exit about what was not written."""
    from contextlib import suppress

    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ---------------------------------------------------------------- arguments


class _Parser(ArgumentParser):
    """argparse's own words in the reader's language, and errors in the shape of all others."""

    t = Teller("en")

    def format_help(self) -> str:
        words = super().format_help()
        own = {
            "usage: ": self.t("usage: "),
            "options:\n": self.t("options:") + "\n",
            "positional arguments:\n": self.t("arguments:") + "\n",
        }
        for argparse_says, said in own.items():
            words = words.replace(argparse_says, said, 1)
        return words

    def error(self, message: str) -> NoReturn:
        raise UsageError(
            "usage",
            (message, message),
            ("nothing was done", "没有执行任何操作"),
            (f"see `{self.prog} --help`", f"请看 `{self.prog} --help`"),
        )


def _language(argv: Sequence[str]) -> str:
    """--lang holds for help and errors too, so it is looked for before anything is parsed."""
    for i, word in enumerate(argv):
        if word == "--":  # what stands behind it belongs to another program
            break
        said = word[7:] if word.startswith("--lang=") else argv[i + 1] if word == "--lang" and i + 1 < len(argv) else ""
        if said in LANGS:
            return said
    return language()


def _parser(lang: str) -> ArgumentParser:
    t = _Parser.t = Teller(lang)
    parser = _Parser(prog="linkproof", description=t("Why can the GPUs of this machine not pass data to each other?"), add_help=False)
    parser.add_argument("-h", "--help", action="help", help=t("show this help and exit"))
    parser.add_argument("--version", action="version", version=f"linkproof {__version__}", help=t("show the version and exit"))
    parser.add_argument("--lang", choices=LANGS, help=t("language of the answer (default: from the locale)"))
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title=t("commands"), prog="linkproof")
    _add_demo(commands, t)
    _add_check(commands, t)
    _add_env(commands, t)
    _add_fix(commands, t)
    _add_topo(commands, t)
    _add_collect(commands, t)
    _add_explain(commands, t)
    _add_verify(commands, t)
    _add_run(commands, t)
    _add_causes(commands, t)
    return parser


def _command(commands: _SubParsersAction[_Parser], t: Teller, name: str, help_words: str, epilog: str) -> ArgumentParser:
    parser = commands.add_parser(
        name, help=help_words, description=help_words, epilog=epilog, formatter_class=RawDescriptionHelpFormatter, add_help=False
    )
    parser.add_argument("-h", "--help", action="help", help=t("show this help and exit"))
    parser.add_argument("--lang", choices=LANGS, help=t("language of the answer (default: from the locale)"))
    return parser


def _add_demo(commands: _SubParsersAction[_Parser], t: Teller) -> None:
    words = t("shows the failure and the cure on the CPU: a small Qwen3 on two virtual GPUs, whose link breaks")
    codes = t("exit codes: 0 every step came out as it should, 1 one did not, 2 wrong usage or packages missing")
    demo = _command(commands, t, "demo", words, codes)
    demo.add_argument("--pause", action="store_true", help=t("wait for Enter between the steps"))


def _add_verify(commands: _SubParsersAction[_Parser], t: Teller) -> None:
    words = t("verifies a model: the same prompts on one device and split over several; names the link, weight or device that is at fault")
    codes = t("exit codes: 0 healthy, 1 a finding, 2 wrong usage, 3 cannot tell, 4 a fault of linkproof")
    examples = """\
  linkproof verify Qwen/Qwen3-8B
  linkproof verify qwen3-8b --tp 2
  linkproof verify qwen3-0.6b --devices virtual:4 --fault zero,pairs=1->2"""
    verify = _command(commands, t, "verify", words, f"{t('examples:')}\n{examples}\n\n{codes}")
    add = verify.add_argument
    add("model", metavar="MODEL", help=t("a folder, a hub id, or a built-in shape with random weights; an unknown name lists the shapes"))
    add("--devices", default="cuda", help=t("cuda, cuda:0,2 or virtual:4 (simulated on the CPU; default: cuda)"))
    add("--stages", type=int, default=0, metavar="N", help=t("split over the first N of these devices (default: all)"))
    add(
        "--device-map",
        default="even",
        metavar="MAP",
        help=t("even (default), auto as accelerate does it, or a JSON file: module -> device number"),
    )
    add("--prompt", action="append", default=[], help=t("a text to ask; may be given again (default: some of ours)"))
    add("--new", type=int, default=8, metavar="N", help=t("tokens that each prompt is answered with (default: 8)"))
    add("--no-sample", dest="sample", action="store_false", help=t("leave sampling out, greedy decoding only"))
    add("--seed", type=int, default=0, help=t("of random weights, prompts and sampling (default: 0)"))
    add("--dtype", default="auto", help=t("auto (the checkpoint's; default), float32, bfloat16 or float16"))
    add("--fault", action="append", default=[], metavar="KIND",
        help=t("put a fault between virtual devices, as zero,pairs=0->1; may be given again"))  # fmt: skip
    add("--tp", type=int, default=0, metavar="N", help=t("tensor parallel on N ranks as well"))
    add("--timeout", type=float, default=3600.0, metavar="S", help=t("end it after so many seconds (default: 3600)"))
    add("--format", choices=("text", "json"), default="text", help=t("form of the answer (default: text)"))


def _add_run(commands: _SubParsersAction[_Parser], t: Teller) -> None:
    words = t("runs a command in which every model that accelerate splits over several GPUs is guarded; the program is not changed")
    codes = t("exit codes: the command's own, 128 + n if signal n ended it; 126, 127 if it cannot be started; 2 wrong usage")
    run = _command(commands, t, "run", words, codes)
    run.add_argument(
        "--guard", default="deferred", metavar="MODE", help=t("deferred, strict, sampled, stage or observe (default: deferred)")
    )
    run.add_argument(
        "--policy", default="heal", metavar="POLICY", help=t("what to do when a link lied: heal, raise or warn (default: heal)")
    )
    run.add_argument("--metrics", metavar="FILE", help=t("keep the guard's metrics in FILE, as Prometheus text"))
    run.add_argument("cmd", nargs=REMAINDER, metavar="CMD", help=t("the command, behind --"))


def _add_check(commands: _SubParsersAction[_Parser], t: Teller) -> None:
    words = t("sends data between the GPUs in every way that there is, verifies every byte, and names cause, mend and safe settings")
    codes = t("exit codes: 0 healthy, 1 a finding, 2 wrong usage, 3 cannot tell, 4 a fault of linkproof")
    check = _command(commands, t, "check", words, codes)
    what = check.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help=t("this machine, without any traffic between its GPUs"))
    what.add_argument("--from", dest="capture", metavar="CAPTURE", help=t("a capture instead of this machine"))
    what.add_argument("--sim", metavar="SCENARIO", help=t("a simulated machine on the CPU; an unknown name lists them"))
    check.add_argument("--deep", action="store_true", help=t("minutes: more rounds, and addresses all over the memory"))
    check.add_argument("--pair", action="append", default=[], metavar="I:J", help=t("only from GPU I to GPU J; may be given again"))
    check.add_argument("--mode", action="append", default=[], metavar="NAME", help=t("only this mode; may be given again"))
    check.add_argument("--for", dest="engine", metavar="ENGINE", help=t("the exit code answers for this engine alone"))
    check.add_argument("--force", action="store_true", help=t("also GPUs that others are using"))
    check.add_argument("--plan", action="store_true", help=t("only show what would be tried, and how long it takes"))
    check.add_argument("--self-test", action="store_true", help=t("put every kind of fault in on purpose: each must be seen and named"))
    check.add_argument("--format", choices=("text", "json"), default="text", help=t("form of the answer (default: text)"))
    check.add_argument("--all", action="store_true", help=t("show every sign, cause and line in full"))
    check.add_argument(
        "--fail-on", choices=("risk", "fault"), default="risk", help=t("what counts as a finding for the exit code (default: risk)")
    )


def _add_env(commands: _SubParsersAction[_Parser], t: Teller) -> None:
    words = t("prints the environment and flags with which an engine is safe here, from what `check` measured last")
    env = _command(commands, t, "env", words, t("exit codes: 0 safe, with or without settings; 1 at risk; 3 cannot tell"))
    env.add_argument("--for", dest="engine", metavar="ENGINE", required=True, help=", ".join(ENGINES))
    env.add_argument("--format", choices=ENV_FORMS, default="shell", help=t("form of the answer (default: shell)"))


def _add_fix(commands: _SubParsersAction[_Parser], t: Teller) -> None:
    words = t("mends the machine so that it can be taken back: plans by default, and writes only with apply, rollback or persist")
    codes = t("exit codes: 0 nothing to mend, or done; 1 steps, or not all done; 2 wrong usage; 3 cannot tell; 4 a fault of linkproof")
    actions = "\n".join(
        f"  {name:<10}{said}"
        for name, said in (
            ("plan", t("ordered steps for what `check` measured; changes nothing, needs no root (default)")),
            ("apply", t("does them as root: keeps each former value, reads back, probes again, takes back what did not help")),
            ("status", t("what stands now, what a reboot took, what another hand changed")),
            ("rollback", t("puts the former values back, also after a crash in the middle")),
            ("persist", t("makes register changes last: a systemd unit that sets them after each boot of the same hardware")),
            ("reapply", t("what that unit runs at boot; nobody needs to type it")),
        )
    )
    fix = _command(commands, t, "fix", words, f"{t('actions:')}\n{actions}\n\n{codes}")
    add = fix.add_argument
    add("action", nargs="?", metavar="ACTION", choices=("plan", "apply", "status", "rollback", "persist", "reapply"),
        help=t("plan (default), apply, status, rollback or persist"))  # fmt: skip
    what = fix.add_mutually_exclusive_group()
    what.add_argument("--from", dest="capture", metavar="CAPTURE", help=t("plan: a capture instead of this machine"))
    what.add_argument("--sim", metavar="SCENARIO", help=t("plan: a simulated machine on the CPU; an unknown name lists them"))
    add("--pair", action="append", default=[], metavar="I:J",
        help=t("plan, apply: from GPU I to GPU J fails, though nothing measured it; may be given again"))  # fmt: skip
    add("--iommu-off", action="store_true", help=t("plan, apply: switch the IOMMU off instead of letting the GPUs pass it"))
    add("--step", action="append", default=[], metavar="ID", help=t("apply, rollback: only this step; may be given again"))
    add("--i-accept", dest="accept", action="append", default=[], metavar="RISK",
        help=t("apply, persist: overrule a refusal that the plan lets you overrule; may be given again"))  # fmt: skip
    add("--kernel-parameter", action="store_true", help=t("persist: by a parameter of the kernel instead of a systemd unit"))
    add("--format", choices=("text", "json"), default="text", help=t("form of the answer (default: text)"))
    add("--all", action="store_true", help=t("plan, apply: show long lists in full"))


def _add_topo(commands: _SubParsersAction[_Parser], t: Teller) -> None:
    topo = _command(commands, t, "topo", t("draws the PCIe tree and the paths between GPUs, with ACS, IOMMU and narrow links marked"), "")
    topo.add_argument("--from", dest="capture", metavar="CAPTURE", help=t("a capture instead of this machine"))
    topo.add_argument("--format", choices=("text", "json", "xml"), default="text", help=t("xml: a file for NCCL_TOPO_FILE"))


def _add_collect(commands: _SubParsersAction[_Parser], t: Teller) -> None:
    words = t("writes a capture of this machine that is safe to share: secrets, serial numbers, host and user names are masked")
    collect = _command(commands, t, "collect", words, "")
    collect.add_argument("-o", "--output", metavar="FILE", required=True, help=t("the file to write, a .tar.gz"))


def _add_explain(commands: _SubParsersAction[_Parser], t: Teller) -> None:
    examples = """\
  linkproof explain train.log
  dmesg | linkproof explain - vllm.log
  linkproof explain logs/ --observations seen.yaml --ask
  linkproof explain capture.tar.gz --format json"""
    codes = t("exit codes: 0 healthy, 1 a finding, 2 wrong usage, 3 cannot tell, 4 a fault of linkproof")
    words = t("names the cause of a multi-GPU failure from logs and command output of any kind")
    explain = _command(commands, t, "explain", words, f"{t('examples:')}\n{examples}\n\n{codes}")
    explain.add_argument("paths", nargs="*", metavar="PATH", help=t("files, folders, archives, or - for standard input"))
    explain.add_argument("--observations", metavar="FILE", help=t("what was tried or seen, as a YAML list"))
    explain.add_argument("--ask", action="store_true", help=t("ask in the terminal what would tell the leading causes apart"))
    explain.add_argument("--save-observations", metavar="FILE", help=t("with --ask: write the answers to FILE, for --observations"))
    explain.add_argument("--format", choices=("text", "json", "md"), default="text", help=t("form of the answer (default: text)"))
    explain.add_argument("--all", action="store_true", help=t("show every sign, cause and line in full"))


def _add_causes(commands: _SubParsersAction[_Parser], t: Teller) -> None:
    causes = _command(commands, t, "causes", t("lists the causes that are known, or prints the page of one"), "")
    causes.add_argument("id", nargs="?", metavar="ID", help=t("a cause, e.g. acs_redirect"))


def _run(argv: Sequence[str], lang: str) -> int:
    parser = _parser(lang)
    options = parser.parse_args(argv)
    if options.command == "explain":
        return _explain(options, lang)
    if options.command == "causes":
        return _causes(options, lang)
    if options.command in ("check", "topo", "collect", "env"):
        from linkproof.machine import run

        return run(options, lang, _print, _width())
    if options.command == "fix":
        from linkproof.fixing.command import run as run_fix

        return run_fix(options, lang, _print, _width())
    if options.command == "demo":
        from linkproof.demo.story import run

        return run(options, lang, _print, _width())
    if options.command == "verify":
        from linkproof.verifying import run as run_verify

        return run_verify(options, lang, _print, _width())
    if options.command == "run":
        from linkproof.run.command import run as run_command

        return run_command(options, lang)
    parser.print_help(sys.stderr)
    return USAGE


# ---------------------------------------------------------------- commands


def _explain(options: Namespace, lang: str) -> int:
    if options.save_observations and not options.ask:
        raise UsageError(
            "save-without-ask",
            (
                "--save-observations keeps the answers of --ask, and --ask is not given",
                "--save-observations 用于保存 --ask 的回答，但没有给出 --ask",
            ),
            ("nothing would be written", "不会写出任何内容"),
            ("add --ask", "请加上 --ask"),
        )
    paths = options.paths or _piped(options)
    import gc

    gc.disable()  # facts hold no cycles, and this process is short
    from linkproof.explaining import explain_inputs
    from linkproof.progress import reading

    bar = reading(paths)
    if bar is None:
        diagnosis = explain_inputs(paths, observations_file=options.observations)
    else:
        with bar:
            diagnosis = explain_inputs(paths, observations_file=options.observations, progress=bar)
    if options.ask:
        from linkproof.ask import ask_in_terminal

        diagnosis = ask_in_terminal(diagnosis, lang, options.observations, options.save_observations)
    _print(_rendered(diagnosis, options, lang))
    return EXIT_CODE[diagnosis.verdict]


def _piped(options: Namespace) -> list[str]:
    """Nothing is named: standard input if it is a pipe or a file, and a person who typed nothing is told how."""
    import stat

    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        mode = 0
    if stat.S_ISFIFO(mode) or stat.S_ISREG(mode):
        return ["-"]
    if options.observations or options.ask:
        return []
    raise UsageError(
        "nothing-given",
        ("no file, folder or archive is named, and nothing is piped in", "没有指定文件、文件夹或压缩包，也没有管道输入"),
        ("nothing was diagnosed", "未作诊断"),
        ("`linkproof explain train.log`, or `dmesg | linkproof explain`", "`linkproof explain train.log`，或 `dmesg | linkproof explain`"),
    )


def _rendered(diagnosis: Diagnosis, options: Namespace, lang: str) -> str | Iterable[Row]:
    from linkproof.report.contract import as_json, report_of

    report = report_of(diagnosis, lang)
    if options.format == "json":
        return as_json(report)
    if options.format == "md":
        from linkproof.report.markdown import markdown

        return markdown(report, lang, __version__)
    from linkproof.report.text import text

    return text(report, lang, _width(), options.all)


def _causes(options: Namespace, lang: str) -> int:
    from linkproof.causes import CLASSES, causes
    from linkproof.report.browse import listing, reading
    from linkproof.report.pages import page

    known = [(cause.id, cause.cls) for cause in causes()]
    if options.id is None:
        _print(listing(known, CLASSES, lang, _width()))
        return HEALTHY
    if options.id not in dict(known):
        from difflib import get_close_matches

        held = [cause for cause, _ in known if options.id.lower() in cause]
        near = ", ".join(held[:5] or get_close_matches(options.id, dict(known), 3, 0.5)) or "linkproof causes"
        raise UsageError(
            "unknown-cause",
            (f"no cause is called {options.id!r}", f"没有名为 {options.id!r} 的原因"),
            ("there is no page to show", "没有可显示的页面"),
            (f"try: {near}", f"可以试试：{near}"),
        )
    _print(reading(page(options.id, lang), _width()))
    return HEALTHY


# ---------------------------------------------------------------- output


def _width() -> int:
    """Of the terminal, but no wider than is good to read."""
    try:
        columns = int(os.environ.get("COLUMNS", "")) if sys.stdout.isatty() else 0
    except ValueError:
        columns = 0
    if not columns:
        try:
            columns = os.get_terminal_size(sys.stdout.fileno()).columns
        except (OSError, ValueError):
            columns = 0
    return min(columns, WIDEST) if columns > 0 else WIDEST


def _print(what: str | Iterable[Row]) -> None:
    if not isinstance(what, str):
        from linkproof.report import colour, layout

        what = colour.painted(what) if colour.wanted(sys.stdout.isatty(), os.environ) else layout.plain(what)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # an ASCII locale still gets the answer
    sys.stdout.write(what)
