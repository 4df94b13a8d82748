"""How a process ended, as launchers, shells, containers and runtimes say it: killed, out of host memory, bus error, crash.

In:      torchrun (`exitcode: -9`), multiprocessing, mpirun, srun, DeepSpeed, TGI, PyCharm, gunicorn, shells (`Killed`), Docker and
         Kubernetes (`OOMKilled`, exit code 137), Ray, systemd, UCX and Open MPI signal handlers, data loaders, thread creation.
Out:     Event host_oom (only where lack of memory is said), killed, bus_error, segfault, out_of_shm, thread_create_failed; each
         once per (kind, value, rank), at most 100.  value: rank, pid or words; "possible" where a text lists several reasons.
Unknown: SIGTERM and exit code 1 say nothing; a supervisor that announces a SIGKILL of its own is not an end by itself.
Raises:  nothing.
Source:  signal numbers of Linux (6 ABRT, 7 BUS, 9 KILL, 11 SEGV; 128 + n in shells and containers).
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Source, Text
from linkproof.parse.rules import Match, Rule, anchors_of, distinct, run, rx

_BY_CODE = {9: "killed", 137: "killed", 7: "bus_error", 135: "bus_error", 11: "segfault", 139: "segfault", 6: "segfault", 134: "segfault"}
_BY_NAME = {"KILL": "killed", "BUS": "bus_error", "SEGV": "segfault", "ABRT": "segfault"}

_WHO = r"local_rank: ?(\d{1,4})|\brank[ =:]{1,2}(\d{1,5})|\btask (\d{1,6}):|\bPID:? ?(\d{1,8})|\bpid[ =:]{1,2}(\d{1,8})"


def _who(words: str) -> str:
    found = rx(_WHO).search(words)
    return next((str(g) for g in found.groups() if g), "") if found else ""


def _event(kind: str, where: Source, rank: int | None) -> Event:
    return Event(source=where, rank=rank, kind=kind, value=_who(where.text))


def _exit_code(found: Match | None, where: Source, rank: int | None) -> Fact | None:
    """A negative code is a signal; 128 + n is one too; small positive codes are the program's own."""
    if found is None:
        return None
    sign, digits = found[1], int(found[2])
    kind = _BY_CODE.get(digits) if (sign == "-") == (digits < 128) else None
    return _event(kind, where, rank) if kind else None


def _signal(found: Match | None, where: Source, rank: int | None) -> Fact | None:
    if found is None or rx(_NOT_AN_END).search(where.text):
        return None
    name, number = found[1], found[2] or found[3]
    kind = _BY_NAME.get(name) if name else _BY_CODE.get(int(number))
    return _event(kind, where, rank) if kind else None


# a supervisor that kills, a list of reasons that might be, a build or shell option
_NOT_AN_END = r"(?i)potential root causes|\bsend(?:ing|s|)\b.{0,60}SIG|forcefully|via 9|will (?:be )?(?:sent|kill)|ignor|handler|trap "


def _oom(found: Match | None, where: Source, rank: int | None) -> Fact | None:
    """Ray prints the same list of possible reasons for every lost worker: then memory is only one of them."""
    value = "possible" if rx(r"(?i)potential root causes|perhaps|may have been|might").search(where.text) else _who(where.text)
    return Event(source=where, rank=rank, kind="host_oom", value=value)


_EXIT = r"(?i)\b(?:exit ?code|exit status|return ?code|exitcode)\b\s*[:=]?\s*(?:of )?(-?)(\d{1,3})\b"
_SIGNALS = r"\bSIG(KILL|BUS|SEGV|ABRT)\b|\b[Ss]ignal:?\s+\(?(6|7|9|11)\b|\b[Ss]ignal: .{1,40}\((6|7|9|11)\)"

