"""What bandwidth and latency are: of the link, without what a transfer costs whatever its size and without the time to ask for one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from msgspec import structs
from virtual_gpus import blocks_left, scenario

from linkproof.probe import copy_speed
from linkproof.probe.copy_speed import LARGEST_B, ROOM_B, SIZE_B, START_SHARE, enough_B, most_B
from linkproof.probe.setup import MiB
from linkproof.sim.virtual import Virtual, create


def with_links(folder: Path, gpus: int = 2, memory_GiB: float = 24.0, **link: float) -> Virtual:
    s = scenario(gpus, each={"memory_GiB": memory_GiB})
    create(structs.replace(s, link=structs.replace(s.link, **link), links=()), folder)
    return Virtual(folder)


# ---------------------------------------------------------------- how large


def test_a_fast_link_gets_transfers_whose_start_does_not_count(tmp_path: Path) -> None:
    v = with_links(tmp_path, bw_GBps=387.0, lat_us=11.0)
    (speed,) = copy_speed.measure(v, [(0, 1)], "push")
    assert SIZE_B / (387e9) < 10 * 11e-6, "32 MiB alone would be told a tenth too slow"
    assert speed.size_B == 256 * MiB and 387.0 * (1 - START_SHARE) < speed.bw_GBps <= 387.0
    assert speed.bw_spread_GBps[0] <= speed.bw_GBps <= speed.bw_spread_GBps[1]
    assert speed.lat_us == pytest.approx(11.0, rel=0.02) and blocks_left(v) == []


def test_a_slow_link_keeps_the_small_ones(tmp_path: Path) -> None:
    (speed,) = copy_speed.measure(with_links(tmp_path, bw_GBps=26.0, lat_us=11.0), [(0, 1)], "push")
    assert speed.size_B == SIZE_B and 26.0 * (1 - START_SHARE) < speed.bw_GBps <= 26.0


def test_where_memory_is_short_small_transfers_are_what_is_told(tmp_path: Path) -> None:
    v = with_links(tmp_path, memory_GiB=0.25, bw_GBps=387.0, lat_us=11.0)
    both = copy_speed.measure(v, [(0, 1), (1, 0)], "push", "both_ways")
    assert {s.size_B for s in both} == {SIZE_B} and {s.lat_us for s in both} == {None} and blocks_left(v) == []


def test_all_pairs_of_a_machine_take_no_more_memory_than_one_pair() -> None:
    for n in (2, 3, 4, 8, 16):
        pairs = [(a, b) for a in range(n) for b in range(n) if a != b]
        assert most_B(pairs) * 2 * (n - 1) <= ROOM_B
    assert most_B([(0, 1)]) == LARGEST_B == most_B([(0, 1), (1, 0)]) and most_B([(0, 0)]) == LARGEST_B


def test_sizes_grow_by_what_was_measured_and_end() -> None:
    assert enough_B(1.3e-3, 11e-6, LARGEST_B) == SIZE_B
    assert enough_B(97e-6, 11e-6, LARGEST_B) == 256 * MiB and enough_B(300e-6, 11e-6, LARGEST_B) == 64 * MiB
    assert enough_B(10e-6, 11e-6, LARGEST_B) == LARGEST_B, "noise: nothing but the start"
    assert enough_B(97e-6, 11e-6, 36 * MiB) == SIZE_B == enough_B(97e-6, 0.0, LARGEST_B)


def test_a_simulated_machine_tells_the_same_each_time(tmp_path: Path) -> None:
    first, second = (copy_speed.measure(with_links(tmp_path / name, bw_GBps=387.0), [(0, 1)], "push") for name in ("a", "b"))
    assert first == second


# ---------------------------------------------------------------- the time to ask

torch = pytest.importorskip("torch", reason="needs torch; CPU is enough")

from linkproof.probe.gpu import timing  # noqa: E402
from linkproof.probe.gpu.timing import Timer, Way  # noqa: E402

CALL_S = 2e-6  # any call
TURNS_PER_s = 1.5e9


class Model:
    """A host that asks and streams that do, each in its own time. ask_s: what asking for a transfer takes; blocking: asking waits for the end."""

    def __init__(self, ask_s: float, transfer_s: float, blocking: bool = False) -> None:
        self.now, self.ask_s, self.transfer_s, self.blocking = 0.0, ask_s, transfer_s, blocking
        self.current: Stream | None = None
        self.asked = 0
        self.slow_clock = 1.0

    def call(self, took_s: float = CALL_S) -> None:
        self.now += took_s

    def give_out(self, ways: list[Way], n: int) -> None:
        for _ in range(n):
            for way in ways:
                self.asked += 1
                way.end.run(self.transfer_s, self.ask_s)  # type: ignore[attr-defined]

    def sleep(self, turns: int) -> None:
        assert self.current is not None
        self.current.run(turns / TURNS_PER_s / self.slow_clock, CALL_S)


class Stream:
    def __init__(self, model: Model) -> None:
        self.model, self.free_at = model, 0.0

    def run(self, takes_s: float, ask_s: float) -> None:
        self.model.call(ask_s)
        self.free_at = max(self.free_at, self.model.now) + takes_s
        if self.model.blocking:
            self.synchronize()

    def wait_event(self, event: Event) -> None:
        self.model.call()
        self.free_at = max(self.free_at, event.at)

    def synchronize(self) -> None:
        self.model.call(max(CALL_S, self.free_at - self.model.now))


class Event:
    model: Model

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self, stream: Stream) -> None:
        self.model.call()
        self.at = max(stream.free_at, self.model.now)

    def query(self) -> bool:
        return self.at <= self.model.now

    def synchronize(self) -> None:
        self.model.call(max(CALL_S, self.at - self.model.now))

    def elapsed_time(self, later: Event) -> float:
        return (later.at - self.at) * 1e3


@pytest.fixture
def on_a_model(monkeypatch: pytest.MonkeyPatch) -> object:
    def put(model: Model) -> None:
        other = Stream(model)

        class On:
            def __init__(self, stream: Stream) -> None:
                self.stream = stream

            def __enter__(self) -> None:
                model.current = self.stream

            def __exit__(self, *_: object) -> None:
                model.current = other

        model.current = other
        monkeypatch.setattr(Event, "model", model, raising=False)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", On)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: model.current)
        monkeypatch.setattr(torch.cuda, "_sleep", model.sleep)
        monkeypatch.setattr(timing, "perf_counter", lambda: model.now)

    return put


def nothing(gpu: int) -> AbstractContextManager[None]:
    return nullcontext()


def took_s(model: Model, ways: int, times: int, held: bool = True) -> float:
    made = [Way(i, Stream(model), Stream(model)) for i in range(ways)]  # type: ignore[arg-type]
    timer = Timer(nothing)
    seconds = timer.took_s(made, lambda n: model.give_out(made, n), times)
    assert timer.held == held
    return seconds


@pytest.mark.parametrize(("ask_s", "transfer_s"), [(115e-6, 87e-6), (115e-6, 10e-6), (17e-6, 87e-6), (115e-6, 1.3e-3)])
@pytest.mark.parametrize("ways", [1, 2, 56])
def test_the_time_to_ask_is_not_in_the_figure(on_a_model, ask_s: float, transfer_s: float, ways: int) -> None:  # type: ignore[no-untyped-def]
    on_a_model(model := Model(ask_s, transfer_s))
    assert took_s(model, ways, 4) == pytest.approx(4 * transfer_s, rel=1e-6)
    assert model.asked == ways * (1 + 1 + 4), "the hold lasted at once"


def test_without_a_hold_it_would_be(on_a_model, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """The model is the machine on which this was found: 4 x 32 MiB in 4 asked-for times and one transfer, 245 GB/s of 387."""
    on_a_model(model := Model(115e-6, 87e-6))
    monkeypatch.setattr(torch.cuda, "_sleep", None)
    assert 4 * SIZE_B / took_s(model, 1, 4, held=False) / 1e9 == pytest.approx(245, rel=0.02)


def test_a_clock_that_speeds_up_is_found_out(on_a_model, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    on_a_model(model := Model(115e-6, 10e-6))
    real = Timer._clock

    def clock(self: Timer, gpu: int, sleep: object) -> float:
        found = real(self, gpu, sleep)  # type: ignore[arg-type]
        model.slow_clock = 5.0  # five times as fast from now on
        return found

    monkeypatch.setattr(Timer, "_clock", clock)
    assert took_s(model, 1, 20) == pytest.approx(20 * 10e-6, rel=1e-6) and model.asked > 22


def test_where_no_hold_lasts_it_ends_all_the_same(on_a_model) -> None:  # type: ignore[no-untyped-def]
    on_a_model(model := Model(115e-6, 10e-6, blocking=True))
    assert took_s(model, 1, 4, held=False) >= 4 * 10e-6 and model.now < 1.0
    on_a_model(model := Model(115e-6, 10e-6))
    assert took_s(model, 1, 10_000, held=False) > 1.0 and model.asked == 10_002, "more than may be held: measured once, as it is"
