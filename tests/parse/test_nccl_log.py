import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linkproof.model import Event, Fact, Iface, NcclInit, NcclPath, Seen, Setting, Topo, Versions
from linkproof.parse import read
from linkproof.parse.clean import clean
from linkproof.parse.nccl_log import nccl_version


def facts(words: str) -> list[Fact]:
    return read(clean("log", words))


def events(words: str) -> dict[str, str]:
    return {f.kind: f.value for f in facts(words) if isinstance(f, Event)}


def path(line: str) -> tuple[int, int, str, str] | None:
    found = [f for f in facts(line) if isinstance(f, NcclPath)]
    return (found[0].src, found[0].dst, found[0].transport, found[0].detail) if found else None


# one line of each form that a release has printed
VIA = {
    "2.3 device numbers": ("h:1:2 [1] NCCL INFO Ring 00 : 0[0] -> 1[1] via P2P/IPC", (0, 1, "P2P", "IPC")),
    "2.3 net, no brackets": ("h:1:2 [1] NCCL INFO Ring 00 : 1 -> 0 via NET/Socket/0", (1, 0, "NET", "Socket/0")),
    "2.4 net with direction": ("h:1:2 [0] NCCL INFO Ring 03 : 8 -> 0 [receive] via NET/IB/2/GDRDMA", (8, 0, "NET", "IB/2/GDRDMA")),
    "2.4 same device": ("h:1:2 [0] NCCL INFO Ring 00 : 0 -> 1 via P2P/common device", (0, 1, "P2P", "common device")),
    "2.5 bus ids": ("h:1:2 [0] NCCL INFO Ring 01 : 3[1c000] -> 0[18000] via P2P/direct pointer", (3, 0, "P2P", "direct pointer")),
    "2.8 shared memory": ("h:1:2 [0] NCCL INFO Channel 00 : 0[2000] -> 1[4000] via direct shared memory", (0, 1, "SHM", "")),
    "2.8 indirect": ("h:1:2 [0] NCCL INFO Channel 01 : 0[6000] -> 5[86000] via P2P/indirect/1[7000]", (0, 5, "P2P", "indirect/1[7000]")),
    "2.12 proxy rank": ("h:1:2 [0] NCCL INFO Channel 00/0 : 0[1000] -> 8[1000] [send] via NET/IB/0(1)/GDRDMA", (0, 8, "NET", "IB/0(1)/GDRDMA")),
    "2.13 copy engine": ("h:1:2 [1] NCCL INFO Channel 00/0 : 1[b1000] -> 0[af000] via P2P/IPC/CE", (1, 0, "P2P", "IPC/CE")),
    "2.14 shared memory": ("h:1:2 [1] NCCL INFO Channel 01 : 1[b1000] -> 0[af000] via SHM/direct/direct", (1, 0, "SHM", "direct/direct")),
    "2.18 nvml numbers": ("h:1:2 [2] NCCL INFO Channel 02/0 : 2[6] -> 3[7] via P2P/CUMEM/read", (2, 3, "P2P", "CUMEM/read")),
    "2.21 domain": ("h:1:2 [2] NCCL INFO Channel 02/0 : 2[0] -> 3[1] via P2P/MNNVL", (2, 3, "P2P", "MNNVL")),
    "2.26 GDR mode": ("h:1:2 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/IB/0/GDRDMA(PCI)", (0, 8, "NET", "IB/0/GDRDMA(PCI)")),
    "2.30 shared memory": ("h:1:2 [0] NCCL INFO Channel 00 : 0[0] -> 1[1] via SHM/direct", (0, 1, "SHM", "direct")),
    "plugin name with a blank": ("h:1:2 [0] NCCL INFO Channel 01/0 : 8[0] -> 0[0] [receive] via NET/AWS Libfabric/1/GDRDMA",
                                 (8, 0, "NET", "AWS Libfabric/1/GDRDMA")),
    "RCCL": ("h:1:2 [0] NCCL INFO Channel 00/0 : 0[63000] -> 1[43000] via P2P/direct pointer comm 0x7f11 nRanks 04", (0, 1, "P2P", "direct pointer")),
    "without frame": ("Channel 00 : 0[3b000] -> 1[5e000] via SHM/direct/direct", (0, 1, "SHM", "direct/direct")),
}  # fmt: skip


