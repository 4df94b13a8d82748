"""Real GPUs behind `probe.devices.Devices`, with torch. The only rooms of the probe, beside the collectives, that load it.

cuda.py  the devices: copies of every kind, kernels, flags       cards.py   which GPUs there are, and who uses them
memory.py  memory of each kind of allocator                      share.py   memory that another process opens
kernels.py, slow_kernels.py  what runs on the GPU (Triton)       driver.py  the CUDA driver's own calls      base.py  what these share
timing.py  the GPU's own clock
"""
