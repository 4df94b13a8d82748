"""Worker processes forked after CUDA was started."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import pro
from linkproof.causes.reading import Reading
from linkproof.model import NotChecked, Sign

CLASS = "host_config"
PRIOR = -5.0


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if fork := f.event("fork_after_cuda"):
        yield pro(8.0, "CUDA was used again in a forked child", fork, decisive=True)
    if told := f.host("fork_after_cuda"):
        yield pro(5.0, "the program forks after CUDA started", told)
    if e3 := f.cuda_error(3):
        yield pro(2.0, "CUDA says it is not initialised in this process", e3)
    if cured := f.setting("spawn", "cured"):
        yield pro(5.0, "starting workers with spawn ended it", cured)
