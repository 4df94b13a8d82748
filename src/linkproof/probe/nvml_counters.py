"""The error counters that NVML gives, of some GPUs. Runs in a child of counters.py: NVML can hang in a sick driver.

In:      PCI addresses in the order of the GPUs' numbers.
Out:     rows (name, where, value); of each GPU first ("NVML", "GPU 0", "answers"), or None instead and then nothing else of it.
Unknown: None. What a card says that it does not have (ECC, NVLink, remapped rows) is left out; errors of an NVLink that is there and
         are not told are None.
Raises:  nothing.
Source:  nvml.h, nvidia-ml-py. NVLink counters: the call of the older cards, then the field values of the newer ones (Hopper and later).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import msgspec

Row = tuple[str, str, str | None]  # name, where, value
NVML = "NVML"
NVLINKS_MAX = 18
UNCORRECTED, VOLATILE = 1, 0
ABSENT = (2, 3)  # invalid argument: no such link; not supported
# name -> (counter of nvmlDeviceGetNvLinkErrorCounter, field of nvmlDeviceGetFieldValues whose scope is the link)
LINK_ERRORS = {"NVLink replay": (0, 161), "NVLink recovery": (1, 162), "NVLink CRC": (2, 163)}


class _Card:
    def __init__(self, nvml: Any, number: int, handle: Any) -> None:
        self.nvml, self.handle, self.where = nvml, handle, f"GPU {number}"

    def ask(self, function: str, *args: Any) -> tuple[Any, bool]:
        """(answer or None, does the card have this at all)."""
        try:
            return getattr(self.nvml, function)(self.handle, *args), True
        except self.nvml.NVMLError as e:
            return None, getattr(e, "value", None) not in ABSENT
        except Exception:  # a function that this driver or binding lacks
            return None, True

    def rows(self) -> list[Row]:
        out: list[Row] = []
        for name, function, args in (
            ("PCIe replay", "nvmlDeviceGetPcieReplayCounter", ()),
            ("ECC uncorrected", "nvmlDeviceGetTotalEccErrors", (UNCORRECTED, VOLATILE)),
        ):
            value, there = self.ask(function, *args)
            if there:
                out.append((name, self.where, None if value is None else str(value)))
        remapped, there = self.ask("nvmlDeviceGetRemappedRows")
        if there:
            out.append(("remapped rows", self.where, None if remapped is None else str(remapped[0] + remapped[1])))
        return out + self.links()

    def links(self) -> list[Row]:
        states: list[Row] = []
        errors: dict[str, list[Row]] = {name: [] for name in LINK_ERRORS}
        for link in range(getattr(self.nvml, "NVML_NVLINK_MAX_LINKS", NVLINKS_MAX)):
            state, there = self.ask("nvmlDeviceGetNvLinkState", link)
            if state is None and (not there or link > 0):  # no NVLink, or no more of them
                continue
            where = f"{self.where} link {link}"
            if state is None:
                return [("NVLink", self.where, None)]
            states.append(("NVLink", where, "active" if state else "inactive"))
            if state:
                for name in LINK_ERRORS:
                    errors[name].append((name, where, self.link_errors(link, name)))
        for name, rows in errors.items():
            if rows and all(value is None for _, _, value in rows):  # one thing that is not known, not eighteen
                states.append((name, self.where, None))
            else:
                states += rows
        return states

    def link_errors(self, link: int, name: str) -> str | None:
        counter, field = LINK_ERRORS[name]
        value, _ = self.ask("nvmlDeviceGetNvLinkErrorCounter", link, counter)
        if value is None:
            answers, _ = self.ask("nvmlDeviceGetFieldValues", [(field, link)])
            if answers and answers[0].nvmlReturn == 0:
                value = _held(answers[0])
        return None if value is None else str(value)


def _held(answer: Any) -> int | None:
    """The number of a field value, by the type that it says it has."""
    names = {1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal"}
    name = names.get(int(answer.valueType))
    return None if name is None else int(getattr(answer.value, name))


def no_nvml(gpus: Sequence[str]) -> list[Row]:
    return [(NVML, f"GPU {number}", None) for number in range(len(gpus))]


def ask(gpus: Sequence[str]) -> list[Row]:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no binding, no library, no driver, two versions
        return no_nvml(gpus)
    rows: list[Row] = []
    for number, bdf in enumerate(gpus):
        try:
            handle = pynvml.nvmlDeviceGetHandleByPciBusId(bdf)
        except Exception:  # lost, or not one of its cards
            rows.append((NVML, f"GPU {number}", None))
            continue
        rows += [(NVML, f"GPU {number}", "answers"), *_Card(pynvml, number, handle).rows()]
    return rows


if __name__ == "__main__":
    print("\n" + msgspec.json.encode(ask(sys.argv[1:])).decode())
