"""Real processes: whatever becomes of a worker is a result, the run goes on, and nothing is left."""

from __future__ import annotations

import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from linkproof import proc
from linkproof.measured import Case, Outcome
from linkproof.probe.setup import Setup
from linkproof.probe.workers import endings
from linkproof.probe.workers.gang import Gang
from linkproof.probe.workers.wire import Report, frame
from linkproof.probe.workers.worker import Job, Runner

HERE = Path(__file__).parent
OK = Job(Case("push", (0, 1)), 5.0)


def solo(arm: str, deadline_s: float = 5.0) -> Job:
    return Job(Case("push", (0, 1), arm=arm), deadline_s)


def gang(arm: str, deadline_s: float = 5.0, members: int = 2) -> Job:
    return Job(Case("ipc", tuple(range(members)), arm=arm), deadline_s)


def ours(mark: str) -> dict[int, str]:
    """Processes that carry a mark that begins so: pid -> command."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        try:
            if f"{proc.MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found[int(pid)] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def folders(mark: str) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"linkproof-{mark}*"))


def gone_within(wait_s: float, there: Callable[[], object]) -> bool:
    until = time.monotonic() + wait_s
    while there():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture(autouse=True)
def tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def made(devices: str = "", setup_s: float = 10.0, tell: Callable[[str, Case], None] | None = None) -> Runner:
    return Runner(Setup(f"sim:{devices}", 1, env={"FAKE_ENV": "set"}), tell, tasks="worker_tasks", setup_s=setup_s)


@pytest.fixture
def runner() -> Iterator[Runner]:
    with made() as it:
        yield it
    assert not ours(it._mark)
    assert not folders(it._mark)


def one(runner: Runner, job: Job) -> Outcome:
    (outcome,) = runner.run([job])
    return outcome


# ---------------------------------------------------------------- one worker


def test_cases_that_go_well_share_a_worker_and_its_environment_is_the_setups(runner: Runner) -> None:
    first, second = runner.run([solo("pid"), solo("pid")])
    assert first.state == second.state == "verified"
    assert first.args == second.args
    assert first.args["env"] == "set"
    assert first.took_s > 0


def test_a_case_of_several_pairs_gives_an_outcome_for_each(runner: Runner) -> None:
    assert [o.case.gpus for o in runner.run([solo("two"), OK])] == [(0, 1), (1, 0), (0, 1)]


def test_the_caller_is_told_what_begins_and_how_it_ended() -> None:
    told: list[tuple[str, str]] = []
    with made(tell=lambda state, case: told.append((state, case.arm))) as runner:
        list(runner.run([OK, solo("error:refused")]))
    assert told == [("begins", ""), ("verified", ""), ("begins", "error:refused"), ("refused", "error:refused")]


@pytest.mark.parametrize(
    ("arm", "state", "args"),
    [
        ("exit", "died", {"code": "3", "said": "last words"}),
        ("exit:0", "died", {"code": "0"}),  # an exit that looks well is no answer
        ("segv", "died", {"signal": "SIGSEGV"}),
        ("killed", "not_tested", {"signal": "SIGKILL"}),  # no link kills a process: somebody did, or the kernel
        ("prints", "died", {"signal": "SIGABRT"}),
        ("garbage", "died", {}),
        ("error:runtime", "died", {"error": "RuntimeError: so it is"}),
        ("error:lost", "died", {"error": "DeviceLost: so it is"}),
        ("error:type", "not_tested", {"error": "TypeError: so it is"}),  # our own fault is not held against a link
        ("nothing", "not_tested", {}),
        ("no such arm", "died", {"code": "9"}),
    ],
)
def test_what_becomes_of_a_worker_is_a_result_and_the_next_case_gets_a_fresh_one(
    runner: Runner, arm: str, state: str, args: dict[str, str]
) -> None:
    before, outcome, after, well = runner.run([solo("pid"), solo(arm), solo("pid"), OK])
    assert outcome.state == state
    assert args.items() <= outcome.args.items()
    assert outcome.case.arm == arm
    assert outcome.why
    assert not runs(int(before.args["pid"]))
    assert after.args["pid"] != before.args["pid"]
    assert well.state == "verified"


@pytest.mark.parametrize(("arm", "state"), [("error:refused", "refused"), ("error:untested", "not_tested"), ("memory", "not_tested")])
def test_what_cannot_be_done_costs_no_worker(runner: Runner, arm: str, state: str) -> None:
    before, outcome, after = runner.run([solo("pid"), solo(arm), solo("pid")])
    assert outcome.state == state
    assert after.args == before.args
    assert arm != "memory" or outcome.why == "not enough memory: {error}"


def test_last_words_are_the_last_and_few(runner: Runner) -> None:
    said = one(runner, solo("prints")).args["said"]
    assert said.endswith("the last line")
    assert len(said) <= 400


def test_a_hang_that_ignores_signals_ends_at_its_deadline(runner: Runner) -> None:
    before, hung = runner.run([solo("pid"), solo("hang", 0.3)])
    assert hung.state == "hung"
    assert hung.args == {"deadline_s": "0.3", "said": "still at it"}
    assert 0.3 <= hung.took_s < 1.0
    assert not runs(int(before.args["pid"]))


def test_a_worker_killed_from_outside_in_the_middle_of_a_case(runner: Runner, tmp_path: Path) -> None:
    place = tmp_path / "pid"

    def kill() -> None:
        while not (place.exists() and place.read_text()):
            time.sleep(0.01)
        os.kill(int(place.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    killed, well = runner.run([solo(f"announce:{place}"), OK])
    killer.join()
    assert (killed.state, killed.args["signal"]) == ("not_tested", "SIGKILL")
    assert well.state == "verified"


def test_a_worker_that_dies_while_it_waits_is_no_cases_fault(runner: Runner) -> None:
    pid = int(one(runner, solo("pid")).args["pid"])
    os.kill(pid, signal.SIGKILL)
    assert gone_within(1, lambda: runs(pid))
    assert one(runner, OK).state == "verified"


def test_what_a_hanging_worker_started_ends_with_it_and_at_the_latest_with_the_run(tmp_path: Path) -> None:
    place = tmp_path / "pids"
    with made() as runner:
        assert one(runner, solo(f"grandchild:{place}", 0.5)).state == "hung"
        same_group, own_session = map(int, place.read_text().split())
        assert gone_within(1, lambda: runs(same_group))
    assert not runs(own_session)
    assert not ours(runner._mark)


# ---------------------------------------------------------------- set-up


def test_cards_come_from_a_worker(runner: Runner) -> None:
    cards, backend = runner.cards()
    assert ([card.name for card in cards], backend) == (["Fake GPU"], "fake")
    assert runner.no_cards is None
    assert one(runner, OK).state == "verified"


@pytest.mark.parametrize(
    ("devices", "states"),
    [
        ("hangs", ["hung", "hung", "not_tested"]),
        ("crashes", ["died", "died", "not_tested"]),
        ("raises", ["not_tested", "not_tested", "not_tested"]),
    ],
)
def test_devices_that_do_not_come_up_are_told_and_not_tried_for_ever(devices: str, states: list[str]) -> None:
    with made(devices, setup_s=0.3) as runner:
        assert [o.state for o in runner.run([OK] * 3)] == states
        assert runner.cards() == ([], "")
        assert runner.no_cards is not None
        assert runner.no_cards.why


def test_tasks_that_cannot_be_loaded_are_told() -> None:
    with Runner(Setup("sim:", 1), tasks="no_such_module") as runner:
        outcome = one(runner, OK)
    assert outcome.state == "not_tested"
    assert "no_such_module" in outcome.args["error"]


# ---------------------------------------------------------------- gangs


def test_the_members_of_a_gang_have_their_environment_and_a_private_folder(runner: Runner) -> None:
    outcome = one(runner, gang("where"))
    assert outcome.args.items() >= {"mode": "0o700", "rank": outcome.args["member"]}.items()
    assert not Path(outcome.args["folder"]).exists()


def test_a_gang_that_goes_well_counts_what_all_compared(runner: Runner) -> None:
    outcome = one(runner, gang("", members=3))
    assert (outcome.state, outcome.verified_B, outcome.args) == ("verified", 21, {})


@pytest.mark.parametrize(
    ("arm", "state", "member"),
    [
        ("exit@1", "died", "1"),  # not hung, though the other waits for it
        ("killed@0", "not_tested", "0"),
        ("refused@1", "refused", "1"),
        ("corrupt@1", "corrupt", "1"),
    ],
)
def test_a_member_that_fails_gives_the_state_and_is_named(runner: Runner, arm: str, state: str, member: str) -> None:
    began = time.monotonic()
    outcome, well = runner.run([gang(arm, 30.0), OK])
    assert (outcome.state, outcome.args["member"], well.state) == (state, member, "verified")
    assert time.monotonic() - began < 5
    assert gone_within(1, lambda: len(ours(runner._mark)) > 2)  # the launcher and a worker


def test_a_gang_that_hangs_is_killed_as_a_whole(runner: Runner) -> None:
    outcome = one(runner, gang("hang@0", 0.3))
    assert outcome.state == "hung"
    assert len(ours(runner._mark)) == 1


# ---------------------------------------------------------------- side by side


def test_side_by_side_all_wait_for_the_slowest_set_up_and_then_begin_together() -> None:
    with made("slow") as runner:
        outcomes = list(runner.run_side_by_side([solo("when")] * 3))
        began = [float(o.args["began"]) for o in outcomes]
        assert max(began) < min(float(o.args["ended"]) for o in outcomes)
        assert max(began) - min(began) < 0.05
        assert one(runner, OK).state == "verified"


def test_side_by_side_one_that_dies_and_one_that_hangs_do_not_harm_the_others(runner: Runner) -> None:
    outcomes = runner.run_side_by_side([solo("exit"), solo("hang", 0.4), OK, gang(""), gang("exit@1")])
    told = {(o.case.mode, o.case.arm): o.state for o in outcomes}
    want = {
        ("push", "exit"): "died",
        ("push", "hang"): "hung",
        ("push", ""): "verified",
        ("ipc", ""): "verified",
        ("ipc", "exit@1"): "died",
    }
    assert told == want


def test_a_run_broken_off_by_its_caller_leaves_nothing_and_another_can_begin(runner: Runner) -> None:
    for outcome in runner.run_side_by_side([OK, solo("hang", 60.0)]):
        assert outcome.state == "verified"
        with pytest.raises(RuntimeError):
            runner.cards()
        break
    assert gone_within(1, lambda: ours(runner._mark))
    assert one(runner, OK).state == "verified"


# ---------------------------------------------------------------- the launcher, the caller


def test_a_launcher_that_is_lost_once_is_started_again(runner: Runner, tmp_path: Path) -> None:
    assert [o.state for o in runner.run([OK, solo(f"launcher_once:{tmp_path / 'seen'}"), OK])] == ["verified"] * 3


def test_a_launcher_that_is_lost_twice_gives_an_untested_case_and_the_run_goes_on(runner: Runner) -> None:
    lost, well = runner.run([solo("launcher"), OK])
    assert (lost.state, lost.args["how"], well.state) == ("not_tested", "SIGKILL", "verified")


def test_an_exception_of_the_caller_leaves_nothing() -> None:
    with pytest.raises(ZeroDivisionError), made() as runner:
        for _ in runner.run([OK, solo("hang", 60.0)]):
            raise ZeroDivisionError
    assert not ours(runner._mark)


def test_200_cases_and_20_gangs_leak_no_descriptor_on_either_side(runner: Runner) -> None:
    def count() -> tuple[int, ...]:
        assert runner._launcher is not None
        return tuple(len(os.listdir(f"/proc/{pid}/fd")) for pid in ("self", runner._launcher.pid))  # noqa: PTH208

    assert one(runner, OK).state == "verified"
    before = count()
    assert {o.state for o in runner.run([OK, solo("error:refused")] * 100)} == {"verified", "refused"}
    assert {o.state for o in runner.run([gang("")] * 10)} == {"verified"}
    assert {o.state for o in runner.run([solo("exit")] * 10)} == {"died"}
    assert one(runner, OK).state == "verified"
    assert count() == before


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="before Linux 5.3 only the socket tells that the caller is gone")
def test_nothing_is_left_when_a_fork_of_the_killed_caller_holds_its_socket_open(tmp_path: Path) -> None:
    argv = [sys.executable, str(HERE / "long_run.py"), str(tmp_path / "pids"), "fork"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        assert [parent.stdout.readline() for _ in range(2)] == [b"up\n", b"forked\n"]
        parent.kill()
        assert gone_within(2, lambda: ours(f"{parent.pid}-"))


def test_a_process_that_no_kill_ends_is_left_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits inside a driver cannot be made here: a kill that does nothing looks the same to us."""
    monkeypatch.setattr("linkproof.probe.workers.gang.AFTER_KILL_S", 0.2)
    monkeypatch.setattr("os.killpg", lambda group, number: None)
    child = subprocess.Popen(["sleep", "3600"])
    with selectors.DefaultSelector() as events, child:
        ours, theirs = socket.socketpair()
        printed, output = os.pipe()
        hanging = Gang(events, solo("", 0.1), setup_s=1.0, folder="", keep=False)
        hanging.add((child.pid, ours, printed))
        theirs.send(frame(Report()))
        while hanging.phase != "over":
            for key, mask in events.select(0.05):
                key.data(mask)
            hanging.advance(time.monotonic())
            if hanging.phase == "ready":
                hanging.go(0.0)
        theirs.close()
        os.close(output)
        child.kill()
    (outcome,) = hanging.outcomes()
    assert (outcome.state, outcome.args["pid"]) == ("hung", str(child.pid))
    assert "{pid}" in outcome.why