@pytest.mark.parametrize("release", VIA)
def test_a_route_is_read_in_the_form_of_every_release(release: str) -> None:
    line, want = VIA[release]
    assert path(line) == want


def test_a_ring_order_is_no_route() -> None:
    assert path("h:1:2 [0] NCCL INFO Channel 00/24 :    0   1   2   3") is None
    assert path("h:1:2 [0] NCCL INFO Ring 00 : 3 -> 0 -> 1") is None


def test_the_same_route_of_many_channels_is_one_fact() -> None:
    lines = [f"h:1:2 [0] NCCL INFO Channel {c:02d}/0 : 0[0] -> 1[1] via P2P/CUMEM" for c in range(24)]
    assert len([f for f in facts("\n".join(lines)) if isinstance(f, NcclPath)]) == 1


INIT = {
    "2.3": ("h:1:2 [0] NCCL INFO comm 0x7f3a4c001b80 rank 0 nranks 2 - COMPLETE", (0, 2, "complete", "")),
    "2.4": ("h:1:2 [0] NCCL INFO comm 0x7f3a4c001b80 rank 0 nranks 2 cudaDev 0 nvmlDev 0 - Init COMPLETE", (0, 2, "complete", "")),
    "2.8": ("h:1:2 [3] NCCL INFO comm 0x7f3a4c001b80 rank 3 nranks 8 cudaDev 3 busId 1c0 - Init COMPLETE", (3, 8, "complete", "")),
    "2.18": ("h:1:2 [1] NCCL INFO comm 0x55 rank 1 nranks 2 cudaDev 1 nvmlDev 1 busId 61000 commId 0x9f2e - Init START", (1, 2, "start", "0x9f2e")),
    "2.21": ("h:1:2 [1] NCCL INFO ncclCommInitRank comm 0x55 rank 1 nranks 2 cudaDev 1 nvmlDev 1 busId 61000 commId 0x9f2e - Init COMPLETE",
             (1, 2, "complete", "0x9f2e")),
    "2.23 split": ("h:1:2 [1] NCCL INFO ncclCommSplit comm 0x55 rank 1 nranks 2 cudaDev 1 nvmlDev 1 busId 61000 parent 0x44 color 0 key 1- Init START",
                   (1, 2, "start", "")),
    "2.29": ("h:1:2 [1] NCCL INFO [Rank 1] ncclCommInitRankConfig comm 0x55 rank 1 nranks 2 cudaDev 1 nvmlDev 1 busId 61000 commId 0x9f2e - Init START",
             (1, 2, "start", "0x9f2e")),
}  # fmt: skip


@pytest.mark.parametrize("release", INIT)
def test_the_start_of_a_communicator_is_read_in_the_form_of_every_release(release: str) -> None:
    line, want = INIT[release]
    found = [f for f in facts(line) if isinstance(f, NcclInit)]
    assert [(f.rank, f.nranks, f.state, f.comm) for f in found] == [want]


def test_the_end_of_a_communicator_is_not_its_start() -> None:
    line = "h:1:2 [0] NCCL INFO comm 0x55 rank 0 nranks 2 cudaDev 0 busId 41000 - Destroy COMPLETE"
    assert not [f for f in facts(line) if isinstance(f, NcclInit)]


def test_an_aborted_communicator_is_an_event() -> None:
    assert "nccl_abort" in events("h:1:2 [0] NCCL INFO comm 0x55 rank 0 nranks 2 cudaDev 0 busId 41000 - Abort COMPLETE")


def test_the_banner_gives_nccl_and_cuda() -> None:
    assert [(f.nccl, f.cuda) for f in facts("NCCL version 2.30.7+cuda13.2") if isinstance(f, Versions)] == [("2.30.7", "13.2")]


def test_the_banner_of_rccl_gives_rocm() -> None:
    assert [(f.nccl, f.rocm) for f in facts("RCCL version 2.20.5+hip6.2 HEAD:d380693") if isinstance(f, Versions)] == [("2.20.5", "6.2")]
    new = "node [0] NCCL INFO RCCL version : 2.27.7-HEAD:29e1567\nHIP version  : 7.2.53211\nROCm version : 7.2.4.0-93"
    assert {(f.nccl, f.rocm) for f in facts(new) if isinstance(f, Versions)} == {("2.27.7", ""), ("", "7.2.4")}


