import pytest

from linkproof.model import Event
from linkproof.parse import read
from linkproof.parse.clean import clean


def events(words: str) -> dict[str, str]:
    return {f.kind: f.value for f in read(clean("log", words)) if isinstance(f, Event)}


@pytest.mark.parametrize("line, value", [
    ("torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients. 1/2 clients joined.", "1/2"),
    ("RuntimeError: Timed out initializing process group in store based barrier on rank: 0, for key: store_based_barrier_key:1 (world_size=8, "
     "worker_count=3, timeout=0:30:00)", "3/8"),
    ("torch.distributed.DistStoreError: Socket Timeout", ""),
    ("RuntimeError: [1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value store by key '0', but "
     "store->get('0') got error: Socket Timeout", ""),
    ("torch.distributed.DistStoreError: wait timeout after 1800000ms, keys: /default_pg/0//cuda//0", ""),
    ("torch.distributed.DistNetworkError: The client socket has timed out after 600s while trying to connect to (10.0.0.1, 29500).", ""),
    ("[W socket.cpp:663] [c10d] The client socket has failed to connect to [node1]:29500 (errno: 110 - Connection timed out).", "timeout"),
    ("[W socket.cpp:663] [c10d] The client socket has failed to connect to [node1]:29500 (errno: 113 - No route to host).", "unreachable"),
    ("torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError", ""),
])  # fmt: skip
def test_a_rank_that_waits_in_vain_is_an_event(line: str, value: str) -> None:
    assert events(line)["store_timeout"] == value


@pytest.mark.parametrize("line", [
    "[W socket.cpp:436] [c10d] The client socket cannot be initialized to connect to [localhost]:29500 (errno: 97 - Address family not supported).",
    "[W socket.cpp:663] [c10d] The client socket has failed to connect to [node1]:29500 (errno: 111 - Connection refused).",
    "requests.exceptions.Timeout: Socket Timeout is 30 s",
    "curl: (56) Recv failure: Connection reset by peer",
])  # fmt: skip
def test_a_retry_at_the_start_and_other_peoples_sockets_are_no_event(line: str) -> None:
    assert not {"store_timeout", "store_closed"} & set(events(line))


@pytest.mark.parametrize("line, value", [
    ("RuntimeError: [3] is setting up NCCL communicator via c10d key-value store by key '0', but store->get('0') got error: Connection reset by peer",
     "Connection reset by peer"),
    ("torch.distributed.DistNetworkError: Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
     "Failed to recv, got 0 bytes"),
    ("[rank2]:[W TCPStore.cpp:125] [c10d] recvValue failed on SocketImpl(fd=3): Broken pipe", "recvValue failed"),
    ("[PG 0 Rank 1] Failed to check the \"should dump\" flag on TCPStore, (maybe TCPStore server has shut down too early), with error: x", " too early"),
])  # fmt: skip
def test_a_store_that_closes_is_an_event(line: str, value: str) -> None:
    assert events(line)["store_closed"] == value


def test_a_connection_of_nccl_that_closes_is_not_the_store() -> None:
    line = "node1:1:2 [0] misc/socket.cc:46 NCCL WARN socketProgressOpt: Call to recv from 10.0.0.2<4> failed : Connection reset by peer"
    assert "store_closed" not in events(line)
