"""Recorded and drawn machines. Each folder is one: manifest.json (the capture), about.md (where from), expected.txt (what must come out).

build.py                draws machines: a fake /sys with PCI functions, bridges with ACS registers, IOMMU groups
make_from_fixtures.py   writes the folders: from recordings given to it, and from drawings
nccl_topologies.txt     nesting of published NCCL topology files
"""
