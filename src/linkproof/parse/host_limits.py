"""Limits of the host or the container: `df /dev/shm`, `mount`, `ulimit`, /proc/PID/limits, `docker run`, meminfo, lscpu, numactl.

In:      whole outputs or single lines of them.
Out:     Host: shm_bytes (bytes), memlock_kib (KiB or "unlimited"), nproc, pids_max, cpu_limit, cma_kib, cpu_count, cpu_offline,
         cpu_vendor, numa_asymmetric, nvidia_caps_missing; Setting(present) for --ipc=host.
Unknown: a size whose unit cannot be told gives nothing, as do options in prose (`try --shm-size=1g`). A memory node with neither
         processors nor memory is no node.
Raises:  nothing.
Source:  coreutils df, util-linux lscpu and mount, bash ulimit, numactl, Docker CLI, Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Fact, Host, Setting, Source, Text
from linkproof.parse.rules import LINE_MAX, Make, Match, Rule, anchors_of, run, rx, source
from linkproof.parse.settings import masked

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = r"(\d{1,15}(?:[.,]\d{1,3})?)\s?([kKmMgGtT]?)(?:i?[bB])?"
_RUN = r"(?:^\s*|(?:docker|podman|nerdctl|singularity|apptainer)\b.*\s)"


def _limit(fact: str) -> Make:
    def make(found: Match | None, where: Source, rank: int | None) -> Fact | None:
        return Host(source=where, rank=rank, fact=fact, value=str(found.group(1))) if found is not None else None

    return make


def _memlock_bytes(found: Match | None, where: Source, rank: int | None) -> Fact | None:
    value = str(found.group(1)) if found is not None else ""
    return Host(source=where, rank=rank, fact="memlock_kib", value=str(int(value) // 1024) if value.isdigit() else value)


def _bytes(number: str, unit: str) -> str:
    return str(int(float(number.replace(",", ".")) * _UNITS[unit.upper()]))


def _shm(found: Match | None, where: Source, rank: int | None) -> Fact | None:
    if found is None:
        return None
    where = Source(where.file, where.line, masked(where.text))
    return Host(source=where, rank=rank, fact="shm_bytes", value=_bytes(str(found.group(1)), str(found.group(2))))


def _ipc(found: Match | None, where: Source, rank: int | None) -> Fact | None:
    where = Source(where.file, where.line, masked(where.text))
    return Setting(source=where, rank=rank, name="--ipc=host", effect="present", key="--ipc", value="host")


_N = r"(\d{1,15}|unlimited)"
_RULES = (
    Rule("max locked memory", rf"max locked memory\s+\((?:kbytes|kb), -l\)\s+{_N}\s*$", _limit("memlock_kib")),
    Rule("max user processes", rf"max user processes\s+\(-u\)\s+{_N}\s*$", _limit("nproc")),
    Rule("Max locked memory", rf"Max locked memory\s+{_N}\s+\S+\s+bytes", _memlock_bytes),
    Rule("Max processes", rf"Max processes\s+{_N}\s+\S+\s+processes", _limit("nproc")),
    Rule("CmaTotal:", r"CmaTotal:\s+(\d{1,12}) kB", _limit("cma_kib")),
    Rule("CPU(s):", r"^\s*CPU\(s\):\s+(\d{1,6})\s*$", _limit("cpu_count")),
    Rule("ff-line CPU(s) list:", r"Off-line CPU\(s\) list:\s+(\d[\d,-]*)", _limit("cpu_offline")),
    Rule("Vendor ID:", r"^\s*Vendor ID:\s+(AuthenticAMD|GenuineIntel|HygonGenuine|ARM|NVIDIA|Ampere)\b", _limit("cpu_vendor")),
    Rule("vendor_id", r"^\s*vendor_id\s*:\s+(AuthenticAMD|GenuineIntel|HygonGenuine)\b", _limit("cpu_vendor")),
    Rule("ShmSize", rf"\"ShmSize\"\s*:\s*{_SIZE}", _shm),
    Rule("shm_size", rf"^\s*shm_size\s*:\s*[\"']?{_SIZE}[\"']?\s*$", _shm),
    Rule("--shm-size", rf"{_RUN}--shm-size[= ][\"']?{_SIZE}(?:[\"'\s\\]|$)", _shm),
    Rule("--ipc", rf"{_RUN}--ipc[= ][\"']?host\b", _ipc),
    Rule("/dev/shm", rf"\S+ (?:on )?/dev/shm (?:type )?tmpfs \S*\bsize={_SIZE}(?:[,)\s]|$)", _shm),
    Rule("/dev/nvidia-caps", r"cannot access '?(/dev/nvidia-caps[^\s':]*)'?: No such file", _limit("nvidia_caps_missing")),
    Rule("pids.max", r"pids\.max[:\s]+(\d{1,10}|max)\s*$", _limit("pids_max")),
)  # fmt: skip
ANCHORS = (*anchors_of(_RULES), "shm   ", "ulimit -", "cpu.max", " cpus:", " MB")
KEEP = (6, 1)


def _df(text: Text, index: int) -> str:
    """Size in bytes of /dev/shm from a row of `df`, or ""."""
    words = text.lines[index].text[:LINE_MAX]
    row = rx(rf"^\W{{0,3}}\S+\s+{_SIZE}\s+(?:\S+\s+){{2}}\S*%?\s+/dev/shm\s*$").search(words)
    row = row or rx(r"^\W{0,3}shm\s+(\d{1,15}(?:[.,]\d{1,3})?)([KMGT])(?:\s[^/]*)?$").search(words)  # cut before the mount point
    if row is None:
        return ""
    number, unit = str(row.group(1)), str(row.group(2))
    if not unit:
        above = " ".join(line.text[:200] for line in text.lines[max(0, index - 6) : index])
        blocks = rx(r"\b(1024|1)([KMB]?)-blocks").search(above)
        unit = "K" if blocks is None or str(blocks.group(1)) == "1024" else str(blocks.group(2)) or "B"
    size = _bytes(number, unit)
    return size if size != "0" else ""


def _after_command(text: Text, index: int) -> Iterator[Fact]:
    """Commands that print nothing but a number on the next line."""
    words = text.lines[index].text[:LINE_MAX]
    if index + 1 >= len(text.lines):
        return
    below = text.lines[index + 1]
    value = below.text.strip()
    where = source(text, below)
    one = rx(r"(?:^|[\s;&])ulimit -[HS]?(l|u)\s*$").search(words)
    if one is not None and rx(rf"^{_N}$").search(value) is not None:
        yield Host(source=where, fact="memlock_kib" if one.group(1) == "l" else "nproc", value=value)
    elif rx(r"\bcat\b.*/pids\.max\s*$").search(words) is not None and rx(r"^(?:\d{1,10}|max)$").search(value) is not None:
        yield Host(source=where, fact="pids_max", value=value)
    elif rx(r"\bcat\b.*/cpu\.max\s*$").search(words) is not None:
        quota = rx(r"^(\d{1,12}) ([1-9]\d{0,11})$").search(value)
        if quota is not None:
            yield Host(source=where, fact="cpu_limit", value=f"{int(quota.group(1)) / int(quota.group(2)):g}")


def _numa(text: Text, hits: list[int]) -> Iterator[Fact]:
    """`numactl -H`: nodes with processors and no memory, or with memory and no processors."""
    cpus: dict[str, bool] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for index in hits:
        found = rx(r"^\s*node (\d{1,4}) (?:cpus:\s*(\d?)|size: (\d{1,12}) MB)").search(text.lines[index].text[:LINE_MAX])
        if found is None or len(cpus) > 4096:
            continue
        if found.group(3) is not None:
            sizes.setdefault(str(found.group(1)), (int(found.group(3)), index))
        else:
            cpus.setdefault(str(found.group(1)), bool(found.group(2)))
    odd = [(node, index, has, size) for node, (size, index) in sizes.items() if node in cpus and (has := cpus[node]) != (size > 0)]
    if odd:
        said = "; ".join(f"node {node}: " + ("processors, no memory" if has else "memory, no processors") for node, _, has, _ in odd[:4])
        yield Host(source=source(text, text.lines[odd[0][1]]), fact="numa_asymmetric", value=said)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    told: set[tuple[str, str]] = set()
    for fact in run(_RULES, text, hits):
        key = (fact.fact, fact.value) if isinstance(fact, Host) else (type(fact).__name__, "")
        if key not in told:
            told.add(key)
            yield fact
    for index in hits:
        size = _df(text, index)
        if size and ("shm_bytes", size) not in told:
            told.add(("shm_bytes", size))
            yield Host(source=source(text, text.lines[index]), fact="shm_bytes", value=size)
        yield from _after_command(text, index)
    yield from _numa(text, hits)
