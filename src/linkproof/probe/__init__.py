"""MEASUREMENTS. What only traffic can tell: do the bytes arrive, all of them, in every mode, and how fast.

What is tried    plan.py  which cases, in which order, at what cost      setup.py  what every worker is told
                 multicast.py  why NVLink multicast is left out
Data             payload.py  of each wrong word it can be said what it is
                 faults.py, faulty.py  wrong ways to arrive: for the self-test and for simulated links
Checks           copy_check.py  copies and kernel accesses of a pair     load_check.py  several pairs at once
                 kernel_checks.py  views, flags, atomics, chains         ipc_check.py  between processes
                 copy_speed.py  how fast, how late?                      counters.py, nvml_counters.py  error counters before and after
Devices          devices.py  what a check needs of GPUs: gpu/ gives it with torch, linkproof.sim.virtual on the CPU
Collectives      collectives/  all GPUs together: NCCL, symmetric memory, the engines' own all-reduce
Processes        workers/  each case runs in child processes with a deadline: a hang is a result
"""
