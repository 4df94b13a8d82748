"""Loopback, bridge or unreachable interface chosen."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import Reading
from linkproof.model import Iface, NotChecked, Sign, Stage

CLASS = "network"
PRIOR = -4.5
_NEVER = ("lo", "docker", "virbr", "veth", "br-", "cni", "flannel", "cali", "tailscale", "tun", "lxc", "podman")


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    failed = (
        f.event("nccl_socket_failed", "gloo_failed", "nccl_bootstrap_timeout", "store_timeout") or f.hang or f.first(Stage, at="nccl_init")
    )
    if loop := f.event("gloo_loopback"):
        yield pro(5.5, "the host name resolves to no address, so the loopback is used", loop)
    gloo = f.event("gloo_failed")
    if gloo and gloo.value.startswith(("127.", "[127.", "::1", "[::1")):
        yield pro(4.5, "another host's rank is looked for at the loopback address", gloo)
    elif gloo:
        yield pro(2.0, "gloo could not connect its ranks", gloo)
    for iface in f.all(Iface):
        if iface.name.startswith(_NEVER) or iface.address.startswith("127."):
            # between ranks of one host the loopback is as good as any other
            yield pro(
                (3.5 if failed else 1.0) if f.several_hosts else 0.5,
                "{library} uses the interface {name}",
                iface,
                library=iface.library,
                name=iface.name,
            )
            break
    if none := f.event("nccl_no_interface"):
        yield pro(5.0, "NCCL found no usable interface", none)
    socket = f.event("nccl_socket_failed")
    if socket and any(a in socket.source.text for a in ("127.0.0.1", "172.17.", "192.168.122.")):
        yield pro(3.0, "NCCL tries a loopback or bridge address of another host", socket)
    elif socket:
        yield pro(1.8, "a socket of NCCL fails ({value})", socket, value=socket.value)
    chosen = f.setting_key("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
    if chosen and chosen.effect == "present" and chosen.value.lstrip("=").startswith(_NEVER):
        yield pro(
            4.8 if f.several_hosts else 0.5,
            "{name} names an interface that reaches no other host",
            chosen,
            name=chosen.name,
        )
    if several := f.network("several_nics"):
        yield pro(2.2, "the hosts have several interfaces", several)
    if set_ := f.setting("iface", "cured"):
        yield pro(6.0, "naming the interface ended it", set_)
    elif same := f.setting("iface", "no_effect"):
        yield con(2.5, "naming the interface changed nothing", same)
    if waits := f.event("nccl_bootstrap_timeout", "store_timeout"):
        yield pro(1.0, "ranks wait for each other at the start", waits)
    if (ping := f.network("ping_ok")) and not f.event("gloo_loopback", "nccl_no_interface"):
        yield con(0.7, "the hosts answer ping", ping)