RULES: tuple[Rule, ...] = (
    # host memory, said
    Rule("OOM killer", r"(?i)killed.{0,60}OOM killer|OOM killer.{0,40}killed", _oom),
    Rule("killed due to memory pressure", "", _oom),
    Rule("due to the node running low on memory", "", _oom),
    Rule("ray.exceptions.OutOfMemoryError", "", _oom),
    Rule("OOMKilled", r"OOMKilled\"?(?:$|[^\":\w]|\":? ?\"|\"?: ?true)", _oom),
    Rule("oom_kill event", r"(?i)detected \d+ oom.kill event", _oom),
    Rule("oom-kill event", r"(?i)detected \d+ oom.kill event", _oom),
    Rule("cgroup out-of-memory handler", "", _oom),
    Rule("result 'oom-kill'", "", _oom),
    Rule(": Out Of Memory", r"task \d+: Out Of Memory", _oom),
    Rule("DefaultCPUAllocator:", r"(?i)can't allocate memory|not enough memory", _oom),
    # exit codes
    *(
        Rule(words, _EXIT, _exit_code)
        for words in ("exitcode", "exit code", "Exit Code", "Exit code", "exit status", "return code", "returncode", "EXIT CODE", "ExitCode")
    ),
    # signals
    *(Rule(words, _SIGNALS, _signal) for words in ("SIGKILL", "SIGBUS", "SIGSEGV", "SIGABRT", "ignal 9", "ignal 7", "ignal 11", "ignal 6")),
    *(Rule(words, _SIGNALS, _signal) for words in ("Signal: Bus", "Signal: Seg", "Signal: Abort", "Signal: Killed", "SIGNAL: 9")),
    # the shell's and Python's words
    Rule("Killed", r"^\s*Killed\.?\s*$|line \d+:\s+\d+ Killed\s|: task \d+: Killed|signal: Killed|\(Killed\)|^\[\d+\][+-]?\s+Killed\s",
         lambda m, s, r: _event("killed", s, r)),
    Rule("Bus error", r"Bus error(?: \(core dumped\))?\s*$|Bus error: |signal: Bus error|Bus error \(7\)|Python error: Bus error",
         lambda m, s, r: _event("bus_error", s, r)),
    Rule("bus error", r"(?i)unexpected bus error encountered|bus error \(core dumped\)", lambda m, s, r: _event("bus_error", s, r)),
    Rule("Segmentation fault", "", lambda m, s, r: _event("segfault", s, r)),
    Rule("segmentation fault", r"segmentation fault \(core|caught .{0,20}segmentation fault", lambda m, s, r: _event("segfault", s, r)),
    Rule("Segfault encountered", "", lambda m, s, r: _event("segfault", s, r)),
    Rule("Aborted (core dumped)", "", lambda m, s, r: _event("segfault", s, r)),
    Rule("0xC0000005", "", lambda m, s, r: _event("segfault", s, r)),
    # shared memory of data loaders and of multiprocessing
    Rule("out of shared memory", "", "out_of_shm"),
    Rule("insufficient shared memory", "", "out_of_shm"),
    Rule("raise your shared memory limit", "", "out_of_shm"),
    Rule("shared memory object", r"unable to (?:open|resize|allocate) shared memory object.{0,120}(?:No space|allocate|space)", "out_of_shm"),
    Rule("unable to write to file </torch", "", "out_of_shm"),
    Rule("unable to mmap", r"unable to mmap \d{1,20} bytes from file </torch", "out_of_shm"),
    Rule("No space left on device: '/psm_", "", "out_of_shm"),
    Rule("No space left on device: '/dev/shm", "", "out_of_shm"),
    # threads and processes that could not be made
    Rule("Resource temporarily unavailable",
         r"(?i)pthread_create|thread|fork|system_error|spawn|vfork|clone|BlockingIOError.*(?:fork|subprocess)", "thread_create_failed"),
    Rule("can't start new thread", "", "thread_create_failed"),
    Rule("Thread creation failed", "", "thread_create_failed"),
    Rule("pthread_create failed", "", "thread_create_failed"),
)  # fmt: skip

ANCHORS = anchors_of(RULES)
KEEP = (0, 1)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    yield from distinct(run(RULES, text, hits, most=100), most=None)
