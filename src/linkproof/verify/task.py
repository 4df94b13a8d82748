"""What is to be verified, as the child process gets it. No torch in here."""

from __future__ import annotations

from msgspec import Struct

from linkproof.errors import UsageError

DTYPES = ("auto", "float32", "bfloat16", "float16")
MAPS = ("even", "auto")
VIRTUAL = "virtual:"


class Task(Struct, frozen=True, kw_only=True):
    """model: folder, hub id or built-in shape. devices: "cuda", "cuda:0,2" or "virtual:4". stages: of these devices, 0: all of them.

    device_map: even, auto, or a JSON file of {module: device number}. prompts: texts, () for our own. new: tokens that each prompt gets.
    faults: on virtual devices only. strict: compare each hop before it is used and stop at the first that lied. save: folder for the weights. ranks: by which the
    heads of a shape that is cut must be divisible.
    """

    model: str
    devices: str = "cuda"
    stages: int = 0
    device_map: str = "even"
    prompts: tuple[str, ...] = ()
    new: int = 8
    sample: bool = True
    seed: int = 0
    dtype: str = "auto"
    faults: tuple[str, ...] = ()
    strict: bool = False
    save: str = ""
    ranks: int = 1

    @property
    def virtual(self) -> bool:
        return self.devices.startswith(VIRTUAL)


def checked(task: Task) -> Task:
    """What can be known to be wrong before anything is loaded. Raises UsageError."""
    from linkproof.probe.faults import parse

    kind, _, which = task.devices.partition(":")
    known = {"virtual": which.isdecimal() and 1 <= int(which) <= 64, "cuda": all(n.isdecimal() for n in which.split(",") if which)}
    if not known.get(kind):
        raise _wrong(
            "no-such-devices", f"--devices {task.devices}", "write cuda, cuda:0,2 or virtual:4", "请写 cuda、cuda:0,2 或 virtual:4"
        )
    if task.faults and not task.virtual:
        raise _wrong(
            "fault-on-real-devices",
            "--fault",
            "faults can be put into virtual devices only: add --devices virtual:4",
            "只能在虚拟设备上注入故障：请加上 --devices virtual:4",
        )
    for fault in task.faults:
        parse(fault)
    if task.dtype not in DTYPES:
        raise _wrong("no-such-dtype", f"--dtype {task.dtype}", f"use one of {', '.join(DTYPES)}", f"请使用 {', '.join(DTYPES)} 之一")
    if task.virtual and task.device_map == "auto":
        raise _wrong(
            "auto-needs-memory",
            "--device-map auto",
            "virtual devices have no memory of their own to divide by: leave it out",
            "虚拟设备没有自己的显存可供分配：请去掉该选项",
        )
    if task.device_map != "even" and task.stages:
        raise _wrong(
            "option-does-nothing",
            "--stages",
            "a device map says what lies where: leave --stages out",
            "设备映射已决定分布：请去掉 --stages",
        )
    if not 1 <= task.new <= 1024:
        raise _wrong("no-such-length", f"--new {task.new}", "between 1 and 1024 tokens", "请写 1 到 1024 之间的数")
    return task


def _wrong(ref: str, what: str, do: str, do_zh: str) -> UsageError:
    return UsageError(ref, (what, what), ("nothing was verified", "没有进行任何验证"), (do, do_zh))


def numbers(devices: str) -> tuple[int, ...]:
    """cuda:0,2 -> (0, 2); () for all."""
    kind, _, which = devices.partition(":")
    if kind == "virtual":
        return tuple(range(int(which)))
    return tuple(int(n) for n in which.split(",") if n)
