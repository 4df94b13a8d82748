import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linkproof.model import CudaError, Event, Fact, NcclWarn, Ranks, Stage
from linkproof.parse import read
from linkproof.parse.clean import clean

FRAMES = (
    "",
    "node1:71:93 [2] misc/shmutils.cc:72 NCCL WARN ",
    "[2026-02-03 10:11:12] node1:71:93 [2] os/linux.cc:842 (ncclShmOpen) NCCL WARN ",
    "(RayWorkerWrapper pid=71) node1:71:93 [2] /b/hipify/src/misc/shmutils.cc:72 NCCL WARN ",
)


def facts(words: str) -> list[Fact]:
    return read(clean("log", words))


def events(words: str) -> dict[str, str]:
    return {f.kind: f.value for f in facts(words) if isinstance(f, Event)}


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("message, kind, value", [
    ("Error while creating shared memory segment /dev/shm/nccl-aB3xYz (size 9637888)", "shm_create_failed", "9637888"),
    ("Error while creating shared memory segment nccl-shm-recv-8f-0-1-3 (size 9637888)", "shm_create_failed", "9637888"),
    ("Error while attaching to shared memory segment /dev/shm/nccl-aB3xYz (size 33030528), error: No such file or directory (2)",
     "shm_attach_failed", ""),
    ("Error: failed to extend /dev/shm/nccl-aB3xYz to 33030532 bytes", "shm_extend_failed", "33030532"),
    ("No transport found for rank 0[1000] -> rank 1[24000]", "nccl_no_transport", "0-1"),
    ("No transport found !", "nccl_no_transport", ""),
    ("Rank 3 has no transport for send peer 5 on channel 0/1", "nccl_no_transport", "3-5"),
    ("Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 41000", "nccl_duplicate_gpu", "1-0"),
    ("Multiple Ranks are using the same GPU/Partition. Set NCCL_MULTI_RANK_GPU_ENABLE=1 to enable this configuration.", "nccl_duplicate_gpu", ""),
    ("cudaIpcGetMemHandle failed : invalid argument", "cuda_ipc_failed", ""),
    ("hipIpcGetMemHandle failed : invalid argument", "cuda_ipc_failed", ""),
    ("failed to open CUDA IPC handle : 11 invalid argument", "cuda_ipc_failed", ""),
    ("Mismatched NCCL version detected : rank 0 version 21805 rank 1 version 22005", "nccl_version_mismatch", ""),
    ("Message truncated : received 1024 bytes instead of 256", "nccl_truncated", "1024/256"),
    ("NET/Socket : peer 10.0.0.2<47802> message truncated : receiving 65536 bytes instead of 1024. If you believe", "nccl_truncated", "65536/1024"),
    ("NET/IB : req 0/1 tag 7 peer 10.0.0.2<40000> collective mismatch error, local size 64 remote size 128", "collective_mismatch", ""),
    ("Bootstrap : no socket interface found", "nccl_no_interface", ""),
    ("No algorithm/protocol available for function AllReduce with datatype ncclFloat32. NCCL_ALGO was set to CollnetDirect.",
     "nccl_no_algorithm", "AllReduce"),
    ("NET/IB : No IP interface found.", "nccl_no_interface", ""),
    ("Net : No interface found in the same subnet as remote address 10.0.0.2<34105>", "nccl_no_interface", ""),
    ("socketProgress: Connection closed by remote peer node2<47034>", "nccl_remote_exit", "node2<47034>"),
    ("Net : Connection closed by remote peer node2<47034>", "nccl_remote_exit", "node2<47034>"),
    ("Missing \"iommu=pt\" from kernel command line which can lead to system instablity or hang!", "iommu_warning_rccl", ""),
])  # fmt: skip
def test_a_message_is_known_with_and_without_its_frame(frame: str, message: str, kind: str, value: str) -> None:
    assert events(frame + message)[kind] == value


@pytest.mark.parametrize("message, state", [
    ("Net : Connect to 10.0.0.2<34105> failed : Connection refused", "refused"),  # 2.8
    ("Call to connect failed : Connection timed out", "timeout"),  # 2.4
    ("Call to connect returned Connection timed out, retrying", "timeout"),
    ("socketStartConnect: Connect to 10.0.0.2<34105> failed : No route to host", "unreachable"),  # 2.18
    ("socketStartConnect: exceeded retries (20000)", "refused"),
    ("socketPollConnect: exceeded timeouts (3)", "timeout"),
    ("socketPollConnect: connect to 10.0.0.2<34105> returned Connection timed out, exceeded error retry count after 35 attempts", "timeout"),
    ("socketStartConnect: connect to 10.0.0.2<34105> failed : Network is unreachable", "unreachable"),
    ("ncclOsSocketPollConnect to 10.0.0.2<34105> failed with error Connection refused", "refused"),  # 2.30
    ("socketProgressOpt: Call to recv from 10.0.0.2<34105> failed : Connection reset by peer", "closed"),
    ("socketPollConnect: connect returned Connection refused, exceeded error retry count (35)", "refused"),  # 2.24
    ("socketTryAccept: exceeded error retry count after 35 attempts, Software caused connection abort", "other"),
    ("Call to bind failed : Address already in use", "other"),
])  # fmt: skip
def test_a_socket_says_how_it_failed(message: str, state: str) -> None:
    assert events("node1:71:93 [0] misc/socket.cc:456 NCCL WARN " + message)["nccl_socket_failed"] == state


