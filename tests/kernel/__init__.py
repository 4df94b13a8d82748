"""Linux itself as the witness: a kernel boots in QEMU on a machine with PCIe ports that have ACS, and linkproof reads and mends it from inside.

    vm.py             the machine: its ports, switches and devices; boots it, freezes it, cuts its power, brings back what the guest said
    initramfs.py      the guest's files: the python that runs the tests, linkproof, busybox, lspci
    debian.py         a kernel and its modules from the distribution's own archive, unpacked and never installed
    disk.py           a disk that outlives the guest, and what it holds after a power cut
    witness.py        reads `lspci -vvv` without linkproof's code
    guest.py          runs inside: linkproof's own readers as root and as nobody, `lspci -vvv` beside them
    fix_guest.py      runs inside: `linkproof fix` on registers, groups and files
    cut_guest.py      runs inside: a plan of every kind of change, ended at a place that the host names
    peer.py           runs inside: one card's memory copied into another's by a device
    inside.py         runs inside: what these share
    stand_in_site.py  runs inside, in the programs of the systemd unit

What an emulated machine can show is registers, groups, types, places in /sys, and an IOMMU that lets a peer's address through or not. It cannot
show where packets go: QEMU routes none by ACS. No KVM is used, so that this runs wherever QEMU does. Where it cannot run, the tests skip and the
summary says which line to type; LINKPROOF_KERNEL_TESTS=required makes that a failure. The first run downloads a kernel (about 35 MB) by apt and
unpacks it into the cache, $XDG_CACHE_HOME/linkproof-tests; LINKPROOF_TEST_KERNEL=/path/to/vmlinuz boots another, with modules from
/lib/modules. Two machines at a time: 6 boots of 6 to 9 s to read, 7 of 6 to 25 s to mend, and 5 around some 120 power cuts of half a second.
"""
