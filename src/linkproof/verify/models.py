"""The model three times: the host's copy (the truth), one on the reference device, one split as the person would split it.

In:      a Task, the devices.
Out:     Host; `reference` and `split` make the other two. Units: the modules that a device map names (embed_tokens, each layer, norm, lm_head).
Unknown: how much memory a forward needs is not known beforehand; RESERVE of each device is left free for it.
Raises:  LinkproofError for what a person can mend; whatever transformers raises for a checkpoint that it cannot read.
Source:  transformers' from_config and from_pretrained, accelerate's dispatch_model and cpu_offload: nothing of theirs is done here again.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from linkproof.errors import LinkproofError, NotMeasured, UsageError
from linkproof.verified import Cut
from linkproof.verify.shapes import SHAPES, Shape, fit
from linkproof.verify.task import Task, numbers

RESERVE = 0.25  # of a device: caches, activations, fragments
HOST_SHARE = 0.6
VIRTUAL_B = 16 << 20  # weights of a built-in shape on virtual devices: more takes minutes on a CPU


class Host(NamedTuple):
    """folder: of the checkpoint, "" for random weights. fewest: layers that a cut leaves."""

    model: Any
    family: str
    source: str
    folder: str
    cut: tuple[Cut, ...]


def devices(task: Task) -> list[str]:
    """Those that the model is to be split over. Raises UsageError, and NotMeasured where there is no GPU."""
    wanted = numbers(task.devices)
    if task.virtual:
        from linkproof.sim.torch_device import install

        install(len(wanted))
        found = [f"vgpu:{i}" for i in wanted]
    else:
        there = torch.cuda.device_count()
        if absent := [i for i in wanted if i >= there]:
            raise _cannot(
                "no-such-device", f"cuda:{absent[0]} is not there: {there} GPUs are seen", f"没有 cuda:{absent[0]}：共可见 {there} 块 GPU"
            )
        found = [f"cuda:{i}" for i in wanted or range(there)]
        if not found:
            raise _cannot("no-gpu", f"torch {torch.__version__} sees no GPU", f"torch {torch.__version__} 没有发现 GPU", NotMeasured)
    if task.stages > len(found):
        what = f"--stages {task.stages}: there are {len(found)} devices, and between two stages on one device nothing crosses a link"
        raise _cannot("more-stages-than-devices", what, f"--stages {task.stages}：只有 {len(found)} 个设备，同一设备上的两级之间不经过链路")
    return found[: task.stages or None]


def _cannot(ref: str, what: str, what_zh: str, kind: type[LinkproofError] = UsageError) -> LinkproofError:
    means = ("nothing was verified", "没有进行任何验证")
    return kind(
        ref,
        (what, what_zh),
        means,
        ("see --devices; `--devices virtual:4` needs no GPU", "请看 --devices；`--devices virtual:4` 不需要 GPU"),
    )


# ---------------------------------------------------------------- the host's copy


def host_copy(task: Task, places: list[str]) -> Host:
    from transformers import AutoModelForCausalLM

    dtype = None if task.dtype == "auto" else getattr(torch, task.dtype)
    if task.model in SHAPES:
        shape = SHAPES[task.model]
        dtype = dtype or getattr(torch, shape.dtype)
        small, cut = fit(shape, budget_B(task, places), dtype.itemsize, max(2, len(places)), parameters, task.ranks)
        config = config_of(small)
        made_on = places[0] if not task.virtual and parameters(small) * dtype.itemsize < (1 - RESERVE) * _free_B(places[0]) else "cpu"
        torch.manual_seed(task.seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(made_on):  # a GPU makes random numbers in no time; what the host reads back is the truth
                model = AutoModelForCausalLM.from_config(config, **_experts(task))
        finally:
            torch.set_default_dtype(before)
        return Host(_quiet(model.cpu()), type(model).__name__, shape.source, "", cut)
    model = _loaded(task, dtype)
    return Host(_quiet(model), type(model).__name__, task.model, _folder(task.model), ())


def _loaded(task: Task, dtype: Any, **more: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(task.model, **{_dtype_name(): dtype or "auto"}, **_experts(task), **more)
    except (OSError, ValueError) as e:
        known = ", ".join(SHAPES)
        why = " ".join(str(e).split())[:300]
        raise UsageError(
            "model-unreadable",
            (f"{task.model}: {why}", f"{task.model}：{why}"),
            ("nothing was verified", "没有进行任何验证"),
            (
                f"name a folder with config.json and weights, a hub id (needs the network or its cache), or one of {known}",
                f"请指定含有 config.json 和权重的文件夹、hub 上的模型名（需要网络或缓存），或内置结构之一：{known}",
            ),
        ) from None


def _dtype_name() -> str:
    return "dtype" if _version() >= (4, 56) else "torch_dtype"


def _experts(task: Task) -> dict[str, Any]:
    """Virtual devices lack the histogram of the grouped kernel, which came with transformers 5."""
    return {"experts_implementation": "eager"} if task.virtual and _version() >= (5, 0) else {}


def _version() -> tuple[int, ...]:
    import transformers

    return tuple(int(n) for n in transformers.__version__.split(".")[:2])


def _folder(model: str) -> str:
    if os.path.isdir(model):  # noqa: PTH112
        return model
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json")
    return os.path.dirname(found) if isinstance(found, str) else ""  # noqa: PTH120


def config_of(shape: Shape) -> Any:
    """Raises LinkproofError if this transformers does not know the family."""
    from transformers import CONFIG_MAPPING, __version__

    if shape.kind not in CONFIG_MAPPING:
        raise LinkproofError(
            "family-unknown",
            (f"transformers {__version__} has no {shape.kind}", f"transformers {__version__} 不支持 {shape.kind}"),
            ("a model of this shape cannot be made here", "无法构建该结构的模型"),
            ("install a newer transformers", "请安装更新版本的 transformers"),
        )
    return CONFIG_MAPPING[shape.kind](**copy.deepcopy(shape.numbers))


def parameters(shape: Shape) -> int:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(shape))
    return sum(p.numel() for p in model.parameters())


def budget_B(task: Task, places: list[str]) -> int:
    """What the weights of a built-in shape may take."""
    if task.virtual:
        return VIRTUAL_B
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min((1 - RESERVE) * sum(map(_free_B, places)), HOST_SHARE * pages))


def _free_B(device: str) -> int:
    return int(torch.cuda.mem_get_info(device)[0])


def _quiet(model: Any) -> Any:
    """Its own sampling settings and stop tokens would end the arms early, or at different places."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()
    return model.eval().requires_grad_(False)