def test_a_number_code_that_old_torch_cut_wrongly_is_put_right() -> None:
    assert [nccl_version(v) for v in ("21.0.3", "20.9.9", "2.18.1", "2.4.8")] == ["2.10.3", "2.9.9", "2.18.1", "2.4.8"]


def test_a_setting_that_acts_is_a_setting_and_two_events() -> None:
    found = facts("h:1:2 [0] NCCL INFO NCCL_P2P_LEVEL set by environment to SYS")
    assert [(f.name, f.effect, f.key, f.value) for f in found if isinstance(f, Setting)] == [
        ("NCCL_P2P_LEVEL=SYS", "present", "NCCL_P2P_LEVEL", "SYS")
    ]
    assert events("h:1:2 [0] NCCL INFO NCCL_P2P_LEVEL set by environment to SYS") == {
        "nccl_env": "NCCL_P2P_LEVEL=SYS",
        "nccl_p2p_setting_active": "NCCL_P2P_LEVEL=SYS",
    }


def test_the_full_stop_behind_a_number_is_not_its_value() -> None:
    assert events("h:1:2 [0] NCCL INFO NCCL_IB_DISABLE set by environment to 1.") == {"nccl_env": "NCCL_IB_DISABLE=1"}


def test_a_chunk_size_is_not_a_setting() -> None:
    assert not [f for f in facts("h:1:2 [0] NCCL INFO P2P Chunksize set to 131072") if isinstance(f, Setting)]


def test_a_variable_that_nccl_reads_from_elsewhere_is_a_setting_too() -> None:
    assert events("h:1:2 [0] NCCL INFO NCCL_SOCKET_IFNAME set to eth1") == {"nccl_env": "NCCL_SOCKET_IFNAME=eth1"}


@pytest.mark.parametrize("line, value", [
    ("h:1:2 [0] NCCL INFO Check P2P Type intraNodeP2pSupport 1 directMode 0", "1"),
    ("h:1:2 [0] NCCL INFO Check P2P Type isAllDirectP2p 0 directMode 0", "0"),
    ("h:1:2 [0] NCCL INFO Check P2P Type isAllDirectP2p 1 directMode 0 isAllCudaP2p 1", "1"),
    ("isAllDirectP2p 0", "0"),
])  # fmt: skip
def test_the_summary_of_peer_access_is_read_under_both_names(line: str, value: str) -> None:
    assert events(line) == {"nccl_check_p2p": value}


@pytest.mark.parametrize("line, kind", [
    ("h:1:2 [0] NCCL INFO NVLS multicast support is available on dev 0", "nvls_available"),
    ("h:1:2 [0] NCCL INFO NVLS multicast support is not available on dev 0", "nvls_unavailable"),
    ("h:1:2 [0] NCCL INFO NVLS multicast support is available on dev 0 (NVLS_NCHANNELS 24)", "nvls_available"),
    ("h:1:2 [0] NCCL INFO NVLS multicast support is not available on dev 0, transport 0, symmetric multimem 0", "nvls_unavailable"),
    ("h:1:2 [0] NCCL INFO NVLS comm 0x55d headRank 0 nHeads 8 buffSize 1048576 memSize 2097152", "nvls_used"),
    ("h:1:2 [0] NCCL INFO Connected NVLS tree", "nvls_used"),
    ("h:1:2 [0] NCCL INFO 24 coll channels, 24 collnet channels, 16 nvls channels, 32 p2p channels", "nvls_used"),
    ("h:1:2 [0] NCCL INFO Connected all rings", "nccl_rings_connected"),
    ("h:1:2 [0] NCCL INFO Connected all rings, use ring PXN 0 GDR 1", "nccl_rings_connected"),
    ("h:1:2 [0] NCCL INFO Legacy IPC not supported", "nccl_legacy_ipc"),
    ("h:1:2 [0] NCCL INFO cuMem host allocations do not appear to be working; falling back to a /dev/shm/ based", "cumem_host_failed"),
])  # fmt: skip
def test_what_a_line_says_is_an_event(line: str, kind: str) -> None:
    assert list(events(line)) == [kind]


def test_no_nvls_channels_means_no_nvls() -> None:
    assert not events("h:1:2 [0] NCCL INFO 2 coll channels, 2 collnet channels, 0 nvls channels, 2 p2p channels")


