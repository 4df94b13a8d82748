"""How a test that did not end well is told: from an exception, from the way a process ended, from the members of a gang (pure).

A hang, a crash of a process and an error of the framework are results. What cannot come from a link is not held against one: a process
that was killed from outside, memory that is not there, an error of our own are `not_tested`.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from linkproof.measured import Case, Outcome
from linkproof.probe.devices import DeviceLost, NotPossible, NotTested

SAID_MAX = 400
SEVERITY = ("corrupt", "died", "hung", "refused", "not_tested", "slow", "verified")  # worst first
LEFT = ("died", "hung", "refused", "not_tested")  # a member that ends like this leaves the others waiting for it
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)  # no fault of a GPU or of its driver sends these
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\n\t -\x7e\x80-\U0010ffff]|[\x80-\x9f]")


class End(Struct, frozen=True):
    """How a process ended: by itself (code), or by a signal (not 0)."""

    code: int = 0
    signal: int = 0


def failed(case: Case, error: BaseException, setting_up: bool = False) -> tuple[Outcome, bool]:
    """What an exception means for the case, and whether the worker that raised it is still of use. setting_up: nothing was sent yet."""
    told = f"{type(error).__name__}: {error}"[:SAID_MAX].rstrip(": ")
    if isinstance(error, NotTested):
        return Outcome(case, "not_tested", error.text, _values(error)), True
    if isinstance(error, NotPossible):
        return Outcome(case, "refused", error.text, _values(error)), True
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):  # torch has its own
        return Outcome(case, "not_tested", "not enough memory: {error}", {"error": told}), True
    if isinstance(error, DeviceLost):
        return Outcome(case, "died", "a GPU does not answer any more: {error}", {"error": told}), False
    if setting_up:
        return Outcome(case, "not_tested", "the GPUs could not be set up: {error}", {"error": told}), False
    if isinstance(error, RuntimeError) and not isinstance(
        error, NotImplementedError | RecursionError
    ):  # what torch makes of CUDA and NCCL errors
        return Outcome(case, "died", "the test ended with an error: {error}", {"error": told}), False
    return Outcome(case, "not_tested", "linkproof could not run this test: {error}", {"error": told}), False


def died(case: Case, end: End, output: bytes) -> Outcome:
    said = last_words(output)
    args = {"signal": signal_name(end.signal), "said": said}
    if end.signal in FROM_OUTSIDE:
        return Outcome(
            case, "not_tested", "the process was killed from outside ({signal}): by somebody, or by the kernel for want of memory", args
        )
    if end.signal:
        return Outcome(case, "died", "the process crashed: {signal}", args)
    return Outcome(case, "died", "the process ended with exit code {code}", {"code": str(end.code), "said": said})


def unreadable(case: Case, output: bytes) -> Outcome:
    return Outcome(case, "died", "the process gave an answer that cannot be read", {"said": last_words(output)})


def hung(case: Case, deadline_s: float, output: bytes, setting_up: bool = False) -> Outcome:
    args = {"deadline_s": f"{deadline_s:g}", "said": last_words(output)}
    if setting_up:
        return Outcome(case, "hung", "the GPUs were not ready after {deadline_s} s", args)
    return Outcome(case, "hung", "no answer after {deadline_s} s", args)


def stuck(outcome: Outcome, pids: Sequence[int]) -> Outcome:
    """Not even a kill ends these processes: they wait inside the driver. Only a hang is told so; to other results it is a remark."""
    args = {**outcome.args, "pid": ", ".join(map(str, pids))}
    if outcome.state == "hung":
        why = "no answer after {deadline_s} s, and process {pid} cannot be ended: it is stuck in the driver"
        return msgspec.structs.replace(outcome, why=why, args=args)
    return msgspec.structs.replace(outcome, args=args)


def combined(ended: Sequence[tuple[int, Outcome]]) -> list[Outcome]:
    """One outcome for each case that the members of a gang tell of, from theirs in the order in which they came.

    The worst tells the state. Once a member has left (it died, it was killed from outside, it cannot do this), that others then die or hang
    is a consequence and not counted; wrong data are.
    """
    told: dict[Case, list[tuple[int, Outcome]]] = {}
    left = False
    for member, outcome in ended:
        if not left or outcome.state not in ("died", "hung"):
            told.setdefault(outcome.case, []).append((member, outcome))
        left = left or outcome.state in LEFT
    return [_worst(same) for same in told.values()]


def _worst(same: Sequence[tuple[int, Outcome]]) -> Outcome:
    member, worst = min(same, key=lambda one: SEVERITY.index(one[1].state))
    every = [outcome for _, outcome in same]
    return msgspec.structs.replace(
        worst,
        args=worst.args if worst.state == "verified" else {**worst.args, "member": str(member)},
        verified_B=sum(outcome.verified_B for outcome in every),
        rounds=max(outcome.rounds for outcome in every),
        took_s=max(outcome.took_s for outcome in every),
        transport=next((outcome.transport for outcome in every if outcome.transport), ""),
    )


def _values(error: NotPossible) -> dict[str, str]:
    """Of the names in its template. Not `args`: of an exception those are always a tuple."""
    values: dict[str, str] = getattr(error, "values", {})
    return values


def last_words(output: bytes) -> str:
    """The last lines of what a process printed, at most SAID_MAX characters, without colours and control characters."""
    text = _CONTROL.sub("", output[-16 * SAID_MAX :].decode("utf-8", "replace").replace("\r", "\n"))
    lines: list[str] = []
    room = SAID_MAX
    for line in reversed([line.rstrip() for line in text.split("\n") if line.strip()]):
        if room < len(line):
            if not lines:
                lines.append(line[-SAID_MAX:])
            break
        lines.append(line)
        room -= len(line) + 1
    return "\n".join(reversed(lines))


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