# ---------------------------------------------------------------- units and where they lie


def layers_of(model: Any) -> str:
    """The name of the list of decoder layers: the longest list of modules."""
    lists = [(len(m), name) for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    most = max((n for n, _ in lists), default=0)
    return next((name for n, name in lists if n == most), "")


def units_of(model: Any) -> dict[str, Any]:
    """In the order of the model: everything beside the layers, and each layer. Modules with neither weights nor buffers are nobody's."""
    found: dict[str, Any] = {}
    layers = layers_of(model)

    def walk(module: Any, prefix: str) -> None:
        for name, child in module.named_children():
            full = f"{prefix}{name}"
            if full == layers:
                found.update({f"{full}.{i}": layer for i, layer in enumerate(child)})
            elif layers.startswith(full + "."):
                walk(child, full + ".")
            elif any(True for _ in child.parameters()) or any(True for _ in child.buffers()):
                found[full] = child

    walk(model, "")
    return found


def even_map(model: Any, places: list[str]) -> dict[str, str]:
    """Layers in equal parts, what comes before them on the first device, what comes after on the last, as accelerate fills them."""
    units, layers = list(units_of(model)), layers_of(model)
    count = sum(u.startswith(layers + ".") for u in units)
    where: dict[str, str] = {}
    at = 0
    for unit in units:
        if unit.startswith(layers + "."):
            where[unit] = places[at * len(places) // count]
            at += 1
        else:
            where[unit] = places[0] if at == 0 else places[-1]
    head = model.get_output_embeddings()
    if getattr(model.config, "tie_word_embeddings", False) and head is not None:  # one weight, one device
        words = next(n for n, m in model.named_modules() if m is model.get_input_embeddings())
        name = next(n for n, m in model.named_modules() if m is head)
        where[name] = where[words]
    return where


def device_map(task: Task, host: Host, places: list[str]) -> dict[str, str]:
    if task.device_map == "even":
        return even_map(host.model, places)
    if task.device_map == "auto":
        from accelerate import infer_auto_device_map
        from accelerate.utils import get_balanced_memory

        whole = host.model._no_split_modules
        most = get_balanced_memory(host.model, {int(p.split(":")[1]): int(_free_B(p) * (1 - RESERVE)) for p in places}, whole)
        found = infer_auto_device_map(host.model, most, no_split_module_classes=whole)
    else:
        try:
            with open(task.device_map, encoding="utf-8") as file:  # noqa: PTH123
                found = json.load(file)
        except (OSError, ValueError) as e:
            raise _cannot("device-map-unreadable", f"{task.device_map}: {e}", f"{task.device_map}：{e}") from None
    kind = places[0].split(":")[0]
    named = {unit: f"{kind}:{where}" if isinstance(where, int) else str(where) for unit, where in found.items()}
    if strange := [where for where in named.values() if where not in places]:
        what = f"the device map puts parts on {strange[0]}, which is none of {', '.join(places)}"
        raise _cannot("device-map-elsewhere", what, f"设备映射使用了 {strange[0]}，不在 {', '.join(places)} 之中")
    return named


def device_of(name: str, where: dict[str, str]) -> str:
    """Of a unit or a parameter: the longest entry of the map that it lies in."""
    best = max((u for u in where if u == "" or name == u or name.startswith(u + ".")), key=len, default=None)
    return where[best] if best is not None else next(iter(where.values()))


# ---------------------------------------------------------------- the other two


def with_tensors(model: Any, moved: Callable[[str, torch.Tensor], torch.Tensor]) -> Any:
    """The same modules again, with every parameter and buffer as `moved` gives it; no second copy on the host on the way."""
    memo: dict[int, Any] = {}
    for name, p in model.named_parameters():
        data = moved(name, p.detach())
        memo[id(p)] = p if data is p or data.data_ptr() == p.data_ptr() != 0 else torch.nn.Parameter(data, requires_grad=False)
    for name, b in model.named_buffers():
        memo[id(b)] = moved(name, b)
    return copy.deepcopy(model, memo)


def reference(host: Host, device: str, layered: bool) -> Any:
    """On one device; layered: each layer's weights come from the host when it runs and go when it has run."""
    if not layered:
        return with_tensors(host.model, lambda _, t: t.to(device))
    from accelerate import cpu_offload

    model = with_tensors(host.model, lambda _, t: t)
    return cpu_offload(model, torch.device(device), state_dict=dict(host.model.state_dict()))


def too_large(host: Host, device: str, places: list[str]) -> bool:
    """For the reference device to hold it whole, beside its own part of the split model."""
    if device == "cpu":
        return False
    return size_B(host.model) * (1 + 1 / len(places)) > (1 - RESERVE) * _free_B(device)


def size_B(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def split(task: Task, host: Host, where: dict[str, str]) -> Any:
    """A checkpoint is loaded as its user would, straight to the devices; random weights come from the host."""
    if host.folder:
        return _quiet(_loaded(task, host.model.dtype, device_map=dict(where)))
    from accelerate import dispatch_model

    if len(set(where.values())) == 1:  # accelerate would move the very parameters of the host's copy
        return with_tensors(host.model, lambda _, t: t.to(next(iter(where.values()))))
    model = with_tensors(host.model, lambda _, t: t)
    main = device_of(next(n for n, m in model.named_modules() if m is model.get_input_embeddings()), where)
    return dispatch_model(model, dict(where), main_device=main, skip_keys=getattr(model, "_skip_keys_device_placement", None))
