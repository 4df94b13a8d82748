"""CHANGES: the only room that writes to the machine. A former value is on disk before its change, and every change can be taken back.

plan.py, refusals.py, ways.py, hardware.py   what to do, what forbids it, and for which machine (pure)
recipes/                                     a finding -> steps
boot/, text/                                 the kernel command line under each boot loader; lines of its files
apply.py, rollback.py, status.py             does steps, takes them back, tells what stands
writing.py, images.py                        one change, written and read back; files and folders as they were
journal.py, doors.py                         the undo on disk; every primitive that changes anything
persist/                                     registers set again at each boot
"""
