"""Machines that do not exist, each modelled on a real failure: GPUs of numpy whose links carry bytes as the scenario says, and the host
around them as the collectors would read it. For tests, for `check --sim`, for everybody without such a machine.

    scenario.py    what a machine is: one TOML file each in scenarios/
    virtual.py     its GPUs, for a probe (`probe.devices.Devices`)
    collective.py  NCCL's rings over its links
    host.py        its /sys, kernel log and tools, for `check` (`collect.host.Host`)
"""