def test_after_one_member_left_what_becomes_of_the_others_is_a_consequence() -> None:
    case = OK.case
    killed, wrong = Outcome(case, "not_tested", "killed"), Outcome(case, "corrupt", "wrong", verified_B=3)
    crash = endings.died(case, endings.End(signal=signal.SIGSEGV), b"")
    assert [o.state for o in endings.combined([(0, killed), (1, crash)])] == ["not_tested"]
    assert [o.state for o in endings.combined([(1, crash), (0, killed)])] == ["died"]
    assert [o.state for o in endings.combined([(0, killed), (1, wrong)])] == ["corrupt"]


def test_last_words_have_no_control_characters_and_whole_lines() -> None:
    assert endings.last_words(b"\x1b[31mred\x1b[0m\r50%\x00\n\n" + b"y" * 393 + b"\n\xff end\n") == "y" * 393 + "\n\ufffd end"
    assert endings.last_words(b"z" * 5000) == "z" * 400
    assert endings.last_words(b"") == ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_nothing_is_left_when_the_caller_is_ended_at_any_moment(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C reaches the caller as KeyboardInterrupt: Python then ends by SIGINT itself, which a shell calls 130."""
    chance = random.Random(int(number))
    for batch in range(2):
        parents = [
            subprocess.Popen(
                [sys.executable, str(HERE / "long_run.py"), str(tmp_path / f"{batch}-{i}")],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for i in range(5)
        ]
        try:
            _ended_at_any_moment(parents, number, chance)
        finally:
            for parent in parents:
                parent.kill()
                parent.communicate()


def _ended_at_any_moment(parents: list[subprocess.Popen[bytes]], number: signal.Signals, chance: random.Random) -> None:
    for parent in parents:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
    ends = sorted((chance.uniform(0, 2.5), parent.pid) for parent in parents)
    began = time.monotonic()
    for at, pid in ends:
        time.sleep(max(0.0, began + at - time.monotonic()))
        os.kill(pid, number)
    for parent in parents:
        assert parent.wait(10) == -number
        assert gone_within(3, lambda pid=parent.pid: ours(f"{pid}-")), ours(f"{parent.pid}-")  # type: ignore[misc]
        assert gone_within(1, lambda pid=parent.pid: folders(f"{pid}-"))  # type: ignore[misc]
