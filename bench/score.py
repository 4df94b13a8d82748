"""How often does linkproof name the cause of a recorded failure, and is it as sure as it is right?

Each case is a folder with `evidence/` and maybe `observations.yaml`; its `case.yaml` says what it was and is never shown to the tool
(format: tests/cases/README.md). Runs in this process, or with --command through any executable that answers in the same JSON.

    python bench/score.py                          every case
    python bench/score.py --only 017 042 --show    two cases, with what was said
    python bench/score.py --command 'linkproof explain {evidence} {observations_flag} --format json'
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import yaml

CASES = Path(__file__).resolve().parent.parent / "tests" / "cases"
SURE = 0.5
BINS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


class Said(NamedTuple):
    """One answer: causes best first as (id, class, confidence). error: why there is none, or ""."""

    causes: tuple[tuple[str, str, float], ...] = ()
    verdict: str = ""
    error: str = ""
    took_s: float = 0.0


class Row(NamedTuple):
    id: str
    case: dict[str, Any]
    said: Said
    top1: bool  # the cause or an also_ok is first, or it stayed open where that is right
    exact: bool  # the cause itself
    top3: bool
    cls: bool
    accused: bool  # the fabric comes first, and nothing expected is of it
    accused_sure: bool
    never: bool
    hedged: bool
    named: bool  # the first cause is right, however sure


# ---------------------------------------------------------------- asking


def in_process(evidence: Path, observations: Path | None) -> Said:
    from linkproof.explaining import explain_inputs
    from linkproof.report.contract import as_json, report_of

    start = perf_counter()
    diagnosis = explain_inputs([str(evidence)], observations_file=str(observations) if observations else None)
    return _read(as_json(report_of(diagnosis, "en")), perf_counter() - start)


def through(command: str, timeout_s: float) -> Callable[[Path, Path | None], Said]:
    def run(evidence: Path, observations: Path | None) -> Said:
        flag = f"--observations {shlex.quote(str(observations))}" if observations else ""
        argv = shlex.split(command.replace("{evidence}", shlex.quote(str(evidence))).replace("{observations_flag}", flag))
        start = perf_counter()
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return Said(error="timeout", took_s=timeout_s)
        except OSError as e:
            return Said(error=f"cannot start: {e.strerror}")
        if done.returncode not in (0, 1, 3):
            return Said(error=f"exit {done.returncode}: {done.stderr.strip()[-120:]}", took_s=perf_counter() - start)
        return _read(done.stdout, perf_counter() - start)

    return run


def _read(answer: str, took_s: float) -> Said:
    try:
        data = json.loads(answer)
        causes = tuple((str(c["id"]), str(c["class"]), float(c["confidence"])) for c in data["causes"])
        return Said(causes, str(data["verdict"]), "", took_s)
    except (ValueError, KeyError, TypeError) as e:
        return Said(error=f"no usable JSON ({type(e).__name__})", took_s=took_s)


def ask(folder: Path, tool: Callable[[Path, Path | None], Said]) -> Said:
    """The tool sees copies in a folder without a name: nothing but evidence and observations can help it."""
    with tempfile.TemporaryDirectory(prefix="case-") as tmp:
        evidence, observations = Path(tmp) / "evidence", Path(tmp) / "observations.yaml"
        if (folder / "evidence").is_dir():
            shutil.copytree(folder / "evidence", evidence)
        else:
            evidence.mkdir()
        if (folder / "observations.yaml").exists():
            shutil.copy(folder / "observations.yaml", observations)
        return tool(evidence, observations if observations.exists() else None)


# ---------------------------------------------------------------- judging


def classes_of(causes_md: Path) -> dict[str, str]:
    """CAUSES.md -> {id: class}"""
    out: dict[str, str] = {}
    cls = ""
    for line in causes_md.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            cls = line[3:].strip()
        elif line.startswith("- `"):
            out[line.split("`")[1]] = cls
    return out


def judge(name: str, case: dict[str, Any], said: Said, classes: dict[str, str]) -> Row:
    expect = case["expect"]
    also, never = expect.get("also_ok") or [], expect.get("never") or []
    allowed = {expect["cause"], *also}
    allowed_classes = {expect["class"], *(classes.get(cause, "") for cause in also)}
    first_id, first_cls, first_share = said.causes[0] if said.causes else ("", "", 0.0)
    first_cls = first_cls or classes.get(first_id, "")
    hedged = not said.error and all(share < SURE for _, _, share in said.causes)
    named = first_id in allowed
    open_right = "undecided" in allowed and hedged
    accused = first_cls == "fabric" and "fabric" not in allowed_classes
    return Row(
        id=name,
        case=case,
        said=said,
        top1=named or open_right,
        exact=first_id == expect["cause"] or (expect["cause"] == "undecided" and hedged),
        top3=any(cause in allowed for cause, _, _ in said.causes[:3]) or open_right,
        cls=first_cls in allowed_classes or open_right,
        accused=accused,
        accused_sure=accused and first_share >= SURE,
        never=bool(first_id) and not named and (first_id in never or first_cls in never),
        hedged=hedged,
        named=named,
    )


def score(cases: Path = CASES, tool: Callable[[Path, Path | None], Said] = in_process, only: Sequence[str] = ()) -> list[Row]:
    classes = classes_of(cases / "CAUSES.md")
    rows = []
    for path in sorted(cases.glob("*/case.yaml")):
        name = path.parent.name
        if only and not any(word in name for word in only):
            continue
        case = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows.append(judge(name, case, ask(path.parent, tool), classes))
    return rows


def could_be_accused(row: Row, classes: dict[str, str]) -> bool:
    expect = row.case["expect"]
    return "fabric" not in {expect["class"], *(classes.get(cause, "") for cause in expect.get("also_ok") or [])}


# ---------------------------------------------------------------- printing


def share(part: int, whole: int) -> str:
    return f"{part:4d} of {whole:<4d} {100 * part / whole:5.1f} %" if whole else "   none"


def summary(rows: Sequence[Row], classes: dict[str, str]) -> Iterable[str]:
    innocent = [row for row in rows if could_be_accused(row, classes)]
    open_rows = [row for row in rows if row.case["expect"]["cause"] == "undecided"]
    lines: list[tuple[str, int, int]] = [
        ("top-1 (cause or also_ok)", sum(r.top1 for r in rows), len(rows)),
        ("top-1 (cause only)", sum(r.exact for r in rows), len(rows)),
        ("top-3", sum(r.top3 for r in rows), len(rows)),
        ("class", sum(r.cls for r in rows), len(rows)),
        ("false accusations of the fabric", sum(r.accused for r in rows), len(innocent)),
        ("  of these at 0.5 or above", sum(r.accused_sure for r in rows), len(innocent)),
        ("put first what must never be", sum(r.never for r in rows), len(rows)),
        ("undecided: stayed open", sum(r.hedged for r in open_rows), len(open_rows)),
        ("no answer", sum(bool(r.said.error) for r in rows), len(rows)),
    ]
    for label, part, whole in lines:
        yield f"{label:34s}{share(part, whole)}"
    took = sorted(row.said.took_s for row in rows)
    verdicts = ", ".join(f"{name} {n}" for name, n in sorted(Counter(row.said.verdict or "none" for row in rows).items()))
    yield f"slowest {took[-1] * 1000:.0f} ms, median {took[len(took) // 2] * 1000:.0f} ms; verdicts: {verdicts}"


def groups(rows: Sequence[Row]) -> Iterable[str]:
    for label in ("difficulty", "class", "symptom"):
        found: dict[str, list[Row]] = {}
        for row in rows:
            found.setdefault(str(row.case["expect"][label] if label == "class" else row.case[label]), []).append(row)
        yield f"{label}: " + ", ".join(
            f"{k} {sum(r.top1 for r in g)}/{len(g)} (class {sum(r.cls for r in g)})" for k, g in sorted(found.items())
        )


def reliability(rows: Sequence[Row]) -> Iterable[str]:
    """When it says 70 %, is it right in 70 % of the cases? Undecided cases count as not named, whatever was said."""
    rated = [(row.said.causes[0][2], row.named) for row in rows if row.said.causes]
    yield f"{'confidence of the first':>24}{'cases':>7}{'said':>8}{'right':>8}"
    error = 0.0
    for low, high in pairwise(BINS):
        mine = [pair for pair in rated if low <= pair[0] < high or (high == BINS[-1] and pair[0] == high)]
        if mine:
            said, right = sum(s for s, _ in mine) / len(mine), sum(r for _, r in mine) / len(mine)
            error += abs(said - right) * len(mine) / len(rated)
            yield f"{low:>16.2f} .. {high:.2f}{len(mine):>7}{said:>8.2f}{right:>8.2f}"
    brier = sum((s - r) ** 2 for s, r in rated) / len(rated) if rated else 0.0
    yield f"expected calibration error {error:.3f}, Brier score {brier:.3f}"


def misses(rows: Sequence[Row], show_all: bool) -> Iterable[str]:
    listed = [r for r in rows if show_all or not r.top1 or r.accused or r.never or r.said.error]
    yield f"{'cases' if show_all else 'misses'}: {len(listed)}   (A fabric accused falsely, N a `never` first, X no answer)"
    for r in listed:
        marks = "".join(m for m, on in (("A", r.accused), ("N", r.never), ("X", bool(r.said.error))) if on) or ("ok" if r.top1 else "-")
        also = r.case["expect"].get("also_ok") or []
        said = ", ".join(f"{cause} {confidence:.2f}" for cause, _, confidence in r.said.causes[:3]) or r.said.error or "nothing"
        yield f"  {marks:3s}{r.id:30s} {r.case['difficulty']:7s}{r.case['expect']['cause']}{' (or ' + ', '.join(also) + ')' if also else ''}"
        yield f"      said: {said}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="?", type=Path, default=CASES)
    parser.add_argument("--command", help="ask an executable instead of this process")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for each case, with --command")
    parser.add_argument("--only", nargs="+", default=(), metavar="TEXT", help="cases whose name contains one of these")
    parser.add_argument("--show", action="store_true", help="list every case, not only the misses")
    given = parser.parse_args()
    rows = score(given.cases, through(given.command, given.timeout) if given.command else in_process, given.only)
    if not rows:
        print(f"no cases in {given.cases}", file=sys.stderr)
        return 2
    for part in (summary(rows, classes_of(given.cases / "CAUSES.md")), groups(rows), reliability(rows), misses(rows, given.show)):
        print("\n".join(part), end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
