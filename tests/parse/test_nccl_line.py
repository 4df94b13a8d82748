from linkproof.model import Event, Line, Source, Text
from linkproof.parse.nccl_line import framed, near, short_file, socket_state
from linkproof.parse.rules import distinct


def test_a_warn_line_gives_file_and_message_in_every_form_of_the_frame() -> None:
    forms = (
        "node1:71:93 [2] transport/shm.cc:88 NCCL WARN something broke",
        "[2025-06-16 17:17:39] node1:71:93 [2] transport/shm.cc:88 NCCL WARN something broke",
        "[2026-06-16 17:17:39] node1:71:93 [2] transport/shm.cc:88 (shmSetup) NCCL WARN something broke",
        "node1:71:93 [2] /b/build/hipify/src/transport/shm.cc:88 NCCL WARN something broke",
        "transport/shm.cc:88 NCCL WARN something broke",
        "shm.cc: NCCL WARN something broke",
        "NCCL WARN something broke",
    )
    seen = [framed(line) for line in forms]
    assert [f.message for f in seen if f] == ["something broke"] * len(forms)
    assert [f.where for f in seen if f] == ["transport/shm.cc"] * 5 + ["shm.cc", ""]


def test_the_function_of_new_frames_is_kept() -> None:
    frame = framed("h:1:2 [0] include/alloc.h:251 (ncclCuMemHostAlloc) NCCL WARN Cuda failure 2 'out of memory'")
    assert frame is not None
    assert (frame.where, frame.func) == ("include/alloc.h", "ncclCuMemHostAlloc")


def test_a_line_without_nccl_words_has_no_frame() -> None:
    assert framed("WARN something broke in enqueue.cc:12") is None


def test_build_trees_are_cut_from_a_path() -> None:
    assert short_file("/longer/name/build/rccl/hipify/src/transport/p2p.cc") == "transport/p2p.cc"
    assert short_file("/opt/x/init.cc") == "init.cc"
    assert short_file("transport/net_ib/common.cc") == "transport/net_ib/common.cc"


def test_the_words_of_an_errno_say_how_a_socket_failed() -> None:
    words = ("Connection refused", "Connection timed out", "No route to host", "Connection reset by peer", "Address already in use")
    assert [socket_state(w) for w in words] == ["refused", "timeout", "unreachable", "closed", "other"]


def test_equal_facts_of_several_lines_are_one_fact_but_ranks_stay_apart() -> None:
    a = Event(source=Source("x", 1), kind="nccl_abort")
    b = Event(source=Source("x", 2), kind="nccl_abort")
    c = Event(source=Source("x", 3), rank=4, kind="nccl_abort")
    assert list(distinct([a, b, c])) == [a, c]


def test_near_looks_no_further_than_told() -> None:
    text = Text("x", [Line(1, "far"), Line(2, "a"), Line(3, "b")])
    assert near(text, 2, "far", before=2)
    assert not near(text, 2, "far", before=1)


def test_many_facts_of_one_kind_do_not_hide_another_kind() -> None:
    many: list[Event] = [Event(source=Source("x", i), kind="nccl_env", value=str(i)) for i in range(20)]
    last = Event(source=Source("x", 99), kind="nccl_abort")
    assert [f.kind for f in distinct([*many, last], most=5) if isinstance(f, Event)] == ["nccl_env"] * 5 + ["nccl_abort"]