def test_the_driver_that_denies_peer_access_is_told_from_a_broken_nvlink() -> None:
    denied = (
        "h:1:2 [0] NCCL INFO P2P is disabled between connected GPUs 0 and 1. You can repress this message with NCCL_IGNORE_DISABLED_P2P=1."
    )
    broken = "h:1:2 [0] graph/paths.cc:331 NCCL WARN P2P is disabled between NVLINK connected GPUs 2 and 3. This should not be the case"
    assert events(denied) == {"nccl_p2p_disabled_driver": "0-1"}
    assert events(broken) == {"nccl_p2p_nvlink_disabled": "2-3"}


def test_a_refused_pair_is_told_from_a_failed_question() -> None:
    assert events("h:1:2 [0] NCCL INFO Could not enable P2P between dev 0(=1000) and dev 1(=24000)") == {"nccl_peer_not_possible": "0-1"}
    assert events("h:1:2 [0] NCCL INFO peer query failed between dev 0(=1000) and dev 1(=24000)") == {"nccl_peer_query_failed": "0-1"}


@pytest.mark.parametrize("line, want", [
    ("h:1:2 [0] NCCL INFO Bootstrap : Using [0]eth0:10.1.2.3<0>", [("eth0", "10.1.2.3")]),
    ("h:1:2 [0] NCCL INFO Bootstrap : Using docker0:172.17.0.1<0>", [("docker0", "172.17.0.1")]),
    ("h:1:2 [0] NCCL INFO Bootstrap: Using lo:127.0.0.1<0>", [("lo", "127.0.0.1")]),
    ("h:1:2 [0] NCCL INFO Bootstrap : Using ib0:fe80::a2:3%ib0<0>", [("ib0", "fe80::a2:3%ib0")]),
    ("h:1:2 [0] NCCL INFO NET/Socket : Using [0]eth0:10.1.2.3<0> [1]eth1:10.9.2.3<0>", [("eth0", "10.1.2.3"), ("eth1", "10.9.2.3")]),
    ("h:1:2 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/RoCE [1]mlx5_1:1/RoCE [RO]; OOB bond0:10.0.0.2<0>", [("bond0", "10.0.0.2")]),
])  # fmt: skip
def test_the_interfaces_that_nccl_chose_are_read(line: str, want: list[tuple[str, str]]) -> None:
    assert [(f.name, f.address) for f in facts(line) if isinstance(f, Iface)] == want


def test_a_missing_plugin_is_no_interface() -> None:
    line = "h:1:2 [0] NCCL INFO NET/Plugin : No plugin found (libnccl-net.so), using internal implementation"
    assert not [f for f in facts(line) if isinstance(f, Iface)]
    assert [f.kind for f in facts(line) if isinstance(f, Seen)] == ["NCCL log"]


def test_the_graph_tells_the_farthest_step_inside_a_host() -> None:
    line = "h:1:2 [0] NCCL INFO Pattern 4, crossNic 0, nChannels 2, bw 12.000000/12.000000, type SYS/PIX, sameChannels 1"
    assert [(f.path, f.pairs) for f in facts(line) if isinstance(f, Topo)] == [("SYS", "some")]


def test_the_network_is_named() -> None:
    assert events("h:1:2 [0] NCCL INFO Using network Socket") == {"nccl_network": "Socket"}


def test_other_peoples_words_are_no_nccl_log() -> None:
    assert not [f for f in facts("we go via P2P/something rank 3\nUsing network drive") if isinstance(f, (NcclPath, NcclInit, Seen, Event))]


@given(st.text(alphabet="NCLRING via P2P/SHM:[]0123456789->comm x rank\n", max_size=400))
@settings(max_examples=80, deadline=None)
def test_no_text_is_refused(words: str) -> None:
    assert isinstance(facts("Channel 00 : 0[1] -> 1[2] via P2P/" + words), list)


def test_a_long_line_and_long_numbers_do_no_harm() -> None:
    huge = "h:1:2 [0] NCCL INFO Channel 00 : " + "9" * 5000 + "[0] -> 1[1] via P2P/IPC\nNCCL version " + "2" * 900 + ".1.1"
    assert not [f for f in facts(huge) if isinstance(f, (NcclPath, Versions))]
