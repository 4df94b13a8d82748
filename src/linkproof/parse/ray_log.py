"""Ray: what started, what could not be placed, which actor died and what its message says of the cause.

In:      driver and raylet output of Ray 1.x and 2.x, also as vLLM, OpenRLHF and verl print it; `(raylet)`, `(autoscaler +2s)` prefixes.
Out:     Event ray_started, ray_register_failed, ray_no_resources (value: what is asked for), ray_actor_died (value: words of the
         cause in the same message: `oom_possible`, `oom`, `sigterm`, `connection`, `node`, `init`, or ""); Host shm_bytes where Ray
         prints the size of /dev/shm.
Unknown: words about memory become host_oom in process_end; a list of possible reasons is marked as possible there.
Raises:  nothing.
Source:  ray `worker.py`, `core_worker.cc`, `node_manager.cc`, autoscaler messages; vLLM `ray_utils.py` (placement groups).
"""

from __future__ import annotations

from collections.abc import Iterator

from linkproof.model import Event, Fact, Host, Source, Text
from linkproof.parse.rules import Make, Match, Rule, anchors_of, run, rx


def _died(_found: Match | None, where: Source, rank: int | None) -> Fact:
    words = where.text
    if "potential root causes" in words:
        value = "oom_possible"
    elif rx(r"(?i)memory pressure|low on memory|\bOOM\b|out of memory").search(words):
        value = "oom"
    elif rx(r"(?i)node (?:\S+ )?(?:died|failed|was terminated)|the node it was running on").search(words):
        value = "node"
    elif "SIGTERM" in words:
        value = "sigterm"
    elif rx(r"(?i)error raised in its creation task|__init__").search(words):
        value = "init"
    else:
        value = "connection" if rx(r"(?i)connection error|End of file").search(words) else ""
    return Event(source=where, rank=rank, kind="ray_actor_died", value=value)


def _shm(found: Match | None, where: Source, rank: int | None) -> Fact | None:
    return Host(source=where, rank=rank, fact="shm_bytes", value=found[1]) if found else None


def _asked(kind: str) -> Make:
    def make(found: Match | None, where: Source, rank: int | None) -> Fact:
        asked = rx(r"(\{[^{}]{1,160}\})").search(where.text)
        gpus = rx(r"requiring ([\d.]{1,12}) GPUs").search(where.text)
        value = f"{{'GPU': {gpus[1]}}}" if gpus else asked[1] if asked else ""
        return Event(source=where, rank=rank, kind=kind, value=value)

    return make


RULES: tuple[Rule, ...] = (
    Rule("tarted a local Ray instance", "", "ray_started"),
    Rule("Connected to Ray cluster", "", "ray_started"),
    Rule("Ray runtime started", "", "ray_started"),
    Rule("Failed to register worker", r"Failed to register worker .{0,120}[Rr]aylet", "ray_register_failed"),
    Rule("worker processes have failed to register", "", "ray_register_failed"),
    Rule("have not registered within the timeout", "", "ray_register_failed"),
    Rule("ould not connect to the GCS", "", "ray_register_failed"),
    Rule("ailed to connect to GCS", "", "ray_register_failed"),
    # places
    Rule("Cannot provide a placement group", "", _asked("ray_no_resources")),
    Rule("No available node types can fulfill resource request", "", _asked("ray_no_resources")),
    Rule("resource request cannot be scheduled right now", "", _asked("ray_no_resources")),
    Rule("Waiting for creating a placement group of specs", "", _asked("ray_no_resources")),
    Rule("cannot be scheduled", r"(?:actor or task|[Tt]ask|[Aa]ctor|resource request).{0,160}cannot be scheduled", _asked("ray_no_resources")),
    Rule("nfeasible", r"(?i)infeasible (?:resource|task|actor|request)|(?:request|demand|task|actor)s? (?:is|are) infeasible",
         _asked("ray_no_resources")),
    Rule(" pending ", r"\}.{0,40}: \d{1,6}\+? pending (?:placement group|task|actor)", _asked("ray_no_resources")),
    Rule("does not allocate any GPUs on the driver node", "", "ray_no_resources"),
    Rule("Current node has no GPU available", "", "ray_no_resources"),
    Rule("he number of required GPUs exceeds the total number of available GPUs", "", "ray_no_resources"),
    Rule("total number of available GPUs in the placement group", "", "ray_no_resources"),
    # deaths
    Rule("The actor is dead because", "", _died),
    Rule("The actor died because", "", _died),
    Rule("The actor died unexpectedly before finishing this task", "", _died),
    Rule("ActorDiedError", "", _died),
    Rule("RayActorError", "", _died),
    Rule("A worker died or was killed while executing a task", "", _died),
    Rule("ActorUnavailableError", "", _died),
    Rule("has only", r"/dev/shm has only (\d{1,18}) bytes", _shm),
)  # fmt: skip

ANCHORS = anchors_of(RULES)
KEEP = (0, 2)


def parse(text: Text, hits: list[int]) -> Iterator[Fact]:
    seen: set[tuple[str, str, int | None, int]] = set()
    for fact in run(RULES, text, hits, most=100):
        if isinstance(fact, Event):
            place = fact.source.line if fact.kind == "ray_actor_died" and fact.value else 0
            # two rules may know one line; a class name alone adds nothing to a message that says why
            key = (fact.kind, fact.value, fact.rank, place)
        else:
            key = ("host", getattr(fact, "value", ""), fact.rank, 0)
        if key not in seen:
            seen.add(key)
            yield fact
