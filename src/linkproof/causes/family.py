"""Signs that several causes share: is the peer path under suspicion at all? Not a cause itself.

The causes of class `fabric` differ in what guards or carries the path between two GPUs; that the path is bad shows in the same way for
all of them. Each takes these signs and adds its own, so that what tells them apart stands in their files and only there.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.reading import Reading
from linkproof.model import Collective, Copy, Fact, Gpu, ModelRun, Sign


def pro(weight: float, text: str, fact: Fact, *, decisive: bool = False, stands: bool = False, **args: str) -> Sign:
    return Sign(True, weight, text, fact.source, args, decisive, stands)


def con(weight: float, text: str, fact: Fact, **args: str) -> Sign:
    return Sign(False, weight, text, fact.source, args)


def peer_path_bad(f: Reading, share: float = 1.0) -> Iterator[Sign]:
    """For: data or flags are lost when GPUs reach each other directly. share < 1: the cause explains only a part of these."""
    bad = f.peer_copy_bad
    if bad is not None and bad.result in ("zeros", "wrong", "stale"):
        yield pro(4.5 * share, "a direct copy between GPUs delivered wrong data ({result})", bad, result=bad.result)
        if f.host_copy_ok:
            yield pro(0.7 * share, "the same data through host memory arrived right", f.host_copy_ok)
    elif bad is not None:
        yield pro(2.0 * share, "a direct copy between GPUs failed ({result})", bad, result=bad.result)
    if (flags := f.flags_bad) is not None and bad is None:
        yield pro(
            3.0 * share,
            "messages between resident kernels of two GPUs get lost or overtake each other ({result})",
            flags,
            result=flags.result,
        )
    off = f.setting("p2p_off", "cured")
    if off and f.setting("shm_off", "cured"):
        yield pro(2.5 * share, "switching peer traffic off ended the failure", off)
    elif off:
        yield pro(3.5 * share, "switching peer traffic off ended the failure", off)
    elif changed := f.setting("p2p_off", "changed"):
        yield pro(1.5 * share, "switching peer traffic off changed the failure", changed)
    if p2p := f.collective_bad(transport="p2p"):
        weight = 3.5 if f.first(Collective, transport="shm", result="ok") else 2.0
        yield pro(weight * share, "a collective over the peer path fails", p2p)
    two_bad = f.first(Collective, ranks="2", result=("hang", "wrong", "error"))
    more_ok = next((c for c in f.all(Collective, result="ok") if c.ranks.isdigit() and int(c.ranks[:6]) > 2), None)
    if two_bad and more_ok:
        yield pro(1.5 * share, "two ranks fail and more ranks are right: NCCL takes the peer path across the CPU only for two", two_bad)
    if f.nccl_p2p_path and f.hang and not f.peer_copy_ok:
        yield pro(0.7 * share, "NCCL used the peer path in the run that hangs", f.nccl_p2p_path)
    yield from _model_signs(f, share)


def _model_signs(f: Reading, share: float) -> Iterator[Sign]:
    run = f.split_bad
    if run is not None and not f.single_bad and not f.one_model_only:
        silent = run.result in ("garbage", "wrong", "nan")
        if f.single_ok and run.split == "pipeline" and silent:
            yield pro(2.2 * share, "right on one GPU, wrong when layers lie on several", run)
        elif f.single_ok and run.split == "data" and silent:
            yield pro(2.5 * share, "right on one GPU, wrong numbers over several", run)
        elif f.single_ok and run.split == "pipeline":
            yield pro(1.2 * share, "right on one GPU, fails when layers lie on several", run)
        elif f.single_ok:
            yield pro(1.2 * share, "right on one GPU, fails over several", run)
        elif silent or run.result == "hang":
            yield pro(0.5 * share, "fails over several GPUs ({result})", run, result=run.result)
    if run is not None and f.every_model and not f.single_bad:
        yield pro(1.0 * share, "every model fails, not one", f.every_model)
    if f.spinning and f.hang and not f.nvswitch:
        yield pro(1.3 * share, "the GPUs spin at idle power: a flag written by a peer never arrives", f.spinning)
    if (boot := f.pattern("first_run_after_boot_only")) is not None:
        yield pro(1.2 * share, "it depends on the state since boot", boot)
    if (pairs := f.pattern("only_some_pairs")) is not None:
        yield pro(1.5 * share, "only some pairs of GPUs fail", pairs)


def peer_path_fine(f: Reading, share: float = 1.0) -> Iterator[Sign]:
    """Against: the path was shown to carry data, or the failure stands where no path is used."""
    if f.single_bad:
        yield con(4.0 * share, "it fails on one GPU too: no link is in use there", f.single_bad)
    if f.host_copy_bad:
        yield con(3.5 * share, "the control through host memory fails too: the fault is not on the path between the GPUs", f.host_copy_bad)
    if f.self_copy_bad:
        yield con(3.5 * share, "it fails on one GPU too: no link is in use there", f.self_copy_bad)
    if f.peer_copy_ok and not f.only_slow:
        yield con(2.0 * share, "direct copies over all pairs were right", f.peer_copy_ok)
    data_bad = f.peer_copy_bad is not None and f.peer_copy_bad.result in ("zeros", "wrong", "stale")
    if not data_bad:
        if f.one_model_only:
            yield con(2.5 * share, "one model fails, others are right over the same links", f.one_model_only)
        if vain := f.p2p_off_in_vain:
            yield con(2.5 * share * vain[1], "it fails with peer traffic switched off as well", vain[0])
        other = next((r for r in f.all(ModelRun, result="ok") if r.split not in ("none", f.split_bad.split)), None) if f.split_bad else None
        if other and not f.one_model_only:
            yield con(1.5 * share, "split in another way it is right over the same links", other)
        for fact in ("only_some_inputs", "only_long_inputs", "only_batched"):
            if (p := f.pattern(fact)) is not None:
                yield con(2.0 * share, "only certain inputs fail; a bad link does not read them", p)
                break
    if (stack := f.event("nccl_stack")) is not None and not data_bad:
        yield con(1.5 * share, "it stands still in NCCL's own host code ({value})", stack, value=stack.value)
    if f.fails_before_traffic:
        yield con(3.0 * share, "it fails before any byte goes between GPUs", f.fails_before_traffic)
    ok = f.first(Collective, transport=("default", "p2p"), result="ok")
    if ok and not data_bad and not f.flags_bad and not f.only_slow and not f.collective_bad() and ok.engine in ("nccl", "rccl"):
        yield con(1.5 * share, "a plain collective over the same GPUs is right", ok)
    if f.nccl_shm_path and not data_bad:
        yield con(0.7 * share, "NCCL went through host memory here, not over the peer path", f.nccl_shm_path)


def wrong_data_fact(f: Reading) -> Copy | ModelRun | None:
    """Silent wrong data of any kind, if it was seen."""
    bad = f.peer_copy_bad
    if bad is not None and bad.result in ("zeros", "wrong", "stale"):
        return bad
    return f.first(ModelRun, split=("pipeline", "tensor", "data"), result=("garbage", "wrong", "nan"))


def card_names(f: Reading) -> str:
    return ", ".join(dict.fromkeys(g.name for g in f.all(Gpu) if g.name)) or "GPU"
