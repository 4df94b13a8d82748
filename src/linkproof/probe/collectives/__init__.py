"""All GPUs together, one process for each rank, sums that are exact in every type.

groups.py      what one rank of a case does                nccl_check.py  NCCL per transport and protocol
engines.py     symmetric memory, NVLS, vLLM, SGLang        nccl_said.py   what NCCL's own log says it used
ranks.py       a rank's rounds                             sums.py        of each wrong sum it can be said what it is
"""