def test_hosts_with_other_numbers_of_network_cards_differ() -> None:
    line = (
        "h:1:2 [0] init.cc:912 NCCL WARN Detected mixed local Net device counts across ranks (min 7, max 8). Set NCCL_IGNORE_NET_MISMATCH=1"
    )
    assert [f.fact for f in facts(line) if isinstance(f, Ranks)] == ["hosts_differ"]


def test_one_refused_try_at_the_start_is_normal() -> None:
    first = (
        "node1:71:93 [0] NCCL INFO socketPollConnect: connect to 10.0.0.2<34105> returned Connection refused, retrying (1/34) after sleep"
    )
    assert not events(first)
    assert events(first.replace("(1/34)", "(9/34)")) == {"nccl_socket_failed": "refused"}


def test_a_connection_inside_the_host_is_no_network() -> None:
    line = (
        "node1:71:93 [0] misc/ipcsocket.cc:221 NCCL WARN UDS: Sending data over socket nccl-socket-1-ab failed : Connection refused (111)"
    )
    assert not events(line)


def test_no_space_is_told_at_each_of_its_calls() -> None:
    old = "node1:71:93 [0] include/shm.h:28 NCCL WARN Call to posix_fallocate failed : No space left on device"
    new = "Error: failed to extend /dev/shm/nccl-aB3xYz to 33030532 bytes, error: No space left on device (28)"
    assert events(old) == {"shm_extend_failed": "", "shm_no_space": ""}
    assert events(new) == {"shm_extend_failed": "33030532", "shm_no_space": ""}


def test_an_interrupted_call_and_a_full_disk_are_no_lack_of_shared_memory() -> None:
    again = "NCCL INFO fallocate: Failed to extend /dev/shm/nccl-aB3xYz to 33030532 bytes, error: Interrupted system call (4) - retrying"
    assert "shm_extend_failed" not in events(again)
    assert "shm_no_space" not in events("OSError: [Errno 28] No space left on device: '/home/me/model.bin'")


def test_every_warning_is_kept_also_one_that_no_rule_knows() -> None:
    line = "node1:71:93 [0] graph/search.cc:1140 NCCL WARN Could not find a path for pattern 4, falling back to simple order"
    found = [f for f in facts(line) if isinstance(f, NcclWarn)]
    assert [(f.where, f.message) for f in found] == [
        ("graph/search.cc", "Could not find a path for pattern 4, falling back to simple order")
    ]
    assert not events(line)


def test_an_info_line_is_no_warning() -> None:
    assert not [f for f in facts("node1:71:93 [0] NCCL INFO Connected all trees") if isinstance(f, NcclWarn)]


def test_the_number_of_a_refused_multicast_binding_is_found_on_its_line_or_below() -> None:
    one = "transport/nvls.cc:287 NCCL WARN Failed to bind NVLink SHARP (NVLS) Multicast memory of size 2097152 : CUDA error 401 'the operation'"
    folded = (
        "Failed to bind NVLink SHARP (NVLS) Multicast memory of size 2097152:\nCUDA error 2 'out of memory'.\nThis is usually caused by"
    )
    new = "Failed to bind NVLink SHARP (NVLS) Multicast memory of size 2097152 at MC group 7f offset 0 : CUDA error 401 'x'."
    assert events(one)["nvls_bind_failed"] == "401"
    assert events(folded)["nvls_bind_failed"] == "2"
    assert events(new)["nvls_bind_failed"] == "401"
    assert events("Failed to bind NVLink SHARP (NVLS) Multicast memory of size 1") == {"nvls_bind_failed": ""}


def test_a_cuda_call_that_fails_in_the_nvls_transport_is_told_from_other_places() -> None:
    nvls = "node1:71:93 [2] transport/nvls.cc:244 NCCL WARN Cuda failure 1 'invalid argument'"
    assert events(nvls) == {"nvls_call_failed": "1"}
    assert events(nvls.replace("transport/nvls.cc", "enqueue.cc")) == {"nccl_cuda_call_failed": "enqueue.cc 1"}
    assert events(nvls.replace("transport/nvls.cc", "transport/p2p.cc")) == {}


def test_a_number_that_old_releases_did_not_print_comes_from_the_words() -> None:
    assert events("h:1:2 [0] init.cc:312 NCCL WARN Cuda failure 'operation not supported'") == {"nccl_cuda_call_failed": "init.cc 801"}
    found = [f for f in facts("h:1:2 [0] init.cc:312 NCCL WARN Cuda failure 'invalid argument'") if isinstance(f, CudaError)]
    assert [f.code for f in found] == [1]


def test_an_error_that_another_kernel_left_behind_is_not_nccls() -> None:
    assert "nccl_cuda_call_failed" not in events(
        "h:1:2 [0] enqueue.cc:99 NCCL WARN Cuda failure 700 'an illegal memory access was encountered'"
    )


