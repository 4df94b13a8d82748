from __future__ import annotations

from machine_texts import events, of

from linkproof.model import PeerAccess


def report(*, connected: int | None = 1, off: float = 11.3, on: float = 26.3, latency_off: float = 10.9, latency_on: float = 1.2) -> str:
    words = "[P2P (Peer-to-Peer) GPU Bandwidth Latency Test]\n"
    if connected is not None:
        words += f"P2P Connectivity Matrix\n     D\\D     0     1\n     0\t     1     {connected}\n     1\t     {connected}     1\n"
    for title, figure in (("P2P=Disabled Bandwidth", off), ("P2P=Enabled Bandwidth (P2P Writes)", on)):
        words += f"Unidirectional {title} Matrix (GB/s)\n   D\\D     0      1 \n     0 830.10  {figure} \n     1  {figure} 831.20 \n"
    for title, figure in (("P2P=Disabled Latency", latency_off), ("P2P=Enabled Latency (P2P Writes)", latency_on)):
        words += f"{title} Matrix (us)\n   GPU     0      1 \n     0   1.37  {figure} \n     1  {figure}   1.37 \n\n"
        words += "   CPU     0      1 \n     0   2.00  99999.0 \n     1  99999.0   2.00 \n"
    return words


def slower(words: str) -> list[str]:
    return [value for kind, value in events(words) if kind == "p2p_slower"]


def test_peer_access_that_gains_is_not_slower() -> None:
    assert not slower(report())
    assert [fact.claimed for fact in of(PeerAccess, report())] == ["all"]


def test_peer_access_that_gains_nothing_is_told_with_both_figures() -> None:
    assert slower(report(on=11.4)) == ["GPU 0 -> 1: 11.4 GB/s with peer access, 11.3 without (2 of 2 pairs)"]


def test_equal_figures_without_peer_access_are_to_be_expected() -> None:
    words = report(connected=0, on=11.3)
    assert not slower(words)
    assert [fact.claimed for fact in of(PeerAccess, words)] == ["none"]


def test_without_a_connectivity_matrix_only_clearly_slower_counts() -> None:
    assert not slower(report(connected=None, on=11.3))
    assert slower(report(connected=None, on=6.0)) == ["GPU 0 -> 1: 6 GB/s with peer access, 11.3 without (2 of 2 pairs)"]


def test_a_latency_of_milliseconds_is_told_and_the_cpu_matrix_is_not_read() -> None:
    assert slower(report(latency_on=49204.9)) == ["GPU 0 -> 1: 49204.9 us with peer access, 10.9 without (2 of 2 pairs)"]


def test_a_matrix_that_is_cut_says_what_it_holds() -> None:
    cut = report(on=5.0).split("     1  5.0")[0]
    assert slower(cut) == ["GPU 0 -> 1: 5 GB/s with peer access, 11.3 without (1 of 1 pairs)"]
