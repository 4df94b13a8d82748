import pytest

from linkproof.model import Event, Fact, Gid, IbError, Network
from linkproof.parse import read
from linkproof.parse.clean import clean


def facts(words: str) -> list[Fact]:
    return read(clean("log", words))


def errors(words: str) -> list[tuple[str, str]]:
    return [(f.call, f.errno) for f in facts(words) if isinstance(f, IbError)]


@pytest.mark.parametrize("line, want", [
    ("NCCL WARN Call to ibv_reg_mr failed", ("reg_mr", "")),
    ("NCCL WARN Call to ibv_reg_mr_iova2 failed with error Cannot allocate memory", ("reg_mr", "Cannot allocate memory")),
    ("NCCL WARN Call to ibv_reg_mr_iova2 failed with error Bad address errno 14", ("reg_mr", "Bad address")),
    ("NCCL WARN Call to ibv_reg_dmabuf_mr failed with error Cannot allocate memory", ("reg_dmabuf_mr", "Cannot allocate memory")),
    ("NCCL WARN Call to ibv_modify_qp failed with error Connection timed out", ("modify_qp", "Connection timed out")),
    ("NCCL WARN Call to ibv_modify_qp failed with error Invalid argument errno 22", ("modify_qp", "Invalid argument")),
    ("NCCL WARN Call to ibv_modify_qp failed with 110 Connection timed out, on dev mlx5_0:1, curr state INIT, next state RTR",
     ("modify_qp", "Connection timed out")),
    ("NCCL WARN Call to ibv_create_qp failed with error Cannot allocate memory errno 12", ("create_qp", "Cannot allocate memory")),
    ("NCCL WARN ibv_post_send() failed with error Bad address, Bad WR 0x7f, First WR 0x7f", ("post_send", "Bad address")),
    ("NCCL WARN Call to ibv_poll_cq() returned -5", ("poll_cq", "-5")),
    ("ib_md.c:309 UCX  ERROR ibv_reg_mr(address=0x7f, length=4096, access=0xf) failed: Cannot allocate memory : Please set max locked memory",
     ("reg_mr", "Cannot allocate memory")),
    ("NCCL WARN NET/IB : Got completion with error 12, opcode 0, len 0, vendor err 129", ("completion", "12")),
    ("NCCL WARN NET/IB : Got completion from peer 10.0.0.2<40000> with error 12, opcode 57, len 0, vendor err 129", ("completion", "12")),
    ("NCCL WARN NET/IB : Got completion from peer 10.0.0.2<40000> with status=12 opcode=0 len=0 vendor err 129 (Send)", ("completion", "12")),
    ("NCCL WARN NET/IB: Got completion from peer 10.0.0.2<4> with status=IBV_WC_RETRY_EXC_ERR(12) opcode=IBV_WC_SEND(0) reqSize=1", ("completion", "12")),
    ("NCCL WARN NET/IB : Got async event : port error", ("async_event", "port error")),
    ("NCCL WARN NET/IB : mlx5_1:1 Got async error event: local catastrophic error", ("async_event", "local catastrophic error")),
    ("NCCL WARN NET/IB : mlx5_1:1 async fatal event on QP (0x55): QP fatal error", ("async_event", "QP fatal error")),
    ("NCCL WARN NET/IB : mlx5_1:1 Got non-fatal async event: port error(10)", ("async_event", "port error(10)")),
])  # fmt: skip
def test_a_failing_verb_is_read_in_every_form(line: str, want: tuple[str, str]) -> None:
    assert errors("node1:71:93 [0] misc/ibvwrap.cc:160 " + line) == [want]
    assert errors(line) == [want]


@pytest.mark.parametrize("line", [
    "NCCL TRACE Got completion from peer 10.0.0.2<4> with status=0 opcode=0 len=0 wr_id=1",
    "NCCL INFO Call to ibv_query_ece failed with error Operation not supported errno 95",
    "NCCL INFO Call to ibv_reg_dmabuf_mr skipped, internal_name doesn't exist",
    "NCCL WARN NET/IB : Got async event : client reregistration",
    "NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [RO]; OOB eth0:10.0.0.1<0>",
])  # fmt: skip
def test_a_success_or_a_probe_is_no_error(line: str) -> None:
    assert errors(line) == []


@pytest.mark.parametrize("line", ["NET/IB : mlx5_1:1 GID table changed", "NET/IB : Got async event : GID table change"])
def test_a_gid_table_that_moved_is_a_fact_of_the_network(line: str) -> None:
    assert [f.fact for f in facts(f"node1:71:93 [0] NCCL WARN {line}") if isinstance(f, Network)] == ["gid_table_changed"]


def test_gids_of_ibv_devinfo_are_read_with_their_version() -> None:
    lines = "GID[  0]:\t\tfe80:0000:0000:0000:0200:00ff:fe00:0001, RoCE v1\nGID[  3]:\t\t::ffff:192.0.2.6, RoCE v2\nGID[  0]:\t\tfe80::1"
    assert [(f.index, f.gid, f.kind) for f in facts(lines) if isinstance(f, Gid)] == [
        (0, "fe80:0000:0000:0000:0200:00ff:fe00:0001", "v1"),
        (3, "::ffff:192.0.2.6", "v2"),
        (0, "fe80::1", ""),
    ]


def test_gids_of_show_gids_are_read_with_and_without_an_address() -> None:
    table = (
        "DEV     PORT    INDEX   GID                                     IPv4            VER     DEV\n"
        "mlx5_0  1       1       fe80:0000:0000:0000:ee0d:9aff:fe2d:0001                 v2      eth1\n"
        "mlx5_0  1       3       0000:0000:0000:0000:0000:ffff:c0a8:0101 192.168.1.1     v2      eth1\n"
    )
    assert [(f.index, f.kind) for f in facts(table) if isinstance(f, Gid)] == [(1, "v2"), (3, "v2")]


@pytest.mark.parametrize("line, there", [
    ("modprobe: FATAL: Module nvidia_peermem not found in directory /lib/modules/6.8.0", True),
    ("modprobe: ERROR: could not insert 'nvidia_peermem': Invalid argument", True),
    ("node1:71:93 [0] NCCL INFO NET/IB : GPU Direct RDMA Disabled for HCA 0 'mlx5_0'", True),
    ("node1:71:93 [0] NCCL INFO GPU Direct RDMA Disabled for GPU 0 / HCA 1 (distance 5 > 4)", False),
    ("nvidia_peermem         16384  0", False),
    ("node1:71:93 [0] misc/ibvwrap.cc:183 NCCL WARN Call to ibv_reg_dmabuf_mr failed with error Bad address errno 14", True),
    ("node1:71:93 [0] misc/ibvwrap.cc:183 NCCL WARN Call to ibv_reg_dmabuf_mr failed with error Cannot allocate memory", False),
])  # fmt: skip
def test_a_missing_peer_memory_module_is_told_from_distance_limits_and_lists(line: str, there: bool) -> None:
    assert any(isinstance(f, Event) and f.kind == "peer_memory_dmabuf" for f in facts(line)) is there