def test_a_cuda_failure_without_a_file_leaves_open_where_it_was() -> None:
    assert "nccl_cuda_call_failed" not in events("Last error:\nCuda failure 1 'invalid argument'")


def test_host_memory_by_cumem_is_told_by_its_place() -> None:
    shm = "h:1:2 [0] transport/shm.cc:590 NCCL WARN Cuda failure 217 'peer access is not supported between these two devices'"
    alloc = "h:1:2 [0] include/alloc.h:251 (ncclCuMemHostAlloc) NCCL WARN Cuda failure 1 'invalid argument'"
    device = "h:1:2 [0] include/alloc.h:251 (ncclCuMemAlloc) NCCL WARN Cuda failure 1 'invalid argument'"
    assert events(shm)["cumem_host_failed"] == "217"
    assert events(alloc) == {"cumem_host_failed": "1"}
    assert "cumem_host_failed" not in events(device)


def test_trace_lines_alone_name_the_transport_that_failed() -> None:
    assert events("transport/nvls.cc:401 -> 1\ninit.cc:1138 -> 1") == {"nvls_call_failed": "0"}
    assert events("h:1:2 [0] NCCL INFO transport/nvls.cc:401 (ncclNvlsSetup) -> 1") == {"nvls_call_failed": "0"}
    assert events("h:1:2 [0] NCCL INFO transport/nvls.cc:401 -> 6") == {}


def test_trace_lines_behind_their_cause_add_nothing() -> None:
    lines = "transport/nvls.cc:244 NCCL WARN Cuda failure 1 'invalid argument'\nNCCL INFO transport/nvls.cc:394 -> 1"
    assert [f.value for f in facts(lines) if isinstance(f, Event) and f.kind == "nvls_call_failed"] == ["1"]


def test_an_error_that_climbs_out_of_the_start_up_thread_is_a_stage() -> None:
    lines = "h:1:2 [0] NCCL INFO init.cc:1462 -> 1\nh:1:2 [0] NCCL INFO group.cc:75 -> 1 [Async thread]"
    assert [(f.at, f.result) for f in facts(lines) if isinstance(f, Stage)] == [("nccl_init", "error")]


def test_an_error_after_the_start_or_outside_of_it_is_no_stage() -> None:
    done = "h:1:2 [0] NCCL INFO comm 0x55 rank 0 nranks 2 cudaDev 0 busId 41000 - Init COMPLETE\n"
    climbed = "h:1:2 [0] NCCL INFO init.cc:1462 -> 1\nh:1:2 [0] NCCL INFO group.cc:75 -> 1 [Async thread]"
    assert not [f for f in facts(done + climbed) if isinstance(f, Stage)]
    assert not [f for f in facts("NCCL INFO enqueue.cc:2229 -> 1\nNCCL INFO group.cc:75 -> 1") if isinstance(f, Stage)]


def test_ranks_that_never_meet_at_the_bootstrap_are_an_event() -> None:
    lines = "NCCL WARN socketPollConnect: exceeded timeouts (3)\nNCCL INFO misc/socket.cc:561 -> 2\nNCCL INFO bootstrap.cc:311 -> 2"
    assert "nccl_bootstrap_timeout" in events(lines)
    assert "nccl_bootstrap_timeout" not in events("NCCL INFO bootstrap.cc:311 -> 2")


@pytest.mark.parametrize("line, value", [
    ("HINT: In many cases this error occurs when ACS is enabled which would break GPU Direct RDMA protocol.", "acs"),
    ("HINT: In many cases this error indicates that ACS is enabled, which breaks the GPU Direct RDMA protocol.", "acs"),
    ("HINT: In many cases this error occurs when the incorrect GID index is forced by NCCL_IB_GID_INDEX", "gid"),
    ("HINT: In many cases this error indicates that the NICs are not cross-rail connected.", "cross_rail"),
    ("HINT: In many cases this error indicates that the GPU peer-mapping (BAR1 P2P) resources are exhausted, which", "bar1_peer_mappings"),
    ("HINT: In many cases this error indicates that the IMEX (NVLink fabric) service is not running", "imex"),
])  # fmt: skip
def test_hints_of_2_30_and_2_32_are_read(line: str, value: str) -> None:
    found = events("h:1:2 [0] NCCL INFO " + line)
    assert found["nccl_hint"] == value
    assert ("nccl_ib_hint_acs" in found) == (value == "acs")


def test_a_peer_that_cannot_be_enabled_keeps_its_cuda_number() -> None:
    line = "h:1:2 [0] transport/p2p.cc:301 NCCL WARN failed to peer with device 1(=24000): 217 peer access is not supported between these two devices"
    assert [f.code for f in facts(line) if isinstance(f, CudaError)] == [217]


@given(st.text(alphabet="NCL WARNcuda failure'0123456789:./-> shm\n", max_size=400))
@settings(max_examples=80, deadline=None)
def test_no_text_is_refused(words: str) -> None:
    assert isinstance(facts("x.cc:1 NCCL WARN Cuda failure '" + words), list)
