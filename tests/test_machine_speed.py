"""A large machine is read in seconds. The bound is wide, for busy test machines; bench/host_read.py prints the figure."""

from __future__ import annotations

import time
from pathlib import Path

from evidence.drawn import many
from linkproof.collect.evidence import read_evidence
from linkproof.collect.host import Live
from linkproof.parse.pci_facts import facts_of
from linkproof.parse.pci_tree import tree
from linkproof.parse.topology import pairs
from linkproof.report.topo import draw_matrix


def test_4000_pci_functions_with_16_gpus_are_read_and_their_topology_is_computed_in_4_cpu_seconds(tmp_path: Path) -> None:
    many().write(tmp_path)
    t0 = time.process_time()
    evidence = read_evidence(Live(str(tmp_path)))
    found = tree(evidence.pci.functions)
    matrix, facts = draw_matrix(found), facts_of(found, evidence.group_types)
    took_s = time.process_time() - t0
    assert (len(found.functions), len(found.gpus), len(pairs(found))) == (4000, 16, 120)
    assert len(matrix) == 17 and len(facts) > 30
    assert took_s < 4
