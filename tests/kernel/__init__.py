"""Linux itself as the witness: a kernel boots in QEMU on a machine with PCIe ports that have ACS, and linkproof reads it from inside.

    vm.py         the machine: its ports, switches and devices; boots it and brings back what the guest said
    initramfs.py  the guest's files: the python that runs the tests, linkproof, busybox, lspci
    debian.py     a kernel from the distribution's own archive, unpacked and never installed
    witness.py    reads `lspci -vvv` without linkproof's code
    guest.py      runs inside: linkproof's own readers as root and as nobody, `lspci -vvv` beside them

What an emulated machine can show is registers, groups, types and places in /sys. It cannot show where packets go: QEMU routes none by ACS.
No KVM is used, so that this runs wherever QEMU does. Where it cannot run, the tests skip and the summary says which line to type;
LINKPROOF_KERNEL_TESTS=required makes that a failure. The first run downloads a kernel (about 35 MB) by apt and unpacks it into the cache,
$XDG_CACHE_HOME/linkproof-tests; LINKPROOF_TEST_KERNEL=/path/to/vmlinuz boots another. Six boots of 6 to 9 s, two at a time.
"""
