"""Everything is right and slow, because traffic must cross the CPU."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, pro
from linkproof.causes.reading import BAD_MODEL, Reading
from linkproof.model import Collective, Copy, Gpu, ModelRun, NotChecked, Sign

CLASS = "fabric"
PRIOR = -4.5
PCIE4_X16_GBps = 16 * 16 * 128 / 130 / 8  # 31.5 one way before packet headers: 16 GT/s, x16, 128b/130b


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    slow = f.first(Collective, result="slow") or f.first(ModelRun, result="slow") or f.first(Copy, result="slow") or f.event("p2p_slower")
    averages = sorted(f.events("nccl_tests_average"), key=lambda e: float(e.value))
    # an average over all sizes is pulled down by the small ones: it speaks only beside a run that was far faster
    far = averages[0] if len(averages) > 1 and float(averages[-1].value) > 3 * float(averages[0].value) else None
    speed = f.event("nccl_tests_busbw") or far
    crosses = f.topo_path("SYS", "NODE", "PHB") or f.nccl_shm_path
    if speed and crosses and not slow:
        figure = float(speed.value)
        if figure < PCIE4_X16_GBps:
            yield pro(3.5, "{value} GB/s is what a way through the CPU carries", speed, value=speed.value)
            slow = speed
    if not slow:
        return
    results: list[ModelRun | Collective | Copy] = [*f.all(ModelRun), *f.all(Collective), *f.all(Copy)]
    bad = next((r for r in results if r.result in (*BAD_MODEL, "zeros", "stale", "error")), None)
    if bad:
        yield con(3.0, "something is wrong, not only slow ({result})", bad, result=bad.result)
    yield pro(2.5, "it is slow and nothing says that it is wrong", slow)
    if route := f.topo_path("SYS", "NODE", "PHB"):
        yield pro(2.0, "the route crosses the CPU ({path})", route, path=route.path)
    elif (crossing := f.pairs("crosses_cpu", "slow")) and crossing.all_failing:
        yield pro(2.0, "every slow pair crosses the CPU", crossing)
    crosses_cpu = f.pairs("crosses_cpu", "slow")
    if (redirects := f.pairs("redirects", "slow")) and redirects.all_failing and crosses_cpu and not crosses_cpu.failing_with:
        yield con(1.5, "the slow pairs cross a port that redirects", redirects)
    if f.nccl_shm_path:
        yield pro(1.5, "NCCL goes through host memory", f.nccl_shm_path)
    if f.geforce:
        yield pro(1.0, "consumer cards: no peer access over PCIe, every byte goes through host memory", f.geforce)
    if denied := f.event("nccl_p2p_disabled_driver"):
        yield pro(1.0, "the driver offers no peer access; NCCL takes the slow and safe way", denied)
    if (nv := f.topo_path("NV")) and not f.topo_path("SYS", "NODE", "PHB"):
        yield con(2.0, "NVLink joins these GPUs", nv)
    if narrow := f.event("link_downgraded"):
        yield con(0.7, "a link runs below its width: {value}", narrow, value=narrow.value)
    if f.guest:
        yield con(1.5, "a guest: what it hides explains the speed", f.guest)
    if alone := f.first(Gpu, fact="one_per_container"):
        yield con(2.5, "each container sees one GPU: no direct path can be used", alone)
