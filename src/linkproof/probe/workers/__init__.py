"""Child processes with deadlines. A hang, a crash, a lost GPU are results, and nothing is left running.

worker.py    the caller's end: jobs in, outcomes out       launcher.py  forks what runs, for it has loaded torch once
gang.py      the processes of one case                     member.py    inside one of them
wire.py      what they say to each other                   endings.py   what an end means
"""
