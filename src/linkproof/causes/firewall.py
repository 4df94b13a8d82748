"""Hosts answer ping, the ports are closed."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import Iface, NotChecked, Sign, Stage

CLASS = "network"
PRIOR = -5.0


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    ping = f.network("ping_ok")
    sockets = f.events("nccl_socket_failed")
    blocked = next((s for s in sockets if s.value in ("timeout", "unreachable", "refused")), None)
    wait = f.event("store_timeout", "nccl_bootstrap_timeout")
    stuck = f.hang or f.first(Stage, at=("nccl_init", "first_collective", "ray_start"))
    if ping and (blocked or wait or stuck):
        yield pro(4.2, "the hosts answer ping and the ranks do not reach each other", ping)
    elif ping:
        yield pro(2.0, "the hosts answer ping", ping)
    if blocked:
        yield pro(
            3.0 if blocked.value in ("timeout", "unreachable") else 1.8,
            "a connection between hosts fails ({value})",
            blocked,
            value=blocked.value,
        )
    if wait:
        yield pro(1.5, "ranks wait for each other at the start", wait)
    if off := f.setting("firewall", "cured"):
        yield pro(6.0, "opening the ports ended it", off)
    elif same := f.setting("firewall", "no_effect"):
        yield con(4.0, "the firewall is off and it fails as well", same)
    if loop := f.event("gloo_loopback") or next((i for i in f.all(Iface) if i.name.startswith(("lo", "docker", "virbr"))), None):
        yield con(2.5, "the address is a wrong one to begin with", loop)
    if f.gpu_count and f.split_bad and not ping and not blocked and not wait:
        yield con(1.0, "nothing says that several hosts are involved", f.split_bad)
