"""One NCCL or RCCL release fails: chip not known to it, deadlock, wrong order, abort instead of fallback."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import Collective, FabricManager, NcclWarn, NotChecked, Setting, Sign, Stage

CLASS = "comm_software"
PRIOR = -4.2


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if other := f.setting("nccl_version", "cured"):
        yield pro(6.0, "another NCCL release ended it", other, decisive=True)
    elif same := f.setting("nccl_version", "no_effect"):
        yield con(1.5, "another NCCL release fails in the same way", same)
    nvls_wrong = f.first(Collective, transport="nvls", result=("wrong", "hang"))
    if nvls_wrong:
        yield pro(4.5, "one algorithm of NCCL (NVLS) gives {result} results on healthy links", nvls_wrong, result=nvls_wrong.result)
    bind = f.event("nvls_bind_failed")
    if bind and bind.value == "2":
        yield pro(3.2, "NCCL stops where it should fall back: multicast objects ran out (error 2)", bind)
        if running := f.first(FabricManager, state="running"):
            yield pro(2.0, "Fabric Manager runs", running)
    call = f.event("nccl_cuda_call_failed")
    if call:
        weight = 3.5 if any(w in call.value for w in ("enqueue", "init", "launch", "channel")) else 2.0
        yield pro(weight, "a CUDA call inside NCCL failed outside of any transport ({value})", call, value=call.value)
    # its own files, as opposed to transports (transport/, misc/ibv, misc/socket), where something outside NCCL gave the error
    inner = next(
        (
            w
            for w in f.all(NcclWarn)
            if w.where.startswith(
                (
                    "enqueue",
                    "graph/search",
                    "graph/tuning",
                    "graph/connect",
                    "graph/rings",
                    "channel",
                    "group",
                    "device/",
                    "collectives",
                    "rma/",
                    "sym_kernels",
                )
            )
        ),
        None,
    )
    if inner and not call and not f.setting_key("NCCL_GRAPH_FILE", "NCCL_TOPO_FILE"):
        yield pro(2.7, "NCCL stops in its own code ({where}), not in a transport", inner, where=inner.where)
        if vain := f.p2p_off_in_vain:
            yield pro(0.7, "it fails with peer traffic switched off as well", vain[0])
    if (xml := next((w for w in f.all(NcclWarn) if w.where.startswith(("graph/xml", "graph/topo"))), None)) and not f.setting_key(
        "NCCL_TOPO_FILE", "NCCL_GRAPH_FILE"
    ):
        yield pro(2.3, "NCCL cannot make sense of this platform's topology", xml)
    if (stack := f.event("nccl_stack")) and f.trouble:
        yield pro(2.7, "it stands still inside NCCL's own host code ({value})", stack, value=stack.value)
    number, said = f.nccl
    if number and f.event("nvls_used") and (stuck := f.first(Stage, at=("nccl_init", "first_collective"), result="hang")):
        yield pro(2.5, "NCCL {version} stops while it sets up NVLS, with no error", said or stuck, version=said.nccl if said else "")
    outside = f.event(
        "nvls_bind_failed", "nvls_call_failed", "cuda_ipc_failed", "custom_ar_cuda_error", "cuda_oom", "assert_generic", "fabric_not_ready"
    )
    plain = f.event("nccl_error", value="cuda")
    if plain and not (call or inner or outside or any(w.where for w in f.all(NcclWarn))):
        yield pro(1.8, "a CUDA call inside NCCL failed, and nothing outside of it is named", plain)
        if argument := f.cuda_error(1):
            yield pro(1.0, "the call had an invalid argument, which NCCL itself makes", argument)
    if chip := f.cuda_error(209):
        yield pro(2.0, "NCCL or torch has no kernel for this chip", chip)
    if sizes := f.pattern("some_sizes", "from_bytes"):
        yield pro(2.0, "only some message sizes fail: a choice of algorithm or protocol", sizes)
    if algo := f.setting("algo", "cured", "changed"):
        yield pro(2.7, "another NCCL algorithm or protocol changes it", algo)
        if f.first(Setting, key="NCCL_PROTO", effect="present"):
            yield con(3.0, "the protocol is not NCCL's own choice here: a setting forces it", algo)
        if f.peer_copy_ok:
            yield pro(2.5, "direct copies, stores and loads over the same links are right", f.peer_copy_ok)
    if nvls := f.setting("nvls_off", "cured"):
        yield pro(1.8, "switching NVLS off ended the failure", nvls)
    if (changed := f.first_changed_library) and "nccl" in changed.detail.lower():
        yield pro(2.5, "it began with another NCCL", changed)
    if (hosts := f.ranks("hosts_differ")) and f.collective_bad():
        yield pro(1.5, "hosts differ ({detail}): ranks may choose different algorithms", hosts, detail=hosts.detail)
    one_op = f.first(Collective, engine=("nccl", "rccl"), result=("error", "hang", "wrong"))
    right = f.first(Collective, engine=("nccl", "rccl"), result="ok")
    if one_op and right and one_op.op and right.op and one_op.op != right.op:
        yield pro(1.8, "one operation fails and another is right over the same links", one_op)
    if internal := f.event("nccl_error", value="internal"):
        yield pro(1.2, "NCCL reports an internal error", internal)
    copy = f.peer_copy_bad
    if copy and copy.result in ("zeros", "wrong", "stale"):
        yield con(4.0, "plain copies between the GPUs are wrong too", copy)
    if p2p := f.setting("p2p_off", "cured"):
        yield con(1.5, "switching peer traffic off ended it: the path rather than the release", p2p)
    if f.ranks("sizes_differ") or f.event("collective_mismatch"):
        differ = f.ranks("sizes_differ") or f.event("collective_mismatch")
        if differ:
            yield con(3.5, "ranks ask for different things: no release can serve that", differ)
    if f.single_bad:
        yield con(3.5, "it fails on one GPU too: no link is in use there", f.single_bad)
    if restarted := f.first(FabricManager, state=("restarted_without_reset", "stopped", "version_mismatch")):
        yield con(2.5, "Fabric Manager: {state}", restarted, state=restarted.state)
