"""What the guard may do, and what it tells when a link lied. No torch in here.

In:      a mode, a policy, what is known of a bad hop.
Out:     Mode, Event, the action: heal, raise or warn.
Raises:  UsageError for a mode or policy that is none; LinkFault where the policy is `raise`, or where nothing helps.
Source:  modes.

    deferred  compared once per forward, before it returns; a lie rolls the forward back and runs it again      one wait per forward
    strict    compared before the copy is used; a lie is mended from the source, which still lives              one wait per hop
    sampled   deferred on the first 16 forwards, on every prompt and on every k-th forward; nothing on the rest
    stage     deferred, and every hop goes through host memory
    observe   compared and told; no copy, order or value is changed
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from msgspec import Struct

from linkproof.errors import LinkproofError, UsageError

ACTIONS = ("heal", "raise", "warn")
WRITTEN = ("a layer has written into a copy that it shares with others", "某一层改写了与其他层共享的副本")


class Mode(NamedTuple):
    name: str
    strict: bool = False
    staged: bool = False
    changes: bool = True
    sampled: bool = False

    @property
    def protects_indices(self) -> bool:
        """Whole numbers go through host memory where they are compared late: a wrong index kills a CUDA process before any comparison."""
        return self.changes and not self.strict


MODES = {
    m.name: m
    for m in (
        Mode("deferred"),
        Mode("strict", strict=True),
        Mode("sampled", sampled=True),
        Mode("stage", staged=True),
        Mode("observe", changes=False),
    )
}


class Event(Struct, frozen=True, kw_only=True):
    """A hop whose ends differ. step: forward since the guard began, from 0. hop: crossing in that forward, from 0.

    kind: zeros stale shifted pages tail bits garbage; `changed` where only digests were there to judge by.
    bad_B, first_bad_B: None where the data were not at hand. again: whether the same copy was wrong again when tried once more.
    """

    link: str
    step: int
    hop: int
    size_B: int
    dtype: str
    shape: tuple[int, ...]
    kind: str
    action: str
    staged: bool = False
    bad_B: int | None = None
    first_bad_B: int | None = None
    again: bool | None = None


Policy = str | Callable[[Event], str | None]


class LinkFault(LinkproofError):
    """A link delivered wrong data, and no token was released that depends on it. events: the hops."""

    exit_code = 1

    def __init__(
        self, ref: str, what: tuple[str, str], means: tuple[str, str], do: tuple[str, str], events: tuple[Event, ...] = ()
    ) -> None:
        super().__init__(ref, what, means, do)
        self.events = events


def mode_named(name: str) -> Mode:
    if name not in MODES:
        raise _no_such("mode", name, ", ".join(MODES))
    return MODES[name]


def checked(policy: Policy) -> Policy:
    if not callable(policy) and policy not in ACTIONS:
        raise _no_such("policy", str(policy), ", ".join(ACTIONS) + ", or a function of an Event")
    return policy


def action(mode: Mode, policy: Policy, event: Event) -> str:
    """What a function gives is taken if it is an action, else it is healed. `observe` changes nothing, whatever the policy."""
    if not mode.changes:
        return "warn"
    chosen = policy(event) if callable(policy) else policy
    return chosen if chosen in ACTIONS else "heal"


def _no_such(what: str, name: str, known: str) -> UsageError:
    return UsageError(
        f"no-such-{what}",
        (f"guard has no {what} {name!r}", f"guard 没有名为 {name!r} 的 {what}"),
        ("the model is not guarded", "模型未被保护"),
        (f"use one of {known}", f"请使用 {known} 之一"),
    )


def link_lied(events: tuple[Event, ...]) -> LinkFault:
    e = events[0]
    size, shape = f"{e.size_B:,}", "x".join(map(str, e.shape)) or "1"
    return LinkFault(
        "link-corrupts",
        (
            f"{e.link} delivered a {e.dtype} tensor of {shape} wrong ({e.kind}; {size} bytes, forward {e.step}, hop {e.hop})",
            f"{e.link} 传错了一个 {e.dtype} 张量（形状 {shape}，类型 {e.kind}；{size} 字节，第 {e.step} 次前向，第 {e.hop} 次传输）",
        ),
        (
            "a model split over these GPUs answers wrongly, mostly with no error anywhere; no token of this step was released",
            "跨这些 GPU 的模型会给出错误答案，且通常没有任何报错；本步的 token 未被输出",
        ),
        (
            'policy="heal" goes on with right tokens over host memory; `linkproof check` finds the cause',
            '使用 policy="heal" 可经主机内存继续输出正确的 token；用 `linkproof check` 查找原因',
        ),
        events,
    )


def host_lied(event: Event) -> LinkFault:
    return LinkFault(
        "host-path-corrupts",
        (
            f"{event.link}: {event.size_B:,} bytes arrived wrong by way of host memory, too ({event.kind})",
            f"{event.link}：经主机内存传输的 {event.size_B:,} 字节同样出错（{event.kind}）",
        ),
        (
            "there is no way left between these GPUs that can be trusted: memory, a GPU itself or its own PCIe link is at fault",
            "这两块 GPU 之间已没有可信的通路：内存、GPU 本身或其 PCIe 链路有故障",
        ),
        (
            "stop serving from this machine; `linkproof check` tells which part",
            "请停止用这台机器提供服务；`linkproof check` 可指出故障部件",
        ),
        (event,),
    )


def cannot_rerun(events: tuple[Event, ...], why: tuple[str, str]) -> LinkFault:
    """events: () if no link lied, and a copy that several layers share was written into by one of them."""
    what = (f"{events[0].link} delivered wrong data", f"{events[0].link} 传错了数据") if events else WRITTEN
    return LinkFault(
        "cannot-roll-back",
        (f"{what[0]}, and {why[0]}", f"{what[1]}，并且{why[1]}"),
        (
            "the forward cannot be run again with the same input; no token of it was released",
            "无法用相同输入重新运行这次前向；其 token 未被输出",
        ),
        (
            'use mode="strict" (it mends each copy before it is used) or mode="stage"',
            '请使用 mode="strict"（每次复制在使用前修复）或 mode="stage"',
        ),
        events,
    )


def in_capture() -> LinkFault:
    return LinkFault(
        "guard-in-graph-capture",
        (
            "a CUDA graph is being captured around a copy from GPU to GPU",
            "正在捕获的 CUDA graph 包含 GPU 之间的复制",
        ),
        (
            "a replayed graph runs no Python: the guard would see the first copy and none of the others",
            "重放 graph 时不执行 Python：guard 只能看到第一次复制",
        ),
        (
            "capture each GPU's part by itself (torch.compile does), or take the guard off and run `linkproof check` before",
            "请分别捕获每块 GPU 的部分（torch.compile 即如此），或移除 guard 并事先运行 `linkproof check`",
        ),
    )
