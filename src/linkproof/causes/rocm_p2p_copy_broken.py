"""AMD peer copies deliver wrong data because of runtime, kernel or card generation."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import con, peer_path_bad, peer_path_fine, pro, wrong_data_fact
from linkproof.causes.reading import Reading
from linkproof.model import Gpu, NotChecked, Platform, Sign

CLASS = "fabric"
PRIOR = -4.5


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if not f.amd:
        return
    yield from peer_path_bad(f)
    yield from peer_path_fine(f)
    wrong = wrong_data_fact(f)
    garbage = wrong or f.event("garbage_text")
    several = f.gpu_count >= 2 or f.split_bad is not None
    if garbage and several:
        yield pro(3.0, "AMD cards, and what crosses between them arrives wrong", garbage)
    if several and garbage and (radeon := f.gpu_named("radeon", "rx ", "gfx10", "gfx11", "gfx12", "vii")):
        yield pro(1.5, "Radeon cards: the runtime offers peer copies that many boards and kernels do not carry", radeon)
    if mixed := f.first(Gpu, fact="mixed_models"):
        yield pro(1.0, "cards of different generations", mixed)
    if (windows := f.first(Platform, kind="windows")) and garbage:
        yield pro(0.7, "on Windows the runtime's peer path is young", windows)
    if sdma := f.setting("sdma_off", "cured"):
        yield pro(3.5, "without the copy engines (HSA_ENABLE_SDMA=0) the data is right", sdma)
    run = f.split_bad
    if run and run.split == "tensor" and run.result == "garbage":
        yield con(1.0, "with tensor parallelism the engine's own all-reduce is as likely", run)
    if run and run.result == "hang" and not wrong:
        yield con(0.8, "it hangs rather than delivering wrong data", run)
    if (hang := f.collective_bad(engine="rccl")) and hang.result == "error":
        yield con(1.5, "RCCL reports an error: a silent copy fault does not", hang)
