import pytest

from linkproof.model import Event
from linkproof.parse import read
from linkproof.parse.clean import clean

ENDS = {"host_oom", "killed", "bus_error", "segfault", "out_of_shm", "thread_create_failed"}


def ends(words: str) -> list[tuple[str, str]]:
    return [(f.kind, f.value) for f in read(clean("log", words)) if isinstance(f, Event) and f.kind in ENDS]


@pytest.mark.parametrize("words, kind, value", [
    ("torch.distributed.elastic.multiprocessing.api:failed (exitcode: -9) local_rank: 3 (pid: 812917) of binary: python", "killed", "3"),
    ("  traceback : Signal 9 (SIGKILL) received by PID 14750", "killed", "14750"),
    ("ProcessExitedException: process 1 terminated with signal SIGKILL", "killed", ""),
    ("Killed", "killed", ""),
    ("./run.sh: line 5: 12345 Killed                  python train.py", "killed", ""),
    ("srun: error: node01: task 3: Killed", "killed", "3"),
    ("Shard process was signaled to shutdown with signal 9 rank=0", "killed", "0"),
    ("command terminated with exit code 137", "killed", ""),
    ("exits with return code = -9", "killed", ""),
    ("      Reason:       OOMKilled", "host_oom", ""),
    ('            "OOMKilled": true,', "host_oom", ""),
    ("(raylet) node_manager.cc:3064: 12 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed", "host_oom", ""),
    ("ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.", "host_oom", ""),
    ("slurmstepd: error: Detected 1 oom_kill event in StepId=1.0.", "host_oom", ""),
    ("Bus error: nonexistent physical address", "bus_error", ""),
    ("[n1:01234] Signal: Bus error (7)", "bus_error", ""),
    ("[n1:123  :0:123] Caught signal 7 (Bus error: nonexistent physical address)", "bus_error", ""),
    ("worker exited (exitcode: -7) local_rank: 1", "bus_error", "1"),
    ("Fatal Python error: Bus error", "bus_error", ""),
    ("Fatal Python error: Segmentation fault", "segfault", ""),
    ("!!!!!!! Segfault encountered !!!!!!!", "segfault", ""),
    ("Process exited: Exception 0xC0000005", "segfault", ""),
    ("container exit code 139", "segfault", ""),
    ("RuntimeError: unable to write to file </torch_2345_1>", "out_of_shm", ""),
    ("E0326 thd.cc:157] pthread_create failed: Resource temporarily unavailable", "thread_create_failed", ""),
    ("RuntimeError: can't start new thread", "thread_create_failed", ""),
    ("libgomp: Thread creation failed: Resource temporarily unavailable", "thread_create_failed", ""),
])  # fmt: skip
def test_every_way_to_say_how_a_process_ended(words: str, kind: str, value: str) -> None:
    assert ends(words) == [(kind, value)]


def test_a_data_loader_says_bus_error_and_shared_memory() -> None:
    words = "RuntimeError: DataLoader worker (pid 4321) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory."
    assert ends(words) == [("bus_error", "4321"), ("out_of_shm", "")]


def test_a_list_of_possible_reasons_is_only_a_possible_lack_of_memory() -> None:
    words = ("Worker exit detail: connection error code 2. There are some potential root causes. (1) The process is killed by SIGKILL by OOM "
             "killer due to high memory usage. (2) ray stop --force is called. (3) The worker is crashed due to SIGSEGV")  # fmt: skip
    assert ends(words) == [("host_oom", "possible")]


@pytest.mark.parametrize("words", [
    '            "OOMKilled": false,',
    "Sending process 812914 closing signal SIGTERM",
    "Worker VllmWorkerProcess pid 382811 died, exit code: -15",
    "failed (exitcode: 1) local_rank: 0",
    "Process did not exit in time, sending SIGKILL",
    "this change Killed the performance",
    "process exited with code 9",
    "zmq.error.Again: Resource temporarily unavailable",
    "the shared memory object was opened",
    "NCCL INFO signal handler set",
])  # fmt: skip
def test_what_is_no_end_gives_nothing(words: str) -> None:
    assert not ends(words)


def test_each_rank_that_ends_is_told_once() -> None:
    words = "\n".join(["failed (exitcode: -9) local_rank: 1 (pid: 11)"] * 5 + ["failed (exitcode: -9) local_rank: 2 (pid: 12)"])
    assert ends(words) == [("killed", "1"), ("killed", "2")]
