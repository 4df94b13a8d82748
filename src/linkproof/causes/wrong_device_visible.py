"""An integrated or foreign GPU in the device list."""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.causes.family import pro
from linkproof.causes.reading import Reading
from linkproof.model import Gpu, NotChecked, Sign

CLASS = "host_config"
PRIOR = -5.2


def weigh(f: Reading) -> Iterator[Sign | NotChecked]:
    if inner := f.first(Gpu, fact="integrated_visible"):
        yield pro(5.5, "an integrated GPU is in the device list ({name})", inner, name=inner.name or "?", stands=True)
    # names that integrated GPUs report: the plain name without a model, or their architecture
    names = ("radeon graphics", "gfx1036", "gfx1035", "gfx1037", "gfx1103", "gfx90c", "gfx1151", "uhd graphics", "iris xe")
    plain = f.gpu_named(*names)
    if plain and not inner and len({g.name for g in f.all(Gpu) if g.name}) > 1:
        yield pro(4.5, "an integrated GPU is in the device list ({name})", plain, name=plain.name, stands=True)
    if image := f.event("hip_kernel_image") or f.cuda_error(209):
        several = f.first(Gpu, fact="mixed_models") or f.first(Gpu, fact="integrated_visible")
        yield pro(2.5 if several else 1.0, "no kernel image for one of the devices", image)
    if ordinal := f.cuda_error(101):
        yield pro(1.5, "a rank asks for a GPU that is not there (invalid device ordinal)", ordinal)
    if mixed := f.first(Gpu, fact="mixed_models"):
        yield pro(0.7, "cards of different generations", mixed)
    if chosen := f.setting("device_select", "cured"):
        yield pro(3.0, "choosing the devices by hand ended it", chosen)
