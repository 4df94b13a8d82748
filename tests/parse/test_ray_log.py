import pytest

from linkproof.model import Event, Fact, Host
from linkproof.parse import read
from linkproof.parse.clean import clean


def facts(words: str) -> list[Fact]:
    return read(clean("log", words))


def events(words: str) -> list[tuple[str, str]]:
    return [(f.kind, f.value) for f in facts(words) if isinstance(f, Event)]


@pytest.mark.parametrize("words, kind, value", [
    ("INFO worker.py:1715 -- Started a local Ray instance. View the dashboard at 127.0.0.1:8265", "ray_started", ""),
    ("Failed to register worker 01000000ffffffff to Raylet. IOError: [RayletClient]", "ray_register_failed", ""),
    ("worker_pool.cc:544: Some workers of the worker process(12) have not registered within the timeout.", "ray_register_failed", ""),
    ("ValueError: Cannot provide a placement group requiring 2.0 GPUs (placement_group_specs=[{'GPU': 1.0}, {'GPU': 1.0}]) within 1800 seconds.",
     "ray_no_resources", "{'GPU': 2.0}"),
    ("(autoscaler +9s) Error: No available node types can fulfill resource request {'GPU': 2.0, 'CPU': 1.0}.", "ray_no_resources",
     "{'GPU': 2.0, 'CPU': 1.0}"),
    ("Warning: The following resource request cannot be scheduled right now: {'CPU': 1.0}.", "ray_no_resources", "{'CPU': 1.0}"),
    ("INFO ray_utils.py:212] Waiting for creating a placement group of specs for 10 seconds. specs=[{'GPU': 1.0}]", "ray_no_resources",
     "{'GPU': 1.0}"),
    ("ray.exceptions.ActorDiedError: The actor died because of an error raised in its creation task, ray::W.__init__()", "ray_actor_died", "init"),
    ("The actor is dead because its node has died. the node it was running on failed", "ray_actor_died", "node"),
    ("ray.exceptions.RayActorError: The actor died unexpectedly before finishing this task.", "ray_actor_died", ""),
])  # fmt: skip
def test_what_ray_says_becomes_its_event(words: str, kind: str, value: str) -> None:
    assert events(words) == [(kind, value)]


def test_a_dead_actor_with_a_list_of_reasons_may_have_run_out_of_memory() -> None:
    words = ("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: connection error code 2. "
             "There are some potential root causes. (1) The process is killed by SIGKILL by OOM killer due to high memory usage.")  # fmt: skip
    assert set(events(words)) == {("ray_actor_died", "oom_possible"), ("host_oom", "possible")}


def test_memory_pressure_in_the_same_message_is_said() -> None:
    words = "The actor is dead because its worker process has died. killed due to memory pressure (OOM)"
    assert set(events(words)) == {("ray_actor_died", "oom"), ("host_oom", "")}


def test_the_size_of_shared_memory_is_a_host_fact() -> None:
    words = "WARNING: The object store is using /tmp instead of /dev/shm because /dev/shm has only 67108864 bytes available."
    assert [(f.fact, f.value) for f in facts(words) if isinstance(f, Host)] == [("shm_bytes", "67108864")]


@pytest.mark.parametrize("words", [
    "a x-ray of the chest could not connect the dots",
    "the meeting cannot be scheduled on monday",
    "Failed to register worker callback in the UI",
    "an infeasible plan",
])  # fmt: skip
def test_words_of_other_things_are_not_rays(words: str) -> None:
    assert not events(words)
