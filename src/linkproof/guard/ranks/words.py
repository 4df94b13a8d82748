"""What is told when ranks do not hold the same: events and the LinkFaults made of them. No torch in here.

In:      what `judge` found, alike on every rank.
Out:     RankEvent, LinkFault, and which of several answers holds for all (`strictest`).
Raises:  nothing; the faults are raised by `ranks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from linkproof.errors import UsageError
from linkproof.guard.policy import ACTIONS, Event, LinkFault

PARTED = ("ids", "ended", "order")  # kinds that no other way of a collective can mend
ANSWERS = ("", "warn", "heal", "raise")  # the later, the stricter


class RankEvent(Event, frozen=True, kw_only=True):
    """A collective that did not give every rank the right result, or ranks that no longer do the same.

    ranks: the odd ones, by their number in the job; empty where two stories fit. hop: collective in that forward, from 0.
    kind: zeros stale changed (a result that only some ranks hold), missing (a sum without the part of that rank, on every rank),
          sum (the same wrong sum on every rank; zeros or stale if it is that), ids (the ranks' inputs or outputs differ), ended (some make a forward where others have ended), order (they make
          different collectives).
    """

    ranks: tuple[int, ...] = ()
    collective: str = ""

    @property
    def who(self) -> tuple[str, str]:
        if not self.ranks:
            return "a rank that cannot be told", "某个无法确定的 rank"
        several = ", ".join(map(str, self.ranks))
        return ("rank " if len(self.ranks) == 1 else "ranks ") + several, f"rank {several}"


def named(ranks: Sequence[int]) -> str:
    """[0, 1, 2, 3] -> "ranks 0-3"."""
    run = list(ranks) == list(range(ranks[0], ranks[0] + len(ranks))) and len(ranks) > 1
    return f"ranks {ranks[0]}-{ranks[-1]}" if run else "ranks " + ",".join(map(str, ranks))


def strictest(answers: Iterable[int]) -> str:
    return ANSWERS[max(answers)]


def code(action: str) -> int:
    return ANSWERS.index(action if action in ACTIONS else "heal")


def said(e: RankEvent) -> tuple[str, str]:
    """What happened, in both languages."""
    who, shape = e.who, "x".join(map(str, e.shape)) or "1"
    if e.kind == "ids":
        return (
            f"the ranks no longer work on the same tokens: {who[0]} has others (forward {e.step})",
            f"各 rank 处理的 token 已不一致：{who[1]} 与其他不同（第 {e.step} 次前向）",
        )
    if e.kind == "ended":
        return (
            f"the ranks no longer keep in step: {who[0]} is elsewhere (forward {e.step} was begun by some, and others had ended)",
            f"各 rank 的步调已不一致：{who[1]} 与其他不同（第 {e.step} 次前向有的 rank 已开始，有的已结束生成）",
        )
    if e.kind == "order":
        return (
            f"the ranks no longer make the same collectives: {who[0]} makes others (forward {e.step}, from {e.hop} on)",
            f"各 rank 执行的集合通信已不一致：{who[1]} 与其他不同（第 {e.step} 次前向，从第 {e.hop} 次起）",
        )
    where = (f"{e.collective} {e.hop} of forward {e.step}", f"第 {e.step} 次前向的第 {e.hop} 次 {e.collective}")
    if e.kind == "missing":
        what = f"{where[0]}: the sum lacks the part of {who[0]} on every rank", f"{where[1]}：所有 rank 上的求和结果都缺少 {who[1]} 的部分"
    elif not e.ranks and e.kind != "changed":
        what = (
            f"{where[0]} gave every rank a result that is not the sum of its parts ({e.kind})",
            f"{where[1]}：所有 rank 得到的结果都不等于各部分之和（{e.kind}）",
        )
    else:
        what = f"{where[0]} left {who[0]} with a wrong result ({e.kind})", f"{where[1]}：{who[1]} 得到的结果有误（{e.kind}）"
    return f"{what[0]}; {e.dtype} of {shape}, {e.size_B:,} bytes", f"{what[1]}；{e.dtype}，形状 {shape}，{e.size_B:,} 字节"


def rank_lied(events: Sequence[RankEvent]) -> LinkFault:
    if events[0].kind in PARTED:
        return ranks_part(events)
    return LinkFault(
        "rank-corrupts",
        said(events[0]),
        (
            "a model whose layers are split over these ranks answers wrongly with no error anywhere; no token of this step was released",
            "各层切分到这些 rank 上的模型会给出错误答案且没有任何报错；本步的 token 未被输出",
        ),
        (
            'policy="heal" goes on with right tokens over host memory; `linkproof check` finds the cause',
            '使用 policy="heal" 可经主机内存继续输出正确的 token；用 `linkproof check` 查找原因',
        ),
        tuple(events),
    )


def ranks_part(events: Sequence[RankEvent]) -> LinkFault:
    return LinkFault(
        "ranks-diverge",
        said(events[0]),
        (
            "their sums mix two texts, or the next collective hangs; what this rank has said so far may be wrong",
            "它们的求和会混合两段文本，或者下一次集合通信会挂起；该 rank 已输出的内容可能有误",
        ),
        (
            "give every rank the same prompt, and the same seed if tokens are sampled; if they have both, run `linkproof check`",
            "请给每个 rank 相同的提示词；若采样生成，还需相同的随机种子；若二者均相同，请运行 `linkproof check`",
        ),
        tuple(events),
    )


def host_sum_lied(events: Sequence[RankEvent]) -> LinkFault:
    e, who = events[0], events[0].who
    return LinkFault(
        "host-path-corrupts",
        (
            f"{e.collective} {e.hop} of forward {e.step} is wrong by way of host memory, too ({e.kind}; {who[0]})",
            f"第 {e.step} 次前向的第 {e.hop} 次 {e.collective} 经主机内存同样出错（{e.kind}；{who[1]}）",
        ),
        (
            "not the links between the GPUs alone are at fault: the GPU, the memory or the network of that rank is",
            "故障不仅在 GPU 之间的链路：该 rank 的 GPU、内存或网络有问题",
        ),
        (
            "stop serving from this machine; `linkproof check` tells which part",
            "请停止用这台机器提供服务；`linkproof check` 可指出故障部件",
        ),
        tuple(events),
    )


def rank_gone(ranks: Sequence[int], why: str) -> LinkFault:
    """why: what torch said, or how long was waited."""
    silent = ", ".join(map(str, ranks))
    return LinkFault(
        "rank-gone",
        (
            f"rank {silent} does not answer ({why})" if ranks else f"the ranks cannot reach each other any more ({why})",
            f"rank {silent} 没有响应（{why}）" if ranks else f"各 rank 之间已无法通信（{why}）",
        ),
        ("the forward cannot end, and no token of it was released", "本次前向无法完成，其 token 未被输出"),
        (
            "read the last lines of that rank's own output; `linkproof explain` names the cause from them",
            "请查看该 rank 自己输出的最后几行；`linkproof explain` 可据此指出原因",
        ),
    )


def settings_differ(mine: str) -> UsageError:
    return UsageError(
        "ranks-guarded-differently",
        (
            f"the ranks do not all ask for the same guard; this one asks for {mine}",
            f"各 rank 请求的 guard 设置不一致；本 rank 请求的是 {mine}",
        ),
        ("they would wait for each other for ever", "它们会无限期地互相等待"),
        ("give every rank the same mode, policy and every", "请让每个 rank 使用相同的 mode、policy 和 every"),
    )


def nothing_to_compare() -> UsageError:
    return UsageError(
        "nothing-to-guard",
        ("this process is the only rank", "本进程是唯一的 rank"),
        ("no collective goes over a link, so no link can harm it", "没有集合通信经过链路，链路不会影响它"),
        ("start it with torchrun on several GPUs", "请用 torchrun 在多块 GPU 上启动"),
    )
